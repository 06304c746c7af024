"""predict.py killed at random moments, alone and on two processes, and resumed."""
import os
import random
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import List

import numpy as np
import pytest
from helpers import photo, run_here, save_small_fan

from timm_fan.prediction import PredictionFile

KINDS = ('labels.csv', 'labels.parquet', 'labels.jsonl')


@pytest.fixture(scope='module')
def model_folder(tmp_path_factory) -> Path:
    return save_small_fan(tmp_path_factory.mktemp('models') / 'model')


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> Path:
    """More batches than are loaded ahead, with unreadable images."""
    folder = tmp_path_factory.mktemp('photos')
    for i in range(60):
        photo(90 + i, 70).save(folder / f'{i:03d}.jpg')
    for i in (7, 30):
        (folder / f'{i:03d}.jpg').write_bytes(b'no image')
    return folder


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(('127.0.0.1', 0))
        return opened.getsockname()[1]


def start(monkeypatch, processes: int, *args) -> List[int]:
    """Start predict.py in forks of this process, which have imported everything; returns their ids."""
    port, ids = free_port(), []
    for rank in range(processes):
        pid = os.fork()
        if pid:
            ids.append(pid)
            continue
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            if processes > 1:
                os.environ.update(
                    WORLD_SIZE=str(processes), RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR='127.0.0.1',
                    LOCAL_WORLD_SIZE=str(processes), MASTER_PORT=str(port))
            code = run_here(monkeypatch, 'predict', *args)
        finally:
            os._exit(code)
    return ids


def wait(ids: List[int]) -> List[int]:
    """The exit codes, negative for those that were killed."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ids]


def kill(ids: List[int]) -> None:
    for pid in ids:
        os.kill(pid, signal.SIGKILL)


def killed_at_the_end(monkeypatch, *args) -> None:
    class Killed(BaseException):
        pass

    def killed(_self):
        raise Killed

    with monkeypatch.context() as context, pytest.raises(Killed):
        context.setattr(PredictionFile, 'finish', killed)
        run_here(context, 'predict', *args)


def check_kills(monkeypatch, model_folder, photos, folder, kind, processes, kills, seed) -> None:
    """Kill runs at random moments until `kills` were killed. The file is always that of an undisturbed run."""
    chance, killed = random.Random(seed), 0
    common = [model_folder, photos, '--threshold', '0', '--batch-size', '2', '--workers', '1', '--device', 'cpu']
    whole = [*common, '--output', folder / f'whole-{kind}', '--save-embeddings', folder / 'whole.npy']
    started = time.monotonic()
    assert wait(start(monkeypatch, processes, *whole)) == [0] * processes
    duration = time.monotonic() - started
    while killed < kills:
        output, embeddings = folder / kind, folder / 'embeddings.npy'
        run = [*common, '--output', output, '--save-embeddings', embeddings, '--resume']
        while True:
            ids = start(monkeypatch, processes, *run)
            if killed < kills:
                time.sleep(chance.uniform(0, duration))
                kill(ids)
                codes = wait(ids)
                killed += 1
                if codes != [0] * processes:
                    continue
            else:
                assert wait(ids) == [0] * processes
            break
        # the images themselves, whatever the order of the two runs
        assert output.read_bytes() == (folder / f'whole-{kind}').read_bytes()
        assert embeddings.read_bytes() == (folder / 'whole.npy').read_bytes()
        assert len(list(folder.iterdir())) == 4, list(folder.iterdir())
        output.unlink()
        embeddings.unlink()


def test_killed_and_resumed(monkeypatch, model_folder, photos, tmp_path):
    check_kills(monkeypatch, model_folder, photos, tmp_path, 'labels.csv', 1, kills=3, seed=0)
    rows = (tmp_path / 'whole-labels.csv').read_text(encoding='utf-8-sig').splitlines()[1:]
    assert [row.partition(',')[0] for row in rows] == [str(photos / f'{i:03d}.jpg') for i in range(60)]
    assert np.isnan(np.load(tmp_path / 'whole.npy')).any(axis=1).nonzero()[0].tolist() == [7, 30]


def test_two_processes_killed_and_resumed(monkeypatch, model_folder, photos, tmp_path):
    check_kills(monkeypatch, model_folder, photos, tmp_path, 'labels.parquet', 2, kills=2, seed=1)


def test_two_processes_write_the_file_of_one(monkeypatch, model_folder, photos, tmp_path):
    for processes in (1, 2):
        options = '--batch-size', '4', '--workers', '0', '--device', 'cpu', '--output', tmp_path / f'{processes}.csv'
        assert wait(start(monkeypatch, processes, model_folder, photos, *options)) == [0] * processes
    assert (tmp_path / '1.csv').read_bytes() == (tmp_path / '2.csv').read_bytes()


def test_no_image_of_two_processes_can_be_read(monkeypatch, model_folder, tmp_path):
    for i in range(3):
        (tmp_path / f'{i}.jpg').write_bytes(b'no image')
    options = '--batch-size', '1', '--workers', '0', '--device', 'cpu', '--output', tmp_path / 'labels.csv'
    assert wait(start(monkeypatch, 2, model_folder, tmp_path, *options)) == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
@pytest.mark.parametrize('kind', KINDS)
def test_killed_twenty_times(monkeypatch, model_folder, photos, tmp_path, kind, processes):
    check_kills(monkeypatch, model_folder, photos, tmp_path, kind, processes, kills=20, seed=processes)


def test_a_resumed_run_repeats_the_options(monkeypatch, capsys, model_folder, photos, tmp_path):
    output = tmp_path / 'labels.jsonl'
    [pid] = start(monkeypatch, 1, model_folder, photos, '--output', output, '--batch-size', '2')
    while not (output.exists() and output.stat().st_size):
        time.sleep(0.01)
    kill([pid])
    wait([pid])
    options = model_folder, photos, '--output', output
    assert run_here(monkeypatch, 'predict', *options) == 2
    assert f'--output {output} is unfinished: continue it with --resume' in capsys.readouterr().err
    assert run_here(monkeypatch, 'predict', *options, '--resume') == 2
    assert 'was started with batch_size 2, this is 4' in capsys.readouterr().err
    (photos.parent / 'more.jpg').write_bytes(b'')
    more = model_folder, photos, photos.parent / 'more.jpg', *options[2:], '--resume', '--batch-size', '2'
    assert run_here(monkeypatch, 'predict', *more) == 2
    assert 'was started with other images. Repeat the first command with --resume' in capsys.readouterr().err
    assert run_here(monkeypatch, 'predict', *options, '--resume', '--batch-size', '2') == 0
    assert len(output.read_text().splitlines()) == 60
    assert run_here(monkeypatch, 'predict', *options, '--resume', '--batch-size', '2') == 0
    assert f'{output} is complete, because there is no labels.jsonl.run.json' in capsys.readouterr().err


def test_embeddings_are_neither_replaced_nor_lost(monkeypatch, capsys, model_folder, photos, tmp_path):
    """Nothing is left of a run that is refused."""
    embeddings, common = tmp_path / 'x' / 'e.npy', (model_folder, photos, '--batch-size', '2', '--device', 'cpu')
    options = *common, '--output', tmp_path / 'a.csv', '--save-embeddings', embeddings
    assert run_here(monkeypatch, 'predict', *options) == 0
    before = embeddings.read_bytes()
    for resume in ([], ['--resume']):
        command = *common, '--output', tmp_path / 'b.csv', '--save-embeddings', embeddings, *resume
        assert run_here(monkeypatch, 'predict', *command) == 2
        assert f'--save-embeddings {embeddings} exists: choose another file' in capsys.readouterr().err
    assert embeddings.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.csv', 'x']
    command = *common, '--output', tmp_path / 'c.csv', '--save-embeddings', tmp_path / 'c.npy', '--resume'
    killed_at_the_end(monkeypatch, *command)
    (tmp_path / 'c.npy').rename(tmp_path / 'd.npy')
    assert run_here(monkeypatch, 'predict', *command) == 2
    assert f'c.npy is missing, but --output {tmp_path}/c.csv has results' in capsys.readouterr().err
    (tmp_path / 'd.npy').rename(tmp_path / 'c.npy')
    assert run_here(monkeypatch, 'predict', *command) == 0
    assert (tmp_path / 'c.npy').read_bytes() == before


def test_another_folder_of_a_data_set_is_not_mixed_in(monkeypatch, capsys, model_folder, coco_folder, tmp_path):
    shutil.copytree(coco_folder, tmp_path / 'other')
    options = model_folder, '--data', 'coco2014', '--output', tmp_path / 'a.csv', '--device', 'cpu'
    killed_at_the_end(monkeypatch, *options, '--data-dir', coco_folder)
    assert run_here(monkeypatch, 'predict', *options, '--data-dir', tmp_path / 'other', '--resume') == 2
    assert f'data_dir {coco_folder}' in capsys.readouterr().err
    assert run_here(monkeypatch, 'predict', *options, '--data-dir', coco_folder, '--resume') == 0
