"""What timm models FAN works over."""
import argparse
import fnmatch
import gc
import json
import logging
import os
import platform
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

# odd and not square; then what strides of 32 divide; then the model's own size
TRIED_SIZES = ((145, 193), (128, 160))
SIZE_NAMES = ('any', 'multiples of 32', 'its own')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--all', action='store_true', help='every model name, not only the smallest of each module')
    add('--max-params', type=float, default=30, help='with --all: largest backbone, in millions (default: %(default)s)')
    add('--names', default='*', help='only these names, as a pattern (default: all)')
    add('--results', type=Path, help='JSON lines, one a model; models that stand there already are not run again')
    add('--table', type=Path, help='write a Markdown page')


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


def run(args: argparse.Namespace) -> None:
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
        try:
            rows = {r['name']: r for r in map(json.loads, args.results.read_text().splitlines())}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'--results {args.results} is damaged ({error}): remove it, or the line.') from error
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
