#!/usr/bin/env python3
"""Look at a data source before training on it: classes, counts, empty images, unknown labels, duplicates, overlap.

    python train_scripts/inspect_data.py --data coco2014 --data-dir /data/coco --figures figures
    python train_scripts/inspect_data.py --data 'table:labels_{split}.csv' --data-dir /data/mine
"""
import argparse
import json
import sys
from typing import Any, Dict, List

from timm_fan import InputError
from timm_fan.data import SOURCES, MultiLabelDataset, create_dataset
from timm_fan.errors import exit_on_input_error
from timm_fan.statistics import DatasetStatistics, describe, draw_statistics, scan_images


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--data', default='scenes', help=f'NAME[:WHERE][?OPTION=VALUE], one of {", ".join(SOURCES)} (default: scenes)')
    add('--data-dir', default='data', help='folder of the data set (default: %(default)s)')
    add('--quick', action='store_true', help='annotations alone: no search for duplicates and unreadable images')
    add('--figures', help='draw the statistics of the training split into this folder (the paper\'s Figure 1)')
    add('--json', action='store_true', help='print everything as JSON')
    return parser.parse_args()


def images_report(datasets: Dict[str, MultiLabelDataset]) -> Dict[str, Any]:
    """Unreadable images and duplicates, within and between the splits."""
    scans = {split: scan_images(dataset) for split, dataset in datasets.items()}
    report: Dict[str, Any] = dict(
        unreadable={split: scan.unreadable for split, scan in scans.items()},
        duplicates={
            split: [[datasets[split].images.name(i) for i in group] for group in scan.hashes.values() if len(group) > 1]
            for split, scan in scans.items()})
    train, val = scans['train'].hashes, scans['val'].hashes
    report['overlap'] = [
        [datasets['train'].images.name(train[h][0]), datasets['val'].images.name(val[h][0])]
        for h in sorted(train.keys() & val.keys())]
    return report


def print_statistics(split: str, statistics: DatasetStatistics) -> None:
    total = sum(n * k for n, k in enumerate(statistics.labels_per_image))
    print(f'{split}: {statistics.num_images} images, {len(statistics.class_names)} classes,'
          f' {total / statistics.num_images:.2f} labels an image, {statistics.num_empty} images without a label,'
          f' {sum(statistics.unknown)} unknown labels, {statistics.num_boxes} boxes')
    without = [n for n, k in zip(statistics.class_names, statistics.present) if not k]
    if without:
        print(f'{split}: no image of {len(without)} classes: {", ".join(without[:20])}')


def print_classes(statistics: Dict[str, DatasetStatistics]) -> None:
    train, val = statistics['train'], statistics['val']
    print(f'\n{"class":<24}{"train":>8}{"val":>8}{"unknown":>9}{"scale %":>9}')
    for i in sorted(range(len(train.class_names)), key=lambda i: -train.present[i]):
        scale = train.scales[i] if train.scales else None
        print(f'{train.class_names[i]:<24}{train.present[i]:>8}{val.present[i]:>8}'
              f'{train.unknown[i] + val.unknown[i]:>9}' + (f'{100 * scale:>9.1f}' if scale is not None else ''))


def print_images(report: Dict[str, Any]) -> None:
    def some(lines: List[str]) -> None:
        for line in lines[:20]:
            print(f'  {line}')
        if len(lines) > 20:
            print(f'  ... and {len(lines) - 20} more (--json lists them)')

    print()
    for split in ('train', 'val'):
        print(f'{split}: {len(report["unreadable"][split])} unreadable images')
        some([f'{name}: {reason}' for name, reason in report['unreadable'][split].items()])
        print(f'{split}: {len(report["duplicates"][split])} groups of identical images')
        some([', '.join(group) for group in report['duplicates'][split]])
    print(f'{len(report["overlap"])} images are in both splits')
    some([' = '.join(pair) for pair in report['overlap']])


def main() -> None:
    args = parse_args()
    datasets: Dict[str, MultiLabelDataset] = {}
    problems: List[str] = []
    for split in ('train', 'val'):
        names = datasets['train'].class_names if 'train' in datasets else None
        try:
            datasets[split] = create_dataset(args.data, args.data_dir, split, class_names=names)
        except InputError as error:
            if not error.problems:
                raise
            problems += [f'{split}: {p}' for p in error.problems]
    if problems:
        sys.stdout.write('\n'.join(problems) + '\n')
        raise InputError(f'{args.data}: {len(problems)} problems, listed above.')
    if datasets['train'].class_names != datasets['val'].class_names:
        raise InputError(f'{args.data}: the training and validation files list different classes.')
    if not all(isinstance(d, MultiLabelDataset) for d in datasets.values()):
        raise InputError('A stream cannot be inspected: leave streaming=true out.')
    statistics = {split: describe(dataset) for split, dataset in datasets.items()}
    report = {} if args.quick else images_report(datasets)
    if args.json:
        print(json.dumps({**{k: s.to_dict() for k, s in statistics.items()}, **report}, indent=2))
    else:
        for split, found in statistics.items():
            print_statistics(split, found)
        print_classes(statistics)
        if report:
            print_images(report)
    if args.figures:
        draw_statistics(args.figures, datasets['train'])


if __name__ == '__main__':
    with exit_on_input_error():
        main()
