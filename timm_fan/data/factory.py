"""The data sources by name. A new one is a module that returns a MultiLabelDataset, and a line in SOURCES."""
import inspect
from pathlib import Path
from typing import Callable, Dict, NamedTuple, Optional, Sequence, Union

from tqdm.auto import tqdm

from timm_fan.errors import InputError

from .classes import read_class_names
from .coco import read_coco
from .dataset import MultiLabelDataset
from .hub import read_hub
from .scenes import write_scenes
from .shards import read_shards
from .table import read_table
from .voc import read_voc

__all__ = ['SOURCES', 'create_dataset']


class Request(NamedTuple):
    """What a source is asked for."""
    root: Path
    where: str
    split: str
    class_names: Optional[Sequence[str]]


def _coco(year: int):
    def read(request: Request):
        return read_coco(request.root, f'{request.split}{year}')
    return read


def _scenes(preset: str):
    def read(request: Request):
        return read_coco(write_scenes(request.root, preset, progress=tqdm), request.split)
    return read


def _voc(year: int, image_sets: Dict[str, str]):
    def read(request: Request, difficult: str = 'ignore'):
        return read_voc(request.root, year, image_sets[request.split], difficult)
    return read


def _for_split(request: Request, where: str) -> str:
    if '{split}' not in where:
        raise InputError(f"--data: '{where}' names one file for all splits. Write {{split}} where train or val stands.")
    return str(request.root / where.replace('{split}', request.split))


def _table(
        request: Request, classes: Optional[str] = None, image: Optional[str] = None, labels: Optional[str] = None,
        images: Optional[str] = None, sep: Optional[str] = None, unlisted: str = 'absent'):
    names = request.class_names or (read_class_names(request.root / classes) if classes else None)
    images = request.root / images if images else None
    return read_table(
        _for_split(request, request.where or '{split}.csv'), names, images, image, labels, sep, unlisted)


def _hub(
        request: Request, classes: Optional[str] = None, config: Optional[str] = None, image: Optional[str] = None,
        labels: Optional[str] = None, streaming: str = 'false', train_length: Optional[str] = None,
        val_length: Optional[str] = None):
    if not request.where:
        raise InputError('--data hub:NAME needs the name of a data set or a path.')
    length = dict(train=train_length, val=val_length).get(request.split)
    if streaming not in ('true', 'false') or (length and not length.isdigit()):
        raise InputError('--data hub: streaming is true or false, train_length and val_length are whole numbers.')
    names = request.class_names or (read_class_names(request.root / classes) if classes else None)
    return read_hub(
        request.where, request.split, request.root, names, config, image, labels, streaming == 'true',
        int(length) if length else None)


def _shards(request: Request, classes: Optional[str] = None, unlisted: str = 'absent'):
    where = request.where or '{split}-*.tar'
    return read_shards(
        _for_split(request, where), request.class_names, request.root / classes if classes else None, unlisted)


SOURCES: Dict[str, Callable[..., MultiLabelDataset]] = {
    'scenes': _scenes('small'),
    'scenes-full': _scenes('full'),
    'coco2014': _coco(2014),
    'coco2017': _coco(2017),
    'voc2007': _voc(2007, dict(train='trainval', val='test')),
    'voc2012': _voc(2012, dict(train='train', val='val')),
    'table': _table,
    'hub': _hub,
    'shards': _shards,
}


def create_dataset(
        data: str,
        root: Union[str, Path],
        split: str,
        transform: Optional[Callable] = None,
        class_names: Optional[Sequence[str]] = None,
) -> MultiLabelDataset:
    """Open one split of a data source.

    Args:
        data: `NAME[:WHERE][?OPTION=VALUE&...]` with a NAME in SOURCES: `coco2014`, `voc2007?difficult=positive`,
            `table:labels_{split}.csv`, `hub:NAME`, `shards:{split}-{000..127}.tar`.
        root: The data set's folder, that a path in WHERE is relative to; for scenes, the folder below which they are
            drawn once.
        split: 'train' or 'val'.
        transform: Image transform.
        class_names: The classes of a model or of the training split, in their order, for sources that only name labels.

    Raises:
        InputError: Unknown source or option, or its files are missing or broken.
    """
    address, _, query = data.partition('?')
    name, _, where = address.partition(':')
    if name not in SOURCES:
        raise InputError(f"--data '{data}' is not one of {', '.join(SOURCES)}.")
    source = SOURCES[name]
    known = [p for p in inspect.signature(source).parameters if p != 'request']
    options = {}
    for pair in filter(None, query.split('&')):
        key, sep, value = pair.partition('=')
        if not sep or key not in known:
            raise InputError(
                f"--data '{data}': '{pair}' is not an option of {name}, which has: {', '.join(known) or 'none'}.")
        options[key] = value
    dataset = source(Request(Path(root), where, split, class_names), **options)
    dataset.transform = transform
    return dataset
