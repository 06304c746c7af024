import subprocess
import sys

import pytest

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
