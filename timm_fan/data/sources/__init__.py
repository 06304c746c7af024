"""The data sources by name. A new source is a module that returns a MultiLabelDataset, and an entry in SOURCES."""
import inspect
import math
from functools import partial
from pathlib import Path
from typing import Callable, Dict, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from tqdm.auto import tqdm

from timm_fan.errors import InputError

from ..dataset import MultiLabelDataset
from .coco import read_coco
from .hf_datasets import read_hf_dataset
from .labels import read_class_names
from .scenes import write_scenes
from .shards import read_shards, write_shards
from .table import read_table
from .voc import VOC_CLASSES, read_voc


class Request(NamedTuple):
    """What is requested from a source. With `held_out`, both splits are parts of what it gives."""
    data_dir: Path
    where: str
    split: str
    class_names: Optional[Sequence[str]]
    held_out: bool = False

    def names(self, classes: Optional[str]) -> Optional[Sequence[str]]:
        """The class names of the request, otherwise those in the file `classes`."""
        return self.class_names or (read_class_names(self.data_dir / classes) if classes else None)

    def path(self, where: str) -> str:
        """The path for the requested split."""
        if '{split}' not in where and not self.held_out:
            raise InputError(
                f"`data`: '{where}' is the same for all splits. Write {{split}} in place of train and val, or hold out"
                ' a share with ?val=0.1.')
        return str(self.data_dir / where.replace('{split}', self.split))


def _voc(year: int, request: Request, train: str, val: str, difficult: str = 'ignore') -> MultiLabelDataset:
    return read_voc(request.data_dir, year, dict(train=train, val=val)[request.split], difficult)


def _table(
        request: Request, classes: Optional[str] = None, image: Optional[str] = None, labels: Optional[str] = None,
        images: Optional[str] = None, sep: Optional[str] = None, unlisted: str = 'absent') -> MultiLabelDataset:
    images = request.data_dir / images if images else None
    file = request.path(request.where or '{split}.csv')
    return read_table(file, request.names(classes), images, image, labels, sep, unlisted)


def _hub(
        request: Request, classes: Optional[str] = None, config: Optional[str] = None, image: Optional[str] = None,
        labels: Optional[str] = None) -> MultiLabelDataset:
    if not request.where:
        raise InputError('`data=hub:NAME` requires the name of a data set or a path.')
    return read_hf_dataset(
        request.where, request.split, request.data_dir, request.names(classes), config, image, labels)


def _shards(request: Request, classes: Optional[str] = None, unlisted: str = 'absent') -> MultiLabelDataset:
    return read_shards(request.path(request.where or '{split}-*.tar'), request.names(classes), unlisted)


# called with a Request and the options of the address, which are the other parameters
SOURCES: Dict[str, Callable[..., MultiLabelDataset]] = {
    'scenes': lambda request: read_coco(write_scenes(request.data_dir, progress=tqdm), request.split),
    'coco2014': lambda request: read_coco(request.data_dir, f'{request.split}2014'),
    'coco2017': lambda request: read_coco(request.data_dir, f'{request.split}2017'),
    'voc2007': partial(_voc, 2007, train='trainval', val='test'),
    'voc2012': partial(_voc, 2012, train='train', val='val'),
    'table': _table,
    'hub': _hub,
    'shards': _shards,
}


def create_dataset(
        data: str,
        data_dir: Union[str, Path],
        split: str,
        transform: Optional[Callable] = None,
        class_names: Optional[Sequence[str]] = None,
) -> MultiLabelDataset:
    """Open one split of a data source.

    Args:
        data: `NAME[:WHERE][?OPTION=VALUE&...]` with a NAME in SOURCES: `coco2014`, `voc2007?difficult=positive`,
            `table:labels_{split}.csv`, `hub:NAME`, `shards:{split}-{000..127}.tar`. With `val=0.1`, every source holds
            out this share of its training images, drawn with a fixed seed, as the validation split.
        data_dir: Folder of the data set, which a path in WHERE is relative to. Scenes are drawn in it once.
        split: 'train' or 'val'.
        transform: From PIL image to tensor.
        class_names: Classes of a model or of the training split, in order, for sources that only name labels.

    Raises:
        InputError: Unknown source or option, or its files are missing or damaged.
    """
    address, _, query = data.partition('?')
    name, _, where = address.partition(':')
    if name not in SOURCES:
        raise InputError(f"`data={data}` is not one of {', '.join(SOURCES)}.")
    source = SOURCES[name]
    known = [p for p in inspect.signature(source).parameters if p != 'request']
    options, share = {}, None
    for pair in filter(None, query.split('&')):
        key, sep, value = pair.partition('=')
        if key == 'val' and _is_number(value):
            share = float(value)
            continue
        if not sep or key not in known:
            raise InputError(
                f"`data={data}`: '{pair}' is not an option of {name}, which has:"
                f" {', '.join([*known, 'val=SHARE'])}.")
        options[key] = value
    held_out = share is not None
    dataset = source(Request(Path(data_dir), where, 'train' if held_out else split, class_names, held_out), **options)
    if held_out:
        dataset = _held_out(dataset, split, data, share)
    dataset.transform = transform
    return dataset


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _held_out(dataset: MultiLabelDataset, split: str, data: str, share: float) -> MultiLabelDataset:
    """The part of the training images for a split, of which `share` are for validation."""
    count = round(share * len(dataset)) if 0 < share < 1 else 0
    if not 0 < count < len(dataset):
        raise InputError(
            f'`data={data}`: val={share:g} of {len(dataset)} training images leaves a split without images. Give a'
            ' share between 0 and 1.')
    order = np.random.default_rng(0).permutation(len(dataset))
    return dataset.part(np.sort(order[:count] if split == 'val' else order[count:]))


def create_splits(data: str, data_dir: Union[str, Path]) -> Tuple[MultiLabelDataset, MultiLabelDataset]:
    """Open the training and validation split of a data source, with the same classes; arguments of `create_dataset`.

    Raises:
        InputError: As `create_dataset`, or the splits have different classes. Problems of both splits are reported
            together.
    """
    datasets, errors, names = [], {}, None
    for split in ('train', 'val'):
        try:
            datasets.append(create_dataset(data, data_dir, split, class_names=names))
            names = datasets[0].class_names
        except InputError as error:
            if not error.problems:
                raise
            errors[split] = error
    if errors:
        error = InputError('\n'.join(map(str, errors.values())))
        error.problems = [f'{split}: {problem}' for split, e in errors.items() for problem in e.problems]
        raise error
    train, val = datasets
    if train.class_names != val.class_names:
        raise InputError(f'{data} in {data_dir}: the training and validation split have different classes.')
    return train, val
