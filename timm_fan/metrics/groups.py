"""The two difficult groups of the paper: classes of the tail and classes of small objects (Tables 3 and 4)."""
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Union

import numpy as np
import torch

from timm_fan.data import MultiLabelDataset
from timm_fan.data.statistics import class_scales

from .scores import MultiLabelScores, predict_labels

# sides of a square in pixels of the stored image, below which an object is small or medium, as in COCO
SMALL, MEDIUM = 32, 96


@dataclass(frozen=True)
class Group:
    """Some classes, and the mean of their AP in 0..1, None if none has a positive."""
    classes: List[str]
    mAP: Optional[float]


@dataclass(frozen=True)
class SizeRecall:
    """Recall in 0..1 of the labels whose largest object has a certain size, and their number."""
    recall: Optional[float]
    labels: int


@dataclass(frozen=True)
class GroupScores:
    """Attributes:
        tail: The rarest classes of the evaluated set that have a positive.
        small: The classes whose objects cover the smallest share of the image, None without boxes.
        recall_by_size: 'small', 'medium', 'large' by the area of boxes, as in COCO, None without boxes.
    """
    tail: Group
    small: Optional[Group]
    recall_by_size: Optional[Dict[str, SizeRecall]]


def score_groups(
        scores: MultiLabelScores,
        logits: torch.Tensor,
        targets: torch.Tensor,
        dataset: MultiLabelDataset,
        threshold: Union[float, Sequence[float]] = 0.5,
        num_classes: int = 6,
) -> GroupScores:
    """AP of the rarest and of the smallest classes, six as in Section IV-D1, and recall by the size of objects.

    Args:
        scores: From `evaluate_logits` for the same logits.
        logits: (N, num_classes) in the order of the data set.
        targets: As they were evaluated, (N, num_classes).
        dataset: The evaluated data set.
        threshold: Probability above which a label is predicted, one for all classes or one per class.
        num_classes: Number of classes in a group.
    """
    rated = [i for i, c in enumerate(scores.per_class) if c.AP is not None]

    def group(key: Callable[[int], float]) -> Group:
        chosen = sorted(rated, key=key)[:num_classes]
        aps = [scores.per_class[i].AP for i in chosen]
        return Group([scores.per_class[i].name for i in chosen], sum(aps) / len(aps) if aps else None)

    tail = group(lambda i: scores.per_class[i].positives)
    scales = class_scales(dataset)
    small = group(lambda i: scales[i] if not np.isnan(scales[i]) else np.inf) if scales is not None else None
    recalls = None if dataset.boxes is None else _recall_by_size(
        predict_labels(logits, threshold), targets == 1, dataset)
    return GroupScores(tail, small, recalls)


def _recall_by_size(
        predicted: torch.Tensor, present: torch.Tensor, dataset: MultiLabelDataset) -> Dict[str, SizeRecall]:
    boxes, count = dataset.boxes, len(dataset.class_names)
    largest = np.zeros(len(dataset) * count, dtype=np.float32)
    np.maximum.at(largest, boxes.images() * count + boxes.labels, boxes.boxes[:, 2] * boxes.boxes[:, 3])
    pairs = np.flatnonzero(largest)
    predicted = predicted.numpy().reshape(-1)[pairs]
    present = present.numpy().reshape(-1)[pairs]  # without unknown labels
    sizes = np.digitize(largest[pairs], [SMALL ** 2, MEDIUM ** 2])
    recalls = {}
    for i, name in enumerate(('small', 'medium', 'large')):
        chosen = present & (sizes == i)
        recalls[name] = SizeRecall(float(predicted[chosen].mean()) if chosen.any() else None, int(chosen.sum()))
    return recalls
