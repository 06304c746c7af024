from .data import create_loaders, create_val_loader, open_splits, set_transforms
from .engine import accelerator_on, create_accelerator, images_at_once
from .loss import LOSSES, create_loss
from .network import create_network, starting_point
from .options import TrainingOptions, merge_options
from .run_folder import RunFolder, new_record
from .training import Training
from .watch import Watch, memory_errors
