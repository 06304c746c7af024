"""What a data set holds, before anything is trained on it: the paper's Figure 1 for any source."""
import hashlib
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Union

import numpy as np
import torch

from .data import UNREADABLE, MultiLabelDataset
from .data.dataset import decode
from .files import filled_folder

__all__ = ['DatasetStatistics', 'ImageScan', 'class_scales', 'co_occurrence', 'correlated_classes', 'describe',
           'draw_statistics', 'scan_images']


@dataclass(frozen=True)
class DatasetStatistics:
    """Counts of one split.

    Attributes:
        present, absent, unknown: Images of each class.
        labels_per_image: Number of images with 0, 1, 2, ... present labels.
        num_empty: Images without a present label.
        num_boxes: Objects, 0 where the source has none.
        scales: Mean share of the image that an object of each class covers, in 0..1; None without boxes or sizes.
    """
    num_images: int
    class_names: List[str]
    present: List[int]
    absent: List[int]
    unknown: List[int]
    labels_per_image: List[int]
    num_empty: int
    num_boxes: int
    scales: Optional[List[Optional[float]]]

    def to_dict(self) -> Dict[str, Any]:
        return asdict(self)


def describe(dataset: MultiLabelDataset) -> DatasetStatistics:
    """Count labels and objects, from the annotations alone."""
    labels = dataset.labels
    starts = np.concatenate([[0], labels.ends[:-1]])
    per_image = np.concatenate([[0], np.cumsum(labels.values == 1)])
    per_image = per_image[labels.ends] - per_image[starts]
    present, absent, unknown = labels.counts().tolist()
    histogram = np.bincount(per_image)
    scales = class_scales(dataset)
    return DatasetStatistics(
        num_images=len(dataset), class_names=dataset.class_names, present=present, absent=absent, unknown=unknown,
        labels_per_image=histogram.tolist(), num_empty=int(histogram[0]),
        num_boxes=len(dataset.boxes.labels) if dataset.boxes is not None else 0,
        scales=None if scales is None else [None if np.isnan(s) else float(s) for s in scales])


def class_scales(dataset: MultiLabelDataset) -> Optional[np.ndarray]:
    """Mean share of the image's area that the boxes of each class cover, (num_classes,) in 0..1, NaN without a box."""
    boxes = dataset.boxes
    if boxes is None or not boxes.sizes.all():
        return None
    shares = boxes.boxes[:, 2] * boxes.boxes[:, 3] / boxes.sizes[boxes.images()].prod(axis=1)
    sums = np.bincount(boxes.labels, weights=shares, minlength=len(dataset.class_names))
    counts = np.bincount(boxes.labels, minlength=len(dataset.class_names))
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def co_occurrence(dataset: MultiLabelDataset) -> torch.Tensor:
    """Images in which both classes are present, int64 (num_classes, num_classes)."""
    counts = torch.zeros(len(dataset.class_names), len(dataset.class_names))
    for start in range(0, len(dataset), 1000):
        rows = [dataset.target(i) for i in range(start, min(start + 1000, len(dataset)))]
        present = (torch.stack(rows) == 1).float()
        counts += present.T @ present
    return counts.long()


def correlated_classes(dataset: MultiLabelDataset) -> List[str]:
    """Names of all classes, first those whose presence goes most with that of another one.

    By the largest phi coefficient (Pearson's correlation of two indicators) with any other class; unknown labels count
    as absent.
    """
    both = co_occurrence(dataset).double() / len(dataset)
    share = both.diagonal()
    spread = (share * (1 - share)).sqrt().clamp(min=1e-12)
    phi = (both - share[:, None] * share) / (spread[:, None] * spread)
    largest = phi.fill_diagonal_(-1.).max(dim=1).values
    return [dataset.class_names[i] for i in largest.argsort(descending=True, stable=True).tolist()]


class ImageScan(NamedTuple):
    """Attributes:
        hashes: Images by the hash of their encoded content: a list of more than one holds duplicates.
        unreadable: Name -> reason of each image that cannot be decoded.
    """
    hashes: Dict[str, List[int]]
    unreadable: Dict[str, str]


def scan_images(dataset: MultiLabelDataset) -> ImageScan:
    """Look for duplicates and unreadable images: reads and decodes every image."""
    hashes, unreadable = defaultdict(list), {}
    for i in range(len(dataset)):
        try:
            content = dataset.images.read(i)
            hashes[hashlib.blake2b(content, digest_size=16).hexdigest()].append(i)
            decode(content)
        except UNREADABLE as error:
            unreadable[dataset.images.name(i)] = f'{type(error).__name__}: {error}'
    return ImageScan(dict(hashes), unreadable)


def draw_statistics(folder: Union[str, Path], dataset: MultiLabelDataset, max_classes: int = 80) -> None:
    """Write frequencies.png, labels_per_image.png, co_occurrence.png and, with boxes, scales.png (Figure 1).

    Of more than `max_classes` classes the most frequent are drawn.

    Args:
        folder: What else it holds stays.
    """
    from .figures import pyplot

    plt = pyplot()
    statistics = describe(dataset)
    order = sorted(range(len(dataset.class_names)), key=lambda i: -statistics.present[i])[:max_classes]
    names = [dataset.class_names[i] for i in order]
    width = max(6., 0.2 * len(order))

    def bars(values, title, label, file, log=False):
        figure, axis = plt.subplots(figsize=(width, 4), layout='constrained')
        axis.bar(range(len(values)), values)
        axis.set_xticks(range(len(values)), names, rotation=90, fontsize=8)
        axis.set(title=title, ylabel=label, yscale='log' if log else 'linear')
        axis.margins(x=0.01)
        figure.savefig(file, dpi=110)
        plt.close(figure)

    with filled_folder(folder) as new:
        bars([statistics.present[i] for i in order], f'Images of each class, of {len(dataset)}', 'images',
             new / 'frequencies.png', log=True)
        if statistics.scales is not None:
            bars([100 * (statistics.scales[i] or 0) for i in order], 'Mean share of the image that an object covers',
                 '% of the image', new / 'scales.png')
        figure, axis = plt.subplots(figsize=(6, 4), layout='constrained')
        axis.bar(range(len(statistics.labels_per_image)), statistics.labels_per_image)
        axis.set(title=f'Labels of an image, of {len(dataset)} images', xlabel='labels', ylabel='images')
        figure.savefig(new / 'labels_per_image.png', dpi=110)
        plt.close(figure)

        counts = co_occurrence(dataset)[order][:, order].double()
        shares = counts / counts.diagonal()[:, None].clamp(min=1)
        size = max(5., 0.2 * len(order) + 2)
        figure, axis = plt.subplots(figsize=(size, size), layout='constrained')
        picture = axis.imshow(shares.numpy(), vmin=0, vmax=1, cmap='viridis')
        axis.set_xticks(range(len(order)), names, rotation=90, fontsize=8)
        axis.set_yticks(range(len(order)), names, fontsize=8)
        axis.set_title('Share of the images of the row that have the column too')
        figure.colorbar(picture, shrink=0.6)
        figure.savefig(new / 'co_occurrence.png', dpi=110)
        plt.close(figure)
