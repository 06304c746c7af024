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
from .fold import fold_batch_norm

__all__ = [
    'FAN',
    'Backbone',
    'create_model',
    'fold_batch_norm',
    'label_names',
    'load_model',
    'model_folder',
    'model_thresholds',
    'save_model',
    'save_thresholds',
]
