"""What timm's users rely on beyond timm's own test suite (test_timm_suite.py)."""
import copy
import pickle
import subprocess
import sys

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import get_model_input_config
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

from timm_fan import InputError, hub

NAMES = [name for name in timm.list_models('fan*') if name != 'fan']
# one of each way in which timm makes feature maps: list, its own class, getter with and without norm, NHWC, fixed size
BACKBONES = ['test_resnet', 'test_efficientnet', 'test_vit', 'test_vit_relpos', 'test_mambaout', 'test_coatnet']


def tiny(backbone='test_resnet', **kwargs):
    torch.manual_seed(0)
    return timm.create_model('fan', **{'backbone': backbone, 'num_classes': 7, 'embed_dim': 16, **kwargs})


def image(model, batch=2):
    return torch.randn(batch, model.in_chans, *model.pretrained_cfg['input_size'][1:])


def test_import_takes_what_timm_takes():
    """Nothing of other packages, which is what makes an import slow, beside the Hub's client."""
    code = ('import sys, timm; before = set(sys.modules); import timm_fan; '
            'print(*{name.split(".")[0] for name in set(sys.modules) - before})')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) <= {'timm_fan', 'huggingface_hub', 'safetensors'}


@pytest.mark.parametrize('name', NAMES)
def test_config_is_the_backbones(name):
    backbone = timm.create_model(name, device='meta').backbone
    ours, theirs = timm.get_pretrained_cfg(name), timm.get_pretrained_cfg(backbone.name)
    assert theirs.has_weights, 'a named model needs a pretrained backbone'
    keys = ['mean', 'std', 'interpolation', 'fixed_input_size']
    if name not in ('fan_resnet18', 'fan_resnet50', 'fan_resnet101', 'fan_vgg16'):  # at the paper's 448 pixels
        keys += ['input_size', 'crop_pct']
    for key in keys:
        assert getattr(ours, key) == getattr(theirs, key), key
    assert [ours.first_conv] == [f'backbone.{n}' for n in backbone.first_convs()]


@pytest.mark.parametrize('name', ['fan', 'fan_resnet50'])
def test_another_backbone_brings_its_preprocessing(name):
    model = timm.create_model(name, backbone='vit_tiny_patch16_224.augreg_in21k', device='meta')
    config = resolve_model_data_config(model)
    assert config['mean'] == (0.5, 0.5, 0.5) and config['input_size'] == (3, 224, 224)
    assert resolve_model_data_config(timm.create_model(name, device='meta'))['mean'] == (0.485, 0.456, 0.406)


@pytest.mark.parametrize('backbone', BACKBONES)
def test_layer_decay_follows_the_backbone(backbone):
    model = tiny(backbone)
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
    # the plain model has its classifier where the FAN has its own layers, so the ratios are the plain model's
    depth = len({g['lr_scale'] for g in expected.param_groups})
    assert len(set(scales.values())) in (depth, depth + 1)


def test_no_weight_decay_is_the_backbones():
    model = tiny('test_vit')
    assert model.no_weight_decay() == {'backbone.net.model.pos_embed', 'backbone.net.model.cls_token'}
    assert tiny().no_weight_decay() == set()


@pytest.mark.parametrize('in_chans', [1, 4])
def test_in_chans(in_chans, tmp_path):
    plain = timm.create_model('test_resnet')
    overlay = dict(state_dict=plain.state_dict())
    model = timm.create_model(
        'fan', backbone='test_resnet', in_chans=in_chans, pretrained=True, pretrained_cfg_overlay=overlay)
    stem = model.get_submodule(f'backbone.{model.backbone.first_convs()[0]}').weight
    expected = timm.models.adapt_input_conv(in_chans, plain.conv1[0].weight)
    torch.testing.assert_close(stem, expected)
    assert model.eval()(torch.randn(1, in_chans, 64, 64)).shape == (1, 80)


@pytest.mark.parametrize('in_chans', [1, 4])
def test_trained_weights_take_other_channels(in_chans):
    model = tiny(num_classes=80)
    first = f'backbone.{model.backbone.first_convs()[0]}.weight'
    loaded = tiny(
        num_classes=80, in_chans=in_chans, pretrained=True, pretrained_cfg_overlay=dict(state_dict=model.state_dict()))
    torch.testing.assert_close(
        loaded.state_dict()[first], timm.models.adapt_input_conv(in_chans, model.state_dict()[first]))
    torch.testing.assert_close(loaded.head.fc.weight, model.head.fc.weight)


@pytest.mark.parametrize('backbone', BACKBONES)
def test_a_plain_checkpoint_loads_into_the_fan(backbone):
    plain = timm.create_model(backbone)
    model = tiny(backbone, pretrained=True, pretrained_cfg_overlay=dict(state_dict=plain.state_dict()))
    names = {n for n, _ in model.backbone.named_parameters()}
    found = {model.backbone.own_name(n, names): p for n, p in plain.named_parameters()}
    for name, parameter in model.backbone.named_parameters():
        assert torch.equal(parameter, found[name]), name


def test_weights_of_another_model_are_refused():
    overlay = dict(state_dict=timm.create_model('test_convnext').state_dict())
    with pytest.raises(InputError, match="lacks .* of 'test_resnet'"):
        tiny(pretrained=True, pretrained_cfg_overlay=overlay)


def test_another_class_count_gets_a_new_classifier(tmp_path):
    model = tiny(num_classes=80)
    file = tmp_path / 'model.safetensors'
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = tiny(num_classes=5, pretrained=True, pretrained_cfg_overlay=dict(file=str(file)))
    assert loaded.get_classifier().weight.shape == (5, loaded.head_hidden_size)
    assert torch.equal(loaded.frn.frb2.fc1.weight, model.frn.frb2.fc1.weight)


def test_unpublished_weights_name_the_repository(monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr(hub, 'HUB_ORG', 'some-mirror')
    with pytest.raises(InputError, match='some-mirror/fan_resnet18.coco2014: .*train.py --model fan_resnet18.*file='):
        timm.create_model('fan_resnet18', pretrained=True)


def test_drop_rates_and_other_arguments_reach_their_place():
    model = tiny(drop_rate=0.3, drop_path_rate=0.2, backbone_args=dict(output_stride=16))
    assert model.head.drop.p == 0.3
    assert any(getattr(m, 'drop_prob', 0) > 0 for m in model.backbone.modules())
    assert model.backbone.reductions == [8, 16, 16]
    with pytest.raises(TypeError, match='no_such'):
        tiny(backbone_args=dict(no_such=1))


@pytest.mark.parametrize('global_pool', ['avg', 'max', 'avgmax', 'catavgmax'])
def test_global_pool(global_pool):
    model = tiny(global_pool=global_pool).eval()
    x = image(model)
    assert model.head(model.forward_features(x), pre_logits=True).shape[1] == model.head_hidden_size
    assert model(x).shape == (2, 7)


@pytest.mark.parametrize('backbone', ['test_vit', 'test_coatnet', 'test_resnet'])
def test_img_size(backbone):
    model = tiny(backbone, img_size=(96, 128)).eval()
    x = torch.randn(1, 3, 96, 128)
    assert model(x).shape == (1, 7)
    assert get_model_input_config(model)['input_size'] == (3, 96, 128)
    model.set_input_size(64)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    assert get_model_input_config(model)['input_size'] == (3, 64, 64)


def test_img_size_that_timm_cannot_change_later():
    model = timm.create_model('fan', backbone='nest_tiny', device='meta', img_size=288)
    assert model(torch.zeros(1, 3, 288, 288, device='meta')).shape == (1, 80)
    with pytest.raises(InputError, match=r"nest_tiny.*img_size=\(224, 224\)"):
        model.set_input_size(224)


@pytest.mark.parametrize('backbone', BACKBONES)
def test_copies_are_equal_and_apart(backbone):
    model = tiny(backbone).eval()
    x = image(model)
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
        torch.nn.init.zeros_(next(twin.parameters()))
    assert torch.equal(model(x), expected)


def test_ema():
    model = tiny()
    ema = ModelEmaV3(model, decay=0.5)
    before = model.state_dict()['head.fc.bias'].clone()
    torch.nn.init.ones_(model.head.fc.bias)
    ema.update(model)
    torch.testing.assert_close(ema.module.head.fc.bias.data, (before + 1) / 2)


@pytest.mark.parametrize('backbone', ['test_resnet', 'test_convnext'])
def test_channels_last(backbone):
    model = tiny(backbone).eval()
    x = image(model)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('backbone', BACKBONES)
def test_export(backbone):
    model = tiny(backbone).eval()
    x = image(model)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=1e-4)


def test_export_with_dynamic_sizes():
    model = tiny().eval()
    sizes = {0: torch.export.Dim('batch', max=64), 2: torch.export.Dim('h', max=50) * 32,
             3: torch.export.Dim('w', max=50) * 32}
    program = torch.export.export(model, (torch.randn(2, 3, 160, 128),), dynamic_shapes=(sizes,)).module()
    x = torch.randn(3, 3, 64, 96)
    torch.testing.assert_close(program(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('backbone', ['test_resnet', 'test_vit'])
def test_compile_without_graph_breaks(backbone):
    model = tiny(backbone).eval()
    x = image(model)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('feature_cls', [None, 'list', 'dict', 'hook', 'fx', 'getter'])
@pytest.mark.parametrize('backbone', ['test_resnet', 'test_convnext'])
def test_features_only_with_every_feature_class(backbone, feature_cls):
    kwargs = dict(feature_cls=feature_cls) if feature_cls else {}
    net = tiny(backbone, features_only=True, **kwargs).eval()
    x = torch.randn(1, 3, 97, 131)
    maps = net(x)
    maps = list(maps.values()) if feature_cls == 'dict' else maps
    expected = tiny(backbone).eval().forward_maps(x)
    assert [m.shape[1] for m in maps] == net.feature_info.channels()
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    if feature_cls in (None, 'getter', 'list'):
        assert not [n for n, _ in net.named_parameters() if n.startswith(('model.frn', 'model.cln', 'model.head'))]


def test_features_of_some_levels():
    net = tiny(features_only=True, out_indices=(1,)).eval()
    maps = net(torch.randn(1, 3, 64, 64))
    assert [m.shape for m in maps] == [(1, 192, 4, 4)]


@pytest.mark.parametrize('backbone', ['test_resnet', 'test_efficientnet', 'test_vit', 'test_coatnet', 'test_mambaout'])
def test_pruning(backbone):
    # the contract of timm's test_prune_intermediate_layers_contract, which runs on timm's own modules only
    model = tiny(backbone).eval()
    x = image(model)
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


def test_pruned_model_takes_a_classifier():
    model = tiny().eval()
    model.prune_intermediate_layers([1])
    model.reset_classifier(4, 'avg')
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 4)


@pytest.mark.parametrize('backbone', ['test_resnet', 'test_vit', 'test_coatnet'])
def test_torchscript_leaves_the_model_alone(backbone):
    model = tiny(backbone).eval()
    net = model.backbone.net
    x = image(model, batch=3)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
    assert model.backbone.net is net
