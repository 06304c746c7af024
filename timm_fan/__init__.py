"""The Feature Attention Network for multi-label image classification, as timm models.

Importing this package registers the `fan*` models with timm.
"""
from typing import Any

from .errors import InputError
from .models import FAN
from .version import __version__

__all__ = ['FAN', 'InputError', 'predict', '__version__']


def __getattr__(name: str) -> Any:
    if name == 'predict':  # what it imports is only loaded when it is used
        from .prediction import predict
        return predict
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
