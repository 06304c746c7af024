"""The cost of the named models. A change is deliberate, and is made here too."""
import pytest
import timm
import torch

from timm_fan.cost import count_cost

# with 80 classes at the size of the model: millions of parameters and billions of multiply-adds, of the FAN and with
# lite=True
COSTS = {
    'fan_resnet18': (16.99, 13.325, 13.09, 7.531),
    'fan_resnet50': (47.43, 41.309, 31.82, 17.597),
    'fan_resnet101': (66.42, 56.158, 50.82, 32.446),
    'fan_vgg16': (37.34, 85.988, 21.74, 62.430),
    'fan_tresnet_l': (77.65, 67.994, 62.04, 44.766),
    'fan_efficientnet_b0': (5.12, 0.741, 4.14, 0.381),
    'fan_mobilenetv3_large_100': (4.68, 0.595, 3.70, 0.235),
    'fan_convnext_tiny': (33.79, 5.992, 29.89, 4.526),
    'fan_convnext_base': (110.40, 21.408, 94.80, 15.615),
    'fan_swin_tiny_patch4_window7_224': (33.49, 6.027, 29.59, 4.562),
    'fan_vit_base_patch16_224': (103.87, 20.764, 93.25, 18.683),
}


def cost(name, **kwargs):
    model = timm.create_model(name, num_classes=80, device='meta', **kwargs).eval()
    return count_cost(model, model.pretrained_cfg['input_size'])


@pytest.mark.parametrize('name', timm.list_models('fan_*', module='fan'))
def test_cost_of_the_named_models_is_known(name):
    found = [cost(name), cost(name, lite=True)]
    found_values = [v for c in found for v in (c.parameters / 1e6, c.multiply_adds / 1e9)]
    assert found_values == pytest.approx(COSTS[name], rel=2e-3)
    assert found[1].multiply_adds < 1.15 * cost(name, frn=False, cln=False).multiply_adds


def test_memory_layout_does_not_change_the_count():
    model = timm.create_model('fan', backbone='test_resnet', num_classes=5).eval()
    expected = count_cost(model, (3, 64, 64))
    assert count_cost(model.to(memory_format=torch.channels_last), (3, 64, 64)) == expected
