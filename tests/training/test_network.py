"""The model of a run: where its weights come from, and what is frozen."""

import pytest
import torch
from accelerate import Accelerator
from helpers import TINY, load_program, run_here
from safetensors.torch import load_file

from timm_fan.models import load_model, save_model
from timm_fan.training import create_network

NO_BACKBONE = [o for o in TINY if o not in ('--backbone', 'test_resnet')]


def test_weights_as_model_arguments(monkeypatch, lite0_weights):
    train = load_program(monkeypatch, 'train')
    options = ['--backbone', 'tf_efficientnet_lite0', '--model-kwargs', f'backbone_weights={lite0_weights}']
    options, *_ = train.read_arguments(train.build_parser().parse_args(options))
    model = create_network(options, ['a', 'b', 'c'], Accelerator(cpu=True)).model
    assert torch.equal(model.backbone.net.conv_stem.weight, load_file(lite0_weights)['conv_stem.weight'])


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


def test_a_run_folder_is_not_a_model(monkeypatch, capsys, coco_folder, run_folder, tmp_path):
    options = ['--data-dir', coco_folder, '--output', tmp_path / 'run', '--model', f'local-dir:{run_folder}']
    assert run_here(monkeypatch, 'train', *NO_BACKBONE, *options) == 2
    assert 'Pass the folder of a saved model, which is best/ in a run folder.' in capsys.readouterr().err
