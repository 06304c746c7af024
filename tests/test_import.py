import subprocess
import sys

import pytest
from helpers import SCRIPTS

import timm_fan
from timm_fan import data, models, prediction


def test_import_loads_little_beyond_timm():
    """Other packages would make it slow; only the client of the Hub is needed."""
    code = ('import sys, timm; before = set(sys.modules); import timm_fan; '
            'print(*{name.split(".")[0] for name in set(sys.modules) - before})')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) <= {'timm_fan', 'huggingface_hub', 'safetensors'}


def test_functions_are_listed_and_load_when_they_are_used():
    assert set(timm_fan.__all__) <= set(dir(timm_fan))
    assert timm_fan.create_dataset is data.create_dataset and timm_fan.read_table is data.read_table
    assert timm_fan.load_model is models.load_model and timm_fan.predict is prediction.predict
    with pytest.raises(AttributeError, match="module 'timm_fan' has no attribute 'nothing'"):
        timm_fan.nothing()


# says what OpenMP would read when torch is loaded, and what --help has loaded
PROGRAM = """
import contextlib, io, os, runpy, sys
class Watch:
    def find_spec(self, name, *_):
        if name == 'torch':
            print(os.environ.get('OMP_WAIT_POLICY'))
sys.meta_path.insert(0, Watch())
sys.path.insert(0, os.path.dirname(sys.argv[1]))
sys.argv = [sys.argv[1], '--help']
with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
    runpy.run_path(sys.argv[0], run_name='__main__')
print(*{name.split('.')[0] for name in sys.modules})
"""


@pytest.mark.parametrize('program, policy', [('train', None), ('predict', 'ACTIVE')])
def test_programs_load_what_they_use_and_let_waiting_threads_sleep(monkeypatch, program, policy):
    """Plots, data sets, logging and export load what they need later. A user may choose another policy."""
    monkeypatch.delenv('OMP_WAIT_POLICY', raising=False)
    if policy:
        monkeypatch.setenv('OMP_WAIT_POLICY', policy)
    command = [sys.executable, '-c', PROGRAM, str(SCRIPTS / f'{program}.py')]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert (policy or 'PASSIVE') in lines and 'None' not in lines
    later = {'matplotlib', 'scipy', 'sklearn', 'datasets', 'pandas', 'jinja2', 'tensorboard', 'iterstrat', 'onnx',
             'onnxruntime', 'transformers', 'gradio'}
    assert not later & set(lines[-1].split())
