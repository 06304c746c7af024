"""Batches of a data set."""
from typing import Any, Callable, List, Sequence, Tuple

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from timm_fan.processes import ignore_signals


def stack_images(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Images (C, H, W) as a batch (B, C, H, W) in channels_last

    The transforms produce images in channels_last, so that each is copied without reordering.
    """
    return default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def collate(samples: Sequence[Tuple[Any, ...]]) -> List[Any]:
    """PyTorch's `default_collate` for tuples that start with an image, with the images in channels_last."""
    images, *others = zip(*samples)
    return [stack_images(images), *map(default_collate, others)]


def create_loader(
        dataset: Dataset, batch_size: int, num_workers: int = 0, collate_fn: Callable = collate, **kwargs: Any,
) -> DataLoader:
    """A DataLoader for tuples that start with an image (C, H, W), by default in the order of the data set."""
    return DataLoader(
        dataset, batch_size, num_workers=num_workers, collate_fn=collate_fn, worker_init_fn=ignore_signals, **kwargs)
