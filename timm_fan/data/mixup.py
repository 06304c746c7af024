"""timm's Mixup and CutMix for targets with unknown labels."""
from typing import Any, Tuple

import torch
from timm.data import Mixup

from .packed import UNKNOWN


class MultiLabelMixup(Mixup):
    """Mixup and CutMix of multi-hot targets where -1 stays unknown.

    A label of the mixture is known if it is known in all images that contribute to it. Label smoothing is left to the
    loss.

    Args:
        num_classes: Number of classes.
        kwargs: Arguments of `timm.data.Mixup`, except label_smoothing and multi_label.
    """

    def __init__(self, num_classes: int, **kwargs: Any):
        # the mask of known labels is mixed as additional columns, with the same lambdas
        super().__init__(num_classes=2 * num_classes, label_smoothing=0., multi_label=True, **kwargs)

    def __call__(self, x: torch.Tensor, target: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Mix x (B, C, H, W) in place, B even, and target (B, num_classes) of 0..1 and -1; returns both."""
        known = (target != UNKNOWN).float()
        x, mixed = super().__call__(x, torch.cat([target * known, known], dim=1))
        mixed, known = mixed.chunk(2, dim=1)
        return x, torch.where(known > 1. - 1e-5, mixed, torch.full_like(mixed, UNKNOWN))
