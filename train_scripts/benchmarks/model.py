"""Time, memory and multiply-adds of a FAN, beside its backbone alone and other heads over it."""
import argparse
import gc
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch
import torch.nn as nn
from timm.models import get_model_input_config
from tqdm import tqdm

from timm_fan import InputError
from timm_fan.cost import count_cost
from timm_fan.errors import check_device
from timm_fan.files import write_text
from timm_fan.models import create_model, fold_batch_norm
from timm_fan.provenance import environment

BARE = dict(frn=False, cln=False, global_pool='avg')
ROWS: Dict[str, Dict[str, Any]] = {
    'backbone': BARE,
    'FAN': {},
    'light FAN': dict(lite=True),
    'CSRA': dict(BARE, head='csra'),
    'ML-Decoder': dict(BARE, head='ml_decoder'),
    'Query2Label': dict(BARE, head='query2label'),
}
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}
ENGINES = ('eager', 'compiled', 'folded', 'graph')
TRAINABLE = ('eager', 'compiled')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('model', nargs='?', default='fan_resnet101', help='a fan* model name (default: %(default)s)')
    add('--backbone', help="of 'fan'")
    add('--rows', nargs='+', choices=list(ROWS), default=list(ROWS), metavar='NAME',
        help='contenders beside the backbone (default: FAN, light FAN, CSRA, ML-Decoder, Query2Label)')
    add('--img-size', type=int, help="pixels a side (default: the model's)")
    add('--num-classes', type=int, default=80)
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add('--dtypes', nargs='+', choices=list(DTYPES), default=['fp32'], help='bf16: autocast')
    add('--engines', nargs='+', choices=ENGINES, default=['eager'],
        help='compiled: torch.compile; folded: batch norm folded into convolutions; graph: the eager kernels as a CUDA'
        ' graph, which spares their launches; the last two without a training step')
    add('--channels-last', action=argparse.BooleanOptionalAction, default=True)
    add('--batch-size', type=int, default=8, help='of the throughput (default: %(default)s)')
    add('--train-batch-size', type=int, default=4, help='of the training step (default: %(default)s)')
    add('--repeats', type=int, default=5)
    add('--threads', type=int, help="CPU threads (default: torch's)")
    add('--memory', action=argparse.BooleanOptionalAction, default=True, help='on a CPU a process for each contender')
    add('--profile', type=int, default=0, metavar='N', help='print the N costliest operations of a training step')
    add('--results', type=Path, help='write a JSON file')
    add('--table', type=Path, help='write a Markdown page')


class Contender(NamedTuple):
    row: str
    engine: str
    dtype: str

    def __str__(self) -> str:
        return f'{self.row}, {self.engine}, {self.dtype}'


def build(contender: Contender, args: argparse.Namespace) -> Tuple[nn.Module, Tuple[int, ...]]:
    kwargs = dict(ROWS[contender.row], num_classes=args.num_classes)
    if args.backbone:
        kwargs['backbone'] = args.backbone
    if args.img_size:
        kwargs['img_size'] = args.img_size
    model = create_model(args.model, **kwargs)
    size = get_model_input_config(model)['input_size']
    if args.img_size and not model.pretrained_cfg.get('fixed_input_size'):
        size = (size[0], args.img_size, args.img_size)
    if contender.engine == 'folded':
        fold_batch_norm(model.eval(), size)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    return model.to(args.device, memory_format=layout), size


def images(batch_size: int, size: Tuple[int, ...], args: argparse.Namespace) -> torch.Tensor:
    x = torch.randn(batch_size, *size, device=args.device)
    return x.contiguous(memory_format=torch.channels_last) if args.channels_last else x


def autocast(dtype: str, args: argparse.Namespace) -> torch.autocast:
    return torch.autocast(torch.device(args.device).type, DTYPES[dtype], enabled=dtype != 'fp32')


class Call(NamedTuple):
    """What is timed, and the mode that its model must be in."""
    run: Callable[[], None]
    set_mode: Callable[[], Any]


def inference(model: nn.Module, batch_size: int, size: Tuple[int, ...], dtype: str, args) -> Call:
    x = images(batch_size, size, args)

    def call() -> None:
        with torch.inference_mode(), autocast(dtype, args):
            model(x)
    return Call(call, model.eval)


def replayed(call: Call) -> Call:
    """A call's kernels, captured as a CUDA graph."""
    call.set_mode()
    stream = torch.cuda.Stream()  # libraries set up their state on it first
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.run()
    return Call(graph.replay, call.set_mode)


def training_step(model: nn.Module, size: Tuple[int, ...], dtype: str, args: argparse.Namespace) -> Call:
    x = images(args.train_batch_size, size, args)
    targets = (torch.rand(len(x), args.num_classes, device=args.device) < 0.036).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def call() -> None:
        with autocast(dtype, args):
            logits = model(x)
        nn.functional.binary_cross_entropy_with_logits(logits.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return Call(call, model.train)


def seconds(run: Callable[[], None], device: str) -> float:
    if device.startswith('cuda'):
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.startswith('cuda'):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_flops(dtype: str, device: str, side: int) -> float:
    """Operations a second of a large matrix product, the best of ten: what this machine can do."""
    a, b = (torch.randn(side, side, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    torch.mm(a, b)
    return 2 * side ** 3 / min(seconds(lambda: torch.mm(a, b), device) for _ in range(10))


def _resident(key: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise InputError(f'--memory needs {key} in /proc/self/status, which is not there: add --no-memory.')


def cpu_memory(contender: Contender, args: argparse.Namespace) -> Dict[str, int]:
    """Bytes that an inference call and a training step need at their peak beside model and images; its own process."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    model, size = build(contender, args)
    found = {}
    calls = {'memory_inference': inference(model, args.batch_size, size, contender.dtype, args)}
    if contender.engine in TRAINABLE:
        calls['memory_training'] = training_step(model, size, contender.dtype, args)
    for key, call in calls.items():
        call.set_mode()
        before = _resident('VmRSS')
        Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
        call.run()
        found[key] = _resident('VmHWM') - before
    return found


def cuda_memory(calls: Dict[str, Call]) -> Dict[str, int]:
    found = {}
    for name, key in (('throughput', 'memory_inference'), ('training', 'memory_training')):
        if name in calls:
            gc.collect()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            calls[name].set_mode()
            calls[name].run()
            found[key] = torch.cuda.max_memory_allocated() - before
    return found


def measure(args: argparse.Namespace) -> Dict[str, Any]:
    if 'compiled' in args.engines:
        # contenders share their code, and each compiles it for two batch sizes and for training; past this limit, by
        # default 8, the last of them would run eagerly
        torch._dynamo.config.cache_size_limit = 100
    rows = list(dict.fromkeys(['backbone', *args.rows]))
    contenders = [Contender(*c) for c in ((r, e, d) for e in args.engines for d in args.dtypes for r in rows)]
    calls: Dict[Contender, Dict[str, Call]] = {}
    results: Dict[Contender, Dict[str, Any]] = {}
    for contender in tqdm(contenders, desc='build and warm up', leave=False):
        model, size = build(contender, args)
        cost = count_cost(model.eval(), size)
        results[contender] = dict(**contender._asdict(), **cost._asdict())
        # else the second batch size would be compiled for any
        run = torch.compile(model, dynamic=False, fullgraph=True) if contender.engine == 'compiled' else model
        calls[contender] = dict(
            latency=inference(run, 1, size, contender.dtype, args),
            throughput=inference(run, args.batch_size, size, contender.dtype, args))
        if contender.engine in TRAINABLE:
            calls[contender]['training'] = training_step(run, size, contender.dtype, args)
        if contender.engine == 'graph':
            calls[contender] = {name: replayed(call) for name, call in calls[contender].items()}
        for call in calls[contender].values():
            call.set_mode()
            for _ in range(2):
                call.run()
    for name in ('latency', 'throughput', 'training'):
        timed: Dict[Contender, List[float]] = {c: [] for c in contenders if name in calls[c]}
        for _ in tqdm(range(args.repeats), desc=name, leave=False):
            for contender in timed:
                calls[contender][name].set_mode()
                timed[contender].append(seconds(calls[contender][name].run, args.device))
        for contender, values in timed.items():
            results[contender][name] = statistics.median(values)
    cuda = args.device.startswith('cuda')
    for contender in tqdm(contenders if args.memory else (), desc='memory', leave=False):
        if contender.engine == 'graph':  # which holds its memory
            continue
        if cuda:
            results[contender].update(cuda_memory(calls[contender]))
        elif contender.engine != 'compiled':  # whose compilation would be the peak
            with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
                results[contender].update(pool.submit(cpu_memory, contender, args).result())
    if args.profile:
        for contender in contenders:
            if 'training' in calls[contender]:
                calls[contender]['training'].set_mode()
                with torch.profiler.profile() as profile:
                    seconds(calls[contender]['training'].run, args.device)
                key = f'self_{"device" if cuda else "cpu"}_time_total'
                print(f'{contender}\n{profile.key_averages().table(sort_by=key, row_limit=args.profile)}')
    return dict(
        model=args.model, backbone=args.backbone, input_size=size, num_classes=args.num_classes,
        batch_size=args.batch_size, train_batch_size=args.train_batch_size, channels_last=args.channels_last,
        repeats=args.repeats, threads=torch.get_num_threads(), device=args.device,
        peak_flops={d: peak_flops(d, args.device, 8192 if cuda else 1024) for d in args.dtypes},
        **environment(args.device), rows=list(results.values()))


def table(report: Dict[str, Any]) -> str:
    """Markdown; times and memory as ratios to the backbone's with the same engine and dtype."""
    base = {(r['engine'], r['dtype']): r for r in report['rows'] if r['row'] == 'backbone'}
    size, classes = report['input_size'], report['num_classes']
    batch, train_batch = report['batch_size'], report['train_batch_size']
    tf32 = report['device'].startswith('cuda') and 'fp32' in report['peak_flops']
    lines = [
        f'`{report["model"]}`{" over " + report["backbone"] if report["backbone"] else ""}, {size[2]} px, {classes}'
        f' classes, {"channels_last" if report["channels_last"] else "contiguous"}: time and peak memory as ratios to'
        f' the backbone alone with average pooling and a linear layer, medians of {report["repeats"]} rounds in turn.'
        f' {report["hardware"]}, {report["threads"]} thread(s), torch {report["versions"]["torch"]}, timm'
        f' {report["versions"]["timm"]}.' + (' fp32 is TF32.' if tf32 else ''),
        '',
        f'| | M parameters | G multiply-adds | ratio | latency, batch 1 | throughput, batch {batch} | training step,'
        f' batch {train_batch} | images/s, inference | images/s, training | share of the peak | memory, inference |'
        ' memory, training |',
        '|---' * 12 + '|',
    ]
    for r in report['rows']:
        b = base[r['engine'], r['dtype']]
        name = r['row'] + (f', {r["engine"]}' if r['engine'] != 'eager' else '') + (
            f', {r["dtype"]}' if r['dtype'] != 'fp32' else '')
        cells = [name, f'{r["parameters"] / 1e6:.1f}', f'{r["multiply_adds"] / 1e9:.2f}']
        cells.append(f'{r["multiply_adds"] / b["multiply_adds"]:.2f}')
        cells += [f'{r[k] / b[k]:.2f}' if k in r else '' for k in ('latency', 'throughput', 'training')]
        cells += [f'{n / r[k]:.1f}' if k in r else '' for k, n in (('throughput', batch), ('training', train_batch))]
        share = 2 * r['multiply_adds'] * batch / r['throughput'] / report['peak_flops'][r['dtype']]
        cells.append(f'{100 * share:.0f}%')
        cells += [f'{r[k] / b[k]:.2f}' if k in r else '' for k in ('memory_inference', 'memory_training')]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def run(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    check_device(args.device)
    if 'graph' in args.engines and not args.device.startswith('cuda'):
        raise InputError(f'--engines graph is of CUDA devices, got --device {args.device}.')
    if args.device.startswith('cuda'):
        torch.cuda.set_device(torch.device(args.device).index or 0)
        # one arithmetic for convolutions and products, by default it is TF32 for the former alone
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    report = measure(args)
    if args.results:
        write_text(args.results, json.dumps(report, indent=1))
    page = table(report)
    if args.table:
        write_text(args.table, page)
    print(page)
