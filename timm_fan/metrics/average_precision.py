"""Average precision of each class, in float64, where tied scores count together.

A target of -1 is unknown and ignored.
"""
from typing import List, Optional, Tuple

import numpy as np
import torch

# who computes AP by each definition:
# non-interpolated, the mean of the precisions at the positives: SRN, ML-GCN, CSRA, scikit-learn, timm
# interpolated, the mean of the precision envelope at the positives: VOC since 2010, SSGRL, Query2Label
# voc07, the mean of the envelope at the recalls 0, 0.1, ..., 1: VOC 2007
DEFINITIONS = ('non-interpolated', 'interpolated', 'voc07')


def _tie_ends(scores: np.ndarray) -> np.ndarray:
    """Index of the last score in each group of equal, sorted scores: ties pass a threshold together."""
    return np.flatnonzero(np.append(scores[1:] != scores[:-1], True))


def threshold_curve(scores: np.ndarray, present: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts between distinct scores, from high to low, with the number of positives and of all images above each.

    Args:
        scores: (N,) with N at least 1.
        present: bool (N,).
    """
    order = np.argsort(-scores)
    scores = scores[order]
    ends = _tie_ends(scores)
    below = np.append(scores[ends[:-1] + 1], scores[-1] - 1.)
    return (scores[ends] + below) / 2, np.cumsum(present[order])[ends], ends + 1


class Ranking:
    """The images of one class in the order of their scores: everything that AP needs, for any weights of the images.

    Args:
        scores: (N,), higher is more likely.
        targets: 1 present, 0 absent, -1 unknown, (N,).
    """

    def __init__(self, scores: np.ndarray, targets: np.ndarray):
        known = np.flatnonzero(targets >= 0)
        by_score = known[np.argsort(-scores[known])]
        scores = scores[by_score]
        # ties have the counts at the end of their group, in any order
        ends = _tie_ends(scores)
        positives = np.flatnonzero(targets[by_score] == 1)
        self.order = by_score
        self.positives = by_score[positives]
        self.ends = ends[np.searchsorted(ends, positives)]
        self.tied = np.searchsorted(self.ends, self.ends, side='right') - 1

    def average_precision(self, weights: Optional[np.ndarray] = None, definition: str = DEFINITIONS[0]) -> float:
        """AP in 0..1, NaN without a positive.

        Args:
            weights: How often each image counts, int32 (N,), by default once.
            definition: One of DEFINITIONS.
        """
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
        # the first positive that reaches each recall, in integers because 0.3 is not 3 * 0.1
        reached = np.searchsorted(10 * true_positives, np.arange(11) * total)
        return float(envelope[reached].mean())


def check_results(logits: torch.Tensor, targets: torch.Tensor) -> None:
    """Raise ValueError if shapes differ or a logit is NaN."""
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise ValueError(
            f'logits and targets must both be (N, num_classes), got {tuple(logits.shape)} and {tuple(targets.shape)}.')
    if torch.isnan(logits).any():
        raise ValueError(f'{int(torch.isnan(logits).sum())} of {logits.numel()} logits are NaN.')


def rank(logits: torch.Tensor, targets: torch.Tensor) -> List[Ranking]:
    """The ranking of each class, from logits and targets (N, num_classes).

    Raises:
        ValueError: Shapes differ, or a logit is NaN.
    """
    check_results(logits, targets)
    columns = zip(np.ascontiguousarray(logits.numpy().T), np.ascontiguousarray(targets.numpy().T))
    return [Ranking(scores, truth) for scores, truth in columns]


def average_precision(logits: torch.Tensor, targets: torch.Tensor, definition: str = DEFINITIONS[0]) -> torch.Tensor:
    """Average precision of each class over the images where its label is known.

    The default, the mean of the precisions at the positives, is what most publications report. It equals
    `average_precision_score` of scikit-learn and timm's evaluator. 'interpolated' is never lower.

    Args:
        logits: Scores (N, num_classes) on any monotonic scale.
        targets: 1 present, 0 absent, -1 unknown, (N, num_classes).
        definition: 'non-interpolated', 'interpolated' (the precision envelope, VOC 2010 and later) or 'voc07' (the
            envelope at 11 recalls). http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf, Section 3.4.

    Returns:
        float64 (num_classes,) in 0..1, NaN for a class without a positive.

    Raises:
        ValueError: Shapes differ, a score is NaN, or the definition is unknown.
    """
    if definition not in DEFINITIONS:
        raise ValueError(f"No AP definition '{definition}', expected one of {', '.join(DEFINITIONS)}.")
    rankings = rank(logits.detach().cpu(), targets.detach().cpu())
    return torch.tensor([r.average_precision(definition=definition) for r in rankings], dtype=torch.float64)
