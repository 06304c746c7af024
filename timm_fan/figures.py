"""Pictures of an evaluation."""
import io
import textwrap
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image

from .data import UNREADABLE, MultiLabelDataset
from .errors import InputError
from .metrics import MultiLabelScores, predict_labels, threshold_curve

__all__ = ['Shown', 'choose_errors', 'choose_predictions', 'plot_curves', 'plot_images', 'plot_maps', 'plot_per_class',
           'plot_precision_recall', 'pyplot', 'thumbnail']


def pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise InputError('The report needs matplotlib: pip install "timm-fan[train]".') from error
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    plt.rcParams['text.parse_math'] = False  # a label may hold a $
    return plt


def plot_curves(history: Sequence[Dict[str, float]], file: Path) -> None:
    plt = pyplot()
    validated = [row for row in history if row['mAP'] is not None]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    for key, label, rows in (('train_loss', 'training', history), ('val_loss', 'validation', validated)):
        left.plot([row['epoch'] for row in rows], [row[key] for row in rows], marker='.', label=label)
    left.set(xlabel='epoch', ylabel='loss', title='Loss (training: the chosen loss, validation: BCE)')
    for key in ('mAP', 'CF1', 'OF1'):
        right.plot([row['epoch'] for row in validated], [100 * row[key] for row in validated], marker='.', label=key)
    right.set(xlabel='epoch', ylabel='%', title='Validation', ylim=(0, 100))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_per_class(scores: MultiLabelScores, file: Path) -> None:
    """AP of each class, sorted, coloured by the number of its images."""
    plt = pyplot()
    from matplotlib.colors import LogNorm
    rated = sorted((c for c in scores.per_class if c.AP is not None), key=lambda c: c.AP)
    figure, axis = plt.subplots(figsize=(7, 1.6 + 0.22 * len(rated)), layout='constrained')
    norm = LogNorm(max(1, min(c.positives for c in rated)), 1 + max(c.positives for c in rated))
    colors = plt.get_cmap('viridis_r')
    bars = axis.barh(
        [c.name for c in rated], [100 * c.AP for c in rated], color=[colors(norm(c.positives)) for c in rated])
    axis.bar_label(bars, [f'{100 * c.AP:.1f}  ({c.positives})' for c in rated], padding=2, fontsize=8)
    axis.axvline(100 * scores.mAP, color='black', linestyle=':', linewidth=1)
    axis.set(
        xlabel='average precision, %', xlim=(0, 115),
        title=f'AP of each class (its images), dotted: mAP {100 * scores.mAP:.1f}, {scores.num_images} images')
    axis.margins(y=0.01)
    scale = plt.cm.ScalarMappable(norm, colors)
    figure.colorbar(scale, ax=axis, label='images of the class', fraction=0.03, shrink=0.5)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_precision_recall(logits: torch.Tensor, targets: torch.Tensor, scores: MultiLabelScores, file: Path) -> None:
    """Precision over recall: thin for each class, thick for all labels pooled."""
    plt = pyplot()

    def curve(values: np.ndarray, truth: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        _, true, predicted = threshold_curve(values, truth == 1)
        return true / max(true[-1], 1), true / predicted

    values, truth = logits.numpy(), targets.numpy()
    figure, axis = plt.subplots(figsize=(6, 5), layout='constrained')
    for i, c in enumerate(scores.per_class):
        if c.AP is not None:
            known = truth[:, i] >= 0
            axis.plot(*curve(values[known, i], truth[known, i]), color='tab:blue', alpha=0.25, linewidth=0.8)
    known = truth >= 0
    axis.plot(*curve(values[known], truth[known]), color='black', linewidth=2, label='all labels pooled')
    axis.plot([], [], color='tab:blue', alpha=0.5, label='each class')
    axis.plot(scores.all.OR, scores.all.OP, 'o', color='tab:red', label='at the threshold')
    axis.set(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02), title='Precision over recall')
    axis.grid(alpha=0.3)
    axis.legend(loc='lower left')
    figure.savefig(file, dpi=120)
    plt.close(figure)


class Shown(NamedTuple):
    """An image of a grid: its index, and texts below it with their CSS colours."""
    index: int
    lines: List[Tuple[str, str]]


def plot_images(dataset: MultiLabelDataset, shown: Sequence[Shown], file: Path) -> None:
    """A grid of images with their texts."""
    plt = pyplot()
    columns = 4
    rows = max(1, -(-len(shown) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 3.6 * rows), layout='constrained', squeeze=False)
    for axis in axes.flat:
        axis.axis('off')
    for axis, (index, lines) in zip(axes.flat, shown):
        try:
            axis.imshow(dataset.load(index))
        except UNREADABLE:
            axis.set_title('unreadable image', fontsize=8)
            continue
        y = -4  # points below the picture
        for text, color in lines:
            text = textwrap.fill(text, 40, max_lines=3)
            axis.annotate(
                text, (0, 0), (0, y), xycoords='axes fraction', textcoords='offset points', color=color, fontsize=8,
                va='top', annotation_clip=False)
            y -= 11 * (text.count('\n') + 1)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def plot_maps(
        photo: Image.Image,
        rows: Sequence[Tuple[str, Sequence[Tuple[str, str, Image.Image]]]],
        file: Path,
) -> None:
    """A photograph and, a row for each model, pictures with a text and its CSS colour above each (Figure 4)."""
    plt = pyplot()
    columns = 1 + max(len(pictures) for _, pictures in rows)
    height = 2.6 * photo.height / photo.width + 0.5
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(2.6 * columns, height * len(rows)), layout='constrained', squeeze=False)
    for axis in axes.flat:
        axis.axis('off')
    for line, (name, pictures) in zip(axes, rows):
        line[0].imshow(photo)
        line[0].set_title(textwrap.fill(name, 36), fontsize=9)
        for axis, (text, color, picture) in zip(line[1:], pictures):
            axis.imshow(picture)
            axis.set_title(text, fontsize=9, color=color)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def thumbnail(dataset: MultiLabelDataset, index: int, size: int = 320) -> bytes:
    """One image as a JPEG of at most `size` pixels a side, grey if it cannot be read."""
    try:
        image = dataset.load(index)
    except UNREADABLE:
        image = Image.new('RGB', (size, size), (128, 128, 128))
    image.thumbnail((size, size))
    content = io.BytesIO()
    image.save(content, 'JPEG', quality=80)
    return content.getvalue()


def choose_predictions(
        logits: torch.Tensor,
        dataset: MultiLabelDataset,
        threshold: Union[float, Sequence[float]],
        num_images: int,
) -> List[Shown]:
    """Images spread over the set, the same in every run, with their found, wrong and missed labels."""
    chosen = torch.linspace(0, len(dataset) - 1, min(num_images, len(dataset))).round().long().unique().tolist()
    shown = []
    for index in chosen:
        target, predicted = dataset.target(index), predict_labels(logits[index:index + 1], threshold)[0]
        lines = []
        for title, mask, color in (
                ('found', predicted & (target == 1), 'green'), ('wrong', predicted & (target == 0), 'red'),
                ('missed', ~predicted & (target == 1), 'darkorange')):
            named = [f'{dataset.class_names[i]} {logits[index, i].sigmoid():.2f}' for i in mask.nonzero().flatten()]
            if named:
                lines.append((f'{title}: {", ".join(named)}', color))
        shown.append(Shown(index, lines or [('no label: none predicted', 'gray')]))
    return shown


def choose_errors(
        logits: torch.Tensor,
        targets: torch.Tensor,
        dataset: MultiLabelDataset,
        kind: str,
        num_images: int = 8,
) -> List[Shown]:
    """The most confident wrong labels (`kind` 'false_positives') or the surest misses ('false_negatives').

    One label an image, the worst.
    """
    if kind == 'false_positives':
        worst, classes = logits.masked_fill(targets != 0, -torch.inf).max(dim=1)
        order, title, color = worst.argsort(descending=True, stable=True), 'wrong', 'red'
    else:
        worst, classes = logits.masked_fill(targets != 1, torch.inf).min(dim=1)
        order, title, color = worst.argsort(stable=True), 'missed', 'darkorange'
    shown = []
    for i in order[:num_images].tolist():
        if worst[i].isfinite():
            present = [dataset.class_names[j] for j in (targets[i] == 1).nonzero().flatten()]
            shown.append(Shown(i, [
                (f'{title}: {dataset.class_names[classes[i]]} {worst[i].sigmoid():.3f}', color),
                (f'labelled: {", ".join(present) or "nothing"}', 'gray')]))
    return shown
