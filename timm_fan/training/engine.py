"""The accelerator of a run: precision, processes, the division of an update among them, and the logger."""
from pathlib import Path
from typing import Any, Optional, Tuple

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedType, ProjectConfiguration

from timm_fan.errors import InputError
from timm_fan.files import printable

from .options import TrainingOptions


def accelerator_on(device: Optional[str], **kwargs: Any) -> Accelerator:
    """An accelerator for 'cuda', 'mps' or 'cpu', or for the device of its own choice. `kwargs` are its other arguments.

    Raises:
        InputError: It computes elsewhere, because there is no such device, or because accelerate launch says so.
    """
    accelerator = Accelerator(cpu=device == 'cpu', **kwargs)
    if device and accelerator.device.type != device:
        raise InputError(
            f'`device={device}`: Accelerate computes on {accelerator.device.type} here, because PyTorch finds no such'
            ' device, or because of the configuration of Accelerate or ACCELERATE_USE_CPU. Leave `device` out, or'
            ' change these.')
    return accelerator


def create_accelerator(options: TrainingOptions, folder: Path) -> Tuple[Accelerator, TrainingOptions]:
    """Create the accelerator, whose logger writes to `folder`.

    Returns:
        The accelerator, and the options with its number of accumulation steps, which its environment may set.

    Raises:
        InputError: The options or the kind of distributed training are not supported, or a library is missing.
    """
    log_with = None if options.log_with == 'none' else options.log_with
    try:
        accelerator = accelerator_on(
            options.device,
            mixed_precision=options.mixed_precision,
            gradient_accumulation_steps=options.grad_accum_steps,
            dynamo_backend=options.torchcompile,
            dataloader_config=DataLoaderConfiguration(
                use_seedable_sampler=True, data_seed=options.seed, non_blocking=torch.cuda.is_available()),
            log_with=log_with,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
        )
    except ImportError as error:
        raise InputError(f'{error} Install the training dependencies: pip install "timm-fan[train]".') from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f'Accelerate rejects the options: {error}') from error
    if log_with and not accelerator.log_with:
        raise InputError(f'{log_with} is not installed: pip install {log_with}, or set `log_with=none`.')
    options = options.model_copy(update=dict(grad_accum_steps=accelerator.gradient_accumulation_steps))
    _check_engine(accelerator, options)
    images_at_once(options, accelerator)
    return accelerator, options


def _check_engine(accelerator: Accelerator, options: TrainingOptions) -> None:
    """Raise InputError for kinds of distributed training that are not supported."""
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise InputError(f'{accelerator.distributed_type.value} is not supported, only DDP and FSDP2.')
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    # a sharded state dict has an index that is a pickle
    if getattr(plugin, 'fsdp_version', 1) != 2 or plugin.state_dict_type.name != 'FULL_STATE_DICT':
        raise InputError('Only version 2 of FSDP with fsdp_state_dict_type FULL_STATE_DICT is supported.')
    for name in ('ema_decay', 'cache_features'):
        if getattr(options, name):
            raise InputError(f'`{name}` is not supported with FSDP. Set it to 0.')


def start_logger(accelerator: Accelerator, options: TrainingOptions, folder: Path) -> None:
    """Start the logger of the options in a run folder.

    Raises:
        InputError: The logger cannot write to the folder.
    """
    if options.log_with == 'none':
        return
    project = 'tensorboard' if options.log_with == 'tensorboard' else folder.name
    try:
        accelerator.init_trackers(project, config={name: printable(str(value)) for name, value in options})
    except UnicodeEncodeError as error:
        raise InputError(
            f'{options.log_with} cannot write to {printable(folder)}, because the locale is not UTF-8. Set'
            ' `log_with=none`, or choose another `output`.') from error


def images_at_once(options: TrainingOptions, accelerator: Accelerator) -> int:
    """Images that each process computes at once.

    Raises:
        InputError: `batch_size` is not a multiple of processes times accumulation steps.
    """
    images, rest = divmod(options.batch_size, accelerator.num_processes * options.grad_accum_steps)
    if rest or not images:
        raise InputError(
            f'`batch_size={options.batch_size}` is not a multiple of {accelerator.num_processes} processes x'
            f' {options.grad_accum_steps} accumulation steps.')
    return images
