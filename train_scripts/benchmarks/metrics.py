"""Time of the evaluation, next to scikit-learn and torchmetrics."""
import argparse
import platform
import resource
import time
from typing import Tuple

import torch
from tqdm import tqdm

from benchmarks.timing import median_seconds, seconds
from timm_fan import InputError
from timm_fan.metrics import BinnedEvaluator, average_precision, bootstrap, evaluate_logits


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


def random_results(images: int, classes: int, generator: torch.Generator) -> Tuple[torch.Tensor, torch.Tensor]:
    """Logits with some information about the targets. 3.6% of the labels are present, as in COCO 2014."""
    targets = (torch.rand(images, classes, generator=generator) < 0.036).float()
    return torch.randn(images, classes, generator=generator) + targets, targets


def run(args: argparse.Namespace) -> None:
    """Median times on the same random scores, with the contenders in turn within each round."""
    torch.set_num_threads(args.threads)
    if min(args.classes, args.binned_classes) < 2:
        raise InputError('`classes` and `binned_classes` must be at least 2.')
    if args.binned_images:
        run_binned(args)
        return
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
    first = next(iter(times.values()))
    print(f'{args.images} x {args.classes} random scores, {args.threads} thread(s), median of {args.repeats}; torch'
          f' {torch.__version__}, {platform.processor() or platform.machine()}')
    if args.bootstrap:
        times[f'ours: {args.bootstrap} resamples of mAP, CF1, OF1'] = seconds(
            lambda: bootstrap(logits, targets, samples=args.bootstrap))
    for name, value in times.items():
        score = f'  mAP {contenders[name]():.8f}' if name.endswith('mAP alone') else ''
        print(f'{value:8.3f} s {value / first:6.2f} x  {name}{score}')


def run_binned(args: argparse.Namespace, step: int = 500) -> None:
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
    inside = bool(((exact >= low - 1e-9) & (exact <= high + 1e-9)).all())
    error = (found - exact).abs().max().item()
    print(f'{args.binned_images} x {args.binned_classes} random scores in {evaluator.num_bins} bins:'
          f' {duration:.1f} s, including drawing them')
    print(f'  peak memory of the process {peak / 2 ** 20:.2f} GiB, with {exact_classes} classes kept for comparison')
    print(f'  mAP {scores.mAP:.6f} within {scores.mAP_low:.6f} to {scores.mAP_high:.6f}; of {exact_classes} classes the'
          f' exact AP is {"inside" if inside else "OUTSIDE"} its bounds, largest error {error:.1e}')
