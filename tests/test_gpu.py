"""Tests that require a GPU: python -m pytest -m gpu"""
import json

import pytest
import torch
from helpers import SCRIPTS, TINY, history, launch, run_here

from timm_fan.layers import halve
from timm_fan.models import create_model

pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='requires a CUDA device')]


@pytest.mark.parametrize('lite', [False, True])
def test_logits_and_gradients_are_those_of_the_cpu(monkeypatch, lite):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    torch.manual_seed(0)
    model = create_model('fan_resnet18', lite=lite).double().train()
    x = torch.randn(4, 3, 96, 96, dtype=torch.double)
    found = {}
    for device in ('cpu', 'cuda'):
        model.zero_grad()
        model.to(device)
        logits = model(x.to(device, memory_format=torch.channels_last))
        logits.sigmoid().sum().backward()
        found[device] = [logits.detach().cpu(), *(p.grad.cpu().clone() for p in model.parameters())]
    for cpu, cuda in zip(found['cpu'], found['cuda']):
        torch.testing.assert_close(cpu, cuda, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize('size', [(6, 8), (5, 8), (7, 3)])
def test_halve_is_that_of_the_cpu(size):
    x = torch.randn(2, 5, *size, dtype=torch.double, requires_grad=True)
    moved = x.detach().cuda().to(memory_format=torch.channels_last).requires_grad_()
    for y in (x, moved):
        halve(y).square().sum().backward()
    torch.testing.assert_close(halve(moved).cpu(), halve(x))
    torch.testing.assert_close(moved.grad.cpu(), x.grad)


def test_benchmark_of_graphs(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.cuda.matmul, 'allow_tf32', False)
    tiny = ['--backbone', 'test_resnet', '--img-size', '64', '--rows', 'FAN', '--repeats', '3', '--device', 'cuda']
    options = ['--engines', 'eager', 'graph', '--results', tmp_path / 'r']
    assert run_here(monkeypatch, 'benchmark', 'model', 'fan', *tiny, *options) == 0
    eager, graph = (row for row in json.loads((tmp_path / 'r').read_text())['rows'] if row['row'] == 'FAN')
    assert graph['latency'] < eager['latency'] and 'training' not in graph


def test_training_evaluation_and_prediction(coco_folder, tmp_path):
    """Training in bfloat16, compiled and resumed. validate.py finds the same mAP, and predict.py runs."""
    run = tmp_path / 'run'
    options = ['--data-dir', coco_folder, '--output', run, '--mixed-precision', 'bf16', '--torchcompile']
    launch(SCRIPTS / 'train.py', *TINY, *options, '--epochs', '1', cpu=False)
    launch(SCRIPTS / 'train.py', '--resume', run, '--epochs', '2', cpu=False)
    rows = history(run)
    assert len(rows) == 2 and all(row['train_loss'] < 2 for row in rows)
    assert 'NVIDIA' in json.loads((run / 'run.json').read_text())['hardware']
    data = ['--data', 'coco2014', '--data-dir', coco_folder]
    report = launch(SCRIPTS / 'validate.py', run / 'last', *data, '--json', cpu=False)
    assert json.loads(report.stdout)['mAP'] == pytest.approx(rows[-1]['mAP'], abs=0.02)
    photo = next((coco_folder / 'val2014').glob('*.jpg'))
    assert photo.name in launch(SCRIPTS / 'predict.py', run, photo, cpu=False).stdout
