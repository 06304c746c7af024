#!/usr/bin/env python3
"""Measure what FAN works on and what it costs.

    python train_scripts/benchmark.py backbones                        # one model of every timm architecture module
    python train_scripts/benchmark.py backbones --all --max-params 30  # every model up to 30 M parameters
    python train_scripts/benchmark.py backbones --names 'convnext*'
    python train_scripts/benchmark.py metrics       # the evaluation, beside scikit-learn and torchmetrics
    python train_scripts/benchmark.py metrics --stream-images 1000000   # its memory, in bins
"""
import argparse
import fnmatch
import gc
import json
import logging
import os
import platform
import resource
import statistics
import time
import warnings
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Any, Dict, List, Tuple

import timm
import torch
import torchvision
from timm.models import model_entrypoint
from tqdm import tqdm

from timm_fan import InputError
from timm_fan.errors import exit_on_input_error
from timm_fan.metrics import average_precision, evaluate_logits
from timm_fan.streaming import BinnedEvaluator
from timm_fan.uncertainty import bootstrap

# odd and not square; then what strides of 32 divide; then the model's own size
TRIED_SIZES = ((145, 193), (128, 160))
SIZE_NAMES = ('any', 'multiples of 32', 'its own')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    backbones = commands.add_parser('backbones', help='build FAN over timm models, forward and backward')
    add = backbones.add_argument
    add('--all', action='store_true', help='every model name, not only the smallest of each module')
    add('--max-params', type=float, default=30, help='with --all: largest backbone, in millions (default: %(default)s)')
    add('--names', default='*', help='only these names, as a pattern (default: all)')
    add('--results', type=Path, help='JSON lines, one a model; models that stand there already are not run again')
    add('--table', type=Path, help='write a Markdown page')
    metrics = commands.add_parser('metrics', help='time the evaluation, side by side in one run')
    add = metrics.add_argument
    add('--images', type=int, default=40504, help="default: COCO 2014's validation images")
    add('--classes', type=int, default=80)
    add('--threads', type=int, default=1)
    add('--repeats', type=int, default=5)
    add('--bootstrap', type=int, default=1000, help='resamples timed, 0 for none')
    add('--stream-images', type=int, default=0, help='only stream so many images x --stream-classes')
    add('--stream-classes', type=int, default=1000)
    return parser.parse_args()


def try_backbone(name: str) -> Dict[str, Any]:
    """Forward and backward of a FAN over `name`: what it is made of and which sizes it takes, or the error."""
    cfg = timm.get_pretrained_cfg(name)
    row = dict(name=name, works=False)
    own_size = tuple(cfg.input_size[1:])
    sizes = (own_size,) if cfg.fixed_input_size else TRIED_SIZES + (own_size,)
    try:
        model = timm.create_model('fan', backbone=name, num_classes=3, embed_dim=32)
    except Exception as error:
        return dict(row, why=f'{type(error).__name__}: {error}')
    backbone = model.backbone
    row.update(
        reductions=backbone.reductions, channels=backbone.channels,
        norm='fresh' if backbone.raw else 'its own' if backbone.normed else '',
        million_params=round(sum(p.numel() for p in backbone.parameters()) / 1e6, 1))
    for size, size_name in zip(sizes, SIZE_NAMES[-len(sizes):]):
        try:
            unused = check_model(model, size)
        except Exception as error:
            row['why'] = f'{type(error).__name__}: {error}'
            model.zero_grad()
        else:
            return dict(row, works=True, sizes=size_name, unused=unused, why='')
    return row


def check_model(model: torch.nn.Module, size: Tuple[int, int]) -> List[str]:
    """Returns the parameters without a gradient; raises where forward or backward do not give what they should."""
    x = torch.randn(2, model.in_chans, *size)
    logits = model.train()(x)
    if logits.shape != (2, 3) or not logits.isfinite().all():
        raise RuntimeError(f'logits of shape {tuple(logits.shape)}, or not finite')
    logits.square().sum().backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    if any(not n.startswith('backbone.') for n in unused) or len(unused) == len(list(model.backbone.parameters())):
        raise RuntimeError(f'no gradient: {", ".join(unused)}')
    return unused


def module_names(pattern: str) -> Tuple[Dict[str, List[str]], Dict[str, int]]:
    """timm's own models by architecture module, the smallest first, and the number of parameters of each."""
    modules = defaultdict(list)
    for name in fnmatch.filter(timm.list_models(), pattern):
        module = model_entrypoint(name).__module__
        if module.startswith('timm.models.'):
            modules[module.rpartition('.')[2]].append(name)
    sizes = {}
    for name in tqdm([n for names in modules.values() for n in names], desc='sizes', unit='model'):
        model = timm.create_model(name, num_classes=0, device='meta')
        sizes[name] = sum(p.numel() for p in model.parameters())
    return {m: sorted(names, key=lambda n: (sizes[n], n)) for m, names in sorted(modules.items())}, sizes


def run_backbones(args: argparse.Namespace) -> None:
    logging.getLogger('timm').setLevel(logging.ERROR)
    warnings.simplefilter('ignore')
    torch.manual_seed(0)
    modules, sizes = module_names(args.names)
    if not modules:
        raise InputError(f"--names '{args.names}' matches no model of timm.")
    wanted = [names[0] for names in modules.values()]
    if args.all:
        wanted += [n for names in modules.values() for n in names[1:] if sizes[n] <= args.max_params * 1e6]
    rows = {}
    if args.results and args.results.is_file():
        rows = {r['name']: r for r in map(json.loads, args.results.read_text().splitlines())}
    for name in tqdm([n for n in wanted if n not in rows], desc='FAN', unit='model'):
        rows[name] = try_backbone(name)
        gc.collect()
        if args.results:
            with open(args.results, 'a') as file:
                file.write(json.dumps(rows[name]) + '\n')
        if not rows[name]['works']:
            tqdm.write(f"{name}: {rows[name]['why']}")
    page = backbones_page({m: [rows[n] for n in names if n in rows] for m, names in modules.items()}, modules, args)
    if args.table:
        args.table.parent.mkdir(parents=True, exist_ok=True)
        args.table.write_text(page)
    print(page)


def backbones_page(results: Dict[str, List[Dict[str, Any]]], modules: Dict[str, List[str]], args) -> str:
    tried = [row for rows in results.values() for row in rows]
    works = [row for row in tried if row['works']]
    lines = [
        '# FAN over timm backbones',
        '',
        f'FAN works over {len(works)} of {len(tried)} models tried, of all {len(modules)} architecture modules of timm'
        f' {timm.__version__} ({sum(map(len, modules.values()))} models).',
        '',
        'A model works if a FAN over it can be built, gives finite logits in training mode, and gradients reach FAN and'
        ' backbone.',
        'Weights are random.',
        '',
        f'Made on {date.today():%Y-%m-%d} with torch {torch.__version__}, torchvision {torchvision.__version__}, timm'
        f' {timm.__version__}, Python {platform.python_version()}, on {os.cpu_count()} CPU cores, by',
        '',
        '```sh',
        'python train_scripts/benchmark.py backbones'
        + (f' --all --max-params {args.max_params:g}' if args.all else '')
        + (f' --table {args.table}' if args.table else ''),
        '```',
        '',
        '*Strides* and *channels* are those of x2, x3, x4. *Norm*: the maps pass the backbone\'s own final norm, or a'
        ' fresh layer norm where timm gives',
        'them raw, or none where batch norm leaves them scaled. *Sizes*: any height and width (tried: 145 x 193),'
        ' multiples of 32 (tried: 128 x 160), or',
        'the size in its config, which most such models change with `img_size=`.',
        '',
        '| module | smallest model | M params | strides | channels | norm | sizes | works, of tried | in timm |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for module, rows in results.items():
        row = rows[0]
        cells = [module, f"`{row['name']}`"]
        if 'channels' in row:
            cells += [f"{row['million_params']:.1f}", *(' '.join(map(str, row[k])) for k in ('reductions', 'channels'))]
            cells += [row['norm'], row.get('sizes', '')]
        else:
            cells += [''] * 5
        cells += [f"{sum(r['works'] for r in rows)} of {len(rows)}", str(len(modules[module]))]
        lines.append('| ' + ' | '.join(cells) + ' |')
    unused = {m: [r for r in rows if r.get('unused')] for m, rows in results.items()}
    if any(unused.values()):
        lines += [
            '', '## Parameters without a gradient', '',
            "timm's feature networks of these models keep parameters that their maps do not need, so DDP wants"
            ' `find_unused_parameters=True`.', '']
        lines += [
            f"- {module}: {len(rows)} models, e.g. `{rows[0]['name']}`: {len(rows[0]['unused'])}, the first"
            f" `{rows[0]['unused'][0]}`" for module, rows in unused.items() if rows]
    failed = [row for row in tried if not row['works']]
    if failed:
        lines += ['', '## Why not', '']
        lines += [f"- `{row['name']}`: {' '.join(row['why'].split())[:300]}" for row in failed]
    return '\n'.join(lines) + '\n'


def random_results(images: int, classes: int, generator: torch.Generator) -> Tuple[torch.Tensor, torch.Tensor]:
    """Logits that know a little of their targets; 3.6% of the labels are present, as in COCO 2014."""
    targets = (torch.rand(images, classes, generator=generator) < 0.036).float()
    return torch.randn(images, classes, generator=generator) + targets, targets


def run_metrics(args: argparse.Namespace) -> None:
    """Median times on the same random scores, the contenders in turn within each repeat."""
    torch.set_num_threads(args.threads)
    if args.stream_images:
        stream(args)
        return
    try:
        from sklearn.metrics import average_precision_score
        from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score
    except ImportError as error:
        raise InputError(f'{error}. The other libraries come with pip install "timm-fan[test]".') from error
    logits, targets = random_results(args.images, args.classes, torch.Generator().manual_seed(0))
    probabilities, whole = logits.sigmoid(), targets.long()
    arrays = targets.numpy(), logits.numpy()
    options = dict(num_labels=args.classes)
    contenders = {
        'ours: every figure, All and Top-3, three AP definitions, per class': lambda: evaluate_logits(logits, targets),
        'ours: mAP alone': lambda: average_precision(logits, targets).mean().item(),
        'scikit-learn: mAP alone': lambda: average_precision_score(*arrays, average='macro'),
        'torchmetrics: mAP alone': lambda: multilabel_average_precision(logits, whole, **options).item(),
        'torchmetrics: F1 of each class and of all': lambda: [
            multilabel_f1_score(probabilities, whole, average=a, **options) for a in ('none', 'micro')],
    }
    times: Dict[str, List[float]] = {name: [] for name in contenders}
    found = {}
    for _ in range(args.repeats):
        for name, run in contenders.items():
            started = time.perf_counter()
            found[name] = run()
            times[name].append(time.perf_counter() - started)
    first = statistics.median(times[next(iter(times))])
    print(f'{args.images} x {args.classes} random scores, {args.threads} thread(s), median of {args.repeats}; torch'
          f' {torch.__version__}, {platform.processor() or platform.machine()}')
    for name, values in times.items():
        value = f'  mAP {found[name]:.8f}' if name.endswith('mAP alone') else ''
        print(f'{statistics.median(values):8.3f} s {statistics.median(values) / first:6.2f} x  {name}{value}')
    if args.bootstrap:
        started = time.perf_counter()
        bootstrap(logits, targets, samples=args.bootstrap)
        seconds = time.perf_counter() - started
        print(f'{seconds:8.3f} s {seconds / first:6.2f} x  ours: {args.bootstrap} resamples of mAP, CF1, OF1')


def stream(args: argparse.Namespace, step: int = 500) -> None:
    """Accumulate batches in bins; the exact figure of the first classes bounds the error that the bins make."""
    exact_classes = min(3, args.stream_classes)
    generator = torch.Generator().manual_seed(1)
    evaluator = BinnedEvaluator(args.stream_classes)
    # in one piece, as small ones between the batches would keep the heap from shrinking
    kept = torch.empty(2, args.stream_images, exact_classes)
    started = time.perf_counter()
    for start in tqdm(range(0, args.stream_images, step), desc='stream', leave=False):
        batch = random_results(min(step, args.stream_images - start), args.stream_classes, generator)
        evaluator.update(*batch)
        for i, values in enumerate(batch):
            kept[i, start:start + len(values)] = values[:, :exact_classes]
    scores = evaluator.compute()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    exact = average_precision(*kept)
    low, high = scores.AP_low[:exact_classes], scores.AP_high[:exact_classes]
    inside = bool(((exact >= low - 1e-9) & (exact <= high + 1e-9)).all())
    error = (scores.AP[:exact_classes] - exact).abs().max().item()
    print(f'{args.stream_images} x {args.stream_classes} random scores streamed in {evaluator.num_bins} bins:'
          f' {seconds:.1f} s, drawing them included')
    print(f'  peak memory of the process {peak / 2 ** 20:.2f} GiB, {exact_classes} classes kept to compare included')
    print(f'  mAP {scores.mAP:.6f} within {scores.mAP_low:.6f} to {scores.mAP_high:.6f}; of {exact_classes} classes the'
          f' exact AP is {"inside" if inside else "OUTSIDE"} its bounds, largest error {error:.1e}')


def main() -> None:
    args = parse_args()
    if args.command == 'backbones':
        run_backbones(args)
    else:
        run_metrics(args)


if __name__ == '__main__':
    with exit_on_input_error():
        main()
