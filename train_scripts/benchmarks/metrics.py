"""Time of the evaluation, next to scikit-learn and torchmetrics."""
import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any, Dict, Tuple

import torch
from tqdm import tqdm

from benchmarks.timing import median_seconds, seconds
from timm_fan import InputError
from timm_fan.files import write_text
from timm_fan.metrics import BinnedEvaluator, average_precision, bootstrap, evaluate_logits
from timm_fan.provenance import environment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--images', type=int, default=40504, metavar='N',
        help='number of images (default: %(default)s, as in COCO 2014 val)')
    add('--classes', type=int, default=80, metavar='N', help='(default: %(default)s)')
    add('--threads', type=int, default=1, metavar='N', help='(default: %(default)s)')
    add('--repeats', type=int, default=5, metavar='N', help='rounds (default: %(default)s)')
    add('--bootstrap', type=int, default=1000, metavar='N', help='resamples to time, 0 for none (default: %(default)s)')
    add('--binned-images', type=int, default=0, metavar='N',
        help='measure the memory of the binned evaluation instead, with this many images')
    add('--binned-classes', type=int, default=1000, metavar='N', help='classes of it (default: %(default)s)')
    add('--results', type=Path, help='write a JSON file')


def random_results(images: int, classes: int, generator: torch.Generator) -> Tuple[torch.Tensor, torch.Tensor]:
    """Logits with some information about the targets. 3.6% of the labels are present, as in COCO 2014."""
    targets = (torch.rand(images, classes, generator=generator) < 0.036).float()
    return torch.randn(images, classes, generator=generator) + targets, targets


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    if min(args.classes, args.binned_classes) < 2:
        raise InputError('`classes` and `binned_classes` must be at least 2.')
    measure, text = (measure_bins, format_bins) if args.binned_images else (measure_times, format_times)
    report = dict(**measure(args), **environment())
    print(text(report))
    if args.results:
        write_text(args.results, json.dumps(report, indent=1))


def measure_times(args: argparse.Namespace) -> Dict[str, Any]:
    """Median times on the same random scores, with the contenders in turn within each round."""
    try:
        from sklearn.metrics import average_precision_score
        from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score
    except ImportError as error:
        raise InputError(f'{error}. Install the other libraries: pip install "timm-fan[test]".') from error
    logits, targets = random_results(args.images, args.classes, torch.Generator().manual_seed(0))
    probabilities, whole = logits.sigmoid(), targets.long()
    arrays = targets.numpy(), logits.numpy()
    options = dict(num_labels=args.classes)
    contenders = {
        'ours: all scores, All and Top-3, three AP definitions, per class': lambda: evaluate_logits(logits, targets),
        'ours: mAP alone': lambda: average_precision(logits, targets).mean().item(),
        'scikit-learn: mAP alone': lambda: average_precision_score(*arrays, average='macro'),
        'torchmetrics: mAP alone': lambda: multilabel_average_precision(logits, whole, **options).item(),
        'torchmetrics: F1 of each class and of all': lambda: [
            multilabel_f1_score(probabilities, whole, average=a, **options) for a in ('none', 'micro')],
    }
    times = median_seconds(contenders, args.repeats)
    if args.bootstrap:
        times[f'ours: {args.bootstrap} resamples of mAP, CF1, OF1'] = seconds(
            lambda: bootstrap(logits, targets, samples=args.bootstrap))
    return dict(
        images=args.images, classes=args.classes, threads=args.threads, repeats=args.repeats, seconds=times,
        mAP={name: score() for name, score in contenders.items() if name.endswith('mAP alone')})


def format_times(report: Dict[str, Any]) -> str:
    """One line for each contender, with its time as a multiple of that of all scores."""
    times = report['seconds']
    first = next(iter(times.values()))
    lines = [
        f'{report["images"]} x {report["classes"]} random scores, {report["threads"]} thread(s), median of'
        f' {report["repeats"]}; torch {report["versions"]["torch"]}, {report["hardware"]}']
    for name, value in times.items():
        score = f'  mAP {report["mAP"][name]:.8f}' if name in report['mAP'] else ''
        lines.append(f'{value:8.3f} s {value / first:6.2f} x  {name}{score}')
    return '\n'.join(lines)


def measure_bins(args: argparse.Namespace, step: int = 500) -> Dict[str, Any]:
    """Accumulate batches in bins. The exact AP of the first classes shows the error of the bins."""
    exact_classes = min(3, args.binned_classes)
    generator = torch.Generator().manual_seed(1)
    evaluator = BinnedEvaluator(args.binned_classes)
    # one tensor, because small ones between the batches would keep the heap from shrinking
    kept = torch.empty(2, args.binned_images, exact_classes)
    started = time.perf_counter()
    for start in tqdm(range(0, args.binned_images, step), desc='bins', leave=False):
        batch = random_results(min(step, args.binned_images - start), args.binned_classes, generator)
        evaluator.update(*batch)
        for i, values in enumerate(batch):
            kept[i, start:start + len(values)] = values[:, :exact_classes]
    scores = evaluator.compute()
    duration = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    exact = average_precision(*kept)
    rated = ~exact.isnan()
    if not rated.any():
        raise InputError(f'None of {exact_classes} classes has a positive: raise `binned_images`.')
    exact, found, low, high = (
        values[:exact_classes][rated] for values in (exact, scores.AP, scores.AP_low, scores.AP_high))
    return dict(
        images=args.binned_images, classes=args.binned_classes, bins=evaluator.num_bins, seconds=duration,
        peak_gib=peak / 2 ** 20, mAP=scores.mAP, mAP_low=scores.mAP_low, mAP_high=scores.mAP_high,
        exact_classes=exact_classes, largest_error=(found - exact).abs().max().item(),
        inside=bool(((exact >= low - 1e-9) & (exact <= high + 1e-9)).all()))


def format_bins(report: Dict[str, Any]) -> str:
    return (
        f'{report["images"]} x {report["classes"]} random scores in {report["bins"]} bins: {report["seconds"]:.1f} s,'
        f' including drawing them\n  peak memory of the process {report["peak_gib"]:.2f} GiB, with'
        f' {report["exact_classes"]} classes kept for comparison\n  mAP {report["mAP"]:.6f} within'
        f' {report["mAP_low"]:.6f} to {report["mAP_high"]:.6f}; of {report["exact_classes"]} classes the exact AP is'
        f' {"inside" if report["inside"] else "OUTSIDE"} its bounds, largest error {report["largest_error"]:.1e}')
