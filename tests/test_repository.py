"""What files of the repository say about each other."""
import re

from helpers import ROOT


def test_ci_runs_the_test_command_of_the_readme():
    commands = re.findall(r'^python3 -m venv .*\bpython .*$', (ROOT / 'README.md').read_text(), flags=re.M)
    assert len(commands) == 2
    assert 'train_scripts/train.py' in commands[0] and 'pytest' in commands[1]
    # bash -e ignores what fails before the last &&
    assert f'{commands[1]} || exit' in (ROOT / '.ci' / 'run').read_text().splitlines()
