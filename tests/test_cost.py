"""The cost of the named models. A change is deliberate, and is made here too."""
import pytest
import timm
import torch
from helpers import PRINTED

from timm_fan.cost import count_cost

# with 80 classes at the size of the model: millions of parameters and billions of multiply-adds, of the default FAN and
# of the one that the paper prints
COSTS = {
    'fan_resnet18': (12.79, 7.493, 16.81, 13.324),
    'fan_resnet50': (30.75, 17.460, 46.89, 41.309),
    'fan_resnet101': (49.74, 32.308, 65.89, 56.158),
    'fan_vgg16': (20.78, 62.268, 37.05, 85.987),
    'fan_tresnet_l': (60.94, 44.634, 77.05, 67.993),
    'fan_efficientnet_b0': (4.034, 0.3811, 5.013, 0.7409),
    'fan_tf_efficientnet_lite2': (4.805, 0.9426, 5.782, 1.5393),
    'fan_mobilenetv3_large_100': (3.54, 0.237, 4.47, 0.595),
    'fan_convnext_tiny': (29.57, 4.521, 33.57, 5.991),
    'fan_convnext_base': (93.81, 15.584, 110.04, 21.408),
    'fan_swin_tiny_patch4_window7_224': (29.27, 4.556, 33.27, 6.026),
    'fan_vit_base_patch16_224': (92.28, 18.526, 103.55, 20.764),
}


def cost(name, **kwargs):
    model = timm.create_model(name, num_classes=80, device='meta', **kwargs).eval()
    return count_cost(model, model.pretrained_cfg['input_size'])


@pytest.mark.parametrize('name', timm.list_models('fan_*', module='fan'))
def test_cost_of_the_named_models_is_known(name):
    found = [cost(name), cost(name, **PRINTED)]
    found_values = [v for c in found for v in (c.parameters / 1e6, c.multiply_adds / 1e9)]
    assert found_values == pytest.approx(COSTS[name], rel=2e-3)
    assert found[0].multiply_adds < 1.15 * cost(name, frn=False).multiply_adds


def test_memory_layout_does_not_change_the_count():
    model = timm.create_model('fan', backbone='test_resnet', num_classes=5).eval()
    expected = count_cost(model, (3, 64, 64))
    assert count_cost(model.to(memory_format=torch.channels_last), (3, 64, 64)) == expected
