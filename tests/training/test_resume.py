"""Training that is killed, stopped or short of disk space, and continues as if nothing had happened."""
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, SCRIPTS, TINY, history, launch, run_here, run_killed
from safetensors.torch import load_file

from timm_fan.training import RunFolder, checkpoint

OPTIONS = [
    *TINY, '--epochs', '3', '--batch-size', '4', '--ema-decay', '0.9', '--cutmix', '1', '--checkpoint-every', '1',
    '--aa', 'rand-m7-mstd0.5', '--model-kwargs', 'drop_rate=0.3', '--no-report']


def train(*args, prepare=lambda module: None) -> int:
    patch = pytest.MonkeyPatch()
    try:
        return run_here(patch, 'train', *OPTIONS, *args, prepare=prepare)
    finally:
        patch.undo()


# replaces a function of a module: before a certain call of it the process kills itself
KILLED = """
import os, runpy, signal, sys
import timm_fan.training.checkpoint
module = {'os': os, 'checkpoint': timm_fan.training.checkpoint}[sys.argv[1]]
name, last, calls = sys.argv[2], int(sys.argv[3]), []
original = getattr(module, name)
def counted(*args, **kwargs):
    calls.append(args)
    if len(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
setattr(module, name, counted)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background processes without one
sys.argv = sys.argv[4:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def start(*args, program=('-c', KILLED, 'os', 'rename', 0), **kwargs) -> subprocess.Popen:
    """Train in a process of its own, which is the first of a group."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true'}
    command = [sys.executable, *program, SCRIPTS / 'train.py', *OPTIONS, *args]
    return subprocess.Popen(list(map(str, command)), env=env, start_new_session=True, **{
        **dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), **kwargs})


def latest_checkpoint(run: Path):
    return RunFolder(run).latest_checkpoint()


def wait_for_checkpoint(process: subprocess.Popen, run: Path) -> None:
    while latest_checkpoint(run) is None and process.poll() is None:
        time.sleep(0.02)


def results(run: Path):
    weights = {name: load_file(run / name / 'model.safetensors') for name in ('best', 'last')}
    return (run / 'history.csv').read_text(), weights


def assert_same(run: Path, whole) -> None:
    text, weights = results(run)
    assert text == whole[0]
    for name, tensors in weights.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, whole[1][name][key]), (name, key)


@pytest.fixture(scope='module')
def whole(coco_folder, tmp_path_factory):
    """Results of a run that nothing interrupts, and its duration."""
    run = tmp_path_factory.mktemp('runs') / 'whole'
    started = time.time()
    assert train('--data-dir', coco_folder, '--output', run) == 0
    return results(run), time.time() - started


TRIALS = [pytest.param(i, marks=[pytest.mark.slow] if i >= 4 else []) for i in range(24)]


@pytest.mark.parametrize('trial', TRIALS)
def test_killed_at_any_moment(coco_folder, tmp_path, whole, trial):
    """Moments are random. Every other one is while a checkpoint is written, or between two moves of a folder."""
    run = tmp_path / 'run'
    options = ['--data-dir', coco_folder, '--output', run, '--resume']
    chance = random.Random(trial)
    if trial % 2 == 0:
        module, function = chance.choice([('checkpoint', 'save_file'), ('os', 'rename')])
        process = start(*options, program=('-c', KILLED, module, function, chance.randint(1, 24)))
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


@pytest.mark.parametrize('number, workers', [
    (signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGTERM, 1), (signal.SIGINT, 0), (signal.SIGINT, 2)])
def test_stopped_by_a_signal(coco_folder, tmp_path, whole, number, workers):
    """Workers get the signal too, as from timeout, Slurm or a terminal."""
    run = tmp_path / 'run'
    options = ['--data-dir', coco_folder, '--output', run, '--resume']
    with start(*options, '--workers', workers, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_for_checkpoint(process, run)
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 75
    assert output.count(f'stopped by a signal; continue with --resume {run}\n') == 1, output
    assert 'Traceback' not in output and 'Error' not in output and 'interrupted' not in output, output
    assert 'stopped by a signal' in (run / 'train.log').read_text()
    assert train(*options) == 0
    assert_same(run, whole[0])


# an update that takes longer than a user waits
SLEEPING = """
import os, runpy, sys, time
from timm_fan.training import Training
def sleep(*args, **kwargs):
    print('asleep', flush=True)
    time.sleep(100)
Training.update = sleep
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_a_second_interrupt_stops_at_once(coco_folder, tmp_path):
    options = ['--data-dir', coco_folder, '--output', tmp_path / 'run', '--workers', '2']
    with start(*options, program=('-c', SLEEPING), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
               text=True) as process:
        assert any('asleep' in line for line in process.stdout)
        os.killpg(process.pid, signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert output.endswith('interrupted\n') and 'Traceback' not in output, output


def test_interrupted_while_scenes_are_drawn(tmp_path):
    """Nothing is left of the data set, and the next run draws it."""
    data = tmp_path / 'data'
    with start('--data', 'scenes', '--data-dir', data, '--output', tmp_path / 'run', stdout=subprocess.PIPE,
               stderr=subprocess.STDOUT, text=True) as process:
        while not list(data.glob('.scenes*/train/*')) and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output.endswith('interrupted\n') and 'Traceback' not in output, output
    assert not list(data.iterdir()) and not (tmp_path / 'run').exists()


def test_resume_gives_the_weights_of_one_run(monkeypatch, coco_folder, tmp_path):
    options = [*TINY, '--epochs', '3', '--data-dir', coco_folder, '--ema-decay', '0.9', '--cutmix', '1']
    assert run_here(monkeypatch, 'train', *options, '--output', tmp_path / 'whole') == 0
    run_killed(monkeypatch, 2, *options, '--output', tmp_path / 'cut')
    assert run_here(monkeypatch, 'train', *options, '--output', tmp_path / 'cut', '--resume') == 0
    assert [row['mAP'] for row in history(tmp_path / 'cut')] == [row['mAP'] for row in history(tmp_path / 'whole')]
    whole = load_file(tmp_path / 'whole' / 'last' / 'model.safetensors')
    for name, tensor in load_file(tmp_path / 'cut' / 'last' / 'model.safetensors').items():
        assert torch.equal(tensor, whole[name]), name


def test_full_disk_leaves_the_last_good_checkpoint(monkeypatch, capsys, coco_folder, tmp_path, whole):
    """There is no more space when the sixth checkpoint is written."""
    run = tmp_path / 'run'
    save_file, calls = checkpoint.save_file, []

    def no_space(tensors, file):
        calls.append(file)
        if len(calls) == 6:
            Path(file).write_bytes(b'half')
            raise OSError(28, 'No space left on device')
        return save_file(tensors, file)

    monkeypatch.setattr(checkpoint, 'save_file', no_space)
    assert train('--data-dir', coco_folder, '--output', run) == 2
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
        assert latest_checkpoint(disk / 'run') is not None
        shutil.copytree(disk / 'run', tmp_path / 'run')
    finally:
        subprocess.run(['umount', disk], check=True)
    assert train('--data-dir', coco_folder, '--output', tmp_path / 'run', '--resume') == 0
    assert_same(tmp_path / 'run', whole[0])


def test_refused_resumption_leaves_the_run_unchanged(monkeypatch, capsys, coco_folder, tmp_path):
    run = tmp_path / 'run'
    assert train('--data-dir', coco_folder, '--output', run, '--epochs', '1') == 0
    before = (run / 'config.yaml').read_text()
    for options, words in (
            (['--model-kwargs', 'embed_dim=32'], 'does not fit the model'),
            (['--opt', 'sgd'], 'was started with --opt adamw and cannot be resumed with sgd'),
            (['--weight-decay', '0.5'], 'was started with --weight-decay 0.05 '),
            (['--output', tmp_path / 'other'], 'leave --output out')):
        assert run_here(monkeypatch, 'train', '--resume', run, '--epochs', '2', *options) == 2
        assert words in capsys.readouterr().err
        assert (run / 'config.yaml').read_text() == before


def test_changed_options_are_recorded(monkeypatch, coco_folder, tmp_path):
    """The new rate is that of the schedule from then on."""
    run, options = tmp_path / 'run', [*TINY, '--data-dir', coco_folder, '--no-report']
    run_killed(monkeypatch, 1, *options, '--output', run)
    assert run_here(monkeypatch, 'train', '--resume', run, '--lr', '0.5', '--warmup-epochs', '0') == 0
    changed = json.loads((run / 'run.json').read_text())['changed_options']
    assert changed == dict(lr=[0.004, 0.5], warmup_epochs=[0.3, 0.0])
    assert 'lr is 0.5 now, and was 0.004' in (run / 'train.log').read_text()
    rates = [row['lr'] for row in history(run)]
    assert rates[0] < 0.004 and rates[1] == pytest.approx(0.5 * (1 + math.cos(math.pi)) / 2, abs=1e-6)


@pytest.mark.parametrize('options, message', [
    (['--backbone-lr', '0'], '--backbone-lr 0.003 and cannot be resumed with 0'),
    (['--freeze-bn'], '--freeze-bn False and cannot'),
    (['--backbone', 'test_vit'], '--backbone test_resnet and cannot be resumed with test_vit'),
    (['--backbone-weights', 'x.safetensors'], '--backbone-weights none and cannot')])
def test_options_of_the_start_are_refused(monkeypatch, capsys, run_folder, tmp_path, options, message):
    run = shutil.copytree(run_folder, tmp_path / 'run')
    assert run_here(monkeypatch, 'train', '--resume', run, '--epochs', '3', *options) == 2
    assert f'was started with {message}' in capsys.readouterr().err


def test_another_number_of_processes_continues_and_says_so(coco_folder, tmp_path):
    run = tmp_path / 'run'
    process = start('--data-dir', coco_folder, '--output', run)
    wait_for_checkpoint(process, run)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75
    result = launch(SCRIPTS / 'train.py', *OPTIONS, '--data-dir', coco_folder, '--output', run, '--resume', processes=2)
    assert 'it ran on 1 process(es) and continues with 2' in result.stdout
    assert len((run / 'history.csv').read_text().splitlines()) == 4


def test_the_folder_is_all_that_a_resumption_needs(monkeypatch, capsys, coco_folder, tmp_path, whole):
    run = tmp_path / 'run'
    process = start('--data-dir', coco_folder, '--output', run)
    wait_for_checkpoint(process, run)
    process.kill()
    process.wait()
    assert run_here(monkeypatch, 'train', '--resume', run, '--batch-size', '8') == 2
    assert 'Resume with the same data and --batch-size' in capsys.readouterr().err
    assert run_here(monkeypatch, 'train', '--resume', run) == 0
    assert_same(run, whole[0])
    assert run_here(monkeypatch, 'train', '--resume', tmp_path / 'none') == 2
    assert 'config.yaml' in capsys.readouterr().err


def test_workers_change_nothing(coco_folder, tmp_path, whole):
    """Augmentations depend on seed, epoch and index: two workers draw what the main process draws."""
    run = tmp_path / 'run'
    launch(SCRIPTS / 'train.py', *OPTIONS, '--data-dir', coco_folder, '--output', run, '--workers', '2')
    assert_same(run, whole[0])
