#!/usr/bin/env python3
"""Evaluate a trained model: mAP and CP, CR, CF1, OP, OR, OF1, for All and Top-3.

    python train_scripts/validate.py runs/scenes
    accelerate launch train_scripts/validate.py hf-hub:REPO --data coco2014 --data-dir DIR --report report
    python train_scripts/validate.py runs/scenes --choose-thresholds class-f1
    python train_scripts/validate.py --compare runs/one runs/other
"""
import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Tuple

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, IterableDataset

from timm_fan import InputError
from timm_fan.data import SOURCES, MultiLabelDataset, collate
from timm_fan.errors import exit_on_input_error
from timm_fan.evaluation import dataset_for_model, predict_binned, predict_logits
from timm_fan.groups import score_groups
from timm_fan.hub import WEIGHTS_NAME
from timm_fan.metrics import evaluate_logits
from timm_fan.models import load_model, model_folder, model_thresholds, save_thresholds
from timm_fan.provenance import file_sha256
from timm_fan.report import format_binned, format_comparison, format_scores, write_report
from timm_fan.thresholds import POLICIES, choose_thresholds, parse_policy
from timm_fan.uncertainty import bootstrap, compare


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('model', nargs='?', help='run or model folder of train.py, or hf-hub:REPO')
    add('--compare', nargs=2, metavar=('A', 'B'), help='say whether B differs from A by more than the choice of images')
    add('--data', default='scenes', help=f'NAME[:WHERE][?OPTION=VALUE], one of {", ".join(SOURCES)} (default: scenes)')
    add('--data-dir', default='data', help='folder of the data set (default: %(default)s)')
    add('--split', default='val', choices=['train', 'val'])
    add('--threshold', type=float, help="probability above which a label is predicted (default: the model's, or 0.5)")
    add('--choose-thresholds', metavar='POLICY',
        help=f'choose them on this split and keep them in the model folder: {", ".join(POLICIES)}')
    add('--top3-always', action='store_true', help='older Top-3 protocol: three labels an image, whatever their scores')
    add('--bootstrap', type=int, default=1000, help='resamples for the 95%% intervals, 0 for none (default: 1000)')
    add('--binned', action='store_true', help='constant memory for any number of images: mAP within stated bounds')
    add('--batch-size', type=int, default=32, help='images a process')
    add('--workers', type=int, default=2)
    add('--mixed-precision', default='no', choices=['no', 'bf16', 'fp16'])
    add('--report', help='write the report into this folder')
    add('--json', action='store_true', help='print all figures as JSON')
    args = parser.parse_args()
    if (args.model is None) == (args.compare is None):
        parser.error('give one model, or --compare A B')
    without = dict(
        compare=('binned', 'choose_thresholds', 'report', 'top3_always'),
        binned=('choose_thresholds', 'report', 'json'), choose_thresholds=('threshold',))
    for option, others in without.items():
        for other in others:
            if getattr(args, option) and getattr(args, other):
                parser.error(f'--{option.replace("_", "-")} goes without --{other.replace("_", "-")}')
    if args.batch_size < 1 or args.workers < 0 or args.bootstrap < 0:
        parser.error('--batch-size must be at least 1, --workers and --bootstrap at least 0')
    return args


def open_model(source: str, args: argparse.Namespace, accelerator: Accelerator):
    """Model, its data set with the model's transform, the prepared loader, and the thresholds to use."""
    with accelerator.main_process_first():
        model = load_model(source)
        dataset = dataset_for_model(model, args.data, args.data_dir, args.split)
    # of a stream more workers would each give as many images as all together should
    workers = min(args.workers, 1) if isinstance(dataset, IterableDataset) else args.workers
    loader = accelerator.prepare(DataLoader(dataset, args.batch_size, num_workers=workers, collate_fn=collate))
    threshold = args.threshold if args.threshold is not None else model_thresholds(model)
    return model.to(accelerator.device, memory_format=torch.channels_last), dataset, loader, threshold


def predict(source: str, args: argparse.Namespace, accelerator: Accelerator) -> Tuple[
        torch.Tensor, torch.Tensor, MultiLabelDataset, Any]:
    """Logits, targets, the data set, and the thresholds to use."""
    model, dataset, loader, threshold = open_model(source, args, accelerator)
    logits, targets = predict_logits(model, loader, accelerator)
    return logits, targets, dataset, threshold


def compare_models(args: argparse.Namespace, accelerator: Accelerator) -> None:
    first, second = (predict(source, args, accelerator) for source in args.compare)
    if not torch.equal(first[1], second[1]):
        raise InputError('The models name the classes in different orders, or an image was read once and not again.')
    found = compare(first[0], second[0], first[1], first[3], second[3], samples=args.bootstrap or 1000)
    if accelerator.is_main_process:
        print(json.dumps({k: asdict(v) for k, v in found.items()}, indent=2) if args.json
              else format_comparison(*args.compare, found, len(first[0])))


def main() -> None:
    args = parse_args()
    if args.threshold is not None and not 0 < args.threshold < 1:
        raise InputError(f'--threshold must be between 0 and 1, got {args.threshold}.')
    if args.choose_thresholds and not Path(args.model or '').is_dir():
        raise InputError('--choose-thresholds keeps them in a model folder: give a folder, not a name.')
    if args.choose_thresholds:
        parse_policy(args.choose_thresholds)  # a wrong one must not cost an evaluation
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    if args.compare:
        compare_models(args, accelerator)
    elif args.binned:
        model, _, loader, threshold = open_model(args.model, args, accelerator)
        scores = predict_binned(model, loader, accelerator, threshold, not args.top3_always)
        if accelerator.is_main_process:
            print(format_binned(scores))
    else:
        logits, targets, dataset, threshold = predict(args.model, args, accelerator)
        if accelerator.is_main_process:
            if args.choose_thresholds:
                threshold = choose_thresholds(logits, targets, args.choose_thresholds)
            scores = evaluate_logits(logits, targets, dataset.class_names, threshold, not args.top3_always)
            if args.choose_thresholds:
                save_thresholds(args.model, threshold, args.choose_thresholds)
            intervals = bootstrap(logits, targets, threshold, args.bootstrap) if args.bootstrap else {}
            groups = score_groups(scores, logits, targets, dataset, threshold)
            if args.json:
                extra = dict(intervals={k: asdict(v) for k, v in intervals.items()}, groups=asdict(groups))
                print(json.dumps({**scores.to_dict(), **extra}, indent=2))
            else:
                print(format_scores(scores, intervals, groups))
            if args.report:
                write_report(
                    args.report, scores, logits, targets, dataset, threshold=threshold, intervals=intervals,
                    groups=groups, data=args.data, title=args.model, split=args.split,
                    weights=file_sha256(model_folder(args.model) / WEIGHTS_NAME) if Path(args.model).is_dir() else None)
    accelerator.wait_for_everyone()  # gloo may hang where the others have left already
    accelerator.end_training()


if __name__ == '__main__':
    with exit_on_input_error():
        main()
