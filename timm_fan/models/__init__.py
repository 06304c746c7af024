from .backbone import Backbone
from .fan import FAN

__all__ = ['FAN', 'Backbone']
