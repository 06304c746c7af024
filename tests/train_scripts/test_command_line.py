"""What the programs share: options, messages and exit codes."""
import argparse
import errno
import sys

import pytest
from helpers import SCRIPTS, load_program

from timm_fan import InputError


@pytest.fixture
def command_line(monkeypatch):
    return load_program(monkeypatch, 'command_line')


@pytest.mark.parametrize('program', [
    'train', 'validate', 'predict', 'explain', 'inspect_data', 'prepare_data', 'export', 'push_to_hub', 'release',
    'ablation', 'benchmark'])
def test_help_has_the_default_of_every_option(monkeypatch, program):
    parsers = [load_program(monkeypatch, program).build_parser()]
    for action in parsers[0]._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
    for parser in parsers:
        for action in parser._actions:
            if action.option_strings and action.nargs != 0 and not action.required:
                assert 'default' in parser._get_formatter()._expand_help(action), action.option_strings


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    parser.add_argument('images', nargs='*')
    parser.add_argument('-b', '--batch-size', type=int)
    parser.add_argument('--report', action=argparse.BooleanOptionalAction)
    parser.add_argument('--lr', dest='lr')
    commands = parser.add_subparsers()
    commands.add_parser('model').add_argument('--num-classes')
    commands.add_parser('data').add_argument('--short-side', '--side')
    return parser


@pytest.mark.parametrize('text, expected', [
    ('Lower `lr`.', 'Lower --lr.'),
    ('`report` and `lr` are wrong.', '--report and --lr are wrong.'),
    ('`lr=0.1` is too high.', '--lr 0.1 is too high.'),
    ('`lr=a value, with = and spaces`', '--lr a value, with = and spaces'),
    ('`lr=`', '--lr '),
    ('`num_classes=3` of one command, `short_side` of another',
     '--num-classes 3 of one command, --short-side of another'),
    ('`img_size=3` and `embed_dim` are not options, `images` has no flag.',
     'img_size=3 and embed_dim are not options, images has no flag.'),
    ('Call `timm.create_model()`, or `Predictor`.', 'Call `timm.create_model()`, or `Predictor`.'),
    ('Nothing to replace, lr and batch_size.', 'Nothing to replace, lr and batch_size.'),
])
def test_arguments_in_messages_are_shown_as_flags(command_line, parser, text, expected):
    assert command_line.with_flags(text, parser) == expected


def test_short_flags_come_first(command_line, parser):
    """As in the usage of argparse."""
    assert command_line.with_flags('`batch_size=8`', parser) == '-b 8'


@pytest.mark.parametrize('error, code, message', [
    (InputError('`lr=7` is too high.'), 2, 'error: --lr 7 is too high.\n'),
    (InputError('Caught InputError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n'
                '  File "x.py", line 1\ntimm_fan.errors.InputError: Raise `lr`.\n'), 2, 'error: Raise --lr.\n'),
    (FileNotFoundError(errno.ENOENT, 'No such file or directory', 'a.yaml'), 2,
     'error: a.yaml: No such file or directory.\n'),
    (OSError(errno.ENOSPC, 'No space left on device'), 2, 'error: the disk: No space left on device.\n'),
    (KeyboardInterrupt(), 130, 'interrupted\n'),
])
def test_errors_end_in_one_message(command_line, parser, capsys, error, code, message):
    with pytest.raises(SystemExit) as stop, command_line.exit_on_error(parser):
        raise error
    assert stop.value.code == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize('error', [ValueError('a bug'), ConnectionResetError(errno.ECONNRESET, 'by a peer')])
def test_other_errors_keep_their_traceback(command_line, parser, error):
    with pytest.raises(type(error)), command_line.exit_on_error(parser):
        raise error


def test_programs_run_with_their_arguments(command_line, parser, monkeypatch):
    found = []
    monkeypatch.setattr(sys, 'argv', ['program', '--lr', '3', '--no-report'])
    command_line.run_program(parser, found.append)
    assert (found[0].lr, found[0].report) == ('3', False)


def test_options_are_not_abbreviated(command_line, capsys):
    parser = command_line.create_parser('What it does.')
    parser.add_argument('--batch-size')
    with pytest.raises(SystemExit):
        parser.parse_args(['--batch', '3'])
    assert 'unrecognized arguments: --batch' in capsys.readouterr().err


def test_a_config_is_a_file_or_a_name(command_line, tmp_path):
    configs = SCRIPTS / 'configs'
    assert command_line.find_config('paper', configs, '`config`') == configs / 'paper.yaml'
    (tmp_path / 'own.yml').touch()
    assert command_line.find_config(f'{tmp_path}/own.yml', configs, '`config`') == tmp_path / 'own.yml'
    with pytest.raises(InputError, match='`config`: no file .*other.yaml. Use a YAML file or one of coco2014, paper'):
        command_line.find_config('other', configs, '`config`')


def test_unknown_devices_are_refused(command_line):
    command_line.check_device('cpu')
    with pytest.raises(InputError, match='`device=tpu7` is not a device of PyTorch. Use cuda, mps or cpu'):
        command_line.check_device('tpu7')
    for name in ('meta', 'xla'):
        with pytest.raises(InputError, match=f'`device={name}`: PyTorch cannot compute there. Use cuda, mps or cpu'):
            command_line.check_device(name)
