"""The wheel, in an environment of its own."""
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT, photo

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


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('dist')
    # a copy, because setuptools builds in the folder
    source = folder / 'source'
    source.mkdir()
    files = subprocess.run(
        ['git', '-C', ROOT, 'ls-files', 'pyproject.toml', 'README.md', 'LICENSE', 'timm_fan'], capture_output=True,
        text=True, check=True).stdout.split()
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', folder, source],
        check=True)
    return next(folder.glob('*.whl'))


def test_the_wheel_has_the_bundled_model(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f'timm_fan/weights/{BUNDLED}/{name}' for name in ('config.json', 'model.safetensors')} <= names
    assert {'timm_fan/report/templates/report.html', 'timm_fan/publish/templates/card.md'} <= names
    assert wheel.stat().st_size < 16e6


def test_an_installed_wheel_names_what_is_on_a_photograph_without_network(wheel, tmp_path):
    """Other packages come from this environment, timm_fan from the wheel."""
    venv.create(tmp_path / 'env')
    site = Path(sysconfig.get_path('purelib', vars=dict(base=str(tmp_path / 'env'))))
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', site, wheel], check=True)
    (site / 'others.pth').write_text(sysconfig.get_path('purelib') + '\n')
    photo(320, 240).save(tmp_path / 'photo.jpg')
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'HF_ENDPOINT')}
    offline = dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
    result = subprocess.run(
        [tmp_path / 'env' / 'bin' / 'python', '-c', CODE, tmp_path / 'photo.jpg'], cwd=tmp_path, env={**env, **offline},
        capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    where, *labels, num_classes = result.stdout.splitlines()
    assert Path(where).is_relative_to(site) and len(labels) == 3 and num_classes == '7'
