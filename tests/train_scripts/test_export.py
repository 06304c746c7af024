import os
import struct
import subprocess
import sys
import zlib

import pytest
from helpers import SCRIPTS, photo, run_here, save_small_fan

onnxruntime = pytest.importorskip('onnxruntime')


@pytest.fixture
def model_folder(tmp_path):
    return save_small_fan(tmp_path / 'model')


def export(monkeypatch, capsys, *args) -> str:
    assert run_here(monkeypatch, 'export', *args) == 0
    return capsys.readouterr().out


def refused(monkeypatch, capsys, *args) -> str:
    assert run_here(monkeypatch, 'export', *args) == 2
    error = capsys.readouterr().err
    assert 'Traceback' not in error
    return error


def test_both_formats_with_any_size(monkeypatch, capsys, model_folder):
    out = export(monkeypatch, capsys, model_folder).splitlines()
    assert out[0] == 'any batch size, any image size in steps of 32 px'
    assert [line.split(':')[0] for line in out[1:]] == [
        str(model_folder / 'export' / name) for name in ('model.onnx', 'model.pt2')]
    for line in out[1:]:
        assert 'logits differ from PyTorch by at most' in line and line.endswith('4 images, 64 px, 128 px')


def test_fixed_size(monkeypatch, capsys, model_folder, tmp_path):
    photo(150, 101).save(tmp_path / 'photo.jpg')
    options = ['--fixed-size', '--formats', 'onnx', '--output', tmp_path / 'out', '--images', tmp_path / 'photo.jpg']
    assert 'any batch size, images of 64 px' in export(monkeypatch, capsys, model_folder, *options)
    session = onnxruntime.InferenceSession(str(tmp_path / 'out' / 'model.onnx'))
    assert session.get_inputs()[0].shape[1:] == [3, 64, 64]
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['model.onnx']


@pytest.mark.parametrize('size, message', [
    ('32', '--img-size 32 must be a multiple of the stride of the network, 32 px, and at least 64.'),
    ('70', '--img-size 70 must be a multiple of the stride of the network, 32 px, and at least 64.'),
    ('72', '--img-size 72 must be a multiple of the stride of the network, 32 px, and at least 64.'),
    ('-32', '--img-size must be at least 1, got -32.'),
])
def test_image_sizes_that_cannot_be_exported(monkeypatch, capsys, model_folder, size, message):
    assert message in refused(monkeypatch, capsys, model_folder, '--img-size', size)
    assert not (model_folder / 'export').exists()


def test_missing_images_and_output_are_named(monkeypatch, capsys, model_folder, tmp_path):
    missing, empty = tmp_path / 'none', tmp_path / 'empty'
    empty.mkdir()
    error = refused(monkeypatch, capsys, model_folder, '--images', missing)
    assert error == f'error: No image file or folder {missing}.\n'
    error = refused(monkeypatch, capsys, model_folder, '--images', empty)
    assert error == f'error: There is no image in {empty}.\n'
    assert '--output is required' in refused(monkeypatch, capsys, 'hf-hub:me/model')


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file whose header promises so many pixels."""
    header, chunks = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0), b''
    for kind, data in ((b'IHDR', header), (b'IDAT', b''), (b'IEND', b'')):
        chunks += struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return b'\x89PNG\r\n\x1a\n' + chunks


@pytest.mark.parametrize('content, reason', [
    (png_of_size(20000, 20000), 'decompression bomb'),
    (png_of_size(3000, 2), '3000 x 2 pixels: one side is more than 100 times the other'),
    (png_of_size(100, 100), 'truncated'),
    (b'no image', 'cannot identify image file'),
    (b'', 'cannot identify image file'),
])
def test_unreadable_images_are_refused(monkeypatch, capsys, model_folder, tmp_path, content, reason):
    photo().save(tmp_path / 'good.png')
    file = tmp_path / 'bad.png'
    file.write_bytes(content)
    error = refused(monkeypatch, capsys, model_folder, '--images', tmp_path / 'good.png', file)
    assert error.startswith(f'error: --images: {file} cannot be read: ') and reason in error
    assert error.count('\n') == 1 and not (model_folder / 'export').exists()


def test_name_of_an_unreadable_image_is_on_one_line(monkeypatch, capsys, model_folder, tmp_path):
    file = tmp_path / os.fsdecode(b'two\nlines \xe9.png')
    file.write_bytes(b'no image')
    error = refused(monkeypatch, capsys, model_folder, '--images', file)
    assert error.startswith(f'error: --images: {tmp_path}/two\\nlines \\udce9.png cannot be read: ')
    assert error.count('\n') == 1


def test_output_that_is_not_utf8(monkeypatch, capsys, model_folder, tmp_path):
    output = tmp_path / os.fsdecode(b'caf\xe9')
    export(monkeypatch, capsys, model_folder, '--output', output)
    assert sorted(p.name for p in output.iterdir()) == ['model.onnx', 'model.pt2']
    photo(150, 101).save(tmp_path / 'photo.jpg')
    command = [sys.executable, SCRIPTS / 'predict_onnx.py', output / 'model.onnx', tmp_path / 'photo.jpg']
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0
