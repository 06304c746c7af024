"""ML-Decoder, a head to compare the FAN with.

Paper: `ML-Decoder: Scalable and Versatile Classification Head` - https://arxiv.org/abs/2111.12933

A new implementation, because `timm.layers.ml_decoder` of timm 1.0.31 fails with current versions of PyTorch.
"""
import torch
import torch.nn as nn


class MLDecoder(nn.Module):
    """Fixed queries attend to the positions of the map. Each query predicts one group of classes.

    A decoder layer without self-attention (Section 3.2.1), fixed random queries (3.2.2), and a linear layer for each
    group (3.2.3).

    Args:
        in_features: Channels of the map.
        num_classes: Number of classes.
        dim: Channels of the decoder. The feed-forward layer has 2048.
        num_groups: Number of queries, at most one for each class.
        num_heads: Attention heads.
        dropout: Dropout rate in the decoder.
    """

    def __init__(
            self,
            in_features: int,
            num_classes: int,
            dim: int = 768,
            num_groups: int = 100,
            num_heads: int = 8,
            dropout: float = 0.1,
            device=None,
            dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        num_groups = min(num_groups, num_classes)
        self.num_classes = num_classes
        self.proj = nn.Linear(in_features, dim, **dd)
        self.register_buffer('query', torch.empty(num_groups, dim, **dd))
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 2048, **dd), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2048, dim, **dd))
        self.norm3 = nn.LayerNorm(dim, **dd)
        self.drop = nn.Dropout(dropout)
        group_size = -(-num_classes // num_groups)
        self.weight = nn.Parameter(torch.empty(num_groups, dim, group_size, **dd))
        self.bias = nn.Parameter(torch.zeros(num_classes, **dd))
        nn.init.normal_(self.query)
        nn.init.xavier_normal_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_features, H, W) -> logits (B, num_classes)"""
        memory = self.proj(x.flatten(2).transpose(1, 2)).relu()  # (B, H*W, dim)
        h = self.query.expand(x.shape[0], -1, -1)  # (B, num_groups, dim)
        h = self.norm1(h + self.drop(h))
        h = self.norm2(h + self.drop(self.attn(h, memory, memory, need_weights=False)[0]))
        h = self.norm3(h + self.drop(self.mlp(h)))
        logits = torch.einsum('bgd,gdk->bgk', h, self.weight).flatten(1)  # the last group may be larger than needed
        return logits[:, :self.num_classes] + self.bias
