#!/usr/bin/env python3
"""Train a multi-label classifier.

    python train_scripts/train.py                                               # the drawn scenes, on a CPU
    accelerate launch train_scripts/train.py --config coco2014 --data-dir DIR   # one or many GPUs

Options come from the command line, then from a YAML file (--config, by default train_scripts/configs/scenes.yaml), then
from the defaults below.
The README in this folder describes data sources, recipes and the files in a run folder.
"""
import argparse
import atexit
import logging
import sys
from typing import Any, Dict

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import set_seed, tqdm
from command_line import create_parser, run_program
from torch.utils.data import DataLoader
from train_options import add_training_options, read_arguments

from timm_fan.data import seed_step
from timm_fan.evaluation import evaluate, share_buffers
from timm_fan.hub import WEIGHTS_NAME
from timm_fan.models import load_model
from timm_fan.processes import StopRequest, kill_workers
from timm_fan.provenance import file_sha256
from timm_fan.report import ReportInfo, format_scores, percent, write_report
from timm_fan.training import (
    RunFolder,
    Training,
    TrainingOptions,
    Watch,
    create_accelerator,
    create_loaders,
    create_loss,
    create_network,
    memory_errors,
    open_splits,
)

_logger = logging.getLogger('timm_fan.train')

EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped by a signal, the state is saved


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    add = parser.add_argument
    add('--config', help='name in train_scripts/configs, or YAML file (default: scenes)')
    add('--output', help='run folder (default: runs/CONFIG)')
    add('--resume', nargs='?', const='auto', metavar='RUN',
        help='resume this run with the options in its config.yaml; without a value, resume --output if it is a run')
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
    _logger.info('epoch %d/%d  %s  %.0f s', epoch + 1, options.epochs, text, run.seconds())
    accelerator.log({k: v for k, v in row.items() if k != 'epoch' and v is not None}, step=epoch + 1)
    return row


def stop_run(accelerator: Accelerator, run: RunFolder) -> None:
    _logger.info('stopped by a signal; continue with --resume %s', run.path)
    accelerator.end_training()
    sys.exit(EXIT_STOPPED)


def report_on_best(options: TrainingOptions, run: RunFolder, loader: DataLoader, accelerator: Accelerator) -> None:
    """Evaluate the best model as a user would load it."""
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
    options, run, resume = read_arguments(args)
    accelerator, options = create_accelerator(options, run.path)
    run.claim(accelerator, resume)
    set_seed(options.seed)
    train_set, val_set = open_splits(options, accelerator)
    run.load_progress(options, train_set.class_names, len(train_set))
    network = create_network(options, train_set, accelerator)
    train_loader, val_loader = create_loaders(train_set, val_set, network, options, accelerator)
    run.open(options, accelerator, train=train_set, val=val_set)
    training = Training(network, train_set, options, accelerator)
    run.begin(training, train_set, val_set)

    atexit.register(kill_workers)
    with StopRequest() as stop:
        watch = Watch(accelerator, stop, options.non_finite, train_set.images.name)
        for epoch in run.remaining_epochs(options.epochs):
            with memory_errors(training.images_at_once):
                loss = train_one_epoch(epoch, training, train_loader, run, watch)
            run.finish_epoch(training, evaluate_epoch(epoch, loss, training, val_loader, run))
            if watch.check()[1]:
                stop_run(accelerator, run)
    if options.report:
        report_on_best(options, run, val_loader, accelerator)
    accelerator.wait_for_everyone()  # gloo may hang in processes that leave later
    accelerator.end_training()


if __name__ == '__main__':
    run_program(build_parser(), main)
