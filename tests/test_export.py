"""ONNX and torch.export programs against PyTorch, and predictions without it."""
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from test_programs import SCRIPTS, run_here

from timm_fan.data import load_image
from timm_fan.data.scenes import PRESETS, draw_scene
from timm_fan.models import save_model

onnxruntime = pytest.importorskip('onnxruntime')
NAMES = ['cat', 'dog', 'person']


@pytest.fixture
def photo(tmp_path) -> Path:
    file = tmp_path / 'photo.jpg'
    draw_scene(PRESETS['small'], 0, 'val', 3)[0].resize((150, 101)).save(file)
    return file


def saved(folder: Path, backbone: str, size: int, **kwargs) -> Path:
    torch.manual_seed(0)
    model = timm.create_model('fan', backbone=backbone, embed_dim=16, num_classes=3, **kwargs).eval()
    with torch.no_grad():  # a fresh classifier answers next to nothing
        model.head.fc.weight.mul_(30)
    save_model(model, folder, NAMES, dict(input_size=(3, size, size), crop_pct=0.9))
    return folder


def export(monkeypatch, capsys, *args) -> str:
    assert run_here(monkeypatch, 'export', *args) == 0
    return capsys.readouterr().out


def differences(folder: Path, sizes, **kwargs):
    model = timm.create_model(f'local-dir:{folder}', pretrained=True, **kwargs).eval()
    session = onnxruntime.InferenceSession(str(folder / 'export' / 'model.onnx'))
    program = torch.export.load(folder / 'export' / 'model.pt2').module()
    for height, width in sizes:
        for batch in (1, 3):
            x = torch.rand(batch, 3, height, width)
            with torch.inference_mode():
                wanted = model(x)
            assert wanted.std() > 0.01
            yield float(np.abs(session.run(None, {'image': x.numpy()})[0] - wanted.numpy()).max())
            yield float((program(x).detach() - wanted).abs().max())


@pytest.mark.parametrize('backbone, size, kwargs', [
    ('test_resnet', 96, {}),
    ('test_vit', 160, dict(backbone_args=dict(dynamic_img_size=True))),
])
def test_any_batch_and_image_size(monkeypatch, capsys, tmp_path, backbone, size, kwargs):
    folder = saved(tmp_path / 'model', backbone, size)
    out = export(monkeypatch, capsys, folder)
    assert 'any image size' in out
    found = list(differences(folder, [(96, 96), (128, 64), (192, 224)], **kwargs))
    assert len(found) == 12 and max(found) < 1e-4


@pytest.mark.parametrize('head', ['csra', 'ml_decoder', 'query2label'])
def test_heads_of_rivals(monkeypatch, capsys, tmp_path, head):
    model = timm.create_model(
        'fan', backbone='test_resnet', frn=False, cln=False, head=head, num_classes=3,
        head_args={} if head == 'csra' else dict(dim=16, num_heads=2)).eval()
    save_model(model, tmp_path, NAMES, dict(input_size=(3, 64, 64)))
    assert 'any batch' in export(monkeypatch, capsys, tmp_path, '--formats', 'torch')
    program = torch.export.load(tmp_path / 'export' / 'model.pt2').module()
    x = torch.rand(3, 3, 96, 64)
    torch.testing.assert_close(program(x), model(x), atol=1e-4, rtol=0)


def test_image_sizes_that_cannot_be_exported(monkeypatch, capsys, tmp_path):
    folder = saved(tmp_path / 'model', 'test_resnet', 64)
    for size in ('32', '72', '-32'):
        assert run_here(monkeypatch, 'export', folder, '--img-size', size) == 2
        assert '--img-size' in capsys.readouterr().err


@pytest.mark.parametrize('values', [
    np.linspace(0, 1, 64, dtype=np.float32), np.linspace(0, 65535, 64).astype(np.int32),
    np.linspace(0, 65535, 64).astype(np.uint16)])
def test_images_without_pytorch_are_the_same(monkeypatch, tmp_path, values):
    monkeypatch.syspath_prepend(SCRIPTS)
    predict = importlib.import_module('predict')
    Image.fromarray(np.tile(values, (48, 1))).save(tmp_path / 'grey.tif')
    drawing = Image.new('RGBA', (8, 8), (0, 0, 0, 0))
    drawing.save(tmp_path / 'empty.png')
    for name in ('grey.tif', 'empty.png'):
        assert predict.load_plain(tmp_path / name).tobytes() == load_image(tmp_path / name).tobytes()
    Image.new('L', (3000, 2)).save(tmp_path / 'line.png')
    with pytest.raises(ValueError, match='3000 x 2'):
        predict.load_plain(tmp_path / 'line.png')


def test_windowed_backbone_at_one_size(monkeypatch, capsys, tmp_path):
    args = dict(depths=(1, 1, 2, 1), embed_dim=24)
    folder = saved(tmp_path / 'model', 'swin_tiny_patch4_window7_224', 224, backbone_args=args)
    assert 'images of 224 px' in export(monkeypatch, capsys, folder)
    assert max(differences(folder, [(224, 224)])) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize('backbone, kwargs', [
    ('resnet101', {}),
    ('vgg16', {}),
    ('vit_base_patch16_224', dict(backbone_args=dict(dynamic_img_size=True))),
])
def test_any_size_of_real_backbones(monkeypatch, capsys, coco_mini, tmp_path, backbone, kwargs):
    folder = saved(tmp_path / 'model', backbone, 224)
    assert 'any image size' in export(monkeypatch, capsys, folder, '--images', coco_mini / 'val2014')
    assert max(differences(folder, [(224, 224), (256, 192), (320, 448)], **kwargs)) < 1e-4


@pytest.mark.slow
def test_real_swin_at_three_sizes(monkeypatch, capsys, coco_mini, tmp_path):
    folder = saved(tmp_path / 'model', 'swin_tiny_patch4_window7_224', 224)
    for size in (224, 256, 448):
        out = export(
            monkeypatch, capsys, folder, '--img-size', size, '--formats', 'onnx', '--images', coco_mini / 'val2014')
        assert f'images of {size} px' in out
        model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        model.set_input_size((size, size))
        session = onnxruntime.InferenceSession(str(folder / 'export' / 'model.onnx'))
        for batch in (1, 3):
            x = torch.rand(batch, 3, size, size)
            with torch.inference_mode():
                wanted = model(x).numpy()
            assert np.abs(session.run(None, {'image': x.numpy()})[0] - wanted).max() < 1e-4


def test_fixed_size_and_refusals(monkeypatch, capsys, tmp_path, photo):
    folder = saved(tmp_path / 'model', 'test_resnet', 64)
    options = ['--fixed-size', '--formats', 'onnx', '--output', tmp_path / 'out', '--images', photo]
    assert 'images of 64 px' in export(monkeypatch, capsys, folder, *options)
    session = onnxruntime.InferenceSession(str(tmp_path / 'out' / 'model.onnx'))
    assert session.get_inputs()[0].shape[1:] == [3, 64, 64]
    for args, message in (
            (['--img-size', '70'], 'no multiple of 32'), (['--images', tmp_path / 'none'], 'no image in')):
        assert run_here(monkeypatch, 'export', folder, *args) == 2
        assert message in capsys.readouterr().err
    assert run_here(monkeypatch, 'export', 'hf-hub:me/model') == 2
    assert '--output' in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['model.onnx']


def without_pytorch(*args) -> subprocess.CompletedProcess:
    code = (
        "import sys, runpy\n"
        "for name in ('torch', 'timm', 'torchvision', 'timm_fan'): sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')")
    return subprocess.run(
        [sys.executable, '-c', code, str(SCRIPTS / 'predict.py'), *map(str, args)], capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': ''})


@pytest.mark.parametrize('size, crop_mode', [((150, 101), 'center'), ((101, 150), 'center'), ((150, 101), 'squash')])
def test_predictions_without_pytorch(monkeypatch, capsys, tmp_path, photo, size, crop_mode):
    folder = saved(tmp_path / 'model', 'test_resnet', 64)
    config = json.loads((folder / 'config.json').read_text())
    config['pretrained_cfg']['crop_mode'] = crop_mode
    (folder / 'config.json').write_text(json.dumps({**config, 'thresholds': [0.3, 0.5, 0.6]}))
    export(monkeypatch, capsys, folder, '--formats', 'onnx', '--fixed-size')
    draw_scene(PRESETS['small'], 0, 'val', 5)[0].resize(size).save(photo)
    for options in (['--topk', '3'], []):
        assert run_here(monkeypatch, 'predict', folder, photo, '--format', 'json', *options) == 0
        wanted = json.loads(capsys.readouterr().out)[0]['labels']
        result = without_pytorch(
            folder / 'export' / 'model.onnx', photo, '--onnx', '--format', 'json', *options)
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)[0]['labels']
        assert [x['label'] for x in found] == [x['label'] for x in wanted]
        assert [x['probability'] for x in found] == pytest.approx([x['probability'] for x in wanted], abs=2e-4)


def test_onnx_refusals(tmp_path, photo):
    (tmp_path / 'broken.onnx').write_bytes(b'not a model')
    for file, message in (('none.onnx', 'No ONNX file'), ('broken.onnx', 'no readable ONNX file')):
        result = without_pytorch(tmp_path / file, photo, '--onnx')
        assert result.returncode == 2 and message in result.stderr and 'Traceback' not in result.stderr
