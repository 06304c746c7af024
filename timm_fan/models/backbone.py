"""The one seam to timm's `features_only` models."""
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import safetensors
import safetensors.torch
import timm
import torch
import torch.nn as nn
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from timm.layers import Format
from timm.models import get_pretrained_cfg, register_notrace_module

from timm_fan.errors import InputError

__all__ = ['Backbone', 'check_backbone_name', 'read_backbone_weights']


def check_backbone_name(name: str) -> None:
    """Raises InputError, with the nearest names, where timm has no such model."""
    if not timm.is_model(name.split('.')[0]):
        near = timm.list_models(f'*{name.split(".")[0]}*')[:5]
        hint = f' Close: {", ".join(near)}.' if near else ' timm.list_models() names them all.'
        raise InputError(f"backbone='{name}' is not a timm model.{hint}")


def read_backbone_weights(name: str, file: Union[str, Path]) -> Dict[str, torch.Tensor]:
    """Weights of the plain timm model `name` from a safetensors file.

    Raises:
        InputError: The file is missing, is no safetensors file, or lacks parameters of that model.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f'backbone_weights: no file {file}. Give a safetensors file of the timm model {name}.')
    try:
        state_dict = safetensors.torch.load_file(file)
    except safetensors.SafetensorError as error:
        raise InputError(f'backbone_weights: {file} is not a readable safetensors file ({error}).') from error
    # the feature network drops what it does not need and would hide a file of another model
    wanted = timm.create_model(name, num_classes=0, device='meta').state_dict().keys()
    missing = sorted(wanted - state_dict.keys())
    if missing:
        raise InputError(
            f"backbone_weights: {file} lacks {len(missing)} of {len(wanted)} tensors of '{name}', the first:"
            f" {missing[0]}. Give a file in timm's parameter names for this backbone.")
    return state_dict


@register_notrace_module
class Backbone(nn.Module):
    """The last three feature maps of a timm model, as NCHW.

    Channels and strides come from timm's `feature_info`, never from a table of names.

    Args:
        name: Any timm model that `features_only=True` works for, with or without a tag.
        pretrained: Take timm's weights from the Hub.
        weights: A local safetensors file with the weights of the plain timm model, instead of the Hub's.
        in_chans: Channels of the input image.
        kwargs: More arguments of the timm model.

    Raises:
        InputError: Unknown name, unreadable weights, or the Hub cannot be reached.
    """

    def __init__(
            self,
            name: str,
            pretrained: bool = False,
            weights: Optional[Union[str, Path]] = None,
            in_chans: int = 3,
            device=None,
            dtype=None,
            **kwargs: Any,
    ):
        super().__init__()
        check_backbone_name(name)
        if weights:
            pretrained = True
            kwargs['pretrained_cfg_overlay'] = dict(state_dict=read_backbone_weights(name, weights))
        try:
            self.net = timm.create_model(
                name,
                pretrained=pretrained,
                features_only=True,
                out_indices=(-3, -2, -1),
                in_chans=in_chans,
                device=device,
                dtype=dtype,
                **kwargs,
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise InputError(
                f"The weights of backbone '{name}' could not be fetched from the Hub ({type(error).__name__}: {error})."
                ' Give backbone_weights=FILE, or pretrained_backbone=False to start from random weights.') from error
        self.channels: List[int] = self.net.feature_info.channels()
        self.reductions: List[int] = self.net.feature_info.reduction()
        self.nhwc: bool = getattr(self.net, 'output_fmt', None) == Format.NHWC
        self.first_conv = self._first_conv(get_pretrained_cfg(name))

    def _first_conv(self, cfg) -> Optional[str]:
        # feature wrappers flatten sequential modules (`stem.0` -> `stem_0`) or hold the model one level deeper
        name = cfg.first_conv if cfg is not None else None
        if not isinstance(name, str):
            return None
        names = {n for n, _ in self.named_modules()}
        for candidate in (name, name.replace('.', '_', 1), f'model.{name}'):
            if f'net.{candidate}' in names:
                return f'net.{candidate}'
        return None

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if hasattr(self.net, 'set_grad_checkpointing'):
            self.net.set_grad_checkpointing(enable)
        elif hasattr(getattr(self.net, 'model', None), 'set_grad_checkpointing'):
            self.net.model.set_grad_checkpointing(enable)

    def forward(self, x: torch.Tensor) -> List[torch.Tensor]:
        """(B, in_chans, H, W) -> x2, x3, x4, fine to coarse, each (B, C, h, w)"""
        features: List[torch.Tensor] = self.net(x)
        if self.nhwc:
            features = [f.permute(0, 3, 1, 2).contiguous() for f in features]
        return features
