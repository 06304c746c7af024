"""The two difficult groups of the paper: classes of the tail and classes of small objects (Tables 3 and 4)."""
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Union

import numpy as np
import torch

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
        threshold: Union[float, Sequence[float]] = 0.5,
        scales: Optional[np.ndarray] = None,
        largest: Optional[np.ndarray] = None,
        group_size: int = 6,
) -> GroupScores:
    """AP of the rarest and of the smallest classes, six as in Section IV-D1, and recall by the size of objects.

    Args:
        scores: From `evaluate_logits` for the same logits.
        logits: (N, num_classes).
        targets: 1 present, 0 absent, -1 unknown, (N, num_classes).
        threshold: Probability above which a label is predicted, one for all classes or one per class.
        scales: Mean share of the image that an object of each class covers, (num_classes,), NaN if unknown.
        largest: Area of the largest object of each class in pixels of the image, (N, num_classes), 0 without one.
        group_size: Number of classes in a group.
    """
    rated = [i for i, c in enumerate(scores.per_class) if c.AP is not None]

    def group(key: Callable[[int], float]) -> Group:
        chosen = sorted(rated, key=key)[:group_size]
        aps = [scores.per_class[i].AP for i in chosen]
        return Group([scores.per_class[i].name for i in chosen], sum(aps) / len(aps) if aps else None)

    return GroupScores(
        tail=group(lambda i: scores.per_class[i].positives),
        small=group(lambda i: np.nan_to_num(scales[i], nan=np.inf)) if scales is not None else None,
        recall_by_size=_recall_by_size(logits, targets, threshold, largest) if largest is not None else None)


def _recall_by_size(
        logits: torch.Tensor, targets: torch.Tensor, threshold: Union[float, Sequence[float]], largest: np.ndarray,
) -> Dict[str, SizeRecall]:
    present = (targets == 1).numpy() & (largest > 0)  # without unknown labels
    predicted = predict_labels(logits, threshold).numpy()[present]
    sizes = np.digitize(largest[present], [SMALL ** 2, MEDIUM ** 2])
    recalls = {}
    for i, name in enumerate(('small', 'medium', 'large')):
        chosen = predicted[sizes == i]
        recalls[name] = SizeRecall(float(chosen.mean()) if len(chosen) else None, len(chosen))
    return recalls
