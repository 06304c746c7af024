"""The one data set class, and the samples that every source brings to it."""
import logging
import warnings
from pathlib import Path
from typing import Callable, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import MultiLabelTarget
from torch.utils.data import Dataset

from timm_fan.errors import InputError

__all__ = ['MultiLabelDataset', 'Sample', 'UNKNOWN', 'load_image']

_logger = logging.getLogger(__name__)

# target of a label that nobody verified: it counts neither in a loss nor in a metric
UNKNOWN = -1.


class Sample(NamedTuple):
    """One image of a source.

    Attributes:
        file: Path below the data set's root.
        labels: Class indices present in the image, each once.
        boxes: Objects as (x, y, width, height) in pixels of the stored image, float32 (n, 4).
        box_labels: Class index of each box, int64 (n,).
        unknown: Class indices whose presence is not known.
    """
    file: str
    labels: Tuple[int, ...]
    boxes: np.ndarray
    box_labels: np.ndarray
    unknown: Tuple[int, ...] = ()


def load_image(file: Path) -> Image.Image:
    """Decode a whole image to RGB, upright by its EXIF orientation.

    Raises:
        OSError, ValueError, SyntaxError: Pillow cannot decode it; the first for truncated files too.
    """
    with Image.open(file) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith('I;16'):  # convert() would clip all above 255 to white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert('RGB')


class MultiLabelDataset(Dataset):
    """Images with multi-hot targets.

    An item is (image, target): the transformed image and a float32 target (num_classes,) of 1 present, 0 absent,
    -1 unknown.

    An image that cannot be decoded does not end a run: it is named in a warning and comes as a uniformly grey image
    with all labels unknown, so that it counts neither in the loss nor in a metric. `index in unreadable` tells which.

    Args:
        root: Folder that the samples' files are relative to.
        samples: The source's images.
        class_names: Names in the order of the class indices.
        transform: From PIL image to tensor, timm's `create_transform` for example.

    Raises:
        InputError: There is no sample, or image files are missing.
    """

    def __init__(
            self,
            root: Path,
            samples: Sequence[Sample],
            class_names: Sequence[str],
            transform: Optional[Callable] = None,
    ):
        self.root = Path(root)
        self.samples = list(samples)
        self.class_names = list(class_names)
        self.transform = transform
        self.encode = MultiLabelTarget(len(self.class_names))
        self.unreadable: set = set()
        self._check_files()

    def _check_files(self) -> None:
        if not self.samples:
            raise InputError(f'{self.root}: the data set has no image.')
        # one listing a folder, as stat of every file is slow on network drives
        present = {}
        for folder in {str(Path(s.file).parent) for s in self.samples}:
            path = self.root / folder
            present[folder] = {p.name for p in path.iterdir()} if path.is_dir() else set()
        missing = [s.file for s in self.samples if Path(s.file).name not in present[str(Path(s.file).parent)]]
        if missing:
            raise InputError(
                f'{len(missing)} of {len(self.samples)} images are missing below {self.root}, the first: {missing[0]}.'
                ' Check --data-dir, or complete the download.')

    def __len__(self) -> int:
        return len(self.samples)

    def target(self, index: int) -> torch.Tensor:
        """Target of one image without decoding it, float32 (num_classes,)."""
        sample = self.samples[index]
        target = self.encode(sample.labels)
        if sample.unknown:
            target[list(sample.unknown)] = UNKNOWN
        return target

    def targets(self) -> torch.Tensor:
        """All targets, float32 (len(self), num_classes)."""
        return torch.stack([self.target(i) for i in range(len(self))])

    def file(self, index: int) -> Path:
        return self.root / self.samples[index].file

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, torch.Tensor]:
        target = self.target(index)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', Image.DecompressionBombWarning)
                image = load_image(self.file(index))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if index not in self.unreadable:
                self.unreadable.add(index)
                _logger.warning(
                    'unreadable image %s (%s): its labels count as unknown, the run goes on.', self.file(index), error)
            image = Image.new('RGB', (64, 64), (128, 128, 128))
            target = torch.full_like(target, UNKNOWN)
        if self.transform is not None:
            image = self.transform(image)
        return image, target
