"""The moving average of the weights, next to timm's."""
import pytest
import torch
from helpers import small_fan
from timm.utils import ModelEmaV3

from timm_fan.training.moving_average import MovingAverage


@pytest.mark.parametrize('frozen', [False, True])
def test_moving_average_equals_timms(frozen):
    model = small_fan()
    norms = [m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)] if frozen else []
    model.backbone.requires_grad_(not frozen)
    ours, timms = MovingAverage(model, 0.9, norms), ModelEmaV3(model, decay=0.9, use_warmup=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(1, 6):
        model.train()
        for norm in norms:
            norm.eval()
        model(torch.randn(2, 3, 64, 64)).sum().backward()
        optimizer.step()
        ours.update(model, step=step)
        timms.update(model, step=step)
    averages, weights = timms.module.state_dict(), model.state_dict()
    for name, average in ours.module.state_dict().items():
        assert torch.equal(average, averages[name]), name
    moving = [name for name, average in averages.items() if not torch.equal(average, weights[name])]
    assert any(name.startswith('head') for name in moving)
    assert any(name.startswith('backbone') for name in moving) != frozen
