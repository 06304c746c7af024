"""timm's own test suite over every `fan*` name, from the source distribution of the installed version."""
import os
import re
import subprocess
import sys
import tarfile

import pytest
import timm
from helpers import ROOT


@pytest.mark.timm_suite
def test_timms_own_suite_passes(tmp_path):
    download = subprocess.run(
        [sys.executable, '-m', 'pip', 'download', f'timm=={timm.__version__}', '--no-binary', ':all:', '--no-deps',
         '--dest', str(tmp_path)], capture_output=True, text=True)
    if download.returncode:
        cause = download.stderr.strip()[-200:]
        pytest.skip(f"requires timm's source distribution, which pip could not download: {cause}")
    with tarfile.open(next(tmp_path.glob('timm-*.tar.gz'))) as archive:
        archive.extractall(tmp_path, filter='data')
    # one thread, because other tests may run at the same time
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    run = subprocess.run(
        [sys.executable, '-m', 'pytest', '-p', 'timm_fan', 'tests/test_models.py', '-k', 'fan', '-q'],
        cwd=tmp_path / f'timm-{timm.__version__}', env=env, capture_output=True, text=True)
    print(run.stdout[-3000:])
    assert run.returncode == 0, run.stdout[-5000:]
    passed = re.search(r'(\d+) passed', run.stdout)
    # at least forward, backward, config, features, TorchScript and FX for each name
    assert passed and int(passed[1]) >= 6 * len(timm.list_models('fan*')), run.stdout[-500:]
