"""The Feature Attention Network for multi-label image classification, as timm models.

Importing this package registers `fan*` with timm.
"""
from .errors import InputError
from .models import FAN

__version__ = '0.1.0.dev0'
__all__ = ['FAN', 'InputError', '__version__']
