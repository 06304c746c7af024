"""ablation.py as a user runs it, on tiny scenes."""
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT, SCRIPTS, load_program, run_here
from scipy.stats import ttest_rel

from timm_fan.training import TrainingOptions, merge_options

OPTIONS = dict(
    data='coco2014', model='fan', backbone='test_resnet', img_size=48, epochs=1, batch_size=8, workers=0,
    log_with='none', warmup_epochs=0)
GRID = dict(
    title='A tiny grid', options=OPTIONS, reference='FAN', seeds=2, search=dict(lr=[1e-3]),
    rows={'FAN': dict(model_kwargs=dict(embed_dim=16)), 'mean': dict(
        model_kwargs=dict(frn=False, cln=False, head='linear'), search=dict(lr=[1e-3, 1e-2]))})


@pytest.fixture
def grid(tmp_path):
    file = tmp_path / 'tiny.yaml'
    file.write_text(yaml.safe_dump(GRID))
    return file


def test_a_grid_is_searched_trained_compared_and_continued(monkeypatch, capsys, coco_folder, tmp_path, grid):
    """One run has results already, a search that no other beats. A row searches its own values."""
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    file = tmp_path / 'tiny.jsonl'
    mean = {**OPTIONS, 'model_kwargs': GRID['rows']['mean']['model_kwargs']}
    known = dict(row='mean', seed=1000, search=True, mAP=1., options={**mean, 'lr': 1e-2})
    file.write_text(json.dumps(known) + '\n')
    options = [grid, '--data-dir', coco_folder, '--runs', tmp_path / 'runs', '--results', tmp_path]
    assert run_here(monkeypatch, 'ablation', *options, '--seeds', '1', '--rows', 'mean') == 0
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert records[0] == known and [r['search'] for r in records] == [True, True, False]
    assert records[1]['options']['lr'] == 1e-3 and records[2]['options']['lr'] == 1e-2
    assert 0 <= records[2]['pointing'] <= 1 and records[2]['AP'].keys() and records[2]['correlated']['classes']

    known = {**records[1], 'row': 'FAN', 'options': {**OPTIONS, **GRID['rows']['FAN'], 'lr': 1e-3}}
    before = file.read_text() + json.dumps(known) + '\n'
    file.write_text(before)
    assert run_here(monkeypatch, 'ablation', *options, '--jobs', '2') == 0
    after = file.read_text()
    assert after.startswith(before) and after.count('\n') == 7
    records = [json.loads(line) for line in after.splitlines()]
    found = {row: [r['mAP'] for r in sorted(
        (r for r in records if r['row'] == row and not r['search']), key=lambda r: r['seed'])] for row in GRID['rows']}
    page = (tmp_path / 'tiny.md').read_text()
    p = ttest_rel(found['mean'], found['FAN']).pvalue
    assert (f'p {p:.3f})' if p >= 0.001 else 'p < 0.001)') in page and f'{100 * sum(found["FAN"]) / 2:.2f} ±' in page
    assert 'A tiny grid' in page and '34 training and 13 validation images' in page

    grid.write_text(yaml.safe_dump({**GRID, 'options': {**OPTIONS, 'img_size': 32}}))  # nothing of it was trained
    assert run_here(monkeypatch, 'ablation', *options, '--table') == 2
    assert run_here(monkeypatch, 'ablation', *options) == 2
    assert 'was trained with other options' in capsys.readouterr().err
    grid.write_text(yaml.safe_dump({**GRID, 'options': {**OPTIONS, 'workers': 1}}))
    monkeypatch.setattr('concurrent.futures.ProcessPoolExecutor.submit', None)  # nothing is left to train
    assert run_here(monkeypatch, 'ablation', *options) == 0
    assert run_here(monkeypatch, 'ablation', *options, '--table') == 0

    def without_search(options):
        return {k: v for k, v in options.items() if k not in ('search', 'lr')}

    rows = {row: without_search(options) for row, options in GRID['rows'].items()}
    grid.write_text(yaml.safe_dump({**GRID, 'search': {}, 'rows': rows}))
    file.write_text(''.join(json.dumps({**r, 'options': without_search(r['options'])}) + '\n' for r in records))
    assert run_here(monkeypatch, 'ablation', *options, '--table') == 0
    table = [line for line in (tmp_path / 'tiny.md').read_text().splitlines() if line.startswith('|')][:4]
    assert len({line.count('|') for line in table}) == 1


def test_a_grid_over_a_frozen_backbone_keeps_its_maps(monkeypatch, capsys, coco_folder, tmp_path):
    """The search has other images, and the model that was trained on maps gives the same scores on photographs."""
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    content = merge_options(GRID, dict(
        views=2, search_options=dict(min_crop=0.5), options={**OPTIONS, 'backbone_lr': 0, 'epochs': 3}))
    (tmp_path / 'maps.yaml').write_text(yaml.safe_dump(content))
    options = ['--data-dir', coco_folder, '--runs', tmp_path / 'runs', '--results', tmp_path, '--seeds', '1']
    assert run_here(monkeypatch, 'ablation', tmp_path / 'maps.yaml', *options, '--jobs', '2') == 0
    records = [json.loads(line) for line in (tmp_path / 'maps.jsonl').read_text().splitlines()]
    assert [r['search'] for r in records].count(True) == 3
    assert all(('min_crop' in r['options']) == r['search'] and r['views'] == 2 for r in records)
    # for each seed, which determines the backbone: two views, and the validation images
    assert len(list((tmp_path / 'runs' / 'maps' / 'features').glob('*/maps.bin'))) == 6
    for record in records:
        if not record['search']:
            run = tmp_path / 'runs' / 'maps' / f'{record["row"]}-seed0' / 'last'
            capsys.readouterr()
            assert run_here(
                monkeypatch, 'validate', run, '--data', 'coco2014', '--data-dir', coco_folder, '--json') == 0
            assert json.loads(capsys.readouterr().out)['mAP'] == pytest.approx(record['mAP'], abs=0.02)
    page = (tmp_path / 'maps.md').read_text()
    check_start_from(monkeypatch, capsys, tmp_path, options)
    assert '2 random views' in page and '| Top-3 OF1 |' in page and 'min_crop' in page


def check_start_from(monkeypatch, capsys, tmp_path, options):
    """A model that is not trained further scores as before, and the search starts from the search."""
    content = merge_options(GRID, dict(
        start_from=str(tmp_path / 'maps.yaml'), search=dict(weight_decay=[0.1]), seeds=1,
        options=dict(lr=0, backbone_lr=0, mixed_precision='no')))
    content['options'] = {**OPTIONS, 'backbone_weights': 'not_here.safetensors', **content['options']}
    content['rows'] = {'FAN': None, 'mean': None}
    (tmp_path / 'further.yaml').write_text(yaml.safe_dump(content))
    assert run_here(monkeypatch, 'ablation', tmp_path / 'further.yaml', *options) == 0
    before, after = (
        {(r['row'], r['search']): r for line in (tmp_path / f'{name}.jsonl').read_text().splitlines()
         for r in [json.loads(line)]} for name in ('maps', 'further'))
    assert len(after) == 4
    assert after['mean', False]['options']['model_kwargs'] == GRID['rows']['mean']['model_kwargs']
    assert after['mean', False]['parameters'] == before['mean', False]['parameters']
    assert after['FAN', False]['mAP'] == pytest.approx(before['FAN', False]['mAP'], abs=0.02)
    assert after['FAN', True]['mAP'] == pytest.approx(before['FAN', True]['mAP'], abs=0.02)
    assert 'in [maps](maps.md)' in (tmp_path / 'further.md').read_text()
    capsys.readouterr()
    assert run_here(monkeypatch, 'ablation', tmp_path / 'further.yaml', *options, '--seeds', '2', '--rows', 'FAN') == 2
    assert 'FAN-seed1 starts from a model of the grid maps' in capsys.readouterr().err
    earlier = (tmp_path / 'maps.jsonl').read_text()
    (tmp_path / 'maps.jsonl').write_text(''.join(line + '\n' for line in earlier.splitlines() if '"mean"' in line))
    (tmp_path / 'further.jsonl').unlink()
    assert run_here(monkeypatch, 'ablation', tmp_path / 'further.yaml', *options, '--rows', 'FAN') == 2
    assert 'has no line in' in capsys.readouterr().err
    for change, words in (
            (dict(rows={**content['rows'], 'max': None}), "has no row 'max' to start from"),
            (dict(start_from=str(tmp_path / 'further.yaml')), 'builds on itself')):
        (tmp_path / 'further.yaml').write_text(yaml.safe_dump({**content, **change}))
        assert run_here(monkeypatch, 'ablation', tmp_path / 'further.yaml', *options) == 2
        assert words in capsys.readouterr().err


def test_mistakes_are_named(monkeypatch, capsys, coco_folder, tmp_path, grid):
    def error(*args):
        assert run_here(monkeypatch, 'ablation', *args, '--results', tmp_path, '--runs', tmp_path / 'runs') == 2
        return capsys.readouterr().err

    assert 'coco_mini' in error('no_such')
    assert "no row 'x'" in error(grid, '--rows', 'x')
    assert 'has no run of this grid yet' in error(grid, '--table')
    grid.write_text(yaml.safe_dump({**GRID, 'options': {**OPTIONS, 'epochs': 0}}))
    assert "row 'FAN': epochs should be greater than or equal to 1, got 0" in error(grid, '--data-dir', coco_folder)
    grid.write_text(yaml.safe_dump({**GRID, 'search': dict(lr=1e-3)}))
    assert "the search of row 'FAN' must be option: [value, ...]" in error(grid)
    assert '--jobs and --seeds must be at least 1' in error(grid, '--jobs', '0')
    grid.write_text(yaml.safe_dump({**GRID, 'reference': 'x'}))
    assert 'reference must be one of the rows' in error(grid)
    for change, words in (
            (dict(base=str(grid)), 'builds on itself'),
            (dict(options=['lr']), 'options must be option: value'),
            (dict(options={**OPTIONS, 'data_dir': 'x'}), 'options must not have data_dir, which ablation.py sets'),
            (dict(rows={'FAN': 'lr'}), "row 'FAN' must be option: value"),
            (dict(rows={'FAN': dict(model_kwargs=None)}), 'model_kwargs likewise'),
            (dict(views=1), "row 'FAN': cache_features=1 keeps the maps of a frozen backbone"),
            (dict(views=-1), 'views must be a whole number of at least 0, got -1'),
            (dict(search_options=dict(seed=1)), 'search_options must not have seed'),
            (dict(seeds='two'), "seeds must be a whole number of at least 1, got 'two'"),
            (dict(rows={'FAN': {}, 'K<6': {}, 'K>6': {}}), "have the same run folder 'K_6-")):
        grid.write_text(yaml.safe_dump({**GRID, **change}))
        assert words in error(grid)
    (tmp_path / 'tiny.jsonl').write_text('{')
    grid.write_text(yaml.safe_dump(GRID))
    assert 'tiny.jsonl is damaged' in error(grid)


@pytest.mark.parametrize('name', sorted(p.stem for p in (SCRIPTS / 'ablations').glob('*.yaml')))
def test_options_of_the_grids_are_those_of_train(monkeypatch, capsys, tmp_path, name):
    """Every row gets as far as the data, which is missing."""
    program = load_program(monkeypatch, 'ablation')
    grid, results = program.read_grid(name), program.Results(tmp_path / 'none.jsonl')
    for row in grid.own:
        run = (grid.search_runs(row) or grid.runs([row], 1, results))[0]
        config = tmp_path / 'row.yaml'
        config.write_text(yaml.safe_dump(merge_options(run.options, dict(data='coco2014'))))
        options = ['--config', config, '--data-dir', tmp_path / 'none', '--output', tmp_path / 'run']
        assert run_here(monkeypatch, 'train', *options) == 2
        error = capsys.readouterr().err
        assert 'none' in error and 'annotations' in error, error


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def processes_naming(path) -> list:
    found = []
    for file in Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):  # it has ended
            if str(path).encode() in file.read_bytes():
                found.append(file)
    return found


def test_a_killed_grid_ends_its_runs(coco_folder, tmp_path, grid):
    grid.write_text(yaml.safe_dump({**GRID, 'options': {**OPTIONS, 'epochs': 1000}, 'search': {}, 'rows': {'FAN': {}}}))
    runs = tmp_path / 'runs'
    command = [sys.executable, SCRIPTS / 'ablation.py', grid, '--data-dir', coco_folder, '--runs', runs,
               '--results', tmp_path, '--seeds', '1']
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true'}
    program = subprocess.Popen(list(map(str, command)), env=env)
    checkpoints = runs / 'tiny' / 'FAN-seed0' / 'checkpoints'
    wait_for(lambda: checkpoints.is_dir() and any(checkpoints.iterdir()))
    program.kill()
    program.wait()
    wait_for(lambda: not processes_naming(runs))
    assert any(checkpoints.iterdir())


def test_an_evaluation_leaves_the_threads_of_a_job_alone(monkeypatch, coco_folder, run_folder):
    """Several jobs share the cores, each with its number of threads."""
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(4)))
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    runs = load_program(monkeypatch, 'runs')
    assert torch.get_num_threads() == 1
    assert runs.evaluate_folder(run_folder / 'best', 'coco2014', coco_folder).scores.num_images == 13
    assert torch.get_num_threads() == 1


def test_a_run_on_maps_leaves_the_threads_of_a_job_alone(monkeypatch, coco_folder, tmp_path):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(4)))
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    monkeypatch.syspath_prepend(SCRIPTS)
    from ablations.frozen import train_on_maps
    options = TrainingOptions.parse({**OPTIONS, 'data_dir': str(coco_folder), 'backbone_lr': 0, 'cache_features': 1})
    evaluation, record = train_on_maps(options, tmp_path / 'model', tmp_path / 'features')
    assert torch.get_num_threads() == 1 and record['train_images'] == 34 and evaluation.scores.num_images == 13
