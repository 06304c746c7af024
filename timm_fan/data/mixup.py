"""timm's Mixup and CutMix for targets with unknown labels."""
import torch
from timm.data import Mixup

from .dataset import UNKNOWN

__all__ = ['MultiLabelMixup']


class MultiLabelMixup(Mixup):
    """Mixup / CutMix of multi-hot targets in which -1 stays unknown.

    A label is known in the mixture where it is known in every image that contributes to it. Label smoothing belongs to
    the loss.

    Args:
        num_classes: Number of classes.
        kwargs: Arguments of `timm.data.Mixup`, except label_smoothing and multi_label.
    """

    def __init__(self, num_classes: int, **kwargs):
        # the mask of known labels is mixed as further columns, with the very same lambdas
        super().__init__(num_classes=2 * num_classes, label_smoothing=0., multi_label=True, **kwargs)

    def __call__(self, x: torch.Tensor, target: torch.Tensor):
        """x (B, C, H, W), B even, is mixed in place; target (B, num_classes) of 0..1 and -1; returns both mixed."""
        known = (target != UNKNOWN).float()
        x, mixed = super().__call__(x, torch.cat([target * known, known], dim=1))
        mixed, known = mixed.chunk(2, dim=1)
        return x, torch.where(known > 1. - 1e-5, mixed, torch.full_like(mixed, UNKNOWN))
