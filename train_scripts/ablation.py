#!/usr/bin/env python3
"""Train a grid of configurations with several seeds, and compare them.

    python train_scripts/ablation.py scenes                                          # a name in train_scripts/ablations
    python train_scripts/ablation.py coco_mini --data-dir ../shared/coco_mini --jobs 2
    python train_scripts/ablation.py scenes --table                                  # the page again, nothing trained

Each run is one of train.py, in RUNS/GRID/ROW-seedN. What it gave is added to RESULTS/GRID.jsonl, and RESULTS/GRID.md
compares the rows; a run that stands there is not trained again, one that was interrupted goes on. Figures are of the
last epoch, so that no epoch is chosen on the validation images.

A grid is a YAML file: `options` of train.py for all rows, `rows` (name: options), `reference` (a row), `seeds` (how
many), and `search` (option: list of values), of which each row takes what is best for it with `search_seed`; a row may
have its own `search`. With `base` it is another grid, whose options it adds to and whose other keys it replaces.
"""
import argparse
import itertools
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
import yaml
from accelerate import Accelerator
from timm.data import resolve_model_data_config
from torch.utils.data import DataLoader

from timm_fan import InputError
from timm_fan.cost import count_cost
from timm_fan.data import collate
from timm_fan.errors import exit_on_input_error
from timm_fan.evaluation import dataset_for_model, predict_logits
from timm_fan.explain import localization
from timm_fan.figures import pyplot
from timm_fan.files import write_text
from timm_fan.groups import score_groups
from timm_fan.metrics import evaluate_logits
from timm_fan.models import create_model, load_model
from timm_fan.statistics import correlated_classes

SCRIPTS = Path(__file__).parent
GRIDS = SCRIPTS / 'ablations'
KEYS = {'base', 'title', 'options', 'rows', 'reference', 'seeds', 'search', 'search_seed'}
# options that ablation.py gives to train.py
GIVEN = {'data_dir', 'output', 'report', 'resume', 'seed'}
_under_way: List[subprocess.Popen] = []  # of this worker

Options = Dict[str, Any]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('grid', help='a name in train_scripts/ablations or a YAML file')
    add('--data-dir', default='data', help='folder of the data set (default: %(default)s)')
    add('--runs', type=Path, default=Path('runs'), help='folder of the run folders (default: %(default)s)')
    add('--results', type=Path, default=SCRIPTS / 'results', help='folder of the results (default: %(default)s)')
    add('--seeds', type=int, help="how many (default: the grid's)")
    add('--rows', nargs='+', metavar='NAME', help='train only these rows')
    add('--jobs', type=int, default=1, help='runs at a time, which share the CPU cores (default: %(default)s)')
    add('--table', action='store_true', help='train nothing, write the page from what is there')
    return parser.parse_args()


def grid_file(name: str) -> Path:
    file = Path(name) if name.endswith(('.yaml', '.yml')) else GRIDS / f'{name}.yaml'
    if not file.is_file():
        known = ', '.join(sorted(p.stem for p in GRIDS.glob('*.yaml')))
        raise InputError(f'No grid {file}. Give a YAML file or one of {known}.')
    return file


def load_grid(file: Path, above: Tuple[Path, ...] = ()) -> Dict[str, Any]:
    """The file over its base; `above` are the files that it is a base of."""
    if file.resolve() in above:
        raise InputError(f'{file} is its own base.')
    try:
        grid = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f'{file} is not valid YAML: {error}') from error
    if isinstance(grid, dict):
        check_options(file, 'options', grid.get('options'))
    if isinstance(grid, dict) and 'base' in grid:
        base = load_grid(grid_file(str(grid['base'])), (*above, file.resolve()))
        grid = {**base, **grid, 'options': merged(base.get('options'), grid.get('options'))}
    if not isinstance(grid, dict) or not isinstance(grid.get('rows'), dict) or set(grid) - KEYS:
        raise InputError(f'{file} must hold rows, and of other keys only {", ".join(sorted(KEYS - {"rows"}))}.')
    for row, options in grid['rows'].items():
        check_options(file, f"row '{row}'", options)
    for key, lowest in (('seeds', 1), ('search_seed', 0)):
        value = grid.get(key, lowest)
        if not isinstance(value, int) or value < lowest:
            raise InputError(f'{file}: {key} must be a whole number from {lowest} on, got {value!r}.')
    return grid


def check_options(file: Path, what: str, options: Any) -> None:
    if options is None:
        return
    kwargs = options.get('model_kwargs', {}) if isinstance(options, dict) else None
    if not isinstance(kwargs, dict):
        raise InputError(f'{file}: {what} must hold option: value, and model_kwargs likewise, got {options!r:.80}.')
    given = sorted(GIVEN & set(options))
    if given:
        raise InputError(f'{file}: {what} must not hold {", ".join(given)}, which ablation.py gives to train.py.')


def read_grid(name: str) -> Tuple[str, Dict[str, Any]]:
    """Name and content of a grid: `rows` with all their options, `own` with what sets them apart, and `searches`."""
    file = grid_file(name)
    grid = load_grid(file)
    if grid.get('reference') not in grid['rows']:
        raise InputError(f"{file}: reference must be one of the rows, got {grid.get('reference')!r}.")
    grid = {'options': {}, 'search': {}, 'search_seed': 1000, 'seeds': 5, **grid}
    own = {row: dict(options or {}) for row, options in grid['rows'].items()}
    searches = {row: options.pop('search', grid['search']) or {} for row, options in own.items()}
    for row, search in searches.items():
        if not isinstance(search, dict) or not all(isinstance(v, list) and v for v in search.values()):
            raise InputError(f"{file}: the search of row '{row}' must be option: [value, ...], got {search}.")
    rows = {row: merged(grid['options'], options) for row, options in own.items()}
    grid = {**grid, 'own': own, 'rows': rows, 'searches': searches}
    names = Counter(run.name for row in rows for run in (Run(row, 0, {}), *search_runs(row, grid)))
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise InputError(f"{file}: two rows or searched values would share the run folder '{twice[0]}': rename one.")
    return file.stem, grid


def merged(*layers: Options) -> Options:
    """Options of train.py, the later over the earlier; model arguments are merged one by one."""
    options: Options = {}
    for layer in layers:
        kwargs = {**options.get('model_kwargs', {}), **(layer or {}).get('model_kwargs', {})}
        options = {**options, **(layer or {})}
        if kwargs:
            options['model_kwargs'] = kwargs
    return options


@dataclass(frozen=True)
class Run:
    """One training: a row, its options, and what is tried of its search, if it belongs to one."""
    row: str
    seed: int
    options: Options
    tried: Optional[Options] = None

    @property
    def name(self) -> str:
        parts = [self.row, *(f'{k}={v}' for k, v in (self.tried or {}).items())]
        return re.sub(r'[^\w.=+-]+', '_', '-'.join(parts)) + f'-seed{self.seed}'


def decisive(options: Options) -> Options:
    """Without what does not change the result."""
    return {k: v for k, v in options.items() if k not in ('val_interval', 'workers', 'keep', 'log_with')}


class Results:
    """A file with one JSON object a line for each finished run."""

    def __init__(self, file: Path):
        self.file = file
        self.records: List[dict] = []
        if file.is_file():
            try:
                self.records = [json.loads(line) for line in file.read_text().splitlines()]
            except json.JSONDecodeError as error:
                raise InputError(f'{file} is damaged: {error}. Remove the line.') from error

    def find(self, run: Run) -> List[dict]:
        wanted = (run.row, run.seed, run.tried is not None, decisive(run.options))
        return [r for r in self.records if (r['row'], r['seed'], r['search'], decisive(r['options'])) == wanted]

    def add(self, record: dict) -> None:
        self.records.append(record)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, ''.join(json.dumps(r) + '\n' for r in self.records))


def train(run: Run, folder: Path, args: argparse.Namespace) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = folder.with_name(f'{folder.name}.yaml')
    options = merged(run.options, dict(data_dir=args.data_dir, seed=run.seed, report=False))
    if folder.exists() and config.is_file() and decisive(yaml.safe_load(config.read_text())) != decisive(options):
        raise InputError(f'{folder} was trained with other options: remove it, or give another folder as --runs.')
    write_text(config, yaml.safe_dump(options))
    command = [sys.executable, SCRIPTS / 'train.py', '--config', config, '--output', folder, '--resume']
    env = {'OMP_NUM_THREADS': str(torch.get_num_threads()), **os.environ}
    with subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as training:
        _under_way.append(training)
        _, errors = training.communicate()
        _under_way.clear()
    if training.returncode:
        raise InputError(f'{folder} ended with exit code {training.returncode}: {errors.strip()[-2000:]}')


@torch.no_grad()
def evaluate(run: Run, folder: Path, args: argparse.Namespace) -> dict:
    """What the last model of a run scores, with where it comes from."""
    accelerator = Accelerator()
    model = load_model(folder / 'last').to(accelerator.device)
    dataset = dataset_for_model(model, run.options.get('data', 'scenes'), args.data_dir, 'val')
    loader = accelerator.prepare(DataLoader(dataset, 32, collate_fn=collate))
    logits, targets = predict_logits(model, loader, accelerator)
    scores = evaluate_logits(logits, targets, dataset.class_names)
    groups = score_groups(scores, logits, targets, dataset)
    ap = {c.name: c.AP for c in scores.per_class}
    tied = [name for name in correlated_classes(dataset) if ap[name] is not None][:6]
    located = dataset.boxes is not None and run.tried is None
    where = localization(model, dataset, resolve_model_data_config(model)) if located else None
    record = json.loads((folder / 'run.json').read_text())
    return dict(
        row=run.row, seed=run.seed, search=run.tried is not None, options=run.options,
        mAP=scores.mAP, CF1=scores.all.CF1, OF1=scores.all.OF1, tail=asdict(groups.tail),
        small=asdict(groups.small) if groups.small else None,
        correlated=dict(classes=tied, mAP=statistics.fmean(ap[n] for n in tied) if tied else None),
        pointing=where and where.pointing, energy=where and where.energy, centre=where and where.centre,
        area=where and where.area, AP=ap,
        **{k: record[k] for k in (
            'parameters', 'train_images', 'val_images', 'seconds', 'hardware', 'versions', 'git_revision', 'data')})


def start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Without it, a worker and its training would outlive a program that is killed."""
    multiprocessing.parent_process().join()
    for training in _under_way:
        training.terminate()  # it saves, and goes on at the next start
    os._exit(1)


def do_one(run: Run, folder: Path, args: argparse.Namespace) -> dict:
    train(run, folder, args)
    return evaluate(run, folder, args)


def do(runs: List[Run], results: Results, base: Path, args: argparse.Namespace) -> None:
    """Train and evaluate what is not in the results yet."""
    spawn = multiprocessing.get_context('spawn')  # a forked process cannot use a GPU
    with ProcessPoolExecutor(args.jobs, spawn, start_worker, (torch.get_num_threads(),)) as pool:
        missing = {pool.submit(do_one, run, base / run.name, args): run for run in runs if not results.find(run)}

        def keep(record: dict, run: Run) -> None:
            results.add(record)
            shutil.rmtree(base / run.name / 'checkpoints')
            print(f'{run.name}: mAP {100 * record["mAP"]:.2f}, {record["seconds"]:.0f} s', flush=True)

        try:
            for future in as_completed(missing):
                keep(future.result(), missing[future])
        except BaseException as error:
            pool.shutdown(cancel_futures=True)  # what is under way ends, nothing else begins
            for future, run in missing.items():
                if not future.cancelled() and not future.exception() and not results.find(run):
                    keep(future.result(), run)
            if isinstance(error, BrokenProcessPool):
                raise InputError(f'A process was ended, for want of memory perhaps: lower --jobs. {error}') from error
            raise


def chosen_options(row: str, grid: Dict[str, Any], results: Results) -> Tuple[Options, List[dict]]:
    """The row's options with what its search found best, and the records of the search."""
    runs = search_runs(row, grid)
    tried = [r for run in runs for r in results.find(run)]
    if not tried:
        return grid['rows'][row], []
    best = decisive(max(tried, key=lambda r: r['mAP'])['options'])
    return next(run.options for run in runs if decisive(run.options) == best), tried


def search_runs(row: str, grid: Dict[str, Any]) -> List[Run]:
    search = grid['searches'][row]
    values = itertools.product(*search.values()) if search else ()
    tried = [dict(zip(search, v)) for v in values]
    return [Run(row, grid['search_seed'], merged(grid['rows'][row], t), t) for t in tried]


def percent(values: List[float]) -> str:
    values = [100 * v for v in values if v is not None]
    if not values:
        return ''
    return f'{statistics.fmean(values):.2f}' + (f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else '')


def paired(row: List[dict], reference: List[dict]) -> str:
    """Difference of the mAP over the seeds that both have, with its 95% interval and the p of a paired t-test."""
    from scipy.stats import ttest_rel

    seeds = {r['seed']: r['mAP'] for r in reference}
    pairs = [(100 * r['mAP'], 100 * seeds[r['seed']]) for r in row if r['seed'] in seeds]
    if row is reference or len(pairs) < 2:
        return ''
    test = ttest_rel(*zip(*pairs))
    low, high = test.confidence_interval()
    p = f'p {test.pvalue:.3f}' if test.pvalue >= 0.001 else 'p < 0.001'
    return f'{statistics.fmean(a - b for a, b in pairs):+.2f} ({low:+.2f} to {high:+.2f}, {p})'


Rows = Dict[str, Tuple[List[dict], Options, List[dict]]]


def collect(grid: Dict[str, Any], results: Results, seeds: int) -> Rows:
    """Of each row the records of its seeds, its options, and the records of its search."""
    rows = {}
    for row in grid['rows']:
        options, tried = chosen_options(row, grid, results)
        rows[row] = ([r for seed in range(seeds) for r in results.find(Run(row, seed, options))], options, tried)
    return rows


def multiply_adds(options: Options, num_classes: int) -> int:
    """Of one image at the size that was trained at."""
    name = options.get('model', 'fan')
    kwargs = {k: v for k, v in options.items() if k in ('backbone', 'img_size') and name.startswith('fan')}
    model = create_model(
        name, num_classes=num_classes, device='meta', **kwargs, **options.get('model_kwargs', {})).eval()
    return count_cost(model, resolve_model_data_config(model, args=dict(img_size=options.get('img_size')))[
        'input_size']).multiply_adds


def plot_cost(rows: Rows, costs: Dict[str, int], file: Path) -> None:
    """mAP over multiply-adds, a point a row with the standard deviation over seeds."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(8, 5), layout='constrained')
    for i, (row, cost) in enumerate(costs.items()):
        values = [100 * r['mAP'] for r in rows[row][0]]
        spread = statistics.stdev(values) if len(values) > 1 else 0
        axis.errorbar(
            cost / 1e9, statistics.fmean(values), spread, label=row, capsize=3, color=f'C{i % 10}', fmt='os^'[i // 10])
    axis.set(xlabel='multiply-adds of one image, in billions', ylabel='mAP in %', title='Accuracy over cost')
    axis.grid(alpha=0.3)
    figure.legend(loc='outside right center', fontsize='small')
    figure.savefig(file, dpi=120)
    plt.close(figure)


def page(name: str, grid: Dict[str, Any], results: Results, rows: Rows, costs: Dict[str, int]) -> str:
    """The comparison as Markdown."""
    reference = rows[grid['reference']][0]
    searched = list(dict.fromkeys(key for search in grid['searches'].values() for key in search))
    columns = [
        '', *searched, 'mAP', f'minus {grid["reference"]}', 'CF1', 'OF1', 'rarest six', 'smallest six',
        'most correlated six', 'pointing game', 'energy in boxes', 'M parameters', 'G multiply-adds', 'min', 'seeds']
    lines = [f'| {" | ".join(columns)} |', '|---' * len(columns) + '|']
    for row, (found, options, _) in rows.items():
        if not found:
            continue
        cells = [row, *(str(options.get(k, '')) for k in searched)]
        cells += [percent([r['mAP'] for r in found]), paired(found, reference)]
        cells += [percent([r[k] for r in found]) for k in ('CF1', 'OF1')]
        cells += [percent([(r[k] or {}).get('mAP') for r in found]) for k in ('tail', 'small', 'correlated')]
        cells += [percent([r[k] for r in found]) for k in ('pointing', 'energy')]
        cells += [f'{found[0]["parameters"] / 1e6:.2f}', f'{costs[row] / 1e9:.3f}',
                  f'{statistics.fmean(r["seconds"] for r in found) / 60:.1f}', str(len(found))]
        lines.append('| ' + ' | '.join(cells) + ' |')
    all_found = [r for found, _, _ in rows.values() for r in found]
    one = all_found[0]
    hardware = sorted({r['hardware'] for r in all_found})
    revisions = sorted({str(r['git_revision'])[:7] for r in all_found})
    versions = sorted({', '.join(f'{k} {v}' for k, v in r['versions'].items()) for r in all_found})
    text = [f'# {grid.get("title", name)}', '', f'`python train_scripts/ablation.py {name}`, by this program from'
            f' [{results.file.name}]({results.file.name}), one line a run. {one["train_images"]} training and'
            f' {one["val_images"]} validation images. mean ± standard deviation over seeds, in %; differences with'
            ' the 95% interval of a paired t-test over seeds. The last epoch counts, none is chosen on the validation'
            ' images.', '', *lines, '', f'![accuracy over cost]({name}.png)', '']
    if one['pointing'] is not None:
        text += [f'For comparison: the centre of the image points at {100 * one["centre"]:.2f}%, a uniform map has'
                 f' {100 * one["area"]:.2f}% of its energy in the boxes.', '']
    for key, title in (('tail', 'Rarest'), ('small', 'Smallest'), ('correlated', 'Most correlated')):
        if one[key] and one[key]['classes']:
            text.append(f'{title}: {", ".join(one[key]["classes"])}.')
    text += ['', f'Options of all rows: `{json.dumps(grid["options"])}`.', '', '| row | options |', '|---|---|']
    text += [f'| {row} | `{json.dumps(grid["own"][row])}` |' for row in rows]
    if searched:
        text += ['', f'Search, one run each with seed {grid["search_seed"]}; the best mAP was taken:', '',
                 f'| | {" | ".join(searched)} | mAP |', '|---' * (2 + len(searched)) + '|']
        text += ['| ' + ' | '.join([row, *(str(r['options'].get(k, '')) for k in searched), percent([r['mAP']])]) + ' |'
                 for row, (_, _, tried) in rows.items() for r in tried]
    text += ['', *(f'Hardware: {h}.' for h in hardware), *(f'Versions: {v}.' for v in versions),
             f'Revisions: {", ".join(revisions)}.', '']
    return '\n'.join(text)


def main() -> None:
    args = parse_args()
    if args.jobs < 1 or (args.seeds is not None and args.seeds < 1):
        raise InputError('--jobs and --seeds must be at least 1.')
    torch.set_num_threads(max(1, torch.get_num_threads() // args.jobs))  # threads that share a core wait for each other
    name, grid = read_grid(args.grid)
    unknown = set(args.rows or ()) - set(grid['rows'])
    if unknown:
        raise InputError(f"--rows: no row '{unknown.pop()}'. The grid has: {', '.join(grid['rows'])}.")
    seeds = args.seeds or grid['seeds']
    results = Results(args.results / f'{name}.jsonl')
    if not args.table:
        rows = args.rows or list(grid['rows'])
        base = args.runs / name
        do([run for row in rows for run in search_runs(row, grid)], results, base, args)
        do([Run(row, seed, chosen_options(row, grid, results)[0]) for seed in range(seeds) for row in rows],
           results, base, args)
    rows = collect(grid, results, seeds)
    costs = {
        row: multiply_adds(options, len(found[0]['AP']))
        for row, (found, options, _) in rows.items() if found}
    if not costs:
        raise InputError(f'{results.file} holds no run of this grid yet.')
    file = args.results / f'{name}.md'
    plot_cost(rows, costs, file.with_suffix('.png'))
    write_text(file, page(name, grid, results, rows, costs))
    print(f'page {file}')


if __name__ == '__main__':
    with exit_on_input_error():
        main()
