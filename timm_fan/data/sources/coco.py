"""Data sets in the layout of COCO: `annotations/instances_SPLIT.json`, and the images in the folder `SPLIT/`."""
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Union

from timm_fan.errors import InputError, raise_problems
from timm_fan.files import read_json, write_text

from ..dataset import MultiLabelDataset
from ..packed import Sample
from .labels import clean_names

# class index, box (x, y, width, height) in pixels, area in pixels
CocoObject = Tuple[int, Tuple[float, float, float, float], int]
# content of the image file, its size as (width, height), its objects
CocoImage = Tuple[bytes, Tuple[int, int], Sequence[CocoObject]]


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_box(value: Any) -> bool:
    return not value or isinstance(value, list) and len(value) == 4 and all(
        isinstance(v, (int, float)) and abs(v) < 1e9 for v in value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != '' and '\x00' not in value


# the lists, with the fields that their entries must have, and those that they may have
_REQUIRED = {
    'images': dict(id=_is_id, file_name=_is_name),
    'annotations': dict(image_id=_is_id, category_id=_is_id),
    'categories': dict(id=_is_id, name=lambda v: isinstance(v, str)),
}
_OPTIONAL = {'images': {}, 'annotations': dict(bbox=_is_box), 'categories': {}}


def _check_entries(file: Path, content: Any) -> Dict[str, List[Dict[str, Any]]]:
    """The lists of the content, with ids as text. Raises InputError unless they have the fields of `_REQUIRED`."""
    lists = {}
    for key, required in _REQUIRED.items():
        entries = content.get(key) if isinstance(content, dict) else None
        if key == 'annotations' and entries is None and isinstance(content, dict) and key in content:
            entries = []
        if not isinstance(entries, list):
            raise InputError(f"{file} has no list '{key}': it is not a COCO instances file.")
        for number, entry in enumerate(entries):
            missing = [f for f in required if not isinstance(entry, dict) or f not in entry]
            if missing:
                raise InputError(f"{file}: entry {number} of '{key}' has no {', '.join(missing)}.")
            for field, is_valid in {**required, **_OPTIONAL[key]}.items():
                if field in entry and not is_valid(entry[field]):
                    raise InputError(f"{file}: entry {number} of '{key}' has an invalid {field}: {entry[field]!r:.80}.")
        lists[key] = [
            {k: str(v) if k in ('id', 'image_id', 'category_id') else v for k, v in entry.items()} for entry in entries]
    return lists


def _check_ids(file: Path, content: Dict[str, List[Dict[str, Any]]]) -> None:
    """Raise InputError unless ids are unique, and annotations refer to images and categories of the file."""
    for key, field in (('images', 'id'), ('categories', 'id'), ('categories', 'name')):
        counts = Counter(entry[field] for entry in content[key])
        repeated = [value for value, count in counts.items() if count > 1]
        if repeated:
            raise InputError(
                f"{file}: several of '{key}' have the {field} {repeated[0]!r}. Merged files need new ids and names.")
    problems = []
    for field, key in (('category_id', 'categories'), ('image_id', 'images')):
        ids = {entry['id'] for entry in content[key]}
        problems += [
            f"annotation {annotation.get('id', number)}: {field} '{annotation[field]}' is not among the {len(ids)}"
            f" '{key}' of the file" for number, annotation in enumerate(content['annotations'])
            if annotation[field] not in ids]
    raise_problems(str(file), problems, hints=['Add these entries, or remove the annotations.'])


def _without_root(content: Dict[str, List[Dict[str, Any]]]) -> List[Dict[str, Any]]:
    """The categories without one that only names the group of all others, as exports of Roboflow have it."""
    categories, used = content['categories'], {a['category_id'] for a in content['annotations']}
    for root in categories:
        others = [c for c in categories if c is not root]
        if root['id'] not in used and others and all(c.get('supercategory') == root['name'] for c in others):
            return others
    return categories


def _by_id(entries: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """In the order of their ids: of numbers, if all are."""
    numbers = all(re.fullmatch(r'-?\d+', entry['id']) for entry in entries)
    return sorted(entries, key=lambda entry: int(entry['id']) if numbers else entry['id'])


def _read(file: Path, root: Path, folder: str) -> MultiLabelDataset:
    """The images that a file lists, below `root`, in its folder `folder`."""
    content = _check_entries(file, read_json(file))
    content['categories'] = _without_root(content)
    _check_ids(file, content)
    if not content['categories']:
        raise InputError(f'{file} lists no categories.')
    categories = _by_id(content['categories'])
    class_index = {category['id']: i for i, category in enumerate(categories)}
    annotations = defaultdict(list)
    for annotation in content['annotations']:
        annotations[annotation['image_id']].append(annotation)

    samples, places = [], []
    for image in _by_id(content['images']):
        objects = annotations[image['id']]
        with_box = [o for o in objects if o.get('bbox')]
        size = (image.get('width'), image.get('height'))
        size = size if all(isinstance(n, int) and 0 < n < 1e9 for n in size) else None
        samples.append(Sample(
            image['file_name'], sorted({class_index[o['category_id']] for o in objects}),
            [o['bbox'] for o in with_box], [class_index[o['category_id']] for o in with_box], size=size))
        places.append(f'image {image["id"]}')
    names = clean_names(str(file), [category['name'] for category in categories])
    return MultiLabelDataset.from_samples(root, samples, names, folder, places)


def read_coco(data_dir: Union[str, Path], split: str) -> MultiLabelDataset:
    """Read one split of a data set in the layout of COCO.

    Classes are the categories of the file in the order of their ids, with consecutive indices: the 80 categories of
    COCO 2014 become 0..79. An image has the labels of all its annotations, including crowds and those without a box, as
    in the published protocols. Images without objects are kept, without a label (COCO 2014 val: 40,504 images, of which
    40,137 have objects). A category that is the `supercategory` of all others and has no annotation is no class.

    Args:
        data_dir: Folder with `annotations/` and the image folders.
        split: Name of both the JSON file and the image folder, e.g. 'train2014'.

    Raises:
        InputError: A folder, file or image is missing, the JSON is damaged, an annotation refers to a category or image
            that the file does not list, or an image is listed twice.
    """
    root = Path(data_dir)
    file = root / 'annotations' / f'instances_{split}.json'
    for path, what in ((root, 'data set folder'), (file, 'annotation file')):
        if not path.exists():
            raise InputError(
                f'No {what} {path}. `data_dir` must be the folder that contains annotations/ and {split}/. With'
                " --data 'coco:{split}/FILE.json', the file may be anywhere.")
    return _read(file, root, split)


def read_coco_file(file: Union[str, Path], images: Optional[Union[str, Path]] = None) -> MultiLabelDataset:
    """Read one JSON file of COCO's format, as Roboflow, CVAT and Label Studio export it; as `read_coco`.

    Args:
        file: The file.
        images: Folder of the images, by default that of the file, or `images/` in it or next to it.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f'No annotation file {file}.')
    if images is None:
        beside = (file.parent / 'images', file.parent.parent / 'images')
        images = next((folder for folder in beside if folder.is_dir()), file.parent)
    return _read(file, Path(images), '')


def write_coco(
        folder: Path,
        split: str,
        images: Iterable[CocoImage],
        categories: Sequence[Dict[str, Any]],
        first_id: int = 1,
        info: Optional[Dict[str, Any]] = None,
) -> None:
    """Write one split in the layout of COCO, as `SPLIT/000000.jpg`, ... and `annotations/instances_SPLIT.json`.

    Args:
        split: Name of the image folder, which must not exist yet.
        categories: Entries with `id` and `name`, in class order.
        first_id: Id of the first image. Annotation ids start after 100 times this id.
        info: The `info` of the JSON file.
    """
    (folder / split).mkdir(parents=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    content = dict(info=info or {}, images=[], annotations=[], categories=list(categories))
    for index, (encoded, (width, height), objects) in enumerate(images):
        image_id, name = first_id + index, f'{index:06d}.jpg'
        (folder / split / name).write_bytes(encoded)
        content['images'].append(dict(id=image_id, file_name=name, width=width, height=height))
        for label, box, area in objects:
            content['annotations'].append(dict(
                id=first_id * 100 + len(content['annotations']) + 1, image_id=image_id,
                category_id=categories[label]['id'], bbox=list(box), area=area, iscrowd=0))
    write_text(folder / 'annotations' / f'instances_{split}.json', json.dumps(content))
