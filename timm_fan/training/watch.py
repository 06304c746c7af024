"""What can go wrong during training: losses that are not finite, requests to stop, too little memory."""
import contextlib
import logging
from typing import Callable, Iterator, List, Optional, Tuple

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size

from timm_fan.errors import InputError
from timm_fan.processes import StopRequest

_logger = logging.getLogger(__name__)

# so many updates in a row whose loss is not finite end the run, even if they are to be skipped
_PATIENCE = 10
# growth since the first update that is warned of
_DIVERGED = 1000


class Watch:
    """Checks the losses of each update before it is applied, and asks all processes whether one has to stop.

    Args:
        accelerator: Its processes decide together.
        stop: Request to end the run after the current update, of one process or several.
        policy: What to do about a loss that is not finite: 'stop' the run, or 'skip' the update.
        name: From the index of an image to its name in messages.
    """

    def __init__(self, accelerator: Accelerator, stop: StopRequest, policy: str, name: Callable[[int], str]):
        self.accelerator, self.stop, self.policy, self.name = accelerator, stop, policy, name
        self._skipped = 0  # in a row
        self._parts: List[Tuple[torch.Tensor, torch.Tensor]] = []
        self._first_loss: Optional[float] = None
        self._has_warned = False

    def add(self, loss: torch.Tensor, indices: torch.Tensor) -> None:
        """A part of the update: its loss, a scalar, and the indices of its images (B,)."""
        self._parts.append((loss.detach(), indices))

    def check(self, where: str = '') -> Tuple[bool, bool]:
        """Called by every process when all parts of an update have been added.

        Args:
            where: Epoch, update and learning rate, for the message.

        Returns:
            Whether to apply the update, and whether to stop after it.

        Raises:
            InputError: The run ends because a loss of this process is not finite.
            SystemExit: The run ends because of another process, with code 2.
        """
        flags = torch.zeros(3, device=self.accelerator.device)
        flags[1] = bool(self.stop)
        for loss, _ in self._parts:
            flags[0] += ~loss.isfinite()
            flags[2] += loss / len(self._parts)
        parts, self._parts = self._parts, []
        *counts, loss_sum = self.accelerator.reduce(flags, reduction='sum').tolist()
        not_finite, stop = (n > 0 for n in counts)
        if not not_finite:
            if parts:
                self._skipped = 0
                self._warn_of_growth(loss_sum / self.accelerator.num_processes, where)
            return True, stop
        self._skipped += 1
        if self.policy == 'skip' and self._skipped < _PATIENCE:
            return False, stop
        for loss, indices in parts:
            if not loss.isfinite():
                times = f' for the {self._skipped}th time in a row' if self._skipped > 1 else ''
                images = ', '.join(self.name(i) for i in indices.tolist())
                raise InputError(
                    f'The loss is {loss.item()}{times} in {where}, on these images: {images}. Lower `lr`, set'
                    ' `clip_grad`, train without mixed precision, or skip such updates: `non_finite=skip`.')
        raise SystemExit(2)

    def _warn_of_growth(self, loss: float, where: str) -> None:
        self._first_loss = self._first_loss or loss
        if loss > _DIVERGED * self._first_loss > 0 and not self._has_warned:
            self._has_warned = True
            _logger.warning(
                'the loss has grown from %.3g to %.3g in %s: lower --lr, or set --clip-grad', self._first_loss, loss,
                where)


@contextlib.contextmanager
def memory_errors(images: int) -> Iterator[None]:
    """Turn an out-of-memory error into an InputError with its remedies. `images` are those at once in a process."""
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise InputError(
            f'Out of memory with {images} images at once ({str(error).splitlines()[0]}). Raise `grad_accum_steps`,'
            ' which does not change the update, lower `batch_size` or `img_size`, or set `grad_checkpointing`.'
        ) from error
