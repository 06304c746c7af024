"""Training that is killed, stopped or short of disk, and goes on as if nothing had happened."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_programs import ROOT, SCRIPTS, TINY, launch, run_here

from timm_fan import checkpoint as checkpoint_module
from timm_fan.checkpoint import latest_checkpoint
from timm_fan.seeding import SeededSamples, seed_step

OPTIONS = [
    *TINY, '--epochs', '3', '--batch-size', '4', '--ema-decay', '0.9', '--cutmix', '1', '--checkpoint-every', '1',
    '--aa', 'rand-m7-mstd0.5', '--model-kwargs', 'drop_rate=0.3']


def without_report(module) -> None:
    """The report is not what these tests are about, and drawing it takes longer than the training."""
    module.write_report = lambda *args, **kwargs: None
    module.bootstrap = lambda *args, **kwargs: {}


def train(*args, prepare=without_report) -> int:
    patch = pytest.MonkeyPatch()
    try:
        return run_here(patch, 'train', *OPTIONS, *args, prepare=prepare)
    finally:
        patch.undo()


PROGRAM = """
import os, runpy, signal, sys
import timm_fan.checkpoint, timm_fan.report, timm_fan.uncertainty
timm_fan.report.write_report = lambda *args, **kwargs: None
timm_fan.uncertainty.bootstrap = lambda *args, **kwargs: {}
module = {'os': os, 'checkpoint': timm_fan.checkpoint}[sys.argv[1]]
name, last, calls = sys.argv[2], int(sys.argv[3]), []
original = getattr(module, name)
def counted(*args, **kwargs):
    calls.append(args)
    if len(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
setattr(module, name, counted)
sys.argv = sys.argv[4:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def start(*args, kill_at=('os', 'rename', 0)) -> subprocess.Popen:
    """Train in a process of its own, which kills itself before the given call of a function, if it gets there."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true'}
    command = [sys.executable, '-c', PROGRAM, *kill_at, SCRIPTS / 'train.py', *OPTIONS, *args]
    return subprocess.Popen(
        list(map(str, command)), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True)


def wait_for_checkpoint(process: subprocess.Popen, run: Path) -> None:
    while latest_checkpoint(run) is None and process.poll() is None:
        time.sleep(0.02)


def results(run: Path):
    history = (run / 'history.csv').read_text()
    weights = {name: load_file(run / name / 'model.safetensors') for name in ('best', 'last')}
    return history, weights


def assert_same(run: Path, whole) -> None:
    history, weights = results(run)
    assert history == whole[0]
    for name, tensors in weights.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, whole[1][name][key]), (name, key)


@pytest.fixture(scope='module')
def whole(coco_folder, tmp_path_factory):
    run = tmp_path_factory.mktemp('runs') / 'whole'
    started = time.time()
    assert train('--data-dir', coco_folder, '--output', run) == 0
    return results(run), time.time() - started


TRIALS = [pytest.param(i, marks=[pytest.mark.slow] if i >= 4 else []) for i in range(24)]


@pytest.mark.parametrize('trial', TRIALS)
def test_killed_at_any_moment(coco_folder, tmp_path, whole, trial):
    """Moments are random; every other is amid the writing of a checkpoint, or between two moves of a folder."""
    run = tmp_path / 'run'
    options = ['--data-dir', coco_folder, '--output', run, '--resume']
    chance = random.Random(trial)
    if trial % 2 == 0:
        module, function = chance.choice([('checkpoint', 'save_file'), ('os', 'rename')])
        process = start(*options, kill_at=(module, function, chance.randint(1, 24)))
        assert process.wait(120) == -signal.SIGKILL
    else:
        process = start(*options)
        wait_for_checkpoint(process, run)
        time.sleep(chance.uniform(0, whole[1]))
        process.kill()
        process.wait()
    assert train(*options) == 0
    assert_same(run, whole[0])
    assert len(list((run / 'checkpoints').iterdir())) <= 2


@pytest.mark.parametrize('number, workers', [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGTERM, 1)])
def test_stopped_by_a_scheduler(coco_folder, tmp_path, whole, number, workers):
    """With workers they get the signal too, as from timeout or Slurm."""
    options = ['--data-dir', coco_folder, '--output', tmp_path / 'run', '--resume']
    process = start(*options, '--workers', workers)
    wait_for_checkpoint(process, tmp_path / 'run')
    os.killpg(process.pid, number)
    assert process.wait(120) == 75
    assert 'stopped by a signal' in (tmp_path / 'run' / 'train.log').read_text()
    assert train(*options) == 0
    assert_same(tmp_path / 'run', whole[0])


def test_full_disk_leaves_the_last_good_checkpoint(monkeypatch, capsys, coco_folder, tmp_path, whole):
    """The space ends within the writing of the sixth checkpoint."""
    run = tmp_path / 'run'

    def fill_up(program):
        without_report(program)
        original, calls = checkpoint_module.save_file, []

        def no_space(tensors, file):
            calls.append(file)
            if len(calls) == 6:
                Path(file).write_bytes(b'half')
                raise OSError(28, 'No space left on device')
            return original(tensors, file)

        monkeypatch.setattr(checkpoint_module, 'save_file', no_space)

    assert train('--data-dir', coco_folder, '--output', run, prepare=fill_up) == 2
    error = capsys.readouterr().err
    assert 'No space left on device' in error and str(latest_checkpoint(run)) in error
    assert latest_checkpoint(run).name == f'{5:09d}'
    monkeypatch.undo()
    assert train('--data-dir', coco_folder, '--output', run, '--resume') == 0
    assert_same(run, whole[0])


@pytest.mark.skipif(not Path('/dev/shm').is_dir() or os.geteuid() != 0, reason='mounts a small tmpfs, as root')
def test_small_tmpfs(coco_folder, tmp_path, whole):
    disk = tmp_path / 'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=12m', 'tmpfs', disk], capture_output=True).returncode:
        pytest.skip('no tmpfs can be mounted here')
    try:
        process = start('--data-dir', coco_folder, '--output', disk / 'run', '--keep', '100')
        assert process.wait(120) == 2
        saved = latest_checkpoint(disk / 'run')
        assert saved is not None
        shutil.copytree(disk / 'run', tmp_path / 'run')
    finally:
        subprocess.run(['umount', disk], check=True)
    assert train('--data-dir', coco_folder, '--output', tmp_path / 'run', '--resume') == 0
    assert_same(tmp_path / 'run', whole[0])


def test_read_only_folder(coco_folder, tmp_path, capsys):
    (tmp_path / 'file').write_text('in the way')
    assert train('--data-dir', coco_folder, '--output', tmp_path / 'file' / 'run') == 2
    assert str(tmp_path / 'file') in capsys.readouterr().err


def test_damaged_checkpoints_are_named(coco_folder, tmp_path, capsys):
    options = ['--data-dir', coco_folder, '--output', tmp_path / 'run']
    assert train(*options, '--epochs', '1') == 0
    newest = latest_checkpoint(tmp_path / 'run')
    progress = (newest / 'progress.json').read_text()
    (newest / 'progress.json').write_text(progress[:40])
    assert train(*options, '--resume') == 2
    assert str(newest) in capsys.readouterr().err
    (newest / 'progress.json').write_text(json.dumps({**json.loads(progress), 'class_names': ['a']}))
    assert train(*options, '--resume') == 2
    assert 'is of 1 classes' in capsys.readouterr().err
    (newest / 'progress.json').write_text(progress)
    weights = (newest / 'model.safetensors').read_bytes()
    (newest / 'model.safetensors').write_bytes(weights[:100])
    assert train(*options, '--resume') == 2
    assert 'is damaged' in capsys.readouterr().err


def test_refused_resumption_leaves_the_run_as_it_was(monkeypatch, capsys, coco_folder, tmp_path):
    run = tmp_path / 'run'
    assert train('--data-dir', coco_folder, '--output', run, '--epochs', '1') == 0
    before = (run / 'config.yaml').read_text()
    for options, words in (
            (['--model-kwargs', 'embed_dim=32'], 'does not fit the model'),
            (['--opt', 'sgd'], 'was begun with --opt adamw, it cannot go on with sgd'),
            (['--weight-decay', '0.5'], 'begun with --weight-decay 0.05'),
            (['--output', tmp_path / 'other'], 'leave --output out')):
        assert run_here(monkeypatch, 'train', '--resume', run, '--epochs', '2', *options) == 2
        assert words in capsys.readouterr().err
        assert (run / 'config.yaml').read_text() == before


def test_another_number_of_processes_goes_on_and_says_so(coco_folder, tmp_path, whole):
    run = tmp_path / 'run'
    process = start('--data-dir', coco_folder, '--output', run)
    wait_for_checkpoint(process, run)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75
    result = launch(SCRIPTS / 'train.py', *OPTIONS, '--data-dir', coco_folder, '--output', run, '--resume', processes=2)
    assert 'it ran on 1 process(es) and goes on with 2' in result.stdout
    assert len((run / 'history.csv').read_text().splitlines()) == 4


def test_the_folder_is_all_that_a_resumption_needs(monkeypatch, capsys, coco_folder, tmp_path, whole):
    run = tmp_path / 'run'
    process = start('--data-dir', coco_folder, '--output', run)
    wait_for_checkpoint(process, run)
    process.kill()
    process.wait()
    assert run_here(monkeypatch, 'train', '--resume', run, '--batch-size', '8', prepare=without_report) == 2
    assert 'Resume with the same data and --batch-size' in capsys.readouterr().err
    assert run_here(monkeypatch, 'train', '--resume', run, prepare=without_report) == 0
    assert_same(run, whole[0])
    assert run_here(monkeypatch, 'train', '--resume', tmp_path / 'none') == 2
    assert 'config.yaml' in capsys.readouterr().err


def test_workers_change_nothing(coco_folder, tmp_path, whole):
    """Augmentations depend on seed, epoch and index: two workers draw what the main process draws."""
    run = tmp_path / 'run'
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true'}
    subprocess.run(
        [sys.executable, SCRIPTS / 'train.py', *OPTIONS, '--data-dir', coco_folder, '--output', run, '--workers', '2'],
        env=env, check=True, capture_output=True)
    assert_same(run, whole[0])


def test_seeds():
    class Noise(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return random.random(), float(np.random.rand()), float(torch.rand(()))

    samples = SeededSamples(Noise(), seed=0)
    seed_step(0, 1, 2, 3)
    outside = random.random(), float(np.random.rand()), float(torch.rand(()))
    seed_step(0, 1, 2, 3)
    first = samples[1]
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == outside
    assert samples[1] == first and samples[2] != first
    samples.epoch.fill_(1)
    assert samples[1] != first
    assert SeededSamples(Noise(), seed=1)[1] != first
