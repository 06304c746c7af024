"""Average precision and the field's figures for multi-label classification.

mAP, CP, CR, CF1, OP, OR, OF1 as in Section IV-B3, Eq. 10 to 12 of the FAN paper
(https://doi.org/10.1109/ACCESS.2019.2929512). All figures are fractions in 0..1, computed in float64 on the whole set,
never averaged over batches. A target of -1 is unknown and counts nowhere.
"""
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Optional, Sequence

import torch

__all__ = ['ClassScores', 'Figures', 'MultiLabelScores', 'average_precision', 'evaluate_logits', 'precision_recall']

# values sorted at a time, bounds the memory of the sort
_CHUNK_ELEMENTS = 1 << 24


def _average_precision_columns(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    order = scores.argsort(dim=0, descending=True)
    scores, targets = scores.gather(0, order), targets.gather(0, order)
    positives = (targets == 1).to(torch.float64)
    true_positives = positives.cumsum(0)
    predicted = (targets >= 0).to(torch.float64).cumsum(0)

    # tied images cross a threshold together: all take the precision at the end of their group, in whatever order
    ends = torch.ones_like(scores, dtype=torch.bool)
    ends[:-1] = scores[:-1] != scores[1:]
    rows = torch.arange(len(scores), device=scores.device)[:, None].expand_as(ends)
    group_end = torch.where(ends, rows, len(scores)).flip(0).cummin(0).values.flip(0)
    precision = true_positives.gather(0, group_end) / predicted.gather(0, group_end).clamp(min=1)

    # 0 / 0 is NaN, which marks a class without a positive
    return (precision * positives).sum(0) / positives.sum(0)


def average_precision(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Non-interpolated average precision of each class: the mean of the precisions at its positives.

    Equal to scikit-learn's `average_precision_score` of each column, ties included, over the images whose label is
    known.

    Args:
        logits: Scores (N, num_classes) on any monotonic scale.
        targets: 1 present, 0 absent, -1 unknown, (N, num_classes).

    Returns:
        float64 (num_classes,) in 0..1; NaN for a class without a positive.

    Raises:
        ValueError: Shapes differ, or a score is NaN.
    """
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise ValueError(
            f'logits and targets must both be (N, num_classes), got {tuple(logits.shape)} and {tuple(targets.shape)}.')
    if torch.isnan(logits).any():
        raise ValueError(f'{int(torch.isnan(logits).sum())} of {logits.numel()} logits are NaN.')
    num_images, num_classes = logits.shape
    if not num_images:
        return torch.full((num_classes,), float('nan'), dtype=torch.float64)
    step = max(1, _CHUNK_ELEMENTS // num_images)
    return torch.cat([
        _average_precision_columns(logits[:, i:i + step], targets[:, i:i + step]) for i in range(0, num_classes, step)])


@dataclass(frozen=True)
class Figures:
    """Per-class (C) and overall (O) precision, recall and F1, Eq. 10 to 12, in 0..1."""
    CP: float
    CR: float
    CF1: float
    OP: float
    OR: float
    OF1: float


@dataclass(frozen=True)
class ClassScores:
    """One class: AP is None without a positive; images counts the known labels, positives the present ones."""
    name: str
    AP: Optional[float]
    precision: float
    recall: float
    positives: int
    images: int


@dataclass(frozen=True)
class MultiLabelScores:
    """What an evaluation gives.

    Attributes:
        mAP: Mean of the classes' average precisions, in 0..1; classes without a positive are left out.
        all: Figures over all labels above the threshold.
        top3: The same over each image's three highest labels.
        num_images: Images with at least one known label; the others are `num_unlabelled`.
        classes_without_positives: Names of the classes left out of mAP, CP and CR.
        protocol: How the figures were computed, in words.
        per_class: Figures of each class.
    """
    mAP: float
    all: Figures
    top3: Figures
    num_images: int
    num_unlabelled: int
    classes_without_positives: List[str]
    protocol: str
    per_class: List[ClassScores] = field(repr=False)

    def to_dict(self) -> Dict[str, Any]:
        return asdict(self)


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator) / float(denominator) if denominator else 0.


def _f1(precision: float, recall: float) -> float:
    return _ratio(2 * precision * recall, precision + recall)


def _counts(predicted: torch.Tensor, targets: torch.Tensor):
    known = targets >= 0
    present = targets == 1
    return (predicted & present).sum(0).double(), (predicted & known).sum(0).double(), present.sum(0).double()


def precision_recall(predicted: torch.Tensor, targets: torch.Tensor) -> Figures:
    """The six threshold figures of decisions already taken.

    A class that is never predicted has precision 0. CP and CR are means over the classes with a positive; CF1 is the
    harmonic mean of CP and CR, as in the papers (not the mean of the classes' F1). OP, OR pool the counts of all
    classes.

    Args:
        predicted: bool (N, num_classes).
        targets: 1 present, 0 absent, -1 unknown, (N, num_classes).
    """
    true_positives, predictions, positives = _counts(predicted, targets)
    rated = positives > 0
    cp = (true_positives / predictions.clamp(min=1))[rated]
    cr = (true_positives / positives.clamp(min=1))[rated]
    cp, cr = _ratio(cp.sum(), len(cp)), _ratio(cr.sum(), len(cr))
    op, or_ = _ratio(true_positives.sum(), predictions.sum()), _ratio(true_positives.sum(), positives.sum())
    return Figures(CP=cp, CR=cr, CF1=_f1(cp, cr), OP=op, OR=or_, OF1=_f1(op, or_))


def topk_mask(logits: torch.Tensor, k: int) -> torch.Tensor:
    """bool (N, num_classes): the k highest of each row, the lower class index first among ties."""
    k = min(k, logits.shape[1])
    order = logits.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, order, True)


def evaluate_logits(
        logits: torch.Tensor,
        targets: torch.Tensor,
        class_names: Optional[Sequence[str]] = None,
        threshold: float = 0.5,
        top3_above_threshold: bool = True,
) -> MultiLabelScores:
    """All figures of a whole data set.

    A label is predicted where its logit is above that of `threshold`: above 0 for 0.5 (Section III-C). Top-3 takes the
    three highest labels that also pass the threshold, as Table 1's precisions imply; the older protocol, always
    three labels, is `top3_above_threshold=False`.

    Args:
        logits: (N, num_classes), gathered from all processes.
        targets: 1 present, 0 absent, -1 unknown, (N, num_classes).
        class_names: Names in class order, class indices by default.
        threshold: Probability in 0..1, exclusive.
        top3_above_threshold: Protocol of the Top-3 figures.

    Raises:
        ValueError: Shapes differ, a logit is NaN, the threshold is out of range, or no label is known.
    """
    if not 0. < threshold < 1.:
        raise ValueError(f'threshold must be between 0 and 1, got {threshold}.')
    logits, targets = logits.detach().cpu().double(), targets.detach().cpu()
    ap = average_precision(logits, targets)
    labelled = (targets >= 0).any(dim=1)
    if not labelled.any():
        raise ValueError('No label of the data set is known: there is nothing to evaluate.')
    names = list(class_names) if class_names is not None else [str(i) for i in range(logits.shape[1])]
    if len(names) != logits.shape[1]:
        raise ValueError(f'{len(names)} class names for {logits.shape[1]} classes.')

    passed = logits > torch.logit(torch.tensor(threshold, dtype=torch.float64))
    highest = topk_mask(logits, 3)
    true_positives, predictions, positives = _counts(passed, targets)
    per_class = [
        ClassScores(
            name=names[i],
            AP=None if torch.isnan(ap[i]) else float(ap[i]),
            precision=_ratio(true_positives[i], predictions[i]),
            recall=_ratio(true_positives[i], positives[i]),
            positives=int(positives[i]),
            images=int((targets[:, i] >= 0).sum()),
        )
        for i in range(len(names))
    ]
    rated = ap[~torch.isnan(ap)]
    top3 = 'the three highest that pass it' if top3_above_threshold else 'always the three highest'
    return MultiLabelScores(
        mAP=_ratio(rated.sum(), len(rated)),
        all=precision_recall(passed, targets),
        top3=precision_recall(highest & passed if top3_above_threshold else highest, targets),
        num_images=int(labelled.sum()),
        num_unlabelled=int((~labelled).sum()),
        classes_without_positives=[c.name for c in per_class if c.AP is None],
        protocol=f'non-interpolated AP; probability > {threshold:g}; Top-3: {top3}; unknown labels ignored',
        per_class=per_class,
    )
