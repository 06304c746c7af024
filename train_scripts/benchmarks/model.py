"""Time, memory and multiply-adds of a FAN, next to its backbone alone and other heads on it."""
import argparse
import gc
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

from command_line import add_device_argument, check_device

import torch
import torch.nn as nn
from timm.models import get_model_input_config
from tqdm import tqdm

from benchmarks.timing import median_seconds, seconds
from timm_fan import InputError
from timm_fan.cost import count_cost
from timm_fan.files import write_text
from timm_fan.models import create_model
from timm_fan.provenance import environment

BARE = dict(frn=False, head='linear')
ROWS: Dict[str, Dict[str, Any]] = {
    'backbone': BARE,
    'FAN': {},
    'FAN as printed': dict(lite=False, cln=True, joint=False, cln_residual=False, head='linear'),
    'CSRA': dict(BARE, head='csra'),
    'ML-Decoder': dict(BARE, head='ml_decoder'),
    'Query2Label': dict(BARE, head='query2label'),
}
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}
ENGINES = ('eager', 'compiled', 'graph')
TRAINABLE = ('eager', 'compiled')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('model', nargs='?', default='fan_resnet101', help='a fan* model name (default: %(default)s)')
    add('--backbone', metavar='NAME', help="timm model that 'fan' is built on")
    add('--rows', nargs='+', choices=list(ROWS), default=list(ROWS), metavar='NAME',
        help='contenders next to the backbone (default: all)')
    add('--img-size', type=int, metavar='N', help='image size in pixels (default: that of the model)')
    add('--num-classes', type=int, default=80, metavar='N', help='(default: %(default)s)')
    add_device_argument(parser)
    add('--dtypes', nargs='+', choices=list(DTYPES), default=['fp32'], help='bf16: autocast (default: fp32)')
    add('--engines', nargs='+', choices=ENGINES, default=['eager'],
        help='compiled: torch.compile; graph: the eager kernels as a CUDA graph, which saves the time to launch them,'
        ' without a training step (default: eager)')
    add('--batch-size', type=int, default=8, help='for throughput (default: %(default)s)')
    add('--train-batch-size', type=int, default=4, help='for the training step (default: %(default)s)')
    add('--repeats', type=int, default=5, metavar='N', help='rounds (default: %(default)s)')
    add('--threads', type=int, help='CPU threads (default: that of PyTorch)')
    add('--memory', action=argparse.BooleanOptionalAction, default=True,
        help='measure memory, on a CPU in a process for each contender (default: yes)')
    add('--profile', type=int, default=0, metavar='N', help='print the N most expensive operations of a training step')
    add('--results', type=Path, help='write a JSON file')
    add('--table', type=Path, help='write a Markdown page')


class Contender(NamedTuple):
    row: str
    engine: str
    dtype: str

    def __str__(self) -> str:
        return f'{self.row}, {self.engine}, {self.dtype}'


class Prepared(NamedTuple):
    """A contender that is ready: its calls, its input size (C, H, W), and its results so far."""
    calls: Dict[str, 'Call']
    size: Tuple[int, ...]
    result: Dict[str, Any]


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
    return model.to(args.device, memory_format=torch.channels_last), size


def images(batch_size: int, size: Tuple[int, ...], args: argparse.Namespace) -> torch.Tensor:
    return torch.randn(batch_size, *size, device=args.device).contiguous(memory_format=torch.channels_last)


def autocast(dtype: str, args: argparse.Namespace) -> torch.autocast:
    return torch.autocast(torch.device(args.device).type, DTYPES[dtype], enabled=dtype != 'fp32')


class Call(NamedTuple):
    """The function to time, and the one that sets the mode of its model."""
    run: Callable[[], None]
    set_mode: Callable[[], Any]


def inference(model: nn.Module, batch_size: int, size: Tuple[int, ...], dtype: str, args) -> Call:
    x = images(batch_size, size, args)

    def call() -> None:
        with torch.inference_mode(), autocast(dtype, args):
            model(x)
    return Call(call, model.eval)


def replayed(call: Call) -> Call:
    """The kernels of a call, captured as a CUDA graph."""
    call.set_mode()
    stream = torch.cuda.Stream()  # libraries initialize their state on it first
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


def peak_flops(dtype: str, device: str) -> float:
    """Operations per second of a large matrix product, the best of ten: the peak of a GPU."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    torch.mm(a, b)
    return 2 * 8192 ** 3 / min(seconds(lambda: torch.mm(a, b), device) for _ in range(10))


def _resident(key: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise InputError(f'`memory` requires {key} in /proc/self/status, which is missing: add --no-memory.')


def cpu_memory(contender: Contender, args: argparse.Namespace) -> Dict[str, int]:
    """Peak bytes of an inference call and of a training step, without model and images. Needs its own process."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    model, size = build(contender, args)
    found = {}
    calls = {'memory_inference': inference(model, args.batch_size, size, contender.dtype, args)}
    if contender.engine in TRAINABLE:
        calls['memory_training'] = training_step(model, size, contender.dtype, args)
    for key, call in calls.items():
        call.set_mode()
        before = _resident('VmRSS')
        Path('/proc/self/clear_refs').write_text('5')  # resets the peak
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


def prepare(contenders: List[Contender], args: argparse.Namespace) -> Dict[Contender, Prepared]:
    """Build and warm up all contenders."""
    prepared = {}
    for contender in tqdm(contenders, desc='build and warm up', leave=False):
        model, size = build(contender, args)
        cost = count_cost(model.eval(), size)
        # with dynamic shapes, the second batch size would be compiled for any other
        run = torch.compile(model, dynamic=False, fullgraph=True) if contender.engine == 'compiled' else model
        calls = dict(
            latency=inference(run, 1, size, contender.dtype, args),
            throughput=inference(run, args.batch_size, size, contender.dtype, args))
        if contender.engine in TRAINABLE:
            calls['training'] = training_step(run, size, contender.dtype, args)
        if contender.engine == 'graph':
            calls = {name: replayed(call) for name, call in calls.items()}
        for call in calls.values():
            call.set_mode()
            for _ in range(2):
                call.run()
        prepared[contender] = Prepared(calls, size, {**contender._asdict(), **cost._asdict()})
    return prepared


def time_in_turn(prepared: Dict[Contender, Prepared], args: argparse.Namespace) -> None:
    """Add median times to the results."""
    for name in ('latency', 'throughput', 'training'):
        calls = {contender: p.calls[name] for contender, p in prepared.items() if name in p.calls}
        times = median_seconds(
            {contender: call.run for contender, call in calls.items()}, args.repeats,
            {contender: call.set_mode for contender, call in calls.items()}, args.device, name)
        for contender, value in times.items():
            prepared[contender].result[name] = value


def measure_memory(prepared: Dict[Contender, Prepared], args: argparse.Namespace) -> None:
    """Add peak memory to the results."""
    for contender, (calls, _, result) in tqdm(prepared.items(), desc='memory', leave=False):
        if contender.engine == 'graph':  # a graph keeps its memory
            continue
        if args.device.startswith('cuda'):
            result.update(cuda_memory(calls))
        elif contender.engine != 'compiled':  # the compilation would be the peak
            with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
                result.update(pool.submit(cpu_memory, contender, args).result())


def print_profiles(prepared: Dict[Contender, Prepared], args: argparse.Namespace) -> None:
    key = f'self_{"device" if args.device.startswith("cuda") else "cpu"}_time_total'
    for contender, (calls, _, _) in prepared.items():
        if 'training' in calls:
            calls['training'].set_mode()
            with torch.profiler.profile() as profile:
                seconds(calls['training'].run, args.device)
            print(f'{contender}\n{profile.key_averages().table(sort_by=key, row_limit=args.profile)}')


def measure(args: argparse.Namespace) -> Dict[str, Any]:
    if 'compiled' in args.engines:
        # contenders share their code, and each is compiled for two batch sizes and for training; beyond this limit, by
        # default 8, they would run eagerly
        torch._dynamo.config.cache_size_limit = 100
    rows = list(dict.fromkeys(['backbone', *args.rows]))
    prepared = prepare([Contender(r, e, d) for e in args.engines for d in args.dtypes for r in rows], args)
    time_in_turn(prepared, args)
    if args.memory:
        measure_memory(prepared, args)
    if args.profile:
        print_profiles(prepared, args)
    # not on a CPU, whose convolutions may come from a faster library than its matrix products
    peaks = {d: peak_flops(d, args.device) for d in args.dtypes} if args.device.startswith('cuda') else {}
    return dict(
        model=args.model, backbone=args.backbone, input_size=next(iter(prepared.values())).size,
        num_classes=args.num_classes, batch_size=args.batch_size, train_batch_size=args.train_batch_size,
        repeats=args.repeats, threads=torch.get_num_threads(), device=args.device, peak_flops=peaks,
        **environment(args.device),
        rows=[p.result for p in prepared.values()])


def table(report: Dict[str, Any]) -> str:
    """Markdown, with times and memory as ratios to the backbone with the same engine and dtype."""
    base = {(r['engine'], r['dtype']): r for r in report['rows'] if r['row'] == 'backbone'}
    size, classes = report['input_size'], report['num_classes']
    batch, train_batch = report['batch_size'], report['train_batch_size']
    peaks = report['peak_flops']
    lines = [
        f'`{report["model"]}`{" over " + report["backbone"] if report["backbone"] else ""}, {size[2]} px, {classes}'
        ' classes, channels_last: time and peak memory as ratios to the backbone alone with average pooling and a'
        f' linear layer, medians of {report["repeats"]} rounds in turn. {report["hardware"]}, {report["threads"]}'
        f' thread(s), torch {report["versions"]["torch"]}, timm {report["versions"]["timm"]}.'
        + (' fp32 is TF32.' if 'fp32' in peaks else ''),
        '',
        f'| | M parameters | G multiply-adds | ratio | latency, batch 1 | throughput, batch {batch} | training step,'
        f' batch {train_batch} | images/s, inference | images/s, training |{" share of the peak |" if peaks else ""}'
        ' memory, inference | memory, training |',
        '|---' * (12 if peaks else 11) + '|',
    ]
    for r in report['rows']:
        b = base[r['engine'], r['dtype']]
        name = r['row'] + (f', {r["engine"]}' if r['engine'] != 'eager' else '') + (
            f', {r["dtype"]}' if r['dtype'] != 'fp32' else '')
        cells = [name, f'{r["parameters"] / 1e6:.1f}', f'{r["multiply_adds"] / 1e9:.2f}']
        cells.append(f'{r["multiply_adds"] / b["multiply_adds"]:.2f}')
        cells += [f'{r[k] / b[k]:.2f}' if k in r else '' for k in ('latency', 'throughput', 'training')]
        cells += [f'{n / r[k]:.1f}' if k in r else '' for k, n in (('throughput', batch), ('training', train_batch))]
        if peaks:
            cells.append(f'{200 * r["multiply_adds"] * batch / r["throughput"] / peaks[r["dtype"]]:.0f}%')
        cells += [f'{r[k] / b[k]:.2f}' if k in r else '' for k in ('memory_inference', 'memory_training')]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def run(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    check_device(args.device)
    if 'graph' in args.engines and not args.device.startswith('cuda'):
        raise InputError(f'`engines=graph` requires a CUDA device, got `device={args.device}`.')
    if args.device.startswith('cuda'):
        torch.cuda.set_device(torch.device(args.device).index or 0)
        # the same arithmetic for convolutions and matrix products; by default only the former use TF32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    report = measure(args)
    if args.results:
        write_text(args.results, json.dumps(report, indent=1))
    page = table(report)
    if args.table:
        write_text(args.table, page)
    print(page)
