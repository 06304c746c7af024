"""Where weights come from: those of a FAN or of a plain backbone, in a file or in memory, and what is refused."""
import pytest
import safetensors.torch
import timm
import torch
from helpers import TINY_BACKBONES, small_fan

from timm_fan import InputError, hub


def test_backbone_weights(tmp_path):
    plain = timm.create_model('test_resnet')
    file = tmp_path / 'plain.safetensors'
    safetensors.torch.save_file(plain.state_dict(), file)
    model = small_fan(backbone_weights=str(file))
    loaded, source = model.backbone.net.state_dict(), plain.state_dict()
    assert len(loaded) > 20
    for name, tensor in loaded.items():
        assert torch.equal(tensor, source[name]), name


def test_bad_backbone_weights_are_named(tmp_path):
    other, broken = tmp_path / 'other.safetensors', tmp_path / 'broken.safetensors'
    safetensors.torch.save_file(timm.create_model('test_convnext').state_dict(), other)
    broken.write_bytes(other.read_bytes()[:5000])
    for file, words in (
            (other, r"lacks 90 of 90 tensors of 'test_resnet', .*Use weights of this backbone"),
            (broken, 'is damaged, or is not a safetensors file .* Download or write it again'),
            (tmp_path / 'none.safetensors', 'no file .*Pass a safetensors file of the timm model test_resnet')):
        with pytest.raises(InputError, match=f'^`backbone_weights`: .*{words}') as error:
            small_fan(backbone_weights=str(file))
        assert str(file) in str(error.value)


def test_lite0_takes_the_imagenet_weights(lite0_weights):
    model = timm.create_model('fan', backbone='tf_efficientnet_lite0', backbone_weights=str(lite0_weights))
    stem = safetensors.torch.load_file(lite0_weights)['conv_stem.weight']
    assert torch.equal(model.backbone.net.model.conv_stem.weight, stem)


@pytest.mark.parametrize('backbone', TINY_BACKBONES)
def test_a_plain_checkpoint_loads_into_the_fan(backbone):
    plain = timm.create_model(backbone)
    model = small_fan(backbone, pretrained=True, pretrained_cfg_overlay=dict(state_dict=plain.state_dict()))
    names = {n for n, _ in model.backbone.named_parameters()}
    found = {model.backbone.own_name(n, names): p for n, p in plain.named_parameters()}
    for name, parameter in model.backbone.named_parameters():
        assert torch.equal(parameter, found[name]), name


def test_weights_of_another_model_are_refused():
    overlay = dict(state_dict=timm.create_model('test_convnext').state_dict())
    with pytest.raises(InputError, match="The checkpoint lacks 90 of 90 tensors of 'test_resnet'"):
        small_fan(pretrained=True, pretrained_cfg_overlay=overlay)


@pytest.mark.parametrize('in_chans', [1, 4])
def test_weights_of_a_backbone_are_adapted_to_other_channels(in_chans):
    plain = timm.create_model('test_resnet')
    overlay = dict(state_dict=plain.state_dict())
    model = timm.create_model(
        'fan', backbone='test_resnet', in_chans=in_chans, pretrained=True, pretrained_cfg_overlay=overlay)
    stem = model.get_submodule(f'backbone.{model.backbone.first_convs()[0]}').weight
    expected = timm.models.adapt_input_conv(in_chans, plain.conv1[0].weight)
    torch.testing.assert_close(stem, expected)
    assert model.eval()(torch.randn(1, in_chans, 64, 64)).shape == (1, 80)


@pytest.mark.parametrize('in_chans', [1, 4])
def test_weights_of_a_fan_are_adapted_to_other_channels(in_chans):
    model = small_fan(num_classes=80)
    first = f'backbone.{model.backbone.first_convs()[0]}.weight'
    loaded = small_fan(
        num_classes=80, in_chans=in_chans, pretrained=True, pretrained_cfg_overlay=dict(state_dict=model.state_dict()))
    torch.testing.assert_close(
        loaded.state_dict()[first], timm.models.adapt_input_conv(in_chans, model.state_dict()[first]))
    torch.testing.assert_close(loaded.head.fc.weight, model.head.fc.weight)


def test_another_class_count_gets_a_new_classifier(tmp_path):
    model = small_fan(num_classes=80)
    file = tmp_path / 'model.safetensors'
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = small_fan(num_classes=5, pretrained=True, pretrained_cfg_overlay=dict(file=str(file)))
    assert loaded.get_classifier().weight.shape == (5, loaded.head_hidden_size)
    assert torch.equal(loaded.frn.frb2.fc1.weight, model.frn.frb2.fc1.weight)


def test_unpublished_weights_name_the_repository_and_the_alternatives(monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr(hub, 'HUB_ORG', 'some-mirror')
    with pytest.raises(InputError) as error:
        timm.create_model('fan_resnet18', pretrained=True)
    assert str(error.value) == (
        'No pretrained weights for fan_resnet18: some-mirror/fan_resnet18.coco2014: it is not in the cache, and'
        ' HF_HUB_OFFLINE is set. Train the model, pass a file'
        " (pretrained_cfg_overlay=dict(file='model.safetensors')), or start from the ImageNet weights of the backbone"
        ' (pretrained=False, pretrained_backbone=True).')
