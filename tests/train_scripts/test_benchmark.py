"""benchmark.py as a user runs it."""
import json
import re
import shutil

import pytest
import timm
from helpers import run_here
from PIL import Image

from timm_fan.cost import count_cost


def test_models(monkeypatch, capsys, tmp_path):
    """Costs are those that were counted, and ratios those of the times in the JSON file."""
    file, page = tmp_path / 'model.json', tmp_path / 'model.md'
    options = ['--rows', 'FAN', '--repeats', '2', '--results', file]
    tiny = ['--backbone', 'test_resnet', '--img-size', '64', '--device', 'cpu', '--table', page]
    assert run_here(monkeypatch, 'benchmark', 'model', 'fan', *tiny, *options) == 0
    report = json.loads(file.read_text())
    assert [(r['row'], r['engine']) for r in report['rows']] == [('backbone', 'eager'), ('FAN', 'eager')]
    backbone, fan = report['rows']
    expected = count_cost(timm.create_model('fan', backbone='test_resnet', num_classes=80).eval(), (3, 64, 64))
    assert (fan['parameters'], fan['multiply_adds']) == tuple(expected)
    assert fan['memory_training'] > fan['memory_inference'] > 0
    assert all('training' in r for r in report['rows'])
    assert f"| {fan['latency'] / backbone['latency']:.2f} |" in page.read_text()
    assert page.read_text() in capsys.readouterr().out


@pytest.mark.parametrize('options, words', [
    (['model', 'fan_resnet1O1'], 'fan_resnet101'),
    (['model', 'fan', '--backbone', 'test_resnet', '--device', 'cpu', '--engines', 'graph'],
     '--engines graph requires a CUDA device, got --device cpu'),
    (['model', '--device', 'nothing'], '--device nothing is not a device'),
    (['metrics', '--repeats', '0'], '--repeats must be at least 1, got 0'),
    (['metrics', '--results', '.'], '--results . is a folder'),
    (['predict', '--result', 'x.json'], 'unrecognized arguments: --result'),
    (['backbones', '--results', '.'], '--results . is a folder'),
    (['backbones', '--names', 'nothing*'], 'nothing*'),
])
def test_mistakes_are_named(monkeypatch, capsys, options, words):
    assert run_here(monkeypatch, 'benchmark', *options) == 2
    assert words in capsys.readouterr().err


def test_data(monkeypatch, capsys, coco_folder, tmp_path):
    file = tmp_path / 'data.json'
    folder = shutil.copytree(coco_folder / 'val2014', tmp_path / 'photographs')
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated
    Image.open(folder / '000001.jpg').save(folder / '000000.jpg', exif=exif)
    options = [folder, '--img-size', '48', '--repeats', '1', '--images', '5', '--results', file]
    assert run_here(monkeypatch, 'benchmark', 'data', *options) == 0
    report = json.loads(file.read_text())
    assert report['images'] == 5 and report['pixel_difference']['mean'] < 0.5
    rates, output = report['images_per_second'], capsys.readouterr().out
    assert 'ours: crop, flip' in rates
    for name, rate in rates.items():
        assert f'| {name} | {rate:.0f} | {rate / rates["CSRA: flip, crop"]:.2f} x |' in output
    assert run_here(monkeypatch, 'benchmark', 'data', *options, '--repeats', '0') == 2
    assert '--repeats must be at least 1, got 0' in capsys.readouterr().err
    assert run_here(monkeypatch, 'benchmark', 'data', tmp_path / 'none') == 2
    assert f'There is no JPEG in {tmp_path / "none"}' in capsys.readouterr().err


def test_metrics(monkeypatch, capsys, tmp_path):
    file = tmp_path / 'metrics.json'
    options = ['--images', '300', '--classes', '5', '--repeats', '1', '--bootstrap', '5', '--results', file]
    assert run_here(monkeypatch, 'benchmark', 'metrics', *options) == 0
    values = re.findall(r'mAP alone  mAP ([\d.]+)', capsys.readouterr().out)
    assert len(values) == 3 and all(float(v) == pytest.approx(float(values[0]), abs=1e-6) for v in values)
    report = json.loads(file.read_text())
    assert [f'{v:.8f}' for v in report['mAP'].values()] == values
    assert report['seconds'].keys() > report['mAP'].keys() and report['versions']


def test_binned_metrics(monkeypatch, capsys, tmp_path):
    file = tmp_path / 'metrics.json'
    options = ['--binned-images', '1200', '--binned-classes', '4', '--results', file]
    assert run_here(monkeypatch, 'benchmark', 'metrics', *options) == 0
    assert 'is inside its bounds' in capsys.readouterr().out
    report = json.loads(file.read_text())
    assert report['inside'] and report['mAP_low'] <= report['mAP'] <= report['mAP_high']


def test_backbones(monkeypatch, capsys, tmp_path):
    table, results = tmp_path / 'page' / 'backbones.md', tmp_path / 'rows.jsonl'
    options = ['backbones', '--names', 'test_[rc]*', '--table', table, '--results', results]
    assert run_here(monkeypatch, 'benchmark', *options, '--all') == 0
    page = table.read_text()
    assert f'timm {timm.__version__}' in page and capsys.readouterr().out.startswith('# FAN over timm backbones')
    assert '| resnet | `test_resnet` | 0.4 | 8 16 32 | 48 192 96 |  |  | any | 1 of 1 | 1 |' in page
    assert f'of the {len(results.read_text().splitlines())} models that were tried' in page


def test_predict(monkeypatch, capsys, coco_folder, run_folder, tmp_path):
    """Ratios are those of the rates in the JSON file."""
    file, page = tmp_path / 'predict.json', tmp_path / 'predict.md'
    options = ['--model', run_folder, '--images', '6', '--repeats', '1', '--workers', '1', '--device', 'cpu']
    others = [
        '--contenders', 'predict.py beside a busy process', 'one image at a time', 'timm: create_loader and a loop']
    assert run_here(
        monkeypatch, 'benchmark', 'predict', coco_folder / 'val2014', *options, *others, '--results', file,
        '--table', page) == 0
    report, text = json.loads(file.read_text()), page.read_text()
    rates = report['images_per_second']
    assert list(rates) == ['loader alone', 'model alone', 'predict.py', *others[1:]] and report['images'] == 6
    for name, rate in rates.items():
        assert f'| {name} | {rate:.1f} | {rates["predict.py"] / rate:.2f} x |' in text
    assert report['bound'] == pytest.approx(1 / (1 / rates['loader alone'] + 1 / rates['model alone']))
    assert text in capsys.readouterr().out + '\n'
    assert run_here(monkeypatch, 'benchmark', 'predict', *options, '--memory-images', '40') == 0
    assert re.fullmatch(r'4 images: \d+ MiB at most; 40 images: \d+ MiB at most .*\n', capsys.readouterr().out)


def test_epochs_on_images_and_on_maps(monkeypatch, capsys, coco_folder, tmp_path):
    file, page = tmp_path / 'train.json', tmp_path / 'train.md'
    options = ['--data', 'coco2014', '--data-dir', coco_folder, '--backbone', 'test_resnet', '--img-size', '48']
    written = ['--repeats', '1', '--workers', '0', '--results', file, '--table', page]
    assert run_here(monkeypatch, 'benchmark', 'train', *options, *written) == 0
    rows = json.loads(file.read_text())['rows']
    assert [r['row'] for r in rows] == ['FAN', 'FAN with full FTBs']
    assert all(f'| {r["images"] / r["maps"]:.1f} |' in page.read_text() for r in rows)
    assert all(f'| {r["busy"]:.2f} |' in page.read_text() for r in rows)
    assert page.read_text() in capsys.readouterr().out
