from .backbone import Backbone
from .factory import create_model
from .fan import FAN
from .folder import is_model, label_names, load_model, model_folder, model_thresholds, save_model, save_thresholds
from .pretrained import BUNDLED
