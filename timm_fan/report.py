"""Tables and plots of an evaluation."""
import csv
import json
import textwrap
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import torch
from torch.utils.data import Dataset

from .errors import InputError
from .files import written_folder
from .metrics import MultiLabelScores

__all__ = ['format_scores', 'write_report']


def pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise InputError('The report needs matplotlib: pip install "timm-fan[train]".') from error
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    return plt


def format_scores(scores: MultiLabelScores) -> str:
    """The seven figures as a table of percentages, with the number of images and the protocol."""
    lines = [
        f'mAP {100 * scores.mAP:.2f} on {scores.num_images} images',
        '          CP     CR    CF1     OP     OR    OF1',
    ]
    for name, figures in (('All', scores.all), ('Top-3', scores.top3)):
        values = (figures.CP, figures.CR, figures.CF1, figures.OP, figures.OR, figures.OF1)
        lines.append(f'{name:<6}' + ' '.join(f'{100 * v:6.2f}' for v in values))
    lines.append(scores.protocol)
    if scores.num_unlabelled:
        lines.append(f'{scores.num_unlabelled} images without a known label, or unreadable, are left out')
    if scores.classes_without_positives:
        lines.append(f'left out of mAP, CP and CR, no positive: {", ".join(scores.classes_without_positives)}')
    return '\n'.join(lines)


def _plot_curves(history: Sequence[Dict[str, float]], file: Path) -> None:
    plt = pyplot()
    epochs = [row['epoch'] for row in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    for key, label in (('train_loss', 'training'), ('val_loss', 'validation')):
        left.plot(epochs, [row[key] for row in history], marker='.', label=label)
    left.set(xlabel='epoch', ylabel='loss', title='Loss (training: the chosen loss, validation: BCE)')
    for key in ('mAP', 'CF1', 'OF1'):
        right.plot(epochs, [100 * row[key] for row in history], marker='.', label=key)
    right.set(xlabel='epoch', ylabel='%', title='Validation', ylim=(0, 100))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _plot_per_class(scores: MultiLabelScores, file: Path) -> None:
    plt = pyplot()
    rated = sorted((c for c in scores.per_class if c.AP is not None), key=lambda c: c.AP)
    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.22 * len(rated)), layout='constrained')
    bars = axis.barh([c.name for c in rated], [100 * c.AP for c in rated])
    axis.bar_label(bars, [f'{100 * c.AP:.1f}  ({c.positives})' for c in rated], padding=2, fontsize=8)
    axis.axvline(100 * scores.mAP, color='black', linestyle=':', linewidth=1)
    axis.set(
        xlabel='average precision, %', xlim=(0, 115),
        title=f'AP of each class (its images), dotted: mAP {100 * scores.mAP:.1f}, {scores.num_images} images')
    axis.margins(y=0.01)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _plot_predictions(logits: torch.Tensor, dataset: Dataset, file: Path, threshold: float, num_images: int) -> None:
    plt = pyplot()
    # spread over the set, the same images in every run
    chosen = torch.linspace(0, len(dataset) - 1, min(num_images, len(dataset))).round().long().unique().tolist()
    columns = 4
    rows = -(-len(chosen) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 3.6 * rows), layout='constrained', squeeze=False)
    for axis in axes.flat:
        axis.axis('off')
    for axis, index in zip(axes.flat, chosen):
        try:
            axis.imshow(dataset.load(index))
        except (OSError, ValueError, SyntaxError):
            axis.set_title('unreadable image', fontsize=8)
            continue
        probabilities = logits[index].sigmoid()
        target = dataset.target(index)
        hits, wrong, missed = [], [], []
        for i, name in enumerate(dataset.class_names):
            predicted = probabilities[i] > threshold
            if predicted and target[i] == 1:
                hits.append(f'{name} {probabilities[i]:.2f}')
            elif predicted and target[i] == 0:
                wrong.append(f'{name} {probabilities[i]:.2f}')
            elif target[i] == 1:
                missed.append(f'{name} {probabilities[i]:.2f}')
        groups = [('found', hits, 'green'), ('wrong', wrong, 'red'), ('missed', missed, 'darkorange')]
        if not (hits or wrong or missed):
            groups = [('no label', ['none predicted'], 'gray')]
        y = -4  # points below the picture
        for title, names, color in groups:
            if names:
                text = textwrap.fill(f'{title}: {", ".join(names)}', 40, max_lines=3)
                axis.annotate(
                    text, (0, 0), (0, y), xycoords='axes fraction', textcoords='offset points', color=color, fontsize=8,
                    va='top', annotation_clip=False)
                y -= 11 * (text.count('\n') + 1)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def write_report(
        folder: Union[str, Path],
        scores: MultiLabelScores,
        logits: torch.Tensor,
        dataset: Dataset,
        history: Optional[List[Dict[str, Any]]] = None,
        threshold: float = 0.5,
        num_images: int = 16,
) -> None:
    """Write metrics.json, per_class.csv, per_class.png, predictions.png and, with a history, curves.png.

    Args:
        folder: Replaced as a whole.
        scores: Of `timm_fan.metrics.evaluate_logits`.
        logits: (N, num_classes) in the order of the data set.
        dataset: The `MultiLabelDataset` that was evaluated.
        history: One dict an epoch: epoch, train_loss, val_loss, mAP, CF1, OF1.
        threshold: Probability above which a label counts as predicted in the pictures.
        num_images: Pictures shown.

    Raises:
        InputError: matplotlib is not installed.
    """
    with written_folder(folder) as new:
        (new / 'metrics.json').write_text(json.dumps(scores.to_dict(), indent=2) + '\n')
        with open(new / 'per_class.csv', 'w', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(['class', 'AP', 'precision', 'recall', 'positives', 'images'])
            for c in scores.per_class:
                writer.writerow([c.name, c.AP, c.precision, c.recall, c.positives, c.images])
        _plot_per_class(scores, new / 'per_class.png')
        _plot_predictions(logits, dataset, new / 'predictions.png', threshold, num_images)
        if history:
            _plot_curves(history, new / 'curves.png')
