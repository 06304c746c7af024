"""The three maps of a backbone: which ones, their norms, and networks of any strides."""
import pytest
import timm
import torch
import torch.nn as nn
from timm.models import _registry, register_model
from timm.models._features import FeatureInfo

from timm_fan import InputError
from timm_fan.models.backbone import Backbone, _choose_maps


@pytest.mark.parametrize('reductions, expected', [
    ((2, 4, 8, 16, 32), [2, 3, 4]),  # ResNet
    ((1, 2, 4, 8, 16, 32), [3, 4, 5]),  # VGG
    ((4, 8, 16), [0, 1, 2]),  # NesT
    ((16,) * 12, [3, 7, 11]),  # ViT
    ((14,) * 40, [12, 25, 39]),
    ((7, 14, 14, 14), [1, 2, 3]),  # Sequencer
    ((4, 8, 8), [0, 1, 2]),
    ((8, 16), [0, 0, 1]),
    ((16,), [0, 0, 0]),
])
def test_choice_of_maps(reductions, expected):
    assert _choose_maps(reductions) == expected


class Stages(nn.Module):
    """A feature network of any strides, which is not from timm."""

    def __init__(self, strides, in_chans=3, device=None, dtype=None):
        super().__init__()
        self.stages = nn.ModuleList()
        info, stride, chs = [], 1, in_chans
        for i, s in enumerate(strides):
            self.stages.append(nn.Conv2d(chs, 4 * (i + 1), 3, s // stride, 1, device=device, dtype=dtype))
            stride, chs = s, 4 * (i + 1)
            info.append(dict(num_chs=chs, reduction=s, module=f'stages.{i}'))
        self.info, self.feature_info = info, None

    def forward(self, x):
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.feature_info.out_indices:
                maps.append(x)
        return maps


def stages(strides):
    def build(pretrained=False, features_only=True, out_indices=(0,), in_chans=3, device=None, dtype=None, **_):
        net = Stages(strides, in_chans, device, dtype)
        net.feature_info = FeatureInfo(net.info, out_indices)
        return net
    return build


@pytest.fixture
def register():
    """Adds models to timm until the end of the test: name, entrypoint."""
    def add(name, function):
        function.__name__, function.__module__ = name, __name__
        register_model(function)
        names.append(name)

    names = []
    yield add
    for name in names:
        _registry._clear_model_entries(name)
        _registry._model_entrypoints.pop(name)


@pytest.mark.parametrize('strides', [(8,), (16, 32), (2, 6, 12), (4, 8, 24), (3, 9, 27), (5, 5, 5)])
@pytest.mark.parametrize('switches', [dict(), dict(frn=False)])
def test_few_maps_and_unusual_strides(register, strides, switches):
    register('stages_test', stages(strides))
    model = timm.create_model('fan', backbone='stages_test', num_classes=3, **switches).train()
    for size in ((97, 131), (64, 64), (33, 47)):
        x = torch.randn(2, 3, *size)
        features = model.forward_features(x)
        assert features.shape[2:] == model.backbone(x)[-1].shape[2:]
        model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_model_without_maps_is_named(register):
    def no_maps(pretrained=False, **kwargs):
        raise RuntimeError('features_only not implemented for such models.')

    register('no_maps_test', no_maps)
    with pytest.raises(InputError) as error:
        Backbone('no_maps_test')
    assert str(error.value) == (
        'timm provides no feature maps of `backbone=no_maps_test` with in_chans=3: RuntimeError: features_only not'
        ' implemented for such models.')


def test_the_final_norm_of_a_transformer_is_applied_to_every_map():
    backbone = Backbone('test_vit').eval()
    plain = timm.create_model('test_vit')
    names = {n for n, _ in backbone.named_parameters()}
    for name, parameter in plain.named_parameters():
        own = backbone.own_name(name, names)
        if own:
            parameter.data = backbone.get_parameter(own).data
    assert {'net.model.norm.weight', 'net.model.norm.bias'} <= names
    x = torch.randn(2, 3, 160, 160)
    expected = plain.eval().forward_intermediates(x, indices=[1, 3, 5], norm=True, intermediates_only=True)
    for ours, theirs in zip(backbone(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('name, normed, final, raw', [
    ('test_vit', True, False, '000'), ('test_vit_relpos', False, False, '111'), ('test_convnext', False, False, '111'),
    ('swin_tiny_patch4_window7_224', False, True, '110'), ('test_efficientnet', False, True, '000'),
    ('test_resnet', False, False, '000'), ('vgg11', False, False, '000')])
def test_which_maps_need_a_norm(name, normed, final, raw):
    model = timm.create_model('fan', backbone=name, device='meta')
    assert (model.backbone.normed, model.backbone.final) == (normed, final)
    assert ''.join(str(int(r)) for r in model.backbone.raw) == raw
    assert all(isinstance(m, nn.LayerNorm) == (r == '1') for m, r in zip(model.norm, raw, strict=True))


@pytest.mark.parametrize('name, size', [
    ('test_efficientnet', 97), ('resnetv2_18', 64), ('test_mambaout', 96), ('hrnet_w18_small', 64),
    ('ghostnet_050', 64), ('resnet18', 65), ('vgg11', 64)])
def test_x4_is_what_the_plain_model_pools(name, size):
    """Over a plain model whose head is pooling and a linear layer, a FAN without its parts is that model."""
    plain = timm.create_model(name, num_classes=0).eval()
    backbone = Backbone(name).eval()
    backbone.load_state_dict(backbone.from_plain(plain.state_dict()))
    x = torch.randn(2, 3, size, size)
    features = plain.forward_features(x)
    if features.shape[-1] == plain.num_features:  # NHWC
        features = features.permute(0, 3, 1, 2)
    torch.testing.assert_close(backbone(x)[-1], features)
    assert backbone.channels[-1] == plain.num_features
    last = Backbone(name, final=False)
    assert [m.shape for m in backbone(x)[:2]] == [m.shape for m in last(x)[:2]]


def test_a_fan_without_its_parts_is_the_plain_model():
    plain = timm.create_model('test_efficientnet', num_classes=5).eval()
    model = timm.create_model(
        'fan', backbone='test_efficientnet', num_classes=5, frn=False, cln=False, head='linear').eval()
    model.backbone.load_state_dict(model.backbone.from_plain(plain.state_dict()))
    model.head.fc.load_state_dict(plain.classifier.state_dict())
    x = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_final_features_without_gradients(mode):
    with mode():
        assert Backbone('ghostnet_050').final


def test_without_final_features_x4_is_the_last_map():
    backbone = Backbone('test_efficientnet', final=False)
    expected = timm.create_model('test_efficientnet', features_only=True)
    assert backbone.channels == expected.feature_info.channels()[-3:] and not backbone.final


def test_pruning_final_features():
    model = timm.create_model('fan', backbone='test_efficientnet').eval()
    x = torch.randn(1, 3, 64, 64)
    x2, x3, _ = model.forward_maps(x)
    model.prune_intermediate_layers([0, 1], prune_norm=True)
    assert all(map(torch.equal, model.forward_intermediates(x, intermediates_only=True), (x2, x3)))


def test_nhwc_maps_become_nchw():
    backbone = Backbone('test_mambaout').eval()
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert [m.shape for m in maps] == [(1, 32, 8, 12), (1, 48, 4, 6), (1, 64, 2, 3)]


def test_the_input_size_of_swin_can_change():
    backbone = Backbone('swin_tiny_patch4_window7_224', device='meta')
    backbone.set_input_size((256, 192))
    assert backbone(torch.zeros(1, 3, 256, 192, device='meta'))[-1].shape == (1, 768, 8, 6)
