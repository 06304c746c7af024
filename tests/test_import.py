import subprocess
import sys


def test_import_loads_little_beyond_timm():
    """Other packages would make it slow; only the client of the Hub is needed."""
    code = ('import sys, timm; before = set(sys.modules); import timm_fan; '
            'print(*{name.split(".")[0] for name in set(sys.modules) - before})')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) <= {'timm_fan', 'huggingface_hub', 'safetensors'}
