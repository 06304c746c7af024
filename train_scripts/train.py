#!/usr/bin/env python3
"""Train a multi-label classifier.

    python train_scripts/train.py                                               # the drawn scenes, on a CPU
    accelerate launch train_scripts/train.py --config coco2014 --data-dir DIR   # one or many GPUs
    python train_scripts/train.py --data table --data-dir DIR                   # your own photographs

Options come from the command line, then from a YAML file (--config), then from the defaults below.
The README in this folder describes data sources, recipes and the files in a run folder.
"""
import argparse
import atexit
import logging
import sys
from pathlib import Path
from typing import Any, Dict

from command_line import create_parser, run_program

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import set_seed, tqdm
from torch.utils.data import DataLoader
from tqdm.auto import tqdm as tqdm_class
from train_options import add_training_options, read_arguments

from timm_fan.data import MultiLabelDataset, seed_step
from timm_fan.evaluation import evaluate, share_buffers
from timm_fan.files import printable
from timm_fan.hub import WEIGHTS_NAME
from timm_fan.metrics import format_scores, percent
from timm_fan.models import load_model
from timm_fan.processes import StopRequest, kill_workers
from timm_fan.provenance import file_sha256
from timm_fan.report import ReportInfo, write_report
from timm_fan.training import (
    RunFolder,
    Training,
    TrainingOptions,
    Watch,
    create_accelerator,
    create_loaders,
    create_loss,
    create_network,
    create_val_loader,
    memory_errors,
    open_splits,
    set_transforms,
    starting_point,
)
from timm_fan.training.network import Network

_logger = logging.getLogger('timm_fan.train')

EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped by a signal, the state is saved


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    add = parser.add_argument
    add('--config', help='name in train_scripts/configs, or YAML file (default: scenes, or photos for other --data)')
    add('--output', help='run folder (default: runs/CONFIG)')
    add('--resume', nargs='?', const='auto', metavar='RUN',
        help='resume this run with the options in its config.yaml; without a value, resume --output if it is a run'
        ' (default: start a new run)')
    add_training_options(parser)
    return parser


def train_one_epoch(epoch: int, training: Training, loader: DataLoader, run: RunFolder, watch: Watch) -> float:
    """Train the rest of an epoch, and return its mean loss. Saves checkpoints, and ends the program on request."""
    options, accelerator, progress = training.options, training.accelerator, run.progress
    training.set_train_mode()
    loader.set_epoch(epoch)
    loader.dataset.set_epoch(epoch)
    first = progress.updates * options.grad_accum_steps
    batches = skip_first_batches(loader, first) if first else loader
    loss_sum = torch.full((), progress.loss_sum, device=accelerator.device)
    without_positive = torch.zeros((), device=accelerator.device)
    bar = tqdm(batches, desc=f'epoch {epoch + 1}/{options.epochs}', initial=first, total=len(loader), leave=False)
    for step, (images, targets, indices) in enumerate(bar, start=first):
        seed_step(options.seed, epoch, step, accelerator.process_index)
        without_positive += ~(targets > 0).any()
        with accelerator.accumulate(training.model):
            loss = training.compute(images, targets)
            loss_sum += torch.where(loss.isfinite(), loss, 0.)
            watch.add(loss, indices)
            if step % 10 == 0:
                bar.set_postfix(loss=f'{loss.item():.4f}', lr=f'{training.lr:.2e}')
            if not accelerator.sync_gradients:
                continue
            progress.updates += 1
            healthy, stop = watch.check(f'epoch {epoch + 1}, update {progress.updates}, lr {training.lr:.2e}')
            if not healthy:
                _logger.warning('epoch %d: update %d is skipped, its loss is not finite', epoch + 1, progress.updates)
            training.update(progress.total_updates, apply=healthy)
        if step + 1 == len(loader):  # saved after the evaluation
            continue
        if stop or (options.checkpoint_every and progress.updates % options.checkpoint_every == 0):
            progress.loss_sum = accelerator.reduce(loss_sum, reduction='mean').item()
            run.save_checkpoint(training)
        if stop:
            stop_run(accelerator, run)
    count = int(accelerator.reduce(without_positive, reduction='sum'))
    if count:
        total = (len(loader) - first) * accelerator.num_processes
        _logger.warning('epoch %d: %d of %d batches have no positive label', epoch + 1, count, total)
    return accelerator.reduce(loss_sum, reduction='mean').item() / len(loader)


def evaluate_epoch(
        epoch: int, train_loss: float, training: Training, loader: DataLoader, run: RunFolder) -> Dict[str, Any]:
    """The row of an epoch in history.csv, with an evaluation if it is due."""
    options, accelerator = training.options, training.accelerator
    share_buffers(training.evaluated, accelerator)
    row = dict(epoch=epoch + 1, train_loss=train_loss, val_loss=None, mAP=None, CF1=None, OF1=None, lr=training.lr)
    text = f'train loss {train_loss:.4f}'
    if (epoch + 1) % options.val_interval == 0 or epoch + 1 == options.epochs:
        evaluation = evaluate(training.evaluated, loader, accelerator)
        scores = evaluation.scores
        row.update(
            val_loss=create_loss()(evaluation.logits, evaluation.targets).item(), mAP=scores.mAP, CF1=scores.all.CF1,
            OF1=scores.all.OF1)
        text += f'  val loss {row["val_loss"]:.4f}' + ''.join(f'  {k} {percent(row[k])}' for k in ('mAP', 'CF1', 'OF1'))
    training.finish_epoch(row['mAP'])
    num_bad = len(run.bad_samples.read())
    if num_bad:
        _logger.info('unreadable images so far: %d, see %s', num_bad, run.bad_samples.file)
    left = run.seconds_left(options.epochs)
    if left:
        text += f'  {tqdm_class.format_interval(left)} left' + (' at most' if options.patience else '')
    _logger.info('epoch %d/%d  %.0f s  %s', epoch + 1, options.epochs, run.seconds(), text)
    accelerator.log({k: v for k, v in row.items() if k != 'epoch' and v is not None}, step=epoch + 1)
    return row


def stop_run(accelerator: Accelerator, run: RunFolder) -> None:
    _logger.info('stopped by a signal; continue with --resume %s', run.path)
    accelerator.end_training()
    sys.exit(EXIT_STOPPED)


def log_start(recipe: str, options: TrainingOptions, run: RunFolder, network: Network) -> None:
    """What the run starts from, and its recipe."""
    start = f'starts from {starting_point(options)}' if run.checkpoint is None else f'continues {run.path}'
    size, val_size = (config['input_size'][1] for config in (network.train_config, network.data_config))
    backbone = f'learns at {options.backbone_lr:g}' if options.backbone_lr else 'is frozen'
    sizes = f'{size} px' + (f', evaluated at {val_size} px' if val_size != size else '')
    model = f'{options.model} over {options.backbone}' if options.backbone else options.model
    _logger.info(
        '%s %s. Recipe %s: data %s in %s, %s, the backbone %s, new layers learn at %g', model, start, recipe,
        options.data, printable(options.data_dir), sizes, backbone, options.lr)


def log_end(options: TrainingOptions, run: RunFolder, trained: bool) -> None:
    epochs = len(run.progress.history)
    if run.stopped_early(options):
        _logger.info(
            '%s after epoch %d of %d: no better mAP in %d epochs (--patience %d)',
            'stopped early' if trained else f'{run.path} had stopped early', epochs, options.epochs,
            run.epochs_without_gain(), options.patience)
    elif trained:
        _logger.info('finished %d epochs in %s', epochs, tqdm_class.format_interval(run.seconds()))
    else:
        _logger.info('%s was finished after %d epochs. To train on, raise --epochs', run.path, epochs)


def report_on_best(training: Training, run: RunFolder, val_set: MultiLabelDataset) -> None:
    """Evaluate the best model as a user would load it, on images."""
    options, accelerator = training.options, training.accelerator
    loader = create_val_loader(val_set, training)
    model = load_model(run.best).to(accelerator.device, memory_format=torch.channels_last)
    evaluation = evaluate(model, loader, accelerator, description='report')
    if accelerator.is_main_process:
        intervals, groups, history = evaluation.intervals(), evaluation.groups(), run.progress.history
        info = ReportInfo(
            title=f'{options.model} in {run.path}', data=options.data, weights=file_sha256(run.best / WEIGHTS_NAME),
            history=history)
        write_report(run.report, evaluation, info, intervals, groups)
        best = max((row for row in history if row['mAP'] is not None), key=lambda row: row['mAP'])
        text = format_scores(evaluation.scores, intervals, groups)
        _logger.info('best model, of epoch %d (chosen on these images):\n%s', best['epoch'], text)
        _logger.info('model %s, report %s', run.best, run.report / 'report.html')


def main(args: argparse.Namespace) -> None:
    options, run, resume, recipe = read_arguments(args)
    accelerator, options = create_accelerator(options, run.path)
    run.claim(accelerator, resume)
    set_seed(options.seed)
    train_set, val_set = open_splits(options, accelerator, run.division if run.checkpoint else None)
    run.load_progress(options, train_set.class_names, len(train_set))
    network = create_network(options, train_set, accelerator)
    set_transforms(train_set, val_set, network, options)
    run.open(options, accelerator, train=train_set, val=val_set)
    log_start(recipe, options, run, network)
    training = Training(network, train_set, options, accelerator)
    run.begin(training, train_set, val_set)
    atexit.register(kill_workers)
    train_loader, val_loader = create_loaders(
        train_set, val_set, training, Path(options.cache_dir or run.path.parent / 'features'))

    with StopRequest() as stop:
        watch = Watch(accelerator, stop, options.non_finite, train_set.images.name)
        updates_before = run.progress.total_updates
        for epoch in run.remaining_epochs(options):
            with memory_errors(training.images_at_once):
                loss = train_one_epoch(epoch, training, train_loader, run, watch)
            run.finish_epoch(training, evaluate_epoch(epoch, loss, training, val_loader, run))
            if watch.check()[1]:
                stop_run(accelerator, run)
    log_end(options, run, trained=run.progress.total_updates > updates_before)
    if options.report:
        report_on_best(training, run, val_set)
    accelerator.wait_for_everyone()  # gloo may hang in processes that leave later
    accelerator.end_training()


if __name__ == '__main__':
    run_program(build_parser(), main)
