"""Data sets in the layout of COCO: `annotations/instances_SPLIT.json`, and the images in the folder `SPLIT/`."""
import json
from collections import Counter, defaultdict
from operator import itemgetter
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Union

from timm_fan.errors import InputError
from timm_fan.files import read_json, write_text

from ..dataset import MultiLabelDataset
from ..packed import Sample

# class index, box (x, y, width, height) in pixels, area in pixels
CocoObject = Tuple[int, Tuple[float, float, float, float], int]
# content of the image file, its size as (width, height), its objects
CocoImage = Tuple[bytes, Tuple[int, int], Sequence[CocoObject]]


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(
        isinstance(v, (int, float)) and abs(v) < 1e9 for v in value)


# the required lists and fields
_CHECKS = {
    'images': dict(id=_is_id, file_name=lambda v: isinstance(v, str) and v != '' and '\x00' not in v),
    'annotations': dict(id=_is_id, image_id=_is_id, category_id=_is_id, bbox=_is_box),
    'categories': dict(id=_is_id, name=lambda v: isinstance(v, str)),
}


def _check_entries(file: Path, content: Any) -> None:
    """Raise InputError unless the content has the lists and fields of `_CHECKS`."""
    for key, fields in _CHECKS.items():
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{file} has no list '{key}': it is not a COCO instances file.")
        for number, entry in enumerate(entries):
            missing = [f for f in fields if not isinstance(entry, dict) or f not in entry]
            if missing:
                raise InputError(f"{file}: entry {number} of '{key}' has no {', '.join(missing)}.")
            for field, is_valid in fields.items():
                if not is_valid(entry[field]):
                    raise InputError(f"{file}: entry {number} of '{key}' has an invalid {field}: {entry[field]!r:.80}.")


def _check_ids(file: Path, content: Dict[str, List[Dict[str, Any]]]) -> None:
    """Raise InputError unless ids are unique, and annotations refer to images and categories of the file."""
    for key, field in (('images', 'id'), ('categories', 'id'), ('categories', 'name')):
        counts = Counter(entry[field] for entry in content[key])
        repeated = [value for value, count in counts.items() if count > 1]
        if repeated:
            raise InputError(
                f"{file}: several of '{key}' have the {field} {repeated[0]!r}. Merged files need new ids and names.")
        if len({type(value) for value in counts}) > 1:
            raise InputError(f"{file}: '{key}' have both numbers and strings as {field}. Use one of the two.")
    for field, key in (('category_id', 'categories'), ('image_id', 'images')):
        ids = {entry['id'] for entry in content[key]}
        for annotation in content['annotations']:
            if annotation[field] not in ids:
                raise InputError(
                    f"{file}: annotation {annotation['id']} has {field} {annotation[field]}, which is not among the"
                    f" {len(ids)} '{key}' of the file. Add it there, or remove the annotation.")


def read_coco(data_dir: Union[str, Path], split: str) -> MultiLabelDataset:
    """Read one split of a data set in the layout of COCO.

    Classes are the categories of the file in the order of their ids, with consecutive indices: the 80 categories of
    COCO 2014 become 0..79. An image has the labels of all its annotations, including crowds, as in the published
    protocols. Images without objects are kept, without a label (COCO 2014 val: 40,504 images, of which 40,137 have
    objects).

    Args:
        data_dir: Folder with `annotations/` and the image folders.
        split: Name of both the JSON file and the image folder, e.g. 'train2014'.

    Raises:
        InputError: A folder, file or image is missing, the JSON is damaged, or an annotation refers to a category or
            image that the file does not list.
    """
    root = Path(data_dir)
    file = root / 'annotations' / f'instances_{split}.json'
    for path, what in ((root, 'data set folder'), (file, 'annotation file')):
        if not path.exists():
            raise InputError(
                f'No {what} {path}. `data_dir` must be the folder that contains annotations/ and {split}/.')
    content = read_json(file)
    _check_entries(file, content)
    _check_ids(file, content)
    if not content['categories']:
        raise InputError(f'{file} lists no categories.')
    categories = sorted(content['categories'], key=itemgetter('id'))
    class_index = {category['id']: i for i, category in enumerate(categories)}
    annotations = defaultdict(list)
    for annotation in content['annotations']:
        annotations[annotation['image_id']].append(annotation)

    samples = []
    for image in sorted(content['images'], key=itemgetter('id')):
        objects = annotations[image['id']]
        boxes, box_labels = [o['bbox'] for o in objects], [class_index[o['category_id']] for o in objects]
        size = (image.get('width'), image.get('height'))
        size = size if all(isinstance(n, int) and 0 < n < 1e9 for n in size) else None
        samples.append(Sample(f'{split}/{image["file_name"]}', sorted(set(box_labels)), boxes, box_labels, size=size))
    return MultiLabelDataset.from_samples(root, samples, [category['name'] for category in categories])


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
