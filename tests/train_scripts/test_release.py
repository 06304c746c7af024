"""release.py as a user runs it, with a tiny row, real trainings, and the Hub of the tests."""
import json
import shutil

import pytest
import timm
import torch
import yaml
from helpers import SCRIPTS, run_here
from safetensors.torch import load_file, save_file

from timm_fan.models import load_model, pretrained

NAME = 'fan.tiny'
ROW = dict(
    train='coco2014?val=0.2', held_out='coco2014?val=0.3', test='coco2014', thresholds='class-f1', half=True,
    bundled=True,
    options=dict(
        backbone='test_resnet', model_kwargs=dict(embed_dim=16), img_size=48, batch_size=8, workers=0, log_with='none',
        warmup_epochs=0),
    steps=[dict(epochs=1, backbone_lr=0), dict(epochs=1, lr=1e-4)], plain_steps=[dict(epochs=1)],
    cost=dict(device='a CPU', images_per_second=100, train_images=27, held_out_images=24))


def write_zoo(folder, **changes):
    (folder / 'zoo.yaml').write_text(yaml.safe_dump({NAME: {**ROW, **changes}}))


def test_a_row_is_made_pushed_checked_and_goes_on(server, monkeypatch, capsys, coco_folder, tmp_path):
    write_zoo(tmp_path)
    weights, cards, runs = tmp_path / 'weights', tmp_path / 'cards', tmp_path / 'runs'
    places = ['--zoo', tmp_path / 'zoo.yaml', '--cards', cards, '--weights', weights]
    make = [NAME, '--data-dir', coco_folder, '--runs', runs, *places]

    def release(*options):
        capsys.readouterr()
        return run_here(monkeypatch, 'release', *options), capsys.readouterr()

    code, output = release(*make, '--dry-run')
    assert code == 0 and 'missing  train plain' in output.out and '129 images to train' in output.out
    assert not runs.exists()
    code, output = release('--check', *places)
    assert code == 2 and 'it is bundled, but was not made' in output.err

    code, output = release(*make)
    assert code == 0, output.err
    assert 'timm-fan/fan.tiny/commit' in output.out
    code, output = release('--check', *places)
    assert code == 0, output.err

    record = json.loads((cards / f'{NAME}.json').read_text())
    published = server.repos[f'timm-fan/{NAME}']
    files = published.commits[published.refs['main']]
    assert {
        'README.md', f'{NAME}.png', 'config.json', 'model.safetensors', 'training/release.json',
        'evaluation/metrics.json'} <= set(files)
    assert (cards / f'{NAME}.png').read_bytes() == files[f'{NAME}.png'].content
    assert files['model.safetensors'].oid == record['weights']
    assert (cards / f'{NAME}.md').read_bytes() == files['README.md'].content
    assert str(tmp_path).encode() not in files['training/release.json'].content
    check_scores(monkeypatch, capsys, coco_folder, weights / NAME, record)
    check_bundled(monkeypatch, weights, record)

    # nothing is trained or sent again
    trained = {file: file.stat().st_mtime_ns for file in runs.rglob('*.safetensors')}
    code, output = release(*make)
    assert code == 0 and f'timm-fan/{NAME} is up to date.' in output.out
    assert {file: file.stat().st_mtime_ns for file in runs.rglob('*.safetensors')} == trained
    # an interrupted row goes on: here the plain timm model is missing
    shutil.rmtree(runs / NAME / 'plain-1')
    assert 'missing  train plain' in release(*make, '--dry-run')[1].out
    code, output = release(*make, '--no-push')
    assert code == 0 and 'up to date' not in output.out
    again = json.loads((cards / f'{NAME}.json').read_text())
    assert again['plain']['mAP'] == pytest.approx(record['plain']['mAP'])
    check_disagreements(release, places, cards, weights, tmp_path)
    check_other_options(release, make, runs, tmp_path)


def check_scores(monkeypatch, capsys, coco_folder, model, record):
    """validate.py repeats the scores of the card."""
    capsys.readouterr()
    assert run_here(monkeypatch, 'validate', model, '--data', 'coco2014', '--data-dir', coco_folder, '--json') == 0
    found = json.loads(capsys.readouterr().out)
    for key in ('mAP', 'all', 'top3'):
        assert found[key] == pytest.approx(record['metrics'][key], abs=1e-4)
    assert found['per_class'][0]['threshold'] == record['config']['thresholds'][0]


def check_bundled(monkeypatch, weights, record):
    """The weights are half precision on disk, float32 in the model, and are found by the name of the tag."""
    stored = load_file(weights / NAME / 'model.safetensors')
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float16}
    model = load_model(weights / NAME)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.thresholds == record['config']['thresholds']


def check_disagreements(release, places, cards, weights, tmp_path):
    assert release('--check', *places)[0] == 0
    card, text = cards / f'{NAME}.md', (cards / f'{NAME}.md').read_text()
    card.write_text(text.replace('mAP', 'MAP'))
    assert 'is not the card of' in release('--check', *places)[1].err
    card.write_text(text)
    write_zoo(tmp_path, seeds=2)
    assert 'is of other options than the row' in release('--check', *places)[1].err
    write_zoo(tmp_path)
    file = weights / NAME / 'model.safetensors'
    tensors = load_file(file)
    tensors['head.fc.bias'][0] += 1
    save_file(tensors, file)
    assert 'has other weights than' in release('--check', *places)[1].err
    config = weights / NAME / 'config.json'
    config.write_text(config.read_text().replace('"thresholds"', '"threshold"'))
    assert 'differs from that in' in release('--check', *places)[1].err
    (weights / 'other').mkdir()
    assert 'has no row with bundled: true' in release('--check', *places)[1].err


def check_other_options(release, make, runs, tmp_path):
    """No step is taken that belongs to other options, or to another first step."""
    assert 'done     train seed0' in release(*make, '--dry-run', '--data-dir', 'elsewhere')[1].out
    write_zoo(tmp_path, steps=[ROW['steps'][0], dict(epochs=1, lr=2e-4)])
    assert 'missing  train seed0' in release(*make, '--dry-run')[1].out
    code, output = release(*make)
    assert code == 2 and 'held_out-2 was trained with other options (lr)' in output.err
    write_zoo(tmp_path)
    file = runs / NAME / 'seed0-1' / 'last' / 'model.safetensors'
    save_file({**load_file(file), 'head.fc.bias': torch.zeros(len(load_file(file)['head.fc.bias']))}, file)
    assert 'missing  train seed0' in release(*make, '--dry-run')[1].out
    code, output = release(*make)
    assert code == 2 and 'seed0-2 was trained with other options (start)' in output.err


@pytest.mark.parametrize('change, words', [
    (dict(steps=[dict(lr=1e-3)]), "row 'fan.tiny': each step needs epochs"),
    (dict(steps=[]), "row 'fan.tiny': steps: List should have at least 1 item"),
    (dict(steps=[dict(epochs=0)]), 'epochs should be greater than or equal to 1, got 0'),
    (dict(thresholds='best'), "row 'fan.tiny': "),
    (dict(colour='red'), 'colour: Extra inputs are not permitted'),
])
def test_mistakes_in_the_zoo_are_named(monkeypatch, capsys, tmp_path, change, words):
    write_zoo(tmp_path, **change)
    assert run_here(monkeypatch, 'release', '--dry-run', '--zoo', tmp_path / 'zoo.yaml') == 2
    assert words in capsys.readouterr().err


def test_rows_are_named(monkeypatch, capsys, tmp_path):
    write_zoo(tmp_path)
    assert run_here(monkeypatch, 'release', '--zoo', tmp_path / 'zoo.yaml') == 2
    assert 'Name the rows to make: fan.tiny.' in capsys.readouterr().err
    assert run_here(monkeypatch, 'release', 'fan.small', '--zoo', tmp_path / 'zoo.yaml') == 2
    assert "no row 'fan.small'" in capsys.readouterr().err


def test_the_zoo_its_cards_and_weights_belong_together(monkeypatch, capsys):
    assert run_here(monkeypatch, 'release', '--check') == 0, capsys.readouterr().err
    rows = yaml.safe_load((SCRIPTS.parent / 'hub_cards' / 'zoo.yaml').read_text())
    names = timm.list_models('fan*', module='fan', exclude_filters='fan')
    tags = {f'{name}.{timm.get_pretrained_cfg(name).tag}' for name in names}
    assert tags <= set(rows), 'every named model has a row'
    assert pretrained.BUNDLED in rows
