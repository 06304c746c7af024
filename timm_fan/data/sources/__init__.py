"""The data sources by name. A new source is a module that returns a MultiLabelDataset, and an entry in SOURCES."""
import os
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Optional, Sequence, Tuple, Union

import numpy as np
from tqdm.auto import tqdm

from timm_fan.errors import InputError

from ..dataset import MultiLabelDataset
from .coco import read_coco, read_coco_file
from .folders import read_class_folders, read_label_files
from .hf_datasets import read_hf_dataset
from .label_studio import read_label_studio
from .request import Address, Request
from .scenes import write_scenes
from .shards import expand_shards, read_shards, write_shards
from .splits import divide, read_division
from .table import read_table, table_path
from .voc import VOC_CLASSES, read_voc, read_voc_folder
from .yolo import read_yolo


def _coco(request: Request, year: int) -> MultiLabelDataset:
    return read_coco(request.data_dir, request.split_name(train=f'train{year}', val=f'val{year}'))


def _coco_file(request: Request, images: Optional[str] = None) -> MultiLabelDataset:
    file = request.path(request.where_or('{split}/_annotations.coco.json'))
    return read_coco_file(file, request.images(images))


def _voc(
        request: Request, year: int, train: str, val: str, difficult: str = 'ignore',
        classes: Optional[str] = None) -> MultiLabelDataset:
    image_set = request.split_name(train=train, val=val)
    return read_voc(request.data_dir, year, image_set, difficult, request.names(classes) or VOC_CLASSES)


def _voc_folder(
        request: Request, difficult: str = 'ignore', classes: Optional[str] = None) -> MultiLabelDataset:
    return read_voc_folder(request.folder(), request.names(classes), difficult)


def _table(
        request: Request, classes: Optional[str] = None, image: Optional[str] = None, labels: Optional[str] = None,
        images: Optional[str] = None, sep: Optional[str] = None, unlisted: str = 'absent',
        group: Optional[str] = None, split: Optional[str] = None) -> MultiLabelDataset:
    return read_table(
        table_path(request), request.names(classes), request.images(images), image, labels, sep, unlisted, group, split,
        request)


def _hub(
        request: Request, classes: Optional[str] = None, config: Optional[str] = None, image: Optional[str] = None,
        labels: Optional[str] = None, sep: Optional[str] = None) -> MultiLabelDataset:
    if not request.where:
        raise InputError('`data=hub:NAME` requires the name of a data set or a path.')
    split = request.split_names.get(request.split, request.split)
    return read_hf_dataset(
        request.where, split, request.data_dir, request.names(classes), config, image, labels, sep)


def _shards(
        request: Request, classes: Optional[str] = None, unlisted: str = 'absent',
        sep: Optional[str] = None) -> MultiLabelDataset:
    pattern = request.path(
        request.where_or('{split}-*.tar'), lambda path: any(map(os.path.isfile, expand_shards(path)[:1])))
    return read_shards(pattern, request.names(classes), unlisted, sep)


def _label_files(
        request: Request, classes: Optional[str] = None, sep: Optional[str] = None) -> MultiLabelDataset:
    return read_label_files(request.folder(), request.names(classes), sep)


def _class_folders(request: Request, classes: Optional[str] = None) -> MultiLabelDataset:
    return read_class_folders(request.folder(), request.names(classes))


def _yolo(request: Request) -> MultiLabelDataset:
    return read_yolo(request.data_dir / (request.where_or('data.yaml')), request.known_names())


def _label_studio(
        request: Request, classes: Optional[str] = None, images: Optional[str] = None) -> MultiLabelDataset:
    return read_label_studio(
        request.path(request.where_or('')), request.images(images) or request.data_dir, request.names(classes))


# called with a Request and the options of the address, which are the other parameters
SOURCES: Dict[str, Callable[..., MultiLabelDataset]] = {
    'scenes': lambda request: read_coco(
        write_scenes(request.data_dir, progress=tqdm), request.split_name(train='train', val='val')),
    'coco2014': partial(_coco, year=2014),
    'coco2017': partial(_coco, year=2017),
    'coco': _coco_file,
    'voc2007': partial(_voc, year=2007, train='trainval', val='test'),
    'voc2012': partial(_voc, year=2012, train='train', val='val'),
    'voc': _voc_folder,
    'table': _table,
    'hub': _hub,
    'shards': _shards,
    'txt': _label_files,
    'folders': _class_folders,
    'yolo': _yolo,
    'label_studio': _label_studio,
}


def create_dataset(
        data: str,
        data_dir: Union[str, Path],
        split: str,
        transform: Optional[Callable] = None,
        class_names: Optional[Sequence[str]] = None,
        division: Optional[Path] = None,
) -> MultiLabelDataset:
    """Open one split of a data source.

    Args:
        data: `NAME[:WHERE][?OPTION=VALUE&...]` with a NAME in SOURCES: `coco2014`, `voc2007?difficult=positive`,
            `table:labels_{split}.csv`, `hub:NAME`, `shards:{split}-{000..127}.tar`. For every source, `val=0.2` holds
            out this share of its training images as the validation split, `fold=0/5` the first of five parts, with a
            fixed seed and similar frequencies of the labels; `train=NAME` and `val=NAME` say what it calls the splits.
        data_dir: Folder of the data set, which a path in WHERE is relative to. Scenes are drawn in it once.
        split: 'train' or 'val'.
        transform: From PIL image to tensor.
        class_names: Classes of a model or of the training split, in order, for sources that only name labels.
        division: File of `write_division`. If there is one, and the address divides the images, they are divided as it
            says.

    Raises:
        InputError: Unknown source or option, or its files are missing or damaged.
    """
    address = Address.parse(data, SOURCES)
    dataset = _open(address, data_dir, split, class_names)
    if address.division:
        held_out = _held_out(address, dataset, division)
        dataset = dataset.part(np.flatnonzero(held_out if split == 'val' else ~held_out))
    dataset.transform = transform
    return dataset


def _open(
        address: Address, data_dir: Union[str, Path], split: str,
        class_names: Optional[Sequence[str]] = None) -> MultiLabelDataset:
    """The images of a split, or all of them if the address divides them."""
    whole = address.division is not None
    request = Request(
        Path(data_dir), address.where, 'train' if whole else split, class_names, address.split_names, whole)
    return SOURCES[address.name](request, **address.options)


def _held_out(address: Address, dataset: MultiLabelDataset, file: Optional[Path]) -> np.ndarray:
    """Whether each image is for validation: as in the file, if there is one."""
    if file is not None and file.is_file():
        return read_division(file, dataset)
    return divide(dataset, address.division)


def is_divided(data: str) -> bool:
    """Whether an address divides one set of images into splits. Raises InputError for an unknown source or option."""
    return Address.parse(data, SOURCES).division is not None


def create_splits(
        data: str, data_dir: Union[str, Path], division: Optional[Path] = None,
) -> Tuple[MultiLabelDataset, MultiLabelDataset]:
    """Open the training and validation split of a data source, with the same classes.

    Args:
        data: As for `create_dataset`.
        data_dir: As for `create_dataset`.
        division: As for `create_dataset`.

    Raises:
        InputError: As `create_dataset`, or the splits have different classes. Problems of both splits are reported
            together.
    """
    address = Address.parse(data, SOURCES)
    if address.division:
        dataset = _open(address, data_dir, 'train')
        held_out = _held_out(address, dataset, division)
        return dataset.part(np.flatnonzero(~held_out)), dataset.part(np.flatnonzero(held_out))
    datasets, errors, names = [], {}, None
    for split in ('train', 'val'):
        try:
            datasets.append(_open(address, data_dir, split, names))
            names = datasets[0].class_names
        except InputError as error:
            errors[split] = error
            if not error.problems:  # such as a missing file
                raise next(iter(errors.values())) from error
    if errors:
        error = InputError('\n'.join(map(str, errors.values())))
        error.problems = [f'{split}: {problem}' for split, e in errors.items() for problem in e.problems]
        raise error
    train, val = datasets
    if train.class_names != val.class_names:
        raise InputError(f'{data} in {data_dir}: the training and validation split have different classes.')
    return train, val
