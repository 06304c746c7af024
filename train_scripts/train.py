#!/usr/bin/env python3
"""Train a multi-label classifier.

    python train_scripts/train.py                                               # the generated scenes, on a CPU
    accelerate launch train_scripts/train.py --config coco2014 --data-dir DIR   # one or many GPUs

A YAML file in train_scripts/configs (or any path) gives the options, the command line overrides it. The run folder gets
config.yaml, run.json (machine, versions, time), train.log, history.csv, best/ and last/ (self-contained models),
checkpoints/ (to resume), report/, and bad_samples.jsonl where images could not be read.
"""
import argparse
import atexit
import copy
import csv
import functools
import json
import logging
import math
import multiprocessing
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

import torch
import yaml
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedType,
    DynamoBackend,
    ProjectConfiguration,
    gather_object,
    set_seed,
    tqdm,
)
from accelerate.utils.memory import should_reduce_batch_size
from timm.data import resolve_model_data_config
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from timm.models import get_model_input_config
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from timm_fan import InputError
from timm_fan.checkpoint import Progress, latest_checkpoint, load_checkpoint, read_progress, save_checkpoint
from timm_fan.data import SOURCES, MultiLabelMixup, Normalize, RandomCrop, collate, create_dataset, create_transform
from timm_fan.data.bad_samples import BadSamples
from timm_fan.data.device import DeviceDecoder, EncodedImages, collate_encoded
from timm_fan.errors import exit_on_input_error
from timm_fan.evaluation import predict_logits, share_buffers
from timm_fan.files import recover_folder, write_text
from timm_fan.groups import score_groups
from timm_fan.health import Watch, executable_batch_size, freeze_unused
from timm_fan.hub import WEIGHTS_NAME
from timm_fan.loss import LOSSES, create_loss
from timm_fan.metrics import evaluate_logits
from timm_fan.models import create_model, label_names, load_model, save_model
from timm_fan.provenance import environment, file_sha256
from timm_fan.report import format_scores, write_report
from timm_fan.seeding import SeededSamples, seed_step
from timm_fan.uncertainty import bootstrap

_logger = logging.getLogger('train')

CONFIGS = Path(__file__).parent / 'configs'
EXIT_STOPPED = 75  # EX_TEMPFAIL: SIGTERM or SIGUSR1 came, the state is saved
# lowest and highest value of options
RANGES = {
    **dict.fromkeys(
        ('epochs', 'batch_size', 'grad_accum_steps', 'keep', 'val_interval', 'img_size', 'lr_base_size'),
        (1, math.inf)),
    **dict.fromkeys(
        ('lr', 'backbone_lr', 'weight_decay', 'warmup_epochs', 'clip_grad', 'mixup', 'cutmix', 'workers',
         'checkpoint_every'), (0, math.inf)),
    **dict.fromkeys(('ema_decay', 'mixup_prob', 'min_crop', 'max_bad_samples'), (0, 1)),
    'smoothing': (0, 0.99), 'seed': (0, 2 ** 32 - 1),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add('--config', default='scenes', help='a name in train_scripts/configs or a YAML file (default: scenes)')
    add('--data', default='scenes', help=f'NAME[:WHERE][?OPTION=VALUE], one of {", ".join(SOURCES)} (default: scenes)')
    add('--data-dir', default='data', help='folder of the data set; scenes are drawn below it (default: %(default)s)')
    add('--output', help='run folder (default: runs/CONFIG)')
    add('--resume', nargs='?', const='auto',
        help="go on with this run folder by its own config.yaml; 'auto': with --output, if it is one")

    add('--model', default='fan', help='a timm model name, or local-dir:FOLDER to fine-tune one (default: %(default)s)')
    add('--backbone', help="train 'fan' over this timm model")
    add('--backbone-weights', help='safetensors file of the plain timm backbone')
    add('--pretrained-backbone', action=argparse.BooleanOptionalAction, default=False, help='fetch it from the Hub')
    add('--model-kwargs', nargs='*', default=[], metavar='KEY=VALUE', help='more model arguments, e.g. frn=false')
    add('--img-size', type=int, help="pixels a side (default: the model's)")

    add('--epochs', type=int, default=20)
    add('--batch-size', type=int, default=32, help='images a step, over all processes and accumulation steps')
    add('--grad-accum-steps', type=int, default=1, help='parts that each process computes a step in')
    add('--mixed-precision', choices=['no', 'bf16', 'fp16'], help="default: that of accelerate's configuration, or no")
    add('--sync-bn', action=argparse.BooleanOptionalAction, default=False, help='BatchNorm over all GPUs')
    add('--freeze-bn', action=argparse.BooleanOptionalAction, default=False,
        help="keep the backbone's BatchNorm as it is, for small batches and little data")
    add('--torchcompile', nargs='?', const='inductor', choices=[b.value.lower() for b in DynamoBackend],
        help='torch.compile the model (default backend: inductor)')
    add('--grad-checkpointing', action=argparse.BooleanOptionalAction, default=False,
        help='compute activations again instead of keeping them')
    add('--opt', default='adamw', help='a timm optimizer')
    add('--lr', type=float, default=1e-3, help='peak learning rate of the fresh layers')
    add('--backbone-lr', type=float, help='peak learning rate of the backbone, 0 to freeze it (default: --lr)')
    add('--lr-base-size', type=int, help='the batch size that the rates are for; they follow --batch-size linearly,'
        ' or by its square root for adaptive optimizers (default: --batch-size)')
    add('--weight-decay', type=float, default=0.05)
    add('--sched', default='cosine', choices=['cosine', 'plateau'], help='plateau: x0.1 after 3 epochs without gain')
    add('--warmup-epochs', type=float, default=1.)
    add('--clip-grad', type=float, default=0., help='maximum norm of the gradients, 0 for none')
    add('--ema-decay', type=float, default=0., help='moving average of the weights, evaluated in their place; 0: none')

    add('--loss', default='bce', choices=LOSSES)
    add('--smoothing', type=float, default=0., help='label smoothing')
    add('--mixup', type=float, default=0., help='alpha of Mixup, 0 for none')
    add('--cutmix', type=float, default=0., help='alpha of CutMix, 0 for none')
    add('--mixup-prob', type=float, default=1., help='share of the batches that are mixed')
    add('--aa', help="timm's auto-augment, e.g. rand-m7-mstd0.5")
    add('--min-crop', type=float, default=0.25, help='smallest area of the random crop')

    add('--workers', type=int, default=2, help='data loading processes a training process')
    add('--decode', default='workers', choices=['workers', 'device'],
        help='who decodes JPEGs: device is nvJPEG on a GPU, without --aa (default: %(default)s)')
    add('--checkpoint-every', type=int, default=0, help='updates between checkpoints within an epoch (default: none)')
    add('--keep', type=int, default=2, help='checkpoints that are kept (default: %(default)s)')
    add('--max-bad-samples', type=float, default=0.05, metavar='SHARE',
        help='of the images that may be unreadable, though always 10 (default: %(default)s)')
    add('--non-finite', default='stop', choices=['stop', 'skip'],
        help='at a loss of NaN or infinity: stop, or leave the update out, 10 times in succession at most')
    add('--seed', type=int, default=0)
    add('--val-interval', type=int, default=1, help='epochs from one evaluation to the next; the last has one always')
    add('--report', action=argparse.BooleanOptionalAction, default=True, help='evaluate the best model at the end')
    add('--log-with', default='tensorboard', choices=['tensorboard', 'trackio', 'none'])
    return parser


def parse_args() -> argparse.Namespace:
    parser = build_parser()
    first = parser.parse_args()
    given = {argument.partition('=')[0] for argument in sys.argv[1:]}
    name = first.config
    if first.resume not in (None, 'auto') and '--config' not in given:
        name = f'{first.resume}/config.yaml'
        if not Path(name).is_file():
            raise InputError(f'--resume: no file {name}. Give a run folder of train.py.')
    file = Path(name) if name.endswith(('.yaml', '.yml')) else CONFIGS / f'{name}.yaml'
    if not file.is_file():
        known = ', '.join(sorted(p.stem for p in CONFIGS.glob('*.yaml')))
        raise InputError(f'--config: no file {file}. Give a YAML file or one of {known}.')
    try:
        config = yaml.safe_load(file.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f'{file} is not valid YAML: {error}') from error
    if not isinstance(config, dict):
        raise InputError(f'{file} must hold option: value lines.')

    # another model or backbone on the command line takes none of the arguments of the file's
    if '--model' in given:
        config = {k: v for k, v in config.items() if k not in ('backbone', 'backbone_weights', 'model_kwargs')}
    elif '--backbone' in given:
        config = {**config, 'model': 'fan', 'model_kwargs': None}

    # options of the file stand in front of the command line's, so argparse checks both alike
    options = {action.dest: action for action in parser._actions}
    config_kwargs = config.pop('model_kwargs', None) or {}
    if not isinstance(config_kwargs, dict):
        raise InputError(f'{file}: model_kwargs must hold argument: value, got {config_kwargs!r}.')
    front = []
    for key, value in config.items():
        if key not in options or key in ('config', 'help'):
            raise InputError(f'{file}: unknown option {key!r}. Known: {", ".join(sorted(options))}.')
        if value is None:
            continue
        flag = options[key].option_strings[0]
        if isinstance(options[key], argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                raise InputError(f'{file}: {key} is true or false, got {value!r}.')
            front.append(flag if value else f'--no-{flag[2:]}')
        else:
            front.append(f'{flag}={value}')
    args = parser.parse_args(front + sys.argv[1:])

    args.model_kwargs = {**config_kwargs, **parse_model_kwargs(args.model_kwargs)}
    args.config = str(file)
    if args.output is None:
        # a run's own config.yaml repeats it beside it
        folder = file.parent.resolve() if file.parent.name in ('', '..') else file.parent
        args.output = f'{folder}-again' if (folder / 'run.json').is_file() else f'runs/{file.stem}'
    if args.resume and args.resume != 'auto':
        if '--output' in given:
            raise InputError(f'--resume {args.resume} goes on in that folder: leave --output out.')
        args.output = args.resume
    for key, (lowest, highest) in RANGES.items():
        value = getattr(args, key)
        if value is not None and not lowest <= value <= highest:
            wanted = f'at least {lowest}' if highest == math.inf else f'{lowest} to {highest}'
            raise InputError(f'--{key.replace("_", "-")} must be {wanted}, got {value}.')
    if args.backbone_lr is None:
        args.backbone_lr = args.lr
    if args.lr_base_size:
        scale = args.batch_size / args.lr_base_size
        if any(name in args.opt.lower() for name in ('ada', 'lamb')):
            scale **= 0.5
        args.lr, args.backbone_lr, args.lr_base_size = args.lr * scale, args.backbone_lr * scale, None
    if args.sched == 'plateau' and args.val_interval > 1:
        raise InputError(f'--sched plateau looks at every epoch, not with --val-interval {args.val_interval}.')
    if args.decode == 'device' and args.aa:
        raise InputError(f"--decode device goes without auto-augment, which is Pillow's: not with --aa '{args.aa}'.")
    return args


def parse_model_kwargs(pairs: List[str]) -> Dict[str, Any]:
    kwargs = {}
    for pair in pairs:
        key, sep, value = pair.partition('=')
        if not sep or not key.isidentifier():
            raise InputError(f"--model-kwargs: '{pair}' is not KEY=VALUE, e.g. frn=false.")
        try:
            kwargs[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--model-kwargs: the value of '{pair}' cannot be read.") from error
    return kwargs


def build_model(args: argparse.Namespace, num_classes: int) -> torch.nn.Module:
    kwargs = dict(args.model_kwargs)
    if 'num_classes' in kwargs or kwargs.get('in_chans', 3) != 3:
        raise InputError('--model-kwargs: the data give num_classes, and images of three channels.')
    if args.model.startswith('fan'):
        if args.img_size:
            kwargs.setdefault('img_size', args.img_size)
        options = dict(
            backbone=args.backbone, backbone_weights=args.backbone_weights,
            pretrained_backbone=args.pretrained_backbone)
        kwargs.update({key: value for key, value in options.items() if value})
        if args.backbone_weights and not Path(args.backbone_weights).is_file():
            raise InputError(f'--backbone-weights: no file {args.backbone_weights}.')
    elif args.backbone or args.backbone_weights:
        raise InputError(f"--backbone and --backbone-weights go with a fan model, not with --model '{args.model}'.")
    pretrained = ':' in args.model or (args.pretrained_backbone and not args.model.startswith('fan'))
    model = create_model(args.model, pretrained=pretrained, num_classes=num_classes, **kwargs)
    config = get_model_input_config(model)
    if args.img_size and config['fixed_input_size'] and config['input_size'][1:] != (args.img_size, args.img_size):
        if not hasattr(model, 'set_input_size'):
            raise InputError(
                f"--img-size {args.img_size}: '{args.model}' has the fixed size {config['input_size'][1:]}."
                f' Try --model-kwargs img_size={args.img_size}.')
        model.set_input_size(img_size=(args.img_size, args.img_size))
    return model


def backbone_parameters(model: torch.nn.Module) -> List[torch.nn.Parameter]:
    """The backbone's, of a plain model all but the classifier's."""
    if hasattr(model, 'backbone'):
        return list(model.backbone.parameters())
    head = {id(p) for p in model.get_classifier().parameters()}
    return [p for p in model.parameters() if id(p) not in head]


def param_groups(model: torch.nn.Module, lr: float, backbone_lr: float, weight_decay: float) -> List[Dict[str, Any]]:
    """Norms and biases without decay; the backbone with its own rate."""
    backbone = {id(p) for p in backbone_parameters(model)}
    groups = []
    no_decay = model.no_weight_decay() if hasattr(model, 'no_weight_decay') else ()
    for group in param_groups_weight_decay(model, weight_decay, no_weight_decay_list=no_decay):
        for rate, part in (
                (backbone_lr, [p for p in group['params'] if id(p) in backbone]),
                (lr, [p for p in group['params'] if id(p) not in backbone]),
        ):
            if part:
                groups.append({**group, 'params': part, 'lr': rate})
    return groups


def setup_logging(accelerator: Accelerator, output: Path) -> None:
    handlers: List[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if accelerator.is_main_process:
        handlers.append(logging.FileHandler(output / 'train.log'))
    level = logging.INFO if accelerator.is_main_process else logging.WARNING
    logging.basicConfig(
        format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.WARNING, handlers=handlers, force=True)
    _logger.setLevel(level)


def train_one_epoch(
        epoch, model, network, loader, criterion, optimizer, scheduler, decoder, normalize, mixup, ema, accelerator,
        args, progress, watch, save) -> float:
    """The rest of an epoch from where `progress` stands; returns the epoch's mean loss.

    Calls `save` every `--checkpoint-every` updates, and when a signal asks to stop.
    """
    model.train()
    loader.set_epoch(epoch)
    if isinstance(loader.dataset, SeededSamples):
        loader.dataset.epoch.fill_(epoch)
    first = progress.updates * args.grad_accum_steps
    batches = skip_first_batches(loader, first) if first else loader
    loss_sum = torch.full((), progress.loss_sum, device=accelerator.device)
    without_positive = torch.zeros((), device=accelerator.device)
    step = first - 1
    bar = tqdm(batches, desc=f'epoch {epoch + 1}/{args.epochs}', initial=first, total=len(loader), leave=False)
    for step, (images, targets, *indices) in enumerate(bar, start=first):
        seed_step(args.seed, epoch, step, accelerator.process_index)
        images = normalize(images if decoder is None else decoder(images, targets, *indices))
        without_positive += ~(targets > 0).any()
        if mixup is not None:
            images, targets = mixup(images, targets)
        with accelerator.accumulate(model):
            with accelerator.autocast():
                logits = model(images)
            loss = criterion(logits, targets)
            accelerator.backward(loss)
            watch.add(loss, *indices)
            lr = optimizer.param_groups[-1]['lr']
            if accelerator.sync_gradients:
                healthy, stop = watch.check(f'epoch {epoch + 1}, update {progress.updates + 1}, learning rate {lr:.2e}')
                if healthy:
                    if args.clip_grad:
                        accelerator.clip_grad_norm_(model.parameters(), args.clip_grad)
                    optimizer.step()
                else:
                    _logger.warning(
                        'epoch %d: update %d is left out, its loss is not finite', epoch + 1, progress.updates + 1)
                optimizer.zero_grad()
        loss_sum += torch.where(loss.detach().isfinite(), loss.detach(), 0.)
        if step % 10 == 0:
            bar.set_postfix(loss=f'{loss.item():.4f}', lr=f'{lr:.2e}')
        if not accelerator.sync_gradients:
            continue
        progress.updates += 1
        if ema is not None:
            ema.update(network, step=progress.total_updates)
        if args.sched == 'cosine':
            scheduler.step_update(progress.total_updates)
        if step + 1 == len(loader):  # the end of the epoch is saved after its evaluation
            continue
        if stop or (args.checkpoint_every and progress.updates % args.checkpoint_every == 0):
            progress.loss_sum = accelerator.reduce(loss_sum, reduction='mean').item()
            save()
        if stop:
            stop_for_signal(accelerator, args.output)
    if step + 1 < len(loader):
        raise InputError(
            f'The training data ended after {step + 1} of {len(loader)} batches: a stream needs its true'
            ' train_length=.')
    count = int(accelerator.reduce(without_positive, reduction='sum'))
    if count:
        _logger.warning(
            'epoch %d: %d of %d batches hold no positive label', epoch + 1, count,
            (len(loader) - first) * accelerator.num_processes)
    return accelerator.reduce(loss_sum, reduction='mean').item() / len(loader)


def advise_on_memory(error, network, criterion, data_config, accelerator, micro_batch, args) -> str:
    text = f'Out of memory at {micro_batch} images a process and part ({error}). '
    if accelerator.num_processes > 1 and (args.sync_bn or accelerator.distributed_type == DistributedType.FSDP):
        return text + 'Raise --grad-accum-steps, which keeps the step, or lower --batch-size.'
    fitting = executable_batch_size(
        network, criterion, data_config['input_size'], accelerator, max(1, micro_batch - 1))
    parts = next((n for n in range(args.grad_accum_steps + 1, args.batch_size + 1)
                  if args.batch_size % (n * accelerator.num_processes) == 0
                  and args.batch_size // (n * accelerator.num_processes) <= fitting), None)
    if parts is None:
        return text + 'Not one image fits: choose a smaller model or --img-size, or --grad-checkpointing.'
    return text + (
        f'{fitting} fit: --grad-accum-steps {parts} keeps the step of {args.batch_size} and computes'
        f' {args.batch_size // (parts * accelerator.num_processes)} at once.')


def check_engine(accelerator: Accelerator, args: argparse.Namespace) -> bool:
    """Whether the model is sharded (FSDP2); raises InputError for what is not supported."""
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise InputError(f'{accelerator.distributed_type.value} is not supported, DDP and FSDP2 are.')
    if accelerator.distributed_type != DistributedType.FSDP:
        return False
    plugin = accelerator.state.fsdp_plugin
    # the other kind of state keeps its index as a pickle
    if getattr(plugin, 'fsdp_version', 1) != 2 or plugin.state_dict_type.name != 'FULL_STATE_DICT':
        raise InputError(
            'Of FSDP, version 2 with FULL_STATE_DICT is supported:'
            ' --config_file train_scripts/configs/accelerate/fsdp2.yaml.')
    if args.ema_decay:
        raise InputError('--ema-decay does not go with FSDP: set it to 0.')
    return True


def continued(record: Dict[str, Any], file: Path) -> Dict[str, Any]:
    """The record of a run that goes on, with those of its earlier launches."""
    try:
        earlier = json.loads(file.read_text())
    except (OSError, ValueError):
        return record
    if earlier.get('data') != record['data']:
        _logger.warning('the data is not what %s was begun with: other images, labels or classes', file.parent)
    return {**record, 'earlier': [*earlier.pop('earlier', []), earlier]}


def check_unchanged(args: argparse.Namespace, output: Path) -> None:
    """Raises an InputError where a resumed run's options do not fit the state of its optimizer."""
    try:
        before = yaml.safe_load((output / 'config.yaml').read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return
    rates = ('lr', 'backbone_lr') if args.sched == 'plateau' else ()
    for key in ('opt', 'sched', 'weight_decay', *rates):
        if isinstance(before, dict) and before.get(key, getattr(args, key)) != getattr(args, key):
            raise InputError(
                f'--resume: {output} was begun with --{key.replace("_", "-")} {before[key]}, it cannot go on with'
                f' {getattr(args, key)}. Begin a new run with --model local-dir:{output}/best.')


def ignore_sigterm(_worker: int) -> None:
    """Of a data loader: schedulers signal all processes of a job, and the main one still needs its workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def kill_workers() -> None:
    """At the exit, where multiprocessing would send SIGTERM and wait."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler takes it for a failure
    for worker in multiprocessing.active_children():
        worker.kill()


def stop_for_signal(accelerator: Accelerator, output: str) -> None:
    _logger.info('stopped by a signal; go on with --resume %s', output)
    accelerator.end_training()
    sys.exit(EXIT_STOPPED)


def report_on_best(accelerator: Accelerator, output: Path, loader: DataLoader, history, args) -> None:
    """On the model as saved, loaded the way a user loads it."""
    model = load_model(output / 'best').to(accelerator.device, memory_format=torch.channels_last)
    logits, targets = predict_logits(model, loader, accelerator, 'report')
    dataset = loader.dataset
    scores = evaluate_logits(logits, targets, dataset.class_names)
    if accelerator.is_main_process:
        intervals, groups = bootstrap(logits, targets), score_groups(scores, logits, targets, dataset)
        write_report(
            output / 'report', scores, logits, targets, dataset, history, intervals=intervals, groups=groups,
            data=args.data, title=f'{args.model} in {output}',
            weights=file_sha256(output / 'best' / WEIGHTS_NAME))
        best_epoch = max((row for row in history if row['mAP'] is not None), key=lambda row: row['mAP'])['epoch']
        text = format_scores(scores, intervals, groups)
        _logger.info('best model, of epoch %d (chosen on these images):\n%s', best_epoch, text)
        _logger.info('model %s, report %s', output / 'best', output / 'report' / 'report.html')


def main() -> None:
    args = parse_args()
    output = Path(args.output)
    try:
        accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.grad_accum_steps,
            dynamo_backend=args.torchcompile,
            dataloader_config=DataLoaderConfiguration(
                use_seedable_sampler=True, data_seed=args.seed, non_blocking=True),
            log_with=None if args.log_with == 'none' else args.log_with,
            project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output)),
        )
    except (ValueError, ImportError) as error:
        raise InputError(f'{error} Install the programs\' extra: pip install "timm-fan[train]".') from error
    if args.log_with != 'none' and not accelerator.log_with:
        raise InputError(f'{args.log_with} is not installed: pip install {args.log_with}, or --log-with none.')
    sharded = check_engine(accelerator, args)
    args.grad_accum_steps = accelerator.gradient_accumulation_steps  # accelerate's environment may set it
    checkpoint = latest_checkpoint(output)
    if len(set(gather_object([str(checkpoint)]))) > 1:
        raise InputError(f'--output {output} must lie on a file system that all machines share.')
    if checkpoint and args.resume is None:
        raise InputError(f'{output} holds a run already. Go on with --resume, or choose another --output.')
    if not checkpoint and args.resume not in (None, 'auto'):
        raise InputError(f'--resume: {output} holds no checkpoint. Leave --resume out to start anew.')
    accelerator.wait_for_everyone()
    micro_batch, rest = divmod(args.batch_size, accelerator.num_processes * args.grad_accum_steps)
    if rest or not micro_batch:
        raise InputError(
            f'--batch-size {args.batch_size} is not a multiple of {accelerator.num_processes} processes x'
            f' {args.grad_accum_steps} accumulation steps.')
    set_seed(args.seed)

    # data and model
    with accelerator.local_main_process_first():
        train_set = create_dataset(args.data, args.data_dir, 'train')
        val_set = create_dataset(args.data, args.data_dir, 'val', class_names=train_set.class_names)
    if train_set.class_names != val_set.class_names:
        raise InputError(f'{args.data_dir}: the training and validation files list different categories.')
    if len(train_set) < args.batch_size:
        raise InputError(f'{len(train_set)} training images are fewer than one batch: lower --batch-size.')
    class_names = train_set.class_names
    updates_per_epoch = len(train_set) // args.batch_size
    if checkpoint:
        check_unchanged(args, output)
        progress = read_progress(checkpoint, class_names, updates_per_epoch)
    else:
        progress = Progress(class_names, updates_per_epoch, accelerator.num_processes)
    with accelerator.local_main_process_first():
        model = build_model(args, len(class_names))
    saved_names = model.pretrained_cfg.get('label_names')
    fresh_head = saved_names is not None and label_names(model) != class_names
    if fresh_head:
        model.reset_classifier(len(class_names))
    data_config = resolve_model_data_config(model, args=dict(img_size=args.img_size))
    unused = freeze_unused(model, data_config['input_size'])
    if args.backbone_lr == 0:
        for parameter in backbone_parameters(model):
            parameter.requires_grad_(False)
    if args.freeze_bn or args.backbone_lr == 0:
        if hasattr(model, 'backbone'):
            frozen = model.backbone = freeze_batch_norm_2d(model.backbone)
        else:
            frozen = model = freeze_batch_norm_2d(model)
        if any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in frozen.modules()):
            raise InputError(
                f'--freeze-bn and --backbone-lr 0 freeze BatchNorm2d, {args.backbone or args.model} has others.')
    if args.grad_checkpointing:
        try:
            model.set_grad_checkpointing()
        except (AssertionError, AttributeError) as error:
            raise InputError(f'--grad-checkpointing: {args.model} has none. {error}') from error
    if args.sync_bn:
        if accelerator.device.type == 'cpu':
            raise InputError('--sync-bn needs GPUs.')
        model = convert_sync_batchnorm(model)
    if not sharded:  # FSDP takes contiguous parameters only
        model = model.to(memory_format=torch.channels_last)
    try:
        train_set.transform = create_transform(
            **data_config, is_training=True, scale=(args.min_crop, 1.), auto_augment=args.aa)
    except (AssertionError, ValueError) as error:
        if not args.aa:
            raise
        raise InputError(f"--aa '{args.aa}' is no auto-augment of timm's, rand-m7-mstd0.5 is one.") from error
    val_set.transform = create_transform(**data_config)
    stream = isinstance(train_set, IterableDataset)
    decoder = None
    if args.decode == 'device':
        if stream:
            raise InputError('--decode device does not go with a stream.')
        crop = RandomCrop(data_config['input_size'][1:], (args.min_crop, 1.), data_config['interpolation'])
        decoder = DeviceDecoder(crop, accelerator.device, train_set.report_unreadable)

    output.mkdir(parents=True, exist_ok=True)
    setup_logging(accelerator, output)
    parameters = sum(p.numel() for p in model.parameters())
    record = dict(
        command=shlex.join(sys.argv), **environment(accelerator.device, accelerator.num_processes),
        seed=args.seed, parameters=parameters, train_images=len(train_set), val_images=len(val_set), seconds=0.,
        data={} if isinstance(train_set, IterableDataset) else dict(
            train=train_set.fingerprint(), val=val_set.fingerprint()))
    if checkpoint:
        record = continued(record, output / 'run.json')
    _logger.info(
        '%s: %.1f M parameters, %d classes, %d training and %d validation images at %s px, %s on %d process(es)',
        args.model, parameters / 1e6, len(class_names), len(train_set), len(val_set), data_config['input_size'][1],
        accelerator.device.type, accelerator.num_processes)
    if fresh_head:
        _logger.warning("%s was trained on other classes, or in another order: its head starts anew", args.model)
    if unused:
        _logger.info('%d parameters do not reach the logits and stay as they are: %s, ...', len(unused), unused[0])

    bad_samples = BadSamples(output / 'bad_samples.jsonl')
    if accelerator.is_main_process and not checkpoint:
        bad_samples.file.unlink(missing_ok=True)
    for split, dataset in dict(train=train_set, val=val_set).items():
        limit = max(10, int(args.max_bad_samples * len(dataset)))
        dataset.on_unreadable = functools.partial(bad_samples.add, split, limit)

    atexit.register(kill_workers)
    # every epoch has whole batches only, so that a step is the same whatever the number of processes
    images_per_epoch = updates_per_epoch * args.batch_size
    if stream:
        train_set.shuffle_and_limit(images_per_epoch, args.seed)
        args.workers = min(args.workers, 1)  # more would each cut the epoch short on their own
    workers = dict(
        num_workers=args.workers, persistent_workers=args.workers > 0 and not stream,
        pin_memory=accelerator.device.type == 'cuda', worker_init_fn=ignore_sigterm)
    sampler = None if stream else RandomSampler(train_set, num_samples=images_per_epoch)
    samples = EncodedImages(train_set, decoder.crop) if decoder else train_set
    train_loader = DataLoader(
        samples if stream else SeededSamples(samples, args.seed), micro_batch, sampler=sampler,
        collate_fn=collate_encoded if decoder else collate, **workers)
    val_loader = DataLoader(val_set, micro_batch, collate_fn=collate, **workers)

    # loss, optimizer, schedule
    mixup = None
    if args.mixup or args.cutmix:
        if micro_batch % 2:
            raise InputError(f'Mixup and CutMix need an even batch, got {micro_batch} images a process and step.')
        mixup = MultiLabelMixup(
            len(class_names), mixup_alpha=args.mixup, cutmix_alpha=args.cutmix, prob=args.mixup_prob)
    if args.loss == 'db' and stream:
        raise InputError('--loss db needs the frequency of each class, which a stream does not know.')
    counts = None if stream else train_set.labels.counts()[0]
    if counts is not None and not counts.all():
        absent = [name for name, count in zip(class_names, counts.tolist()) if not count]
        _logger.warning('%d classes have no positive training image: %s', len(absent), ', '.join(absent))
    normalize = Normalize(data_config['mean'], data_config['std'], accelerator.device)
    criterion = create_loss(
        args.loss, args.smoothing, soft_targets=mixup is not None,
        class_counts=counts if args.loss == 'db' else None, num_samples=len(train_set)).to(accelerator.device)
    groups = param_groups(model, args.lr, args.backbone_lr, args.weight_decay)
    try:
        optimizer = create_optimizer_v2(groups, opt=args.opt, lr=args.lr, weight_decay=args.weight_decay, momentum=0.9)
    except (ValueError, AssertionError) as error:
        raise InputError(f'--opt {args.opt}: {error}') from error
    if args.sched == 'plateau':
        scheduler = ReduceLROnPlateau(optimizer, mode='max', factor=0.1, patience=3)
    else:
        scheduler, _ = create_scheduler_v2(
            optimizer, sched='cosine', num_epochs=args.epochs, warmup_epochs=args.warmup_epochs, warmup_lr=0.,
            step_on_epochs=False, updates_per_epoch=updates_per_epoch)
        scheduler.step_update(0)

    # the scheduler stays out: a prepared one steps once for every process
    network, whole = model, copy.deepcopy(model) if sharded and accelerator.is_main_process else None
    model, optimizer, train_loader, val_loader = accelerator.prepare(model, optimizer, train_loader, val_loader)
    ema = ModelEmaV3(network, decay=args.ema_decay, use_warmup=True) if args.ema_decay else None
    evaluated = ema.module if ema is not None else network
    if args.log_with != 'none':
        project = 'tensorboard' if args.log_with == 'tensorboard' else output.name
        accelerator.init_trackers(project, config={k: str(v) for k, v in vars(args).items()})
    if checkpoint:
        load_checkpoint(accelerator, checkpoint, ema)
        if args.sched == 'plateau':
            scheduler.load_state_dict(progress.scheduler)
        else:
            scheduler.step_update(progress.total_updates)
        _logger.info(
            'resumed %s after epoch %d and %d updates', output, len(progress.history), progress.updates)
        if progress.num_processes != accelerator.num_processes:
            _logger.info(
                'it ran on %d process(es) and goes on with %d: the same batches, but BatchNorm, dropout and rounding'
                ' see other parts of them, so not to the very weights',
                progress.num_processes, accelerator.num_processes)
            progress.num_processes = accelerator.num_processes
        for name in ('best', 'last'):
            if accelerator.is_main_process:
                recover_folder(output / name)

    if accelerator.is_main_process:  # of a resumed run only now that it is known to go on
        write_text(
            output / 'config.yaml', yaml.safe_dump(
                {k: v for k, v in vars(args).items() if k not in ('config', 'output', 'resume')}))
    watch = Watch(accelerator, args.non_finite, name=str if stream else train_set.images.name)
    for name in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(name, lambda *_: setattr(watch, 'stop', True))
    started = time.time() - progress.seconds

    def save() -> None:
        progress.seconds = round(time.time() - started, 1)
        progress.scheduler = scheduler.state_dict() if args.sched == 'plateau' else None
        if accelerator.is_main_process:
            write_text(output / 'run.json', json.dumps({**record, 'seconds': progress.seconds}, indent=2))
        save_checkpoint(accelerator, output, ema, progress, args.keep)

    history = progress.history
    for epoch in range(len(history), args.epochs):
        no_memory = None
        try:
            loss = train_one_epoch(
                epoch, model, network, train_loader, criterion, optimizer, scheduler, decoder, normalize, mixup, ema,
                accelerator, args, progress, watch, save)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            no_memory = str(error).splitlines()[0]
        if no_memory:  # out of the handler, which keeps what fills the memory
            raise InputError(
                advise_on_memory(no_memory, network, criterion, data_config, accelerator, micro_batch, args))
        share_buffers(evaluated, accelerator)
        row = dict(
            epoch=epoch + 1, train_loss=loss, val_loss=None, mAP=None, CF1=None, OF1=None,
            lr=optimizer.param_groups[-1]['lr'])
        text = f'train loss {loss:.4f}'
        is_best = False
        if (epoch + 1) % args.val_interval == 0 or epoch + 1 == args.epochs:
            logits, targets = predict_logits(evaluated, val_loader, accelerator)
            scores = evaluate_logits(logits, targets, class_names)
            row.update(
                val_loss=create_loss()(logits, targets).item(), mAP=scores.mAP, CF1=scores.all.CF1, OF1=scores.all.OF1)
            text += f'  val loss {row["val_loss"]:.4f}' + ''.join(
                f'  {k} {100 * row[k]:.2f}' for k in ('mAP', 'CF1', 'OF1'))
            is_best = scores.mAP > progress.best
            progress.best = max(progress.best, scores.mAP)
        history.append(row)
        num_bad = len(bad_samples.read())
        if num_bad:
            _logger.info('%d images could not be read, see %s', num_bad, bad_samples.file)
        progress.updates, progress.loss_sum = 0, 0.
        if args.sched == 'plateau':
            scheduler.step(row['mAP'])
        _logger.info('epoch %d/%d  %s  %.0f s', epoch + 1, args.epochs, text, time.time() - started)
        accelerator.log({k: v for k, v in row.items() if k != 'epoch' and v is not None}, step=epoch + 1)

        state = accelerator.get_state_dict(model) if sharded else None
        if accelerator.is_main_process:
            if sharded:
                whole.load_state_dict(state)
            for name in ('best', 'last') if is_best else ('last',):
                save_model(whole if sharded else evaluated, output / name, class_names, data_config)
            with open(output / 'history.csv', 'w', newline='') as file:
                writer = csv.DictWriter(file, history[0])
                writer.writeheader()
                writer.writerows(history)
        save()
        if watch.check('')[1]:
            stop_for_signal(accelerator, args.output)

    accelerator.wait_for_everyone()
    if args.report:
        report_on_best(accelerator, output, val_loader, history, args)
    accelerator.wait_for_everyone()  # gloo may hang where the others have left already
    accelerator.end_training()


if __name__ == '__main__':
    with exit_on_input_error():
        main()
