"""The one data set class. Every source brings it images and labels; both stay packed, so that memory stays small."""
import hashlib
import io
import json
import logging
import os
import warnings
from array import array
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterable, List, NamedTuple, Optional, Protocol, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from timm_fan.errors import InputError, raise_problems

__all__ = ['Boxes', 'ImageFiles', 'Images', 'MultiLabelDataset', 'PackedStrings', 'Sample', 'SparseLabels', 'UNKNOWN',
           'UNREADABLE', 'load_image']

_logger = logging.getLogger(__name__)

# target of a label that nobody verified: it counts neither in a loss nor in a metric
UNKNOWN = -1.
# what Pillow raises for an image that it cannot decode
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class Sample(NamedTuple):
    """One image of a source.

    Attributes:
        file: Path below the data set's root.
        labels: Class indices present in the image, each once.
        boxes: Objects as (x, y, width, height) in pixels of the stored image, (n, 4).
        box_labels: Class index of each box, (n,).
        unknown: Class indices whose presence is not known.
        absent: Class indices verified as absent, for sources whose unlisted labels are unknown.
        size: Width and height of the stored image in pixels, if the source says.
    """
    file: str
    labels: Sequence[int]
    boxes: Any = ()
    box_labels: Any = ()
    unknown: Sequence[int] = ()
    absent: Sequence[int] = ()
    size: Optional[Tuple[int, int]] = None


def is_line(size: Tuple[int, int]) -> bool:
    """One side is over 100 times the other: a resize to a model's size would blow it up."""
    return max(size) > 100 * min(size)


def load_image(source: Union[Path, BinaryIO]) -> Image.Image:
    """Decode a whole image, or the first of an animation, to RGB, upright by its EXIF orientation.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: Pillow cannot decode it, the first for truncated
            files too; or one side is over 100 times the other, which a resize to a model's size would blow up.
    """
    try:
        with Image.open(source) as image:
            if is_line(image.size):
                raise ValueError(f'{image.width} x {image.height} pixels are a line and no image')
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            image = _on_white(_to_8_bits(image))
            return image if image.mode == 'RGB' else image.convert('RGB')  # which would copy it
    except UNREADABLE:
        raise
    except Exception as error:  # Pillow's plugins raise what they like on damaged files
        raise OSError(f'{type(error).__name__}: {error}') from error


def _on_white(image: Image.Image) -> Image.Image:
    """What is transparent, as most programs show it: the pixels there are mostly black."""
    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Greys of more bits scaled down: 32-bit ones are taken for 16 bits, floats for 0..1, unless smaller or larger."""
    if image.mode.startswith('I;16'):  # convert() would clip all above 255 to white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ('I', 'F'):
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        highest = values.max()
        white = 65535. if highest > 255 else 1. if image.mode == 'F' and highest <= 1 else 255.
        return Image.fromarray((values * (255. / white)).clip(0, 255).astype(np.uint8))
    return image


def _row(ends: np.ndarray, index: int) -> slice:
    """Where the entries of one image lie among those of all."""
    return slice(ends[index - 1] if index else 0, ends[index])


class PackedStrings(Sequence[str]):
    """Many strings in two arrays: worker processes share them, where a list of objects would be copied."""

    def __init__(self, strings: Iterable[str]):
        encoded = [s.encode() for s in strings]
        self.ends = np.cumsum([len(s) for s in encoded], dtype=np.int64)
        self.content = np.frombuffer(b''.join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        return self.content[_row(self.ends, index)].tobytes().decode()


class SparseLabels:
    """Labels of many images as (class, value) pairs; what is not listed has the value `default`.

    Args:
        rows: For each image its present, absent and unknown class indices.
        num_classes: Number of classes.
        default: 0, or -1 where only listed labels were verified (Open Images).
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

    def __len__(self) -> int:
        return len(self.ends)

    def listed(self, index: int) -> Tuple[np.ndarray, np.ndarray]:
        """Class indices of one image's listed labels, and their values 1, 0, -1."""
        row = _row(self.ends, index)
        return self.classes[row], self.values[row]

    def target(self, index: int) -> torch.Tensor:
        """float32 (num_classes,) of 1 present, 0 absent, -1 unknown."""
        target = torch.full((self.num_classes,), self.default)
        classes, values = self.listed(index)
        target[torch.from_numpy(classes).long()] = torch.from_numpy(values).float()
        return target

    def counts(self) -> torch.Tensor:
        """Images that each class is present in, absent from, unknown in: int64 (3, num_classes)."""
        listed = [np.bincount(self.classes[self.values == v], minlength=self.num_classes) for v in (1, 0, -1)]
        listed[1 if self.default == 0 else 2] += len(self) - sum(listed)
        return torch.from_numpy(np.stack(listed))


class Boxes:
    """Objects of many images: boxes (x, y, width, height) in pixels, their classes, and the images' sizes."""

    def __init__(self, samples: Sequence[Sample]):
        self.ends = np.cumsum([len(s.boxes) for s in samples], dtype=np.int64)
        self.boxes = np.concatenate([np.asarray(s.boxes, dtype=np.float32).reshape(-1, 4) for s in samples])
        self.labels = np.concatenate([np.asarray(s.box_labels, dtype=np.int32).reshape(-1) for s in samples])
        self.sizes = np.asarray([s.size or (0, 0) for s in samples], dtype=np.int32)

    def __getitem__(self, index: int) -> Tuple[np.ndarray, np.ndarray]:
        """Boxes (n, 4) and class indices (n,) of one image."""
        row = _row(self.ends, index)
        return self.boxes[row], self.labels[row]

    def images(self) -> np.ndarray:
        """The image of each box, int64 (number of boxes,)."""
        return np.searchsorted(self.ends, np.arange(len(self.labels)), side='right')


class Images(Protocol):
    """Where a data set's images come from."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What messages call the image: its path, or archive and member."""

    def read(self, index: int) -> bytes:
        """The encoded image. Raises OSError."""

    def fingerprint(self) -> bytes:
        """What changes when other images come, or in another order; their content is not read."""


class ImageFiles:
    """Images in files below a folder.

    Raises:
        InputError: A path leaves the folder.
    """

    def __init__(self, root: Union[str, Path], files: Iterable[str]):
        self.root = Path(root)
        self.files = PackedStrings(files)
        top = os.path.join(os.path.abspath(root), '')
        raise_problems(str(root), [
            f"image '{f}' lies outside of this folder (a table's images= names another)" for f in self.files
            if ('..' in f or os.path.isabs(f)) and not os.path.normpath(os.path.join(top, f)).startswith(top)])

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return str(self.root / self.files[index])

    def read(self, index: int) -> bytes:
        return (self.root / self.files[index]).read_bytes()

    def fingerprint(self) -> bytes:
        return self.files.content.tobytes()

    def missing(self) -> List[int]:
        """Indices of images whose file is not there."""
        # one listing a folder, as stat of every file is slow on network drives
        present, missing = {}, []
        for i, file in enumerate(self.files):
            folder, _, name = file.rpartition('/')
            if folder not in present:
                path = self.root / folder
                present[folder] = {p.name for p in path.iterdir()} if path.is_dir() else set()
            if name not in present[folder]:
                missing.append(i)
        return missing


def decode(content: bytes) -> Image.Image:
    """An encoded image as RGB, of any size. Raises one of UNREADABLE where it cannot be decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)
        return load_image(io.BytesIO(content))


def warn_unreadable(name: str, error: Exception) -> None:
    _logger.warning('unreadable image %s (%s): a grey one with unknown labels stands in for it.', name, error)


def stand_in(target: torch.Tensor) -> Tuple[Image.Image, torch.Tensor]:
    """What comes for an image that cannot be read: a grey one, and all labels unknown."""
    return Image.new('RGB', (64, 64), (128, 128, 128)), torch.full_like(target, UNKNOWN)


class MultiLabelDataset(Dataset):
    """Images with multi-hot targets.

    An item is (image, target): the transformed image and a float32 target (num_classes,) of 1 present, 0 absent,
    -1 unknown.

    An image that cannot be decoded does not end a run: it comes as a uniformly grey image with all labels unknown, so
    that it counts neither in the loss nor in a metric.

    Args:
        images: Where the images come from.
        labels: Their labels.
        class_names: Names in the order of the class indices.
        boxes: Objects, where the source has them.
        transform: From PIL image to tensor, timm's `create_transform` for example.

    Attributes:
        on_unreadable: Called with the name of an image that cannot be read and the error, the first time in a process;
            by default it warns.

    Raises:
        InputError: There is no image.
    """

    def __init__(
            self,
            images: Images,
            labels: SparseLabels,
            class_names: Sequence[str],
            boxes: Optional[Boxes] = None,
            transform: Optional[Callable] = None,
    ):
        if not len(images):
            raise InputError('The data set has no image.')
        if len(images) != len(labels):
            raise ValueError(f'{len(images)} images and labels of {len(labels)}.')
        self.images, self.labels, self.boxes = images, labels, boxes
        self.class_names = list(class_names)
        self.transform = transform
        self.on_unreadable: Callable[[str, Exception], None] = warn_unreadable
        self._unreadable: set = set()

    @classmethod
    def from_samples(
            cls,
            root: Union[str, Path],
            samples: Sequence[Sample],
            class_names: Sequence[str],
            transform: Optional[Callable] = None,
            default: float = 0.,
    ) -> 'MultiLabelDataset':
        """Of image files below `root`.

        Raises:
            InputError: There is no sample, or image files are missing.
        """
        if not samples:
            raise InputError(f'{root}: the data set has no image.')
        files = ImageFiles(root, (s.file for s in samples))
        missing = files.missing()
        if missing:
            raise InputError(
                f'{len(missing)} of {len(samples)} images are missing below {root}, the first:'
                f' {samples[missing[0]].file}. Check --data-dir, or complete the download.')
        labels = SparseLabels(((s.labels, s.absent, s.unknown) for s in samples), len(class_names), default)
        boxes = Boxes(samples) if any(len(s.boxes) for s in samples) else None
        return cls(files, labels, class_names, boxes, transform)

    def __len__(self) -> int:
        return len(self.images)

    def target(self, index: int) -> torch.Tensor:
        """Target of one image without decoding it, float32 (num_classes,)."""
        return self.labels.target(index)

    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal digits of class names, labels, and which images there are; not of their content."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for part in (self.labels.ends, self.labels.classes, self.labels.values):
            digest.update(part.tobytes())
        digest.update(self.images.fingerprint())
        return digest.hexdigest()

    def targets(self) -> torch.Tensor:
        """All targets, float32 (len(self), num_classes)."""
        return torch.stack([self.target(i) for i in range(len(self))])

    def load(self, index: int) -> Image.Image:
        """One image as RGB. Raises one of UNREADABLE where it cannot be decoded."""
        return decode(self.images.read(index))

    def report_unreadable(self, index: int, error: Exception) -> None:
        if index not in self._unreadable:
            self._unreadable.add(index)
            self.on_unreadable(self.images.name(index), error)

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, torch.Tensor]:
        return self.item(index, self.load)

    def item(self, index: int, load: Callable[[int], Image.Image]) -> Tuple[torch.Tensor, torch.Tensor]:
        """Transformed image and target, whoever loads the image."""
        target = self.target(index)
        try:
            image = load(index)
        except UNREADABLE as error:
            self.report_unreadable(index, error)
            image, target = stand_in(target)
        if self.transform is not None:
            image = self.transform(image)
        return image, target
