"""validate.py as a user runs it."""
import json
import re
import shutil

import pytest
from helpers import SCRIPTS, TINY, history, launch, run_here, write_hub, write_small_coco, write_table, write_tars
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from timm_fan.data import read_coco


def data_options(folder):
    return ['--data', 'coco2014', '--data-dir', folder, '--workers', '0']


@pytest.mark.parametrize('processes', [0, 2])
def test_it_repeats_the_evaluation_of_the_training(run_folder, coco_folder, processes):
    result = launch(
        SCRIPTS / 'validate.py', run_folder / 'last', *data_options(coco_folder), '--batch-size', '4', '--json',
        processes=processes)
    scores = json.loads(result.stdout[result.stdout.index('{'):])
    last = history(run_folder)[-1]
    assert scores['num_images'] == 13
    assert scores['mAP'] == pytest.approx(last['mAP'], abs=1e-5)
    assert scores['all']['CF1'] == pytest.approx(last['CF1'], abs=1e-5)
    assert scores['all']['OF1'] == pytest.approx(last['OF1'], abs=1e-5)


@pytest.mark.parametrize('write, kind', [(write_table, 'csv'), (write_hub, 'disk'), (write_tars, 'json')])
def test_two_processes_evaluate_every_source_as_one(run_folder, coco_folder, tmp_path, write, kind):
    data = write(coco_folder, tmp_path, kind)
    result = launch(
        SCRIPTS / 'validate.py', run_folder / 'best', '--data', data, '--data-dir', tmp_path, '--workers', '0',
        '--batch-size', '4', '--bootstrap', '0', '--json', processes=2)
    scores = json.loads(result.stdout[result.stdout.index('{'):])
    alone = json.loads((run_folder / 'report' / 'metrics.json').read_text())
    for key in ('mAP', 'all', 'top3', 'num_images', 'per_class', 'mAP_by_definition', 'sample_f1'):
        assert scores[key] == alone[key], key


def test_thresholds_are_kept_and_applied(monkeypatch, capsys, run_folder, coco_folder, tmp_path):
    folder = shutil.copytree(run_folder / 'best', tmp_path / 'model')
    common = [*data_options(coco_folder), '--bootstrap', '0', '--json']
    assert run_here(monkeypatch, 'validate', folder, *common, '--choose-thresholds', 'global-f1') == 0
    chosen = json.loads(capsys.readouterr().out)
    config = json.loads((folder / 'config.json').read_text())
    assert config['threshold_policy'] == 'global-f1' and len(config['thresholds']) == 6
    plain = json.loads((run_folder / 'report' / 'metrics.json').read_text())
    assert chosen['all']['OF1'] > plain['all']['OF1'] and chosen['mAP'] == plain['mAP']
    assert run_here(monkeypatch, 'validate', folder, *common) == 0
    assert json.loads(capsys.readouterr().out)['all'] == chosen['all']
    assert run_here(monkeypatch, 'validate', folder, *common, '--threshold', '0.5') == 0
    assert json.loads(capsys.readouterr().out)['all'] == plain['all']

    assert run_here(monkeypatch, 'predict', folder, coco_folder / 'val2014', '--format', 'jsonl') == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    threshold = config['thresholds'][0]
    assert sum(len(r['labels']) for r in found) > 0
    assert all(label['probability'] > threshold - 1e-7 for r in found for label in r['labels'])
    for options, word in (
            (['--choose-thresholds', 'best'], 'class-f1'), (['--threshold', '1.5'], '1.5')):
        assert run_here(monkeypatch, 'validate', folder, *common, *options) == 2
        assert word in capsys.readouterr().err
    (folder / 'config.json').write_text(json.dumps({**config, 'thresholds': [0.5]}))
    assert run_here(monkeypatch, 'predict', folder, coco_folder / 'val2014') == 2
    assert 'must be 6 numbers' in capsys.readouterr().err


def test_thresholds_say_where_they_are_from(monkeypatch, capsys, run_folder, coco_folder, tmp_path):
    folder = shutil.copytree(run_folder / 'best', tmp_path / 'model')
    common = [folder, *data_options(coco_folder), '--bootstrap', '0']
    chosen = ['--choose-thresholds', 'class-f1', '--tta', 'flip']
    assert run_here(monkeypatch, 'validate', *common, *chosen) == 0
    assert (f'thresholds by class-f1 on coco2014 in {coco_folder}, split val (13 images), --tta flip, saved in'
            f' {folder}/config.json\n') in capsys.readouterr().err
    kept = json.loads((folder / 'config.json').read_text())['thresholds_chosen_on']
    fingerprint = read_coco(coco_folder, 'val2014').fingerprint()
    assert kept == dict(data='coco2014', split='val', images=13, tta='flip', fingerprint=fingerprint)
    where = 'class-f1, chosen on coco2014, split val (13 images), --tta flip'
    for options, words, missing in (
            (['--tta', 'flip'], 'These are the images of this evaluation', 'may not fit'),
            (['--split', 'train'], 'may not fit --tta none', 'These are'), (['--threshold', '0.5'], '', 'chosen on')):
        assert run_here(monkeypatch, 'validate', *common, *options) == 0
        error = capsys.readouterr().err
        assert words in error and missing not in error and (where in error or not words)
    for options, noted in (([], True), (['--tta', 'flip'], False), (['--topk', '1'], False)):
        assert run_here(monkeypatch, 'predict', folder, coco_folder / 'val2014', *options) == 0
        assert ('chosen with --tta flip' in capsys.readouterr().err) == noted


def test_flipped_images_count_the_same(monkeypatch, capsys, run_folder, coco_folder, tmp_path):
    """The mean over both does not change if all images are mirrored, in whatever way it is computed."""
    mirrored = shutil.copytree(coco_folder, tmp_path / 'coco')
    for file in (mirrored / 'val2014').iterdir():
        ImageOps.mirror(Image.open(file)).save(file, 'PNG')
    scores = {}
    for tta in ('none', 'flip'):
        for folder in (coco_folder, mirrored):
            options = [*data_options(folder), '--tta', tta, '--bootstrap', '0', '--json']
            assert run_here(monkeypatch, 'validate', run_folder, *options) == 0
            scores[tta, folder] = json.loads(capsys.readouterr().out)['mAP']
    assert scores['flip', coco_folder] == pytest.approx(scores['flip', mirrored], abs=1e-3)
    assert scores['none', coco_folder] != pytest.approx(scores['none', mirrored], abs=1e-3)


def test_thresholds_survive_data_that_cannot_be_evaluated(monkeypatch, capsys, run_folder, tmp_path):
    folder = shutil.copytree(run_folder / 'best', tmp_path / 'model')
    names = json.loads((folder / 'config.json').read_text())['label_names']
    Image.new('RGB', (48, 48)).save(tmp_path / 'a.png')
    (tmp_path / 'val.csv').write_text(','.join(['image', *names]) + '\na.png' + ',-1' * len(names) + '\n')
    before = (folder / 'config.json').read_text()
    for options in (['--choose-thresholds', 'class-f1'], [], ['--binned']):
        code = run_here(
            monkeypatch, 'validate', folder, '--data', 'table', '--data-dir', tmp_path, '--workers', '0', *options)
        assert code == 2 and 'No label of the data set is known' in capsys.readouterr().err
    assert (folder / 'config.json').read_text() == before


@pytest.mark.parametrize('options', [
    ['--binned', '--report', 'x'], ['--binned', '--json'], ['--choose-thresholds', 'class-f1', '--threshold', '0.4'],
    ['--batch-size', '0'], ['--workers', '-1'], ['--bootstrap', '-1']])
def test_options_without_effect_are_refused(monkeypatch, capsys, run_folder, options):
    assert run_here(monkeypatch, 'validate', run_folder, *options) == 2
    assert options[0] in capsys.readouterr().err


def test_weights_of_nan_are_reported(monkeypatch, capsys, run_folder, coco_folder, tmp_path):
    folder = shutil.copytree(run_folder / 'best', tmp_path / 'model')
    weights = load_file(folder / 'model.safetensors')
    save_file({**weights, 'head.fc.bias': weights['head.fc.bias'] * float('nan')}, folder / 'model.safetensors')
    data = data_options(coco_folder)
    for options in (['validate', folder, *data], ['validate', folder, *data, '--binned'],
                    ['predict', folder, coco_folder / 'val2014']):
        assert run_here(monkeypatch, *options) == 2
        assert 'gives NaN' in capsys.readouterr().err


def test_class_names_of_digits_are_names_too(monkeypatch, capsys, run_folder, coco_folder, tmp_path):
    folder = shutil.copytree(run_folder / 'best', tmp_path / 'model')
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'label_names': list('012345')}))
    assert run_here(monkeypatch, 'validate', folder, '--data', 'coco2014', '--data-dir', coco_folder) == 2
    assert "Class 0 is '0' in the model" in capsys.readouterr().err


def test_another_number_of_classes_is_refused(monkeypatch, capsys, run_folder, tmp_path):
    data = write_small_coco(tmp_path / 'coco', 4, 4, num_classes=4)
    assert run_here(monkeypatch, 'validate', run_folder, '--data', 'coco2014', '--data-dir', data) == 2
    assert 'The model has 6 classes, but the data has 4' in capsys.readouterr().err


def test_comparison_of_two_models(monkeypatch, capsys, run_folder, coco_folder):
    common = [*data_options(coco_folder), '--bootstrap', '50']
    assert run_here(monkeypatch, 'validate', '--compare', run_folder / 'best', run_folder / 'best', *common) == 0
    out = capsys.readouterr().out
    assert 'mAP  +0.00' in out and 'does not exceed' in out


def test_binned_evaluation(monkeypatch, capsys, run_folder, coco_folder):
    assert run_here(monkeypatch, 'validate', run_folder, *data_options(coco_folder), '--binned') == 0
    low, high = map(float, re.search(r'between ([\d.]+) and ([\d.]+)', capsys.readouterr().out).groups())
    exact = 100 * json.loads((run_folder / 'report' / 'metrics.json').read_text())['mAP']
    assert low - 0.01 <= exact <= high + 0.01


def test_a_report_leaves_other_files_in_its_folder(monkeypatch, coco_folder, run_folder, tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('precious')
    data = ['--data', 'coco2014', '--data-dir', coco_folder]
    for _ in range(2):
        assert run_here(monkeypatch, 'inspect_data', *data, '--figures', tmp_path / 'mine') == 0
        assert run_here(monkeypatch, 'validate', run_folder, *data, '--report', tmp_path / 'mine') == 0
    names = {p.name for p in (tmp_path / 'mine').iterdir()}
    assert {'thesis.txt', 'frequencies.png', 'report.html', 'metrics.json'} <= names
    assert not any(name.startswith('.') for name in names)


def test_a_run_without_a_validation_split_is_validated_on_the_images_that_it_held_out(
        monkeypatch, capsys, coco_folder, tmp_path):
    data, run = 'coco2014?val=0.3', tmp_path / 'run'
    options = [*TINY, '--data', data, '--data-dir', coco_folder, '--epochs', '1', '--no-report']
    assert run_here(monkeypatch, 'train', *options, '--output', run) == 0
    lines = (run / 'split.csv').read_text().splitlines()
    held_out = [line for line in lines if line.endswith(',val')]
    assert len(lines) == 35 and lines[0] == 'image,split' and 8 <= len(held_out) <= 12
    capsys.readouterr()
    scores = []
    for model in (run, run / 'best'):
        assert run_here(monkeypatch, 'validate', model, '--json', '--bootstrap', '0', '--workers', '0') == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == scores[1] and scores[0]['num_images'] == len(held_out)
    assert scores[0]['mAP'] == pytest.approx(history(run)[-1]['mAP'], abs=1e-5)

    # another division of the same images is not taken instead of the recorded one
    moved = [line.replace(',val', ',train') if line == held_out[0] else line for line in lines]
    (run / 'split.csv').write_text('\n'.join(moved))
    assert run_here(monkeypatch, 'validate', run, '--json', '--bootstrap', '0', '--workers', '0') == 0
    assert json.loads(capsys.readouterr().out)['num_images'] == len(held_out) - 1
    assert run_here(monkeypatch, 'train', '--resume', run, '--epochs', '2') == 0
    assert (run / 'split.csv').read_text().splitlines() != lines
