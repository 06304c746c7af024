"""predict_onnx.py against predict.py, and without PyTorch."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import SCRIPTS, load_program, photo, run_here, save_small_fan
from PIL import Image

from timm_fan.data import EvalTransform, Normalize, find_images, load_image
from timm_fan.data.sources.scenes import SCENES, compose_scene
from timm_fan.export import Exporter

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
# predict.py resizes tensors, predict_onnx.py Pillow images: probabilities differ by rounding
TOLERANCE = 2e-4


def export_small_fan(folder: Path, **config) -> Path:
    """Save a small FAN with changes of its config.json, and return its ONNX file."""
    save_small_fan(folder)
    file = folder / 'config.json'
    content = json.loads(file.read_text())
    content['pretrained_cfg'].update({k: v for k, v in config.items() if k != 'thresholds'})
    content['thresholds'] = config.get('thresholds')
    file.write_text(json.dumps(content))
    exported, = Exporter(folder, fixed_size=True).export(folder / 'export', [photo()], ['onnx'])
    return exported.file


@pytest.fixture(scope='module')
def model_folder(tmp_path_factory) -> Path:
    """A model folder with export/model.onnx."""
    return export_small_fan(tmp_path_factory.mktemp('models') / 'model').parents[1]


def without_pytorch(*args, **env: str) -> subprocess.CompletedProcess:
    code = (
        "import sys, runpy\n"
        "for name in ('torch', 'timm', 'torchvision', 'timm_fan'): sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')")
    return subprocess.run(
        [sys.executable, '-c', code, str(SCRIPTS / 'predict_onnx.py'), *map(str, args)], capture_output=True,
        text=True, env={**os.environ, 'PYTHONPATH': '', **env})


def both_predictions(monkeypatch, capsys, model_folder, *args):
    """The JSON of predict.py and of predict_onnx.py, by the name of the image."""
    assert run_here(monkeypatch, 'predict', model_folder, *args, '--format', 'jsonl') == 0
    ours = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    result = without_pytorch(model_folder / 'export' / 'model.onnx', *args, '--format', 'jsonl')
    assert result.returncode == 0, result.stderr
    theirs = [json.loads(line) for line in result.stdout.splitlines()]
    assert [x['file'] for x in theirs] == [x['file'] for x in ours]
    for a, b in zip(ours, theirs):
        yield Path(a['file']).stem, a['labels'], b['labels']


def assert_same_labels(expected, found):
    assert [x['label'] for x in found] == [x['label'] for x in expected]
    assert [x['probability'] for x in found] == pytest.approx([x['probability'] for x in expected], abs=TOLERANCE)


@pytest.mark.parametrize('size, crop_mode', [((150, 101), 'center'), ((101, 150), 'center'), ((150, 101), 'squash')])
def test_predictions_without_pytorch(monkeypatch, capsys, tmp_path, size, crop_mode):
    folder = export_small_fan(tmp_path / 'model', crop_mode=crop_mode, thresholds=[0.3, 0.5, 0.6]).parents[1]
    compose_scene(SCENES, 0, 'val', 5)[0].resize(size).save(tmp_path / 'photo.jpg')
    for options in (['--topk', '3'], []):
        for _, expected, found in both_predictions(
                monkeypatch, capsys, folder, tmp_path / 'photo.jpg', *options):
            assert_same_labels(expected, found)


def test_predict_runs_onnx_files(monkeypatch, capsys, model_folder, tmp_path):
    file = model_folder / 'export' / 'model.onnx'
    photo().save(tmp_path / 'photo.jpg')
    for options in (['--topk', '2'], ['--threshold', '0.01', '--format', 'jsonl']):
        assert run_here(monkeypatch, 'predict', file, tmp_path, *options) == 0
        assert capsys.readouterr().out == without_pytorch(file, tmp_path, *options).stdout != ''
    for args, message in (
            ([file], 'Give images, or folders of images.'), ([tmp_path / 'none.onnx', tmp_path], 'No ONNX file'),
            ([file, tmp_path, '--topk', '0'], '--topk must be at least 1')):
        assert run_here(monkeypatch, 'predict', *args) == 2
        assert message in capsys.readouterr().err


def write_images_of_all_modes(folder: Path) -> None:
    """One photograph, wider than high, in every way that an image file may have it."""
    image = photo(150, 101)
    grey = np.asarray(image.convert('L'))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    image.save(folder / 'rgb.png')
    image.save(folder / 'jpeg.jpg')
    image.quantize(64).save(folder / 'palette.png')
    image.quantize(64).save(folder / 'palette_transparent.png', transparency=3)
    Image.merge('RGBA', (*image.split(), Image.fromarray(grey))).save(folder / 'rgba.png')
    image.convert('LA').save(folder / 'grey_alpha.png')
    Image.fromarray(grey).save(folder / 'grey.png')
    Image.fromarray(257 * grey.astype(np.uint16)).save(folder / 'grey_16_bits.png')
    Image.fromarray(np.float32(grey) / 255).save(folder / 'grey_float.tif')
    image.convert('1').save(folder / 'black_and_white.png')
    image.convert('CMYK').save(folder / 'cmyk.jpg')
    image.save(folder / 'rotated.jpg', exif=rotated)


def test_images_of_all_modes(monkeypatch, capsys, model_folder, tmp_path):
    write_images_of_all_modes(tmp_path)
    found_of = {}
    for name, expected, found in both_predictions(monkeypatch, capsys, model_folder, tmp_path, '--topk', '3'):
        assert_same_labels(expected, found)
        found_of[name] = {x['label']: x['probability'] for x in found}
    assert len(found_of) == 12
    # orientation, transparency and colours change the probabilities by more than the tolerance
    for name, other in (('rotated', 'jpeg'), ('palette_transparent', 'palette'), ('rgba', 'rgb'), ('grey', 'rgb')):
        assert max(abs(found_of[name][k] - found_of[other][k]) for k in found_of[name]) > 5 * TOLERANCE


@pytest.mark.parametrize('values', [
    np.linspace(0, 1, 64, dtype=np.float32), np.linspace(0, 65535, 64).astype(np.int32),
    np.linspace(0, 65535, 64).astype(np.uint16)])
def test_images_are_decoded_as_by_the_library(monkeypatch, tmp_path, values):
    program = load_program(monkeypatch, 'predict_onnx')
    Image.fromarray(np.tile(values, (48, 1))).save(tmp_path / 'grey.tif')
    Image.new('RGBA', (8, 8), (0, 0, 0, 0)).save(tmp_path / 'empty.png')
    write_images_of_all_modes(tmp_path)
    for file in program.find_images([tmp_path]):
        assert program.load_image(file).tobytes() == load_image(file).tobytes(), file.name
    Image.new('L', (3000, 2)).save(tmp_path / 'line.png')
    with pytest.raises(ValueError, match='3000 x 2'):
        program.load_image(tmp_path / 'line.png')


def test_folders_are_searched_as_by_the_library(monkeypatch, tmp_path):
    for name in ('a/1.png', 'a/.2.png', 'a/.hidden/3.png', '__MACOSX/4.png', 'b/5.JPG', 'b/6.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(tmp_path / name, 'png')
    (tmp_path / 'b' / 'up').symlink_to(tmp_path)
    (tmp_path / 'c').symlink_to(tmp_path / 'a')
    found = load_program(monkeypatch, 'predict_onnx').find_images([str(tmp_path)])
    assert list(found) == list(map(str, find_images([tmp_path]))) == [
        str(tmp_path / name) for name in ('a/1.png', 'b/5.JPG', 'c/1.png')]


@pytest.mark.parametrize('crop_mode', ['center', 'squash'])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'nearest', 'lanczos'])
@pytest.mark.parametrize('size', [(64, 64), (64, 96), (96, 64)])
def test_photographs_are_prepared_as_by_the_library(monkeypatch, size, interpolation, crop_mode):
    model = object.__new__(load_program(monkeypatch, 'predict_onnx').OnnxModel)
    model.config = dict(
        input_size=(3, *size), crop_pct=0.9, crop_mode=crop_mode, interpolation=interpolation, mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.25))
    transform, normalize = EvalTransform(model.config), Normalize(model.config['mean'], model.config['std'])
    for photo_size in ((150, 101), (101, 150), (97, 97), (40, 33), (30, 90)):
        expected = normalize(transform(photo(*photo_size))[None])
        levels = 255 * 0.2 * np.abs(model.prepare(photo(*photo_size)) - expected.numpy())
        assert levels.max() < 2.5 and levels.mean() < 0.1


@pytest.fixture
def odd_names(tmp_path) -> Path:
    """A folder of images, two of them unreadable, with names that are not UTF-8 or contain control characters."""
    folder = tmp_path / 'images'
    folder.mkdir()
    for name in (b'a \xe9.png', b'b\nline.png', b'c\x1b[31m.png'):
        photo().save(folder / os.fsdecode(name))
    for name in (b'd \xe9.png', b'e\nline.png'):
        (folder / os.fsdecode(name)).write_bytes(b'no image')
    return folder


@pytest.mark.parametrize('program', ['predict', 'predict_onnx'])
def test_names_are_printed_on_one_line_and_unreadable_images_are_listed(
        monkeypatch, capfd, model_folder, odd_names, program):
    if program == 'predict':
        assert run_here(monkeypatch, 'predict', model_folder, odd_names, '--topk', '1') == 0
        output = capfd.readouterr()
        out, err = output.out, output.err
    else:
        result = without_pytorch(model_folder / 'export' / 'model.onnx', odd_names, '--topk', '1')
        assert result.returncode == 0
        out, err = result.stdout, result.stderr
    names = [r'a \udce9.png', r'b\nline.png', r'c\x1b[31m.png']
    lines = out.splitlines()
    assert [line.rpartition(': ')[0] for line in lines[:3]] == [f'{odd_names}/{name}' for name in names]
    assert all(': unreadable (cannot identify image file' in line for line in lines[3:]) and len(lines) == 5
    lines = [line for line in err.splitlines() if 'unreadable' in line]
    assert len(lines) == 2
    for line, name in zip(lines, (r'd \udce9.png', r'e\nline.png')):
        assert line.startswith(f'unreadable image {odd_names}/{name} (cannot identify image file')


def test_names_in_json_are_complete(monkeypatch, capsys, model_folder, odd_names):
    names = [f'{odd_names}/{os.fsdecode(name)}' for name in (b'a \xe9.png', b'b\nline.png', b'c\x1b[31m.png')]
    assert run_here(monkeypatch, 'predict', model_folder, odd_names, '--format', 'jsonl') == 0
    names += [f'{odd_names}/{os.fsdecode(name)}' for name in (b'd \xe9.png', b'e\nline.png')]
    assert [json.loads(line)['file'] for line in capsys.readouterr().out.splitlines()] == names
    result = without_pytorch(model_folder / 'export' / 'model.onnx', odd_names, '--format', 'jsonl')
    assert [json.loads(line)['file'] for line in result.stdout.splitlines()] == names


def test_names_that_the_terminal_cannot_show_are_escaped(model_folder, tmp_path):
    photo().save(tmp_path / 'Käse.png')
    result = without_pytorch(
        model_folder / 'export' / 'model.onnx', tmp_path / 'Käse.png', '--topk', '1', PYTHONIOENCODING='ascii')
    assert result.returncode == 0 and result.stdout.startswith(rf'{tmp_path}/K\xe4se.png: ')


def test_nan_ends_in_one_message(model_folder, tmp_path):
    model = onnx.load(model_folder / 'export' / 'model.onnx')
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            shape = onnx.numpy_helper.to_array(tensor).shape
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(shape, np.nan, np.float32), tensor.name))
    onnx.save(model, tmp_path / 'model.onnx')
    photo().save(tmp_path / 'photo.jpg')
    result = without_pytorch(tmp_path / 'model.onnx', tmp_path / 'photo.jpg', '--topk', '1')
    assert (result.returncode, result.stdout) == (2, '')
    assert result.stderr == 'error: The model gives NaN. Its weights are damaged.\n'


def test_mistakes_end_in_one_message(model_folder, tmp_path):
    photo().save(tmp_path / 'photo.jpg')
    model = model_folder / 'export' / 'model.onnx'
    (tmp_path / 'broken.onnx').write_bytes(b'not a model')
    (tmp_path / 'broken.jpg').write_bytes(b'not an image')
    for args, message in (
            ([tmp_path / 'none.onnx', tmp_path / 'photo.jpg'],
             f'No ONNX file {tmp_path}/none.onnx. export.py writes one.'),
            ([tmp_path / 'broken.onnx', tmp_path / 'photo.jpg'],
             f'{tmp_path}/broken.onnx is not a readable ONNX file ('),
            ([model, tmp_path / 'none.jpg'], f'No image file or folder {tmp_path}/none.jpg.'),
            ([model, tmp_path / 'broken.jpg'], 'error: No image could be read.'),
            ([model, tmp_path / 'photo.jpg', '--topk', '0'], '--topk must be at least 1, got 0.'),
            ([model, tmp_path / 'photo.jpg', '--threshold', '1'],
             '--threshold must be at least 0 and less than 1, got 1.0.')):
        result = without_pytorch(*args)
        assert result.returncode == 2 and message in result.stderr and 'Traceback' not in result.stderr


def test_batches_give_each_image_its_own_labels(model_folder, tmp_path):
    """More batches than threads, with an unreadable image in the middle, in the order of the files."""
    for i in range(11):
        photo(60 + 7 * i, 80).save(tmp_path / f'{i:02d}.png')
    (tmp_path / '05.png').write_bytes(b'no image')
    results = []
    for size in (1, 3):
        options = '--threshold', '0', '--format', 'jsonl', '--batch-size', size
        output = without_pytorch(model_folder / 'export' / 'model.onnx', tmp_path, *options).stdout
        results.append([json.loads(line) for line in output.splitlines()])
    assert [Path(x['file']).name for x in results[1]] == [f'{i:02d}.png' for i in range(11)]
    assert 'cannot identify' in results[1][5]['unreadable']
    for one, three in zip(*results):
        assert_same_labels(one.get('labels', []), three.get('labels', []))
    assert len({x['labels'][0]['probability'] for x in results[1] if 'labels' in x}) > 5
