"""Losses that are not finite, and too little memory."""
import pytest
import torch
from accelerate import Accelerator
from helpers import TINY, run_here
from safetensors.torch import load_file

from timm_fan.processes import StopRequest
from timm_fan.training import Watch, training


@pytest.fixture
def poison(monkeypatch):
    """Make the loss NaN from an update on, for `count` updates."""
    def prepare(update: int, count: int = 1):
        create_loss, calls = training.create_loss, []

        def create(*args, **kwargs):
            criterion = create_loss(*args, **kwargs)
            forward = criterion.forward

            def poisoned(logits, targets):
                calls.append(1)
                bad = update <= len(calls) < update + count
                return forward(logits, targets) * (float('nan') if bad else 1.)

            criterion.forward = poisoned
            return criterion

        monkeypatch.setattr(training, 'create_loss', create)
    return prepare


def test_a_loss_of_nan_stops_before_it_does_harm(monkeypatch, capsys, coco_folder, tmp_path, poison):
    run = tmp_path / 'run'
    options = [*TINY, '--checkpoint-every', '1', '--data-dir', coco_folder, '--output', run, '--no-report']
    poison(3)
    assert run_here(monkeypatch, 'train', *options) == 2
    error = capsys.readouterr().err
    assert 'The loss is nan in epoch 1, update 3, lr ' in error and error.count('.jpg') == 8
    assert '--non-finite skip' in error and 'Traceback' not in error
    monkeypatch.undo()
    assert run_here(monkeypatch, 'train', *options, '--resume') == 0
    assert all(t.isfinite().all() for t in load_file(run / 'last' / 'model.safetensors').values())


def test_skipped_updates(monkeypatch, capsys, coco_folder, tmp_path, poison):
    options = [*TINY, '--epochs', '4', '--non-finite', 'skip', '--data-dir', coco_folder, '--no-report', '--output']
    poison(2, 3)
    assert run_here(monkeypatch, 'train', *options, tmp_path / 'some') == 0
    assert (tmp_path / 'some' / 'train.log').read_text().count('is skipped, its loss is not finite') == 3
    weights = load_file(tmp_path / 'some' / 'last' / 'model.safetensors')
    assert all(t.isfinite().all() for t in weights.values())
    monkeypatch.undo()
    poison(2, 99)
    assert run_here(monkeypatch, 'train', *options, tmp_path / 'all') == 2
    assert 'for the 10th time in a row' in capsys.readouterr().err


def test_a_loss_that_explodes_is_warned_of_once(caplog):
    watch = Watch(Accelerator(cpu=True), StopRequest(), 'stop', str)
    for update, losses in enumerate([(0.6, 0.8), (20., 30.), (699., 699.), (701., 703.), (1e9, 1e9)]):
        for loss in losses:
            watch.add(torch.tensor(loss), torch.tensor([0]))
        assert watch.check(f'update {update}') == (True, False)
    [record] = caplog.records
    assert record.getMessage() == 'the loss has grown from 0.7 to 702 in update 3: lower --lr, or set --clip-grad'


def test_out_of_memory_names_the_remedies(monkeypatch, capsys, coco_folder, tmp_path):
    def small_memory(module):
        create_network = module.create_network

        def create(*args):
            network = create_network(*args)

            def full(_, inputs):
                if len(inputs[0]) > 3:
                    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.\nMore about it.')

            network.model.register_forward_pre_hook(full)
            return network

        module.create_network = create

    run = tmp_path / 'run'
    options = [*TINY, '--data-dir', coco_folder, '--output']
    assert run_here(monkeypatch, 'train', *options, run, prepare=small_memory) == 2
    assert capsys.readouterr().err.endswith(
        'error: Out of memory with 8 images at once (CUDA out of memory. Tried to allocate 2 GiB.). Raise'
        ' --grad-accum-steps, which does not change the update, lower --batch-size or --img-size, or set'
        ' --grad-checkpointing.\n')
    remedy = ['--grad-accum-steps', '4', '--no-report']
    assert run_here(monkeypatch, 'train', *options, tmp_path / 'other', *remedy, prepare=small_memory) == 0
