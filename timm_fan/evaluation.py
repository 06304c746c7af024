"""What programs that evaluate a model share: its data set, and the loop."""
from pathlib import Path
from typing import Iterator, Sequence, Tuple, Union

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import broadcast, tqdm
from timm.data import resolve_model_data_config
from torch.utils.data import DataLoader

from .data import MultiLabelDataset, Normalize, create_dataset, create_transform
from .errors import InputError
from .models import label_names
from .streaming import BinnedEvaluator, BinnedScores

__all__ = ['dataset_for_model', 'predict_binned', 'predict_logits', 'share_buffers']


def dataset_for_model(model: nn.Module, data: str, root: Union[str, Path], split: str) -> MultiLabelDataset:
    """A split of a data source with the transform and the classes of a trained model.

    Args:
        model: As `load_model` gives it.
        data, root, split: As of `create_dataset`.

    Raises:
        InputError: The data cannot be read, or has other classes or another order of them.
    """
    names = label_names(model)
    known = names if model.pretrained_cfg.get('label_names') else None
    dataset = create_dataset(data, root, split, create_transform(**resolve_model_data_config(model)), known)
    if len(names) != len(dataset.class_names):
        raise InputError(
            f'The model has {len(names)} classes, the data {len(dataset.class_names)}: give the --data it was trained'
            ' on.')
    for i, (model_name, data_name) in enumerate(zip(known or (), dataset.class_names)):
        if model_name != data_name:
            raise InputError(f"Class {i} is '{model_name}' in the model, '{data_name}' in the data: not its classes.")
    return dataset


def share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the main process's buffers (BatchNorm statistics differ), the ones that are saved."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))


@torch.no_grad()
def _gathered(
        model: nn.Module,
        loader: DataLoader,
        accelerator: Accelerator,
        description: str,
) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
    """float32 logits and targets of each batch, of all processes and without the padding that evens them out."""
    model.eval()
    normalize = Normalize.of(model, accelerator.device)
    for images, targets in tqdm(loader, desc=description, leave=False):
        images = normalize(images)
        with accelerator.autocast():
            logits = model(images)
        # gathering the whole after the loop would keep the padding
        yield accelerator.gather_for_metrics((logits.float(), targets))


def predict_logits(
        model: nn.Module,
        loader: DataLoader,
        accelerator: Accelerator,
        description: str = 'evaluate',
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Run a model over a prepared loader.

    Args:
        model: Not wrapped for DDP, on the accelerator's device; left in eval mode.
        loader: Of (images, targets), prepared by the accelerator, not shuffled; uint8 images are normalized here, as
            the model's config says.
        accelerator: Gathers batches and drops the samples that even out the processes.
        description: Text of the progress bar.

    Returns:
        float32 logits and targets (N, num_classes) on the CPU, N = len(loader.dataset), in its order, the same on every
        process.

    Raises:
        InputError: A logit is NaN, or a stream has fewer images than its length says.
    """
    batches = [(logits.cpu(), targets.cpu()) for logits, targets in _gathered(model, loader, accelerator, description)]
    logits, targets = (torch.cat(parts) for parts in zip(*batches))
    if len(logits) != len(loader.dataset):
        raise InputError(
            f'The data set gave {len(logits)} of {len(loader.dataset)} images: a stream needs its true val_length=.')
    _refuse_nan(logits)
    return logits, targets


def _refuse_nan(logits: torch.Tensor) -> None:
    sick = logits.isnan().any(dim=1)
    if sick.any():
        raise InputError(
            f'The model gives NaN for {int(sick.sum())} of {len(sick)} images. Its weights are broken, or'
            ' --mixed-precision is too narrow for it.')


def predict_binned(
        model: nn.Module,
        loader: DataLoader,
        accelerator: Accelerator,
        threshold: Union[float, Sequence[float]] = 0.5,
        top3_above_threshold: bool = True,
) -> BinnedScores:
    """Evaluate without keeping scores, however many images there are; arguments as in `predict_logits`."""
    evaluator = None
    for logits, targets in _gathered(model, loader, accelerator, 'evaluate'):
        if evaluator is None:
            evaluator = BinnedEvaluator(
                logits.shape[1], threshold=threshold, top3_above_threshold=top3_above_threshold)
        _refuse_nan(logits)
        evaluator.update(logits, targets)
    scores = evaluator.compute()
    if not scores.num_images:
        raise InputError('No label of the data set is known: there is nothing to evaluate.')
    return scores
