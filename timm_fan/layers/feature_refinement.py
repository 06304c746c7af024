"""Feature Refinement Network (FRN) of the Feature Attention Network.

Paper: `Multi-Label Image Classification by Feature Attention Network` - https://doi.org/10.1109/ACCESS.2019.2929512
Section III-A, Figure 3. The transform block comes from `Learning a Discriminative Feature Network for Semantic
Segmentation` - https://arxiv.org/abs/1804.09337 (its RRB), the paper's [51].
"""
import math
from typing import List, Optional, Sequence, Tuple, Type

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm_fan.errors import InputError

__all__ = ['FeatureTransformBlock', 'FeatureTransform', 'FeatureRefinementBlock', 'FeatureRefinementNetwork',
           'fit_grid', 'halve', 'halvings_to_last', 'num_halvings']


def num_halvings(reduction: int, target: int) -> int:
    """Number of 2x2 poolings that take a map of stride `reduction` to the stride `target`, or just short of it."""
    return max(0, math.floor(math.log2(target / reduction)))


def halvings_to_last(reductions: Sequence[int]) -> Tuple[List[int], List[bool]]:
    """For maps of these strides, the 2x2 poolings to the last one's grid, and whether they end on its very stride."""
    halvings = [num_halvings(r, reductions[-1]) for r in reductions]
    return halvings, [r * 2 ** n == reductions[-1] for r, n in zip(reductions, halvings)]


@torch.fx.wrap  # a symbolic trace cannot follow its branch
def halve(x: torch.Tensor) -> torch.Tensor:
    """2x2 average pooling with stride 2, (B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)).

    An odd border is averaged over the pixels it has, as strided convolutions with padding keep it too.
    """
    if x.is_cuda and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0:
        # forward and backward take 0.27 instead of 1.20 ms on an H100, (32, 512, 56, 56) in bfloat16; on CPUs far more
        x = x.permute(0, 2, 3, 1)
        return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).mean(dim=(2, 4)).permute(0, 3, 1, 2)
    return F.avg_pool2d(x, kernel_size=2, stride=2, ceil_mode=True, count_include_pad=False)


def fit_grid(x: torch.Tensor, size: List[int], exact: bool) -> torch.Tensor:
    """The last step onto another map's grid, (B, C, h, w) -> (B, C, *size).

    Args:
        x: A halved map.
        size: Height and width of the grid.
        exact: The halvings reached the grid's stride. Then x is at most one row and column larger, where the backbone
            floors odd sizes, and these are cut. Otherwise it is averaged over the positions of the grid.
    """
    if exact:
        return x[:, :, :size[0], :size[1]]
    return F.adaptive_avg_pool2d(x, size)


class FeatureTransformBlock(nn.Module):
    """FTB (the paper also says RTB): brings a feature map to K channels, Figure 3 (b).

    A 1x1 convolution, then a residual block: 3x3 convolution, batch norm, ReLU, 3x3 convolution, plus identity, ReLU.
    The last ReLU is the one of [51], the paper's figure does not show it. The 1x1 convolution has a batch norm too: the
    text's "following the first convolution" may mean either, and it makes the block blind to the scale of a backbone's
    maps, which differs between stages and networks.

    The last convolution starts at zero: a fresh block is a linear map and a ReLU, which keeps SGD at the paper's
    learning rate of 0.1 stable (https://arxiv.org/abs/1706.02677, Section 5.1, does the same to ResNet's blocks).

    Args:
        in_chs: Channels of the map.
        out_chs: K.
        mid_chs: Channels between the 3x3 convolutions; the paper's are K.
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

    At strides 8, 16, 32 (Section III-A1 and IV-B1): x2 passes two FTBs, each followed by pooling, x3 one with pooling,
    x4 one without.

    With `lite`, which is not in the paper, all pooling comes first and one FTB follows, with a quarter of the channels
    between its 3x3 convolutions: these are most of what the FAN adds to the backbone.
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
    """FRB: high-level features choose the channels of the low-level ones, Figure 3 (a).

    z = global pool of [high, low] (Eq. 1), weights = sigmoid(conv(relu(conv(z)))) (Eq. 2, 7), low * weights (Eq. 3, 9).
    Eq. 8 prints a softmax; Eq. 2 and the text around it say a sigmoid in 0..1, which is what stands here.

    The maximum over a concatenation is the concatenation of the maxima, so the maps themselves are not concatenated.

    The gate starts open and independent of the input, at sigmoid(2) = 0.88: a fresh block passes the features on.

    Args:
        dim: Channels K of both inputs.
        context_pool: 'max' is the paper's choice (Section III-A3), 'avg' the alternative of its Table 6.
    """

    def __init__(self, dim: int, context_pool: str = 'max', act_layer: Type[nn.Module] = nn.ReLU,
                 device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if context_pool not in ('max', 'avg'):
            raise InputError(f"context_pool must be 'max' or 'avg', got {context_pool!r}.")
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
    """FRN: transforms each stage to one grid and refines it from the top down, Figure 2.

    p4 = FTB(x4), p3 = FRB(low=FTB(x3), high=p4), p2 = FRB(low=FTB(x2), high=p3): "refined features which will guide
    the next feature refinement iteration" (Section III-A2).

    Args:
        in_chs: Channels of x2, x3, x4.
        reductions: Their strides, e.g. (8, 16, 32).
        dim: K, the channels of p2, p3, p4.
        context_pool: Pooling in the FRBs, 'max' or 'avg'.
        lite: Pool before narrower FTBs, see `FeatureTransform`.
    """

    def __init__(
            self,
            in_chs: Sequence[int],
            reductions: Sequence[int],
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
        halvings, self.exact = halvings_to_last(reductions)
        self.ftb2 = FeatureTransform(in_chs[0], dim, halvings[0], norm_layer, act_layer, lite, **dd)
        self.ftb3 = FeatureTransform(in_chs[1], dim, halvings[1], norm_layer, act_layer, lite, **dd)
        self.ftb4 = FeatureTransform(in_chs[2], dim, halvings[2], norm_layer, act_layer, lite, **dd)
        self.frb3 = FeatureRefinementBlock(dim, context_pool, act_layer, **dd)
        self.frb2 = FeatureRefinementBlock(dim, context_pool, act_layer, **dd)

    def forward(self, features: List[torch.Tensor]) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x2, x3, x4 with x4 of (B, C4, H, W) -> p2, p3, p4, each (B, K, H, W)"""
        x2, x3, x4 = features
        size = [x4.shape[2], x4.shape[3]]
        p4 = self.ftb4(x4)
        p3 = self.frb3(fit_grid(self.ftb3(x3), size, self.exact[1]), p4)
        p2 = self.frb2(fit_grid(self.ftb2(x2), size, self.exact[0]), p3)
        return p2, p3, p4
