#!/usr/bin/env python3
"""Measure what a FAN costs, next to its backbone and other heads, and which backbones it works with.

    python train_scripts/benchmark.py model fan_resnet101                 # time, memory and multiply-adds
    python train_scripts/benchmark.py model fan_resnet101 --device cuda --dtypes bf16 --engines eager compiled
    python train_scripts/benchmark.py data PHOTOGRAPHS                    # the input pipeline
    python train_scripts/benchmark.py predict                             # predict.py, its parts, and others
    python train_scripts/benchmark.py train --data table --data-dir DIR   # epochs over a frozen backbone
    python train_scripts/benchmark.py metrics                             # the evaluation
    python train_scripts/benchmark.py metrics --binned-images 1000000     # its memory, in bins
    python train_scripts/benchmark.py backbones                           # one model of every timm architecture module
    python train_scripts/benchmark.py backbones --all --max-params 30     # every model of up to 30 M parameters

Contenders run in turn in one process, so that whatever slows the machine down affects all of them. Results are medians.
"""
import argparse

from command_line import HelpFormatter, create_parser, run_program

from benchmarks import backbones, data, metrics, model, predict, train

from timm_fan import InputError

COMMANDS = {
    'model': model, 'data': data, 'predict': predict, 'train': train, 'metrics': metrics, 'backbones': backbones}
# options that must be at least 1; for others 0 means none
COUNTS = {'repeats', 'batch_size', 'train_batch_size', 'img_size', 'num_classes', 'images', 'classes', 'threads',
          'short_side', 'binned_classes'}


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(
            name, help=command.__doc__, description=command.__doc__, formatter_class=HelpFormatter, allow_abbrev=False))
    return parser


def main(args: argparse.Namespace) -> None:
    for key, value in vars(args).items():  # before anything is measured that could not be saved
        least = 1 if key in COUNTS else 0
        if isinstance(value, int) and value < least:
            raise InputError(f'`{key}` must be at least {least}, got {value}.')
        if key in ('results', 'table') and value is not None:
            if value.is_dir():
                raise InputError(f'`{key}={value}` is a folder: give a file.')
            value.parent.mkdir(parents=True, exist_ok=True)
    COMMANDS[args.command].run(args)


if __name__ == '__main__':
    run_program(build_parser(), main)
