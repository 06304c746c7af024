"""The moving average of the weights."""
from typing import Sequence

import torch
import torch.nn as nn
from timm.utils import ModelEmaV3


class MovingAverage(ModelEmaV3):
    """timm's moving average, which spends no time on layers that are not trained.

    Args:
        model: The model on its device. Its frozen parameters require no gradients.
        decay: Decay of the average in 0..1, reached after a warm-up.
        frozen_norms: Norm layers of the model that stay in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float, frozen_norms: Sequence[nn.Module] = ()):
        super().__init__(model, decay=decay, use_warmup=True)
        constant = {id(p) for p in model.parameters() if not p.requires_grad}
        constant |= {id(buffer) for norm in frozen_norms for buffer in norm.buffers()}
        averages = self.module.state_dict()
        self._averaged, self._copied = [], []
        for name, value in model.state_dict(keep_vars=True).items():
            if id(value) not in constant:
                pairs = self._averaged if value.is_floating_point() else self._copied
                pairs.append((averages[name], value.detach()))

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """Move the average of `model`, which must be the one of the start, towards its weights."""
        averages, values = zip(*self._averaged)
        torch._foreach_lerp_(averages, values, weight=1 - decay)
        for average, value in self._copied:
            average.copy_(value)
