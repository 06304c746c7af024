"""Which files are in a run folder, and who may use it."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Optional

import pytest
import torch
from helpers import ROOT, SCRIPTS, TINY, history, run_here, write_small_coco
from safetensors import SafetensorError
from safetensors.torch import load_file

from timm_fan.training import RunFolder, TrainingOptions
from timm_fan.training.checkpoint import Progress


def test_a_run_has_these_files(run_folder):
    for name in (
            'config.yaml', 'train.log', 'history.csv', 'best/config.json', 'best/model.safetensors',
            'last/model.safetensors', 'run.json', 'report/metrics.json', 'report/per_class.csv',
            'report/curves.png', 'report/per_class.png', 'report/predictions.png'):
        assert (run_folder / name).stat().st_size > 0, name
    assert not [p for p in run_folder.iterdir() if p.name.startswith('.')]
    assert len(history(run_folder)) == 2


def test_reading_a_run(run_folder, tmp_path):
    run = RunFolder(run_folder)
    assert run.is_run() and run.read_options()['backbone'] == 'test_resnet'
    assert run.read_record()['train_images'] == 34 and len(run.read_history()) == 2
    assert run.latest_checkpoint() == run_folder / 'checkpoints' / f'{8:09d}'
    nothing = RunFolder(tmp_path / 'none')
    assert not nothing.is_run() and nothing.latest_checkpoint() is None
    assert nothing.read_record() is None and nothing.read_history() == []
    assert not nothing.path.exists()


def written(run):
    """When each file was written, except for the lock, which filelock may touch."""
    return {p: p.stat().st_mtime_ns for p in run.rglob('*') if p.is_file() and p.name != 'run.lock'}


def test_finished_run_is_not_overwritten(monkeypatch, capsys, run_folder, coco_folder):
    before = (run_folder / 'history.csv').read_bytes()
    assert run_here(monkeypatch, 'train', *TINY, '--data-dir', coco_folder, '--output', run_folder) == 2
    error = capsys.readouterr().err
    assert f'{run_folder} already contains a run' in error and '--resume' in error and '--output' in error
    assert (run_folder / 'history.csv').read_bytes() == before


def test_a_model_without_checkpoints_is_not_overwritten(monkeypatch, capsys, run_folder, coco_folder, tmp_path):
    """Unless the run is to be resumed: it may have been killed before its first checkpoint."""
    run = shutil.copytree(run_folder, tmp_path / 'run')
    RunFolder(run).delete_checkpoints()
    options = [*TINY, '--epochs', '1', '--no-report', '--data-dir', coco_folder, '--output', run]
    before = written(run)
    assert run_here(monkeypatch, 'train', *options) == 2
    assert capsys.readouterr().err == (
        f'error: {run} already contains a trained model. Choose another --output, or delete the folder.\n')
    assert written(run) == before
    assert run_here(monkeypatch, 'train', *options, '--resume') == 0
    assert len(history(run)) == 1


def test_a_file_in_the_way(monkeypatch, capsys, coco_folder, tmp_path):
    (tmp_path / 'run').write_text('mine')
    assert run_here(monkeypatch, 'train', *TINY, '--data-dir', coco_folder, '--output', tmp_path / 'run') == 2
    assert 'run: File exists' in capsys.readouterr().err and (tmp_path / 'run').read_text() == 'mine'


def test_a_folder_that_cannot_be_created(monkeypatch, capsys, coco_folder, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    output = tmp_path / 'file' / 'run'
    assert run_here(monkeypatch, 'train', *TINY, '--data-dir', coco_folder, '--output', output) == 2
    assert str(tmp_path / 'file') in capsys.readouterr().err


def test_data_with_another_number_of_classes_is_refused(monkeypatch, capsys, run_folder, tmp_path):
    data = write_small_coco(tmp_path / 'coco', 4, 4, num_classes=4)
    run = shutil.copytree(run_folder, tmp_path / 'run')
    options = ['--data-dir', data, '--batch-size', '4', '--output', run, '--resume']
    assert run_here(monkeypatch, 'train', *TINY, *options) == 2
    assert 'was saved for 6 classes, but the data has 4' in capsys.readouterr().err


def with_scores(run_folder: RunFolder, *scores: Optional[float]) -> RunFolder:
    """The run after one epoch for each mAP."""
    run_folder.progress = Progress(['cat'], updates_per_epoch=10)
    for epoch, score in enumerate(scores, start=1):
        run_folder.progress.history.append(dict(epoch=epoch, mAP=score))
        run_folder.progress.best = max(run_folder.progress.best, score or 0)
    return run_folder


@pytest.mark.parametrize('scores, waited', [
    ([], 0), ([0.2], 0), ([0.2, 0.3], 0), ([0.3, 0.2], 1), ([0.3, 0.3], 1), ([0.2, 0.3, 0.1, 0.2], 2),
    ([None], 0), ([None, 0.3, None, 0.2], 2), ([None, 0.3, None, 0.2, None], 2), ([None, 0.3, None, 0.4, None], 0)])
def test_patience_counts_epochs_since_the_best_one(tmp_path, scores, waited):
    run = with_scores(RunFolder(tmp_path), *scores)
    assert run.epochs_without_gain() == waited
    for patience in range(4):
        options = TrainingOptions(patience=patience, epochs=9)
        assert run.stopped_early(options) == (0 < patience <= waited)
        assert next(run.remaining_epochs(options), None) == (None if run.stopped_early(options) else len(scores))


def test_the_time_left_is_that_of_the_updates_of_this_process(monkeypatch, tmp_path):
    run = with_scores(RunFolder(tmp_path), 0.1, 0.2)  # 20 updates before it was resumed
    run._began, run._updates_before = 1000., 20
    run.progress.updates = 10
    monkeypatch.setattr(time, 'time', lambda: 1030.)
    assert run.seconds_left(epochs=8) == 150
    assert run.seconds_left(epochs=3) == 0


def test_a_run_ends_when_its_patience_does(monkeypatch, coco_folder, tmp_path):
    """And not again when it is resumed, unless it gets more patience."""
    run, log = tmp_path / 'run', tmp_path / 'run' / 'train.log'
    still = ['--lr', '0', '--opt', 'sgd', '--freeze-bn', '--ema-decay', '0.9']
    options = [*TINY, *still, '--model-kwargs', 'frn=false', '--no-report', '--data-dir', coco_folder, '--output', run]
    assert run_here(monkeypatch, 'train', *options, '--epochs', '9', '--patience', '2', '--val-interval', '2') == 0
    assert 'stopped early after epoch 4 of 9: no better mAP in 2 epochs (--patience 2)' in log.read_text()
    assert json.loads((run / 'run.json').read_text())['stopped_early']
    assert ' left at most' in log.read_text()
    assert run_here(monkeypatch, 'train', '--resume', run) == 0
    assert f'{run} had stopped early after epoch 4 of 9' in log.read_text()
    assert len(RunFolder(run).read_history()) == 4
    assert run_here(monkeypatch, 'train', '--resume', run, '--patience', '0', '--epochs', '5') == 0
    assert 'finished 5 epochs in ' in log.read_text()
    assert run_here(monkeypatch, 'train', '--resume', run) == 0
    assert f'{run} was finished after 5 epochs. To train on, raise --epochs' in log.read_text()
    assert not json.loads((run / 'run.json').read_text())['stopped_early']


def start(data: Path, output: Path) -> subprocess.Popen:
    """Start the training of `run_folder` in another process."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true'}
    command = [
        sys.executable, SCRIPTS / 'train.py', *TINY, '--data-dir', data, '--output', output, '--no-report',
        '--checkpoint-every', '1']
    return subprocess.Popen(
        list(map(str, command)), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def start_and_halt(data: Path, output: Path) -> subprocess.Popen:
    """A training that is halted at its first checkpoint."""
    process = start(data, output)
    while not (output / 'checkpoints').is_dir() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    return process


def assert_same_weights(run: Path, expected: Path) -> None:
    weights = load_file(expected / 'last' / 'model.safetensors')
    for name, tensor in load_file(run / 'last' / 'model.safetensors').items():
        assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize('options', [[], ['--resume']])
def test_a_folder_in_use_is_refused(monkeypatch, capsys, run_folder, coco_folder, tmp_path, options):
    run = tmp_path / 'run'
    first = start_and_halt(coco_folder, run)
    try:
        before = written(run)
        code = run_here(monkeypatch, 'train', *TINY, '--data-dir', coco_folder, '--output', run, *options)
        assert code == 2
        assert capsys.readouterr().err == (
            f'error: Another run is training in {run}. Wait for it, or choose another --output.\n')
        assert written(run) == before
    finally:
        first.send_signal(signal.SIGCONT)
    _, error = first.communicate(timeout=120)
    assert first.returncode == 0, error
    assert_same_weights(run, run_folder)


def test_a_killed_run_releases_its_folder(monkeypatch, run_folder, coco_folder, tmp_path):
    run = tmp_path / 'run'
    first = start_and_halt(coco_folder, run)
    options = [*TINY, '--data-dir', coco_folder, '--output', run, '--resume', '--no-report']
    try:
        assert run_here(monkeypatch, 'train', *options) == 2
    finally:
        first.kill()
        first.communicate()
    assert run_here(monkeypatch, 'train', *options) == 0
    assert_same_weights(run, run_folder)


def test_a_resumed_run_removes_what_a_killed_one_left(monkeypatch, run_folder, coco_folder, tmp_path):
    """That is incomplete models. Hidden folders of others stay, and a replaced model is restored."""
    run = shutil.copytree(run_folder, tmp_path / 'run')
    for name in ('.last.abc', '.try.abc', '.git'):
        (run / name).mkdir()
        (run / name / 'model.safetensors').write_bytes(b'')
    (run / 'best').rename(run / '.best.old')
    options = [*TINY, '--data-dir', coco_folder, '--output', run, '--no-report']
    assert run_here(monkeypatch, 'train', *options, '--resume') == 0
    assert [p.name for p in run.iterdir() if p.name.startswith('.')] == ['.git']
    assert (run / 'best' / 'config.json').is_file()


def test_of_two_runs_that_start_together_one_trains(run_folder, coco_folder, tmp_path):
    run = tmp_path / 'run'
    processes = [start(coco_folder, run) for _ in range(2)]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2], errors
    [error] = [error for process, error in zip(processes, errors) if process.returncode]
    assert error.count('error:') == 1 and 'Traceback' not in error and str(run) in error and '--output' in error
    assert_same_weights(run, run_folder)


@pytest.mark.parametrize('finished', [False, True])
def test_a_run_that_starts_while_another_reads_its_data(
        monkeypatch, capsys, run_folder, coco_folder, tmp_path, finished):
    """Both have found an empty place for the folder."""
    run, others = tmp_path / 'run', []

    def start_another(module):
        open_splits = module.open_splits

        def open_late(*args):
            others.append(start(coco_folder, run) if finished else start_and_halt(coco_folder, run))
            if finished:
                assert others[0].wait(120) == 0
            return open_splits(*args)

        module.open_splits = open_late

    try:
        code = run_here(
            monkeypatch, 'train', *TINY, '--data-dir', coco_folder, '--output', run, prepare=start_another)
        words = f'has trained in {run}. Resume it' if finished else f'is training in {run}. Wait for it'
        assert code == 2
        assert capsys.readouterr().err == f'error: Another run {words}, or choose another --output.\n'
    finally:
        others[0].send_signal(signal.SIGCONT)
        others[0].communicate(timeout=120)
    assert others[0].returncode == 0
    assert_same_weights(run, run_folder)


@pytest.mark.parametrize('error, reason', [
    (OSError, (28, 'No space left on device')), (SafetensorError, ('Error while writing: No space left on device',))])
def test_a_model_that_cannot_be_saved_is_refused_before_it_is_trained(
        monkeypatch, capsys, coco_folder, tmp_path, error, reason):
    def refuse(*args, **kwargs):
        raise error(*reason)

    def never_train(module):
        def train(*args):
            raise AssertionError('it was trained')
        module.train_one_epoch = train

    run = tmp_path / 'run'
    monkeypatch.setattr('timm_fan.models.folder.save_file', refuse)
    options = [*TINY, '--data-dir', coco_folder, '--output', run]
    assert run_here(monkeypatch, 'train', *options, prepare=never_train) == 2
    message = capsys.readouterr().err
    assert 'No space left on device' in message and message.count('error:') == 1 and 'Traceback' not in message
    assert {p.name for p in run.iterdir()} <= {'run.lock', 'train.log'}
    monkeypatch.undo()
    assert run_here(monkeypatch, 'train', *options, '--no-report') == 0


def test_a_run_records_where_it_ran(run_folder):
    record = json.loads((run_folder / 'run.json').read_text())
    assert 'train.py' in record['command'] and record['versions']['torch'] == version('torch')
    assert record['val_images'] == 13 and record['seconds'] > 0 and len(record['data']['train']) == 64
