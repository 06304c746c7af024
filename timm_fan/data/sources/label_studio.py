"""Label Studio's JSON export: a list of tasks with annotations."""
import logging
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union
from urllib.parse import parse_qs, unquote, urlparse

from timm_fan.errors import InputError, raise_problems
from timm_fan.files import read_json

from ..dataset import ImageFiles, MultiLabelDataset
from ..packed import SparseLabels
from ..paths import find_files
from .cells import LABEL_STUDIO_KEYS
from .labels import Labelled, index_labels

_logger = logging.getLogger(__name__)

# types of results that say nothing about classes
OTHER_TYPES = ('relation', 'textarea', 'rating', 'number', 'datetime')


def _image(task: Dict[str, Any]) -> str:
    """The path of the image of a task: the only text in its data that looks like one, or `image`.

    Raises:
        ValueError: There is none, or several.
    """
    data = task.get('data')
    texts = {k: v for k, v in data.items() if isinstance(v, str)} if isinstance(data, dict) else {}
    keys = ['image'] if 'image' in texts else [
        k for k, v in texts.items() if re.search(r'\.(jpe?g|png|webp|bmp|gif|tiff?)$', v, re.IGNORECASE)]
    if len(keys) != 1:
        raise ValueError(f'its data has {len(keys)} paths of images')
    url = urlparse(texts[keys[0]])
    local = parse_qs(url.query).get('d')  # /data/local-files/?d=PATH
    return local[0] if local else unquote(url.path) if url.scheme in ('http', 'https', 's3', 'gs') else texts[keys[0]]


def _names(annotation: Dict[str, Any]) -> List[str]:
    """The classes that an annotation names. Raises ValueError for one that cannot be read."""
    names = set()
    for result in annotation.get('result') or ():
        kind, value = (result.get('type'), result.get('value')) if isinstance(result, dict) else (None, None)
        if kind in OTHER_TYPES:
            continue
        key = next((k for k in LABEL_STUDIO_KEYS if k in value), None) if isinstance(value, dict) else None
        if key is None:
            raise ValueError(f"a result of type '{kind}' cannot be read")
        labels = value[key] if isinstance(value[key], list) else [value[key]]
        if not all(isinstance(label, str) for label in labels):
            raise ValueError(f"'{value!r:.60}' has no names of classes")
        names |= {label.strip() for label in labels}
    return sorted(names)


def read_label_studio(
        file: Union[str, Path], images: Union[str, Path],
        class_names: Optional[Sequence[str]] = None) -> MultiLabelDataset:
    """Read an export of Label Studio in its JSON format: image choices, and the labels of boxes and regions.

    Tasks that nobody has annotated are left out, with a note. Cancelled annotations do not count. For the formats
    JSON-MIN and CSV, see `read_table`. https://labelstud.io/guide/export

    Args:
        file: The JSON file.
        images: Folder that the paths of the images are below, in any folder of their end: of
            `/data/upload/1/ab12cd34-photo.jpg` also `photo.jpg`.
        class_names: Names in class order, by default those that occur, sorted.

    Raises:
        InputError: The file is no such export, annotators of an image disagree, or images are missing.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f'No file {file}. `data` must name the export, as label_studio:export.json.')
    tasks = read_json(file)
    if not isinstance(tasks, list) or not all(isinstance(t, dict) and 'annotations' in t for t in tasks):
        raise InputError(
            f'{file} is not an export of Label Studio in the format JSON: a list of tasks with data and annotations.'
            ' For JSON-MIN and CSV, take the source table:FILE.')
    paths, rows, problems, hints, skipped = [], [], [], [], 0
    for number, task in enumerate(tasks):
        place = f'task {task.get("id", number)}'
        annotations = [a for a in task['annotations'] or () if isinstance(a, dict) and not a.get('was_cancelled')]
        if not annotations:
            skipped += 1
            continue
        try:
            path, found = _image(task), {tuple(_names(annotation)) for annotation in annotations}
        except ValueError as error:
            problems.append(f'{place}: {error}')
            continue
        if len(found) > 1:
            problems.append(f'{place}: its annotations disagree: {" / ".join(str(list(names)) for names in found)}')
        else:
            paths.append(path)
            rows.append(Labelled(place, *found))
    files = find_files(images, paths, [row.where for row in rows], problems, hints)
    raise_problems(str(file), problems, hints=hints)
    if skipped:
        _logger.warning('%s: %d of %d tasks have no annotation, and are left out', file, skipped, len(tasks))
    names, indexed = index_labels(str(file), rows, class_names)
    return MultiLabelDataset(ImageFiles(images, files), SparseLabels(indexed, len(names)), names)
