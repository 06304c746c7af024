"""What files of the repository say about each other."""
import re

from helpers import ROOT


def test_ci_runs_the_test_command_of_the_readme():
    commands = re.findall(r'^python3 -m venv .*\bpython .*$', (ROOT / 'README.md').read_text(), flags=re.M)
    assert len(commands) == 2
    assert 'train_scripts/train.py' in commands[0] and 'pytest' in commands[1]
    # bash -e ignores what fails before the last &&
    assert f'{commands[1]} || exit' in (ROOT / '.ci' / 'run').read_text().splitlines()


def test_pages_have_no_placeholders():
    pages = [ROOT / 'README.md', *(ROOT / 'hub_cards').rglob('*.md'), *(ROOT / 'train_scripts').rglob('*.md')]
    assert not [page for page in pages if re.search(r'@[A-Z0-9]+@', page.read_text())]
