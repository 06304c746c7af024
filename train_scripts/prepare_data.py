#!/usr/bin/env python3
"""Write a data set once as shards of smaller images: labels and boxes are kept, decoding takes a fraction of the time.

    python train_scripts/prepare_data.py --data coco2014 --data-dir /data/coco --output /data/coco_256 --short-side 256
    python train_scripts/train.py --data 'shards:{split}-*.tar' --data-dir /data/coco_256 --img-size 224 ...

Leave the short side some room above the size that is trained at, as random crops enlarge what they cut. Boxes shrink
with the images, so recall by object size counts in the small images' pixels.
"""
import argparse
from pathlib import Path

from tqdm import tqdm

from timm_fan import InputError
from timm_fan.data import SOURCES, MultiLabelDataset, create_dataset
from timm_fan.data.prepare import write_shards
from timm_fan.errors import exit_on_input_error
from timm_fan.files import written_folder


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--data', default='scenes', help=f'NAME[:WHERE][?OPTION=VALUE], one of {", ".join(SOURCES)} (default: scenes)')
    add('--data-dir', default='data', help='folder of the data set (default: %(default)s)')
    add('--output', type=Path, required=True, help='folder to write, which must not exist')
    add('--short-side', type=int, default=512, help='pixels; smaller images keep their size (default: %(default)s)')
    add('--quality', type=int, default=90, help='of the JPEGs, 1 to 95 (default: %(default)s)')
    add('--uncompressed', action='store_true',
        help='3 bytes a pixel instead of JPEG: nothing to decode, for a fast disk or memory that holds them')
    add('--shard-size', type=int, default=2000, help='images a shard (default: %(default)s)')
    add('--workers', type=int, default=2, help='processes (default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.output.exists():
        raise InputError(f'--output {args.output} exists already: remove it, or choose another.')
    if args.short_side < 1 or args.shard_size < 1 or args.workers < 0 or not 1 <= args.quality <= 95:
        raise InputError('--short-side and --shard-size must be at least 1, --workers 0, and --quality 1 to 95.')
    train = create_dataset(args.data, args.data_dir, 'train')
    splits = dict(train=train, val=create_dataset(args.data, args.data_dir, 'val', class_names=train.class_names))
    if splits['val'].class_names != train.class_names:
        raise InputError(f'{args.data_dir}: the training and validation files list different categories.')
    if not all(isinstance(d, MultiLabelDataset) for d in splits.values()):
        raise InputError('A stream cannot be prepared: leave streaming=true out.')
    unlisted = '?unlisted=unknown' if train.labels.default == -1 else ''
    with written_folder(args.output) as folder:
        for split, dataset in splits.items():
            unreadable = write_shards(
                dataset, folder, split, args.short_side, None if args.uncompressed else args.quality, args.shard_size,
                args.workers, tqdm)
            print(f'{split}: {len(dataset) - len(unreadable)} images')
            for line in unreadable:
                print(f'  left out, unreadable: {line}')
    print(f"--data 'shards:{{split}}-*.tar{unlisted}' --data-dir {args.output}")


if __name__ == '__main__':
    with exit_on_input_error():
        main()
