"""The one data set class. Each source provides it with images and labels."""
import hashlib
import json
import logging
from pathlib import Path
from typing import Callable, Iterable, List, Optional, Protocol, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from timm_fan.errors import InputError, raise_problems
from timm_fan.files import printable

from .images import UNREADABLE, load_image
from .packed import UNKNOWN, Boxes, PackedStrings, Sample, SparseLabels
from .paths import find_files

_logger = logging.getLogger(__name__)


class Images(Protocol):
    """Where the images of a data set come from."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Name of an image in messages: its path, or archive and member."""

    def key(self, index: int) -> str:
        """Name of an image within the data set, wherever that lies."""

    def size(self, index: int) -> int:
        """Number of bytes. Raises OSError."""

    def read(self, index: int) -> bytes:
        """The encoded image. Raises OSError."""

    def fingerprint(self) -> bytes:
        """Changes with the images and their order, without reading them."""


class ImageFiles:
    """Image files, by their paths relative to a folder, or absolute."""

    def __init__(self, root: Union[str, Path], files: Iterable[str]):
        self.root = Path(root)
        self.files = PackedStrings(files)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return str(self.root / self.files[index])

    def key(self, index: int) -> str:
        return self.files[index]

    def size(self, index: int) -> int:
        return (self.root / self.files[index]).stat().st_size

    def read(self, index: int) -> bytes:
        return (self.root / self.files[index]).read_bytes()

    def fingerprint(self) -> bytes:
        return self.files.content.tobytes()


class SomeImages:
    """Some images of a data set."""

    def __init__(self, images: Images, indices: Sequence[int]):
        self.images, self.indices = images, np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.images.name(self.indices[index])

    def key(self, index: int) -> str:
        return self.images.key(self.indices[index])

    def size(self, index: int) -> int:
        return self.images.size(self.indices[index])

    def read(self, index: int) -> bytes:
        return self.images.read(self.indices[index])

    def fingerprint(self) -> bytes:
        return self.images.fingerprint() + self.indices.tobytes()


def warn_unreadable(name: str, error: Exception) -> None:
    _logger.warning(
        'unreadable image %s (%s): replaced by a grey one with unknown labels', printable(name), error)


class MultiLabelDataset(Dataset):
    """Images with multi-hot targets.

    An item is (image, target): the transformed image and a float32 target (num_classes,) with 1 present, 0 absent,
    -1 unknown.

    An image that cannot be decoded does not end a run. It is replaced by a grey image with unknown labels, which is
    ignored by losses and metrics.

    Attributes:
        groups: Name of the group of each image, such as a patient, which a division keeps together. By default none.
        transform: From PIL image to tensor, by default none.
        on_unreadable: Called with the name of an image that cannot be read and the error, once per process and image.
            By default it logs a warning.

    Raises:
        InputError: There are no images.
    """

    def __init__(
            self,
            images: Images,
            labels: SparseLabels,
            class_names: Sequence[str],
            boxes: Optional[Boxes] = None,
    ):
        if not len(images):
            raise InputError('The data set has no images.')
        if len(images) != len(labels):
            raise ValueError(f'{len(images)} images, but labels for {len(labels)}.')
        self.images, self.labels, self.boxes = images, labels, boxes
        self.class_names = list(class_names)
        self.groups: Optional[List[str]] = None
        self.transform: Optional[Callable] = None
        self.on_unreadable: Callable[[str, Exception], None] = warn_unreadable
        self._unreadable = set()

    @classmethod
    def from_samples(
            cls,
            root: Union[str, Path],
            samples: Sequence[Sample],
            class_names: Sequence[str],
            folder: str = '',
            places: Optional[Sequence[str]] = None,
    ) -> 'MultiLabelDataset':
        """A data set of image files below `root`, where labels that a sample does not list are absent.

        Args:
            root: Folder of the data set.
            samples: Its images.
            class_names: Names in class order.
            folder: Folder below `root` that the paths of the samples are relative to.
            places: Where each sample is in its source, for messages.

        Raises:
            InputError: There are no samples, or image files are missing or listed twice.
        """
        if not samples:
            raise InputError(f'{root}: the data set has no images.')
        problems, hints = [], []
        paths = [s.file for s in samples]
        files = find_files(root, paths, places or paths, problems, hints, folder)
        raise_problems(f'{len(samples):,} images in {Path(root) / folder}', problems, hints=hints)
        labels = SparseLabels(((s.labels, (), s.unknown) for s in samples), len(class_names))
        boxes = Boxes(samples) if any(len(s.boxes) for s in samples) else None
        return cls(ImageFiles(root, files), labels, class_names, boxes)

    def part(self, indices: Sequence[int]) -> 'MultiLabelDataset':
        """The data set of some of its images, in this order."""
        labels, boxes = self.labels.part(indices), self.boxes.part(indices) if self.boxes else None
        dataset = MultiLabelDataset(SomeImages(self.images, indices), labels, self.class_names, boxes)
        dataset.groups = None if self.groups is None else [self.groups[i] for i in indices]
        return dataset

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        names, present = self.class_names, int((self.labels.values == 1).sum())
        more = ', ...' if len(names) > 5 else ''
        return (f'<MultiLabelDataset: {len(self)} images, {len(names)} classes'
                f' ({", ".join(map(printable, names[:5]))}{more}), {present / len(self):.2f} labels per image>')

    def target(self, index: int) -> torch.Tensor:
        """Target of one image without decoding it, float32 (num_classes,)"""
        return self.labels.target(index)

    def targets(self) -> torch.Tensor:
        """All targets, float32 (len(self), num_classes)"""
        return torch.stack([self.target(i) for i in range(len(self))])

    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal of class names, labels and names of the images, without their content."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for part in (self.labels.ends, self.labels.classes, self.labels.values):
            digest.update(part.tobytes())
        digest.update(self.images.fingerprint())
        return digest.hexdigest()

    def load(self, index: int) -> Image.Image:
        """One image as RGB. Raises one of `UNREADABLE` if it cannot be decoded."""
        return load_image(self.images.read(index))

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, torch.Tensor]:
        target = self.target(index)
        try:
            image = self.load(index)
        except UNREADABLE as error:
            if index not in self._unreadable:
                self._unreadable.add(index)
                self.on_unreadable(self.images.name(index), error)
            image, target = Image.new('RGB', (64, 64), (128, 128, 128)), torch.full_like(target, UNKNOWN)
        if self.transform is not None:
            image = self.transform(image)
        return image, target
