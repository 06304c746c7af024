"""What the evaluation takes, beside scikit-learn and torchmetrics."""
import argparse
import platform
import resource
import statistics
import time
from typing import Dict, List, Tuple

import torch
from tqdm import tqdm

from timm_fan import InputError
from timm_fan.metrics import average_precision, evaluate_logits
from timm_fan.streaming import BinnedEvaluator
from timm_fan.uncertainty import bootstrap


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--images', type=int, default=40504, help="default: COCO 2014's validation images")
    add('--classes', type=int, default=80)
    add('--threads', type=int, default=1)
    add('--repeats', type=int, default=5)
    add('--bootstrap', type=int, default=1000, help='resamples timed, 0 for none')
    add('--stream-images', type=int, default=0, help='only stream so many images x --stream-classes')
    add('--stream-classes', type=int, default=1000)


def random_results(images: int, classes: int, generator: torch.Generator) -> Tuple[torch.Tensor, torch.Tensor]:
    """Logits that know a little of their targets; 3.6% of the labels are present, as in COCO 2014."""
    targets = (torch.rand(images, classes, generator=generator) < 0.036).float()
    return torch.randn(images, classes, generator=generator) + targets, targets


def run(args: argparse.Namespace) -> None:
    """Median times on the same random scores, the contenders in turn within each repeat."""
    torch.set_num_threads(args.threads)
    if min(args.classes, args.stream_classes) < 2:
        raise InputError('--classes and --stream-classes must be at least 2.')
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
    rated = ~exact.isnan()
    if not rated.any():
        raise InputError(f'Of {exact_classes} classes none has a positive: give more --stream-images.')
    exact, found, low, high = (
        values[:exact_classes][rated] for values in (exact, scores.AP, scores.AP_low, scores.AP_high))
    inside = bool(((exact >= low - 1e-9) & (exact <= high + 1e-9)).all())
    error = (found - exact).abs().max().item()
    print(f'{args.stream_images} x {args.stream_classes} random scores streamed in {evaluator.num_bins} bins:'
          f' {seconds:.1f} s, drawing them included')
    print(f'  peak memory of the process {peak / 2 ** 20:.2f} GiB, {exact_classes} classes kept to compare included')
    print(f'  mAP {scores.mAP:.6f} within {scores.mAP_low:.6f} to {scores.mAP_high:.6f}; of {exact_classes} classes the'
          f' exact AP is {"inside" if inside else "OUTSIDE"} its bounds, largest error {error:.1e}')
