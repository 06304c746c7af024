"""Exported models against PyTorch."""
import numpy as np
import pytest
import timm
import torch
from helpers import LABELS, photo, save_small_fan

from timm_fan.data import find_images, load_image
from timm_fan.export import Exporter
from timm_fan.models import save_model

onnxruntime = pytest.importorskip('onnxruntime')


def differences(folder, sizes, **kwargs):
    """Largest differences of logits from PyTorch for model.onnx and model.pt2 in export/, by size and batch size."""
    model = timm.create_model(f'local-dir:{folder}', pretrained=True, **kwargs).eval()
    session = onnxruntime.InferenceSession(str(folder / 'export' / 'model.onnx'))
    program = torch.export.load(folder / 'export' / 'model.pt2').module()
    for height, width in sizes:
        for batch in (1, 3):
            x = torch.rand(batch, 3, height, width)
            with torch.inference_mode():
                expected = model(x)
            assert expected.std() > 0.01
            yield float(np.abs(session.run(None, {'image': x.numpy()})[0] - expected.numpy()).max())
            yield float((program(x).detach() - expected).abs().max())


@pytest.mark.parametrize('backbone, size, kwargs', [
    ('test_resnet', 96, {}),
    ('test_vit', 160, dict(backbone_args=dict(dynamic_img_size=True))),
])
def test_any_batch_and_image_size(tmp_path, backbone, size, kwargs):
    folder = save_small_fan(tmp_path / 'model', backbone, size)
    exporter = Exporter(folder)
    assert exporter.dynamic_size
    exported = list(exporter.export(folder / 'export', [photo()]))
    assert [(e.file.name, e.difference < 1e-4) for e in exported] == [('model.onnx', True), ('model.pt2', True)]
    found = list(differences(folder, [(96, 96), (128, 64), (192, 224)], **kwargs))
    assert len(found) == 12 and max(found) < 1e-4


@pytest.mark.parametrize('head', ['csra', 'ml_decoder', 'query2label'])
def test_other_heads(tmp_path, head):
    model = timm.create_model(
        'fan', backbone='test_resnet', frn=False, cln=False, head=head, num_classes=3,
        head_args={} if head == 'csra' else dict(dim=16, num_heads=2)).eval()
    save_model(model, tmp_path, LABELS, dict(input_size=(3, 64, 64)))
    exporter = Exporter(tmp_path)
    assert exporter.dynamic_size
    list(exporter.export(tmp_path / 'export', [photo()], ['torch']))
    program = torch.export.load(tmp_path / 'export' / 'model.pt2').module()
    x = torch.rand(3, 3, 96, 64)
    torch.testing.assert_close(program(x), model(x), atol=1e-4, rtol=0)


def test_windowed_backbone_has_one_image_size(tmp_path):
    args = dict(depths=(1, 1, 2, 1), embed_dim=24)
    folder = save_small_fan(tmp_path / 'model', 'swin_tiny_patch4_window7_224', 224, backbone_args=args)
    exporter = Exporter(folder)
    assert not exporter.dynamic_size and exporter.sizes == [224]
    list(exporter.export(folder / 'export', [photo()]))
    assert max(differences(folder, [(224, 224)])) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize('backbone, kwargs', [
    ('resnet101', {}),
    ('vgg16', {}),
    ('vit_base_patch16_224', dict(backbone_args=dict(dynamic_img_size=True))),
])
def test_any_size_of_real_backbones(coco_mini, tmp_path, backbone, kwargs):
    folder = save_small_fan(tmp_path / 'model', backbone, 224)
    exporter = Exporter(folder)
    assert exporter.dynamic_size
    list(exporter.export(folder / 'export', [load_image(f) for f in find_images([coco_mini / 'val2014'])[:4]]))
    assert max(differences(folder, [(224, 224), (256, 192), (320, 448)], **kwargs)) < 1e-4


@pytest.mark.slow
def test_real_swin_at_three_sizes(coco_mini, tmp_path):
    folder = save_small_fan(tmp_path / 'model', 'swin_tiny_patch4_window7_224', 224)
    images = [load_image(f) for f in find_images([coco_mini / 'val2014'])[:4]]
    for size in (224, 256, 448):
        exporter = Exporter(folder, size)
        assert not exporter.dynamic_size and exporter.sizes == [size]
        list(exporter.export(folder / 'export', images, ['onnx']))
        model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        model.set_input_size((size, size))
        session = onnxruntime.InferenceSession(str(folder / 'export' / 'model.onnx'))
        for batch in (1, 3):
            x = torch.rand(batch, 3, size, size)
            with torch.inference_mode():
                expected = model(x).numpy()
            assert np.abs(session.run(None, {'image': x.numpy()})[0] - expected).max() < 1e-4
