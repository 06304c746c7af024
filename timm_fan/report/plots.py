"""Plots of an evaluation and of a data set. With many classes they show some of them, and say how many."""
import contextlib
import functools
import textwrap
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple, Union

import numpy as np
from PIL import Image

from timm_fan.data import MultiLabelDataset
from timm_fan.data.statistics import co_occurrence, describe
from timm_fan.errors import InputError
from timm_fan.evaluation import Evaluation
from timm_fan.files import filled_folder
from timm_fan.metrics import MultiLabelScores, percent, short_name
from timm_fan.metrics.average_precision import threshold_curve
from timm_fan.metrics.thresholds import rates_over_thresholds

# classes that a figure shows
MAX_CLASSES = 80
# classes that have a curve, and of these the named ones
MAX_CURVES, MAX_NAMED = 200, 10
# fonts with the characters of other scripts, of Linux, macOS and Windows
_FONTS = (
    'Noto Sans CJK JP', 'Noto Sans CJK SC', 'WenQuanYi Micro Hei', 'WenQuanYi Zen Hei', 'Hiragino Sans', 'PingFang SC',
    'Apple SD Gothic Neo', 'Yu Gothic', 'Microsoft YaHei', 'Malgun Gothic', 'Noto Sans', 'Segoe UI', 'Arial Unicode MS')


@functools.cache
def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise InputError('Plots require matplotlib: pip install "timm-fan[train]".') from error
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from matplotlib.font_manager import fontManager
    installed = {font.name for font in fontManager.ttflist}
    plt.rcParams['font.family'] = ['DejaVu Sans', *(name for name in _FONTS if name in installed)]
    plt.rcParams['text.parse_math'] = False  # a label may contain a $
    return plt


@contextlib.contextmanager
def saved_figure(file: Path, *shape: int, dpi: int = 120, **kwargs: Any) -> Iterator[Tuple[Any, Any]]:
    """Yield a figure and its axes, as `plt.subplots` creates them, and save it as a PNG file at the end.

    The picture is enlarged or cropped to its content, so that no text is cut off.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(*shape, layout='constrained', **kwargs)
    try:
        yield figure, axes
        with warnings.catch_warnings(action='ignore', category=UserWarning):  # one for each character without a font
            figure.savefig(file, dpi=dpi, bbox_inches='tight')
    finally:
        plt.close(figure)


def _is_wide(values: Sequence[float]) -> bool:
    """Whether counts need a logarithmic axis. A shorter one would have a single tick."""
    return max(values) > 20 * max(1, min(values))


def _set_log_ticks(axis: Any) -> None:
    """Ticks of a logarithmic axis as plain numbers; matplotlib's own are math text."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter('{x:g}')
    axis.set_minor_locator(NullLocator())


def _ends(items: Sequence[Any], count: int) -> List[Any]:
    """`count` items from the start and the end of a sequence, or all of them."""
    if len(items) <= count:
        return list(items)
    return [*items[:count // 2], *items[len(items) - (count - count // 2):]]


def plot_curves(history: Sequence[Dict[str, float]], file: Path) -> None:
    """Loss and validation metrics over epochs."""
    validated = [row for row in history if row['mAP'] is not None]
    with saved_figure(file, 1, 2, figsize=(10, 4)) as (_, (left, right)):
        for key, label, rows in (('train_loss', 'training', history), ('val_loss', 'validation', validated)):
            left.plot([row['epoch'] for row in rows], [row[key] for row in rows], marker='.', label=label)
        left.set(xlabel='epoch', ylabel='loss', title='Loss (training: the chosen loss, validation: BCE)')
        for key in ('mAP', 'CF1', 'OF1'):
            values = [100 * row[key] for row in validated]
            right.plot([row['epoch'] for row in validated], values, marker='.', label=key)
        right.set(xlabel='epoch', ylabel='%', title='Validation', ylim=(0, 100))
        for axis in (left, right):
            axis.set_xlim(history[0]['epoch'] - 0.5, history[-1]['epoch'] + 0.5)  # whole numbers also for one epoch
            axis.locator_params('x', integer=True)
            axis.grid(alpha=0.3)
            axis.legend()


def plot_per_class(scores: MultiLabelScores, file: Path) -> None:
    """AP of each class, sorted, coloured by its number of images. Of many classes, the best and the worst."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    rated = sorted((c for c in scores.per_class if c.AP is not None), key=lambda c: c.AP)
    shown = _ends(rated, MAX_CLASSES)
    counts = [c.positives for c in rated]
    norm = (LogNorm if _is_wide(counts) else Normalize)(min(counts), 1 + max(counts))
    colors = colormaps['viridis_r']
    title = f'AP of each class (its images)\ndotted: mAP {percent(scores.mAP, ".1f")}, {scores.num_images} images'
    if len(shown) < len(rated):
        title += f'\nthe {MAX_CLASSES // 2} best and the {MAX_CLASSES // 2} worst of {len(rated)} classes'
    with saved_figure(file, figsize=(7, max(3, 1.6 + 0.22 * len(shown)))) as (figure, axis):
        values = [100 * c.AP for c in shown]
        bars = axis.barh(range(len(shown)), values, color=[colors(norm(c.positives)) for c in shown])
        axis.set_yticks(range(len(shown)), [short_name(c.name) for c in shown])
        axis.bar_label(bars, [f'{percent(c.AP, ".1f")}  ({c.positives})' for c in shown], padding=2, fontsize=8)
        axis.axvline(100 * scores.mAP, color='black', linestyle=':', linewidth=1)
        if len(shown) < len(rated):
            axis.axhline(MAX_CLASSES // 2 - 0.5, color='gray', linewidth=1)
        axis.set(xlabel='average precision, %', xlim=(0, 118))
        axis.margins(y=0.01)
        axis.set_title(title, fontsize=11)
        bar = figure.colorbar(
            ScalarMappable(norm, colors), ax=axis, label='images of the class', fraction=0.03, shrink=0.5)
        if _is_wide(counts):
            _set_log_ticks(bar.ax.yaxis)
        else:
            bar.ax.locator_params('y', integer=True)


def _curve(values: np.ndarray, truth: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Recall and precision at each cut, without points that a picture would not show."""
    _, true, predicted = threshold_curve(values, truth == 1)
    recall, precision = true / max(true[-1], 1), true / predicted
    if len(recall) > 2000:
        kept = np.unique(np.searchsorted(recall, np.linspace(0, 1, 1001)).clip(max=len(recall) - 1))
        recall, precision = recall[kept], precision[kept]
    return recall, precision


def plot_precision_recall(evaluation: Evaluation, file: Path) -> None:
    """Precision-recall curves: thick for all labels pooled, coloured for some named classes, thin for the others."""
    values, truth, scores = evaluation.logits.numpy(), evaluation.targets.numpy(), evaluation.scores
    rated = sorted(
        (i for i, c in enumerate(scores.per_class) if c.AP is not None), key=lambda i: -scores.per_class[i].AP)
    named = _ends(rated, MAX_NAMED)
    others = [i for i in rated if i not in named]
    others = [others[i] for i in np.linspace(0, len(others) - 1, min(MAX_CURVES, len(others))).round().astype(int)]

    def draw(axis: Any, i: int, **style: Any) -> None:
        known = truth[:, i] >= 0
        axis.plot(*_curve(values[known, i], truth[known, i]), **style)

    with saved_figure(file, figsize=(8.5, 5)) as (_, axis):
        for i in others:
            draw(axis, i, color='gray', alpha=0.25, linewidth=0.6)
        for n, i in enumerate(named):
            c = scores.per_class[i]
            # matplotlib would leave out a label that starts with _
            draw(axis, i, color=f'C{n}', linewidth=1, label=f'AP {percent(c.AP, ".1f")}  {short_name(c.name, 24)}')
        known = truth >= 0
        axis.plot(*_curve(values[known], truth[known]), color='black', linewidth=2, label='all labels pooled')
        if others:
            axis.plot([], [], color='gray', alpha=0.5, label=f'{len(others)} other classes')
        axis.plot(scores.all.OR, scores.all.OP, 'o', color='tab:red', label='at the threshold')
        title = 'Precision-recall curves'
        if len(named) < len(rated):
            title += f'\nof {len(rated)} classes, named: the {MAX_NAMED // 2} best and the {MAX_NAMED // 2} worst by AP'
        axis.set(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02))
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
        axis.legend(loc='upper left', bbox_to_anchor=(1.01, 1), fontsize=9)


def plot_thresholds(evaluation: Evaluation, file: Path) -> None:
    """Precision, recall and F1 over a threshold that is the same for all classes, with the best F1."""
    thresholds = np.linspace(0.01, 0.99, 99)
    curves = rates_over_thresholds(evaluation.logits, evaluation.targets, thresholds)
    used = {c.threshold for c in evaluation.scores.per_class}
    with saved_figure(file, 1, 2, figsize=(10, 4), sharey=True) as (_, axes):
        for axis, letter, title in zip(axes, 'CO', ('Mean over classes', 'All labels pooled')):
            for name, color in ((f'{letter}P', 'tab:blue'), (f'{letter}R', 'tab:orange'), (f'{letter}F1', 'black')):
                axis.plot(thresholds, 100 * curves[name], color=color, label=name)
            best = int(curves[f'{letter}F1'].argmax())
            axis.plot(thresholds[best], 100 * curves[f'{letter}F1'][best], 'o', color='black', label=(
                f'best {letter}F1, {percent(curves[f"{letter}F1"][best], ".1f")} at {thresholds[best]:.2f}'))
            if len(used) == 1:
                axis.axvline(min(used), color='tab:red', linestyle=':', label=f'threshold in use, {min(used):.3g}')
            axis.set(xlabel='threshold of all classes', title=title, xlim=(0, 1), ylim=(0, 102))
            axis.grid(alpha=0.3)
            axis.legend(fontsize=9)
        axes[0].set_ylabel('%')


# text above a picture, its CSS colour, the picture
Picture = Tuple[str, str, Image.Image]


def plot_maps(photo: Image.Image, rows: Sequence[Tuple[str, Sequence[Picture]]], file: Path) -> None:
    """A photograph and its maps (Figure 4): one row for each model, with its name."""
    columns = 1 + max(len(pictures) for _, pictures in rows)
    height = 2.6 * photo.height / photo.width + 0.5
    size = (2.6 * columns, height * len(rows))
    with saved_figure(file, len(rows), columns, dpi=110, figsize=size, squeeze=False) as (_, axes):
        for axis in axes.flat:
            axis.axis('off')
        for line, (name, pictures) in zip(axes, rows):
            line[0].imshow(photo)
            line[0].set_title(textwrap.fill(name, 30), fontsize=9)
            for axis, (text, color, picture) in zip(line[1:], pictures):
                axis.imshow(picture)
                axis.set_title(textwrap.fill(text, 30), fontsize=9, color=color)


def _plot_bars(values: Sequence[float], names: Sequence[str], file: Path, **labels: str) -> None:
    with saved_figure(file, dpi=110, figsize=(max(6., 0.2 * len(values)), 5)) as (_, axis):
        axis.bar(range(len(values)), values)
        axis.set_xticks(range(len(values)), map(short_name, names), rotation=90, fontsize=8)
        axis.set(**labels)
        axis.margins(x=0.01)
        if axis.get_yscale() == 'log':
            _set_log_ticks(axis.yaxis)


def _plot_co_occurrence(shares: np.ndarray, names: Sequence[str], title: str, file: Path) -> None:
    size = max(6., 0.2 * len(names) + 2)
    names = list(map(short_name, names))
    with saved_figure(file, dpi=110, figsize=(size, size)) as (figure, axis):
        picture = axis.imshow(shares, vmin=0, vmax=1, cmap='viridis')
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_title(title, fontsize=11)
        figure.colorbar(picture, shrink=0.6)


def draw_statistics(folder: Union[str, Path], dataset: MultiLabelDataset, max_classes: int = MAX_CLASSES) -> None:
    """Write frequencies.png, labels_per_image.png, co_occurrence.png and, with boxes, scales.png (Figure 1).

    The plots show the `max_classes` most frequent classes. Other files in the folder stay.

    Raises:
        InputError: matplotlib is not installed.
    """
    statistics = describe(dataset)
    order: List[int] = sorted(
        range(len(dataset.class_names)), key=lambda i: -statistics.present[i])[:max_classes]
    names = [dataset.class_names[i] for i in order]
    present = [statistics.present[i] for i in order]
    all_classes = len(dataset.class_names)
    some = f'\nthe {len(order)} most frequent of {all_classes} classes' if len(order) < all_classes else ''
    with filled_folder(folder) as new:
        _plot_bars(
            present, names, new / 'frequencies.png', title=f'Images of each class, of {len(dataset)}{some}',
            ylabel='images', yscale='log' if _is_wide(present) else 'linear')
        if statistics.scales is not None:
            _plot_bars(
                [100 * (statistics.scales[i] or 0) for i in order], names, new / 'scales.png',
                title=f'Mean share of the image that an object covers{some}', ylabel='% of the image')
        with saved_figure(new / 'labels_per_image.png', dpi=110, figsize=(6, 4)) as (_, axis):
            axis.bar(range(len(statistics.labels_per_image)), statistics.labels_per_image)
            axis.set(title=f'Labels per image, of {len(dataset)} images', xlabel='labels', ylabel='images')
            for line in (axis.xaxis, axis.yaxis):
                line.get_major_locator().set_params(integer=True)
        counts = co_occurrence(dataset)[order][:, order].double()
        shares = counts / counts.diagonal()[:, None].clamp(min=1)
        title = f'Share of the images with the row\nthat also have the column{some}'
        _plot_co_occurrence(shares.numpy(), names, title, new / 'co_occurrence.png')
