"""What is in a checkpoint, and damaged ones."""
import json
import pickle
from pathlib import Path

import torch
from helpers import TINY, run_here, run_killed
from safetensors.torch import load_file

from timm_fan.models import load_model
from timm_fan.training import RunFolder


def test_pickles_in_a_checkpoint_are_not_executed(monkeypatch, capsys, coco_folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / 'executed',)

    run = tmp_path / 'run'
    options = [*TINY, '--data-dir', coco_folder, '--output', run, '--no-report']
    assert run_here(monkeypatch, 'train', *options, '--epochs', '1') == 0
    [checkpoint] = (run / 'checkpoints').iterdir()
    # the random states are not needed, because those of every step follow from the seed
    for name, code in (('optimizer.bin', 2), ('random_states_0.pkl', 0)):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(pickle.dumps(Evil()))
        assert run_here(monkeypatch, 'train', *options, '--resume') == code, name
        assert ('damaged' in capsys.readouterr().err) == (code == 2) and not (tmp_path / 'executed').exists()
        (checkpoint / name).write_bytes(content)


def test_damaged_checkpoints_are_named(monkeypatch, capsys, coco_folder, tmp_path):
    options = [*TINY, '--data-dir', coco_folder, '--output', tmp_path / 'run', '--no-report']
    assert run_here(monkeypatch, 'train', *options, '--epochs', '1') == 0
    newest = RunFolder(tmp_path / 'run').latest_checkpoint()

    def error() -> str:
        assert run_here(monkeypatch, 'train', *options, '--resume') == 2
        return capsys.readouterr().err

    progress = (newest / 'progress.json').read_text()
    (newest / 'progress.json').write_text(progress[:40])
    assert f'The checkpoint {newest} is damaged' in error()
    (newest / 'progress.json').write_text(json.dumps({**json.loads(progress), 'class_names': ['a']}))
    assert 'was saved for 1 classes' in error()
    (newest / 'progress.json').write_text(progress)
    weights = (newest / 'model.safetensors').read_bytes()
    (newest / 'model.safetensors').write_bytes(weights[:100])
    assert f'The checkpoint {newest} is damaged' in error()


def test_a_backbone_that_shares_tensors_is_resumed(monkeypatch, coco_folder, tmp_path):
    """CoaT has tensors under two names, of which accelerate saves one."""
    options = [
        *TINY, '--backbone', 'coat_tiny', '--img-size', '64', '--model-kwargs', 'embed_dim=16', '--batch-size', '16',
        '--ema-decay', '0.9', '--no-report', '--data-dir', coco_folder]
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    assert run_here(monkeypatch, 'train', *options, '--output', whole) == 0
    run_killed(monkeypatch, 1, *options, '--output', cut)
    assert run_here(monkeypatch, 'train', *options, '--output', cut, '--resume') == 0
    assert 'after epoch 1 and 0 updates' in (cut / 'train.log').read_text()
    assert (cut / 'history.csv').read_text() == (whole / 'history.csv').read_text()
    weights = load_file(whole / 'last' / 'model.safetensors')
    resumed = load_file(cut / 'last' / 'model.safetensors')
    assert weights.keys() == resumed.keys()
    for name, tensor in resumed.items():
        assert torch.equal(tensor, weights[name]), name
    shared = load_model(cut).state_dict()
    assert len({tensor.data_ptr() for tensor in shared.values()}) < len(shared)
    assert len(load_file(RunFolder(cut).latest_checkpoint() / 'model.safetensors')) < len(resumed)
