"""timm's multi-label losses, with unknown labels masked."""
from typing import Optional, Sequence

import torch
import torch.nn as nn
from timm.loss import MULTI_LABEL_LOSS_TYPES, compute_class_weights, create_classification_loss
from torchvision.ops import sigmoid_focal_loss

from timm_fan.data.packed import SparseLabels
from timm_fan.errors import InputError

LOSSES = (*MULTI_LABEL_LOSS_TYPES, 'focal')
# those with a pos_weight in timm
WEIGHTED_LOSSES = ('bce', 'asl')
# a class with one positive image among thousands must not be all that a batch is about
_MAX_WEIGHT = 20.

# its exp() is zero in float32, so that an absent label with this logit adds nothing to a log-sum-exp
_ABSENT_LOGIT = -1e4


class FocalLoss(nn.Module):
    """Focal loss with gamma 2 and equal weights for both kinds of labels, https://arxiv.org/abs/1708.02002, Eq. 4."""

    def __init__(self, smoothing: float = 0.):
        super().__init__()
        self.smoothing, self.reduction = smoothing, 'none'

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        targets = targets * (1 - self.smoothing) + 0.5 * self.smoothing
        return sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2, reduction=self.reduction)


class MaskedLoss(nn.Module):
    """Wraps a multi-label loss of timm so that labels of -1 are ignored.

    Losses that are a sum over labels are averaged over the known ones, so that the learning rate depends neither on the
    batch size nor on the number of classes. With BCE this is the multi-label soft margin loss of the FAN paper, Eq. 6.
    The log-sum-exp losses (twoway, zlpr) treat an unknown label as an absent one with a logit of -10,000.

    Args:
        criterion: A loss of (logits, targets). If it has a `reduction`, this is set to 'none'.
    """

    def __init__(self, criterion: nn.Module):
        super().__init__()
        self.criterion = criterion
        self.elementwise = hasattr(criterion, 'reduction')
        if self.elementwise:
            criterion.reduction = 'none'

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """logits (B, num_classes), targets (B, num_classes) of 0..1 and -1 -> scalar, 0 if nothing is known"""
        logits = logits.float()
        known = targets >= 0
        targets = targets.clamp(min=0.)
        if not self.elementwise:
            return self.criterion(logits.masked_fill(~known, _ABSENT_LOGIT), targets)
        # where() instead of a product: an infinite loss of an unknown label must not become NaN
        loss = torch.where(known, self.criterion(logits, targets), 0.)
        return loss.sum() / known.sum().clamp(min=1)


def balanced_weights(labels: SparseLabels) -> torch.Tensor:
    """Weight of the positive labels of each class at which its present and absent labels count the same.

    It is absent / present among the known labels, as `neg_pos` of timm's `compute_class_weights` and as PyTorch
    recommends for the `pos_weight` of `BCEWithLogitsLoss`, limited to 1/20 .. 20. A class of which nothing is known, or
    which is never present, has 20.

    Returns:
        float32 (num_classes,)
    """
    present, absent, _ = labels.counts()
    # the number of images is the same for all classes in timm: unknown ones are filled in at the rate of the known
    num_samples = len(labels)
    counts = num_samples * present / (present + absent).clamp(min=1)
    _, weights = compute_class_weights(counts, num_samples, 'neg_pos', max_weight=_MAX_WEIGHT)
    return torch.where(present > 0, weights.clamp(min=1 / _MAX_WEIGHT), _MAX_WEIGHT)


def create_loss(
        name: str = 'bce',
        smoothing: float = 0.,
        soft_targets: bool = False,
        class_counts: Optional[Sequence[int]] = None,
        num_samples: Optional[int] = None,
        pos_weight: Optional[torch.Tensor] = None,
) -> MaskedLoss:
    """Create a masked multi-label loss.

    Args:
        name: One of LOSSES: bce, asl, poly, twoway, zlpr and db of timm, or focal.
        smoothing: Label smoothing: how far each known target moves towards 0.5, in 0..1.
        soft_targets: Whether targets come from Mixup or CutMix, which twoway and zlpr do not support.
        class_counts: Positive training images of each class, for db.
        num_samples: Training images, for db.
        pos_weight: Weight of the positive labels of each class, (num_classes,), for bce and asl.

    Raises:
        timm_fan.InputError: Unknown name, or a combination that the loss does not support.
    """
    if name not in LOSSES:
        raise InputError(f"Unknown `loss={name}`, expected one of {', '.join(LOSSES)}.")
    if (soft_targets or smoothing) and name in ('twoway', 'zlpr'):
        raise InputError(f'`loss={name}` requires binary targets: set `mixup`, `cutmix` and `smoothing` to 0.')
    if pos_weight is not None and name not in WEIGHTED_LOSSES:
        raise InputError(f'`loss={name}` takes no weights of classes, only {" and ".join(WEIGHTED_LOSSES)} do.')
    if name == 'focal':
        return MaskedLoss(FocalLoss(smoothing))
    counts = dict(class_counts=class_counts, num_samples=num_samples) if name == 'db' else {}
    # MultiLabelMixup leaves smoothing to the loss, so timm is not told about soft targets
    return MaskedLoss(create_classification_loss(
        name, multi_label=True, smoothing=smoothing, pos_weight=pos_weight, **counts))
