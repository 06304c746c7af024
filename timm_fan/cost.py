"""What a model costs, counted rather than timed."""
from typing import NamedTuple, Sequence

import torch
import torch.nn as nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """Number of parameters, and of multiply-adds for one image in convolutions and matrix products."""
    parameters: int
    multiply_adds: int


@torch.no_grad()  # inference_mode hides operations from the counter before torch 2.6
def count_cost(model: nn.Module, input_size: Sequence[int]) -> Cost:
    """Count the parameters and multiply-adds of a model.

    Args:
        model: Model in evaluation mode. On the meta device nothing is computed.
        input_size: (C, H, W) of an image.

    Returns:
        Parameters, and multiply-adds for one image.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    # the counter does not know the CPU's fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    # the counter counts a multiply-add as two operations
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)
