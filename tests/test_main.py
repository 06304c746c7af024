"""`timm-fan COMMAND` and `python -m timm_fan COMMAND` in a clone."""
import sys

import pytest
from helpers import SCRIPTS

from timm_fan import __main__ as main
from timm_fan import __version__

PROGRAMS = [program for program, _ in main.COMMANDS.values()]


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['timm-fan', *map(str, args)])
    monkeypatch.setattr(sys, 'path', [*sys.path])
    programs = [*PROGRAMS, 'command_line', 'train_options']
    for name in programs:
        monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        main.main()
    except SystemExit as stop:
        return stop.code
    finally:
        for name in programs:
            sys.modules.pop(name, None)
    return 0


@pytest.mark.parametrize('command', main.COMMANDS)
def test_the_help_page_of_each_command_is_about_it(monkeypatch, capsys, command):
    assert run(monkeypatch, command, '--help') == 0
    page = capsys.readouterr().out
    assert page.startswith(f'usage: timm-fan {command} ') and f'\n    timm-fan {command} ' in page
    assert not [program for program in PROGRAMS if f'train_scripts/{program}.py' in page]


def test_the_programs_are_those_of_the_clone(monkeypatch, tmp_path, capsys):
    assert main.programs_folder() == SCRIPTS
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, 'predict', 'none.jpg') == 2
    assert capsys.readouterr().err.endswith('error: No image file or folder none.jpg.\n')
    assert sys.argv == [str(SCRIPTS / 'predict.py'), 'none.jpg']


@pytest.mark.parametrize('args, code, stream, words', [
    ([], 2, 'out', '\n  train     train a model\n'),
    (['--help'], 0, 'out', '\n  inspect   look at a data set before training\n'),
    (['--version'], 0, 'out', __version__),
    (['drain'], 2, 'err', "invalid choice: 'drain' (choose from "),
])
def test_the_commands_are_listed(monkeypatch, capsys, args, code, stream, words):
    assert run(monkeypatch, *args) == code
    assert words in getattr(capsys.readouterr(), stream)


def test_one_message_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'yaml', None)
    assert run(monkeypatch, 'train') == 2
    assert capsys.readouterr().err == 'error: timm-fan train requires yaml: pip install "timm-fan[train]"\n'
