"""Checkpoints of a run. The last complete one survives whatever happens while the next one is written."""
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Dict, List, Optional, Sequence

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3

from timm_fan.errors import InputError
from timm_fan.files import read_json, write_text
from timm_fan.models.folder import unshared

_EMA, _PROGRESS = 'ema.safetensors', 'progress.json'


@dataclass
class Progress:
    """How far a run has got.

    Attributes:
        class_names: Names in class order.
        updates_per_epoch: Updates in a whole epoch.
        num_processes: Number of processes that trained last.
        history: One dict per finished epoch.
        best: Highest mAP so far, in 0..1.
        updates: Updates in the current epoch.
        loss_sum: Sum of the losses of its batches, the mean over processes.
        seconds: Training time so far.
        scheduler: State of a scheduler that does not follow from the number of updates.
    """
    class_names: List[str]
    updates_per_epoch: int
    num_processes: int = 1
    history: List[Dict[str, float]] = field(default_factory=list)
    best: float = -1.
    updates: int = 0
    loss_sum: float = 0.
    seconds: float = 0.
    scheduler: Optional[Dict[str, Any]] = None

    @property
    def total_updates(self) -> int:
        return len(self.history) * self.updates_per_epoch + self.updates


def _checkpoints(folder: Path) -> List[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob('[0-9]*') if (p / _PROGRESS).is_file())


def latest_checkpoint(folder: Path) -> Optional[Path]:
    """The latest complete checkpoint in a folder of checkpoints."""
    return next(reversed(_checkpoints(folder)), None)


def save_checkpoint(
        accelerator: Accelerator, folder: Path, ema: Optional[ModelEmaV3], progress: Progress, keep: int) -> None:
    """Write model, optimizer, scaler, EMA and progress to a new checkpoint, then delete all but the latest `keep`.

    Called by every process. The checkpoint gets its name when it is complete.

    Raises:
        InputError: It cannot be written. Earlier ones are unchanged.
    """
    new, target = folder / '.new', folder / f'{progress.total_updates:09d}'
    try:
        if accelerator.is_main_process:
            shutil.rmtree(new, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(new))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if ema is not None:
                save_file(unshared(ema.module.state_dict()), new / _EMA)
            write_text(new / _PROGRESS, json.dumps(asdict(progress)))
            shutil.rmtree(target, ignore_errors=True)
            os.rename(new, target)
            kept = _checkpoints(folder)[-keep:]
            for old in folder.iterdir():
                if old not in kept:
                    # without this file it is not a checkpoint any more, even if the deletion is interrupted
                    (old / _PROGRESS).unlink(missing_ok=True)
                    shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise InputError(
            f'The checkpoint {target} cannot be written ({error}). The last complete one is'
            f' {latest_checkpoint(folder)}. Free some space, and resume the run.') from error
    accelerator.wait_for_everyone()


def read_progress(checkpoint: Path, class_names: Sequence[str], updates_per_epoch: int) -> Progress:
    """Progress of a checkpoint.

    Raises:
        InputError: It is damaged, or belongs to other classes or to epochs of another length.
    """
    try:
        progress = Progress(**read_json(checkpoint / _PROGRESS))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f'The checkpoint {checkpoint} is damaged ({error}). Delete it to resume from the one before.') from error
    if progress.class_names != list(class_names):
        raise InputError(
            f'The checkpoint {checkpoint} was saved for {len(progress.class_names)} classes, but the data has'
            f' {len(class_names)}, or names them differently. Resume with the same data, or fine-tune the model of the'
            ' run.')
    if progress.updates_per_epoch != updates_per_epoch:
        raise InputError(
            f'An epoch of the checkpoint {checkpoint} has {progress.updates_per_epoch} updates, but the data and the'
            f' options give {updates_per_epoch}. Resume with the same data and `batch_size`.')
    return progress


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, ema: Optional[ModelEmaV3]) -> None:
    """Restore everything that the accelerator has prepared, and the EMA, from a checkpoint.

    Raises:
        InputError: It is damaged, or belongs to another model or other options.
    """
    if (checkpoint / _EMA).is_file() != (ema is not None):
        raise InputError(f'The checkpoint {checkpoint} was trained with another `ema_decay`. Resume with the same one.')
    try:
        accelerator.load_state(str(checkpoint))
        if ema is not None:
            ema.module.load_state_dict(load_file(checkpoint / _EMA))
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, UnpicklingError, SafetensorError) as error:
        raise InputError(
            f'The checkpoint {checkpoint} is damaged, or does not fit the model that the options describe: {error}'
        ) from error
