from .backbone import Backbone
from .factory import create_model, label_names, load_model, save_model
from .fan import FAN

__all__ = ['FAN', 'Backbone', 'create_model', 'label_names', 'load_model', 'save_model']
