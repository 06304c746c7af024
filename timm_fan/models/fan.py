"""Feature Attention Network (FAN)

Paper: `Multi-Label Image Classification by Feature Attention Network` - Zheng Yan, Weiwei Liu, Shiping Wen, Yin Yang,
IEEE Access 7, 2019 - https://doi.org/10.1109/ACCESS.2019.2929512

The last three feature maps of a backbone are refined from the top down (FRN) and correlated between positions (CLN)
before a linear classifier (Figure 2). Written from the paper. Where it is silent or contradicts itself, the docstrings
of the layers and of `FAN` state what was chosen and why.
"""
import contextlib
import copy
from typing import Any, Callable, Dict, List, Optional, Set, Tuple, Type, Union

import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import LayerNorm2d, get_device_dtype
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, get_pretrained_cfg, register_model
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size

from timm_fan.errors import InputError
from timm_fan.layers import (
    CorrelationLearningNetwork,
    FeatureRefinementNetwork,
    GridPooling,
    create_head,
    set_classifier_bias,
)

from .backbone import Backbone
from .factory import check_name
from .pretrained import find_weights, weights_errors

__all__ = ['FAN', 'checkpoint_filter_fn']


def _default_embed_dim(channels: int) -> int:
    return min(512, 2 ** (channels.bit_length() - 1))


class FAN(nn.Module):
    """Feature Attention Network over any timm backbone.

    By default x4 of the backbone and p2, p3, p4 of the FRN are concatenated and classified at each position. The other
    parts of the paper, and what it leaves open, are arguments. train_scripts/results/README.md has the reasons for the
    defaults.

    The network as the paper prints it: `lite=False, cln=True, joint=False, cln_residual=False, head='linear'`. Only the
    batch norm after the 1x1 convolution of the FTBs is still an addition. Without the CLN, p2, p3 and p4 are
    concatenated, so that a linear head is the sum of three: the "joint predictions" of Section IV-D1. Without the FRN,
    the CLN takes x2, x3, x4 in place of p2, p3, p4 (Section IV-D2), averaged down to the grid of x4. Without both it is
    the plain backbone.

    Args:
        backbone: Name of a timm model that supports `features_only=True`.
        num_classes: Number of classes, 0 for no classifier.
        in_chans: Channels of the input image.
        embed_dim: K, the channels of the refined features and of the attention, 512 in the paper. By default the
            largest power of two that is at most 512 and at most the number of channels of x3.
        frn: Use the Feature Refinement Network.
        cln: Use the Correlation Learning Network on p2, p3 and p4.
        cln_residual: Add p4 to the attended features, which the paper leaves open.
        joint: With the FRN, let the classifier see x4, p2 and p3 next to p4 or the output of the CLN. In the paper, x2
            and x3 reach the logits only through gates and attention weights, and x4 only through new layers.
        context_pool: Global pooling in the FRBs, 'max' as in the paper or 'avg' (Table 6).
        lite: With the FRN, pool the maps before narrower FTBs, at a fraction of the cost, see
            `timm_fan.layers.FeatureTransform`. Not in the paper.
        global_pool: Pooling of the linear head and of the pre-logits, any of timm's `SelectAdaptivePool2d`. The paper
            does not specify it.
        head: 'class_max', the scores of each class at each position, pooled by mean and maximum, 'linear', the pooled
            features and one linear layer, or the head of another method: 'csra', 'ml_decoder', 'query2label', see
            `timm_fan.layers`.
        head_args: Other arguments of a head that is not linear.
        drop_rate: Dropout rate before the classifier.
        drop_path_rate: Stochastic depth rate of the backbone, if it supports it.
        img_size: Input size in pixels. Backbones with a fixed size are built for it, others accept any size.
        norm_layer: Normalization in the FTBs.
        act_layer: Activation in the FTBs and FRBs.
        pretrained_backbone: Load timm's weights of the backbone from the Hub.
        backbone_weights: Load the backbone from this safetensors file of the plain timm model.
        backbone_args: Other arguments of the backbone.
        final_features: Let x4 be what the backbone's own classifier pools, the output of its `forward_features`,
            instead of the last map of `features_only`. They are the same for the paper's ResNet and VGG.

    Raises:
        timm_fan.InputError: Unknown backbone, head or `context_pool`, embed_dim below 1, or weights that cannot be
            loaded.
    """

    def __init__(
            self,
            backbone: str = 'resnet101',
            num_classes: int = 80,
            in_chans: int = 3,
            embed_dim: Optional[int] = None,
            frn: bool = True,
            cln: bool = False,
            cln_residual: bool = True,
            joint: bool = True,
            context_pool: str = 'max',
            lite: bool = True,
            global_pool: str = 'avg',
            head: str = 'class_max',
            head_args: Optional[Dict[str, Any]] = None,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            img_size: Optional[Union[int, Tuple[int, int]]] = None,
            norm_layer: Type[nn.Module] = nn.BatchNorm2d,
            act_layer: Type[nn.Module] = nn.ReLU,
            pretrained_backbone: bool = False,
            backbone_weights: Optional[str] = None,
            backbone_args: Optional[Dict[str, Any]] = None,
            final_features: bool = True,
            device=None,
            dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if embed_dim is not None and embed_dim < 1:
            raise InputError(f'`embed_dim` must be at least 1, got {embed_dim}.')
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        backbone_args = dict(backbone_args or {})
        if drop_path_rate:
            backbone_args['drop_path_rate'] = drop_path_rate
        self.backbone = Backbone(
            backbone, pretrained_backbone, backbone_weights, in_chans, img_size, final_features, **backbone_args, **dd)
        channels = self.backbone.channels
        # raw maps get a norm, as in the code of detectors over Swin, https://arxiv.org/abs/2103.14030
        self.norm = nn.ModuleList([
            LayerNorm2d(c, **dd) if raw else nn.Identity() for c, raw in zip(channels, self.backbone.raw)])
        self.feature_info = [
            dict(num_chs=c, reduction=r, module=f'norm.{i}')
            for i, (c, r) in enumerate(zip(channels, self.backbone.reductions))]
        # timm looks up here (timm.models._input) which convolutions to adapt to in_chans; no config can know them, as
        # the name depends on the backbone
        self._traits = dict(first_conv=tuple(f'backbone.{n}' for n in self.backbone.first_convs()) or None)

        self.embed_dim = _default_embed_dim(channels[-2]) if embed_dim is None else embed_dim
        self.frn = FeatureRefinementNetwork(
            self.feature_info, self.embed_dim, context_pool, norm_layer, act_layer, lite, **dd,
        ) if frn else GridPooling(self.feature_info)
        p_chs = [self.embed_dim] * 3 if frn else channels
        self.cln = CorrelationLearningNetwork(p_chs, self.embed_dim, cln_residual, **dd) if cln else None
        self.joint = joint and frn
        # whether the classifier sees p2 and p3 as well
        self.all_levels = self.joint or (frn and not cln)
        self.num_features = sum(p_chs) if self.all_levels else p_chs[-1]
        if self.joint:
            self.num_features += channels[-1]

        self.head = create_head(head, self.num_features, num_classes, global_pool, drop_rate, head_args, **dd)
        self.head_hidden_size = self.head.num_features
        self._init_classifier()

    def _init_classifier(self) -> None:
        if isinstance(self.head.fc, nn.Linear):
            nn.init.trunc_normal_(self.head.fc.weight, std=0.01)
            nn.init.zeros_(self.head.fc.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        return {f'backbone.{name}' for name in self.backbone.no_weight_decay()}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Layers of the backbone by its own `group_matcher`; all layers of the FAN are in the last group."""
        layers = {f'backbone.{name}': layer for name, layer in self.backbone.layer_ids(coarse).items()}

        def layer_of(name: str) -> float:
            return layers.get(name, -1. if name.startswith('backbone.') else float('inf'))

        return layer_of

    @torch.jit.ignore
    def set_input_size(self, img_size: Union[int, Tuple[int, int]]) -> None:
        """Change the input size in pixels, for backbones with a fixed one.

        Raises:
            timm_fan.InputError: timm cannot change the size of this backbone after construction.
        """
        img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.backbone.set_input_size(img_size)
        update_model_input_size(self, img_size)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable
        self.backbone.set_grad_checkpointing(enable)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features
        self._init_classifier()

    @torch.jit.ignore
    def init_classifier(self, prior: torch.Tensor) -> None:
        """Let a new classifier start at the frequencies of its classes, instead of a probability of 0.5.

        Its bias becomes their log-odds. https://arxiv.org/abs/1708.02002, Section 3.3, does so with one frequency for
        all classes.

        Args:
            prior: Probability of each class, strictly between 0 and 1, (num_classes,), e.g. `dataset.labels.prior()`.

        Raises:
            timm_fan.InputError: `prior` has another size or range.
        """
        if prior.shape != (self.num_classes,) or not ((prior > 0) & (prior < 1)).all():
            raise InputError(f'`prior` must be {self.num_classes} probabilities strictly between 0 and 1.')
        set_classifier_bias(self.head.fc, prior.logit())

    def forward_maps(self, x: torch.Tensor) -> List[torch.Tensor]:
        """(B, in_chans, H, W) -> x2, x3, x4, fine to coarse, each (B, C, h, w), normalized where they are raw"""
        features = self.backbone(x)
        maps: List[torch.Tensor] = []
        for i, norm in enumerate(self.norm):
            maps.append(norm(features[i]))
        return maps

    def fuse(self, maps: List[torch.Tensor]) -> torch.Tensor:
        """x2, x3, x4 -> (B, num_features, H, W) on the grid of x4"""
        if self.cln is None and not self.all_levels:
            return maps[-1]  # the plain backbone
        if self.grad_checkpointing and not torch.jit.is_scripting():
            p2, p3, p4 = checkpoint(self.frn, maps)
        else:
            p2, p3, p4 = self.frn(maps)
        if self.cln is not None:
            p4 = self.cln(p2, p3, p4)
        if not self.all_levels:
            return p4
        return torch.cat([maps[-1], p2, p3, p4] if self.joint else [p2, p3, p4], dim=1)

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: Optional[Union[int, List[int]]] = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """The maps x2, x3, x4 as intermediates, and the fused features as final output.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Take the last n maps if int, all if None, the given ones if a sequence.
            norm: Part of timm's interface, without effect: the maps are already normalized.
            stop_early: Part of timm's interface, without effect: the maps are computed together.
            output_fmt: Must be 'NCHW'.
            intermediates_only: Only return the maps.
        """
        assert output_fmt == 'NCHW', 'Output shape must be NCHW.'
        take_indices, _ = feature_take_indices(len(self.feature_info), indices)
        maps = self.forward_maps(x)
        intermediates = [maps[i] for i in take_indices]
        if intermediates_only:
            return intermediates
        return self.fuse(maps), intermediates

    @torch.jit.ignore
    def prune_intermediate_layers(
            self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True) -> List[int]:
        """Remove layers that the given intermediates do not need.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Remove FRN and CLN, so that `forward_features` ends at the last map. They are always removed
                together with x4.
            prune_head: Remove the classifier.

        Returns:
            Indices of the same maps in the pruned model.
        """
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        if max_index < len(self.feature_info) - 1:
            self.backbone.prune(max_index + 1)
            self.feature_info = self.feature_info[:max_index + 1]
            prune_norm = True
        if prune_norm:
            self.frn, self.cln = GridPooling(self.feature_info), None
            self.joint = self.all_levels = False
            self.norm = nn.ModuleList([
                norm if i in take_indices else nn.Identity() for i, norm in enumerate(self.norm[:max_index + 1])])
            self.num_features = self.feature_info[-1]['num_chs']
            self.head.in_features = self.num_features
            self.reset_classifier(self.num_classes)
        if prune_head:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, num_features, h, w), where h and w are those of the last map of the backbone"""
        return self.fuse(self.forward_maps(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, num_features, h, w) -> logits (B, num_classes) or pooled features (B, head_hidden_size)"""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.forward_features(x)
        x = self.forward_head(x)
        return x

    def __prepare_scriptable__(self) -> 'FAN':
        # TorchScript replaces children by what their own hooks return: not in the original model
        model = copy.copy(self)
        model._modules = dict(self._modules)
        return model


def checkpoint_filter_fn(state_dict: Dict[str, torch.Tensor], model: FAN) -> Dict[str, torch.Tensor]:
    """Accepts the weights of a FAN, or those of the plain timm backbone, which leave the rest of the model unchanged.

    Raises:
        timm_fan.InputError: The weights belong to another model.
    """
    if any(name.startswith('backbone.') for name in state_dict):
        bias, own = state_dict.get('head.fc.bias'), getattr(model.head.fc, 'bias', None)
        if bias is not None and own is not None and len(bias) != len(own):
            # other classes: timm itself only drops the weight and bias of a linear layer
            return {name: value for name, value in state_dict.items() if not name.startswith('head.fc.')}
        return state_dict
    backbone = {f'backbone.{name}': v for name, v in model.backbone.from_plain(state_dict).items()}
    return {**model.state_dict(), **backbone}


def _cfg(url: str = '', **kwargs: Any) -> Dict[str, Any]:
    return {
        'url': url, 'num_classes': 80, 'input_size': (3, 448, 448), 'pool_size': (14, 14),
        'crop_pct': 1.0, 'crop_mode': 'center', 'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'backbone.net.conv1', 'classifier': 'head.fc',
        'paper_name': 'Multi-Label Image Classification by Feature Attention Network',
        'paper_ids': 'doi:10.1109/ACCESS.2019.2929512',
        'license': 'apache-2.0',
        **kwargs,
    }


def _cfg_224(**kwargs: Any) -> Dict[str, Any]:
    size = dict(input_size=(3, 224, 224), pool_size=(7, 7), crop_pct=0.875, interpolation='bicubic')
    return _cfg(**{**size, **kwargs})


# the weights of a tag are in the repository `timm_fan.hub.default_repo(name, tag)`
default_cfgs = generate_default_cfgs({
    'fan': _cfg(),
    'fan_resnet18.coco2014': _cfg(),
    'fan_resnet50.coco2014': _cfg(),
    'fan_resnet101.coco2014': _cfg(),
    'fan_vgg16.coco2014': _cfg(first_conv='backbone.net.features_0'),
    'fan_tresnet_l.coco2014': _cfg(
        crop_pct=0.875, mean=(0., 0., 0.), std=(1., 1., 1.), first_conv='backbone.net.body_conv1.conv'),
    'fan_efficientnet_b0.coco2014': _cfg_224(first_conv='backbone.net.conv_stem'),
    'fan_tf_efficientnet_lite2.voc2007': _cfg_224(
        first_conv='backbone.net.conv_stem', num_classes=20, input_size=(3, 288, 288), pool_size=(9, 9),
        crop_pct=1.0, mean=IMAGENET_INCEPTION_MEAN, std=IMAGENET_INCEPTION_STD),
    'fan_mobilenetv3_large_100.coco2014': _cfg_224(first_conv='backbone.net.conv_stem'),
    'fan_convnext_tiny.coco2014': _cfg_224(first_conv='backbone.net.stem_0'),
    'fan_convnext_base.coco2014': _cfg_224(first_conv='backbone.net.stem_0'),
    'fan_swin_tiny_patch4_window7_224.coco2014': _cfg_224(
        first_conv='backbone.net.model.patch_embed.proj', crop_pct=0.9, fixed_input_size=True),
    'fan_vit_base_patch16_224.coco2014': _cfg_224(
        first_conv='backbone.net.model.patch_embed.proj', pool_size=(14, 14), crop_pct=0.9, fixed_input_size=True,
        mean=IMAGENET_INCEPTION_MEAN, std=IMAGENET_INCEPTION_STD),
})


def _backbone_cfg(variant: str, backbone: str) -> Dict[str, Any]:
    """The part of the pretrained config of `backbone` that also applies to a FAN over it.

    That is the preprocessing. Sizes are those of the variant, unless it is the generic one or the backbone has a fixed
    input size.
    """
    check_name(backbone, '`backbone`')
    cfg = get_pretrained_cfg(backbone)
    if cfg is None:
        return {}
    keys = ['mean', 'std', 'interpolation']
    if variant == 'fan' or cfg.fixed_input_size:
        keys += ['input_size', 'min_input_size', 'fixed_input_size', 'pool_size']
    return {k: getattr(cfg, k) for k in keys if getattr(cfg, k) is not None}


def _feature_cfg(kwargs: Dict[str, Any]) -> Dict[str, Any]:
    """How timm extracts features; takes its entries out of `kwargs`."""
    # all maps come out of one module: by forward_intermediates or by hooks, never by running the children in turn
    feature_cfg = dict(out_indices=(0, 1, 2), feature_cls='getter')
    feature_cfg.update(kwargs.pop('feature_cfg', None) or {})
    feature_cls = kwargs.pop('feature_cls', feature_cfg['feature_cls'])
    if feature_cls == 'dict':
        return dict(feature_cfg, feature_cls='hook', return_dict=True)
    return dict(feature_cfg, feature_cls='getter' if feature_cls == 'list' else feature_cls)


def _create_fan(variant: str, pretrained: bool = False, **kwargs: Any) -> FAN:
    pretrained_cfg = kwargs.pop('pretrained_cfg', None)
    overlay = dict(kwargs.pop('pretrained_cfg_overlay', None) or {})
    # the config of a saved model (a dict), and that of published weights, are complete
    if not isinstance(pretrained_cfg, dict) and (variant == 'fan' or not pretrained):
        overlay = {**_backbone_cfg(variant, kwargs['backbone']), **overlay}

    errors = contextlib.nullcontext()
    if pretrained:
        source = find_weights(variant, pretrained_cfg, overlay, kwargs.get('cache_dir'))
        pretrained_cfg, overlay, errors = source.pretrained_cfg, source.overlay, weights_errors(source, variant)
        if source.model_args:
            kwargs = dict(source.model_args, pretrained_model_args=source.model_args, **kwargs)
        kwargs.update(pretrained_backbone=False, backbone_weights=None)
    feature_cfg = _feature_cfg(kwargs)
    with errors:
        return build_model_with_cfg(
            FAN, variant, pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg=feature_cfg,
            **kwargs,
        )


@register_model
def fan(pretrained: bool = False, **kwargs: Any) -> FAN:
    """FAN over `backbone=NAME`, with mean, std, interpolation and input size of the backbone."""
    model_args = dict(backbone='resnet101.tv_in1k')
    return _create_fan('fan', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fan_resnet18(pretrained: bool = False, **kwargs: Any) -> FAN:
    model_args = dict(backbone='resnet18.tv_in1k', embed_dim=256)
    return _create_fan('fan_resnet18', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fan_resnet50(pretrained: bool = False, **kwargs: Any) -> FAN:
    model_args = dict(backbone='resnet50.tv_in1k', embed_dim=512)
    return _create_fan('fan_resnet50', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fan_resnet101(pretrained: bool = False, **kwargs: Any) -> FAN:
    """The main model of the paper, Section IV-B1."""
    model_args = dict(backbone='resnet101.tv_in1k', embed_dim=512)
    return _create_fan('fan_resnet101', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fan_vgg16(pretrained: bool = False, **kwargs: Any) -> FAN:
    """The second model of the paper. x2, x3, x4 are conv4, conv5 and the last pooling of VGG-16."""
    model_args = dict(backbone='vgg16.tv_in1k', embed_dim=512)
    return _create_fan('fan_vgg16', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fan_tresnet_l(pretrained: bool = False, **kwargs: Any) -> FAN:
    """FAN over TResNet-L (https://arxiv.org/abs/2003.13630), the backbone of ASL and ML-Decoder."""
    model_args = dict(backbone='tresnet_l.miil_in1k_448', embed_dim=512)
    return _create_fan('fan_tresnet_l', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fan_efficientnet_b0(pretrained: bool = False, **kwargs: Any) -> FAN:
    model_args = dict(backbone='efficientnet_b0.ra_in1k', embed_dim=128, final_features=False)
    return _create_fan('fan_efficientnet_b0', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fan_tf_efficientnet_lite2(pretrained: bool = False, **kwargs: Any) -> FAN:
    """The model that comes with the package, with its weights for the 20 classes of PASCAL VOC."""
    model_args = dict(backbone='tf_efficientnet_lite2.in1k', embed_dim=128, final_features=False)
    return _create_fan('fan_tf_efficientnet_lite2', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fan_mobilenetv3_large_100(pretrained: bool = False, **kwargs: Any) -> FAN:
    model_args = dict(backbone='mobilenetv3_large_100.ra_in1k', embed_dim=128)
    return _create_fan('fan_mobilenetv3_large_100', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fan_convnext_tiny(pretrained: bool = False, **kwargs: Any) -> FAN:
    model_args = dict(backbone='convnext_tiny.fb_in22k_ft_in1k', embed_dim=256)
    return _create_fan('fan_convnext_tiny', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fan_convnext_base(pretrained: bool = False, **kwargs: Any) -> FAN:
    model_args = dict(backbone='convnext_base.fb_in22k_ft_in1k', embed_dim=512)
    return _create_fan('fan_convnext_base', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fan_swin_tiny_patch4_window7_224(pretrained: bool = False, **kwargs: Any) -> FAN:
    model_args = dict(backbone='swin_tiny_patch4_window7_224.ms_in22k_ft_in1k', embed_dim=256)
    return _create_fan('fan_swin_tiny_patch4_window7_224', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fan_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> FAN:
    """FAN over ViT-B/16. x2, x3, x4 are the outputs of blocks 4, 8 and 12, which have the same stride."""
    model_args = dict(backbone='vit_base_patch16_224.augreg2_in21k_ft_in1k', embed_dim=512)
    return _create_fan('fan_vit_base_patch16_224', pretrained=pretrained, **dict(model_args, **kwargs))
