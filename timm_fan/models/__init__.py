from .backbone import Backbone
from .factory import (
    create_model,
    label_names,
    load_model,
    model_folder,
    model_thresholds,
    save_model,
    save_thresholds,
)
from .fan import FAN

__all__ = [
    'FAN',
    'Backbone',
    'create_model',
    'label_names',
    'load_model',
    'model_folder',
    'model_thresholds',
    'save_model',
    'save_thresholds',
]
