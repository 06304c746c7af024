"""predict.py as a user runs it."""
import json
import re

import pytest
import torch
from helpers import run_here
from PIL import Image

import timm_fan
from timm_fan.data import read_coco
from timm_fan.models import BUNDLED, create_model, pretrained, save_model


def test_text_has_a_line_for_each_image(monkeypatch, capsys, run_folder, coco_folder):
    photo = coco_folder / 'val2014' / '000003.jpg'
    assert run_here(monkeypatch, 'predict', run_folder, photo, coco_folder / 'val2014', '--topk', '2') == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 14
    assert re.fullmatch(rf'{photo}: \w+ [01]\.\d\d, \w+ [01]\.\d\d', lines[0])


def test_json_has_sorted_probabilities_above_the_threshold(monkeypatch, capsys, run_folder, coco_folder):
    photo = coco_folder / 'val2014' / '000003.jpg'
    assert run_here(monkeypatch, 'predict', run_folder, photo, '--threshold', '0.01', '--format', 'jsonl') == 0
    result = json.loads(capsys.readouterr().out)
    names = read_coco(coco_folder, 'val2014').class_names
    assert result['file'] == str(photo) and {x['label'] for x in result['labels']} <= set(names)
    probabilities = [x['probability'] for x in result['labels']]
    assert probabilities == sorted(probabilities, reverse=True) and all(0.01 < p <= 1 for p in probabilities)


@pytest.mark.parametrize('options, words', [
    (['--device', 'nothing'], '--device nothing is not a device of PyTorch'),
    (['--topk', '0'], '--topk must be at least 1, got 0'),
    (['--threshold', '1'], '--threshold must be at least 0 and less than 1, got 1.0'),
    (['--resume'], '--resume continues a file: name it with --output'),
    (['--format', 'parquet'], '--format parquet requires a file: --output'),
    (['--data', 'table:a.csv'], '--data excludes other images'),
    (['--output', 'x.csv', '--save-embeddings', 'x.txt'], '--save-embeddings x.txt must be a .npy file'),
])
def test_mistakes_are_named(monkeypatch, capsys, run_folder, coco_folder, options, words):
    photo = coco_folder / 'val2014' / '000003.jpg'
    assert run_here(monkeypatch, 'predict', run_folder, photo, *options) == 2
    assert words in capsys.readouterr().err


def test_unreadable_images_are_listed(monkeypatch, capsys, run_folder, coco_folder, tmp_path):
    content = (coco_folder / 'val2014' / '000003.jpg').read_bytes()
    (tmp_path / 'a.jpg').write_bytes(content[:400])
    assert run_here(monkeypatch, 'predict', run_folder, tmp_path) == 2
    error = capsys.readouterr().err
    assert f'unreadable image {tmp_path / "a.jpg"}' in error and 'No image could be read' in error
    (tmp_path / 'b.jpg').write_bytes(content)
    assert run_here(monkeypatch, 'predict', run_folder, tmp_path) == 0
    output = capsys.readouterr()
    first, second = output.out.splitlines()
    assert first.startswith(f'{tmp_path / "a.jpg"}: unreadable (') and second.startswith(f'{tmp_path / "b.jpg"}: ')
    assert str(tmp_path / 'a.jpg') in output.err


def test_a_label_is_on_one_line(monkeypatch, capsys, coco_folder, tmp_path):
    model = create_model('test_resnet', num_classes=2).eval()
    save_model(model, tmp_path / 'model', ['x\ny', 'z'], dict(input_size=(3, 64, 64)))
    photo = coco_folder / 'val2014' / '000003.jpg'
    assert run_here(monkeypatch, 'predict', tmp_path / 'model', photo, '--topk', '2') == 0
    [line] = capsys.readouterr().out.splitlines()
    assert 'x\\ny 0.' in line and 'z 0.' in line


@pytest.mark.parametrize('name', [BUNDLED, 'BUNDLED', None])
def test_the_bundled_model_needs_no_name(monkeypatch, capsys, run_folder, coco_folder, tmp_path, name):
    """Here another model is in the place of the one that comes with the package."""
    photo = coco_folder / 'val2014' / '000003.jpg'
    names = [f'label {i}' for i in range(20)]
    save_model(create_model(BUNDLED).eval(), tmp_path / BUNDLED, names, dict(input_size=(3, 64, 64)))
    monkeypatch.setattr(pretrained, 'WEIGHTS', tmp_path)
    inputs = [name, photo] if name == BUNDLED else [tmp_path / BUNDLED, photo] if name else [photo]
    assert run_here(monkeypatch, 'predict', *inputs, '--topk', '20') == 0
    output = capsys.readouterr().out
    assert output.startswith(f'{photo}: ') and all(label in output for label in names)
    with torch.inference_mode():
        expected = timm_fan.predict(photo, tmp_path / BUNDLED, topk=3)
    assert timm_fan.predict(photo, topk=3) == expected
    assert timm_fan.predict([str(photo), Image.open(photo)], topk=3) == [expected, expected]


def test_images_are_required(monkeypatch, capsys, run_folder):
    assert run_here(monkeypatch, 'predict', run_folder) == 2
    assert 'Give images, or folders of images.' in capsys.readouterr().err
