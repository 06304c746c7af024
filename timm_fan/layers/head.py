"""Classifiers on a feature map: linear on pooled features, or one that sees every position."""
from typing import Any, Dict, Optional, Sequence, Union

import torch
import torch.nn as nn
from timm.layers import ClassifierHead, SelectAdaptivePool2d, get_device_dtype

from timm_fan.errors import InputError

from .class_max import ClassMax
from .csra import CSRA
from .ml_decoder import MLDecoder
from .query2label import Query2Label

HEADS = {'class_max': ClassMax, 'csra': CSRA, 'ml_decoder': MLDecoder, 'query2label': Query2Label}


class MapHead(nn.Module):
    """A classifier on the whole map, with the interface of timm's `ClassifierHead`.

    Args:
        decoder: One of the classes in HEADS.
        in_features: Channels of the map.
        num_classes: Number of classes. With 0 the map is only pooled.
        pool_type: Pooling of the pre-logits.
        drop_rate: Dropout rate on the map, in addition to that of the decoder.
        decoder_args: Other arguments of the decoder.
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
        """(B, in_features, H, W) -> logits (B, num_classes) or pooled features"""
        if pre_logits or self.num_classes == 0:
            return self.global_pool(x)
        return self.fc(self.drop(x))


def set_classifier_bias(classifier: Union[nn.Module, Sequence[nn.Module]], bias: torch.Tensor) -> None:
    """Set the bias of a linear classifier, or of a head of this package. That of CSRA has none and is unchanged.

    Args:
        classifier: Result of a timm model's `get_classifier`, a module or several.
        bias: Logits (num_classes,).
    """
    modules = [classifier] if isinstance(classifier, nn.Module) else classifier
    for module in modules:
        own = getattr(module, 'bias', None)
        if not isinstance(own, nn.Parameter):  # a norm and a linear layer
            own = next((p for name, p in module.named_parameters() if name.endswith('linear.bias')), None)
        if own is not None:
            with torch.no_grad():
                own.copy_(bias)


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
    """timm's linear head, or one of HEADS.

    Args:
        name: 'linear' or a key of HEADS.
        in_features: Channels of the map.
        num_classes: Number of classes, 0 for no classifier.
        pool_type: Pooling, any of timm's `SelectAdaptivePool2d`.
        drop_rate: Dropout rate before the classifier.
        head_args: Other arguments of a head in HEADS.

    Raises:
        timm_fan.InputError: Unknown head.
        TypeError: The head does not have one of the arguments.
    """
    if name == 'linear':
        return ClassifierHead(
            in_features, num_classes, pool_type=pool_type, drop_rate=drop_rate, device=device, dtype=dtype)
    if name not in HEADS:
        raise InputError(f"`head` must be 'linear', {', '.join(map(repr, HEADS))}, got {name!r}.")
    return MapHead(
        HEADS[name], in_features, num_classes, pool_type, drop_rate, head_args, device=device, dtype=dtype)
