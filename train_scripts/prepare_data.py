#!/usr/bin/env python3
"""Write a data set once as shards of smaller images, with labels and boxes, that decode in a fraction of the time.

    python train_scripts/prepare_data.py --data coco2014 --data-dir coco --output coco_256 --short-side 256
    python train_scripts/train.py --config coco2014 --img-size 224 --data 'shards:{split}-*.tar' --data-dir coco_256

Choose a short side somewhat above the training size, because random crops enlarge what they cut out. Boxes shrink with
the images, so that recall by object size refers to pixels of the small images.
"""
import argparse
from pathlib import Path

from command_line import add_data_arguments, create_parser, run_program

from tqdm import tqdm

from timm_fan import InputError
from timm_fan.data import UNKNOWN, create_splits, write_shards
from timm_fan.files import printable, written_folder


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    add = parser.add_argument
    add_data_arguments(parser)
    add('--output', type=Path, required=True, metavar='DIR', help='folder to write, which must not exist')
    add('--short-side', type=int, default=512, help='pixels; smaller images keep their size (default: %(default)s)')
    add('--quality', type=int, default=90, help='JPEG quality, 1 to 95 (default: %(default)s)')
    add('--uncompressed', action='store_true',
        help='write 3 bytes per pixel instead of JPEGs: nothing to decode, for a fast disk or enough memory')
    add('--shard-size', type=int, default=2000, help='images per shard (default: %(default)s)')
    add('--workers', type=int, default=2, help='processes (default: %(default)s)')
    return parser


def main(args: argparse.Namespace) -> None:
    if args.output.exists():
        raise InputError(f'`output={args.output}` already exists. Remove it, or choose another one.')
    for name, least in dict(short_side=1, shard_size=1, workers=0, quality=1).items():
        if getattr(args, name) < least:
            raise InputError(f'`{name}` must be at least {least}, got {getattr(args, name)}.')
    if args.quality > 95:
        raise InputError(f'`quality` must be at most 95, got {args.quality}.')
    train, val = create_splits(args.data, args.data_dir)
    unlisted = '?unlisted=unknown' if train.labels.default == UNKNOWN else ''
    with written_folder(args.output) as folder:
        for split, dataset in dict(train=train, val=val).items():
            unreadable = write_shards(
                dataset, folder, split, args.short_side, None if args.uncompressed else args.quality, args.shard_size,
                args.workers, tqdm)
            print(f'{split}: {len(dataset) - len(unreadable)} images')
            for line in unreadable:
                print(f'  left out, unreadable: {printable(line)}')
    print(f"--data 'shards:{{split}}-*.tar{unlisted}' --data-dir {args.output}")


if __name__ == '__main__':
    run_program(build_parser(), main)
