import json

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F

from timm_fan import InputError
from timm_fan.models import create_model, label_names, load_model, save_model

SWITCHES = [dict(frn=frn, cln=cln) for frn in (True, False) for cln in (True, False)]


def tiny(**kwargs):
    return timm.create_model('fan', **{'backbone': 'test_resnet', 'num_classes': 7, **kwargs})


def data_config(**kwargs):
    return dict(
        input_size=(3, 96, 96), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), interpolation='bilinear', crop_pct=1.0,
        crop_mode='center', **kwargs)


def test_names_are_registered():
    assert {'fan', 'fan_resnet50', 'fan_resnet101', 'fan_vgg16'} <= set(timm.list_models('fan*'))


# as the paper prints it
LITERAL = dict(joint=False, cln_residual=False, global_pool='avg')


@pytest.mark.parametrize('name, channels', [
    ('fan_resnet101', [512, 1024, 2048]), ('fan_resnet50', [512, 1024, 2048]), ('fan_vgg16', [512, 512, 512])])
def test_sizes_of_the_paper(name, channels):
    model = timm.create_model(name, device='meta', **LITERAL)
    assert model.backbone.channels == channels and model.backbone.reductions == [8, 16, 32]
    x = torch.zeros(2, 3, 448, 448, device='meta')
    assert model.forward_features(x).shape == (2, 512, 14, 14)
    assert model(x).shape == (2, 80)
    assert model.pretrained_cfg['input_size'] == (3, 448, 448)


def test_parameters_of_fan_resnet101():
    # 65.9 M was counted on an independent reference with 80 classes, plain ResNet-101 has 42.7 M
    count = sum(p.numel() for p in timm.create_model('fan_resnet101', device='meta', **LITERAL).parameters())
    assert count == pytest.approx(65.9e6, rel=2e-3)


@pytest.mark.parametrize('backbone', [
    'test_resnet', 'test_efficientnet', 'test_convnext', 'test_vit', 'swin_tiny_patch4_window7_224', 'densenet121'])
def test_any_backbone(backbone):
    model = timm.create_model('fan', backbone=backbone, num_classes=7, device='meta')
    x = torch.zeros(2, *model.pretrained_cfg['input_size'], device='meta')
    assert model(x).shape == (2, 7)
    assert model.pretrained_cfg['mean'] == timm.get_pretrained_cfg(backbone).mean
    assert model.embed_dim <= min(512, model.backbone.channels[-1])


@pytest.mark.parametrize('switches', SWITCHES)
def test_switches(switches):
    model = tiny(**switches).train()
    x = torch.randn(2, 3, 97, 131)
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features and features.shape[2:] == (4, 5)
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_both_off_is_the_backbone_and_a_linear_layer():
    model = tiny(frn=False, cln=False, global_pool='avg').eval()
    x = torch.randn(2, 3, 64, 64)
    pooled = model.backbone(x)[-1].mean((2, 3))
    expected = F.linear(pooled, model.head.fc.weight, model.head.fc.bias)
    torch.testing.assert_close(model(x), expected)


def test_without_cln_the_levels_are_joined():
    model = tiny(cln=False, joint=False, global_pool='avg').eval()
    x = torch.randn(2, 3, 64, 64)
    levels = model.frn(model.backbone(x))
    weights = model.head.fc.weight.split(model.embed_dim, dim=1)
    expected = model.head.fc.bias + sum(p.mean((2, 3)) @ w.T for p, w in zip(levels, weights))
    torch.testing.assert_close(model(x), expected)


def test_joint_shows_the_classifier_every_level():
    model = tiny().eval()
    x = torch.randn(2, 3, 64, 64)
    maps = model.backbone(x)
    p2, p3, p4 = model.frn(maps)
    features = torch.cat([maps[-1], p2, p3, model.cln(p2, p3, p4)], dim=1)
    torch.testing.assert_close(model.forward_features(x), features)
    pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
    torch.testing.assert_close(model(x), F.linear(pooled, model.head.fc.weight, model.head.fc.bias))


def test_reset_classifier():
    model = tiny().eval()
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


def test_new_classifier_has_the_models_dtype():
    model = tiny().to(torch.float64).eval()
    model.reset_classifier(0)
    model.reset_classifier(2)
    assert model.head.fc.weight.dtype == torch.float64 and not model.head.fc.training


def test_torchscript():
    model = tiny().eval()
    x = torch.randn(1, 3, 65, 97)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw'])
def test_training_is_stable_at_the_documented_rates(optimizer):
    torch.manual_seed(0)
    model = tiny(embed_dim=64).train()
    fresh = [p for n, p in model.named_parameters() if not n.startswith('backbone')]
    groups = [dict(params=model.backbone.parameters(), lr=0.01 if optimizer == 'sgd' else 1e-4), dict(params=fresh)]
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


def test_mistakes_are_named():
    with pytest.raises(TypeError, match='no_such'):
        tiny(no_such=1)
    with pytest.raises(InputError, match='resnet999'):
        tiny(backbone='resnet999')
    with pytest.raises(InputError, match='fan_resnet101'):
        create_model('fan_resnet1O1')
    with pytest.raises(InputError, match='no_such'):
        create_model('fan', backbone='test_resnet', no_such=1)
    with pytest.raises(InputError, match='No pretrained weights'):
        create_model('fan', backbone='test_resnet', pretrained=True)


def test_backbone_weights(tmp_path):
    plain = timm.create_model('test_resnet')
    file = tmp_path / 'plain.safetensors'
    safetensors.torch.save_file(plain.state_dict(), file)
    model = tiny(backbone_weights=str(file))
    loaded, source = model.backbone.net.state_dict(), plain.state_dict()
    assert len(loaded) > 20
    for name, tensor in loaded.items():
        assert torch.equal(tensor, source[name]), name


def test_bad_backbone_weights_are_named(tmp_path):
    other, broken = tmp_path / 'other.safetensors', tmp_path / 'broken.safetensors'
    safetensors.torch.save_file(timm.create_model('test_convnext').state_dict(), other)
    broken.write_bytes(other.read_bytes()[:5000])
    for file, word in ((other, 'lacks'), (broken, 'readable'), (tmp_path / 'none.safetensors', 'no file')):
        with pytest.raises(InputError, match=word) as error:
            tiny(backbone_weights=str(file))
        assert str(file) in str(error.value)


def test_saved_model_comes_back(tmp_path):
    plain = tmp_path / 'plain.safetensors'
    safetensors.torch.save_file(timm.create_model('test_resnet').state_dict(), plain)
    model = create_model(
        'fan', backbone='test_resnet', num_classes=3, frn=False, global_pool='max', backbone_weights=str(plain)).eval()
    save_model(model, tmp_path / 'saved', ['a', 'b', 'c'], data_config())
    plain.unlink()
    assert sorted(p.name for p in (tmp_path / 'saved').iterdir()) == ['config.json', 'model.safetensors']
    assert 'plain' not in (tmp_path / 'saved' / 'config.json').read_text()
    assert json.loads((tmp_path / 'saved' / 'config.json').read_text())['label_names'] == ['a', 'b', 'c']

    x = torch.randn(2, 3, 96, 96)
    again = timm.create_model(f'local-dir:{tmp_path / "saved"}', pretrained=True).eval()
    assert torch.equal(again(x), model(x))
    assert again.frn is None and label_names(again) == ['a', 'b', 'c']
    config = timm.data.resolve_model_data_config(again)
    assert config['mean'] == [0.1, 0.2, 0.3] and tuple(config['input_size']) == (3, 96, 96)
    assert timm.create_model(f'local-dir:{tmp_path / "saved"}', pretrained=True, num_classes=5)(x).shape == (2, 5)


def test_pickles_and_broken_folders_are_refused(tmp_path):
    folder = tmp_path / 'saved'
    save_model(tiny(num_classes=2), folder, ['a', 'b'], data_config())
    weights = folder / 'model.safetensors'
    content = weights.read_bytes()
    weights.write_bytes(content[:1000])
    with pytest.raises(InputError, match='saved'):
        load_model(folder)
    weights.unlink()
    torch.save({}, folder / 'pytorch_model.bin')
    with pytest.raises(InputError, match='model.safetensors'):
        load_model(folder)
    weights.write_bytes(content)
    (folder / 'config.json').write_text('{')
    with pytest.raises(InputError, match='saved'):
        load_model(folder)
    with pytest.raises(InputError, match='nowhere'):
        load_model(tmp_path / 'nowhere')


@pytest.mark.parametrize('head', ['linear', 'csra', 'ml_decoder', 'query2label'])
def test_heads_start_anew_for_other_classes(tmp_path, head):
    model = tiny(embed_dim=16, head=head)
    save_model(model, tmp_path / 'model', list('abcdefg'), data_config())
    other = create_model(f'local-dir:{tmp_path / "model"}', pretrained=True, num_classes=5)
    assert other(torch.rand(2, 3, 64, 64)).shape == (2, 5)
    assert torch.equal(other.backbone.net.conv1[0].weight, model.backbone.net.conv1[0].weight)


@pytest.mark.parametrize('entries, words', [
    (dict(label_names=['a', 'b']), 'names 2 labels for 7 classes'),
    (dict(thresholds=0.4), 'must be 7 numbers'), (dict(thresholds=[0.5] * 6), 'must be 7 numbers'),
    (dict(thresholds=[0.5] * 6 + [1.0]), 'must be 7 numbers'),
    (dict(thresholds=[0.5] * 6 + ['a']), 'must be 7 numbers'),
])
def test_wrong_entries_of_a_config_are_named(tmp_path, entries, words):
    save_model(tiny(), tmp_path / 'model', list('abcdefg'), data_config())
    file = tmp_path / 'model' / 'config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    with pytest.raises(InputError, match=words):
        load_model(tmp_path / 'model')


def test_save_takes_no_other_folder_for_a_models(tmp_path):
    (tmp_path / 'thesis.txt').write_text('precious')
    with pytest.raises(InputError, match='holds other files'):
        save_model(tiny(num_classes=2), tmp_path, ['a', 'b'], data_config())
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.txt']


def test_interrupted_save_leaves_the_old_model(tmp_path, monkeypatch):
    folder = tmp_path / 'saved'
    save_model(tiny(num_classes=2), folder, ['a', 'b'], data_config())
    before = (folder / 'model.safetensors').read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError('No space left on device')

    monkeypatch.setattr(timm.models._hub, 'save_config_for_hf', full_disk)
    with pytest.raises(OSError, match='space'):
        save_model(tiny(num_classes=3), folder, ['a', 'b', 'c'], data_config())
    assert (folder / 'model.safetensors').read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['saved']


def test_lite0_takes_the_imagenet_weights(lite0_weights):
    model = timm.create_model('fan', backbone='tf_efficientnet_lite0', backbone_weights=str(lite0_weights))
    stem = safetensors.torch.load_file(lite0_weights)['conv_stem.weight']
    assert torch.equal(model.backbone.net.conv_stem.weight, stem)
