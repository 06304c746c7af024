"""The data of a training run."""
from pathlib import Path
from typing import List, Optional, Tuple

from accelerate import Accelerator
from torch.utils.data import DataLoader, RandomSampler, default_collate

from timm_fan.data import (
    EvalTransform,
    MultiLabelDataset,
    SeededSamples,
    collate,
    create_loader,
    create_splits,
    create_train_transform,
)
from timm_fan.errors import InputError
from timm_fan.processes import share_cores

from .features import FeatureCache
from .network import Network
from .options import TrainingOptions
from .training import Training


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


def set_transforms(
        train_set: MultiLabelDataset, val_set: MultiLabelDataset, network: Network, options: TrainingOptions) -> None:
    """Set the transforms of both splits, whose images are then uint8 (3, H, W).

    Raises:
        InputError: timm does not know the auto-augment.
    """
    try:
        train_set.transform = create_train_transform(network.train_config, (options.min_crop, 1.), options.aa)
    except (AssertionError, ValueError) as error:
        raise InputError(f'`aa={options.aa}` is not an auto-augment of timm. An example is rand-m7-mstd0.5.') from error
    val_set.transform = EvalTransform(network.data_config)


def create_loaders(
        train_set: MultiLabelDataset, val_set: MultiLabelDataset, training: Training, cache_dir: Path,
) -> List[DataLoader]:
    """Create the loaders of both splits, whose transforms must be set, prepared by Accelerate.

    The training loader gives (images, targets, indices) in whole batches only, so that an update is the same for any
    number of processes. The validation loader gives images and targets. Images are uint8 (B, 3, H, W). With
    `cache_features` both have the maps of the frozen backbone instead of images, and the model starts after it.

    Args:
        cache_dir: Where these maps are kept, in a file system that all machines share.

    Raises:
        InputError: The maps cannot be kept.
    """
    options, accelerator = training.options, training.accelerator
    workers = share_cores(options.workers)
    train_samples, val_samples, collate_fn = SeededSamples(train_set, options.seed), val_set, collate
    if options.cache_features:
        train_samples, val_samples = FeatureCache(cache_dir, training, workers).open(train_set, val_set)
        training.start_after_backbone()
        workers, collate_fn = share_cores(0), default_collate  # reading maps is copying
    sampler = RandomSampler(train_set, num_samples=training.updates_per_epoch * options.batch_size)
    common = dict(
        batch_size=training.images_at_once, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate_fn,
        pin_memory=accelerator.device.type == 'cuda')
    return accelerator.prepare(
        create_loader(train_samples, sampler=sampler, **common), create_loader(val_samples, **common))


def create_val_loader(val_set: MultiLabelDataset, training: Training) -> DataLoader:
    """The loader of the validation images themselves, prepared by Accelerate."""
    loader = create_loader(val_set, training.images_at_once, share_cores(training.options.workers))
    return training.accelerator.prepare(loader)
