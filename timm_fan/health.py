"""Noticing a sick training: losses that are no numbers, parameters without gradient, too little memory."""
from typing import Callable, List, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size

from .errors import InputError

__all__ = ['Watch', 'executable_batch_size', 'freeze_unused']


class Watch:
    """Looks at the losses of each update before it is made, and asks all processes whether one was told to stop.

    Args:
        accelerator: Whose processes decide together.
        policy: What happens to an update with a loss that is not finite: 'stop' the run, or 'skip' the update.
        patience: Updates skipped in succession that end the run all the same.
        name: From the index of an image to what messages call it.

    Attributes:
        stop: Set it to end the run after the update that is under way, of one process or several.
        skipped: Updates left out in succession.
    """

    def __init__(
            self,
            accelerator: Accelerator,
            policy: str = 'stop',
            patience: int = 10,
            name: Callable[[int], str] = str,
    ):
        self.accelerator, self.policy, self.patience, self.name = accelerator, policy, patience, name
        self.stop = False
        self.skipped = 0
        self._parts: List[Tuple[torch.Tensor, Optional[torch.Tensor]]] = []

    def add(self, loss: torch.Tensor, indices: Optional[torch.Tensor] = None) -> None:
        """A part of the update: its loss, a scalar, and the indices of its images (B,), if they have any."""
        self._parts.append((loss.detach(), indices))

    def check(self, where: str) -> Tuple[bool, bool]:
        """Called by every process once all parts of an update are added.

        Args:
            where: Names the step and the learning rate, for the message.

        Returns:
            Whether the update may be made, and whether the run is to stop after it.

        Raises:
            InputError: By policy, in a process whose loss is not finite; the others end with exit code 2.
        """
        flags = torch.zeros(2, device=self.accelerator.device)
        flags[1] = self.stop
        for loss, _ in self._parts:
            flags[0] += ~loss.isfinite()
        parts, self._parts = self._parts, []
        sick, stop = (n > 0 for n in self.accelerator.reduce(flags, reduction='sum').tolist())
        if not sick:
            self.skipped = 0 if parts else self.skipped
            return True, stop
        self.skipped += 1
        if self.policy == 'skip' and self.skipped < self.patience:
            return False, stop
        for loss, indices in parts:
            if not loss.isfinite():
                times = f' for the {self.skipped}th time in succession' if self.skipped > 1 else ''
                raise InputError(
                    f'The loss is {loss.item()}{times} in {where}, on {self._images(indices)}. Lower --lr, set'
                    ' --clip-grad, train without mixed precision, or leave such updates out: --non-finite skip.')
        raise SystemExit(2)

    def _images(self, indices: Optional[torch.Tensor]) -> str:
        if indices is None:
            return 'images of a stream'
        return 'these images: ' + ', '.join(self.name(i) for i in indices.tolist())


def freeze_unused(model: nn.Module, input_size: Sequence[int]) -> List[str]:
    """Freeze the parameters that the logits do not depend on, which DistributedDataParallel would wait for.

    Args:
        model: Left in the mode that it is in.
        input_size: (C, H, W) of an image.

    Returns:
        Their names.
    """
    training = model.training
    model.eval()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    logits = model(torch.zeros(1, *input_size))
    gradients = torch.autograd.grad(logits.sum(), [p for _, p in named], allow_unused=True)
    model.train(training)
    unused = [(name, p) for (name, p), gradient in zip(named, gradients) if gradient is None]
    for _, parameter in unused:
        parameter.requires_grad_(False)
    return [name for name, _ in unused]


def executable_batch_size(
        model: nn.Module,
        criterion: nn.Module,
        input_size: Sequence[int],
        accelerator: Accelerator,
        starting_batch_size: int,
) -> int:
    """How many images fit into memory with their gradients, found by trying, or 0.

    Args:
        model: Not wrapped; neither its weights nor their gradients change, and no other process is needed.
        criterion: Of (logits, targets).
        input_size: (C, H, W) of an image.
        accelerator: For its device and precision.
        starting_batch_size: The first to try.
    """
    @find_executable_batch_size(starting_batch_size=starting_batch_size)
    def attempt(batch_size: int) -> int:
        images = torch.zeros(batch_size, *input_size, device=accelerator.device)
        with accelerator.autocast():
            logits = model(images)
        # grad() and not backward(), at whose end the processes would wait for each other
        torch.autograd.grad(
            criterion(logits, torch.zeros_like(logits)), [p for p in model.parameters() if p.requires_grad])
        return batch_size

    try:
        return attempt()
    except RuntimeError:
        return 0
