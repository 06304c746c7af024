"""Average precision and the field's figures for multi-label classification.

mAP, CP, CR, CF1, OP, OR, OF1 as in Section IV-B3, Eq. 10 to 12 of the FAN paper
(https://doi.org/10.1109/ACCESS.2019.2929512). All figures are fractions in 0..1, computed in float64 on the whole set,
never averaged over batches. A target of -1 is unknown and counts nowhere.
"""
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from .errors import InputError

__all__ = ['DEFINITIONS', 'ClassScores', 'Figures', 'MultiLabelScores', 'Ranking', 'average_precision',
           'check_results', 'evaluate_logits', 'figures_of_counts', 'precision_recall', 'predict_labels', 'rank',
           'rates_of_counts', 'threshold_curve', 'topk_mask']

# by name, and who computes so:
# the mean of the precisions at the positives: SRN, ML-GCN, CSRA, scikit-learn, timm
# the mean of the precision envelope at the positives: VOC since 2010, SSGRL, Query2Label
# the mean of the envelope at the recalls 0, 0.1, ..., 1: VOC 2007
DEFINITIONS = ('non-interpolated', 'interpolated', 'voc07')


def _tie_ends(scores: np.ndarray) -> np.ndarray:
    """Index of the last of each group of equal scores, of sorted scores: tied images cross a threshold together."""
    return np.flatnonzero(np.append(scores[1:] != scores[:-1], True))


def threshold_curve(scores: np.ndarray, present: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts between distinct scores, from high to low, and how many positives and how many of all score above each.

    Args:
        scores: (N,), N at least 1.
        present: bool (N,).
    """
    order = np.argsort(-scores)
    scores = scores[order]
    ends = _tie_ends(scores)
    below = np.append(scores[ends[:-1] + 1], scores[-1] - 1.)
    return (scores[ends] + below) / 2, np.cumsum(present[order])[ends], ends + 1


class Ranking:
    """One class's images in the order of their scores: all that its average precision needs, for any image weights.

    Args:
        scores: (N,), higher is more likely.
        targets: 1 present, 0 absent, -1 unknown, (N,).
    """

    def __init__(self, scores: np.ndarray, targets: np.ndarray):
        known = np.flatnonzero(targets >= 0)
        by_score = known[np.argsort(-scores[known])]
        scores = scores[by_score]
        # tied images take the counts at the end of their group, in whatever order
        ends = _tie_ends(scores)
        positives = np.flatnonzero(targets[by_score] == 1)
        self.order = by_score
        self.positives = by_score[positives]
        self.ends = ends[np.searchsorted(ends, positives)]
        self.tied = np.searchsorted(self.ends, self.ends, side='right') - 1

    def average_precision(self, weights: Optional[np.ndarray] = None, definition: str = DEFINITIONS[0]) -> float:
        """NaN without a positive. `weights` (N,) int32 says how often each image counts, once by default."""
        if weights is None:
            found = np.ones(len(self.positives), dtype=np.int64)
            predicted = self.ends + 1
        else:
            found = weights[self.positives]
            predicted = np.cumsum(weights[self.order], dtype=np.int32)[self.ends]
        true_positives = np.cumsum(found, dtype=np.int64)
        total = true_positives[-1] if len(true_positives) else 0
        if not total:
            return float('nan')
        true_positives = true_positives[self.tied]
        precision = true_positives / np.maximum(predicted, 1)
        if definition == 'non-interpolated':
            return float(found @ precision / total)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        if definition == 'interpolated':
            return float(found @ envelope / total)
        # in integers, as 0.3 is not 3 * 0.1; the first positive that reaches each recall
        reached = np.searchsorted(10 * true_positives, np.arange(11) * total)
        return float(envelope[reached].mean())


def check_results(logits: torch.Tensor, targets: torch.Tensor) -> None:
    """Raises ValueError where shapes differ or a logit is NaN."""
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise ValueError(
            f'logits and targets must both be (N, num_classes), got {tuple(logits.shape)} and {tuple(targets.shape)}.')
    if torch.isnan(logits).any():
        raise ValueError(f'{int(torch.isnan(logits).sum())} of {logits.numel()} logits are NaN.')


def rank(logits: torch.Tensor, targets: torch.Tensor) -> List[Ranking]:
    """The ranking of each class, from logits and targets (N, num_classes).

    Raises:
        ValueError: Shapes differ, or a score is NaN.
    """
    check_results(logits, targets)
    columns = zip(np.ascontiguousarray(logits.numpy().T), np.ascontiguousarray(targets.numpy().T))
    return [Ranking(scores, truth) for scores, truth in columns]


def average_precision(
        logits: torch.Tensor,
        targets: torch.Tensor,
        definition: str = DEFINITIONS[0],
) -> torch.Tensor:
    """Average precision of each class over the images whose label is known; tied scores count together.

    The default, the mean of the precisions at the positives, is what most of the field's tables have and equals
    scikit-learn's `average_precision_score` and timm's. 'interpolated' is never lower.

    Args:
        logits: Scores (N, num_classes) on any monotonic scale.
        targets: 1 present, 0 absent, -1 unknown, (N, num_classes).
        definition: 'non-interpolated', 'interpolated' (the precision envelope, VOC 2010 and later) or 'voc07' (the
            envelope at 11 recalls). http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf, Section 3.4.

    Returns:
        float64 (num_classes,) in 0..1; NaN for a class without a positive.

    Raises:
        ValueError: Shapes differ, a score is NaN, or there is no such definition.
    """
    if definition not in DEFINITIONS:
        raise ValueError(f"No AP definition '{definition}', expected one of {', '.join(DEFINITIONS)}.")
    rankings = rank(logits.detach().cpu(), targets.detach().cpu())
    return torch.tensor([r.average_precision(definition=definition) for r in rankings], dtype=torch.float64)


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
    F1: float
    positives: int
    images: int
    threshold: float


@dataclass(frozen=True)
class MultiLabelScores:
    """What an evaluation gives.

    Attributes:
        mAP: Mean of the classes' average precisions, in 0..1; classes without a positive are left out.
        mAP_by_definition: The same by each of DEFINITIONS; mAP is the non-interpolated one.
        all: Figures over all labels above the threshold.
        top3: The same over each image's three highest labels.
        sample_f1: Mean over images of the F1 of their labels; 0 for one with none, present or predicted.
        exact_match: Share of images whose known labels are all right.
        num_images: Images with at least one known label; the others are `num_unlabelled`.
        classes_without_positives: Names of the classes left out of mAP, CP and CR.
        protocol: How the figures were computed, in words.
        per_class: Figures of each class.
    """
    mAP: float
    mAP_by_definition: Dict[str, float]
    all: Figures
    top3: Figures
    sample_f1: float
    exact_match: float
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
    return figures_of_counts(*_counts(predicted, targets))


def rates_of_counts(
        true_positives: torch.Tensor,
        predictions: torch.Tensor,
        positives: torch.Tensor,
) -> Tuple[torch.Tensor, ...]:
    """CP, CR, CF1, OP, OR, OF1, each (...), of whole counts for each class, float64 (..., num_classes)."""
    rated = positives > 0

    def ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
        return numerator / denominator.clamp(min=1)  # 0 / 0 counts as 0

    def f1(precision: torch.Tensor, recall: torch.Tensor) -> torch.Tensor:
        both = precision + recall
        return torch.where(both > 0, 2 * precision * recall / both, 0.)

    cp, cr = (
        ratio((ratio(true_positives, counts) * rated).sum(-1), rated.sum(-1)) for counts in (predictions, positives))
    op, or_ = (ratio(true_positives.sum(-1), counts.sum(-1)) for counts in (predictions, positives))
    return cp, cr, f1(cp, cr), op, or_, f1(op, or_)


def figures_of_counts(true_positives: torch.Tensor, predictions: torch.Tensor, positives: torch.Tensor) -> Figures:
    """The six threshold figures of counts for each class, float64 (num_classes,)."""
    return Figures(*(float(v) for v in rates_of_counts(true_positives, predictions, positives)))


def topk_mask(logits: torch.Tensor, k: int) -> torch.Tensor:
    """bool (N, num_classes): the k highest of each row, the lower class index first among ties."""
    left = logits.numpy()
    left = np.maximum(left, np.finfo(left.dtype).min)  # a copy in which -inf marks what is taken
    rows = np.arange(len(left))
    for _ in range(min(k, left.shape[1])):
        left[rows, left.argmax(axis=1)] = -np.inf
    return torch.from_numpy(np.isneginf(left))


def predict_labels(logits: torch.Tensor, threshold: Union[float, Sequence[float]] = 0.5) -> torch.Tensor:
    """bool (N, num_classes): the probability is above the threshold, one for all classes or one for each, in 0..1.

    Raises:
        ValueError: A threshold is out of range, or their number is not that of the classes.
    """
    threshold = torch.as_tensor(threshold, dtype=torch.float64)
    if not ((threshold > 0) & (threshold < 1)).all():
        raise ValueError(f'threshold must be between 0 and 1, got {threshold.tolist()}.')
    if threshold.ndim and threshold.shape != logits.shape[1:]:
        raise ValueError(f'{threshold.numel()} thresholds for {logits.shape[1]} classes.')
    return logits > torch.logit(threshold).to(logits.device)


def evaluate_logits(
        logits: torch.Tensor,
        targets: torch.Tensor,
        class_names: Optional[Sequence[str]] = None,
        threshold: Union[float, Sequence[float]] = 0.5,
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
        threshold: Probability in 0..1, exclusive, or one for each class.
        top3_above_threshold: Protocol of the Top-3 figures.

    Raises:
        ValueError: Shapes differ, a logit is NaN, a threshold is out of range, or no label is known.
    """
    logits, targets = logits.detach().cpu(), targets.detach().cpu()
    rankings = rank(logits, targets)
    passed = predict_labels(logits, threshold)
    known, present = targets >= 0, targets == 1
    labelled = known.any(dim=1)
    if not labelled.any():
        raise InputError('No label of the data set is known: there is nothing to evaluate.')
    names = list(class_names) if class_names is not None else [str(i) for i in range(logits.shape[1])]
    if len(names) != logits.shape[1]:
        raise ValueError(f'{len(names)} class names for {logits.shape[1]} classes.')

    aps = {d: [r.average_precision(definition=d) for r in rankings] for d in DEFINITIONS}
    rated = [i for i, ap in enumerate(aps[DEFINITIONS[0]]) if not math.isnan(ap)]
    maps = {d: _ratio(sum(ap[i] for i in rated), len(rated)) for d, ap in aps.items()}

    thresholds = torch.as_tensor(threshold, dtype=torch.float64).expand(len(names)).tolist()
    true_positives, predictions, positives = (v.tolist() for v in _counts(passed, targets))
    images = known.sum(0).tolist()
    per_class = []
    for i, name in enumerate(names):
        precision, recall = _ratio(true_positives[i], predictions[i]), _ratio(true_positives[i], positives[i])
        per_class.append(ClassScores(
            name=name, AP=aps[DEFINITIONS[0]][i] if i in rated else None, precision=precision, recall=recall,
            F1=_f1(precision, recall), positives=int(positives[i]), images=images[i], threshold=thresholds[i]))

    hits, predicted = (passed & present).sum(1), (passed & known).sum(1)
    sample_f1 = 2 * hits / (predicted + present.sum(1)).clamp(min=1)
    exact = ((passed == present) | ~known).all(dim=1)
    highest = topk_mask(logits, 3)
    top3 = 'the three highest that pass it' if top3_above_threshold else 'always the three highest'
    above = f'> {thresholds[0]:g}' if len(set(thresholds)) == 1 else "> the class's threshold"
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
        protocol=f'non-interpolated AP; probability {above}; Top-3: {top3}; unknown labels ignored',
        per_class=per_class,
    )
