#!/usr/bin/env python3
"""Train a grid of configurations with several seeds, and compare them.

    python train_scripts/ablation.py scenes                                          # a name in train_scripts/ablations
    python train_scripts/ablation.py coco_mini --data-dir DIR --backbone-weights FILE --jobs 2
    python train_scripts/ablation.py scenes --table                                  # only write the page again

Each run is a run of train.py, in RUNS/GRID/ROW-seedN. Its results are added to RESULTS/GRID.jsonl, and RESULTS/GRID.md
compares the rows. A run with results is not trained again, and one that was interrupted is resumed. Results are those
of the last epoch, so that no epoch is chosen on the validation images.

A grid is a YAML file: `options` of train.py for all rows, `rows` (name: options), `reference` (a row), `seeds` (their
number), and `search` (option: list of values), of which each row takes the best with `search_seed`. A row may have its
own `search`. `search_options` are options of the search alone, such as a part of the training images to validate on.
With `views`, runs have this `--cache-features` of train.py: the maps of a frozen backbone are computed once, and kept
in RUNS/GRID/features. With `start_from`, runs start from the models that another grid has trained, in the same RUNS and
RESULTS, instead of new ones, and rows keep their options. A grid with `base` adds to the options of another grid, and
replaces its other keys.
"""
import argparse
from pathlib import Path
from typing import Optional

from command_line import create_parser, run_program

import torch
from ablations.grid import Grid, Results, read_grid
from ablations.page import collect, write_page
from ablations.work import Place, Start, work

from timm_fan import InputError


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    add = parser.add_argument
    add('grid', help='name in train_scripts/ablations, or YAML file')
    add('--data-dir', default='data', metavar='DIR', help='folder of the data set (default: %(default)s)')
    add('--backbone-weights', metavar='FILE', help='safetensors file of the backbone of all rows')
    add('--runs', type=Path, default=Path('runs'), metavar='DIR',
        help='folder of the run folders (default: %(default)s)')
    add('--results', type=Path, default=Path(__file__).parent / 'results', metavar='DIR',
        help='folder of the results (default: train_scripts/results)')
    add('--seeds', type=int, metavar='N', help='number of seeds (default: that of the grid)')
    add('--rows', nargs='+', metavar='NAME', help='only train these rows')
    add('--jobs', type=int, default=1, metavar='N', help='runs at a time, which share the CPU cores (default: 1)')
    add('--table', action='store_true', help='train nothing, write the page from the results')
    return parser


def check_weights(grid: Grid, file: Optional[str]) -> None:
    """The grid names the file of the weights, and the user says where it is, unless runs start from other models."""
    if grid.start_from:
        return
    file = file or grid.options.get('backbone_weights')
    if file and not Path(file).is_file():
        raise InputError(f'No file {file}. Give the weights of the backbone as `backbone_weights`.')


def find_start(grid: Grid, args: argparse.Namespace) -> Optional[Start]:
    if grid.start_from is None:
        return None
    earlier = read_grid(grid.start_from)
    return Start(earlier, Results(args.results / f'{earlier.name}.jsonl'), args.runs / earlier.name)


def main(args: argparse.Namespace) -> None:
    if args.jobs < 1 or (args.seeds is not None and args.seeds < 1):
        raise InputError('`jobs` and `seeds` must be at least 1.')
    # threads that share a core slow each other down
    torch.set_num_threads(max(1, torch.get_num_threads() // args.jobs))
    grid = read_grid(args.grid)
    unknown = set(args.rows or ()) - set(grid.own)
    if unknown:
        raise InputError(f"`rows`: no row '{unknown.pop()}'. The grid has: {', '.join(grid.own)}.")
    seeds = args.seeds or grid.seeds
    results = Results(args.results / f'{grid.name}.jsonl')
    if not args.table:
        check_weights(grid, args.backbone_weights)
        rows = args.rows or list(grid.own)
        place = Place(args.data_dir, args.runs / grid.name, args.backbone_weights, find_start(grid, args))
        work([run for row in rows for run in grid.search_runs(row)], results, place, args.jobs)
        work(grid.runs(rows, seeds, results), results, place, args.jobs)
    found = collect(grid, results, seeds)
    if not found:
        raise InputError(f'{results.file} has no run of this grid yet.')
    file = args.results / f'{grid.name}.md'
    write_page(file, grid, results, found)
    print(f'page {file}')


if __name__ == '__main__':
    run_program(build_parser(), main)
