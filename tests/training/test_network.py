"""The model of a run: where its weights come from, and what is frozen."""
import json

import pytest
import timm
import torch
from accelerate import Accelerator
from helpers import TINY, load_program, run_here
from safetensors.torch import load_file, save_file

from timm_fan import InputError
from timm_fan.data import read_coco
from timm_fan.models import load_model, save_model
from timm_fan.training import create_loss, create_network
from timm_fan.training.loss import balanced_weights

NO_BACKBONE = [o for o in TINY if o not in ('--backbone', 'test_resnet')]


def test_weights_as_model_arguments(monkeypatch, coco_folder, lite0_weights):
    train = load_program(monkeypatch, 'train')
    options = ['--backbone', 'tf_efficientnet_lite0', '--model-kwargs', f'backbone_weights={lite0_weights}']
    options, *_ = train.read_arguments(train.build_parser().parse_args(options))
    model = create_network(options, read_coco(coco_folder, 'train2014'), Accelerator(cpu=True)).model
    assert torch.equal(model.backbone.net.model.conv_stem.weight, load_file(lite0_weights)['conv_stem.weight'])


@pytest.mark.parametrize('model, head', [
    (['--model', 'test_resnet'], 'fc.'),
    (['--backbone', 'test_resnet', '--model-kwargs', 'cln=false'], ('frn.', 'head.')),
])
def test_a_frozen_backbone_is_unchanged(monkeypatch, coco_folder, tmp_path, model, head):
    """With its BatchNorm: the same after one epoch and after two."""
    weights = []
    for epochs in ('1', '2'):
        run = tmp_path / epochs
        options = [*model, '--data-dir', coco_folder, '--output', run, '--no-report']
        assert run_here(monkeypatch, 'train', *NO_BACKBONE, *options, '--epochs', epochs, '--backbone-lr', '0') == 0
        weights.append(load_file(run / 'last' / 'model.safetensors'))
        load_model(run / 'last')
    frozen = {name: v for name, v in weights[0].items() if not name.startswith(head)}
    assert any('running_mean' in name for name in frozen) and len(frozen) < len(weights[0])
    assert all(torch.equal(v, weights[1][name]) for name, v in frozen.items())
    assert not all(torch.equal(v, weights[1][name]) for name, v in weights[0].items())


def test_labels_in_another_order_get_a_new_head(monkeypatch, coco_folder, tmp_path):
    options = [*NO_BACKBONE, '--epochs', '1', '--data-dir', coco_folder, '--no-report']
    first = ['--backbone', 'test_resnet', '--output', tmp_path / 'first']
    assert run_here(monkeypatch, 'train', *options, *first) == 0
    model = load_model(tmp_path / 'first')
    names = model.pretrained_cfg['label_names']
    save_model(model, tmp_path / 'turned', names[::-1], dict(model.pretrained_cfg))
    for folder, fresh in (('turned', True), ('first/last', False)):
        run = tmp_path / f'run_{fresh}'
        assert run_here(
            monkeypatch, 'train', *options, '--model', f'local-dir:{tmp_path / folder}', '--output', run) == 0
        assert ('it gets a new head' in (run / 'train.log').read_text()) == fresh


@pytest.mark.parametrize('argument', ['pretrained=true', 'features_only=true', 'embed_dim=0', 'num_classes=3'])
def test_arguments_that_a_run_cannot_have(monkeypatch, capsys, coco_folder, tmp_path, argument):
    options = [*TINY, '--data-dir', coco_folder, '--output', tmp_path / 'run', '--model-kwargs', argument]
    assert run_here(monkeypatch, 'train', *options) == 2
    error = capsys.readouterr().err
    assert argument.partition('=')[0] in error and 'Traceback' not in error


@pytest.mark.parametrize('folder', ['.', 'best'])
def test_fine_tuning_starts_from_the_best_model_of_a_run(monkeypatch, coco_folder, run_folder, folder):
    train_set = read_coco(coco_folder, 'train2014')
    model = whole_network(monkeypatch, train_set, '--model', f'local-dir:{run_folder / folder}').model
    weights = load_file(run_folder / 'best' / 'model.safetensors')
    assert all(torch.equal(v, weights[name]) for name, v in model.state_dict().items())


def test_published_weights_get_a_new_head_for_other_classes(monkeypatch, coco_folder, tmp_path):
    """Without network, and the saved model has the classes of the data again."""
    options = ['--model', 'fan_tf_efficientnet_lite2', '--pretrained', '--img-size', '64', '--backbone-lr', '0']
    run = ['--epochs', '1', '--data-dir', coco_folder, '--output', tmp_path / 'run', '--no-report']
    assert run_here(monkeypatch, 'train', *NO_BACKBONE, *options, *run) == 0
    log = (tmp_path / 'run' / 'train.log').read_text()
    assert 'fan_tf_efficientnet_lite2 starts from its published weights. Recipe ' in log.splitlines()[0]
    assert 'the backbone is frozen' in log.splitlines()[0] and 'it gets a new head' in log
    model, published = load_model(tmp_path / 'run'), timm.create_model('fan_tf_efficientnet_lite2', pretrained=True)
    assert model.num_classes == 6
    assert torch.equal(model.backbone.net.conv_stem.weight, published.backbone.net.conv_stem.weight)


def test_a_weighted_classifier_starts_where_its_loss_is_least(monkeypatch, coco_folder):
    train_set = read_coco(coco_folder, 'train2014')
    options = ['--backbone', 'test_resnet', '--class-weights', 'balanced']
    model = whole_network(monkeypatch, train_set, *options).model
    bias = model.head.fc.bias.detach().requires_grad_()
    targets = train_set.targets()
    loss = create_loss('bce', pos_weight=balanced_weights(train_set.labels))(bias.expand_as(targets), targets)
    loss.backward()
    assert bias.grad.abs().max() < 0.01 and bias.abs().max() < 0.1


@pytest.mark.parametrize('model', [['--model', 'test_vit'], ['--backbone', 'test_vit']])
def test_a_size_that_is_no_multiple_of_the_patches(monkeypatch, coco_folder, model):
    train_set = read_coco(coco_folder, 'train2014')
    whole_network(monkeypatch, train_set, *model, '--img-size', '64')
    with pytest.raises(InputError, match='`img_size=65` is not a multiple of 16.* Use 64 or 80'):
        whole_network(monkeypatch, train_set, *model, '--img-size', '65')


def test_a_backbone_with_shared_modules(monkeypatch, coco_folder, tmp_path):
    """CoaT uses one position encoding in several blocks: a tensor has two names."""
    run, network = tmp_path / 'run', ['--backbone', 'coat_tiny', '--img-size', '64', '--model-kwargs', 'embed_dim=16']
    options = [*NO_BACKBONE, *network, '--ema-decay', '0.9', '--no-report', '--data-dir', coco_folder, '--output', run]
    assert run_here(monkeypatch, 'train', *options, '--epochs', '1') == 0
    assert run_here(monkeypatch, 'train', *options, '--epochs', '2', '--resume') == 0
    saved = load_file(run / 'last' / 'model.safetensors')
    assert all(torch.equal(v, saved[name]) for name, v in load_model(run / 'last').state_dict().items())


def whole_network(monkeypatch, train_set, *options):
    train = load_program(monkeypatch, 'train')
    options, *_ = train.read_arguments(train.build_parser().parse_args([*NO_BACKBONE, *map(str, options)]))
    return create_network(options.resolved(), train_set, Accelerator(cpu=True))


def network(*args):
    return whole_network(*args).model


def test_every_kind_of_batch_norm_is_frozen(monkeypatch, coco_folder):
    options = ['--model', 'levit_128s', '--img-size', '224', '--freeze-bn']
    created = whole_network(monkeypatch, read_coco(coco_folder, 'train2014'), *options)
    norms = [m for m in created.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert created.frozen_norms == norms and {type(m).__name__ for m in norms} == {'BatchNorm1d', 'BatchNorm2d'}
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())


@pytest.mark.parametrize('options', [
    ['--model', 'test_resnet'], ['--backbone', 'test_resnet'],
    *(['--backbone', 'test_resnet', '--model-kwargs', f'head={head}'] for head in ('ml_decoder', 'query2label'))])
def test_a_new_classifier_starts_at_the_frequencies_of_the_labels(monkeypatch, coco_folder, tmp_path, options):
    train_set = read_coco(coco_folder, 'train2014')
    prior = (train_set.labels.counts()[0] + 0.5) / (len(train_set) + 1)
    model = network(monkeypatch, train_set, *options)
    assert torch.allclose(model.get_classifier().bias.sigmoid(), prior)
    model = network(monkeypatch, train_set, *options, '--head-init-bias', '-3.4')
    assert torch.allclose(model.get_classifier().bias, torch.tensor(-3.4))
    model = network(monkeypatch, train_set, *options, '--head-init-bias', '30')
    assert (model.get_classifier().bias == 30).all()


def test_the_weights_of_a_new_classifier_are_small_next_to_its_bias(monkeypatch, coco_folder):
    """timm draws the 1280 weights for a class of an EfficientNet from a range of 1 / sqrt(num_classes)."""
    train_set = read_coco(coco_folder, 'train2014')
    model = network(monkeypatch, train_set, '--model', 'tf_efficientnet_lite0', '--img-size', '64')
    assert model.get_classifier().weight.abs().max() <= 1280 ** -0.5


def test_a_trained_classifier_keeps_its_bias(monkeypatch, coco_folder, tmp_path):
    train_set = read_coco(coco_folder, 'train2014')
    model = network(monkeypatch, train_set, '--backbone', 'test_resnet', '--head-init-bias', '0.5')
    names, config = train_set.class_names, dict(model.pretrained_cfg)
    save_model(model, tmp_path / 'same', names, config)
    save_model(model, tmp_path / 'turned', names[::-1], config)
    for folder, kept in (('same', True), ('turned', False)):
        loaded = network(monkeypatch, train_set, '--model', f'local-dir:{tmp_path / folder}')
        assert torch.equal(loaded.head.fc.bias, model.head.fc.bias) == kept
    loaded = network(
        monkeypatch, train_set, '--model', f'local-dir:{tmp_path / "same"}', '--head-init-bias', '7')
    assert torch.equal(loaded.head.fc.bias, model.head.fc.bias)


def test_a_plain_model_takes_weights_but_not_their_classifier(monkeypatch, coco_folder, tmp_path):
    train_set = read_coco(coco_folder, 'train2014')
    for num_classes in (1000, len(train_set.class_names)):
        plain = timm.create_model('test_resnet', num_classes=num_classes)
        torch.nn.init.constant_(plain.fc.weight, 7.)
        file = tmp_path / f'{num_classes}.safetensors'
        save_file(plain.state_dict(), file)
        model = network(monkeypatch, train_set, '--model', 'test_resnet', '--backbone-weights', file)
        own, theirs = model.state_dict(), plain.state_dict()
        assert all(torch.equal(own[name], value) for name, value in theirs.items() if not name.startswith('fc.'))
        assert not (model.fc.weight == 7).any() and 'state_dict' not in model.pretrained_cfg


@pytest.mark.parametrize('options, message', [
    (['--model', 'test_resnet', '--backbone', 'test_vit'], '`backbone` belongs to `model=fan`'),
    (['--model', 'test_resnet', '--backbone-weights', 'no.safetensors'], 'no file no.safetensors'),
    (['--model', 'no_such', '--backbone-weights', 'x'], "'no_such' is not known to timm"),
    (['--model', 'local-dir:best', '--backbone-weights', 'x'], 'leave `backbone_weights` out'),
])
def test_weights_that_cannot_be_used_are_refused(monkeypatch, coco_folder, options, message):
    with pytest.raises(InputError, match=message):
        network(monkeypatch, read_coco(coco_folder, 'train2014'), *options)


def test_a_model_is_evaluated_and_saved_for_another_size(monkeypatch, capsys, coco_folder, tmp_path):
    options = [*TINY, '--img-size', '48', '--val-img-size', '64', '--epochs', '1', '--data-dir', coco_folder]
    assert run_here(monkeypatch, 'train', *options, '--output', tmp_path / 'run', '--no-report') == 0
    assert tuple(load_model(tmp_path / 'run').pretrained_cfg['input_size']) == (3, 64, 64)
    history = (tmp_path / 'run' / 'history.csv').read_text().splitlines()
    expected = float(dict(zip(history[0].split(','), history[1].split(',')))['mAP'])
    capsys.readouterr()
    assert run_here(monkeypatch, 'validate', tmp_path / 'run', '--data', 'coco2014', '--data-dir', coco_folder,
                    '--json') == 0
    assert json.loads(capsys.readouterr().out)['mAP'] == pytest.approx(expected, abs=1e-4)
    # the next step trains at another size again
    created = whole_network(
        monkeypatch, read_coco(coco_folder, 'train2014'), '--model', f'local-dir:{tmp_path / "run" / "best"}',
        '--img-size', '32', '--val-img-size', '80')
    assert created.train_config['input_size'] == (3, 32, 32) and created.data_config['input_size'] == (3, 80, 80)


def test_a_fixed_size_has_no_other(monkeypatch, capsys, coco_folder, tmp_path):
    options = ['--backbone', 'test_vit', '--img-size', '48', '--val-img-size', '64', '--data-dir', coco_folder]
    assert run_here(monkeypatch, 'train', *NO_BACKBONE, *options, '--output', tmp_path / 'run') == 2
    assert "--val-img-size 64: 'fan' has a fixed size, (48, 48) here" in capsys.readouterr().err
