"""Correlation Learning Network (CLN) of the Feature Attention Network.

Paper: `Multi-Label Image Classification by Feature Attention Network` - https://doi.org/10.1109/ACCESS.2019.2929512
Section III-B.
"""
from typing import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F


class CorrelationLearningNetwork(nn.Module):
    """CLN: attention between the positions of three maps, Eq. 4 and 5.

    out_i = sum_j softmax_j(theta(p3)_i . phi(p2)_j / sqrt(K)) g(p4)_j, plus p4_i with `residual`.

    theta, phi and g are the 1x1 convolutions ("conv") of Figure 2. C(x) of Eq. 5 is a softmax over j, as the text says.
    The scale 1 / sqrt(K) is not in the paper; without it the softmax saturates at K = 512. The paper does not say
    whether p4 is added to the result, as in Non-local networks (https://arxiv.org/abs/1711.07971, Eq. 6).

    With the residual, g is initialized to zero, so that a new CLN is the identity on p4 (Non-local networks, Section
    4.1). Without it, g preserves the variance of p4, and the attention starts close to uniform.

    Args:
        in_chs: Channels of p2, p3, p4. The result has those of p4.
        dim: K, the channels of theta and phi.
        residual: Add p4 to the attended features.
    """

    def __init__(self, in_chs: Sequence[int], dim: int, residual: bool = True, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.residual = residual
        self.phi = nn.Conv2d(in_chs[0], dim, kernel_size=1, **dd)
        self.theta = nn.Conv2d(in_chs[1], dim, kernel_size=1, **dd)
        self.g = nn.Conv2d(in_chs[2], in_chs[2], kernel_size=1, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        for conv in (self.phi, self.theta, self.g):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        if self.residual:
            nn.init.zeros_(self.g.weight)

    def attention(self, p2: torch.Tensor, p3: torch.Tensor) -> torch.Tensor:
        """Attention between positions (Eq. 5): (B, C2, H, W), (B, C3, H, W) -> (B, H*W, H*W), rows sum to 1"""
        query, key = self.theta(p3).flatten(2).transpose(1, 2), self.phi(p2).flatten(2)
        return (query @ key * key.shape[1] ** -0.5).softmax(dim=2)

    def forward(self, p2: torch.Tensor, p3: torch.Tensor, p4: torch.Tensor) -> torch.Tensor:
        """p2 (B, C2, H, W), p3 (B, C3, H, W), p4 (B, C4, H, W) -> (B, C4, H, W)"""
        # a single head: the ONNX exporter only supports attention on four dimensions
        query = self.theta(p3).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, H*W, K)
        key = self.phi(p2).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, H*W, K)
        value = self.g(p4).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, H*W, C4)
        x = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        x = x.transpose(1, 2).reshape(p4.shape)
        return x + p4 if self.residual else x
