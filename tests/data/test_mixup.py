import numpy as np
import pytest
import torch
from timm.data import Mixup

from timm_fan.data import MultiLabelMixup


@pytest.fixture
def targets():
    return torch.tensor([[1., 0, -1, 0], [0, 1, 1, -1], [0, 0, 1, 0], [-1, 1, 0, 0]])


@pytest.mark.parametrize('mode', ['batch', 'elem', 'pair'])
@pytest.mark.parametrize('alphas', [dict(mixup_alpha=0.8, cutmix_alpha=0.), dict(mixup_alpha=0., cutmix_alpha=1.)])
def test_mixup_keeps_unknown_labels_unknown(mode, alphas, targets):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 64, 64)
    np.random.seed(4)
    x, mixed = MultiLabelMixup(4, mode=mode, **alphas)(images.clone(), targets)
    np.random.seed(4)
    expected_x, expected = Mixup(
        num_classes=4, multi_label=True, label_smoothing=0., mode=mode, **alphas)(images.clone(), targets.clamp(min=0))
    assert torch.equal(x, expected_x)
    unknown = (targets < 0) | (targets.flip(0) < 0)
    assert (mixed[unknown] == -1).all() and unknown.sum() == 6
    torch.testing.assert_close(mixed[~unknown], expected[~unknown])


def test_targets_that_are_not_mixed_are_unchanged(targets):
    _, mixed = MultiLabelMixup(4, prob=0.)(torch.randn(4, 3, 8, 8), targets.clone())
    assert torch.equal(mixed, targets)
