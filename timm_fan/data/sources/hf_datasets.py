"""Data sets of Hugging Face's `datasets` library: from the Hub, a local folder, or Parquet files."""
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

from timm_fan.errors import InputError

from ..dataset import MultiLabelDataset
from ..packed import SparseLabels
from .cells import LABEL_KEYS, Row, read_labels
from .labels import LABEL_COLUMNS, Labelled, clean_names, index_labels
from .request import SPLIT_NAMES, Request

OBJECT_COLUMNS = ('objects', 'classes', 'categories')


def _content(value: Optional[Dict[str, Any]], folders: Sequence[str]) -> bytes:
    """Bytes of an image cell, or of the file that it names in one of `folders`."""
    value = value or {}
    if value.get('bytes') is not None:
        return value['bytes']
    if not value.get('path'):
        raise OSError('no image')
    paths = [os.path.abspath(os.path.join(folder, value['path'])) for folder in folders]
    path = next(filter(os.path.isfile, paths), os.path.abspath(value['path']))
    if not any(path.startswith(os.path.join(folder, '')) for folder in folders):
        raise OSError('the file is outside of the data set')
    return Path(path).read_bytes()


class ImageColumn:
    """The image column of a `datasets.Dataset`, still encoded. Rows stay on disk, memory-mapped."""

    def __init__(self, dataset: Any, column: str, folders: Sequence[str]):
        self.dataset = dataset.select_columns([column])
        self.column, self.folders = column, folders

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        path = (self.dataset[index][self.column] or {}).get('path')
        return f'row {index}' + (f' ({path})' if path else '')

    def key(self, index: int) -> str:
        return self.name(index)

    def size(self, index: int) -> int:
        return len(self.read(index))

    def fingerprint(self) -> bytes:
        return self.dataset._fingerprint.encode()

    def read(self, index: int) -> bytes:
        return _content(self.dataset[index][self.column], self.folders)


def _local(name: str, root: Path) -> Optional[Path]:
    return next((p for p in (Path(name), root / name) if p.exists()), None)


def _open(name: str, root: Path, config: Optional[str]) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError('hub: requires the datasets library: pip install "timm-fan[data]".') from error
    local = _local(name, root)
    try:
        if local is None:
            return datasets.load_dataset(name, config)
        if (local / 'dataset_dict.json').is_file() or (local / 'dataset_info.json').is_file():
            return datasets.load_from_disk(str(local))
        return datasets.load_dataset(str(local), config)
    except Exception as error:  # the library has no common class for its errors
        text = (str(error).splitlines() or [''])[0]
        raise InputError(f"hub:{name} cannot be opened: {type(error).__name__}: {text}") from error


def _class_names(feature: Any) -> Optional[List[str]]:
    """Names of the first ClassLabel in the feature of a column, which may consist of lists and dicts of features."""
    if getattr(feature, 'names', None):
        return list(feature.names)
    if isinstance(feature, dict):
        inner = [feature[k] for k in LABEL_KEYS if k in feature]
    elif isinstance(feature, (list, tuple)):
        inner = list(feature)
    else:
        inner = [getattr(feature, 'feature', None)]
    return next((names for f in inner if f is not None for names in [_class_names(f)] if names), None)


def _has_dicts(feature: Any) -> bool:
    """Whether the cells of a column are objects."""
    while hasattr(feature, 'feature'):
        feature = feature.feature
    return isinstance(feature, dict) or isinstance(feature, (list, tuple)) and any(map(_has_dicts, feature))


def _name(label: Any, names: Sequence[str]) -> Any:
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else label


def _choose_split(name: str, opened: Any, split: str) -> Any:
    if hasattr(opened, 'keys'):
        known = (split, *SPLIT_NAMES.get(split, ()), *(['test'] if split == 'val' else []))
        found = next((s for s in known if s in opened), None)
        if found is None:
            raise InputError(f"hub:{name} has no split '{split}', only: {', '.join(opened)}.")
        return opened[found]
    if split not in ('train', str(opened.split)):
        raise InputError(f"hub:{name} is a single split ('{opened.split}'), but '{split}' was requested.")
    return opened


def _check_column(name: str, features: Dict[str, Any], what: str, column: Optional[str]) -> None:
    if column not in features:
        raise InputError(
            f'hub:{name} has no {what} column{f" {column}" if column else ""}. Name it with {what}=. It has:'
            f' {", ".join(features)}.')


def _label_column(name: str, features: Dict[str, Any], labels: Optional[str]) -> str:
    labels = labels or next((c for c in LABEL_COLUMNS + OBJECT_COLUMNS if c in features), None)
    _check_column(name, features, 'labels', labels)
    return labels


def _image_column(name: str, features: Dict[str, Any], image: Optional[str]) -> str:
    import datasets

    if image is None:
        image = next((c for c, f in features.items() if isinstance(f, datasets.Image)), None)
        image = image or ('image' if 'image' in features else None)
    _check_column(name, features, 'image', image)
    feature = features[image]
    if not (isinstance(feature, datasets.Image) or getattr(feature, 'dtype', None) == 'string'
            or isinstance(feature, dict) and {'bytes', 'path'} <= feature.keys()):
        raise InputError(f"hub:{name}: column '{image}' contains no images but {feature}.")
    return image


def _images(name: str, opened: Any, image: str, data_dir: Union[str, Path]) -> ImageColumn:
    import datasets

    folders = [data_dir, _local(name, Path(data_dir)), datasets.config.HF_CACHE_HOME]
    column = opened.cast_column(image, datasets.Image(decode=False))
    return ImageColumn(column, image, [os.path.abspath(f) for f in folders if f])


def hf_images(request: Request, image: Optional[str] = None, config: Optional[str] = None) -> ImageColumn:
    """The images of a `datasets` data set, which needs no labels. Options and errors as for `read_hf_dataset`."""
    name = request.where
    if not name:
        raise InputError('`data=hub:NAME` requires the name of a data set or a path.')
    opened = _choose_split(
        name, _open(name, request.data_dir, config), request.split_names.get(request.split, request.split))
    return _images(name, opened, _image_column(name, opened.features or {}, image), request.data_dir)


def read_hf_dataset(
        name: str,
        split: str,
        data_dir: Union[str, Path] = '.',
        class_names: Optional[Sequence[str]] = None,
        config: Optional[str] = None,
        image: Optional[str] = None,
        labels: Optional[str] = None,
        sep: Optional[str] = None,
) -> MultiLabelDataset:
    """Read one split of a `datasets` data set with an image column and a column of labels or objects.

    Args:
        name: Name on the Hub, or a path: a folder of `save_to_disk`, of Parquet files, or of images and metadata.
        split: 'train' or 'val' (the first of val, valid, validation, dev and test that exists), or the name of a split.
        data_dir: Folder that a path is relative to.
        class_names: Names in class order, by default those of the column's ClassLabel, otherwise the labels that occur.
        config: Configuration of a data set that has several.
        image: Image column, by default the first one with images.
        labels: Column with a list of names or class indices, or with objects (dicts with a category), by default the
            first one that is in `LABEL_COLUMNS` or `OBJECT_COLUMNS`. Its cells are read as `cells.read_labels` does.
        sep: Separator of labels in a text, by default the one of | ; , tab and line break that occurs.

    Raises:
        InputError: The data set cannot be opened, or lacks the split or a column.
    """
    opened = _choose_split(name, _open(name, Path(data_dir), config), split)
    features = opened.features or {}
    image, labels = _image_column(name, features, image), _label_column(name, features, labels)
    own_names = _class_names(features[labels])
    own_names = clean_names(f'hub:{name}', own_names) if own_names else None
    source, problems = f'hub:{name}', []
    columns = [labels, *(name for name in ('absent', 'unknown') if name in opened.features)]
    rows = [
        Row(f'row {i}', tuple(row.get(name) for name in (labels, 'absent', 'unknown')))
        for i, row in enumerate(opened.select_columns(columns))]
    objects = _has_dicts(opened.features[labels])
    labelled, class_names = read_labels(
        source, rows, class_names, problems, sep, as_indices=bool(own_names) or objects)
    if own_names and class_names is not None:  # by name, because the model may have another order
        labelled = [Labelled(row.where, *([_name(label, own_names) for label in group] for group in row[1:]))
                    for row in labelled]
    names, indexed = index_labels(source, labelled, class_names or own_names, problems)
    images = _images(name, opened, image, data_dir)
    return MultiLabelDataset(images, SparseLabels(indexed, len(names)), names)
