"""predict.py as a user runs it."""
import csv
import json
import re

import pytest
import torch
from helpers import photo as picture
from helpers import run_here, save_small_fan
from PIL import Image

import timm_fan
from timm_fan.data import read_coco
from timm_fan.export import Exporter
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


def test_files_of_all_formats_say_the_same(monkeypatch, capsys, run_folder, coco_folder, tmp_path):
    common = [run_folder, coco_folder / 'val2014', '--threshold', '0', '--device', 'cpu']
    for name in ('a.csv', 'a.jsonl', 'a.parquet'):
        assert run_here(monkeypatch, 'predict', *common, '--output', tmp_path / name) == 0
    assert run_here(monkeypatch, 'predict', *common, '--output', tmp_path / 'b.csv', '--format', 'csv-classes') == 0
    assert '13 images, 13 of them now' in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / 'a.jsonl').read_text().splitlines()]
    table = csv.DictReader((tmp_path / 'a.csv').read_text(encoding='utf-8-sig').splitlines())
    wide = csv.DictReader((tmp_path / 'b.csv').read_text(encoding='utf-8-sig').splitlines())
    parquet = pytest.importorskip('pyarrow.parquet').read_table(tmp_path / 'a.parquet').to_pylist()
    for line, cells, columns, row in zip(lines, table, wide, parquet, strict=True):
        names = [x['label'] for x in line['labels']]
        assert len(names) == 6 and line['file'] == cells['file'] == columns['file'] == row['file']
        assert cells['labels'] == '|'.join(names) and row['labels'] == names
        probabilities = [x['probability'] for x in line['labels']]
        assert cells['probabilities'] == '|'.join(map(str, probabilities))
        assert [float(columns[name]) for name in names] == probabilities
        assert row['probabilities'] == pytest.approx(probabilities, rel=1e-7)
    output = timm_fan.predict([x['file'] for x in lines], run_folder, threshold=0, batch_size=4)
    assert [p for labels in output for _, p in labels] == pytest.approx(
        [x['probability'] for line in lines for x in line['labels']], rel=1e-6)


def test_onnx_files_have_the_same_options(monkeypatch, capsys, tmp_path):
    pytest.importorskip('onnxruntime')
    folder = save_small_fan(tmp_path / 'model')
    exported, = Exporter(folder, fixed_size=True).export(folder / 'export', [picture()], ['onnx'])
    for i in range(5):
        picture(80 + i, 70).save(tmp_path / f'{i}.png')
    options = tmp_path, '--threshold', '0', '--batch-size', '2'
    for model, name in ((folder, 'a.jsonl'), (exported.file, 'b.jsonl')):
        assert run_here(monkeypatch, 'predict', model, *options, '--output', tmp_path / name) == 0
    ours, theirs = ([json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in (
        'a.jsonl', 'b.jsonl'))
    for a, b in zip(ours, theirs, strict=True):
        found = {x['label']: x['probability'] for x in b['labels']}
        assert all(found[x['label']] == pytest.approx(x['probability'], abs=2e-4) for x in a['labels'])
    assert run_here(monkeypatch, 'predict', exported.file, tmp_path, '--tta', 'flip') == 2
    assert 'leave --tta and --mixed-precision out' in capsys.readouterr().err
