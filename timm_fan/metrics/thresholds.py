"""Decision thresholds chosen on a held-out split."""
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

from timm_fan.errors import InputError

from .average_precision import threshold_curve
from .scores import rates_of_counts

POLICIES = ('global-f1', 'class-f1', 'precision=P', 'recall=R')


def _choose(scores: np.ndarray, present: np.ndarray, goal: str, wanted: float) -> Optional[float]:
    """The logit that reaches the goal, None if there is none."""
    if not present.any():
        return None
    cuts, true, predicted = threshold_curve(scores, present)
    precision, recall = true / predicted, true / present.sum()
    if goal == 'f1':
        return float(cuts[np.argmax(2 * true / (predicted + present.sum()))])
    if goal == 'precision':
        reached = np.flatnonzero(precision >= wanted)
        return float(cuts[reached[-1]]) if len(reached) else None
    return float(cuts[np.flatnonzero(recall >= wanted)[0]])


def parse_policy(policy: str) -> Tuple[str, float]:
    """'f1', 'precision' or 'recall', and the precision or recall to reach. Raises InputError for an unknown policy."""
    goal, sep, value = policy.partition('=')
    try:
        wanted = float(value) if sep else 0.
    except ValueError:
        wanted = -1.
    if not (policy in ('global-f1', 'class-f1') or (goal in ('precision', 'recall') and 0. < wanted <= 1.)):
        raise InputError(f"No threshold policy '{policy}': expected {', '.join(POLICIES)}, with P and R in 0..1.")
    return goal.rpartition('-')[2], wanted


def choose_thresholds(
        logits: torch.Tensor, targets: torch.Tensor, policy: str = 'class-f1', min_positives: int = 10) -> List[float]:
    """Probability for each class above which it is predicted.

    - `global-f1`: one threshold for all classes, with the best OF1.
    - `class-f1`: the best F1 of each class.
    - `precision=P`: the lowest threshold of each class with a precision of at least P in 0..1.
    - `recall=R`: the highest threshold of each class with a recall of at least R in 0..1.

    A class with fewer than `min_positives` positives, or whose precision never reaches P, has the threshold that
    reaches the goal on all classes pooled, or 0.5 if there is none.

    Args:
        logits: (N, num_classes) for images that were not trained on.
        targets: 1 present, 0 absent, -1 unknown, (N, num_classes).
        policy: One of POLICIES.
        min_positives: Positives that a class needs for its own threshold.

    Returns:
        A probability for each class, above 0 and below 1.

    Raises:
        timm_fan.InputError: Unknown policy.
    """
    goal, wanted = parse_policy(policy)
    scores, truth = logits.detach().cpu().double().numpy(), targets.detach().cpu().numpy()
    known = truth >= 0
    pooled = _choose(scores[known], truth[known] == 1, goal, wanted)
    pooled = 0. if pooled is None else pooled
    cuts = []
    for i in range(scores.shape[1]):
        rows = known[:, i]
        present = truth[rows, i] == 1
        cut = None
        if policy != 'global-f1' and present.sum() >= min_positives:
            cut = _choose(scores[rows, i], present, goal, wanted)
        cuts.append(pooled if cut is None else cut)
    # a probability of exactly 0 or 1 could not be told from its neighbours
    return torch.tensor(cuts, dtype=torch.float64).sigmoid().clamp(1e-6, 1 - 1e-6).tolist()


def rates_over_thresholds(
        logits: torch.Tensor, targets: torch.Tensor, thresholds: Sequence[float]) -> Dict[str, np.ndarray]:
    """CP, CR, CF1, OP, OR and OF1 in 0..1 at each threshold, if it is that of all classes; each (len(thresholds),)

    Args:
        logits: (N, num_classes).
        targets: 1 present, 0 absent, -1 unknown, (N, num_classes).
        thresholds: Probabilities between 0 and 1 in ascending order.
    """
    cuts = torch.logit(torch.as_tensor(thresholds, dtype=torch.float64)).to(logits.dtype)
    num_classes, num_bins = logits.shape[1], len(cuts) + 1
    # a logit in bin i is above the first i thresholds
    cells = torch.bucketize(logits, cuts, out_int32=True) + num_bins * torch.arange(num_classes, dtype=torch.int32)
    present, known = targets == 1, targets >= 0
    true_positives, predictions = (
        torch.bincount(cells[mask], minlength=num_classes * num_bins).view(num_classes, num_bins)
        .flip(1).cumsum(1).flip(1)[:, 1:].T.double()
        for mask in (present, known))
    rates = rates_of_counts(true_positives, predictions, present.sum(0).double().expand_as(predictions))
    return {name: values.numpy() for name, values in zip(('CP', 'CR', 'CF1', 'OP', 'OR', 'OF1'), rates)}
