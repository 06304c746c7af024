#!/usr/bin/env python3
"""Inspect a data source before training on it: classes, counts, empty images, unknown labels, duplicates, overlap.

    python train_scripts/inspect_data.py --data coco2014 --data-dir /data/coco --figures figures
    python train_scripts/inspect_data.py --data 'table:labels.csv?val=0.2' --data-dir /data/mine

At the end, it prints the command that trains on the data.
"""
import argparse
import json
import shlex
from dataclasses import asdict
from typing import Any, Dict, List

from command_line import add_data_arguments, create_parser, run_program

from timm_fan.data import MultiLabelDataset, create_splits
from timm_fan.data.statistics import DatasetStatistics, describe, doubtful_labels, scan_images
from timm_fan.files import printable
from timm_fan.metrics import percent
from timm_fan.report import draw_statistics


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    add = parser.add_argument
    add_data_arguments(parser)
    add('--quick', action='store_true', help='only read annotations, without a search for bad images and duplicates')
    add('--figures', metavar='DIR', help='plot the statistics of the training split into this folder')
    add('--json', action='store_true', help='print everything as JSON')
    return parser


def images_report(datasets: Dict[str, MultiLabelDataset]) -> Dict[str, Any]:
    """Unreadable images and duplicates, within and between the splits."""
    groups, unreadable = {}, {}
    for split, dataset in datasets.items():
        groups[split], unreadable[split] = scan_images(dataset)
    train, val = groups['train'], groups['val']
    return dict(
        unreadable=unreadable,
        duplicates={split: [names for names in found.values() if len(names) > 1] for split, found in groups.items()},
        overlap=[[train[h][0], val[h][0]] for h in sorted(train.keys() & val.keys())])


def print_statistics(split: str, statistics: DatasetStatistics) -> None:
    total = sum(n * k for n, k in enumerate(statistics.labels_per_image))
    print(f'{split}: {statistics.num_images} images, {len(statistics.class_names)} classes,'
          f' {total / statistics.num_images:.2f} labels per image,'
          f' {statistics.labels_per_image[0]} images without a label, {sum(statistics.unknown)} unknown labels,'
          f' {statistics.num_boxes} boxes')
    without = [n for n, k in zip(statistics.class_names, statistics.present) if not k]
    if without:
        print(f'{split}: no image of {len(without)} classes: {", ".join(without[:20])}')


def print_classes(train: DatasetStatistics, val: DatasetStatistics, shown: int = 100) -> None:
    """Print counts of the most frequent classes."""
    print(f'\n{"class":<24}{"train":>8}{"val":>8}{"unknown":>9}{"scale %":>9}')
    for i in sorted(range(len(train.class_names)), key=lambda i: -train.present[i])[:shown]:
        scale = percent(train.scales[i], '9.1f') if train.scales else ''
        print(f'{train.class_names[i]:<24}{train.present[i]:>8}{val.present[i]:>8}'
              f'{train.unknown[i] + val.unknown[i]:>9}{scale}')
    if len(train.class_names) > shown:
        print(f'... and {len(train.class_names) - shown} rarer classes (--json lists them)')


def print_images(report: Dict[str, Any]) -> None:
    def some(lines: List[str]) -> None:
        for line in lines[:10]:
            print(f'  {printable(line)}')
        if len(lines) > 10:
            print(f'  ... and {len(lines) - 10} more (--json lists them)')

    print()
    for split in ('train', 'val'):
        print(f'{split}: {len(report["unreadable"][split])} unreadable images')
        some([f'{name}: {reason}' for name, reason in report['unreadable'][split].items()])
        print(f'{split}: {len(report["duplicates"][split])} groups of identical images')
        some([', '.join(group) for group in report['duplicates'][split]])
    print(f'{len(report["overlap"])} images are in both splits')
    some([' = '.join(pair) for pair in report['overlap']])


def print_command(args: argparse.Namespace) -> None:
    config = '' if args.data == 'scenes' else ' --config photos'
    print(f'\nTrain on it: python train_scripts/train.py{config} --data {shlex.quote(args.data)}'
          f' --data-dir {shlex.quote(args.data_dir)}')


def main(args: argparse.Namespace) -> None:
    train, val = create_splits(args.data, args.data_dir)
    datasets = dict(train=train, val=val)
    statistics = {split: describe(dataset) for split, dataset in datasets.items()}
    warnings = doubtful_labels(train)
    report = {} if args.quick else images_report(datasets)
    if args.json:
        print(json.dumps({**{k: asdict(s) for k, s in statistics.items()}, 'warnings': warnings, **report}, indent=2))
    else:
        for split, found in statistics.items():
            print_statistics(split, found)
        print_classes(**statistics)
        print(*(f'\nwarning: {warning}' for warning in warnings), sep='')
        if report:
            print_images(report)
        print_command(args)
    if args.figures:
        draw_statistics(args.figures, train)


if __name__ == '__main__':
    run_program(build_parser(), main)
