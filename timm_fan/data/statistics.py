"""What a data set contains, before anything is trained on it."""
import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

import numpy as np
import torch

from .dataset import MultiLabelDataset
from .images import UNREADABLE, load_image


@dataclass(frozen=True)
class DatasetStatistics:
    """Counts for one split.

    Attributes:
        num_images: Number of images.
        class_names: Names in class order.
        present, absent, unknown: Number of images for each class.
        labels_per_image: Number of images with 0, 1, 2, ... present labels.
        num_boxes: Objects, 0 if the source has none.
        scales: Mean share of the image that an object of each class covers, in 0..1, None for a class without boxes;
            None if the source has no boxes, or lacks the size of an image with boxes.
    """
    num_images: int
    class_names: List[str]
    present: List[int]
    absent: List[int]
    unknown: List[int]
    labels_per_image: List[int]
    num_boxes: int
    scales: Optional[List[Optional[float]]]


def describe(dataset: MultiLabelDataset) -> DatasetStatistics:
    """Count labels and objects, from the annotations alone."""
    labels = dataset.labels
    before = np.concatenate([[0], np.cumsum(labels.values == 1)])
    per_image = np.diff(before[labels.ends], prepend=0)
    present, absent, unknown = labels.counts().tolist()
    scales = class_scales(dataset)
    return DatasetStatistics(
        num_images=len(dataset), class_names=dataset.class_names, present=present, absent=absent, unknown=unknown,
        labels_per_image=np.bincount(per_image).tolist(),
        num_boxes=len(dataset.boxes.labels) if dataset.boxes is not None else 0,
        scales=None if scales is None else [None if np.isnan(s) else float(s) for s in scales])


def doubtful_labels(dataset: MultiLabelDataset) -> List[str]:
    """What is probably a mistake in the labels of the training images: one line for each kind."""
    spellings: Dict[str, List[str]] = defaultdict(list)
    for name in dataset.class_names:
        spellings[''.join(name.casefold().replace('_', ' ').replace('-', ' ').split())].append(name)
    lines = []
    similar = [names for names in spellings.values() if len(names) > 1]
    if similar:
        some = '; '.join(' = '.join(map(repr, names)) for names in similar[:5])
        lines.append(f'{len(similar)} classes have names that only differ in case, blanks or hyphens: {some}')
    once = [name for name, count in zip(dataset.class_names, dataset.labels.counts()[0]) if count == 1]
    if once:
        lines.append(f'{len(once)} classes are in one training image only: {", ".join(map(repr, once[:10]))}')
    return lines


def class_scales(dataset: MultiLabelDataset) -> Optional[np.ndarray]:
    """Mean share of the image that a box of each class covers, (num_classes,) in 0..1, NaN for a class without boxes.

    None if the data set has no boxes, or lacks the size of an image with boxes.
    """
    boxes = dataset.boxes
    if boxes is None:
        return None
    areas = boxes.sizes[boxes.images()].prod(axis=1)
    if not areas.all():
        return None
    shares = boxes.boxes[:, 2] * boxes.boxes[:, 3] / areas
    sums = np.bincount(boxes.labels, weights=shares, minlength=len(dataset.class_names))
    counts = np.bincount(boxes.labels, minlength=len(dataset.class_names))
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def largest_areas(dataset: MultiLabelDataset) -> Optional[np.ndarray]:
    """Area of the largest box of each class in pixels of the image, float32 (N, num_classes), 0 without one.

    None if the data set has no boxes.
    """
    boxes = dataset.boxes
    if boxes is None:
        return None
    largest = np.zeros((len(dataset), len(dataset.class_names)), dtype=np.float32)
    np.maximum.at(largest, (boxes.images(), boxes.labels), boxes.boxes[:, 2] * boxes.boxes[:, 3])
    return largest


def co_occurrence(dataset: MultiLabelDataset) -> torch.Tensor:
    """Number of images where both classes are present, int64 (num_classes, num_classes)"""
    counts = torch.zeros(len(dataset.class_names), len(dataset.class_names))
    for start in range(0, len(dataset), 1000):
        rows = [dataset.target(i) for i in range(start, min(start + 1000, len(dataset)))]
        present = (torch.stack(rows) == 1).float()
        counts += present.T @ present
    return counts.long()


def correlated_classes(dataset: MultiLabelDataset) -> List[str]:
    """Names of all classes, ordered by the strongest correlation of their presence with that of another class.

    The measure is the phi coefficient (Pearson's correlation of two indicators). Unknown labels count as absent.
    """
    both = co_occurrence(dataset).double() / len(dataset)
    share = both.diagonal()
    spread = (share * (1 - share)).sqrt().clamp(min=1e-12)
    phi = (both - share[:, None] * share) / (spread[:, None] * spread)
    largest = phi.fill_diagonal_(-1.).max(dim=1).values
    return [dataset.class_names[i] for i in largest.argsort(descending=True, stable=True).tolist()]


def scan_images(dataset: MultiLabelDataset) -> Tuple[Dict[str, List[str]], Dict[str, str]]:
    """Find duplicates and unreadable images. Reads and decodes every image.

    Returns:
        Hash of the encoded content -> names of the images that have it, and name -> reason for each image that cannot
        be decoded.
    """
    names, unreadable = defaultdict(list), {}
    for i in range(len(dataset)):
        name = dataset.images.name(i)
        try:
            content = dataset.images.read(i)
            names[hashlib.blake2b(content, digest_size=16).hexdigest()].append(name)
            load_image(content)
        except UNREADABLE as error:
            unreadable[name] = f'{type(error).__name__}: {error}'
    return names, unreadable
