"""The standard metrics for multi-label classification.

mAP, CP, CR, CF1, OP, OR, OF1 as in Section IV-B3, Eq. 10 to 12 of the FAN paper
(https://doi.org/10.1109/ACCESS.2019.2929512). All are in 0..1 and computed in float64 on the whole set, never averaged
over batches. A target of -1 is unknown and ignored.
"""
import math
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from timm_fan.errors import InputError

from .average_precision import DEFINITIONS, rank

NOTHING_KNOWN = 'No label of the data set is known: there is nothing to evaluate.'


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision, recall and F1 per class (C) and overall (O), Eq. 10 to 12, in 0..1."""
    CP: float
    CR: float
    CF1: float
    OP: float
    OR: float
    OF1: float


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class.

    Attributes:
        name: Name of the class.
        AP: Average precision, None without a positive.
        precision, recall, F1: Scores at the threshold, in 0..1.
        positives: Images where the class is present.
        images: Images where its label is known.
        threshold: Probability above which it is predicted.
    """
    name: str
    AP: Optional[float]
    precision: float
    recall: float
    F1: float
    positives: int
    images: int
    threshold: float


@dataclass(frozen=True)
class MultiLabelScores:
    """Scores of a whole data set.

    Attributes:
        mAP: Mean of the average precisions of the classes, in 0..1, without classes that have no positive.
        mAP_by_definition: The same by each of DEFINITIONS; `mAP` is the non-interpolated one.
        all: Precision and recall of all labels above the threshold.
        top3: The same for the three highest labels of each image.
        sample_f1: Mean over images of the F1 of their labels, 0 for an image without labels, present or predicted.
        exact_match: Share of images whose known labels are all correct.
        num_images: Images with at least one known label.
        num_unlabelled: The other images.
        classes_without_positives: Names of the classes that mAP, CP and CR leave out.
        protocol: How the scores were computed, in words.
        per_class: Scores of each class.
    """
    mAP: float
    mAP_by_definition: Dict[str, float]
    all: PrecisionRecall
    top3: PrecisionRecall
    sample_f1: float
    exact_match: float
    num_images: int
    num_unlabelled: int
    classes_without_positives: List[str]
    protocol: str
    per_class: List[ClassScores] = field(repr=False)


def _ratio(numerator: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return numerator / counts.clamp(min=1)  # 0 / 0 is 0


def _f1(precision: torch.Tensor, recall: torch.Tensor) -> torch.Tensor:
    both = precision + recall
    return torch.where(both > 0, 2 * precision * recall / both, 0.)


def count_labels(predicted: torch.Tensor, targets: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """True positives, predictions and positives of each class, float64 (num_classes,)"""
    known, present = targets >= 0, targets == 1
    return (predicted & present).sum(0).double(), (predicted & known).sum(0).double(), present.sum(0).double()


def rates_of_counts(
        true_positives: torch.Tensor, predictions: torch.Tensor, positives: torch.Tensor) -> Tuple[torch.Tensor, ...]:
    """CP, CR, CF1, OP, OR, OF1, each (...), from whole counts of each class, float64 (..., num_classes)"""
    rated = positives > 0
    cp, cr = (
        _ratio((_ratio(true_positives, counts) * rated).sum(-1), rated.sum(-1)) for counts in (predictions, positives))
    op, or_ = (_ratio(true_positives.sum(-1), counts.sum(-1)) for counts in (predictions, positives))
    return cp, cr, _f1(cp, cr), op, or_, _f1(op, or_)


def precision_recall_of_counts(
        true_positives: torch.Tensor, predictions: torch.Tensor, positives: torch.Tensor) -> PrecisionRecall:
    """Precision and recall from whole counts of each class, float64 (num_classes,)"""
    return PrecisionRecall(*(float(v) for v in rates_of_counts(true_positives, predictions, positives)))


def precision_recall(predicted: torch.Tensor, targets: torch.Tensor) -> PrecisionRecall:
    """Precision and recall of predicted labels.

    A class that is never predicted has precision 0. CP and CR are means over the classes with a positive. CF1 is the
    harmonic mean of CP and CR, as in publications, not the mean of the F1 of the classes. OP and OR pool the counts of
    all classes.

    Args:
        predicted: bool (N, num_classes).
        targets: 1 present, 0 absent, -1 unknown, (N, num_classes).
    """
    return precision_recall_of_counts(*count_labels(predicted, targets))


def topk_mask(logits: torch.Tensor, k: int) -> torch.Tensor:
    """bool (N, num_classes): the k highest logits of each row, of ties those with the lower class index"""
    left = logits.numpy()
    left = np.maximum(left, np.finfo(left.dtype).min)  # a copy, where -inf marks the chosen ones
    rows = np.arange(len(left))
    for _ in range(min(k, left.shape[1])):
        left[rows, left.argmax(axis=1)] = -np.inf
    return torch.from_numpy(np.isneginf(left))


def predict_labels(logits: torch.Tensor, threshold: Union[float, Sequence[float]] = 0.5) -> torch.Tensor:
    """bool (N, num_classes): whether the probability is above the threshold, one for all classes or one per class

    Raises:
        ValueError: A threshold is not between 0 and 1, or there is not one per class.
    """
    threshold = torch.as_tensor(threshold, dtype=torch.float64)
    if not ((threshold > 0) & (threshold < 1)).all():
        raise ValueError(f'threshold must be between 0 and 1, got {threshold.tolist()}.')
    if threshold.ndim and threshold.shape != logits.shape[1:]:
        raise ValueError(f'{threshold.numel()} thresholds for {logits.shape[1]} classes.')
    return logits > torch.logit(threshold).to(logits.device)


def _class_scores(
        names: Sequence[str], ap: Sequence[float], passed: torch.Tensor, targets: torch.Tensor, threshold: Union[float,
        Sequence[float]]) -> List[ClassScores]:
    true_positives, predictions, positives = count_labels(passed, targets)
    precision, recall = _ratio(true_positives, predictions), _ratio(true_positives, positives)
    columns = zip(
        names, ap, precision.tolist(), recall.tolist(), _f1(precision, recall).tolist(), positives.tolist(),
        (targets >= 0).sum(0).tolist(), torch.as_tensor(threshold, dtype=torch.float64).expand(len(names)).tolist())
    return [
        ClassScores(name, None if math.isnan(value) else value, p, r, f, int(num_positives), num_images, cut)
        for name, value, p, r, f, num_positives, num_images, cut in columns]


def _protocol(per_class: Sequence[ClassScores], top3_above_threshold: bool) -> str:
    cuts = {c.threshold for c in per_class}
    above = f'> {cuts.pop():g}' if len(cuts) == 1 else "> the class's threshold"
    top3 = 'the three highest that pass it' if top3_above_threshold else 'always the three highest'
    return f'non-interpolated AP; probability {above}; Top-3: {top3}; unknown labels ignored'


def evaluate_logits(
        logits: torch.Tensor,
        targets: torch.Tensor,
        class_names: Optional[Sequence[str]] = None,
        threshold: Union[float, Sequence[float]] = 0.5,
        top3_above_threshold: bool = True,
) -> MultiLabelScores:
    """All scores of a whole data set.

    A label is predicted if its logit is above that of `threshold`: above 0 for 0.5 (Section III-C). Top-3 takes the
    three highest labels that also pass the threshold, as the precisions in Table 1 imply. The older protocol, always
    three labels, is `top3_above_threshold=False`.

    Args:
        logits: (N, num_classes), gathered from all processes.
        targets: 1 present, 0 absent, -1 unknown, (N, num_classes).
        class_names: Names in class order, by default the class indices.
        threshold: Probability between 0 and 1, one for all classes or one per class.
        top3_above_threshold: Protocol of the Top-3 scores.

    Raises:
        timm_fan.InputError: No label is known.
        ValueError: Shapes differ, a logit is NaN, or a threshold is not between 0 and 1.
    """
    logits, targets = logits.detach().cpu(), targets.detach().cpu()
    rankings = rank(logits, targets)
    passed = predict_labels(logits, threshold)
    known, present = targets >= 0, targets == 1
    labelled = known.any(dim=1)
    if not labelled.any():
        raise InputError(NOTHING_KNOWN)
    names = list(class_names) if class_names is not None else [str(i) for i in range(logits.shape[1])]
    if len(names) != logits.shape[1]:
        raise ValueError(f'{len(names)} class names for {logits.shape[1]} classes.')

    aps = {d: [r.average_precision(definition=d) for r in rankings] for d in DEFINITIONS}
    per_class = _class_scores(names, aps[DEFINITIONS[0]], passed, targets, threshold)
    rated = [i for i, c in enumerate(per_class) if c.AP is not None]
    maps = {d: sum(ap[i] for i in rated) / max(len(rated), 1) for d, ap in aps.items()}
    hits, predicted = (passed & present).sum(1), (passed & known).sum(1)
    sample_f1 = 2 * hits / (predicted + present.sum(1)).clamp(min=1)
    exact = ((passed == present) | ~known).all(dim=1)
    highest = topk_mask(logits, 3)
    return MultiLabelScores(
        mAP=maps[DEFINITIONS[0]],
        mAP_by_definition=maps,
        all=precision_recall(passed, targets),
        top3=precision_recall(highest & passed if top3_above_threshold else highest, targets),
        sample_f1=float(sample_f1[labelled].double().mean()),
        exact_match=float(exact[labelled].double().mean()),
        num_images=int(labelled.sum()),
        num_unlabelled=int((~labelled).sum()),
        classes_without_positives=[c.name for c in per_class if c.AP is None],
        protocol=_protocol(per_class, top3_above_threshold),
        per_class=per_class,
    )
