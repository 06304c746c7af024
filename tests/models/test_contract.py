"""What timm's users rely on in every model, beyond timm's own test suite (tests/test_timm_suite.py).

A new entrypoint is tested here without a change, unless it has an input size of its own.
"""
import copy
import pickle

import pytest
import timm
import torch
from helpers import PRINTED, TINY_BACKBONES, small_fan
from timm.models import get_model_input_config
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

from timm_fan import InputError
from timm_fan.layers import HEADS

NAMES = [name for name in timm.list_models('fan*') if name != 'fan']
# at 448 pixels like the paper, or at the size of their own weights, not at that of the backbone's
OWN_SIZE = {'fan_resnet18', 'fan_resnet50', 'fan_resnet101', 'fan_vgg16', 'fan_tf_efficientnet_lite2'}


def images(model, batch=2):
    return torch.randn(batch, model.in_chans, *model.pretrained_cfg['input_size'][1:])


@pytest.mark.parametrize('name', NAMES)
def test_config_is_the_backbones(name):
    backbone = timm.create_model(name, device='meta').backbone
    ours, theirs = timm.get_pretrained_cfg(name), timm.get_pretrained_cfg(backbone.name)
    assert theirs.has_weights, 'a named model requires a pretrained backbone'
    keys = ['mean', 'std', 'interpolation', 'fixed_input_size']
    if name not in OWN_SIZE:
        keys += ['input_size', 'crop_pct']
    for key in keys:
        assert getattr(ours, key) == getattr(theirs, key), key
    assert [ours.first_conv] == [f'backbone.{n}' for n in backbone.first_convs()]


@pytest.mark.parametrize('name', NAMES)
def test_named_models_have_the_interface_of_timm(name):
    model = timm.create_model(name, device='meta').eval()
    x = torch.zeros(2, *model.pretrained_cfg['input_size'], device='meta')
    features, maps = model.forward_intermediates(x)
    assert features.shape[:2] == (2, model.num_features) == model.forward_features(x).shape[:2]
    assert [m.shape[1] for m in maps] == [info['num_chs'] for info in model.feature_info]
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    num_classes = model.pretrained_cfg['num_classes']
    assert model(x).shape == (2, num_classes) and model.get_classifier().out_features == num_classes
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    names = [n for n, _ in model.named_parameters()]
    grouped = timm.models.group_parameters(model, model.group_matcher())
    assert sorted(grouped) == list(range(len(grouped))) and sum(map(len, grouped.values())) == len(names)
    assert model.no_weight_decay() <= set(names)


# optimizers

@pytest.mark.parametrize('backbone', TINY_BACKBONES)
def test_layer_decay_follows_the_backbone(backbone):
    model = small_fan(backbone)
    optimizer = create_optimizer_v2(model, 'adamw', lr=1., weight_decay=0.05, layer_decay=0.5)
    names = {id(p): n for n, p in model.named_parameters()}
    scales = {names[id(p)]: g['lr_scale'] for g in optimizer.param_groups for p in g['params']}
    assert set(scales) == set(names.values())
    for name, scale in scales.items():
        assert name.startswith('backbone.') or scale == 1., name
    plain = timm.create_model(backbone, num_classes=0)
    expected = create_optimizer_v2(plain, 'adamw', lr=1., weight_decay=0.05, layer_decay=0.5)
    stem = scales[f'backbone.{model.backbone.first_convs()[0]}.weight']
    assert stem == min(scales.values()) and stem < 0.5
    # the plain model has its classifier in place of the layers of the FAN, so the number of scales is the same
    depth = len({g['lr_scale'] for g in expected.param_groups})
    assert len(set(scales.values())) in (depth, depth + 1)


def test_no_weight_decay_is_the_backbones():
    model = small_fan('test_vit')
    assert model.no_weight_decay() == {'backbone.net.model.pos_embed', 'backbone.net.model.cls_token'}
    assert small_fan().no_weight_decay() == set()


# classifier and input size

def test_reset_classifier():
    model = small_fan(embed_dim=None).eval()
    x = torch.randn(2, 3, 64, 64)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.get_classifier().out_features == 3
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, '')
    assert model(x).ndim == 4
    model.reset_classifier(4, 'avg')
    assert model.head_hidden_size == model.num_features
    model.reset_classifier(4, 'catavgmax')
    assert model(x).shape == (2, 4) and model.head_hidden_size == 2 * model.num_features


def test_a_new_classifier_has_the_dtype_and_mode_of_the_model():
    model = small_fan().to(torch.float64).eval()
    model.reset_classifier(0)
    model.reset_classifier(2)
    assert model.head.fc.weight.dtype == torch.float64 and not model.head.fc.training


@pytest.mark.parametrize('global_pool', ['avg', 'max', 'avgmax', 'catavgmax'])
def test_global_pool(global_pool):
    model = small_fan(global_pool=global_pool, head='linear').eval()
    x = images(model)
    assert model.head(model.forward_features(x), pre_logits=True).shape[1] == model.head_hidden_size
    assert model(x).shape == (2, 7)


@pytest.mark.parametrize('backbone', ['test_vit', 'test_coatnet', 'test_resnet'])
def test_img_size(backbone):
    model = small_fan(backbone, img_size=(96, 128)).eval()
    x = torch.randn(1, 3, 96, 128)
    assert model(x).shape == (1, 7)
    assert get_model_input_config(model)['input_size'] == (3, 96, 128)
    model.set_input_size(64)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    assert get_model_input_config(model)['input_size'] == (3, 64, 64)


def test_an_img_size_that_timm_cannot_change_later():
    model = timm.create_model('fan', backbone='nest_tiny', device='meta', img_size=288)
    assert model(torch.zeros(1, 3, 288, 288, device='meta')).shape == (1, 80)
    with pytest.raises(InputError, match=r"'nest_tiny' after construction. .* with img_size=\(224, 224\)"):
        model.set_input_size(224)


# copies and memory layout

@pytest.mark.parametrize('backbone', TINY_BACKBONES)
def test_copies_are_equal_and_independent(backbone):
    model = small_fan(backbone).eval()
    x = images(model)
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
        torch.nn.init.zeros_(next(twin.parameters()))
    assert torch.equal(model(x), expected)


def test_ema():
    model = small_fan()
    ema = ModelEmaV3(model, decay=0.5)
    before = model.state_dict()['head.fc.bias'].clone()
    torch.nn.init.ones_(model.head.fc.bias)
    ema.update(model)
    torch.testing.assert_close(ema.module.head.fc.bias.data, (before + 1) / 2)


@pytest.mark.parametrize('backbone', ['test_resnet', 'test_convnext'])
def test_channels_last(backbone):
    model = small_fan(backbone).eval()
    x = images(model)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), expected, atol=1e-5, rtol=1e-4)


# export, compilation, TorchScript

@pytest.mark.parametrize('backbone', TINY_BACKBONES)
def test_export(backbone):
    model = small_fan(backbone).eval()
    x = images(model)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=1e-4)


def test_export_with_dynamic_sizes():
    model = small_fan().eval()
    sizes = {0: torch.export.Dim('batch', max=64), 2: torch.export.Dim('h', max=50) * 32,
             3: torch.export.Dim('w', max=50) * 32}
    program = torch.export.export(model, (torch.randn(2, 3, 160, 128),), dynamic_shapes=(sizes,)).module()
    x = torch.randn(3, 3, 64, 96)
    torch.testing.assert_close(program(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('backbone', ['test_resnet', 'test_vit'])
def test_compile_without_graph_breaks(backbone):
    model = small_fan(backbone).eval()
    x = images(model)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-4)


OTHER_METHODS = [dict(frn=False, cln=False, head=head) for head in HEADS]


@pytest.mark.parametrize('training, kwargs', [
    (True, dict()), (True, OTHER_METHODS[0]), (True, dict(backbone='test_vit')), (False, dict()),
    (False, dict(lite=False, cln=True)), (False, PRINTED),
    (False, dict(backbone='test_convnext')), *((False, method) for method in OTHER_METHODS)], ids=str)
def test_models_compile_in_one_graph(training, kwargs):
    torch._dynamo.reset()
    model = timm.create_model('fan', **{'backbone': 'test_resnet', 'num_classes': 5, **kwargs}).train(training)
    x = torch.randn(2, *model.pretrained_cfg['input_size'])
    if training:
        assert torch.compile(model, backend='eager', fullgraph=True)(x).shape == (2, 5)
    else:
        torch.testing.assert_close(torch.compile(model, backend='eager', fullgraph=True)(x), model(x))


def test_torchscript_with_odd_sizes():
    model = small_fan(embed_dim=None).eval()
    x = torch.randn(1, 3, 65, 97)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.parametrize('backbone', ['test_resnet', 'test_vit', 'test_coatnet'])
def test_torchscript_leaves_the_model_alone(backbone):
    model = small_fan(backbone).eval()
    net = model.backbone.net
    x = images(model, batch=3)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
    assert model.backbone.net is net


# features and pruning

@pytest.mark.parametrize('feature_cls', [None, 'list', 'dict', 'hook', 'fx', 'getter'])
@pytest.mark.parametrize('backbone', ['test_resnet', 'test_convnext'])
def test_features_only_with_every_feature_class(backbone, feature_cls):
    kwargs = dict(feature_cls=feature_cls) if feature_cls else {}
    net = small_fan(backbone, features_only=True, **kwargs).eval()
    x = torch.randn(1, 3, 97, 131)
    maps = net(x)
    maps = list(maps.values()) if feature_cls == 'dict' else maps
    expected = small_fan(backbone).eval().forward_maps(x)
    assert [m.shape[1] for m in maps] == net.feature_info.channels()
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    if feature_cls in (None, 'getter', 'list'):
        assert not [n for n, _ in net.named_parameters() if n.startswith(('model.frn', 'model.cln', 'model.head'))]


def test_features_of_some_levels():
    net = small_fan(features_only=True, out_indices=(1,)).eval()
    maps = net(torch.randn(1, 3, 64, 64))
    assert [m.shape for m in maps] == [(1, 192, 4, 4)]


@pytest.mark.parametrize('backbone', [name for name in TINY_BACKBONES if name != 'test_vit_relpos'])
def test_pruning(backbone):
    """The contract of timm's test_prune_intermediate_layers_contract, which runs on timm's own modules only."""
    model = small_fan(backbone).eval()
    x = images(model)
    expected = model(x)
    taps = model.forward_intermediates(x, intermediates_only=True)
    pruned = copy.deepcopy(model)
    pruned.prune_intermediate_layers([2], prune_head=False)
    torch.testing.assert_close(pruned(x), expected)
    for i, tap in enumerate(taps):
        for prune_norm in (False, True):
            pruned = copy.deepcopy(model)
            indices = pruned.prune_intermediate_layers([i], prune_norm=prune_norm)
            torch.testing.assert_close(
                pruned.forward_intermediates(x, indices=indices, intermediates_only=True)[0], tap)
            if prune_norm or i < 2:
                torch.testing.assert_close(pruned.forward_features(x), tap)
            pruned.train()
            pruned.forward_features(x).sum().backward()
            if backbone != 'test_efficientnet':  # timm's EfficientNetFeatures keeps stages after its last map
                assert not [n for n, p in pruned.named_parameters() if p.grad is None]
    frozen = copy.deepcopy(model).requires_grad_(False)
    frozen.prune_intermediate_layers([1])
    assert not [n for n, p in frozen.named_parameters() if p.requires_grad]


def test_a_pruned_model_can_get_a_classifier():
    model = small_fan().eval()
    model.prune_intermediate_layers([1])
    model.reset_classifier(4, 'avg')
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 4)
