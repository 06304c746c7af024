"""BatchNorm, folded into convolutions."""
import copy

import pytest
import timm
import torch
import torch.nn as nn
from helpers import TINY_BACKBONES, small_fan
from timm.layers import BatchNormAct2d

from timm_fan.prediction import fold_batch_norms


def draw_norms(model):
    """Statistics and weights that are not those of a new BatchNorm."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def count_norms(model):
    return sum(isinstance(module, (nn.BatchNorm2d, BatchNormAct2d)) for module in model.modules())


@pytest.mark.parametrize('backbone', TINY_BACKBONES)
def test_logits_stay(backbone):
    model = draw_norms(small_fan(backbone))
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norms(model)
    images = torch.randn(2, *model.pretrained_cfg['input_size'])
    with torch.no_grad():
        torch.testing.assert_close(folded(images), model(images), atol=1e-4, rtol=1e-4)
        features = folded.forward_features(images)
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(folded.forward_head(features, pre_logits=True), expected, atol=1e-4, rtol=1e-4)
    if backbone == 'test_coatnet':  # the BatchNorm after its stem is in a branch
        assert folded is model
    else:
        assert count_norms(folded) < count_norms(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet', 'test_vit', 'test_convnext'])
def test_timm_models(name):
    model = draw_norms(timm.create_model(name, num_classes=5))
    folded = fold_batch_norms(model)
    images = torch.randn(2, *model.pretrained_cfg['input_size'])
    with torch.no_grad():
        torch.testing.assert_close(folded(images), model(images), atol=1e-4, rtol=1e-4)
    assert count_norms(folded) == 0


class Branches(nn.Module):
    """Two convolutions, of which the results of one go to a BatchNorm and elsewhere."""
    pretrained_cfg = dict(input_size=(3, 8, 8))

    def __init__(self, twice):
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), twice

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + (self.conv(x.flip(-1)) if self.twice else y)


@pytest.mark.parametrize('twice', [False, True])
def test_convolutions_with_other_uses_stay(twice):
    model = draw_norms(Branches(twice))
    assert fold_batch_norms(model) is model


@pytest.mark.parametrize('kwargs', [dict(affine=False), dict(track_running_stats=False)])
def test_batch_norms_without_parameters(kwargs):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, **kwargs))
    model.pretrained_cfg = dict(input_size=(3, 8, 8))
    draw_norms(model)
    folded = fold_batch_norms(model)
    assert (folded is model) == (kwargs.get('track_running_stats') is False)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(folded(images), model(images), atol=1e-5, rtol=1e-5)
