#!/usr/bin/env python3
"""Measure what FAN costs, beside its backbone and its rivals, and what it works on.

    python train_scripts/benchmark.py model fan_resnet101                 # time, memory and multiply-adds
    python train_scripts/benchmark.py model fan_resnet101 --device cuda --dtypes bf16 --engines eager compiled
    python train_scripts/benchmark.py data ../shared/coco_mini/val2014    # the input pipeline
    python train_scripts/benchmark.py metrics                             # the evaluation
    python train_scripts/benchmark.py metrics --stream-images 1000000     # its memory, in bins
    python train_scripts/benchmark.py backbones                           # one model of every timm architecture module
    python train_scripts/benchmark.py backbones --all --max-params 30     # every model up to 30 M parameters

Contenders run in turn within one process, so that what slows the machine slows all; figures are medians.
"""
import argparse

from benchmarks import backbones, data, metrics, model

from timm_fan import InputError
from timm_fan.errors import exit_on_input_error

COMMANDS = {'model': model, 'data': data, 'metrics': metrics, 'backbones': backbones}
# options that nothing can be measured without; of others 0 means none
COUNTS = {'repeats', 'batch_size', 'train_batch_size', 'img_size', 'num_classes', 'images', 'classes', 'threads',
          'short_side', 'stream_classes'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.__doc__, description=command.__doc__))
    args = parser.parse_args()
    for key, value in vars(args).items():  # before anything is measured that could not be kept
        least = 1 if key in COUNTS else 0
        if isinstance(value, int) and value < least:
            raise InputError(f'--{key.replace("_", "-")} must be at least {least}, got {value}.')
        if key in ('results', 'table') and value is not None:
            if value.is_dir():
                raise InputError(f'--{key} {value} is a folder: name a file.')
            value.parent.mkdir(parents=True, exist_ok=True)
    COMMANDS[args.command].run(args)


if __name__ == '__main__':
    with exit_on_input_error():
        main()
