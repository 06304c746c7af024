"""Query2Label, a head to compare the FAN with.

Paper: `Query2Label: A Simple Transformer Way to Multi-Label Classification` - https://arxiv.org/abs/2107.10834
"""
import math
from typing import Optional

import torch
import torch.nn as nn


def sine_position(height: int, width: int, dim: int, device=None) -> torch.Tensor:
    """Position encoding of DETR, float32 (height * width, dim): half of the channels for rows, half for columns.

    Source: https://arxiv.org/abs/2005.12872, Appendix A.4. Rows and columns end at 2 pi for any size.
    """
    wave = 10000. ** (2 * torch.arange(dim // 4, device=device) / (dim // 2))
    axes = []
    for length in (height, width):
        angle = (torch.arange(length, device=device) + 1.)[:, None] * (2 * math.pi / length) / wave
        axes.append(torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1))  # (length, dim // 2)
    rows = axes[0][:, None].expand(-1, width, -1)
    columns = axes[1][None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class _Layer(nn.Module):
    """Cross-attention and feed-forward, each followed by a norm. Applied to the map itself it is an encoder layer.

    By default the authors' code has no self-attention between queries, so that one class serves for both.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True, **dd)
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim, **dd), nn.ReLU(), nn.Dropout(dropout), nn.Linear(mlp_dim, dim, **dd))
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.drop = nn.Dropout(dropout)

    def forward(self, x, query, key, value) -> torch.Tensor:
        x = self.norm1(x + self.drop(self.attn(query, key, value, need_weights=False)[0]))
        return self.norm2(x + self.drop(self.mlp(x)))


class Query2Label(nn.Module):
    """A transformer decoder over the map with one learned query per class, Figure 2 and Section 3.2.

    One encoder layer and two decoder layers, as in the authors' code, and one output weight vector per class (Eq. 5).

    Args:
        in_features: Channels of the map.
        num_classes: Number of classes.
        dim: Channels of the transformer, a multiple of 4 and of `num_heads`; by default those of the map. The authors
            use 2048, the channels of ResNet-101.
        num_heads: Attention heads.
        mlp_ratio: Width of the feed-forward layers as a multiple of `dim`.
        dropout: Dropout rate in the transformer.
    """

    def __init__(
            self,
            in_features: int,
            num_classes: int,
            dim: Optional[int] = None,
            num_heads: int = 4,
            mlp_ratio: float = 4.,
            dropout: float = 0.1,
            device=None,
            dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        dim = dim or in_features
        self.dim = dim
        self.proj = nn.Conv2d(in_features, dim, kernel_size=1, **dd)
        self.encoder = _Layer(dim, num_heads, int(mlp_ratio * dim), dropout, **dd)
        self.decoder = nn.ModuleList([_Layer(dim, num_heads, int(mlp_ratio * dim), dropout, **dd) for _ in range(2)])
        self.query = nn.Parameter(torch.empty(num_classes, dim, **dd))
        self.weight = nn.Parameter(torch.empty(num_classes, dim, **dd))
        self.bias = nn.Parameter(torch.empty(num_classes, **dd))
        nn.init.normal_(self.query)
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -dim ** -0.5, dim ** -0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_features, H, W) -> logits (B, num_classes)"""
        position = sine_position(x.shape[2], x.shape[3], self.dim, x.device).to(x.dtype)
        memory = self.proj(x).flatten(2).transpose(1, 2)  # (B, H*W, dim)
        memory = self.encoder(memory, memory + position, memory + position, memory)
        key, query = memory + position, self.query.expand(x.shape[0], -1, -1)
        h = torch.zeros_like(query)  # (B, num_classes, dim)
        for layer in self.decoder:
            h = layer(h, h + query, key, memory)
        return (h * self.weight).sum(dim=2) + self.bias
