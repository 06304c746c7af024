import math

import pytest
import torch
import torch.nn as nn

from timm_fan import InputError
from timm_fan.data.packed import SparseLabels
from timm_fan.training import LOSSES, create_loss
from timm_fan.training.loss import WEIGHTED_LOSSES, balanced_weights


def make(name, **kwargs):
    counts = dict(class_counts=[3, 5, 2, 9], num_samples=20) if name == 'db' else {}
    return create_loss(name, **counts, **kwargs)


def batch():
    torch.manual_seed(0)
    targets = torch.tensor([[1., 0, -1, 0], [0, 1, 1, -1], [0, 0, 1, 0], [-1, 1, 0, 0]])
    return torch.randn(4, 4), targets


def test_bce_is_equation_6():
    logits, targets = torch.randn(3, 5), (torch.rand(3, 5) < 0.5).float()
    total = 0
    for i in range(3):
        for j in range(5):
            p = 1 / (1 + math.exp(-logits[i, j]))
            total -= (math.log(p) if targets[i, j] else math.log(1 - p)) / 15
    assert make('bce')(logits, targets).item() == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(make('bce')(logits, targets), nn.MultiLabelSoftMarginLoss()(logits, targets))


def test_focal_loss_by_hand():
    logits, targets = batch()
    p = logits.sigmoid()
    likelihood = torch.where(targets == 1, p, 1 - p)[targets >= 0]
    expected = (-(1 - likelihood) ** 2 * likelihood.log()).mean()
    torch.testing.assert_close(make('focal')(logits, targets), expected)


@pytest.mark.parametrize('name', LOSSES)
def test_unknown_labels_are_ignored(name):
    logits, targets = batch()
    unknown = targets < 0
    criterion = make(name)
    first = logits.clone().requires_grad_()
    loss = criterion(first, targets)
    loss.backward()
    assert loss.item() > 0
    assert (first.grad[unknown] == 0).all() and (first.grad[~unknown] != 0).any()
    for other in (-50., 1e4, 1e30):
        changed = logits.masked_fill(unknown, other).requires_grad_()
        again = criterion(changed, targets)
        again.backward()
        assert again.item() == pytest.approx(loss.item(), rel=1e-6)
        torch.testing.assert_close(changed.grad, first.grad)


@pytest.mark.parametrize('name', ['bce', 'asl', 'poly'])
def test_unknown_column_makes_no_difference(name):
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 3), (torch.rand(6, 3) < 0.4).float()
    wider = torch.cat([logits, torch.randn(6, 1)], 1), torch.cat([targets, -torch.ones(6, 1)], 1)
    torch.testing.assert_close(make(name)(*wider), make(name)(logits, targets))


@pytest.mark.parametrize('name', LOSSES)
def test_loss_of_unknown_labels_only_is_zero(name):
    logits = torch.randn(2, 4, requires_grad=True)
    loss = make(name)(logits, -torch.ones(2, 4))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert (logits.grad == 0).all()


def test_balanced_weights_by_hand():
    """Present, absent and unknown labels of four classes on 100 images."""
    counts = [(20, 60, 20), (80, 20, 0), (1, 99, 0), (0, 0, 100)]
    columns = [[1] * p + [0] * a + [-1] * u for p, a, u in counts]
    rows = (tuple([c for c in range(4) if columns[c][i] == value] for value in (1, 0, -1)) for i in range(100))
    weights = balanced_weights(SparseLabels(rows, 4))
    torch.testing.assert_close(weights, torch.tensor([3., 0.25, 20., 20.]))


@pytest.mark.parametrize('name', LOSSES)
def test_weights_of_positive_labels(name):
    weights = torch.tensor([3., 0.25, 20., 1.])
    if name not in WEIGHTED_LOSSES:
        with pytest.raises(InputError, match=f'`loss={name}` takes no weights'):
            make(name, pos_weight=weights)
        return
    logits, targets = batch()
    weighted, plain = (make(name, pos_weight=w)(logits, targets) for w in (weights, None))
    for i in range(4):  # each positive label adds its share of the plain loss once more for each unit of its weight
        one = torch.full((1, 4), -1.)
        one[0, i] = 1.
        share = make(name)(logits[:1], one), make(name, pos_weight=weights)(logits[:1], one)
        torch.testing.assert_close(share[1], weights[i] * share[0])
    assert weighted != plain


@pytest.mark.parametrize('arguments', [
    dict(name='hinge'), dict(name='zlpr', soft_targets=True), dict(name='twoway', smoothing=0.1)])
def test_impossible_losses_are_named(arguments):
    with pytest.raises(InputError, match=arguments['name']):
        create_loss(**arguments)
