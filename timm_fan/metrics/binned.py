"""Evaluation in constant memory: histograms instead of the scores of all images."""
from typing import NamedTuple, Sequence, Tuple, Union

import torch

from .average_precision import check_results
from .scores import PrecisionRecall, count_labels, precision_recall_of_counts, predict_labels, topk_mask


class BinnedScores(NamedTuple):
    """Attributes:
        mAP: With each bin as one group of ties, in 0..1.
        mAP_low, mAP_high: Bounds of the exact non-interpolated mAP, whatever the order within the bins.
        AP, AP_low, AP_high: The same for each class, float64 (num_classes,), NaN without a positive.
        all, top3: Exact precision and recall.
        num_images: Images with a known label.
    """
    mAP: float
    mAP_low: float
    mAP_high: float
    AP: torch.Tensor
    AP_low: torch.Tensor
    AP_high: torch.Tensor
    all: PrecisionRecall
    top3: PrecisionRecall
    num_images: int


class BinnedEvaluator:
    """Accumulates histograms of logits, 16 bytes per class and bin for any number of images.

    Args:
        num_classes: Number of classes.
        num_bins: Bins of equal width within `limits`, and two more for logits beyond them.
        limits: Range of logits that are told apart.
        threshold: Probability above which a label is predicted, one for all classes or one per class.
        top3_above_threshold: Protocol of the Top-3 scores, see `evaluate_logits`.
    """

    def __init__(
            self,
            num_classes: int,
            num_bins: int = 4096,
            limits: Tuple[float, float] = (-12., 12.),
            threshold: Union[float, Sequence[float]] = 0.5,
            top3_above_threshold: bool = True,
    ):
        self.num_bins, self.limits = num_bins + 2, limits
        self.threshold, self.top3_above_threshold = threshold, top3_above_threshold
        self.histograms = torch.zeros(2, num_classes, self.num_bins, dtype=torch.int64)  # absent, present
        # of All and of Top-3: true positives, predictions, positives
        self.counts = torch.zeros(2, 3, num_classes, dtype=torch.float64)
        self.num_images = torch.zeros((), dtype=torch.int64)

    def update(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Add a batch of logits and targets (B, num_classes), with targets 1 present, 0 absent, -1 unknown.

        Raises:
            ValueError: Shapes differ, a logit is NaN, or a threshold is not in 0..1.
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
            self.counts[i] += torch.stack(count_labels(predicted, targets))
        self.num_images += known.any(dim=1).sum()

    def compute(self) -> BinnedScores:
        """Scores of all batches so far."""
        # a few classes at a time, because of the size of temporary arrays
        parts = [self._bounds(*part) for part in zip(*(h.split(50) for h in self.histograms))]
        tied, low, high = (torch.cat(values) for values in zip(*parts))
        rated = self.counts[0, 2] > 0
        means = [float(v[rated].mean()) if rated.any() else 0. for v in (tied, low, high)]
        precision_recall = [precision_recall_of_counts(*counts) for counts in self.counts]
        return BinnedScores(*means, tied, low, high, *precision_recall, int(self.num_images))

    @staticmethod
    def _bounds(absent: torch.Tensor, present: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """AP with the bins as ties, its lower and its upper bound, each (C,), from histograms (C, bins)"""
        negatives, positives = absent.flip(1).double(), present.flip(1).double()
        total = positives.sum(1)
        true, predicted = positives.cumsum(1), (positives + negatives).cumsum(1)
        before_true, before = true - positives, predicted - positives - negatives
        tied = (positives * true / predicted.clamp(min=1)).sum(1) / total
        # With a positives among b images before a bin of n positives, the i-th of them has at best the precision
        # (a + n) / (b + n), in a tie with the others. At worst all negatives come first, without ties:
        # (a + i) / (b + negatives + i).
        high = (positives * (before_true + positives) / (before + positives).clamp(min=1)).sum(1) / total
        # sum over i = 1..n of (a + i) / (b + i), with sum 1 / (b + i) = digamma(b + n + 1) - digamma(b + 1)
        a, b = before_true, before + negatives
        low = (positives - (b - a) * (torch.digamma(b + positives + 1) - torch.digamma(b + 1))).sum(1) / total
        return tied, low, high
