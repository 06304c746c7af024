"""Test-time augmentation, for evaluations and predictions alike."""
import torch
import torch.nn as nn

from .errors import InputError

TTA = ('none', 'flip')


class FlipAveraged(nn.Module):
    """A model whose logits are the mean of those for an image and for its mirror image.

    Logits rather than probabilities: all scores and thresholds are computed from logits, and a mean of probabilities
    next to 0 or 1 could not be turned back into one.

    Args:
        model: From `load_model`, or another timm model.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        # what evaluations and predictions ask a timm model for
        self.num_classes, self.pretrained_cfg = model.num_classes, model.pretrained_cfg
        self.thresholds = getattr(model, 'thresholds', None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> float32 (B, num_classes)"""
        return (self.model(x).float() + self.model(x.flip(-1)).float()) / 2


def with_tta(model: nn.Module, tta: str = 'none') -> nn.Module:
    """The model with a test-time augmentation, one of TTA; 'flip' takes twice the time.

    Raises:
        InputError: Unknown augmentation.
    """
    if tta not in TTA:
        raise InputError(f"`tta={tta}` is not one of {', '.join(TTA)}.")
    return FlipAveraged(model) if tta == 'flip' else model
