"""Data sets of the Hugging Face library `datasets`: from the Hub, a local folder, or Parquet files."""
import hashlib
import os
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from timm.data import MultiLabelTarget
from torch.utils.data import IterableDataset

from timm_fan.errors import InputError

from .classes import Labelled, index_labels
from .dataset import UNREADABLE, MultiLabelDataset, SparseLabels, decode, stand_in, warn_unreadable

__all__ = ['HubImages', 'HubStream', 'read_hub']

LABEL_COLUMNS = ('labels', 'label', 'tags', 'objects', 'classes', 'categories')
# of an objects column, whose entries are boxes
CATEGORY_KEYS = ('category', 'categories', 'label', 'labels', 'category_id')
SPLITS = {'train': ('train',), 'val': ('validation', 'val', 'valid', 'test')}


def _content(value: Optional[Dict[str, Any]], folders: Sequence[str]) -> bytes:
    """The bytes of an image cell, or of the file that it names below one of `folders`."""
    if value is None:
        raise OSError('no image')
    if value.get('bytes') is not None:
        return value['bytes']
    paths = [os.path.abspath(os.path.join(folder, value['path'])) for folder in folders]
    path = next(filter(os.path.isfile, paths), os.path.abspath(value['path']))
    if not any(path.startswith(os.path.join(folder, '')) for folder in folders):
        raise OSError('the file lies outside of the data set')
    return Path(path).read_bytes()


class HubImages:
    """The image column of a `datasets.Dataset`, still encoded: rows stay on disk, memory-mapped."""

    def __init__(self, dataset: Any, column: str, folders: Sequence[str]):
        self.dataset = dataset.select_columns([column])
        self.column, self.folders = column, folders

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        path = (self.dataset[index][self.column] or {}).get('path')
        return f'row {index}' + (f' ({path})' if path else '')

    def fingerprint(self) -> bytes:
        return self.dataset._fingerprint.encode()

    def read(self, index: int) -> bytes:
        return _content(self.dataset[index][self.column], self.folders)


class HubStream(IterableDataset):
    """A streamed data set: items as of `MultiLabelDataset`, in the stream's order, with nothing kept.

    Args:
        dataset: A `datasets.IterableDataset` with the image column still encoded.
        image: Column of the images.
        labels: Column of the labels.
        class_names: Names in class order.
        length: Number of images.
        folders: Where files may lie that the column names instead of holding images.

    Attributes:
        on_unreadable: As of `MultiLabelDataset`, called every time.
    """
    boxes = None

    def __init__(
            self, dataset: Any, image: str, labels: str, class_names: Sequence[str], length: int,
            folders: Sequence[str]):
        self.dataset, self.image, self.labels_column, self.folders = dataset, image, labels, folders
        self.class_names = list(class_names)
        self.length = length
        self.transform: Optional[Callable] = None
        self.on_unreadable: Callable[[str, Exception], None] = warn_unreadable
        self.encode = MultiLabelTarget(len(self.class_names))
        self.index = {name: i for i, name in enumerate(self.class_names)}

    def shuffle_and_limit(self, length: int, seed: int, buffer_size: int = 1000) -> None:
        """For training: shuffled within a buffer, anew every epoch, and `length` images in each."""
        self.dataset = self.dataset.shuffle(seed=seed, buffer_size=buffer_size)
        self.length = length

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        for number, row in enumerate(islice(self.dataset, self.length)):
            try:
                labels = _row_labels(row[self.labels_column])
            except KeyError as error:
                raise InputError(f"row {number}: '{self.labels_column}' has {error.args[0]}.") from error
            indices = [label if isinstance(label, int) else self.index.get(label, -1) for label in labels]
            unknown = [label for label, i in zip(labels, indices) if not 0 <= i < len(self.class_names)]
            if unknown:
                raise InputError(f"row {number}: '{unknown[0]}' is not one of the {len(self.class_names)} classes.")
            target = self.encode(sorted(set(indices)))
            content = b''
            try:
                content = _content(row[self.image], self.folders)
                image = decode(content)
            except UNREADABLE as error:
                # its number differs from epoch to epoch
                name = (row[self.image] or {}).get('path') or f'of SHA-256 {hashlib.sha256(content).hexdigest()}'
                self.on_unreadable(name, error)
                image, target = stand_in(target)
            yield (self.transform(image) if self.transform is not None else image), target


def _local(name: str, root: Path) -> Optional[Path]:
    return next((p for p in (Path(name), root / name) if p.exists()), None)


def _open(name: str, root: Path, config: Optional[str], streaming: bool) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError('hub: needs the datasets library: pip install "timm-fan[data]".') from error
    local = _local(name, root)
    try:
        if local is None:
            return datasets.load_dataset(name, config, streaming=streaming)
        if (local / 'dataset_dict.json').is_file() or (local / 'dataset_info.json').is_file():
            return datasets.load_from_disk(str(local))
        return datasets.load_dataset(str(local), config, streaming=streaming)
    except Exception as error:  # the library has no common class for what can be wrong with a data set
        text = (str(error).splitlines() or [''])[0]
        raise InputError(f"hub:{name} cannot be opened: {type(error).__name__}: {text}") from error


def _class_names(feature: Any) -> Optional[List[str]]:
    """The names of the first ClassLabel inside a column's feature, which may be lists and dicts of features."""
    if getattr(feature, 'names', None):
        return list(feature.names)
    if isinstance(feature, dict):
        inner = [feature[k] for k in CATEGORY_KEYS if k in feature]
    elif isinstance(feature, (list, tuple)):
        inner = list(feature)
    else:
        inner = [getattr(feature, 'feature', None)]
    return next((names for f in inner if f is not None for names in [_class_names(f)] if names), None)


def _row_labels(value: Any) -> List[Any]:
    if value is None:
        return []
    if isinstance(value, dict):
        key = next((k for k in CATEGORY_KEYS if k in value), None)
        if key is None:
            raise KeyError(f'none of {", ".join(CATEGORY_KEYS)}')
        value = value[key]
    if not isinstance(value, (list, tuple)):
        value = [value]
    return [label for entry in value for label in (_row_labels(entry) if isinstance(entry, dict) else [entry])]


def read_hub(
        name: str,
        split: str,
        root: Union[str, Path] = '.',
        class_names: Optional[Sequence[str]] = None,
        config: Optional[str] = None,
        image: Optional[str] = None,
        labels: Optional[str] = None,
        streaming: bool = False,
        length: Optional[int] = None,
        transform: Optional[Callable] = None,
) -> Union[MultiLabelDataset, HubStream]:
    """Read one split of a `datasets` data set with an image column and a column of labels or objects.

    Args:
        name: Of the Hub, or a path: a folder of `save_to_disk`, of Parquet files, or of images and metadata.
        split: 'train' or 'val' (validation, val, valid or test, the first there is), or a split's own name.
        root: Folder that a path is relative to.
        class_names: Names in class order; by default the column's ClassLabel, else the labels that occur.
        config: Configuration of a data set that has several.
        image: Image column, by default the first with images.
        labels: A list of names or class indices, or objects (dicts with a category), by default the first there is of
            `LABEL_COLUMNS`.
        streaming: Read the images as they are needed and keep none: nothing is downloaded as a whole, the class names
            must be known beforehand, and training shuffles within a buffer.
        length: Number of images, for a stream whose data set does not say.
        transform: Image transform.

    Raises:
        InputError: The data set cannot be opened, or lacks the split or a column.
    """
    opened = _open(name, Path(root), config, streaming)
    if hasattr(opened, 'keys'):
        found = next((s for s in (split, *SPLITS.get(split, ())) if s in opened), None)
        if found is None:
            raise InputError(f"hub:{name} has no split '{split}', only: {', '.join(opened)}.")
        opened = opened[found]
    elif split not in ('train', str(opened.split)):
        raise InputError(f"hub:{name} is one split ('{opened.split}'), and '{split}' is wanted.")

    import datasets
    if streaming and isinstance(opened, datasets.Dataset):
        length, opened = len(opened), opened.to_iterable_dataset()
    features = opened.features or {}
    columns = ', '.join(features)
    if image is None:
        image = next((c for c, f in features.items() if isinstance(f, datasets.Image)), None)
        image = image or ('image' if 'image' in features else None)
    labels = labels or next((c for c in LABEL_COLUMNS if c in features), None)
    for what, column in (('image', image), ('labels', labels)):
        if column not in features:
            raise InputError(
                f'hub:{name} has no {what} column{f" {column}" if column else ""}: name it by {what}=. It has:'
                f' {columns}.')
    feature = features[image]
    if not (isinstance(feature, datasets.Image) or getattr(feature, 'dtype', None) == 'string'
            or isinstance(feature, dict) and {'bytes', 'path'} <= feature.keys()):
        raise InputError(f"hub:{name}: column '{image}' holds no images but {feature}.")
    opened = opened.cast_column(image, datasets.Image(decode=False))

    folders = [os.path.abspath(f) for f in (root, _local(name, Path(root)), datasets.config.HF_CACHE_HOME) if f]
    own_names = _class_names(features[labels])
    if streaming:
        return _stream(name, opened, image, labels, own_names, class_names, length, folders, transform)
    rows, problems = [], []
    for i, row in enumerate(opened.select_columns([labels])):
        try:
            present = _row_labels(row[labels])
        except KeyError as error:
            problems.append(f"row {i}: '{labels}' has {error.args[0]}")
            continue
        if own_names and class_names is not None:
            # by name: the model's order may be another
            present = [
                own_names[label] if isinstance(label, int) and 0 <= label < len(own_names) else label
                for label in present]
        rows.append(Labelled(f'row {i}', present))
    names, indexed = index_labels(f'hub:{name}', rows, class_names or own_names, problems)
    images = HubImages(opened, image, folders)
    return MultiLabelDataset(images, SparseLabels(indexed, len(names)), names, transform=transform)


def _stream(name, opened, image, labels, own_names, class_names, length, folders, transform) -> HubStream:
    if class_names is not None and own_names is not None and list(class_names) != own_names:
        raise InputError(f'hub:{name} is streamed and has other classes, or in another order, than the model.')
    if not (class_names or own_names):
        raise InputError(
            f"hub:{name}: column '{labels}' names no classes, which a stream must know: give classes=FILE.")
    if length is None:
        splits = opened.info.splits or {}
        length = splits[opened.split].num_examples if opened.split in splits else None
    if not length:
        raise InputError(f'hub:{name} does not say how many images it streams: give train_length= and val_length=.')
    stream = HubStream(opened, image, labels, class_names or own_names, length, folders)
    stream.transform = transform
    return stream
