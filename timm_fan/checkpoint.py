"""Checkpoints of a training run, of which the last good one survives whatever happens while the next is written."""
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

from .errors import InputError

__all__ = ['Progress', 'latest_checkpoint', 'load_checkpoint', 'read_progress', 'save_checkpoint']


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        history: One dict a finished epoch.
        best: Highest mAP so far, in 0..1.
        updates: Of the optimizer, in the epoch that is under way.
        loss_sum: Of that epoch's batches, the mean over processes.
        updates_per_epoch: Of the optimizer, in a whole epoch.
        num_processes: That trained it last.
        seconds: Spent so far.
        class_names: In the order of the logits.
        scheduler: State of a scheduler that is no function of the number of updates.
    """
    class_names: List[str]
    updates_per_epoch: int
    num_processes: int
    history: List[Dict[str, float]] = field(default_factory=list)
    best: float = -1.
    updates: int = 0
    loss_sum: float = 0.
    seconds: float = 0.
    scheduler: Optional[Dict[str, Any]] = None

    @property
    def total_updates(self) -> int:
        return len(self.history) * self.updates_per_epoch + self.updates


def _checkpoints(run: Path) -> List[Path]:
    """Finished ones, oldest first."""
    found = (run / 'checkpoints').glob('[0-9]*')
    return sorted(p for p in found if (p / 'progress.json').is_file())


def latest_checkpoint(run: Path) -> Optional[Path]:
    """The newest finished checkpoint of a run folder."""
    found = _checkpoints(run)
    return found[-1] if found else None


def save_checkpoint(accelerator: Accelerator, run: Path, ema, progress: Progress, keep: int) -> None:
    """Write model, optimizer, scaler, EMA and progress beside the earlier checkpoints, then drop all but `keep`.

    Called by every process. The folder gets its name when it is complete.

    Raises:
        InputError: It cannot be written; the earlier ones are as they were.
    """
    folder = run / 'checkpoints'
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
                save_file({k: v.contiguous() for k, v in ema.module.state_dict().items()}, new / 'ema.safetensors')
            (new / 'progress.json').write_text(json.dumps(asdict(progress)))
            shutil.rmtree(target, ignore_errors=True)
            os.rename(new, target)
            kept = _checkpoints(run)[-keep:]
            for old in folder.iterdir():
                if old not in kept:
                    # without it the rest is no checkpoint any more, whatever stops the removal
                    (old / 'progress.json').unlink(missing_ok=True)
                    shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise InputError(
            f'No checkpoint can be written to {target} ({error}). The last good one is {latest_checkpoint(run)}: make'
            ' room, and go on with --resume.') from error
    accelerator.wait_for_everyone()


def read_progress(checkpoint: Path, class_names: Sequence[str], updates_per_epoch: int) -> Progress:
    """Progress of a checkpoint.

    Raises:
        InputError: It is broken, of other classes, or of epochs of another length.
    """
    try:
        progress = Progress(**json.loads((checkpoint / 'progress.json').read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f'--resume: {checkpoint} is damaged ({error}). Remove it to go on from the one before.') from error
    if progress.class_names != list(class_names):
        raise InputError(
            f'--resume: {checkpoint} is of {len(progress.class_names)} classes, the data has {len(class_names)} or'
            ' names them differently. Resume with the same data, or fine-tune with --model local-dir:FOLDER.')
    if progress.updates_per_epoch != updates_per_epoch:
        raise InputError(
            f'--resume: an epoch of {checkpoint} has {progress.updates_per_epoch} updates, these data and options give'
            f' {updates_per_epoch}. Resume with the same data and --batch-size.')
    return progress


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, ema) -> None:
    """Put a checkpoint's state into what the accelerator has prepared, and into the EMA.

    Raises:
        InputError: It is damaged, or of another model or other options.
    """
    if (checkpoint / 'ema.safetensors').is_file() != (ema is not None):
        raise InputError(f'--resume: {checkpoint} was trained with another --ema-decay; resume with the same options.')
    try:
        accelerator.load_state(str(checkpoint))
        if ema is not None:
            ema.module.load_state_dict(load_file(checkpoint / 'ema.safetensors'))
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, UnpicklingError, SafetensorError) as error:
        raise InputError(
            f'--resume: {checkpoint} is damaged, or does not fit the model that the options describe: {error}'
        ) from error
