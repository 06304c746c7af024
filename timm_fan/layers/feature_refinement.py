"""Feature Refinement Network (FRN) of the Feature Attention Network.

Paper: `Multi-Label Image Classification by Feature Attention Network` - https://doi.org/10.1109/ACCESS.2019.2929512
Section III-A, Figure 3. The transform block is the RRB of `Learning a Discriminative Feature Network for Semantic
Segmentation` - https://arxiv.org/abs/1804.09337, reference [51] of the paper.
"""
import math
from typing import Any, Dict, List, Optional, Sequence, Tuple, Type

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm_fan.errors import InputError


def halvings_to_last(reductions: Sequence[int]) -> Tuple[List[int], List[bool]]:
    """For maps of these strides, the 2x2 poolings that do not exceed the last stride, and whether they end on it."""
    halvings = [max(0, math.floor(math.log2(reductions[-1] / r))) for r in reductions]
    return halvings, [r * 2 ** n == reductions[-1] for r, n in zip(reductions, halvings)]


@torch.fx.wrap  # symbolic tracing cannot follow the branch
def halve(x: torch.Tensor) -> torch.Tensor:
    """2x2 average pooling with stride 2, (B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)).

    An odd border is averaged over the pixels it has. Strided convolutions with padding keep such borders too.
    """
    if x.is_cuda and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0:
        # 0.27 instead of 1.20 ms for forward and backward on an H100, (32, 512, 56, 56) in bfloat16; slower on CPUs
        x = x.permute(0, 2, 3, 1)
        return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).mean(dim=(2, 4)).permute(0, 3, 1, 2)
    return F.avg_pool2d(x, kernel_size=2, stride=2, ceil_mode=True, count_include_pad=False)


def fit_grid(x: torch.Tensor, size: List[int], exact: bool) -> torch.Tensor:
    """The last step onto the grid of another map, (B, C, h, w) -> (B, C, *size).

    Args:
        x: A halved map.
        size: Height and width of the grid.
        exact: The halvings end on the stride of the grid. Then x has at most one more row and column, from a backbone
            that rounds odd sizes down, and they are cut off. Otherwise x is averaged over the positions of the grid.
    """
    if exact:
        return x[:, :, :size[0], :size[1]]
    return F.adaptive_avg_pool2d(x, size)


class FeatureTransformBlock(nn.Module):
    """FTB (also called RTB in the paper): projects a feature map to K channels, Figure 3 (b).

    A 1x1 convolution, then a residual block: 3x3 convolution, batch norm, ReLU, 3x3 convolution, plus identity, ReLU.
    The last ReLU is from [51]; the figure does not show it. The 1x1 convolution has a batch norm as well. The phrase
    "following the first convolution" allows it, and it makes the block independent of the scale of the backbone's maps,
    which differs between stages and networks.

    The last convolution is initialized to zero. A new block is then a linear map and a ReLU, which keeps SGD stable at
    the paper's learning rate of 0.1 (https://arxiv.org/abs/1706.02677, Section 5.1, does the same for ResNet).

    Args:
        in_chs: Channels of the map.
        out_chs: K, the channels of the result.
        mid_chs: Channels between the 3x3 convolutions. The paper has K.
    """

    def __init__(
            self,
            in_chs: int,
            out_chs: int,
            norm_layer: Type[nn.Module] = nn.BatchNorm2d,
            act_layer: Type[nn.Module] = nn.ReLU,
            mid_chs: Optional[int] = None,
            device=None,
            dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.proj = nn.Conv2d(in_chs, out_chs, kernel_size=1, bias=False, **dd)
        self.norm0 = norm_layer(out_chs, **dd)
        mid_chs = mid_chs or out_chs
        self.conv1 = nn.Conv2d(out_chs, mid_chs, kernel_size=3, padding=1, bias=False, **dd)
        self.norm1 = norm_layer(mid_chs, **dd)
        self.act1 = act_layer()
        self.conv2 = nn.Conv2d(mid_chs, out_chs, kernel_size=3, padding=1, **dd)
        self.act2 = act_layer()
        self.init_weights()

    def init_weights(self) -> None:
        nn.init.kaiming_normal_(self.proj.weight, nonlinearity='relu')
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity='relu')
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chs, H, W) -> (B, out_chs, H, W)"""
        x = self.norm0(self.proj(x))
        residual = self.conv2(self.act1(self.norm1(self.conv1(x))))
        return self.act2(x + residual)


class FeatureTransform(nn.Module):
    """The FTBs of one backbone stage: one for each 2x2 average pooling to the coarsest grid, at least one.

    At strides 8, 16 and 32 (Section III-A1, IV-B1), x2 passes two FTBs, each followed by pooling, x3 one with pooling,
    x4 one without.

    `lite` is not in the paper: all pooling comes first, and one FTB follows with a quarter of the channels between its
    3x3 convolutions, which account for most of the cost that the FAN adds to a backbone.

    Args:
        in_chs: Channels of the stage.
        out_chs: K, the channels of the refined features.
        halvings: Number of poolings to the coarsest grid.
    """

    def __init__(self, in_chs: int, out_chs: int, halvings: int, norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU,
                 lite: bool = False, device=None, dtype=None):
        super().__init__()
        num_blocks = 1 if lite else max(1, halvings)
        mid_chs = max(1, out_chs // 4) if lite else None
        self.first_halvings = halvings if lite else 0
        self.halvings = 0 if lite else halvings
        self.blocks = nn.ModuleList([
            FeatureTransformBlock(
                in_chs if i == 0 else out_chs, out_chs, norm_layer, act_layer, mid_chs, device=device, dtype=dtype)
            for i in range(num_blocks)
        ])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chs, H, W) -> (B, out_chs, ceil(H / 2**halvings), ceil(W / 2**halvings))"""
        for _ in range(self.first_halvings):
            x = halve(x)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i < self.halvings:
                x = halve(x)
        return x


class FeatureRefinementBlock(nn.Module):
    """FRB: high-level features select channels of the low-level features, Figure 3 (a).

    z = global pool of [high, low] (Eq. 1), weights = sigmoid(conv(relu(conv(z)))) (Eq. 2, 7), low * weights (Eq. 3, 9).
    Eq. 8 shows a softmax. Eq. 2 and the text around it describe a sigmoid in 0..1, which is used here.

    Pooling a concatenation gives the concatenation of the pooled maps, so the maps are not concatenated.

    The gate is initialized to sigmoid(2) = 0.88 for any input: a new block passes the features through.

    Args:
        dim: K, the channels of both inputs.
        context_pool: 'max', as in the paper (Section III-A3), or 'avg', the alternative in Table 6.

    Raises:
        timm_fan.InputError: Unknown context_pool.
    """

    def __init__(self, dim: int, context_pool: str = 'max', act_layer: Type[nn.Module] = nn.ReLU,
                 device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if context_pool not in ('max', 'avg'):
            raise InputError(f"`context_pool` must be 'max' or 'avg', got {context_pool!r}.")
        self.context_pool = context_pool
        self.fc1 = nn.Conv2d(2 * dim, dim, kernel_size=1, **dd)
        self.act = act_layer()
        self.fc2 = nn.Conv2d(dim, dim, kernel_size=1, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        nn.init.kaiming_normal_(self.fc1.weight, nonlinearity='relu')
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.weight)
        nn.init.constant_(self.fc2.bias, 2.)

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        if self.context_pool == 'max':
            return x.amax(dim=(2, 3), keepdim=True)
        return x.mean(dim=(2, 3), keepdim=True)

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """low (B, K, H, W), high (B, K, H', W') -> refined low (B, K, H, W)"""
        z = torch.cat([self.pool(high), self.pool(low)], dim=1)  # (B, 2K, 1, 1)
        return low * self.fc2(self.act(self.fc1(z))).sigmoid()


class FeatureRefinementNetwork(nn.Module):
    """FRN: projects each stage onto one grid and refines the result from the top down, Figure 2.

    p4 = FTB(x4), p3 = FRB(low=FTB(x3), high=p4), p2 = FRB(low=FTB(x2), high=p3): "refined features which will guide
    the next feature refinement iteration" (Section III-A2).

    Args:
        feature_info: `num_chs` and `reduction` (stride) of x2, x3, x4, as in timm.
        dim: K, the channels of p2, p3, p4.
        context_pool: Pooling in the FRBs, 'max' or 'avg'.
        lite: Pool before narrower FTBs, see `FeatureTransform`.
    """

    def __init__(
            self,
            feature_info: Sequence[Dict[str, Any]],
            dim: int,
            context_pool: str = 'max',
            norm_layer: Type[nn.Module] = nn.BatchNorm2d,
            act_layer: Type[nn.Module] = nn.ReLU,
            lite: bool = False,
            device=None,
            dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        chs2, chs3, chs4 = (info['num_chs'] for info in feature_info)
        halvings, self.exact = halvings_to_last([info['reduction'] for info in feature_info])
        self.ftb2 = FeatureTransform(chs2, dim, halvings[0], norm_layer, act_layer, lite, **dd)
        self.ftb3 = FeatureTransform(chs3, dim, halvings[1], norm_layer, act_layer, lite, **dd)
        self.ftb4 = FeatureTransform(chs4, dim, halvings[2], norm_layer, act_layer, lite, **dd)
        self.frb3 = FeatureRefinementBlock(dim, context_pool, act_layer, **dd)
        self.frb2 = FeatureRefinementBlock(dim, context_pool, act_layer, **dd)

    def forward(self, features: List[torch.Tensor]) -> List[torch.Tensor]:
        """x2, x3, x4 with x4 of (B, C4, H, W) -> p2, p3, p4, each (B, K, H, W)"""
        x2, x3, x4 = features
        size = [x4.shape[2], x4.shape[3]]
        p4 = self.ftb4(x4)
        p3 = self.frb3(fit_grid(self.ftb3(x3), size, self.exact[1]), p4)
        p2 = self.frb2(fit_grid(self.ftb2(x2), size, self.exact[0]), p3)
        return [p2, p3, p4]


class GridPooling(nn.Module):
    """Takes the place of the FRN without parameters: averages x2 and x3 down to the grid of x4 (Section IV-D2).

    Args:
        feature_info: `reduction` (stride) of x2, x3, x4, as in timm.
    """

    def __init__(self, feature_info: Sequence[Dict[str, Any]]):
        super().__init__()
        self.halvings, self.exact = halvings_to_last([info['reduction'] for info in feature_info])

    def forward(self, features: List[torch.Tensor]) -> List[torch.Tensor]:
        """x2, x3, x4 with x4 of (B, C4, H, W) -> the same with x2 of (B, C2, H, W) and x3 of (B, C3, H, W)"""
        size = [features[-1].shape[2], features[-1].shape[3]]
        pooled: List[torch.Tensor] = []
        for i, x in enumerate(features):
            for _ in range(self.halvings[i]):
                x = halve(x)
            pooled.append(fit_grid(x, size, self.exact[i]))
        return pooled
