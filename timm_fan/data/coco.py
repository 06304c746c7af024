"""Data sets in COCO's layout: `annotations/instances_SPLIT.json` beside the image folder `SPLIT/`."""
import contextlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Optional, Union

import numpy as np
from pycocotools.coco import COCO

from timm_fan.errors import InputError

from .dataset import MultiLabelDataset, Sample

__all__ = ['read_coco']


_REQUIRED = {
    'images': ('id', 'file_name'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox'),
    'categories': ('id', 'name'),
}


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(
        isinstance(v, (int, float)) and abs(v) < 1e9 for v in value)


_CHECKS = dict(
    id=_is_id, image_id=_is_id, category_id=_is_id, bbox=_is_box, name=lambda v: isinstance(v, str),
    file_name=lambda v: isinstance(v, str) and v != '' and '\x00' not in v)


def _load(file: Path) -> COCO:
    """Open an instances file with pycocotools after checking what it takes for granted."""
    try:
        content = json.loads(file.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f'{file} is not valid JSON ({error}). Download it again.') from error
    for key, fields in _REQUIRED.items():
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{file} has no list '{key}': it is not a COCO instances file.")
        for number, entry in enumerate(entries):
            missing = [f for f in fields if not isinstance(entry, dict) or f not in entry]
            if missing:
                raise InputError(f"{file}: entry {number} of '{key}' has no {', '.join(missing)}.")
            for field in fields:
                if not _CHECKS[field](entry[field]):
                    raise InputError(f"{file}: entry {number} of '{key}' has {field} {entry[field]!r:.80}.")

    for key, field in (('images', 'id'), ('categories', 'id'), ('categories', 'name')):
        counts = Counter(entry[field] for entry in content[key])
        twice = [value for value, count in counts.items() if count > 1]
        if twice:
            raise InputError(f"{file}: several of '{key}' have {field} {twice[0]!r}. Merged files need new ones.")
        if len({type(value) for value in counts}) > 1:
            raise InputError(f"{file}: some of '{key}' have a number and some a text as {field}.")
    category_ids = {category['id'] for category in content['categories']}
    image_ids = {image['id'] for image in content['images']}
    for annotation in content['annotations']:
        if annotation['category_id'] not in category_ids:
            raise InputError(
                f'{file}: annotation {annotation["id"]} has category_id {annotation["category_id"]}, which is not among'
                f' the {len(category_ids)} categories of the file. Add the category or remove the annotation.')
        if annotation['image_id'] not in image_ids:
            raise InputError(
                f'{file}: annotation {annotation["id"]} is of image_id {annotation["image_id"]}, which is not among'
                ' the images of the file. Add the image or remove the annotation.')

    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco.createIndex()
    return coco


def read_coco(root: Union[str, Path], split: str, transform: Optional[Callable] = None) -> MultiLabelDataset:
    """Read one split of a data set in COCO's layout.

    Classes are the file's categories in the order of their ids, as contiguous indices: the 80 of COCO 2014 become
    0..79. An image has the labels of all its annotations, crowds among them, as in the published protocols. Images
    without an object stay, with no label (COCO 2014 val: 40,504 images, not the 40,137 that have one).

    Args:
        root: Folder with `annotations/` and the image folders.
        split: E.g. 'train2014': names both the JSON file and the image folder.
        transform: Image transform.

    Raises:
        InputError: A folder, file or image is missing, the JSON is broken, or an annotation names a category or an
            image that the file does not list.
    """
    root = Path(root)
    file = root / 'annotations' / f'instances_{split}.json'
    if not root.is_dir():
        raise InputError(f'No data set folder {root}. --data-dir must name the folder with annotations/ and {split}/.')
    if not file.is_file():
        raise InputError(f'No annotation file {file}. --data-dir must name the folder with annotations/ and {split}/.')
    coco = _load(file)

    category_ids = sorted(coco.getCatIds())
    if not category_ids:
        raise InputError(f'{file} lists no category.')
    class_index = {category_id: i for i, category_id in enumerate(category_ids)}
    class_names = [category['name'] for category in coco.loadCats(category_ids)]

    samples = []
    for image_id in sorted(coco.imgs):
        annotations = coco.imgToAnns[image_id]
        box_labels = np.array([class_index[a['category_id']] for a in annotations], dtype=np.int64)
        boxes = np.array([a['bbox'] for a in annotations], dtype=np.float32).reshape(-1, 4)
        labels = tuple(sorted(set(box_labels.tolist())))
        image = coco.imgs[image_id]
        size = (image.get('width'), image.get('height'))
        size = size if all(isinstance(n, int) and 0 < n < 1e9 for n in size) else None
        samples.append(Sample(f'{split}/{image["file_name"]}', labels, boxes, box_labels, size=size))
    return MultiLabelDataset.from_samples(root, samples, class_names, transform)
