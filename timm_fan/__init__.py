"""The Feature Attention Network for multi-label image classification, as timm models.

Importing this package registers the `fan*` models with timm.
"""
from .errors import InputError
from .models import FAN
from .version import __version__

__all__ = ['FAN', 'InputError', '__version__']
