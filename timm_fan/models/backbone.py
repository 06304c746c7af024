"""Three feature maps of any timm model, by its `features_only` interface."""
import copy
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple, Union

import timm
import torch
import torch.nn as nn
from timm.layers import Format, RmsNorm, RmsNorm2d, get_device_dtype
from timm.models import get_pretrained_cfg, group_parameters, register_notrace_module
from timm.models._features import FeatureGetterNet, FeatureHookNet

from timm_fan.errors import InputError
from timm_fan.hub import hub_errors

from .factory import check_name
from .pretrained import check_plain_weights, read_backbone_weights


def _choose_maps(reductions: Sequence[int]) -> List[int]:
    """Indices of x2, x3 and x4 among the maps of a model, which have these strides, from fine to coarse.

    They are the last three. If three or more maps have the last stride (every block of an isotropic transformer), they
    are three evenly spaced ones of these, ending at the last. With fewer than three maps the first is repeated.
    """
    last = [i for i, r in enumerate(reductions) if r == reductions[-1]]
    if len(last) >= 3:
        return [last[len(last) * k // 3 - 1] for k in (1, 2, 3)]
    return [max(0, len(reductions) - k) for k in (3, 2, 1)]


def unused_parameters(model: nn.Module, input_size: Sequence[int]) -> List[str]:
    """Names of the parameters with a gradient that the output of a model does not depend on.

    Args:
        model: It returns a tensor or several. Its mode is unchanged.
        input_size: (C, H, W) of an image.
    """
    training = model.training
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    outputs = model.eval()(torch.zeros(1, *input_size, device=named[0][1].device))
    total = outputs.sum() if isinstance(outputs, torch.Tensor) else sum(output.sum() for output in outputs)
    gradients = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
    model.train(training)
    return [name for (name, _), gradient in zip(named, gradients) if gradient is None]


class NormedFeatureGetterNet(FeatureGetterNet):
    """Applies the model's final norm to every map. By default timm leaves it out."""

    def __init__(self, model: nn.Module, norm: bool = True, **kwargs: Any):
        super().__init__(model, norm=norm, **kwargs)


class FinalFeatureGetterNet(FeatureGetterNet):
    """Returns the output of the model's `forward_features` in place of its last map."""

    def __init__(self, model: nn.Module, **kwargs: Any):
        super().__init__(model, prune=False, **kwargs)  # pruning would remove the layers after the last map
        model.reset_classifier(0, '')
        self.feature_info.info[self.out_indices[-1]]['num_chs'] = model.num_features

    def forward(self, x: torch.Tensor) -> List[torch.Tensor]:
        final, maps = self.model.forward_intermediates(x, indices=self.out_indices, output_fmt='NCHW')
        if final.shape[1:] == (*maps[-1].shape[2:], self.model.num_features):
            final = final.permute(0, 3, 1, 2).contiguous()  # NHWC -> NCHW
        return [*maps[:-1], final]


@register_notrace_module
class Backbone(nn.Module):
    """Three feature maps of a timm model, as NCHW.

    Channels, strides and the number of maps come from timm's `feature_info`, not from a table of names.

    timm's feature networks leave out what a model has between its last map and its classifier: final norms and
    activations, and convolutions such as `conv_head` of EfficientNets. With `final`, x4 is the output of the model's
    `forward_features` instead, where that is a map on the same grid. Where the final norm fits every map (isotropic
    transformers), it is applied to all three. The other maps of networks with layer norms are a residual stream without
    any normalization, and `raw` is true for them.

    Args:
        name: Any timm model that supports `features_only=True`, with or without a tag.
        pretrained: Load timm's weights from the Hub.
        weights: Safetensors file with the weights of the plain timm model, used instead of those on the Hub.
        in_chans: Channels of the input image.
        img_size: Input size in pixels, for models with a fixed size.
        final: Let x4 be what the model's own classifier pools.
        kwargs: Other arguments of the timm model.

    Raises:
        timm_fan.InputError: Unknown name, no feature maps, unreadable weights, or the Hub cannot be reached.
    """

    def __init__(
            self,
            name: str,
            pretrained: bool = False,
            weights: Optional[Union[str, Path]] = None,
            in_chans: int = 3,
            img_size: Optional[Union[int, Tuple[int, int]]] = None,
            final: bool = True,
            device=None,
            dtype=None,
            **kwargs: Any,
    ):
        super().__init__()
        check_name(name, '`backbone`')
        cfg = get_pretrained_cfg(name)
        self.fixed_input_size = bool(cfg is not None and cfg.fixed_input_size)
        self.name = name
        self.args = dict(kwargs, in_chans=in_chans)
        if img_size is not None and self.fixed_input_size:
            self.args['img_size'] = img_size

        self._head_modules: List[str] = []
        levels = self._choose_network(final)
        source: Dict[str, Any] = dict(pretrained=pretrained)
        if weights:
            source = dict(pretrained=True, pretrained_cfg_overlay=dict(state_dict=read_backbone_weights(name, weights)))
        remedy = 'Pass a file as `backbone_weights`, or start from random weights'
        with hub_errors(f"The weights of backbone '{name}' cannot be loaded. {remedy}. Cause"):
            self.net = self._create(device=device, dtype=dtype, **source)
        # indices among the maps that the network returns
        self.maps = [self.args['out_indices'].index(i) for i in levels]
        info = self.net.feature_info
        self.channels: List[int] = [info.channels()[i] for i in self.maps]
        self.reductions: List[int] = [info.reduction()[i] for i in self.maps]
        self.nhwc: bool = getattr(self.net, 'output_fmt', None) == Format.NHWC
        self.normed = isinstance(self.net, NormedFeatureGetterNet)
        self.final = isinstance(self.net, FinalFeatureGetterNet)
        layer_norms = any(isinstance(m, (nn.LayerNorm, nn.GroupNorm, RmsNorm, RmsNorm2d)) for m in self.net.modules())
        raw = layer_norms and not self.normed
        self.raw: List[bool] = [raw, raw, raw and not self.final]

    def _input_size(self) -> Tuple[int, int]:
        cfg = get_pretrained_cfg(self.name)
        size = self.args.get('img_size') or (cfg.input_size[1:] if cfg is not None else 224)
        return (size, size) if isinstance(size, int) else tuple(size)

    def _create(self, **kwargs: Any) -> nn.Module:
        net = timm.create_model(self.name, features_only=True, **{**self.args, **kwargs})
        for name in self._head_modules:
            net.set_submodule(name, nn.Identity())
        return net

    def _choose_network(self, final: bool) -> List[int]:
        """Set in `args` which maps to return and how to get them; returns the indices of x2, x3, x4."""
        try:
            probe = self._create(device='meta')
        except (AssertionError, AttributeError, KeyError, NotImplementedError, RuntimeError, ValueError) as error:
            args = ', '.join(f'{k}={v}' for k, v in self.args.items())
            raise InputError(
                f'timm provides no feature maps of `backbone={self.name}` with {args}: {type(error).__name__}:'
                f' {error}') from error
        reductions = [info['reduction'] for info in probe.feature_info]
        levels = _choose_maps(reductions)
        self.args['out_indices'] = sorted(set(levels))
        if isinstance(probe, FeatureGetterNet):
            normed = self._create(device='meta', feature_cls=NormedFeatureGetterNet, out_indices=probe.out_indices)
            gained = normed.state_dict().keys() - probe.state_dict().keys()
            if gained and len({reductions[i] for i in levels}) == 1:
                self.args['feature_cls'] = NormedFeatureGetterNet
                return levels
        if final and levels[-1] not in levels[:-1] and self._has_final_map(probe.feature_info.channels()[-1]):
            self.args['feature_cls'] = FinalFeatureGetterNet
            self._head_modules = self._modules_without_effect()
        elif not isinstance(probe, FeatureGetterNet) and self.fixed_input_size:
            if hasattr(self._create_plain(), 'set_input_size'):
                # keeps the whole model, including its method to change the size
                self.args['feature_cls'] = 'getter'
        return levels

    def _has_final_map(self, channels: int) -> bool:
        """Whether `forward_features` returns another map than the last one, which has `channels`, on the same grid."""
        plain = self._create_plain().eval()
        x = torch.zeros(1, self.args['in_chans'], *self._input_size(), device='meta')
        try:
            final, maps = plain.forward_intermediates(x, indices=1, output_fmt='NCHW')
        except (AttributeError, AssertionError, NotImplementedError, RuntimeError):  # or impossible on this device
            return False
        if not isinstance(final, torch.Tensor) or final.ndim != 4:
            return False
        grids = (final.shape[2:], final.shape[1:3])  # NCHW, NHWC
        return maps[-1].shape[2:] in grids and (final is not maps[-1] or channels != plain.num_features)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def _modules_without_effect(self) -> List[str]:
        """Modules with parameters that the maps do not depend on: what a classifier has before its last layer."""
        unused = unused_parameters(self._create(device='meta'), (self.args['in_chans'], *self._input_size()))
        return list(dict.fromkeys(name.rpartition('.')[0] for name in unused))

    def _create_plain(self) -> nn.Module:
        args = {k: v for k, v in self.args.items() if k not in ('out_indices', 'feature_cls')}
        return timm.create_model(self.name, num_classes=0, device='meta', **args)

    def own_name(self, name: str, names: Set[str]) -> Optional[str]:
        """Name here of a parameter or module of the plain timm model; None if it is not among `names`."""
        # feature networks flatten sequential modules (`stem.0` -> `stem_0`) or contain the model one level deeper
        for candidate in (name, name.replace('.', '_', 1), f'model.{name}', f'body.{name}'):
            if f'net.{candidate}' in names:
                return f'net.{candidate}'
        return None

    @torch.jit.ignore
    def first_convs(self) -> List[str]:
        """Names of the input convolutions, which timm adapts to `in_chans` when it loads weights; empty if unknown."""
        cfg = get_pretrained_cfg(self.name)
        plain = (cfg.first_conv if cfg is not None else None) or ()
        names = {n for n, _ in self.named_modules()}
        own = [self.own_name(n, names) for n in ((plain,) if isinstance(plain, str) else plain)]
        return [n for n in own if n is not None]

    @torch.jit.ignore
    def layer_ids(self, coarse: bool = False) -> Dict[str, int]:
        """Layer of each parameter, counted from the input, by the `group_matcher` of the plain model."""
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
        """Convert a state dict of the plain timm model to one of this module, as timm does when it loads it."""
        check_plain_weights(self.name, state_dict, 'The checkpoint')
        overlay = dict(state_dict=state_dict)
        net = self._create(pretrained=True, pretrained_cfg_overlay=overlay, **get_device_dtype(self))
        return {f'net.{k}': v for k, v in net.state_dict().items()}

    @torch.jit.ignore
    def prune(self, num_maps: int) -> None:
        """Keep the first `num_maps` maps, and the part of the network that they need."""
        self.maps, self.channels, self.reductions = (
            v[:num_maps] for v in (self.maps, self.channels, self.reductions))
        self.args['out_indices'] = self.args['out_indices'][:max(self.maps) + 1]
        if self.final:
            self.args['feature_cls'], self.final, self._head_modules = 'getter', False, []
        old, net = self.net, self._create(**get_device_dtype(self))
        state = old.state_dict()
        net.load_state_dict({k: state[k] for k in net.state_dict()})
        frozen = {n for n, p in old.named_parameters() if not p.requires_grad}
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.net = net.train(old.training)

    @torch.jit.ignore
    def set_input_size(self, img_size: Tuple[int, int]) -> None:
        """Change the input size of a model with a fixed one. Other models accept any size.

        Raises:
            timm_fan.InputError: timm cannot change it after construction.
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
        # TorchScript supports neither hooks nor most forward_intermediates methods: trace such a network, at its input
        # size and in its current mode
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
