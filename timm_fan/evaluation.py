"""Evaluation of a model on a data set, for training and programs alike."""
import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import broadcast, tqdm
from timm.data import resolve_model_data_config
from torch.utils.data import DataLoader

from .data import EvalTransform, MultiLabelDataset, Normalize, create_dataset, create_loader
from .data.statistics import class_scales, largest_areas
from .errors import InputError
from .metrics.binned import BinnedEvaluator, BinnedScores
from .metrics.bootstrap import Interval, bootstrap
from .metrics.groups import GroupScores, score_groups
from .metrics.scores import NOTHING_KNOWN, MultiLabelScores, evaluate_logits
from .metrics.text import format_scores
from .models import label_names, load_model, model_thresholds

Threshold = Union[float, Sequence[float]]


def check_class_names(model_names: Sequence[str], data_names: Sequence[str], what: str = 'data') -> None:
    """Raise InputError unless a model and `what` have the same classes in the same order."""
    if len(model_names) != len(data_names):
        raise InputError(
            f'The model has {len(model_names)} classes, but the {what} has {len(data_names)}. They must be the same.')
    for i, (ours, theirs) in enumerate(zip(model_names, data_names)):
        if ours != theirs:
            raise InputError(
                f"Class {i} is '{ours}' in the model, but '{theirs}' in the {what}. They must be the same, in the same"
                ' order.')


def dataset_for_model(
        model: nn.Module, data: Union[str, MultiLabelDataset], data_dir: Union[str, Path], split: str,
        division: Optional[Path] = None) -> MultiLabelDataset:
    """A split of a data source, with the transform and the classes of a trained model.

    Args:
        model: From `load_model`.
        data, data_dir, split, division: As for `create_dataset`. `data` may also be a data set, which is left as it is.

    Raises:
        InputError: The data cannot be read, or has other classes or another order of them.
    """
    named = bool(model.pretrained_cfg.get('label_names'))
    names = label_names(model)
    if isinstance(data, str):
        dataset = create_dataset(
            data, data_dir, split, class_names=names if named else None, division=division)
    else:
        dataset = copy.copy(data)
    dataset.transform = EvalTransform(resolve_model_data_config(model))
    # without names, only the number of classes can be compared
    unnamed = not named and len(names) == len(dataset.class_names)
    check_class_names(dataset.class_names if unnamed else names, dataset.class_names)
    return dataset


def share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Copy the buffers of the main process, such as BatchNorm statistics, to the others, to evaluate what is saved."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))


def refuse_nan(logits: torch.Tensor) -> None:
    """Raise InputError if a logit (B, num_classes) is NaN."""
    broken = logits.isnan().any(dim=1)
    if broken.any():
        raise InputError(
            f'The model gives NaN for {int(broken.sum())} of {len(broken)} images. Its weights are damaged, or'
            ' `mixed_precision` has too small a range for it.')


@torch.no_grad()
def _gathered(
        model: nn.Module, loader: DataLoader, accelerator: Accelerator, description: str,
) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
    """float32 logits and targets of each batch from all processes, without the samples that pad the last batch."""
    model.eval()
    normalize = Normalize.of(model, accelerator.device)
    for images, targets, *_ in tqdm(loader, desc=description, leave=False):
        if isinstance(images, torch.Tensor):  # not the maps of a backbone
            images = normalize(images)
        with accelerator.autocast():
            logits = model(images)
        # gathering once after the loop would keep the padding
        logits, targets = accelerator.gather_for_metrics((logits.float(), targets))
        refuse_nan(logits)
        yield logits, targets


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Results of a model on a data set. `print` shows the scores as validate.py does.

    Attributes:
        dataset: The evaluated data set.
        logits: float32 (N, num_classes) in its order.
        targets: 1 present, 0 absent, -1 unknown or unreadable image, (N, num_classes).
        threshold: Probability above which a label is predicted, one for all classes or one per class.
        scores: All scores.
    """
    dataset: MultiLabelDataset
    logits: torch.Tensor
    targets: torch.Tensor
    threshold: Threshold
    scores: MultiLabelScores

    def __repr__(self) -> str:
        scores = self.scores
        return (f'<Evaluation: mAP {100 * scores.mAP:.2f}, CF1 {100 * scores.all.CF1:.2f}, OF1'
                f' {100 * scores.all.OF1:.2f} on {scores.num_images} images, {len(scores.per_class)} classes>')

    def __str__(self) -> str:
        return format_scores(self.scores)

    @classmethod
    def of(
            cls,
            dataset: MultiLabelDataset,
            logits: torch.Tensor,
            targets: torch.Tensor,
            threshold: Threshold = 0.5,
            top3_above_threshold: bool = True,
    ) -> 'Evaluation':
        """Compute the scores of logits. Args and errors as for `timm_fan.metrics.evaluate_logits`."""
        scores = evaluate_logits(logits, targets, dataset.class_names, threshold, top3_above_threshold)
        return cls(dataset, logits, targets, threshold, scores)

    def intervals(self, samples: int = 1000) -> Dict[str, Interval]:
        """95% intervals of mAP, CF1 and OF1 over images, from this many resamples; empty for 0."""
        return bootstrap(self.logits, self.targets, self.threshold, samples) if samples else {}

    def groups(self) -> GroupScores:
        """Scores of the rarest classes, of the smallest classes, and by the size of objects."""
        return score_groups(
            self.scores, self.logits, self.targets, self.threshold, class_scales(self.dataset),
            largest_areas(self.dataset))

    def to_dict(self, intervals: Dict[str, Interval], groups: GroupScores) -> Dict[str, Any]:
        """Scores, intervals and groups for JSON."""
        intervals = {name: asdict(interval) for name, interval in intervals.items()}
        return {**asdict(self.scores), 'intervals': intervals, 'groups': asdict(groups)}


def evaluate(
        model: nn.Module,
        loader: DataLoader,
        accelerator: Accelerator,
        threshold: Threshold = 0.5,
        top3_above_threshold: bool = True,
        description: str = 'evaluate',
) -> Evaluation:
    """Evaluate a model on all images of a loader, the same in every process.

    Args:
        model: Model on the device of the accelerator, not wrapped for DDP. It is left in evaluation mode.
        loader: Loader of (images, targets), prepared by the accelerator, not shuffled. uint8 images are normalized for
            the model.
        accelerator: Accelerator that gathers batches and drops the samples that pad the last one.
        threshold: Probability above which a label is predicted, one for all classes or one per class.
        top3_above_threshold: Protocol of the Top-3 scores, see `timm_fan.metrics.evaluate_logits`.
        description: Text of the progress bar.

    Raises:
        InputError: A logit is NaN, or no label is known.
    """
    batches = [(logits.cpu(), targets.cpu()) for logits, targets in _gathered(model, loader, accelerator, description)]
    logits, targets = (torch.cat(parts) for parts in zip(*batches))
    assert len(logits) == len(loader.dataset)
    return Evaluation.of(loader.dataset, logits, targets, threshold, top3_above_threshold)


def evaluate_dataset(
        model: Union[str, Path, nn.Module],
        data: Union[str, MultiLabelDataset],
        data_dir: Union[str, Path] = 'data',
        split: str = 'val',
        threshold: Optional[Threshold] = None,
        batch_size: int = 32,
        workers: int = 0,
) -> Evaluation:
    """Evaluate a trained model on a data set, as `timm_fan.evaluate`, on the GPU if there is one.

        evaluation = timm_fan.evaluate('runs/scenes', 'scenes')
        print(evaluation)
        evaluation.scores.mAP, evaluation.scores.per_class[0].AP        # in 0..1

    Args:
        model: As `source` for `load_model`, or a model from there, which is moved to the device and left in evaluation
            mode.
        data: A data set with the classes of the model, in their order, or the address of one, as for `create_dataset`.
        data_dir, split: As for `create_dataset`, if `data` is an address.
        threshold: Probability above which a label is predicted, one for all classes or one per class, by default those
            of the model.
        batch_size: Number of images that are computed at once.
        workers: Number of processes that load images, 0 for none.

    Raises:
        InputError: The model or the data cannot be read, the classes differ, a logit is NaN, or no label is known.
    """
    if not isinstance(model, nn.Module):
        model = load_model(model)
    accelerator = Accelerator()
    dataset = dataset_for_model(model, data, data_dir, split)
    loader = accelerator.prepare(create_loader(dataset, batch_size, workers))
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    return evaluate(model, loader, accelerator, model_thresholds(model) if threshold is None else threshold)


def evaluate_binned(
        model: nn.Module,
        loader: DataLoader,
        accelerator: Accelerator,
        threshold: Threshold = 0.5,
        top3_above_threshold: bool = True,
) -> BinnedScores:
    """`evaluate` in constant memory for any number of images, with bounds for mAP. Raises as `evaluate` does."""
    evaluator = BinnedEvaluator(
        len(loader.dataset.class_names), threshold=threshold, top3_above_threshold=top3_above_threshold)
    for logits, targets in _gathered(model, loader, accelerator, 'evaluate'):
        evaluator.update(logits, targets)
    scores = evaluator.compute()
    if not scores.num_images:
        raise InputError(NOTHING_KNOWN)
    return scores
