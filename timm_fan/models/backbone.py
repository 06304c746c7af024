"""The one seam to timm's `features_only` models."""
import copy
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple, Union

import safetensors
import safetensors.torch
import timm
import torch
import torch.nn as nn
from timm.layers import Format, RmsNorm, RmsNorm2d, get_device_dtype
from timm.models import get_pretrained_cfg, group_parameters, register_notrace_module
from timm.models._features import FeatureGetterNet, FeatureHookNet

from timm_fan.errors import InputError
from timm_fan.hub import hub_errors

__all__ = ['Backbone', 'check_backbone_name', 'check_plain_weights', 'read_backbone_weights']


def check_backbone_name(name: str) -> None:
    """Raises InputError, with the nearest names, where timm has no such model."""
    if not timm.is_model(name.split('.')[0]):
        near = timm.list_models(f'*{name.split(".")[0]}*')[:5]
        hint = f' Close: {", ".join(near)}.' if near else ' timm.list_models() names them all.'
        raise InputError(f"backbone='{name}' is not a timm model.{hint}")


def check_plain_weights(name: str, state_dict: Dict[str, torch.Tensor], source: str) -> None:
    """Raises InputError, naming `source`, where `state_dict` is not one of the plain timm model `name`."""
    # the feature network drops what it does not need and would hide weights of another model
    wanted = timm.create_model(name, num_classes=0, device='meta').state_dict().keys()
    missing = sorted(wanted - state_dict.keys())
    if missing:
        raise InputError(
            f"{source} lacks {len(missing)} of {len(wanted)} tensors of '{name}', the first: {missing[0]}."
            " Give weights in timm's parameter names for this backbone.")


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
    check_plain_weights(name, state_dict, f'backbone_weights: {file}')
    return state_dict


def _choose_maps(reductions: Sequence[int]) -> List[int]:
    """Which of a model's maps, fine to coarse with these strides, are x2, x3 and x4.

    The last three. A model with three or more maps of its last stride (every block of an isotropic transformer) gives
    three depths of it, evenly spaced and ending at the last. One with fewer than three maps gives its first again.
    """
    last = [i for i, r in enumerate(reductions) if r == reductions[-1]]
    if len(last) >= 3:
        return [last[len(last) * k // 3 - 1] for k in (1, 2, 3)]
    return [max(0, len(reductions) - k) for k in (3, 2, 1)]


class NormedFeatureGetterNet(FeatureGetterNet):
    """Every map through the model's own final norm, which timm leaves out otherwise."""

    def __init__(self, model: nn.Module, norm: bool = True, **kwargs: Any):
        super().__init__(model, norm=norm, **kwargs)


@register_notrace_module
class Backbone(nn.Module):
    """Three feature maps of a timm model, as NCHW.

    Channels, strides and the number of maps come from timm's `feature_info`, never from a table of names.

    timm's feature networks leave a model's final norm out. Where it fits every map (isotropic transformers) it is put
    back in here: `normed`. Elsewhere the maps of networks of layer norms are a residual stream that nothing has
    normalized: `raw`.

    Args:
        name: Any timm model that `features_only=True` works for, with or without a tag.
        pretrained: Take timm's weights from the Hub.
        weights: A local safetensors file with the weights of the plain timm model, instead of the Hub's.
        in_chans: Channels of the input image.
        img_size: Input size in pixels. Only models with a fixed size need it.
        kwargs: More arguments of the timm model.

    Raises:
        InputError: Unknown name, no feature maps, unreadable weights, or the Hub cannot be reached.
    """

    def __init__(
            self,
            name: str,
            pretrained: bool = False,
            weights: Optional[Union[str, Path]] = None,
            in_chans: int = 3,
            img_size: Optional[Union[int, Tuple[int, int]]] = None,
            device=None,
            dtype=None,
            **kwargs: Any,
    ):
        super().__init__()
        check_backbone_name(name)
        cfg = get_pretrained_cfg(name)
        self.fixed_input_size = bool(cfg is not None and cfg.fixed_input_size)
        self.name = name
        self.args = dict(kwargs, in_chans=in_chans)
        if img_size is not None and self.fixed_input_size:
            self.args['img_size'] = img_size

        levels = self._choose_network()
        source: Dict[str, Any] = dict(pretrained=pretrained)
        if weights:
            source = dict(pretrained=True, pretrained_cfg_overlay=dict(state_dict=read_backbone_weights(name, weights)))
        remedy = 'give backbone_weights=FILE, or pretrained_backbone=False to start from random weights'
        with hub_errors(f"the weights of backbone '{name}' (else {remedy})"):
            self.net = self._create(device=device, dtype=dtype, **source)
        # positions among the maps that the network returns
        self.maps = [self.args['out_indices'].index(i) for i in levels]
        info = self.net.feature_info
        self.channels: List[int] = [info.channels()[i] for i in self.maps]
        self.reductions: List[int] = [info.reduction()[i] for i in self.maps]
        self.nhwc: bool = getattr(self.net, 'output_fmt', None) == Format.NHWC
        self.normed = isinstance(self.net, NormedFeatureGetterNet)
        self.raw = not self.normed and any(
            isinstance(m, (nn.LayerNorm, nn.GroupNorm, RmsNorm, RmsNorm2d)) for m in self.net.modules())

    def _input_size(self) -> Tuple[int, int]:
        cfg = get_pretrained_cfg(self.name)
        size = self.args.get('img_size') or (cfg.input_size[1:] if cfg is not None else 224)
        return (size, size) if isinstance(size, int) else tuple(size)

    def _create(self, **kwargs: Any) -> nn.Module:
        return timm.create_model(self.name, features_only=True, **{**self.args, **kwargs})

    def _choose_network(self) -> List[int]:
        """Fills `args` with the maps to return and the way to get them; returns the indices of x2, x3, x4."""
        try:
            probe = self._create(device='meta')
        except (AssertionError, AttributeError, KeyError, NotImplementedError, RuntimeError, ValueError) as error:
            args = ', '.join(f'{k}={v}' for k, v in self.args.items())
            raise InputError(
                f"timm gives no feature maps of backbone='{self.name}' with {args}: {type(error).__name__}:"
                f' {error}') from error
        reductions = [info['reduction'] for info in probe.feature_info]
        levels = _choose_maps(reductions)
        self.args['out_indices'] = sorted(set(levels))
        if isinstance(probe, FeatureGetterNet):
            normed = self._create(device='meta', feature_cls=NormedFeatureGetterNet, out_indices=probe.out_indices)
            gained = normed.state_dict().keys() - probe.state_dict().keys()
            if gained and len({reductions[i] for i in levels}) == 1:
                self.args['feature_cls'] = NormedFeatureGetterNet
        elif self.fixed_input_size and hasattr(self._create_plain(), 'set_input_size'):
            # the whole model stays, and with it its way to change the size
            self.args['feature_cls'] = 'getter'
        return levels

    def _create_plain(self) -> nn.Module:
        args = {k: v for k, v in self.args.items() if k not in ('out_indices', 'feature_cls')}
        return timm.create_model(self.name, num_classes=0, device='meta', **args)

    def own_name(self, name: str, names: Set[str]) -> Optional[str]:
        """What a parameter or module of the plain timm model is called here; None if it is not among `names`."""
        # feature networks flatten sequential modules (`stem.0` -> `stem_0`) or hold the model one level deeper
        for candidate in (name, name.replace('.', '_', 1), f'model.{name}', f'body.{name}'):
            if f'net.{candidate}' in names:
                return f'net.{candidate}'
        return None

    @torch.jit.ignore
    def first_convs(self) -> List[str]:
        """The input convolutions, which take another number of channels when weights are loaded; none if unknown."""
        cfg = get_pretrained_cfg(self.name)
        plain = (cfg.first_conv if cfg is not None else None) or ()
        names = {n for n, _ in self.named_modules()}
        own = [self.own_name(n, names) for n in ((plain,) if isinstance(plain, str) else plain)]
        return [n for n in own if n is not None]

    @torch.jit.ignore
    def layer_ids(self, coarse: bool = False) -> Dict[str, int]:
        """The layer of each parameter, from the input on, as the plain model's `group_matcher` counts."""
        plain = self._create_plain()
        if not hasattr(plain, 'group_matcher'):
            return {}
        names = {n for n, _ in self.named_parameters()}
        layers = group_parameters(plain, plain.group_matcher(coarse=coarse), reverse=True)
        own = {self.own_name(n, names): i for n, i in layers.items()}
        return {n: i for n, i in own.items() if n is not None}

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        plain = self._create_plain()
        patterns = plain.no_weight_decay() if hasattr(plain, 'no_weight_decay') else ()
        names = {n for n, _ in self.named_parameters()}
        return {own for own in (self.own_name(p, names) for p in patterns) if own is not None}

    @torch.jit.ignore
    def from_plain(self, state_dict: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        """A state dict of the plain timm model -> one of this module, converted as timm converts it."""
        check_plain_weights(self.name, state_dict, 'The checkpoint')
        overlay = dict(state_dict=state_dict)
        net = self._create(pretrained=True, pretrained_cfg_overlay=overlay, **get_device_dtype(self))
        return {f'net.{k}': v for k, v in net.state_dict().items()}

    @torch.jit.ignore
    def prune(self, num_maps: int) -> None:
        """Keep the first `num_maps` maps and what they need of the network."""
        self.maps, self.channels, self.reductions = (
            v[:num_maps] for v in (self.maps, self.channels, self.reductions))
        self.args['out_indices'] = self.args['out_indices'][:max(self.maps) + 1]
        old, net = self.net, self._create(**get_device_dtype(self))
        state = old.state_dict()
        net.load_state_dict({k: state[k] for k in net.state_dict()})
        frozen = {n for n, p in old.named_parameters() if not p.requires_grad}
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.net = net.train(old.training)

    @torch.jit.ignore
    def set_input_size(self, img_size: Tuple[int, int]) -> None:
        """Changes the size of a model that has a fixed one; the others take any.

        Raises:
            InputError: timm cannot change it after construction.
        """
        if not self.fixed_input_size:
            return
        if not hasattr(getattr(self.net, 'model', None), 'set_input_size'):
            raise InputError(
                f"timm cannot change the input size of '{self.name}' after construction. Create the model with"
                f' img_size={img_size}.')
        self.net.model.set_input_size(img_size=img_size)
        self.args['img_size'] = img_size

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if hasattr(self.net, 'set_grad_checkpointing'):
            self.net.set_grad_checkpointing(enable)
        elif hasattr(getattr(self.net, 'model', None), 'set_grad_checkpointing'):
            self.net.model.set_grad_checkpointing(enable)

    def __prepare_scriptable__(self) -> 'Backbone':
        # TorchScript compiles neither hooks nor most forward_intermediates: such a network goes in traced, at its input
        # size and in its present mode
        if not isinstance(self.net, (FeatureGetterNet, FeatureHookNet)):
            return self
        parameter = next(self.net.parameters())
        x = torch.zeros(1, self.args['in_chans'], *self._input_size(), device=parameter.device, dtype=parameter.dtype)
        new = copy.copy(self)
        new._modules = {'net': torch.jit.trace(self.net, x, strict=False, check_trace=False)}
        return new

    def forward(self, x: torch.Tensor) -> List[torch.Tensor]:
        """(B, in_chans, H, W) -> x2, x3, x4, fine to coarse, each (B, C, h, w)"""
        features: List[torch.Tensor] = self.net(x)
        features = [features[i] for i in self.maps]
        if self.nhwc:
            features = [f.permute(0, 3, 1, 2).contiguous() for f in features]
        return features
