"""Several processes train as one does, on the same batches."""
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from helpers import ROOT, SCRIPTS, TINY, history, launch, write_small_coco
from safetensors.torch import load_file

from timm_fan import InputError
from timm_fan.training import TrainingOptions
from timm_fan.training.engine import _check_engine

# BatchNorm sees the part of a process only: it is frozen here, except in the test that shows the difference
FROZEN = """
import os, runpy, sys
import timm_fan.training.network as network
from timm.layers import freeze_batch_norm_2d
create_model = network.create_model
network.create_model = lambda *args, **kwargs: freeze_batch_norm_2d(create_model(*args, **kwargs))
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name='__main__')
"""
# accelerate shards on accelerators only, so the CPU pretends to be one
SHARDED = """
from accelerate.state import PartialState
from accelerate.utils import DistributedType
PartialState(cpu=True)
PartialState._shared_state['distributed_type'] = DistributedType.MULTI_GPU
""" + FROZEN
# two updates per epoch; plain SGD with momentum keeps the gradients in its first buffer
OPTIONS = [
    *TINY, '--epochs', '5', '--batch-size', '12', '--opt', 'momentum', '--lr', '0.02', '--clip-grad', '1',
    '--warmup-epochs', '1', '--checkpoint-every', '1', '--keep', '100', '--aa', 'rand-m7-mstd0.5']


@pytest.fixture(scope='module')
def frozen(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp('program') / 'frozen.py'
    file.write_text(FROZEN)
    return file


@pytest.fixture(scope='module')
def alone(frozen, coco_folder, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp('runs') / 'one'
    launch(frozen, SCRIPTS / 'train.py', *OPTIONS, '--data-dir', coco_folder, '--output', run)
    return run


def steps(run: Path):
    """Weights and momentum after each update."""
    found = []
    for folder in sorted((run / 'checkpoints').iterdir()):
        optimizer = torch.load(folder / 'optimizer.bin', weights_only=True)
        momentum = [state['momentum_buffer'] for _, state in sorted(optimizer['state'].items())]
        found.append((load_file(folder / 'model.safetensors'), momentum))
    return found


def difference(first: Path, second: Path) -> float:
    """Largest relative difference of a tensor of weights or momentum after any of the ten updates."""
    pairs = list(zip(steps(first), steps(second), strict=True))
    assert len(pairs) == 10
    largest = 0.
    for one, other in pairs:
        tensors = [(one[0][k], other[0][k]) for k in one[0] if one[0][k].is_floating_point()]
        for a, b in tensors + list(zip(one[1], other[1], strict=True)):
            largest = max(largest, float((a - b).norm() / (a.norm() + 1e-6)))
    return largest


@pytest.mark.parametrize('processes, options', [(2, []), (3, []), (2, ['--grad-accum-steps', '3'])])
def test_gradients_weights_rates_and_scores_are_those_of_one_process(
        frozen, alone, coco_folder, tmp_path, processes, options):
    run = tmp_path / 'run'
    launch(
        frozen, SCRIPTS / 'train.py', *OPTIONS, *options, '--data-dir', coco_folder, '--output', run,
        processes=processes)
    assert difference(alone, run) < 1e-3
    for one, other in zip(history(alone), history(run), strict=True):
        assert one['lr'] == other['lr']
        assert one == pytest.approx(other, abs=1e-3)


def test_two_processes_train_and_evaluate_all_images(coco_folder, tmp_path):
    result = launch(SCRIPTS / 'train.py', *TINY, '--data-dir', coco_folder, '--output', tmp_path / 'two', processes=2)
    assert 'cpu on 2 process(es)' in result.stdout
    scores = json.loads((tmp_path / 'two' / 'report' / 'metrics.json').read_text())
    assert scores['num_images'] == 13
    result = launch(
        SCRIPTS / 'validate.py', tmp_path / 'two' / 'best', '--data', 'coco2014', '--data-dir', coco_folder,
        '--workers', '0', '--json')
    alone = json.loads(result.stdout[result.stdout.index('{'):])
    assert alone['mAP'] == pytest.approx(scores['mAP'], abs=1e-6)
    assert alone['top3'] == pytest.approx(scores['top3'], abs=1e-6)


def test_batch_norm_is_what_differs(alone, coco_folder, tmp_path):
    """Also shows that the comparison above can fail."""
    runs = []
    for processes in (0, 2):
        runs.append(tmp_path / f'run{processes}')
        launch(
            SCRIPTS / 'train.py', *OPTIONS, '--data-dir', coco_folder, '--output', runs[-1], processes=processes)
    assert difference(*runs) > 1e-2


@pytest.mark.parametrize('num_val', [1, 2, 4])
def test_fewer_images_than_fill_every_process(coco_folder, tmp_path, num_val):
    data = write_small_coco(tmp_path / 'coco', num_train=13, num_val=num_val)
    run = tmp_path / 'run'
    options = [*TINY, '--epochs', '1', '--batch-size', '6', '--data-dir', data, '--output', run]
    launch(SCRIPTS / 'train.py', *options, processes=3)
    result = launch(
        SCRIPTS / 'validate.py', run, '--data', 'coco2014', '--data-dir', data, '--workers', '0', '--batch-size', '2',
        '--bootstrap', '0', processes=3)
    assert f'{num_val} images' in result.stdout


def test_backbone_with_unused_parameters(coco_folder, tmp_path):
    """DistributedDataParallel waits for the gradient of every parameter that is not frozen."""
    result = launch(
        SCRIPTS / 'train.py', *TINY, '--epochs', '1', '--backbone', 'pit_ti_224', '--img-size', '224', '--data-dir',
        coco_folder, '--output', tmp_path / 'run', processes=2)
    assert 'parameters do not affect the logits and are frozen' in result.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def test_two_launchers_of_the_multi_node_config(coco_folder, tmp_path):
    """Each as on its own machine, with CPUs in place of GPUs."""
    config = yaml.safe_load((SCRIPTS / 'configs' / 'accelerate' / 'multi_node.yaml').read_text())
    config.update(num_processes=2, main_process_ip='127.0.0.1', main_process_port=free_port())
    file = tmp_path / 'multi_node.yaml'
    file.write_text(yaml.safe_dump(config))
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true'}
    run = tmp_path / 'run'
    launchers = [
        subprocess.Popen(
            [sys.executable, '-m', 'accelerate.commands.launch', '--config_file', file, '--machine_rank', str(rank),
             SCRIPTS / 'train.py', *TINY, '--data-dir', coco_folder, '--output', run],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)]
    outputs = [launcher.communicate(timeout=240)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs[0][-2000:] + outputs[1][-2000:]
    assert 'cpu on 2 process(es)' in outputs[0] and len(history(run)) == 2


def last_weights(run: Path):
    return load_file(run / 'last' / 'model.safetensors')


@pytest.mark.skipif(
    tuple(map(int, accelerate.__version__.split('.')[:2])) < (1, 6), reason='FSDP2 came with accelerate 1.6')
def test_sharded_training_gives_the_weights_of_one_process_and_resumes(alone, coco_folder, tmp_path):
    config = yaml.safe_load((SCRIPTS / 'configs' / 'accelerate' / 'fsdp2.yaml').read_text())
    file, program, run = tmp_path / 'fsdp2.yaml', tmp_path / 'sharded.py', tmp_path / 'run'
    file.write_text(yaml.safe_dump({**config, 'num_processes': 2, 'main_process_port': free_port()}))
    program.write_text(SHARDED)
    command = [
        '-m', 'accelerate.commands.launch', '--config_file', file, program, SCRIPTS / 'train.py', *OPTIONS,
        '--data-dir', coco_folder, '--output', run]
    launch(*command)
    assert (run / 'checkpoints' / f'{10:09d}' / 'pytorch_model_fsdp.bin').is_file()
    whole, expected = last_weights(run), last_weights(alone)
    for name, tensor in expected.items():
        assert torch.allclose(whole[name], tensor, rtol=1e-3, atol=1e-4), name
    for number in range(4, 11):
        shutil.rmtree(run / 'checkpoints' / f'{number:09d}')
    assert 'after epoch 1 and 1 updates' in launch(*command, '--resume').stdout
    for name, tensor in last_weights(run).items():
        assert torch.allclose(whole[name], tensor, rtol=1e-5, atol=1e-6), name
    result = launch(*command, '--ema-decay', '0.9', '--resume', check=False)
    assert result.returncode and '--ema-decay is not supported with FSDP' in result.stderr


@pytest.mark.parametrize('options', [dict(ema_decay=0.9), dict(cache_features=2, backbone_lr=0)])
def test_what_sharded_training_does_not_support(options):
    plugin = SimpleNamespace(fsdp_version=2, state_dict_type=SimpleNamespace(name='FULL_STATE_DICT'))
    sharded = SimpleNamespace(
        distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin), num_processes=1)
    with pytest.raises(InputError, match=f'`{next(iter(options))}` is not supported with FSDP'):
        _check_engine(sharded, TrainingOptions(data='scenes', **options))


@pytest.mark.parametrize('file', sorted((SCRIPTS / 'configs' / 'accelerate').glob('*.yaml')), ids=lambda p: p.stem)
def test_accelerate_reads_its_configs(file):
    config = load_config_from_file(str(file))
    assert config.num_processes >= 1
    # train.py decides about it, unless the user asks accelerate
    assert 'mixed_precision' not in yaml.safe_load(file.read_text())
