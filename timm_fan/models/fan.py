"""Feature Attention Network (FAN)

Paper: `Multi-Label Image Classification by Feature Attention Network` - Zheng Yan, Weiwei Liu, Shiping Wen, Yin Yang,
IEEE Access 7, 2019 - https://doi.org/10.1109/ACCESS.2019.2929512

A backbone's last three feature maps are refined from the top down (FRN) and correlated between positions (CLN) before
a linear classifier (Figure 2). Written from the paper; where it is silent or contradicts itself, the docstrings of the
layers and of `FAN` say what stands here and why.
"""
from typing import Any, Dict, List, Optional, Set, Tuple, Type, Union

import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, get_device_dtype
from timm.models import (
    build_model_with_cfg,
    checkpoint,
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
)
from timm.models._features import feature_take_indices

from timm_fan.layers import CorrelationLearningNetwork, FeatureRefinementNetwork, halve, num_halvings

from .backbone import Backbone, check_backbone_name

__all__ = ['FAN']


def _default_embed_dim(channels: int) -> int:
    return min(512, 2 ** (channels.bit_length() - 1))


class FAN(nn.Module):
    """Feature Attention Network over any timm backbone.

    With `frn` and `cln` off it is the plain backbone with a linear head; with `cln` off, p2, p3 and p4 are pooled and
    concatenated into one linear layer, the sum of three linear classifiers: the "joint predictions" of Section IV-D1.
    With `frn` off, the CLN takes x2, x3, x4 for p2, p3, p4 (Section IV-D2), averaged down to x4's grid.

    Args:
        backbone: Name of a timm model that `features_only=True` works for.
        num_classes: Number of classes, 0 for no classifier.
        in_chans: Channels of the input image.
        embed_dim: K, the channels of the refined features and of the attention. The paper has 512; None takes the
            largest power of two that is at most the backbone's last channel count, and at most 512.
        frn: Use the Feature Refinement Network.
        cln: Use the Correlation Learning Network.
        cln_residual: Add p4 to what the CLN attends to; the paper does not say.
        context_pool: Global pooling in the FRBs, 'max' (the paper's) or 'avg' (its Table 6).
        global_pool: Pooling before the classifier, any of timm's `SelectAdaptivePool2d`; the paper does not say.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the backbone, where it has it.
        img_size: Input size of backbones with a fixed one, in pixels.
        norm_layer: Normalization in the FTBs.
        act_layer: Activation in the FTBs and FRBs.
        pretrained_backbone: Load timm's weights of the backbone from the Hub.
        backbone_weights: Load the backbone from this local safetensors file of the plain timm model.
        backbone_args: More arguments of the backbone.

    Raises:
        timm_fan.InputError: Unknown backbone, or its weights cannot be loaded.
    """

    def __init__(
            self,
            backbone: str = 'resnet101',
            num_classes: int = 80,
            in_chans: int = 3,
            embed_dim: Optional[int] = None,
            frn: bool = True,
            cln: bool = True,
            cln_residual: bool = True,
            context_pool: str = 'max',
            global_pool: str = 'avg',
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            img_size: Optional[Union[int, Tuple[int, int]]] = None,
            norm_layer: Type[nn.Module] = nn.BatchNorm2d,
            act_layer: Type[nn.Module] = nn.ReLU,
            pretrained_backbone: bool = False,
            backbone_weights: Optional[str] = None,
            backbone_args: Optional[Dict[str, Any]] = None,
            device=None,
            dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        backbone_args = dict(backbone_args or {})
        if drop_path_rate:
            backbone_args['drop_path_rate'] = drop_path_rate
        if img_size is not None:
            backbone_args['img_size'] = img_size
        self.backbone = Backbone(backbone, pretrained_backbone, backbone_weights, in_chans, **backbone_args, **dd)
        channels, reductions = self.backbone.channels, self.backbone.reductions
        self.feature_info = [
            dict(num_chs=c, reduction=r, module=f'backbone.{i}') for i, (c, r) in enumerate(zip(channels, reductions))]
        self._traits = dict(first_conv=f'backbone.{self.backbone.first_conv}' if self.backbone.first_conv else None)
        self.halvings = [num_halvings(r, reductions[-1]) for r in reductions]

        self.embed_dim = embed_dim or _default_embed_dim(channels[-1])
        self.frn = FeatureRefinementNetwork(
            channels, reductions, self.embed_dim, context_pool, norm_layer, act_layer, **dd) if frn else None
        p_chs = [self.embed_dim] * 3 if frn else channels
        self.cln = CorrelationLearningNetwork(p_chs, self.embed_dim, cln_residual, **dd) if cln else None
        self.num_features = sum(p_chs) if frn and not cln else p_chs[-1]

        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.head.num_features
        self._init_classifier()

    def _init_classifier(self) -> None:
        if self.num_classes > 0:
            nn.init.trunc_normal_(self.head.fc.weight, std=0.01)
            nn.init.zeros_(self.head.fc.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        return dict(stem=r'^backbone', blocks=[(r'^frn', (0,)), (r'^cln', (1,))])

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

    def fuse(self, features: List[torch.Tensor]) -> torch.Tensor:
        """x2, x3, x4 of the backbone -> (B, num_features, H, W) on x4's grid."""
        p2, p3, p4 = features
        if self.frn is not None:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                p2, p3, p4 = checkpoint(self.frn, features)
            else:
                p2, p3, p4 = self.frn(features)
        if self.cln is not None:
            if self.frn is None:
                for _ in range(self.halvings[0]):
                    p2 = halve(p2)
                for _ in range(self.halvings[1]):
                    p3 = halve(p3)
                h, w = p4.shape[2], p4.shape[3]
                p2, p3 = p2[:, :, :h, :w], p3[:, :, :h, :w]
            return self.cln(p2, p3, p4)
        return torch.cat([p2, p3, p4], dim=1) if self.frn is not None else p4

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: Optional[Union[int, List[int]]] = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """The backbone's maps x2, x3, x4 as intermediates, and the fused features as final output.

        Args:
            x: Image tensor (B, in_chans, H, W).
            indices: The last n maps if int, all if None, the given ones if a sequence.
            norm: Accepted for timm's interface, there is no norm to apply.
            stop_early: Accepted for timm's interface, the maps come together.
            output_fmt: Must be 'NCHW'.
            intermediates_only: Return the maps alone.
        """
        assert output_fmt == 'NCHW', 'Output shape must be NCHW.'
        take_indices, _ = feature_take_indices(len(self.feature_info), indices)
        features = self.backbone(x)
        intermediates = [features[i] for i in take_indices]
        if intermediates_only:
            return intermediates
        return self.fuse(features), intermediates

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, num_features, h, w), h and w those of the backbone's last map."""
        return self.fuse(self.backbone(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, num_features, h, w) -> logits (B, num_classes), or the pooled features (B, head_hidden_size)."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.forward_features(x)
        x = self.forward_head(x)
        return x


def _cfg(**kwargs: Any) -> Dict[str, Any]:
    return {
        'url': '', 'num_classes': 80, 'input_size': (3, 448, 448), 'pool_size': (14, 14),
        'crop_pct': 1.0, 'crop_mode': 'center', 'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'backbone.net.conv1', 'classifier': 'head.fc',
        'paper_name': 'Multi-Label Image Classification by Feature Attention Network',
        'paper_ids': 'doi:10.1109/ACCESS.2019.2929512',
        'license': 'apache-2.0',
        **kwargs,
    }


default_cfgs = generate_default_cfgs({
    'fan.untrained': _cfg(),
    'fan_resnet50.untrained': _cfg(),
    'fan_resnet101.untrained': _cfg(),
    'fan_vgg16.untrained': _cfg(first_conv='backbone.net.features_0'),
})


def _backbone_cfg(backbone: str) -> Dict[str, Any]:
    """Preprocessing and sizes that a FAN over `backbone` takes from the backbone's own pretrained config."""
    check_backbone_name(backbone)
    cfg = get_pretrained_cfg(backbone)
    if cfg is None:
        return {}
    keys = ('input_size', 'min_input_size', 'fixed_input_size', 'pool_size', 'mean', 'std', 'interpolation')
    return {k: getattr(cfg, k) for k in keys if getattr(cfg, k) is not None}


def _create_fan(variant: str, pretrained: bool = False, **kwargs: Any) -> FAN:
    if pretrained:
        kwargs['pretrained_backbone'], kwargs['backbone_weights'] = False, None
    # a saved model brings its own config (a dict), which stands
    if not isinstance(kwargs.get('pretrained_cfg'), dict) and variant == 'fan':
        overlay = kwargs.pop('pretrained_cfg_overlay', None) or {}
        kwargs['pretrained_cfg_overlay'] = {**_backbone_cfg(kwargs['backbone']), **overlay}
    model = build_model_with_cfg(
        FAN, variant, pretrained,
        feature_cfg=dict(out_indices=(0, 1, 2), feature_cls='getter'),
        **kwargs,
    )
    return model


@register_model
def fan(pretrained: bool = False, **kwargs: Any) -> FAN:
    """FAN over `backbone=NAME`; mean, std, interpolation and input size are the backbone's."""
    model_args = dict(backbone='resnet101.tv_in1k')
    return _create_fan('fan', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fan_resnet50(pretrained: bool = False, **kwargs: Any) -> FAN:
    model_args = dict(backbone='resnet50.tv_in1k', embed_dim=512)
    return _create_fan('fan_resnet50', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fan_resnet101(pretrained: bool = False, **kwargs: Any) -> FAN:
    """The paper's main model, Section IV-B1."""
    model_args = dict(backbone='resnet101.tv_in1k', embed_dim=512)
    return _create_fan('fan_resnet101', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fan_vgg16(pretrained: bool = False, **kwargs: Any) -> FAN:
    """The paper's second model: conv4, conv5 and the last pooling of VGG-16 are x2, x3, x4."""
    model_args = dict(backbone='vgg16.tv_in1k', embed_dim=512)
    return _create_fan('fan_vgg16', pretrained=pretrained, **dict(model_args, **kwargs))
