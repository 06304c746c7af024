#!/usr/bin/env python3
"""Make the models of hub_cards/zoo.yaml: train, choose thresholds, evaluate, compare with the plain model, publish.

    python train_scripts/release.py --dry-run                          # what the rows consist of, and what they cost
    python train_scripts/release.py fan_resnet101.coco2014 --data-dir coco
    python train_scripts/release.py --check                            # whether rows, cards and weights belong together

What is done is kept in RUNS/ROW, and an interrupted row goes on there. The card and the record of a finished row are
written to hub_cards/, and the model is pushed to the Hub unless --no-push is given.
"""
import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List

from command_line import create_parser, run_program

from releases.check import find_problems
from releases.work import Place, Work, describe_plan
from releases.zoo import Row, read_zoo
from runs import STOPPED, stop_training

from timm_fan import InputError
from timm_fan.errors import raise_problems
from timm_fan.files import write_text, written_folder
from timm_fan.hub import CONFIG_NAME, WEIGHTS_NAME
from timm_fan.metrics import percent
from timm_fan.models.pretrained import WEIGHTS
from timm_fan.publish import DELETE_PATTERNS, PushOptions, card_of_release, push_folder

CARDS = Path(__file__).resolve().parents[1] / 'hub_cards'


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    add = parser.add_argument
    add('rows', nargs='*', metavar='ROW', help='rows of the zoo (default with --dry-run and --check: all)')
    add('--data-dir', default='data', metavar='DIR', help='folder of the data set (default: %(default)s)')
    add('--backbone-weights', metavar='FILE', help='safetensors file of the backbone (default: from the Hub)')
    add('--runs', type=Path, default=Path('runs/zoo'), metavar='DIR', help='default: %(default)s')
    add('--zoo', type=Path, default=CARDS / 'zoo.yaml', metavar='FILE', help='default: hub_cards/zoo.yaml')
    add('--cards', type=Path, default=CARDS, metavar='DIR', help='folder of the cards (default: hub_cards)')
    add('--weights', type=Path, default=WEIGHTS, metavar='DIR',
        help='folder of the models that come with the package (default: timm_fan/weights)')
    add('--push', action=argparse.BooleanOptionalAction, default=True, help='push to the Hub (default: yes)')
    add('--dry-run', action='store_true', help='show the plan with its cost, and do nothing')
    add('--check', action='store_true', help='check that rows, cards and weights belong together')
    return parser


def find_rows(args: argparse.Namespace, rows: Dict[str, Row]) -> List[str]:
    """Names of the rows that were asked for."""
    unknown = [name for name in args.rows if name not in rows]
    if unknown:
        raise InputError(f"`rows`: no row '{unknown[0]}' in {args.zoo}. It has: {', '.join(rows)}.")
    if not args.rows and not (args.dry_run or args.check):
        raise InputError(f'Name the rows to make: {", ".join(rows)}.')
    return args.rows or list(rows)


def stop(*_: Any) -> None:
    """Stop the training that is under way, which saves a checkpoint, and this program."""
    stop_training()
    sys.exit(STOPPED)


def release(row: Row, args: argparse.Namespace) -> None:
    """Make a row whole."""
    work = Work(row, Place(args.data_dir, args.runs, args.backbone_weights))
    record = work.make()
    card = str(card_of_release(record, row.repo))
    args.cards.mkdir(parents=True, exist_ok=True)
    write_text(args.cards / f'{row.name}.md', card)
    write_text(args.cards / f'{row.name}.json', json.dumps(record, indent=2) + '\n')
    shutil.copyfile(work.picture, args.cards / f'{row.name}.png')
    if row.bundled:
        args.weights.mkdir(parents=True, exist_ok=True)
        with written_folder(args.weights / row.name) as new:
            for name in (CONFIG_NAME, WEIGHTS_NAME):
                shutil.copyfile(work.model / name, new / name)
    ours, plain = (percent(record[key]['mAP']) for key in ('metrics', 'plain'))
    print(f'{row.name}: mAP {ours} on {row.test}, {row.backbone} {plain}')
    if args.push:
        with tempfile.TemporaryDirectory() as temporary:
            work.publication(Path(temporary), card)
            _, commit = push_folder(Path(temporary), row.repo, PushOptions(delete_patterns=DELETE_PATTERNS))
        print(f'{row.repo} is up to date.' if commit is None else commit.commit_url)


def main(args: argparse.Namespace) -> None:
    zoo = read_zoo(args.zoo)
    names = find_rows(args, zoo)
    if args.check:
        raise_problems(f'{args.zoo} and {args.cards} do not agree', find_problems(zoo, names, args.cards, args.weights))
        print(f'{len(names)} rows, their cards and weights belong together.')
        return
    signal.signal(signal.SIGTERM, stop)
    for name in names:
        if args.dry_run:
            print(describe_plan(Work(zoo[name], Place(args.data_dir, args.runs, args.backbone_weights))))
        else:
            release(zoo[name], args)


if __name__ == '__main__':
    run_program(build_parser(), main)
