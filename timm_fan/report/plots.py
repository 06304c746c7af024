"""Plots of an evaluation and of a data set."""
import contextlib
import textwrap
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple, Union

import numpy as np
from PIL import Image

from timm_fan.data import MultiLabelDataset
from timm_fan.data.statistics import co_occurrence, describe
from timm_fan.errors import InputError
from timm_fan.evaluation import Evaluation
from timm_fan.files import filled_folder
from timm_fan.metrics import MultiLabelScores
from timm_fan.metrics.average_precision import threshold_curve

from .text import percent


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise InputError('Plots require matplotlib: pip install "timm-fan[train]".') from error
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    plt.rcParams['text.parse_math'] = False  # a label may contain a $
    return plt


@contextlib.contextmanager
def saved_figure(file: Path, *shape: int, dpi: int = 120, **kwargs: Any) -> Iterator[Tuple[Any, Any]]:
    """Yield a figure and its axes, as `plt.subplots` creates them, and save it as a PNG file at the end."""
    plt = _pyplot()
    figure, axes = plt.subplots(*shape, layout='constrained', **kwargs)
    try:
        yield figure, axes
        figure.savefig(file, dpi=dpi)
    finally:
        plt.close(figure)


def _set_log_ticks(axis: Any) -> None:
    """Ticks of a logarithmic axis as plain numbers; matplotlib's own are math text."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter('{x:g}')
    axis.set_minor_locator(NullLocator())


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
            axis.locator_params('x', integer=True)
            axis.grid(alpha=0.3)
            axis.legend()


def plot_per_class(scores: MultiLabelScores, file: Path) -> None:
    """AP of each class, sorted, coloured by its number of images."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    rated = sorted((c for c in scores.per_class if c.AP is not None), key=lambda c: c.AP)
    norm = LogNorm(max(1, min(c.positives for c in rated)), 1 + max(c.positives for c in rated))
    colors = colormaps['viridis_r']
    with saved_figure(file, figsize=(7, 1.6 + 0.22 * len(rated))) as (figure, axis):
        bars = axis.barh(
            [c.name for c in rated], [100 * c.AP for c in rated], color=[colors(norm(c.positives)) for c in rated])
        axis.bar_label(bars, [f'{percent(c.AP, ".1f")}  ({c.positives})' for c in rated], padding=2, fontsize=8)
        axis.axvline(100 * scores.mAP, color='black', linestyle=':', linewidth=1)
        axis.set(xlabel='average precision, %', xlim=(0, 115))
        axis.margins(y=0.01)
        figure.suptitle(
            f'AP of each class (its images), dotted: mAP {percent(scores.mAP, ".1f")}, {scores.num_images} images')
        bar = figure.colorbar(
            ScalarMappable(norm, colors), ax=axis, label='images of the class', fraction=0.03, shrink=0.5)
        _set_log_ticks(bar.ax.yaxis)


def plot_precision_recall(evaluation: Evaluation, file: Path) -> None:
    """Precision-recall curves: thin for each class, thick for all labels pooled."""
    def curve(values: np.ndarray, truth: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        _, true, predicted = threshold_curve(values, truth == 1)
        return true / max(true[-1], 1), true / predicted

    values, truth, scores = evaluation.logits.numpy(), evaluation.targets.numpy(), evaluation.scores
    with saved_figure(file, figsize=(6, 5)) as (_, axis):
        for i, c in enumerate(scores.per_class):
            if c.AP is not None:
                known = truth[:, i] >= 0
                axis.plot(*curve(values[known, i], truth[known, i]), color='tab:blue', alpha=0.25, linewidth=0.8)
        known = truth >= 0
        axis.plot(*curve(values[known], truth[known]), color='black', linewidth=2, label='all labels pooled')
        axis.plot([], [], color='tab:blue', alpha=0.5, label='each class')
        axis.plot(scores.all.OR, scores.all.OP, 'o', color='tab:red', label='at the threshold')
        axis.set(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02), title='Precision-recall curves')
        axis.grid(alpha=0.3)
        axis.legend(loc='lower left')


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
            line[0].set_title(textwrap.fill(name, 36), fontsize=9)
            for axis, (text, color, picture) in zip(line[1:], pictures):
                axis.imshow(picture)
                axis.set_title(text, fontsize=9, color=color)


def _plot_bars(values: Sequence[float], names: Sequence[str], file: Path, **labels: str) -> None:
    with saved_figure(file, dpi=110, figsize=(max(6., 0.2 * len(values)), 4)) as (_, axis):
        axis.bar(range(len(values)), values)
        axis.set_xticks(range(len(values)), names, rotation=90, fontsize=8)
        axis.set(**labels)
        axis.margins(x=0.01)
        if axis.get_yscale() == 'log':
            _set_log_ticks(axis.yaxis)


def _plot_co_occurrence(shares: np.ndarray, names: Sequence[str], file: Path) -> None:
    size = max(5., 0.2 * len(names) + 2)
    with saved_figure(file, dpi=110, figsize=(size, size)) as (figure, axis):
        picture = axis.imshow(shares, vmin=0, vmax=1, cmap='viridis')
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        figure.suptitle('Share of the images with the row\nthat also have the column')
        figure.colorbar(picture, shrink=0.6)


def draw_statistics(folder: Union[str, Path], dataset: MultiLabelDataset, max_classes: int = 80) -> None:
    """Write frequencies.png, labels_per_image.png, co_occurrence.png and, with boxes, scales.png (Figure 1).

    The plots show the `max_classes` most frequent classes. Other files in the folder stay.

    Raises:
        InputError: matplotlib is not installed.
    """
    statistics = describe(dataset)
    order: List[int] = sorted(
        range(len(dataset.class_names)), key=lambda i: -statistics.present[i])[:max_classes]
    names = [dataset.class_names[i] for i in order]
    with filled_folder(folder) as new:
        _plot_bars(
            [statistics.present[i] for i in order], names, new / 'frequencies.png',
            title=f'Images of each class, of {len(dataset)}', ylabel='images', yscale='log')
        if statistics.scales is not None:
            _plot_bars(
                [100 * (statistics.scales[i] or 0) for i in order], names, new / 'scales.png',
                title='Mean share of the image that an object covers', ylabel='% of the image')
        with saved_figure(new / 'labels_per_image.png', dpi=110, figsize=(6, 4)) as (_, axis):
            axis.bar(range(len(statistics.labels_per_image)), statistics.labels_per_image)
            axis.set(title=f'Labels per image, of {len(dataset)} images', xlabel='labels', ylabel='images')
        counts = co_occurrence(dataset)[order][:, order].double()
        shares = counts / counts.diagonal()[:, None].clamp(min=1)
        _plot_co_occurrence(shares.numpy(), names, new / 'co_occurrence.png')
