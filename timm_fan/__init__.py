"""The Feature Attention Network for multi-label image classification, as timm models.

Importing this package registers the `fan*` models with timm.
"""
import importlib
import os
from typing import Any, List

# read when torch is loaded: threads that wait for each other sleep, instead of keeping cores that other programs use
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from .errors import InputError
from .models import FAN
from .version import __version__

# function -> module and name; what they import is only loaded when they are used
_FUNCTIONS = {
    'create_dataset': ('.data', 'create_dataset'),
    'evaluate': ('.evaluation', 'evaluate_dataset'),
    'load_model': ('.models', 'load_model'),
    'predict': ('.prediction', 'predict'),
    'read_table': ('.data', 'read_table'),
}

__all__ = ['FAN', 'InputError', '__version__', *_FUNCTIONS]


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module, function = _FUNCTIONS[name]
    return getattr(importlib.import_module(module, __name__), function)


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
