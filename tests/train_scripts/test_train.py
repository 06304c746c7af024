"""train.py as a user runs it."""
import csv
import json
import os
import shutil
from pathlib import Path
from typing import Callable

import pytest
import timm
import torch
import yaml
from helpers import SCRIPTS, TINY, history, launch, load_program, run_here, write_devkit
from safetensors.torch import load_file

from timm_fan.data import VOC_CLASSES, read_coco
from timm_fan.models import label_names, load_model

NO_BACKBONE = [o for o in TINY if o not in ('--backbone', 'test_resnet')]


def change_annotations(data: Path, split: str, change: Callable[[dict], None]) -> None:
    file = data / 'annotations' / f'instances_{split}.json'
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_command_line_options_are_these(monkeypatch):
    """Adding or removing one is a decision that others may depend on."""
    parser = load_program(monkeypatch, 'train').build_parser()
    assert sorted(flag for action in parser._actions for flag in action.option_strings) == [
        '--aa',
        '--backbone',
        '--backbone-lr',
        '--backbone-weights',
        '--batch-size',
        '--cache-dir',
        '--cache-features',
        '--checkpoint-every',
        '--class-weights',
        '--clip-grad',
        '--config',
        '--cutmix',
        '--data',
        '--data-dir',
        '--device',
        '--ema-decay',
        '--epochs',
        '--freeze-bn',
        '--grad-accum-steps',
        '--grad-checkpointing',
        '--head-init-bias',
        '--help',
        '--img-size',
        '--keep',
        '--log-with',
        '--loss',
        '--lr',
        '--lr-base-size',
        '--max-bad-samples',
        '--min-crop',
        '--mixed-precision',
        '--mixup',
        '--mixup-prob',
        '--model',
        '--model-kwargs',
        '--no-freeze-bn',
        '--no-grad-checkpointing',
        '--no-pretrained',
        '--no-pretrained-backbone',
        '--no-report',
        '--no-sync-bn',
        '--non-finite',
        '--opt',
        '--output',
        '--patience',
        '--pretrained',
        '--pretrained-backbone',
        '--report',
        '--resume',
        '--sched',
        '--seed',
        '--smoothing',
        '--sync-bn',
        '--torchcompile',
        '--val-img-size',
        '--val-interval',
        '--warmup-epochs',
        '--weight-decay',
        '--workers',
        '-h',
    ]


def test_epochs_without_evaluation(monkeypatch, coco_folder, tmp_path):
    """The last one is always evaluated, and the best is one of those that were."""
    run, options = tmp_path / 'run', ['--epochs', '3', '--val-interval', '2', '--data-dir', coco_folder]
    assert run_here(monkeypatch, 'train', *TINY, *options, '--output', run) == 0
    with open(run / 'history.csv') as file:
        rows = list(csv.DictReader(file))
    assert [bool(row['mAP']) for row in rows] == [False, True, True] and all(row['train_loss'] for row in rows)
    assert (run / 'report' / 'curves.png').stat().st_size
    best = json.loads((run / 'report' / 'metrics.json').read_text())
    assert best['mAP'] == pytest.approx(max(float(row['mAP']) for row in rows[1:]), abs=1e-5)


def test_voc_trains_and_evaluates(monkeypatch, capsys, tmp_path):
    objects = [[('cat', 0), ('dog', 1)], [('dog', 0)], [('person', 0), ('cat', 0)], []]
    splits = dict(trainval=range(12), test=range(20, 27))
    write_devkit(tmp_path, 2007, {k: {f'{i:06d}': objects[i % 4] for i in v} for k, v in splits.items()})
    options = ['--data', 'voc2007', '--data-dir', tmp_path]
    assert run_here(monkeypatch, 'train', *TINY, *options, '--epochs', '1', '--output', tmp_path / 'run') == 0
    capsys.readouterr()
    assert run_here(monkeypatch, 'validate', tmp_path / 'run', *options, '--workers', '0', '--json') == 0
    scores = json.loads(capsys.readouterr().out)
    report = json.loads((tmp_path / 'run' / 'report' / 'metrics.json').read_text())
    assert report == {**report, **scores}
    dog = scores['per_class'][VOC_CLASSES.index('dog')]
    assert (dog['positives'], dog['images']) == (2, 5)  # the difficult dogs of two images are ignored


@pytest.mark.parametrize('options, words', [
    (['--data-dir', '/nowhere'], ['/nowhere', '--data-dir']),
    (['--model', 'fan_resnet1O1'], ['fan_resnet1O1', 'fan_resnet101']),
    (['--backbone', 'resnet999'], ['resnet999']),
    (['--backbone-weights', '/no/file.safetensors'], ['--backbone-weights', '/no/file.safetensors']),
    (['--model-kwargs', 'frm=false'], ['frm']),
    (['--model-kwargs', 'frn'], ['--model-kwargs', 'frn', 'KEY=VALUE']),
    (['--config', 'nothing'], ['--config', 'nothing', 'coco2014']),
    (['--batch-size', '7', '--grad-accum-steps', '2'], ['--batch-size 7', '2']),
    (['--batch-size', '500'], ['34', '--batch-size']),
    (['--opt', 'nothing'], ['--opt nothing']),
    (['--sync-bn'], ['--sync-bn', 'GPUs']),
    (['--torchcompile', 'nothing'], ['--torchcompile', 'nothing']),
    (['--loss', 'zlpr', '--cutmix', '1'], ['--loss zlpr', '--cutmix']),
    (['--resume', '/no/run'], ['--resume', '/no/run']),
    (['--backbone', 'nest_tiny', '--img-size', '50'], ['nest_tiny', 'img_size=50', 'divide']),
    (['--aa', 'none'], ['--aa none', 'rand-m7']),
    (['--mixup', 'much'], ['--mixup should be a valid number']),
    (['--smoothing', '2'], ['--smoothing should be less than or equal to 0.99, got 2']),
    (['--mixup', '-1'], ['--mixup should be greater than or equal to 0, got -1']),
    (['--img-size', '0'], ['--img-size should be greater than or equal to 1, got 0']),
    (['--seed', '-1'], ['--seed should be greater than or equal to 0, got -1']),
    (['--clip-grad', '-1'], ['--clip-grad should be greater than or equal to 0, got -1']),
    (['--lr', 'nan'], ['--lr should be a finite number, got nan']),
    (['--lr-base-size', '-4'], ['--lr-base-size should be greater than or equal to 1, got -4']),
    (['--model', 'fan_resnet18', '--backbone', 'test_resnet'], ['--backbone belongs', '--model fan_resnet18']),
    (['--cache-features', '2'], ['--cache-features 2', '--backbone-lr 0']),
    (['--cache-features', '2', '--backbone-lr', '0', '--cutmix', '1'], ['--cache-features 2', '--cutmix']),
    (['--pretrained'], ['--pretrained belongs', '--model fan', '--pretrained-backbone']),
    (['--class-weights', 'balanced', '--loss', 'db'], ['--class-weights balanced', '--loss bce or asl', 'db']),
    (['--device', 'mps'], ['--device mps', 'Accelerate computes on cpu']),
    (['--img-size', '225', '--backbone', 'test_vit'], ['--img-size 225', '224 or 240']),
    (['--model-kwargs', 'in_chans=1'], ['--model-kwargs', 'three channels']),
    (['--model-kwargs', 'num_classes=3'], ['--model-kwargs', 'num_classes']),
    (['--model-kwargs', 'drop_rate=2'], ['drop_rate', 'between 0 and 1']),
])
def test_a_mistake_ends_in_one_message(monkeypatch, capsys, coco_folder, tmp_path, options, words):
    tiny = NO_BACKBONE if '--model' in options else TINY
    code = run_here(
        monkeypatch, 'train', *tiny, '--data-dir', coco_folder, '--output', tmp_path / 'run', *options)
    error = capsys.readouterr().err
    assert code == 2
    assert error.count('error:') == 1 and 'Traceback' not in error and '`' not in error
    for word in words:
        assert word in error


def test_unknown_category_ends_in_one_message(coco_folder, tmp_path):
    data = shutil.copytree(coco_folder, tmp_path / 'coco')
    change_annotations(data, 'train2014', lambda content: content['annotations'][3].update(category_id=777))
    result = launch(SCRIPTS / 'train.py', *TINY, '--data-dir', data, '--output', tmp_path / 'run', check=False)
    assert result.returncode == 2
    assert '777' in result.stderr and 'instances_train2014.json' in result.stderr and 'Traceback' not in result.stderr
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('options', [
    ['--opt', 'sgd', '--lr', '0.1', '--backbone-lr', '0.01', '--sched', 'plateau'],
    ['--loss', 'asl', '--cutmix', '1', '--mixup', '0.2', '--ema-decay', '0.9', '--aa', 'rand-m5', '--clip-grad', '1'],
    ['--grad-accum-steps', '2', '--mixed-precision', 'bf16', '--model-kwargs', 'frn=false', 'cln=false'],
    ['--class-weights', 'balanced', '--cutmix', '1', '--device', 'cpu'],
    ['--class-weights', 'balanced', '--loss', 'asl', '--patience', '1'],
    ['--loss', 'db', '--smoothing', '0.1', '--log-with', 'tensorboard'],
    ['--grad-checkpointing', '--ema-decay', '0.9'],
    ['--torchcompile', 'eager', '--ema-decay', '0.9'],
    ['--model', 'test_resnet', '--model-kwargs', 'global_pool=max'],
    ['--model', 'test_vit'],
    ['--backbone', 'test_vit'],
])
def test_recipes(monkeypatch, coco_folder, tmp_path, options):
    run = tmp_path / 'run'
    tiny = TINY if '--model' not in options else NO_BACKBONE
    assert run_here(
        monkeypatch, 'train', *tiny, '--epochs', '1', '--data-dir', coco_folder, '--output', run, *options) == 0
    assert json.loads((run / 'report' / 'metrics.json').read_text())['num_images'] == 13


@pytest.mark.parametrize('config', sorted(p.stem for p in (SCRIPTS / 'configs').glob('*.yaml')))
def test_options_of_the_configs_are_known(monkeypatch, capsys, config, tmp_path):
    options = ['--data', 'coco2014', '--data-dir', tmp_path / 'no', '--output', tmp_path / 'run']
    assert run_here(monkeypatch, 'train', '--config', config, *options) == 2
    assert str(tmp_path / 'no') in capsys.readouterr().err


@pytest.mark.parametrize('options, recipe', [
    ([], 'scenes, as no other --config is given'),
    (['--data', 'scenes'], 'scenes, as no other --config is given'),
    (['--data', 'table:labels.csv?val=0.2'], 'photos, as no other --config is given'),
    (['--data', 'coco2014', '--config', 'scenes'], 'scenes')])
def test_the_recipe_of_the_scenes_is_for_scenes(monkeypatch, options, recipe):
    train = load_program(monkeypatch, 'train')
    values, run, _, found = train.read_arguments(train.build_parser().parse_args(options))
    assert found == recipe and run.path.name == recipe.split(',')[0]
    assert values.pretrained == recipe.startswith('photos')


def test_photographs_in_one_command(monkeypatch, coco_folder, tmp_path):
    run = tmp_path / 'run'
    options = ['--data', 'coco2014', '--data-dir', coco_folder, '--output', run]
    small = ['--img-size', '64', '--val-img-size', '64', '--epochs', '1', '--workers', '0', '--log-with', 'none']
    assert run_here(monkeypatch, 'train', *options, *small) == 0
    first = (run / 'train.log').read_text().splitlines()[0]
    assert first.endswith(
        'fan_tf_efficientnet_lite2 starts from its published weights. Recipe photos, as no other --config is given:'
        f' data coco2014 in {coco_folder}, 64 px, the backbone is frozen, new layers learn at 0.0005')
    assert load_model(run).num_classes == 6 and (run / 'report' / 'report.html').is_file()


def test_batches_without_a_positive_are_counted(monkeypatch, coco_folder, tmp_path):
    data = shutil.copytree(coco_folder, tmp_path / 'coco')
    change_annotations(data, 'train2014', lambda content: content['annotations'].clear())
    run = tmp_path / 'run'
    options = ['--epochs', '1', '--data-dir', data, '--output', run, '--no-report']
    assert run_here(monkeypatch, 'train', *TINY, *options) == 0
    assert 'epoch 1: 4 of 4 batches have no positive label' in (run / 'train.log').read_text()


def test_the_config_of_a_run_repeats_it(monkeypatch, coco_folder, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = [
        *TINY, '--data-dir', coco_folder, '--cutmix', '1', '--ema-decay', '0.9', '--model-kwargs', 'drop_rate=0.2',
        '--no-report']
    assert run_here(monkeypatch, 'train', *options, '--output', 'one') == 0
    assert run_here(monkeypatch, 'train', '--config', 'one/config.yaml') == 0
    weights = load_file('one/last/model.safetensors')
    for name, tensor in load_file('one-again/last/model.safetensors').items():
        assert torch.equal(tensor, weights[name]), name
    records = [json.loads(Path(run, 'run.json').read_text()) for run in ('one', 'one-again')]
    assert records[0]['data'] == records[1]['data'] and records[0]['seed'] == 0


def test_another_backbone_leaves_the_weights_of_the_first(monkeypatch, tmp_path):
    """The file names a backbone with its weights; `--backbone` replaces both."""
    train, config = load_program(monkeypatch, 'train'), tmp_path / 'own.yaml'
    config.write_text('{backbone: test_resnet, backbone_weights: old.safetensors, model_kwargs: {frn: false}, lr: 0.1}')

    def read(*args):
        options, *_ = train.read_arguments(train.build_parser().parse_args(['--config', str(config), *args]))
        return options.model, options.backbone, options.backbone_weights, options.model_kwargs, options.lr

    new = ['--backbone', 'test_vit']
    assert read() == ('fan', 'test_resnet', 'old.safetensors', dict(frn=False), 0.1)
    assert read(*new) == ('fan', 'test_vit', None, {}, 0.1)
    assert read(*new, '--backbone-weights', 'new.safetensors') == ('fan', 'test_vit', 'new.safetensors', {}, 0.1)
    assert read('--model', 'test_vit') == ('test_vit', None, None, {}, 0.1)


def test_a_backbone_that_learns_leaves_the_cached_maps_of_the_file(monkeypatch, tmp_path):
    train, config = load_program(monkeypatch, 'train'), tmp_path / 'own.yaml'
    config.write_text('{backbone_lr: 0, cache_features: 4}')

    def read(*args):
        return train.read_arguments(train.build_parser().parse_args(['--config', str(config), *args]))[0].cache_features

    assert read() == read('--backbone-lr', '0.0') == 4
    assert read('--backbone-lr', '1e-4') == read('--cutmix', '1') == 0


def test_model_folder_needs_nothing_else(run_folder, coco_folder, tmp_path):
    folder = shutil.copytree(run_folder / 'best', tmp_path / 'moved')
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert model.pretrained_cfg['label_names'] == read_coco(coco_folder, 'val2014').class_names
    assert model.pretrained_cfg['input_size'] == (3, 48, 48)
    assert str(coco_folder) not in (folder / 'config.json').read_text()


def test_names_beyond_ascii_where_the_locale_is_not_utf8(monkeypatch, coco_folder, tmp_path):
    """Python takes ASCII for the encoding of text files and file names."""
    names = ['猫', 'Hündin', 'canapé', 'ψηφίο', 'дом', 'naïve']

    def rename(content):
        for category, name in zip(content['categories'], names, strict=True):
            category['name'] = name

    data, run = shutil.copytree(coco_folder, tmp_path / 'größe' / 'données'), tmp_path / 'größe' / 'run'
    for split in ('train2014', 'val2014'):
        change_annotations(data, split, rename)
    with monkeypatch.context() as context:
        for name, value in dict(LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0').items():
            context.setenv(name, value)
        encoding = launch('-c', 'import locale; print(locale.getpreferredencoding())').stdout.strip()
        assert encoding != 'UTF-8'
        command = [SCRIPTS / 'train.py', *TINY, '--data-dir', data, '--output', run]
        result = launch(*command, '--log-with', 'tensorboard', check=False)
        assert result.returncode == 2 and 'because the locale is not UTF-8. Set --log-with none' in result.stderr
        assert 'Traceback' not in result.stderr
        launch(*command)

    options = yaml.safe_load((run / 'config.yaml').read_text(encoding='utf-8'))
    assert os.fsencode(options['data_dir']) == os.fsencode(data)
    log = (run / 'train.log').read_text(encoding='utf-8')
    assert all(name in log for name in names) and len(history(run)) == 2
    with open(run / 'report' / 'per_class.csv', encoding='utf-8') as file:
        assert [row['class'] for row in csv.DictReader(file)] == names
    report = (run / 'report' / 'report.html').read_text(encoding='utf-8')
    assert all(name in report for name in names)
    scores = json.loads((run / 'report' / 'metrics.json').read_text(encoding='utf-8'))
    assert [c['name'] for c in scores['per_class']] == names
    assert label_names(load_model(run)) == names
    assert run_here(monkeypatch, 'train', '--resume', run, '--epochs', '3', '--no-report') == 0
    log = (run / 'train.log').read_text(encoding='utf-8')
    assert 'after epoch 2 and 0 updates' in log and 'the data has changed' not in log


def test_file_names_that_are_not_utf8(monkeypatch, capsys, coco_folder, tmp_path):
    """Such as those of an archive from Windows; one of the images is unreadable."""
    good, bad, folder = (os.fsdecode(name) for name in (b'caf\xe9.jpg', b'd\xe9j\xe0 vu.jpg', b'donn\xe9es'))
    data, run = shutil.copytree(coco_folder, tmp_path / folder), tmp_path / 'run'

    def rename(content):
        for image, name in zip(content['images'], (good, bad)):
            os.rename(folder / image['file_name'], folder / name)
            image['file_name'] = name

    for split in ('train2014', 'val2014'):
        folder = data / split
        change_annotations(data, split, rename)
    (data / 'train2014' / bad).write_bytes(b'')
    options = [*TINY, '--batch-size', '17', '--log-with', 'tensorboard', '--data-dir', data]
    result = launch(SCRIPTS / 'train.py', *options, '--output', run)
    entries = [json.loads(line) for line in (run / 'bad_samples.jsonl').read_text(encoding='utf-8').splitlines()]
    assert [(e['split'], e['image']) for e in entries] == [('train', str(data / 'train2014' / bad))]
    log = (run / 'train.log').read_text(encoding='utf-8')
    assert f'unreadable image {tmp_path}/donn\\udce9es/train2014/d\\udce9j\\udce0 vu.jpg' in log
    assert 'unreadable images so far: 1, see' in log and 'Traceback' not in result.stderr and len(history(run)) == 2
    assert (run / 'report' / 'report.html').is_file()
    assert run_here(monkeypatch, 'train', *options, '--output', tmp_path / good) == 2
    assert capsys.readouterr().err == (
        f'error: {tmp_path}/caf\\udce9.jpg is not UTF-8, and safetensors could not read it. Rename it.\n')
    assert not (tmp_path / good).exists()


@pytest.mark.slow
def test_coco_mini_reaches_40_map(coco_mini, lite0_weights, tmp_path):
    launch(
        SCRIPTS / 'train.py', '--config', 'coco2014', '--data-dir', coco_mini, '--output', tmp_path / 'run',
        '--backbone', 'tf_efficientnet_lite0', '--backbone-weights', lite0_weights, '--img-size', '224',
        '--epochs', '16', '--batch-size', '16', '--lr', '5e-4', '--backbone-lr', '3e-4', '--ema-decay', '0.99',
        '--cutmix', '0', '--min-crop', '0.4', '--mixed-precision', 'no', '--workers', '1', timeout=3600)
    assert json.loads((tmp_path / 'run' / 'report' / 'metrics.json').read_text())['mAP'] >= 0.4
