#!/usr/bin/env python3
"""Evaluate a trained model: mAP and CP, CR, CF1, OP, OR, OF1, for All and Top-3.

    python train_scripts/validate.py runs/scenes
    accelerate launch train_scripts/validate.py hf-hub:REPO --data coco2014 --data-dir DIR --report report
"""
import argparse
import json
from pathlib import Path

from accelerate import Accelerator
from timm.data import create_transform, resolve_model_data_config
from torch.utils.data import DataLoader

from timm_fan import InputError
from timm_fan.data import SOURCES, create_dataset
from timm_fan.errors import exit_on_input_error
from timm_fan.evaluation import predict_logits
from timm_fan.metrics import evaluate_logits
from timm_fan.models import label_names, load_model
from timm_fan.report import format_scores, write_report


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('model', help='run or model folder of train.py, or hf-hub:REPO')
    add('--data', default='scenes', help=f'NAME[:WHERE][?OPTION=VALUE], one of {", ".join(SOURCES)} (default: scenes)')
    add('--data-dir', default='data', help='folder of the data set (default: %(default)s)')
    add('--split', default='val', choices=['train', 'val'])
    add('--threshold', type=float, default=0.5, help='probability above which a label is predicted')
    add('--top3-always', action='store_true', help='older Top-3 protocol: three labels an image, whatever their scores')
    add('--batch-size', type=int, default=32, help='images a process')
    add('--workers', type=int, default=2)
    add('--mixed-precision', default='no', choices=['no', 'bf16', 'fp16'])
    add('--report', help='write the report into this folder')
    add('--json', action='store_true', help='print all figures as JSON')
    return parser.parse_args()


def check_class_names(model_names, data_names) -> None:
    if len(model_names) != len(data_names):
        raise InputError(
            f'The model has {len(model_names)} classes, the data {len(data_names)}: give the --data it was trained on.')
    for i, (model_name, data_name) in enumerate(zip(model_names, data_names)):
        if model_name != data_name and model_name != str(i):
            raise InputError(f"Class {i} is '{model_name}' in the model, '{data_name}' in the data: not its classes.")


def main() -> None:
    args = parse_args()
    if not 0 < args.threshold < 1:
        raise InputError(f'--threshold must be between 0 and 1, got {args.threshold}.')
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    with accelerator.main_process_first():
        model = load_model(args.model)
        dataset = create_dataset(
            args.data, args.data_dir, args.split, create_transform(**resolve_model_data_config(model)))
    check_class_names(label_names(model), dataset.class_names)

    loader = accelerator.prepare(DataLoader(dataset, args.batch_size, num_workers=args.workers))
    logits, targets = predict_logits(model.to(accelerator.device), loader, accelerator)
    scores = evaluate_logits(logits, targets, dataset.class_names, args.threshold, not args.top3_always)
    if accelerator.is_main_process:
        print(json.dumps(scores.to_dict(), indent=2) if args.json else format_scores(scores))
        if args.report:
            write_report(Path(args.report), scores, logits, dataset, threshold=args.threshold)
    accelerator.end_training()


if __name__ == '__main__':
    with exit_on_input_error():
        main()
