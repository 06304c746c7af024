"""The classifier on a feature map: linear on pooled features, or one of the rivals."""
from typing import Any, Dict, Optional

import torch
import torch.nn as nn
from timm.layers import ClassifierHead, SelectAdaptivePool2d, get_device_dtype

from timm_fan.errors import InputError

from .csra import CSRA
from .ml_decoder import MLDecoder
from .query2label import Query2Label

__all__ = ['HEADS', 'MapHead', 'create_head']

HEADS = {'csra': CSRA, 'ml_decoder': MLDecoder, 'query2label': Query2Label}


class MapHead(nn.Module):
    """A classifier that looks at the whole map, with the interface of timm's `ClassifierHead`.

    Args:
        decoder: A class of HEADS.
        in_features: Channels of the map.
        num_classes: Number of classes; with 0 the map is pooled and nothing else.
        pool_type: Pooling of the pre-logits.
        drop_rate: Dropout on the map, beside the decoder's own.
        decoder_args: More arguments of the decoder.
    """

    def __init__(
            self,
            decoder: type,
            in_features: int,
            num_classes: int,
            pool_type: str = 'avg',
            drop_rate: float = 0.,
            decoder_args: Optional[Dict[str, Any]] = None,
            device=None,
            dtype=None,
    ):
        super().__init__()
        self.decoder, self.decoder_args = decoder, dict(decoder_args or {})
        self.in_features = in_features
        self.drop = nn.Dropout(drop_rate)
        self._build(num_classes, pool_type, device=device, dtype=dtype)

    def _build(self, num_classes: int, pool_type: str, **dd: Any) -> None:
        self.num_classes = num_classes
        self.global_pool = SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type))
        self.num_features = self.in_features * self.global_pool.feat_mult()
        self.fc = self.decoder(self.in_features, num_classes, **self.decoder_args, **dd) if num_classes else (
            nn.Identity())
        self.train(self.training)

    def reset(self, num_classes: int, pool_type: Optional[str] = None, device=None, dtype=None) -> None:
        pool_type = self.global_pool.pool_type if pool_type is None else pool_type
        self._build(num_classes, pool_type, **get_device_dtype(self, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, in_features, H, W) -> logits (B, num_classes), or the pooled features"""
        if pre_logits or self.num_classes == 0:
            return self.global_pool(x)
        return self.fc(self.drop(x))


def create_head(
        name: str,
        in_features: int,
        num_classes: int,
        pool_type: str = 'avg',
        drop_rate: float = 0.,
        head_args: Optional[Dict[str, Any]] = None,
        device=None,
        dtype=None,
) -> nn.Module:
    """timm's linear head or one of HEADS.

    Args:
        name: 'linear' or a key of HEADS.
        head_args: More arguments of the latter.

    Raises:
        InputError: There is no such head.
        TypeError: It does not know an argument.
    """
    if name == 'linear':
        return ClassifierHead(
            in_features, num_classes, pool_type=pool_type, drop_rate=drop_rate, device=device, dtype=dtype)
    if name not in HEADS:
        raise InputError(f"head must be 'linear', {', '.join(map(repr, HEADS))}, got {name!r}.")
    return MapHead(
        HEADS[name], in_features, num_classes, pool_type, drop_rate, head_args, device=device, dtype=dtype)
