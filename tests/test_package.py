"""The wheel, in an environment of its own."""
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT, TINY, photo

from timm_fan.__main__ import COMMANDS
from timm_fan.models import BUNDLED

CODE = '''
import sys
import timm, timm_fan
print(timm_fan.__file__)
for name, probability in timm_fan.predict(sys.argv[1], topk=3):
    print(name, probability)
model = timm.create_model('fan_tf_efficientnet_lite2', pretrained=True, num_classes=7)
print(model.num_classes)
'''


def tracked(*paths):
    return subprocess.run(
        ['git', '-C', ROOT, 'ls-files', *paths], capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('dist')
    # a copy, because setuptools builds in the folder
    source = folder / 'source'
    source.mkdir()
    for name in tracked('pyproject.toml', 'README.md', 'LICENSE', 'timm_fan', 'train_scripts'):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', folder, source],
        check=True)
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """Runs a command in a new environment and folder, without network.

    Other packages come from this environment, timm_fan from the wheel.
    """
    folder = tmp_path_factory.mktemp('installed')
    venv.create(folder / 'env')
    binaries, site = (
        Path(sysconfig.get_path(name, vars=dict(base=str(folder / 'env')))) for name in ('scripts', 'purelib'))
    subprocess.run(
        [sys.executable, '-m', 'pip', '--python', binaries / 'python', 'install', '-q', '--no-deps', wheel], check=True)
    (site / 'others.pth').write_text(sysconfig.get_path('purelib') + '\n')
    photo(320, 240).save(folder / 'photo.jpg')
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'HF_ENDPOINT')}
    env.update(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true')

    def run(program, *args):
        command = [binaries / program, *map(str, args)]
        result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result.stdout

    run.folder, run.site = folder, site
    return run


def test_the_wheel_has_the_package_its_bundled_model_and_the_programs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert set(tracked('timm_fan')) <= names
    assert {f'timm_fan/weights/{BUNDLED}/{name}' for name in ('config.json', 'model.safetensors')} <= names
    configs = {name.replace('train_scripts', 'timm_fan/programs') for name in tracked('train_scripts/configs')}
    programs = {f'timm_fan/programs/{program}.py' for program, _ in COMMANDS.values()}
    assert configs | programs <= names and len(configs) > 7
    assert not [name for name in names if 'results' in name]
    assert wheel.stat().st_size < 16e6


def test_an_installed_wheel_names_what_is_on_a_photograph_without_network(installed):
    where, *labels, num_classes = installed('python', '-c', CODE, 'photo.jpg').splitlines()
    assert Path(where).is_relative_to(installed.site) and len(labels) == 3 and num_classes == '7'


def test_the_command_lists_and_runs_the_programs(installed):
    page = installed('timm-fan', '--help')
    assert all(f'\n  {command} ' in page for command in COMMANDS)
    assert installed('timm-fan', 'predict', 'photo.jpg').startswith('photo.jpg: ')


def test_an_installed_wheel_trains_in_the_current_folder(installed, coco_folder):
    options = ['--config', 'scenes', *TINY[2:], '--epochs', '1', '--data-dir', coco_folder]
    installed('python', '-m', 'timm_fan', 'train', *options)
    run = installed.folder / 'runs' / 'scenes'
    assert (run / 'best' / 'model.safetensors').is_file() and (run / 'report' / 'report.html').is_file()
