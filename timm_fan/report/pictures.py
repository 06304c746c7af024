"""Images of a report, with the labels that were found, wrong and missed."""
import io
import textwrap
from pathlib import Path
from typing import List, NamedTuple, Sequence, Tuple

import torch
from PIL import Image

from timm_fan.data import UNREADABLE, MultiLabelDataset
from timm_fan.evaluation import Evaluation
from timm_fan.metrics import predict_labels, short_name

from .plots import saved_figure

# labels that are named below an image
MAX_LABELS = 8


class Shown(NamedTuple):
    """An image of a grid: its index, and the texts below it with their CSS colours."""
    index: int
    lines: List[Tuple[str, str]]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_LABELS
    return ', '.join(names[:MAX_LABELS]) + (f' and {more} more' if more > 0 else '')


def choose_predictions(evaluation: Evaluation, num_images: int = 16) -> List[Shown]:
    """Images spread evenly over the data set, with their found, wrong and missed labels."""
    dataset, logits = evaluation.dataset, evaluation.logits
    chosen = torch.linspace(0, len(dataset) - 1, min(num_images, len(dataset))).round().long().unique().tolist()
    shown = []
    for index in chosen:
        target = evaluation.targets[index]
        predicted = predict_labels(logits[index:index + 1], evaluation.threshold)[0]
        lines = []
        for title, mask, color in (
                ('found', predicted & (target == 1), 'green'), ('wrong', predicted & (target == 0), 'red'),
                ('missed', ~predicted & (target == 1), 'darkorange')):
            classes = sorted(mask.nonzero().flatten().tolist(), key=lambda i: -logits[index, i])
            if classes:
                named = _listed([f'{short_name(dataset.class_names[i])} {logits[index, i].sigmoid():.2f}'
                                 for i in classes])
                lines.append((f'{title}: {named}', color))
        shown.append(Shown(index, lines or [('no labels, none predicted', 'gray')]))
    return shown


def choose_errors(evaluation: Evaluation, kind: str, num_images: int = 8) -> List[Shown]:
    """Images with the most confident errors of a kind, 'false_positives' or 'false_negatives', one label each."""
    logits, targets, names = evaluation.logits, evaluation.targets, evaluation.dataset.class_names
    if kind == 'false_positives':
        worst, classes = logits.masked_fill(targets != 0, -torch.inf).max(dim=1)
        order, title, color = worst.argsort(descending=True, stable=True), 'wrong', 'red'
    else:
        worst, classes = logits.masked_fill(targets != 1, torch.inf).min(dim=1)
        order, title, color = worst.argsort(stable=True), 'missed', 'darkorange'
    shown = []
    for i in order[:num_images].tolist():
        if worst[i].isfinite():
            present = [short_name(names[j]) for j in (targets[i] == 1).nonzero().flatten()]
            shown.append(Shown(i, [
                (f'{title}: {short_name(names[classes[i]])} {worst[i].sigmoid():.3f}', color),
                (f'labels: {_listed(present) or "none"}', 'gray')]))
    return shown


def plot_images(dataset: MultiLabelDataset, shown: Sequence[Shown], file: Path) -> None:
    """A grid of images with their texts."""
    columns = 4
    rows = max(1, -(-len(shown) // columns))
    size = (3 * columns, 3.6 * rows)
    with saved_figure(file, rows, columns, dpi=110, figsize=size, squeeze=False) as (_, axes):
        for axis in axes.flat:
            axis.axis('off')
        for axis, (index, lines) in zip(axes.flat, shown):
            try:
                axis.imshow(dataset.load(index))
            except UNREADABLE:
                axis.set_title('unreadable image', fontsize=8)
                continue
            y = -4  # points below the image
            for text, color in lines:
                text = textwrap.fill(text, 40, max_lines=3)
                axis.annotate(
                    text, (0, 0), (0, y), xycoords='axes fraction', textcoords='offset points', color=color,
                    fontsize=8, va='top', annotation_clip=False)
                y -= 11 * (text.count('\n') + 1)


def thumbnail(dataset: MultiLabelDataset, index: int, size: int = 320) -> bytes:
    """An image as a JPEG of at most `size` pixels per side, grey if it cannot be read."""
    try:
        image = dataset.load(index)
    except UNREADABLE:
        image = Image.new('RGB', (size, size), (128, 128, 128))
    image.thumbnail((size, size))
    content = io.BytesIO()
    image.save(content, 'JPEG', quality=80)
    return content.getvalue()
