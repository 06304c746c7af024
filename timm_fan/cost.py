"""What a model costs, counted and not timed."""
from typing import NamedTuple, Sequence

import torch
import torch.nn as nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

__all__ = ['Cost', 'count_cost']


class Cost(NamedTuple):
    """Parameters, and multiply-adds of one image's forward pass in convolutions and matrix products."""
    parameters: int
    multiply_adds: int


@torch.no_grad()  # inference_mode hides the operations from the counter before torch 2.6
def count_cost(model: nn.Module, input_size: Sequence[int]) -> Cost:
    """Count a model's parameters and multiply-adds.

    Args:
        model: In evaluation mode; one on the meta device computes nothing.
        input_size: (C, H, W) of an image.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    # the counter does not know the CPU's fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    # the counter takes a multiply-add for two operations
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)
