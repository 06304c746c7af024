"""A training and a validation split of one set of images."""
import csv
import hashlib
import io
import re
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from timm_fan.errors import InputError
from timm_fan.files import printable, read_text, write_text

from ..dataset import Images, MultiLabelDataset

# iterative stratification takes minutes for thousands of classes
_MOST_CLASSES = 300


class Division(NamedTuple):
    """How a set of images is divided, with a fixed seed and similar frequencies of the labels in both parts.

    Attributes:
        text: What the user wrote, for messages.
        share: Share of the images for validation, in 0..1. None if they are divided into folds.
        fold, folds: The fold for validation, and the number of folds.
    """
    text: str
    share: Optional[float] = None
    fold: int = 0
    folds: int = 0

    @classmethod
    def parse(cls, key: str, value: str) -> Optional['Division']:
        """Of an option `val=0.2` or `fold=0/5`, None if it is neither.

        Raises:
            InputError: The share or fold is out of range.
        """
        text = f'{key}={value}'
        if key == 'fold':
            fold, slash, folds = value.partition('/')
            if not (slash and fold.isdecimal() and folds.isdecimal() and 0 <= int(fold) < int(folds) > 1):
                raise InputError(f'`data`: {text} must be a fold and their number, from fold=0/5 to fold=4/5.')
            return cls(text, fold=int(fold), folds=int(folds))
        if key == 'val' and re.fullmatch(r'\d+%|\d+[,/]\d+', value):
            raise InputError(f'`data`: {text} is no share. Write it as val=0.2.')
        try:
            share = float(value) if key == 'val' else None
        except ValueError:
            return None
        if share is None:
            return None
        if not 0 < share < 1:
            raise InputError(f'`data`: {text} leaves a split without images. Give a share between 0 and 1.')
        return cls(text, share)


def content_keys(images: Images) -> List[str]:
    """A key of each image, the same for equal content. Only images of the same size in bytes are read."""
    sizes: Dict[int, List[int]] = defaultdict(list)
    keys = [str(i) for i in range(len(images))]
    for i in range(len(images)):
        try:
            sizes[images.size(i)].append(i)
        except OSError:  # an unreadable image is no duplicate
            continue
    for size, same in sizes.items():
        for i in same if size and len(same) > 1 else ():
            try:
                keys[i] = hashlib.sha256(images.read(i)).hexdigest()
            except OSError:
                continue
    return keys


def _components(dataset: MultiLabelDataset) -> np.ndarray:
    """Number of the part that each image belongs to with all that have its content or group, int (len(dataset),)"""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(dataset)
    rows, columns, first = [], [], {}
    for kind, keys in (('content', content_keys(dataset.images)), ('group', dataset.groups or ())):
        for i, key in enumerate(keys):
            if key:
                rows.append(i)
                columns.append(first.setdefault((kind, key), i))
    links = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, count))
    return connected_components(links, directed=False)[1]


def _folds(division: Division, count: int) -> Tuple[List[int], int]:
    """The folds for validation, and the number of folds: 0.3 is three of ten."""
    if division.folds:
        return [division.fold], division.folds
    smaller = min(division.share, 1 - division.share)
    share = Fraction(smaller).limit_denominator(min(count, 20))
    if share == 0:  # one small fold
        share = Fraction(1, min(count, round(1 / smaller)))
    chosen, rest = range(share.numerator), range(share.numerator, share.denominator)
    return list(chosen if smaller == division.share else rest), share.denominator


def _stratified(labels: np.ndarray, folds: int) -> np.ndarray:
    """The columns of labels that are stratified: the rarest that can be in every fold, and which are few enough."""
    counts = labels.sum(0, dtype=np.int64)
    usable = np.flatnonzero(counts >= folds)
    return labels[:, usable[np.argsort(counts[usable], kind='stable')[:_MOST_CLASSES]]]


def divide(dataset: MultiLabelDataset, division: Division) -> np.ndarray:
    """Whether each image is for validation, bool (len(dataset),)

    Both parts have similar frequencies of each label, by iterative stratification
    (https://doi.org/10.1007/978-3-642-23808-6_10). Images of the same content or group stay together.

    Raises:
        InputError: A part has no image.
    """
    try:
        from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
    except ImportError as error:
        raise InputError(
            f'`data`: {division.text} requires iterative-stratification: pip install "timm-fan[train]".') from error
    parts = _components(dataset)
    count, classes = int(parts.max()) + 1, len(dataset.class_names)
    few = round(count * division.share) in (0, count) if division.share else count < division.folds
    if few:
        raise InputError(
            f'`data`: {division.text} of {count} different images leaves a split without images. Give another share.')
    labels = np.zeros((count, classes), dtype=np.int8)
    for i, part in enumerate(parts):
        listed, values = dataset.labels.listed(i)
        labels[part, listed[values == 1]] = 1
    chosen, folds = _folds(division, count)
    # images without a label are divided, too; a second column, because one is not multi-label
    more = np.stack([labels.sum(1) == 0, np.ones(count)], axis=1).astype(np.int8)
    labels = np.concatenate([_stratified(labels, folds), more], axis=1)
    found = [test for _, test in MultilabelStratifiedKFold(folds, shuffle=True, random_state=0).split(labels, labels)]
    return np.isin(parts, np.concatenate([found[fold] for fold in chosen]))


def write_division(file: Path, **splits: MultiLabelDataset) -> None:
    """Write which images are in which split, as CSV with the columns image and split."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator='\n')
    writer.writerow(['image', 'split'])
    for split, dataset in splits.items():
        writer.writerows([printable(dataset.images.key(i)), split] for i in range(len(dataset)))
    write_text(file, content.getvalue())


def read_division(file: Path, dataset: MultiLabelDataset) -> np.ndarray:
    """Whether each image is for validation in the file that `write_division` wrote, bool (len(dataset),)

    Raises:
        InputError: The file cannot be read, or its images are not those of the data set.
    """
    splits = {row.get('image'): row.get('split') for row in csv.DictReader(io.StringIO(read_text(file)))}
    keys = [printable(dataset.images.key(i)) for i in range(len(dataset))]
    new = [key for key in keys if splits.get(key) not in ('train', 'val')]
    if new or len(splits) != len(keys):
        first = f", the first: '{new[0]}'" if new else ''
        raise InputError(
            f'{file} divides {len(splits)} images, but the data set has {len(keys)}, of which {len(new)} are not in the'
            f' file{first}. The data has changed since the training: restore it, or train again.')
    return np.array([splits[key] == 'val' for key in keys])
