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

from timm_fan.errors import exit_on_input_error

COMMANDS = {'model': model, 'data': data, 'metrics': metrics, 'backbones': backbones}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.__doc__, description=command.__doc__))
    args = parser.parse_args()
    COMMANDS[args.command].run(args)


if __name__ == '__main__':
    with exit_on_input_error():
        main()
