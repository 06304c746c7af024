"""The evaluation loop that training and validation share."""
from typing import Tuple

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import broadcast, tqdm
from torch.utils.data import DataLoader

__all__ = ['predict_logits', 'share_buffers']


def share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the main process's buffers (BatchNorm statistics differ), the ones that are saved."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))


@torch.no_grad()
def predict_logits(
        model: nn.Module,
        loader: DataLoader,
        accelerator: Accelerator,
        description: str = 'evaluate',
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Run a model over a prepared loader.

    Args:
        model: Not wrapped for DDP, on the accelerator's device; left in eval mode.
        loader: Of (images, targets), prepared by the accelerator, not shuffled.
        accelerator: Gathers batches and drops the samples that even out the processes.
        description: Text of the progress bar.

    Returns:
        float32 logits and targets (N, num_classes) on the CPU, N = len(loader.dataset), in its order, the same on every
        process.
    """
    model.eval()
    logits, targets = [], []
    for images, batch_targets in tqdm(loader, desc=description, leave=False):
        with accelerator.autocast():
            batch_logits = model(images)
        # gathering the whole after the loop would keep the padding
        batch_logits, batch_targets = accelerator.gather_for_metrics((batch_logits.float(), batch_targets))
        logits.append(batch_logits.cpu())
        targets.append(batch_targets.cpu())
    logits, targets = torch.cat(logits), torch.cat(targets)
    assert len(logits) == len(loader.dataset), f'{len(logits)} results for {len(loader.dataset)} images'
    return logits, targets
