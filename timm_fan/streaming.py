"""Evaluation in constant memory for each class: counts instead of scores."""
from typing import NamedTuple, Sequence, Tuple, Union

import torch

from .metrics import Figures, check_results, figures_of_counts, predict_labels, topk_mask

__all__ = ['BinnedEvaluator', 'BinnedScores']


class BinnedScores(NamedTuple):
    """Attributes:
        mAP: Each bin taken as one group of ties, in 0..1.
        mAP_low, mAP_high: The exact non-interpolated figure lies between them, whatever the order within the bins.
        AP, AP_low, AP_high: The same for each class, float64 (num_classes,), NaN without a positive.
        all, top3: Exact.
        num_images: Images with a known label.
    """
    mAP: float
    mAP_low: float
    mAP_high: float
    AP: torch.Tensor
    AP_low: torch.Tensor
    AP_high: torch.Tensor
    all: Figures
    top3: Figures
    num_images: int


class BinnedEvaluator:
    """Accumulates histograms of logits: 16 bytes a class and bin, however many images come.

    Args:
        num_classes: Number of classes.
        num_bins: Bins of equal width over `limits`, two more for what lies beyond.
        limits: Range of logits that is told apart.
        threshold: Probability above which a label is predicted, or one for each class.
    """

    def __init__(
            self,
            num_classes: int,
            num_bins: int = 4096,
            limits=(-12., 12.),
            threshold: Union[float, Sequence[float]] = 0.5,
            top3_above_threshold: bool = True,
    ):
        self.num_bins, self.limits = num_bins + 2, limits
        self.threshold, self.top3_above_threshold = threshold, top3_above_threshold
        self.histograms = torch.zeros(2, num_classes, self.num_bins, dtype=torch.int64)  # absent, present
        self.counts = torch.zeros(5, num_classes, dtype=torch.int64)  # predicted and true, for All and Top-3; positives
        self.num_images = torch.zeros((), dtype=torch.int64)

    def update(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """One batch of logits and targets (B, num_classes); targets 1 present, 0 absent, -1 unknown.

        Raises:
            ValueError: Shapes differ, or a logit is NaN.
        """
        logits, targets = logits.detach().cpu().float(), targets.detach().cpu()
        check_results(logits, targets)
        known, present = targets >= 0, targets == 1
        low, high = self.limits
        bins = ((logits - low) * ((self.num_bins - 2) / (high - low))).floor_().add_(1).clamp_(0, self.num_bins - 1)
        classes = torch.arange(logits.shape[1]) * self.num_bins
        for i, mask in enumerate((known & ~present, present)):
            cells = (bins.long() + classes)[mask]
            self.histograms[i].view(-1).add_(torch.bincount(cells, minlength=self.histograms[i].numel()))
        passed = predict_labels(logits, self.threshold)
        highest = topk_mask(logits, 3)
        highest = highest & passed if self.top3_above_threshold else highest
        for i, predicted in enumerate((passed, highest)):
            self.counts[2 * i] += (predicted & known).sum(0)
            self.counts[2 * i + 1] += (predicted & present).sum(0)
        self.counts[4] += present.sum(0)
        self.num_images += known.any(dim=1).sum()

    def compute(self) -> BinnedScores:
        # a few classes at a time, as the temporaries are many
        parts = [self._bounds(*part) for part in zip(*(h.split(50) for h in self.histograms))]
        tied, low, high = (torch.cat(values) for values in zip(*parts))
        rated = self.counts[4] > 0
        means = [float(v[rated].mean()) if rated.any() else 0. for v in (tied, low, high)]
        counts = self.counts.double()
        return BinnedScores(
            *means, tied, low, high,
            all=figures_of_counts(counts[1], counts[0], counts[4]),
            top3=figures_of_counts(counts[3], counts[2], counts[4]),
            num_images=int(self.num_images),
        )

    @classmethod
    def _bounds(cls, absent: torch.Tensor, present: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """AP with the bins as ties, and what it is at least and at most, of histograms (C, bins); each (C,)."""
        negatives, positives = absent.flip(1).double(), present.flip(1).double()
        total = positives.sum(1)
        true, predicted = positives.cumsum(1), (positives + negatives).cumsum(1)
        before_true, before = true - positives, predicted - positives - negatives
        tied = (positives * true / predicted.clamp(min=1)).sum(1) / total
        # With a true of b images before a bin of n positives, the i-th has at best precision (a + n) / (b + n), tied
        # with the others; at worst all negatives come first and no tie lifts it: (a + i) / (b + negatives + i).
        high = (positives * (before_true + positives) / (before + positives).clamp(min=1)).sum(1) / total
        low = cls._sum_of_precisions(before_true, before + negatives, positives).sum(1) / total
        return tied, low, high

    @staticmethod
    def _sum_of_precisions(a: torch.Tensor, b: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        """sum over i = 1..n of (a + i) / (b + i), by sum 1 / (b + i) = digamma(b + n + 1) - digamma(b + 1)"""
        return n - (b - a) * (torch.digamma(b + n + 1) - torch.digamma(b + 1))
