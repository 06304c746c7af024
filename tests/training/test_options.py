"""The options of a run: their ranges and types, from a file and from the command line."""
import random

import pytest
import yaml
from helpers import SCRIPTS, TINY, mutate, mutate_json, run_here

from timm_fan import InputError
from timm_fan.training import TrainingOptions, merge_options

# option, value, what is wrong with it
MISTAKES = [
    ('epochs', 0, 'should be greater than or equal to 1, got 0'),
    ('batch_size', -4, 'should be greater than or equal to 1, got -4'),
    ('img_size', 0, 'should be greater than or equal to 1, got 0'),
    ('img_size', 1.5, 'should be a valid integer, got 1.5'),
    ('lr', -0.1, 'should be greater than or equal to 0, got -0.1'),
    ('lr', float('nan'), 'should be a finite number, got nan'),
    ('lr', 'fast', "should be a valid number, got 'fast'"),
    ('lr_base_size', -4, 'should be greater than or equal to 1, got -4'),
    ('smoothing', 2, 'should be less than or equal to 0.99, got 2'),
    ('mixup', -1, 'should be greater than or equal to 0, got -1'),
    ('ema_decay', 1.5, 'should be less than or equal to 1, got 1.5'),
    ('seed', -1, 'should be greater than or equal to 0, got -1'),
    ('seed', 2 ** 32, 'should be less than or equal to 4294967295, got 4294967296'),
    ('workers', -1, 'should be greater than or equal to 0, got -1'),
    ('keep', 0, 'should be greater than or equal to 1, got 0'),
    ('max_bad_samples', 5, 'should be less than or equal to 1, got 5'),
    ('loss', 'hinge', "should be 'bce', 'asl', 'poly', 'twoway', 'zlpr', 'db' or 'focal', got 'hinge'"),
    ('sched', 'step', "should be 'cosine' or 'plateau', got 'step'"),
    ('non_finite', 'ignore', "should be 'stop' or 'skip', got 'ignore'"),
    ('device', 'tpu', "should be 'cuda', 'mps' or 'cpu', got 'tpu'"),
    ('class_weights', 'equal', "should be 'none' or 'balanced', got 'equal'"),
    ('patience', -1, 'should be greater than or equal to 0, got -1'),
    ('mixed_precision', 'int8', "should be 'no', 'bf16' or 'fp16', got 'int8'"),
]


@pytest.mark.parametrize('name, value, words', MISTAKES)
def test_a_file_and_the_command_line_report_a_mistake_alike(monkeypatch, capsys, tmp_path, name, value, words):
    file, output = tmp_path / 'own.yaml', tmp_path / 'run'
    file.write_text(yaml.safe_dump({name: value}))
    assert run_here(monkeypatch, 'train', '--config', file, '--output', output) == 2
    assert capsys.readouterr().err == f'error: {file}: {name} {words}.\n'
    flag = '--' + name.replace('_', '-')
    assert run_here(monkeypatch, 'train', f'{flag}={value}', '--output', output) == 2
    assert capsys.readouterr().err == f'error: {flag} {words}.\n'
    assert not output.exists()


@pytest.mark.parametrize('name, value, words', [
    ('epochs', True, 'should not be true or false, got True'),
    ('ema_decay', False, 'should not be true or false, got False'),
    ('freeze_bn', 'false', "should be true or false, got 'false'"),
    ('report', 1, 'should be true or false, got 1'),
    ('model_kwargs', ['frn=false'], "should be a valid dictionary, got ['frn=false']"),
    ('model', 3, 'should be a valid string, got 3'),
    ('batch_size', '1 000', "should be a valid integer, got '1 000'"),
])
def test_types_are_checked(name, value, words):
    with pytest.raises(InputError) as error:
        TrainingOptions.parse({name: value})
    assert str(error.value) == f'`{name}` {words}.'


def test_all_mistakes_are_reported_together():
    with pytest.raises(InputError) as error:
        TrainingOptions.parse(dict(epochs=0, lr='fast', batch_size=8))
    assert str(error.value) == (
        "`epochs` should be greater than or equal to 1, got 0.\n`lr` should be a valid number, got 'fast'.")


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match="Unknown option 'epoch'. Known: aa, backbone, .*, epochs, .*, workers.$"):
        TrainingOptions.parse(dict(epoch=3, batch_size=8))


def test_none_is_the_default():
    assert TrainingOptions.parse(dict(epochs=None, img_size=None)) == TrainingOptions()


@pytest.mark.parametrize('name', ['mixed_precision', 'torchcompile'])
def test_no_is_read_from_a_file_as_from_the_command_line(name):
    assert getattr(TrainingOptions.parse(yaml.safe_load(f'{name}: no')), name) == 'no'


def test_options_are_constant():
    with pytest.raises(ValueError, match='frozen'):
        TrainingOptions().epochs = 3


def test_a_plateau_requires_every_evaluation():
    with pytest.raises(InputError, match='`sched=plateau` .* not `val_interval=2`'):
        TrainingOptions.parse(dict(sched='plateau', val_interval=2))


def test_later_options_replace_earlier_ones_and_model_kwargs_are_merged():
    first = dict(epochs=3, lr=0.1, model_kwargs=dict(frn=False, cln=False))
    assert merge_options(first, None, dict(lr=0.2, model_kwargs=dict(cln=True))) == dict(
        epochs=3, lr=0.2, model_kwargs=dict(frn=False, cln=True))
    assert merge_options(first, dict(model_kwargs=None))['model_kwargs'] == first['model_kwargs']


def test_config_file_is_checked(monkeypatch, capsys, coco_folder, tmp_path):
    for content, words in (
            ('epoch: 3', "Unknown option 'epoch'"), ('lr: fast', "lr should be a valid number, got 'fast'"),
            ('[1, 2', 'YAML'), ('- 3', 'must contain lines of option: value'),
            ('freeze_bn: "false"', "freeze_bn should be true or false, got 'false'"),
            ('model_kwargs: [frn=false]', "model_kwargs should be a valid dictionary, got ['frn=false']")):
        file = tmp_path / 'own.yaml'
        file.write_text(content)
        code = run_here(monkeypatch, 'train', '--config', file, '--data-dir', coco_folder, '--output', tmp_path / 'run')
        error = capsys.readouterr().err
        assert code == 2 and words in error and str(file) in error and 'Traceback' not in error


@pytest.mark.filterwarnings('ignore')
def test_100_mutated_configs(monkeypatch, capsys, tmp_path):
    """Each ends in one message, at the latest because there is no data; nothing is written."""
    chance = random.Random(0)
    original = (SCRIPTS / 'configs' / 'coco2014.yaml').read_bytes()
    file = tmp_path / 'own.yaml'
    for i in range(100):
        if i % 2:
            options = mutate_json(yaml.safe_load(original), chance)
            file.write_text(yaml.safe_dump(options))
        else:
            file.write_bytes(mutate(original, chance))
        code = run_here(
            monkeypatch, 'train', '--config', file, '--data', 'coco2014', '--data-dir', tmp_path / 'none', '--output',
            tmp_path / 'run', '--log-with', 'none', '--batch-size', '8')
        error = capsys.readouterr().err
        assert code == 2 and 'error:' in error and 'Traceback' not in error, (file.read_text(), error)
        assert not (tmp_path / 'run').exists()


def test_the_learning_rate_follows_the_batch_size(monkeypatch, coco_folder, tmp_path):
    for opt, factor in (('momentum', 0.25), ('adamw', 0.5)):
        run = tmp_path / opt
        options = [*TINY, '--epochs', '1', '--warmup-epochs', '0', '--opt', opt, '--lr', '0.1', '--lr-base-size', '32']
        assert run_here(
            monkeypatch, 'train', *options, '--data-dir', coco_folder, '--output', run, '--no-report') == 0
        assert yaml.safe_load((run / 'config.yaml').read_text())['lr'] == pytest.approx(0.1 * factor)


def test_the_rate_of_the_backbone_is_that_of_the_new_layers_unless_it_is_given():
    assert TrainingOptions(lr=0.2).resolved().backbone_lr == 0.2
    options = TrainingOptions(lr=0.2, backbone_lr=0.1, opt='sgd', batch_size=64, lr_base_size=32).resolved()
    assert (options.lr, options.backbone_lr, options.lr_base_size) == (0.4, 0.2, None)
    assert options.resolved() == options
