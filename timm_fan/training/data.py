"""The data of a training run."""
from pathlib import Path
from typing import List, Optional, Tuple

from accelerate import Accelerator
from torch.utils.data import DataLoader, RandomSampler

from timm_fan.data import (
    EvalTransform,
    MultiLabelDataset,
    SeededSamples,
    create_loader,
    create_splits,
    create_train_transform,
)
from timm_fan.errors import InputError
from timm_fan.processes import share_cores

from .engine import images_at_once
from .network import Network
from .options import TrainingOptions


def open_splits(
        options: TrainingOptions, accelerator: Accelerator, division: Optional[Path] = None,
) -> Tuple[MultiLabelDataset, MultiLabelDataset]:
    """Open the training and validation split. One process of each machine draws the scenes before the others.

    Args:
        options: Options of the run.
        accelerator: From `create_accelerator`.
        division: As for `create_splits`.

    Raises:
        InputError: They cannot be read, or there are fewer training images than in a batch.
    """
    with accelerator.local_main_process_first():
        train_set, val_set = create_splits(options.data, options.data_dir, division)
    if len(train_set) < options.batch_size:
        raise InputError(f'{len(train_set)} training images are fewer than one batch: lower `batch_size`.')
    return train_set, val_set


def create_loaders(
        train_set: MultiLabelDataset,
        val_set: MultiLabelDataset,
        network: Network,
        options: TrainingOptions,
        accelerator: Accelerator,
) -> List[DataLoader]:
    """Set the transforms of both splits, and create their loaders, prepared by Accelerate.

    The training loader gives (images, targets, indices) in whole batches only, so that an update is the same for any
    number of processes. The validation loader gives (images, targets). Images are uint8 (B, 3, H, W).

    Raises:
        InputError: timm does not know the auto-augment.
    """
    try:
        train_set.transform = create_train_transform(network.train_config, (options.min_crop, 1.), options.aa)
    except (AssertionError, ValueError) as error:
        raise InputError(f'`aa={options.aa}` is not an auto-augment of timm. An example is rand-m7-mstd0.5.') from error
    val_set.transform = EvalTransform(network.data_config)
    images = images_at_once(options, accelerator)
    sampler = RandomSampler(train_set, num_samples=len(train_set) // options.batch_size * options.batch_size)
    workers = share_cores(options.workers)
    common = dict(
        num_workers=workers, persistent_workers=workers > 0, pin_memory=accelerator.device.type == 'cuda')
    train_loader = create_loader(SeededSamples(train_set, options.seed), images, sampler=sampler, **common)
    return accelerator.prepare(train_loader, create_loader(val_set, images, **common))
