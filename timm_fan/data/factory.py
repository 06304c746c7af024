"""The data sources by name. A new one is a module that returns a MultiLabelDataset, and a line in SOURCES."""
from pathlib import Path
from typing import Callable, Optional, Union

from tqdm.auto import tqdm

from timm_fan.errors import InputError

from .coco import read_coco
from .dataset import MultiLabelDataset
from .scenes import write_scenes

__all__ = ['SOURCES', 'create_dataset']


def _coco(year: int):
    return lambda root, split, transform: read_coco(root, f'{split}{year}', transform)


def _scenes(preset: str):
    return lambda root, split, transform: read_coco(write_scenes(root, preset, progress=tqdm), split, transform)


SOURCES = {
    'coco2014': _coco(2014),
    'coco2017': _coco(2017),
    'scenes': _scenes('small'),
    'scenes-full': _scenes('full'),
}


def create_dataset(
        data: str,
        root: Union[str, Path],
        split: str,
        transform: Optional[Callable] = None,
) -> MultiLabelDataset:
    """Open one split of a data source.

    Args:
        data: A name in SOURCES.
        root: The data set's folder; for scenes, the folder below which they are drawn once.
        split: 'train' or 'val'.
        transform: Image transform.

    Raises:
        InputError: Unknown source, or its files are missing or broken.
    """
    if data not in SOURCES:
        raise InputError(f"--data '{data}' is not one of {', '.join(SOURCES)}.")
    return SOURCES[data](root, split, transform)
