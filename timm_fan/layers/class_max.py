"""A linear classifier at each position, pooled by mean and maximum: the head of the FAN. Not in its paper."""
import torch
import torch.nn as nn


class ClassMax(nn.Module):
    """The mean of the scores of a class over all positions, plus `lam` times their maximum, plus a bias.

    The mean is what average pooling and a linear layer compute. The maximum lets a class respond to its strongest
    position, with the same weights. This is the limit of residual attention for high temperatures
    (https://arxiv.org/abs/2108.02456, Section 3.2), but with a bias and without normalized weights.

    Args:
        in_features: Channels of the map.
        num_classes: Number of classes.
        lam: Weight of the maximum, 0 for average pooling.
    """

    def __init__(self, in_features: int, num_classes: int, lam: float = 0.5, device=None, dtype=None):
        super().__init__()
        self.in_features, self.out_features, self.lam = in_features, num_classes, lam
        self.weight = nn.Parameter(torch.empty(num_classes, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_classes, device=device, dtype=dtype))
        nn.init.trunc_normal_(self.weight, std=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_features, H, W) -> logits (B, num_classes)"""
        scores = self.weight @ x.flatten(2)  # (B, num_classes, H*W)
        return scores.mean(dim=2) + self.lam * scores.amax(dim=2) + self.bias
