"""Which timm models a FAN works with as a backbone."""
import argparse
import fnmatch
import gc
import json
import logging
import os
import platform
import shlex
import sys
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
from timm_fan.files import read_lines, read_text, write_text

TEMPLATE = Path(__file__).with_suffix('.md')

# odd and not square, then multiples of 32, then the size of the model
TRIED_SIZES = ((145, 193), (128, 160))
SIZE_NAMES = ('any', 'multiples of 32', 'its own')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--all', action='store_true', help='every model, not only the smallest of each module')
    add('--max-params', type=float, default=30,
        help='largest backbone with --all, in million parameters (default: %(default)s)')
    add('--names', default='*', help='pattern of names (default: all)')
    add('--results', type=Path, help='JSON lines, one per model; models in it are not run again')
    add('--table', type=Path, help='write a Markdown page')


def try_backbone(name: str) -> Dict[str, Any]:
    """Forward and backward pass of a FAN over `name`: its maps and the sizes that it accepts, or the error."""
    cfg = timm.get_pretrained_cfg(name)
    row = dict(name=name, works=False)
    own_size = tuple(cfg.input_size[1:])
    sizes = (own_size,) if cfg.fixed_input_size else TRIED_SIZES + (own_size,)
    try:
        model = timm.create_model('fan', backbone=name, num_classes=3, embed_dim=32)
    except Exception as error:
        return dict(row, why=in_one_line(error))
    backbone = model.backbone
    row.update(
        reductions=backbone.reductions, channels=backbone.channels,
        norm='fresh' if any(backbone.raw) else 'its own' if backbone.normed else '', final=backbone.final,
        million_params=round(sum(p.numel() for p in backbone.parameters()) / 1e6, 1))
    for size, size_name in zip(sizes, SIZE_NAMES[-len(sizes):]):
        try:
            unused = check_model(model, size)
        except Exception as error:
            row['why'] = in_one_line(error)
            model.zero_grad()
        else:
            return dict(row, works=True, sizes=size_name, unused=unused, why='')
    return row


def in_one_line(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:300]


def check_model(model: torch.nn.Module, size: Tuple[int, int]) -> List[str]:
    """Parameters without a gradient. Raises RuntimeError for wrong results of the forward or backward pass."""
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
    """timm's models by architecture module, the smallest first, and the number of parameters of each."""
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
        raise InputError(f"`names={args.names}` matches no model of timm.")
    wanted = [names[0] for names in modules.values()]
    if args.all:
        wanted += [n for names in modules.values() for n in names[1:] if sizes[n] <= args.max_params * 1e6]
    rows = {}
    if args.results and args.results.is_file():
        try:
            rows = {r['name']: r for r in map(json.loads, read_lines(args.results))}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'`results={args.results}` is damaged ({error}). Remove it, or the line.') from error
    for name in tqdm([n for n in wanted if n not in rows], desc='FAN', unit='model'):
        rows[name] = try_backbone(name)
        gc.collect()
        if args.results:
            with open(args.results, 'a', encoding='utf-8') as file:
                file.write(json.dumps(rows[name]) + '\n')
        if not rows[name]['works']:
            tqdm.write(f"{name}: {rows[name]['why']}")
    results = {module: [rows[name] for name in names if name in rows] for module, names in modules.items()}
    page = backbones_page(results, modules, f'python {shlex.join(sys.argv)}')
    if args.table:
        write_text(args.table, page)
    print(page)


def backbones_page(results: Dict[str, List[Dict[str, Any]]], modules: Dict[str, List[str]], command: str) -> str:
    import jinja2

    tried = [row for rows in results.values() for row in rows]
    unused = {module: [row for row in rows if row.get('unused')] for module, rows in results.items()}
    return jinja2.Template(read_text(TEMPLATE)).render(
        results=results, modules=modules, total=sum(map(len, modules.values())), tried=len(tried),
        works=sum(row['works'] for row in tried), unused={module: rows for module, rows in unused.items() if rows},
        failed=[row for row in tried if not row['works']], command=command, today=date.today(), cores=os.cpu_count(),
        torch=torch.__version__, torchvision=torchvision.__version__, timm=timm.__version__,
        python=platform.python_version())
