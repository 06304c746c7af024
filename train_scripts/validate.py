#!/usr/bin/env python3
"""Evaluate a trained model: mAP and CP, CR, CF1, OP, OR, OF1, for all labels and Top-3.

    python train_scripts/validate.py runs/scenes
    accelerate launch train_scripts/validate.py hf-hub:REPO --data coco2014 --data-dir DIR --report report
    python train_scripts/validate.py runs/scenes --choose-thresholds class-f1
    python train_scripts/validate.py --compare runs/one runs/other
"""
import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Tuple

from command_line import add_data_arguments, create_parser, run_program

import torch
import torch.nn as nn
from accelerate import Accelerator
from torch.utils.data import DataLoader

from timm_fan import InputError
from timm_fan.data import MultiLabelDataset, create_loader
from timm_fan.evaluation import Evaluation, dataset_for_model, evaluate, evaluate_binned
from timm_fan.hub import WEIGHTS_NAME
from timm_fan.metrics import (
    POLICIES,
    choose_thresholds,
    compare,
    format_binned,
    format_comparison,
    format_scores,
    parse_policy,
)
from timm_fan.models import load_model, model_folder, model_thresholds, save_thresholds
from timm_fan.processes import DEVICES, share_cores
from timm_fan.provenance import file_sha256
from timm_fan.report import ReportInfo, write_report
from timm_fan.training import RunFolder, accelerator_on
from timm_fan.tta import TTA, with_tta

# options that exclude others
EXCLUDES = dict(
    compare=('binned', 'choose_thresholds', 'report', 'top3_always'),
    binned=('choose_thresholds', 'report', 'json'),
    choose_thresholds=('threshold',))


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    add = parser.add_argument
    add('model', nargs='?', help='run or model folder, or hf-hub:REPO')
    add('--compare', nargs=2, metavar=('A', 'B'),
        help='test whether B differs from A by more than the choice of images explains')
    add_data_arguments(parser, split=True, of_run=True)
    add('--threshold', type=float,
        help='probability above which a label is predicted (default: that of the model, or 0.5)')
    add('--choose-thresholds', metavar='POLICY',
        help='choose thresholds on this split, and store them in the model folder, for predictions with the same --tta:'
        f' {", ".join(POLICIES)} (default: choose none)')
    add('--tta', default='none', choices=TTA,
        help='flip: average the logits of each image and its mirror image, in twice the time (default: %(default)s)')
    add('--top3-always', action='store_true', help='older Top-3 protocol: always three labels per image')
    add('--bootstrap', type=int, default=1000, help='resamples for the 95%% intervals, 0 for none (default: 1000)')
    add('--binned', action='store_true', help='constant memory for any number of images, with bounds for mAP')
    add('--device', choices=DEVICES, help='default: the first of these that Accelerate finds')
    add('--batch-size', type=int, default=32, help='images per process (default: %(default)s)')
    add('--workers', type=int, default=2,
        help='data loading processes per process, at most one per core (default: %(default)s)')
    add('--mixed-precision', default='no', choices=['no', 'bf16', 'fp16'], help='(default: %(default)s)')
    add('--report', metavar='DIR', help='write a report to this folder')
    add('--json', action='store_true', help='print all scores as JSON')
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    if (args.model is None) == (args.compare is None):
        raise InputError('Pass one model, or two with `compare`.')
    for option, others in EXCLUDES.items():
        for other in others:
            if getattr(args, option) and getattr(args, other):
                raise InputError(f'`{option}` excludes `{other}`.')
    if args.batch_size < 1 or args.workers < 0 or args.bootstrap < 0:
        raise InputError('`batch_size` must be at least 1, `workers` and `bootstrap` at least 0.')
    if args.compare and not args.bootstrap:
        raise InputError('`compare` requires resamples: `bootstrap` must be at least 1.')
    if args.threshold is not None and not 0 < args.threshold < 1:
        raise InputError(f'`threshold` must be between 0 and 1, got {args.threshold}.')
    if args.choose_thresholds:
        parse_policy(args.choose_thresholds)
        if not Path(args.model).is_dir():
            raise InputError('`choose_thresholds` stores them in a model folder: give a folder, not a name.')


def choose_data(args: argparse.Namespace) -> None:
    """Set the data to that of the run, unless it is given, and `division` to the run's record of its splits."""
    source = Path(args.model or args.compare[0])
    run = next((run for run in map(RunFolder, (source, source.parent)) if run.config.is_file() and run.is_run()), None)
    options = run.read_options() if run else {}
    if args.data is None:
        args.data, args.data_dir = options.get('data', 'scenes'), args.data_dir or options.get('data_dir')
    args.data_dir = args.data_dir or 'data'
    args.division = run.division if run and args.data == options.get('data') else None


def open_model(source: str, args: argparse.Namespace, accelerator: Accelerator) -> Tuple[nn.Module, DataLoader, Any]:
    """The model, the loader of its data, and the thresholds to apply."""
    with accelerator.main_process_first():
        model = load_model(source)
        dataset = dataset_for_model(model, args.data, args.data_dir, args.split, args.division)
    loader = accelerator.prepare(create_loader(dataset, args.batch_size, share_cores(args.workers)))
    threshold = args.threshold if args.threshold is not None else model_thresholds(model)
    if args.threshold is None and model.thresholds and not args.choose_thresholds and accelerator.is_main_process:
        print(stored_thresholds(source, model, dataset, args.tta), file=sys.stderr)
    model = with_tta(model, args.tta).to(accelerator.device, memory_format=torch.channels_last)
    return model, loader, threshold


def stored_thresholds(source: str, model: nn.Module, dataset: MultiLabelDataset, tta: str) -> str:
    """Where the thresholds of a model come from."""
    chosen = model.thresholds_chosen_on
    text = f'thresholds of {source}: {model.threshold_policy or "policy unknown"}'
    if not chosen:
        return text
    text += ', chosen on {data}, split {split} ({images} images), --tta {tta}'.format(**chosen)
    if chosen['fingerprint'] == dataset.fingerprint():
        text += '. These are the images of this evaluation: CF1 and OF1 are optimistic'
    if chosen['tta'] != tta:
        text += f'. They may not fit --tta {tta}: choose them again'
    return text


def evaluate_model(source: str, args: argparse.Namespace, accelerator: Accelerator) -> Evaluation:
    model, loader, threshold = open_model(source, args, accelerator)
    return evaluate(model, loader, accelerator, threshold, not args.top3_always)


def compare_models(args: argparse.Namespace, accelerator: Accelerator) -> None:
    first, second = (evaluate_model(source, args, accelerator) for source in args.compare)
    if not torch.equal(first.targets, second.targets):
        raise InputError('The models have different orders of the classes, or an image could only be read once.')
    found = compare(
        first.logits, second.logits, first.targets, first.threshold, second.threshold, args.bootstrap)
    if accelerator.is_main_process:
        print(json.dumps({k: asdict(v) for k, v in found.items()}, indent=2) if args.json
              else format_comparison(*args.compare, found, len(first.logits)))


def report_on_model(args: argparse.Namespace, accelerator: Accelerator) -> None:
    evaluation = evaluate_model(args.model, args, accelerator)
    if not accelerator.is_main_process:
        return
    note = ''
    if args.choose_thresholds:
        threshold = choose_thresholds(evaluation.logits, evaluation.targets, args.choose_thresholds)
        evaluation = Evaluation.of(
            evaluation.dataset, evaluation.logits, evaluation.targets, threshold, not args.top3_always)
        chosen_on = dict(
            data=args.data, split=args.split, images=len(evaluation.dataset),
            fingerprint=evaluation.dataset.fingerprint(), tta=args.tta)
        file = save_thresholds(args.model, threshold, args.choose_thresholds, chosen_on)
        note = (
            f'thresholds by {args.choose_thresholds} on {args.data} in {args.data_dir}, split {args.split}'
            f' ({len(evaluation.dataset)} images), --tta {args.tta}, saved in {file}')
        print(note, file=sys.stderr)
    intervals, groups = evaluation.intervals(args.bootstrap), evaluation.groups()
    if args.json:
        print(json.dumps(evaluation.to_dict(intervals, groups), indent=2))
    else:
        print(format_scores(evaluation.scores, intervals, groups))
    if args.report:
        weights = file_sha256(model_folder(args.model) / WEIGHTS_NAME) if Path(args.model).is_dir() else None
        info = ReportInfo(args.model, args.data, args.split, weights, note)
        write_report(args.report, evaluation, info, intervals, groups)


def main(args: argparse.Namespace) -> None:
    check_arguments(args)
    choose_data(args)
    accelerator = accelerator_on(args.device, mixed_precision=args.mixed_precision)
    if args.compare:
        compare_models(args, accelerator)
    elif args.binned:
        model, loader, threshold = open_model(args.model, args, accelerator)
        scores = evaluate_binned(model, loader, accelerator, threshold, not args.top3_always)
        if accelerator.is_main_process:
            print(format_binned(scores))
    else:
        report_on_model(args, accelerator)
    accelerator.wait_for_everyone()  # gloo may hang in processes that leave later
    accelerator.end_training()


if __name__ == '__main__':
    run_program(build_parser(), main)
