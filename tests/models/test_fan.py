"""What is specific to the FAN: the sizes of the paper, its switches, its classifier, and stable training."""
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import PRINTED
from timm.data import resolve_model_data_config

from timm_fan import InputError

SWITCHES = [dict(frn=frn, cln=cln) for frn in (True, False) for cln in (True, False)]


def tiny(**kwargs):
    """With the default of `embed_dim`, which depends on the backbone."""
    return timm.create_model('fan', **{'backbone': 'test_resnet', 'num_classes': 7, **kwargs})


def test_names_are_registered():
    assert {'fan', 'fan_resnet50', 'fan_resnet101', 'fan_vgg16'} <= set(timm.list_models('fan*'))


@pytest.mark.parametrize('name, channels', [
    ('fan_resnet101', [512, 1024, 2048]), ('fan_resnet50', [512, 1024, 2048]), ('fan_vgg16', [512, 512, 512])])
def test_sizes_of_the_paper(name, channels):
    model = timm.create_model(name, device='meta', **PRINTED)
    assert model.backbone.channels == channels and model.backbone.reductions == [8, 16, 32]
    x = torch.zeros(2, 3, 448, 448, device='meta')
    assert model.forward_features(x).shape == (2, 512, 14, 14)
    assert model(x).shape == (2, 80)
    assert model.pretrained_cfg['input_size'] == (3, 448, 448)


def test_parameters_of_fan_resnet101():
    # an independent implementation has 65.9 M with 80 classes, of which ResNet-101 alone has 42.7 M
    count = sum(p.numel() for p in timm.create_model('fan_resnet101', device='meta', **PRINTED).parameters())
    assert count == pytest.approx(65.9e6, rel=2e-3)


@pytest.mark.parametrize('backbone', [
    'test_resnet', 'test_efficientnet', 'test_convnext', 'test_vit', 'swin_tiny_patch4_window7_224', 'densenet121'])
def test_any_backbone(backbone):
    model = timm.create_model('fan', backbone=backbone, num_classes=7, device='meta')
    x = torch.zeros(2, *model.pretrained_cfg['input_size'], device='meta')
    assert model(x).shape == (2, 7)
    assert model.pretrained_cfg['mean'] == timm.get_pretrained_cfg(backbone).mean
    assert model.embed_dim <= min(512, model.backbone.channels[-2])


@pytest.mark.parametrize('name', ['fan', 'fan_resnet50'])
def test_another_backbone_brings_its_preprocessing(name):
    model = timm.create_model(name, backbone='vit_tiny_patch16_224.augreg_in21k', device='meta')
    config = resolve_model_data_config(model)
    assert config['mean'] == (0.5, 0.5, 0.5) and config['input_size'] == (3, 224, 224)
    assert resolve_model_data_config(timm.create_model(name, device='meta'))['mean'] == (0.485, 0.456, 0.406)


@pytest.mark.parametrize('switches', SWITCHES, ids=str)
def test_switches(switches):
    model = tiny(**switches).train()
    x = torch.randn(2, 3, 97, 131)
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features and features.shape[2:] == (4, 5)
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_both_off_is_the_backbone_and_a_linear_layer():
    model = tiny(frn=False, cln=False, head='linear').eval()
    x = torch.randn(2, 3, 64, 64)
    pooled = model.backbone(x)[-1].mean((2, 3))
    expected = F.linear(pooled, model.head.fc.weight, model.head.fc.bias)
    torch.testing.assert_close(model(x), expected)


def test_without_frn_the_cln_gets_averaged_maps():
    model = tiny(frn=False, cln=True).eval()
    torch.nn.init.normal_(model.cln.g.weight)  # 0 in a new model
    x = torch.randn(2, 3, 64, 64)
    x2, x3, x4 = model.backbone(x)
    expected = model.cln(F.avg_pool2d(x2, 4), F.avg_pool2d(x3, 2), x4)
    torch.testing.assert_close(model.forward_features(x), expected)


def test_without_cln_the_levels_are_joined():
    model = tiny(cln=False, joint=False, head='linear').eval()
    x = torch.randn(2, 3, 64, 64)
    levels = model.frn(model.backbone(x))
    weights = model.head.fc.weight.split(model.embed_dim, dim=1)
    expected = model.head.fc.bias + sum(p.mean((2, 3)) @ w.T for p, w in zip(levels, weights))
    torch.testing.assert_close(model(x), expected)


def test_joint_shows_the_classifier_every_level():
    x = torch.randn(2, 3, 64, 64)
    for cln in (False, True):
        model = tiny(cln=cln).eval()
        maps = model.backbone(x)
        p2, p3, p4 = model.frn(maps)
        features = torch.cat([maps[-1], p2, p3, model.cln(p2, p3, p4) if cln else p4], dim=1)
        torch.testing.assert_close(model.forward_features(x), features)
        weight, bias = model.head.fc.weight, model.head.fc.bias
        highest = torch.einsum('bchw,nc->bnhw', features, weight).amax((2, 3))
        torch.testing.assert_close(model(x), F.linear(features.mean((2, 3)), weight, bias) + 0.5 * highest)


def test_drop_rates_and_other_arguments_reach_their_place():
    model = tiny(embed_dim=16, drop_rate=0.3, drop_path_rate=0.2, backbone_args=dict(output_stride=16))
    assert model.head.drop.p == 0.3
    assert any(getattr(m, 'drop_prob', 0) > 0 for m in model.backbone.modules())
    assert model.backbone.reductions == [8, 16, 16]
    with pytest.raises(TypeError, match='no_such'):
        tiny(backbone_args=dict(no_such=1))


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match='no_such'):
        tiny(no_such=1)
    with pytest.raises(InputError, match="`backbone` 'resnet999' is not known to timm. Similar names: resnet50"):
        tiny(backbone='resnet999')


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw'])
def test_training_is_stable_at_the_documented_rates(optimizer):
    torch.manual_seed(0)
    model = tiny(embed_dim=64).train()
    new = [p for n, p in model.named_parameters() if not n.startswith('backbone')]
    groups = [dict(params=model.backbone.parameters(), lr=0.01 if optimizer == 'sgd' else 1e-4), dict(params=new)]
    if optimizer == 'sgd':
        step = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-4)
    else:
        step = torch.optim.AdamW(groups, lr=1e-3)
    x, y = torch.randn(16, 3, 64, 64), (torch.rand(16, 7) < 0.3).float()
    losses = []
    for _ in range(30):
        loss = F.binary_cross_entropy_with_logits(model(x), y)
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(0.69, abs=0.15)
    assert max(losses) < 3 and losses[-1] < 0.75 * losses[0]
