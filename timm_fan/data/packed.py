"""Labels, boxes and names of many images in a few arrays, which worker processes share instead of copying."""
from array import array
from typing import Any, Iterable, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch

# target of a label that nobody verified: it is ignored by losses and metrics
UNKNOWN = -1.


class Sample(NamedTuple):
    """One image of a source.

    Attributes:
        file: Path relative to the folder of the data set.
        labels: Class indices present in the image, each once.
        boxes: Objects as (x, y, width, height) in pixels of the stored image, (n, 4).
        box_labels: Class index of each box, (n,).
        unknown: Class indices whose presence is unknown.
        size: Width and height of the stored image in pixels, if the source provides them.
    """
    file: str
    labels: Sequence[int]
    boxes: Any = ()
    box_labels: Any = ()
    unknown: Sequence[int] = ()
    size: Optional[Tuple[int, int]] = None


def _row(ends: np.ndarray, index: int) -> slice:
    """Slice of the entries of one image among those of all images."""
    return slice(ends[index - 1] if index else 0, ends[index])


class PackedStrings(Sequence[str]):
    """Many strings in two arrays."""

    def __init__(self, strings: Iterable[str]):
        encoded = [s.encode(errors='surrogatepass') for s in strings]  # file names may not be UTF-8
        self.ends = np.cumsum([len(s) for s in encoded], dtype=np.int64)
        self.content = np.frombuffer(b''.join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        return self.content[_row(self.ends, index)].tobytes().decode(errors='surrogatepass')


class SparseLabels:
    """Labels of many images as (class, value) pairs. Labels that are not listed have the value `default`.

    Args:
        rows: Present, absent and unknown class indices of each image.
        num_classes: Number of classes.
        default: 0, or -1 if only the listed labels were verified (Open Images).
    """

    def __init__(self, rows: Iterable[Tuple[Sequence[int], ...]], num_classes: int, default: float = 0.):
        ends, classes, values = array('q'), array('i'), array('b')
        for row in rows:
            for listed, value in zip(row, (1, 0, -1)):
                classes.extend(listed)
                values.extend([value] * len(listed))
            ends.append(len(classes))
        self.ends = np.asarray(ends, dtype=np.int64)
        self.classes = np.asarray(classes, dtype=np.int32)
        self.values = np.asarray(values, dtype=np.int8)
        self.num_classes, self.default = num_classes, default

    def part(self, indices: Sequence[int]) -> 'SparseLabels':
        """The labels of some images, in this order."""
        listed = (self.listed(i) for i in indices)
        rows = ([classes[values == v] for v in (1, 0, -1)] for classes, values in listed)
        return SparseLabels(rows, self.num_classes, self.default)

    def __len__(self) -> int:
        return len(self.ends)

    def listed(self, index: int) -> Tuple[np.ndarray, np.ndarray]:
        """Class indices of the listed labels of one image, and their values 1, 0, -1."""
        row = _row(self.ends, index)
        return self.classes[row], self.values[row]

    def target(self, index: int) -> torch.Tensor:
        """float32 (num_classes,) with 1 present, 0 absent, -1 unknown"""
        target = torch.full((self.num_classes,), self.default)
        classes, values = self.listed(index)
        target[torch.from_numpy(classes).long()] = torch.from_numpy(values).float()
        return target

    def counts(self) -> torch.Tensor:
        """Number of images where each class is present, absent and unknown, int64 (3, num_classes)"""
        listed = [np.bincount(self.classes[self.values == v], minlength=self.num_classes) for v in (1, 0, -1)]
        listed[1 if self.default == 0 else 2] += len(self) - sum(listed)
        return torch.from_numpy(np.stack(listed))

    def prior(self) -> torch.Tensor:
        """Frequency of each class among its known labels, strictly between 0 and 1, float32 (num_classes,)

        Half a label is added to both sides, so that its log-odds are finite. A class without any known label has 0.01,
        as in https://arxiv.org/abs/1708.02002, Section 5.1.
        """
        present, absent, _ = self.counts()
        known = present + absent
        return torch.where(known > 0, (present + 0.5) / (known + 1), 0.01)


class Boxes:
    """Objects of many images: boxes (x, y, width, height) in pixels, their classes, and the sizes of the images."""

    def __init__(self, samples: Sequence[Sample]):
        self.ends = np.cumsum([len(s.boxes) for s in samples], dtype=np.int64)
        self.boxes = np.concatenate([np.asarray(s.boxes, dtype=np.float32).reshape(-1, 4) for s in samples])
        self.labels = np.concatenate([np.asarray(s.box_labels, dtype=np.int32).reshape(-1) for s in samples])
        self.sizes = np.asarray([s.size or (0, 0) for s in samples], dtype=np.int32)

    def part(self, indices: Sequence[int]) -> 'Boxes':
        """The boxes of some images, in this order."""
        return Boxes([Sample('', (), *self[i], size=tuple(self.sizes[i])) for i in indices])

    def __getitem__(self, index: int) -> Tuple[np.ndarray, np.ndarray]:
        """Boxes (n, 4) and class indices (n,) of one image."""
        row = _row(self.ends, index)
        return self.boxes[row], self.labels[row]

    def images(self) -> np.ndarray:
        """Image of each box, int64 (number of boxes,)"""
        return np.searchsorted(self.ends, np.arange(len(self.labels)), side='right')

    def fit(self, index: int, size: Tuple[int, int]) -> bool:
        """Whether the boxes of an image refer to pixels of the decoded image, which has this width and height.

        They do not if the EXIF orientation has swapped its sides.
        """
        return tuple(self.sizes[index]) in (size, (0, 0))
