"""Class-specific residual attention (CSRA), a head to compare the FAN with.

Paper: `Residual Attention: A Simple but Effective Method for Multi-Label Recognition` -
https://arxiv.org/abs/2108.02456
"""
import math
from typing import Tuple

import torch
import torch.nn as nn

from timm_fan.errors import InputError

# for each number of heads, Section 3.3; infinity selects the maximum
TEMPERATURES = {
    1: (1.,),
    2: (1., math.inf),
    4: (1., 2., 4., math.inf),
    6: (1., 2., 3., 4., 5., math.inf),
    8: (1., 2., 3., 4., 5., 6., 7., math.inf),
}


class CSRA(nn.Module):
    """The mean of a classifier over all positions, plus attention of each class.

    With the scores s_j of a class at position j, each head adds mean_j s_j + lam * sum_j softmax_j(T s)_j s_j. This is
    Eq. 2 to 8, where class-specific features and their classification reduce to one weighted sum of scores. Each head
    has its own temperature T and its own classifier, with unit norm and without bias, as in the authors' code.

    Args:
        in_features: Channels of the map.
        num_classes: Number of classes.
        num_heads: 1, 2, 4, 6 or 8. The authors use 4 on COCO with ResNet-101 and 1 on VOC.
        lam: Weight of the attention. The authors use 0.5 on COCO and 0.1 on VOC.

    Raises:
        timm_fan.InputError: Unsupported number of heads.
    """

    def __init__(
            self, in_features: int, num_classes: int, num_heads: int = 4, lam: float = 0.5, device=None, dtype=None):
        super().__init__()
        if num_heads not in TEMPERATURES:
            known = ', '.join(map(str, TEMPERATURES))
            raise InputError(f'`num_heads` of CSRA must be one of {known}, got {num_heads}.')
        self.lam = lam
        self.temperatures: Tuple[float, ...] = TEMPERATURES[num_heads]
        self.weight = nn.Parameter(torch.empty(num_heads, num_classes, in_features, device=device, dtype=dtype))
        nn.init.uniform_(self.weight, -in_features ** -0.5, in_features ** -0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_features, H, W) -> logits (B, num_classes)"""
        weight = self.weight / self.weight.norm(dim=2, keepdim=True)
        scores = torch.einsum('bchw,tkc->tbkhw', x, weight).flatten(3)  # (num_heads, B, num_classes, H*W)
        logits = scores.mean(dim=3).sum(dim=0)
        for i, t in enumerate(self.temperatures):
            s = scores[i]
            attended = s.amax(dim=2) if math.isinf(t) else ((t * s).softmax(dim=2) * s).sum(dim=2)
            logits = logits + self.lam * attended
        return logits
