"""YOLO's format: a YAML file with class names and folders of images, and a text file for each image."""
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

from timm_fan.errors import InputError, raise_problems
from timm_fan.files import read_lines, read_yaml

from ..dataset import ImageFiles, MultiLabelDataset
from ..images import image_files
from ..packed import SparseLabels
from ..paths import find_files
from .labels import clean_names

_logger = logging.getLogger(__name__)


def _names(file: Path, content: Dict[str, Any]) -> List[str]:
    names, count = content.get('names'), content.get('nc')
    if isinstance(names, dict):
        by_index = {str(key): name for key, name in names.items()}
        names = [by_index.get(str(i)) for i in range(len(by_index))]
        if None in names:
            raise InputError(f"{file}: the keys of 'names' are not the class indices from 0 to {len(names) - 1}.")
    if not isinstance(names, list) or not names:
        raise InputError(f"{file} has no list of class names: 'names'.")
    if any(isinstance(name, bool) for name in names):
        raise InputError(f"{file}: a class name is a truth value for YAML, such as yes or no. Write it in quotes.")
    if count not in (None, len(names)):
        raise InputError(f"{file}: nc is {count}, but 'names' has {len(names)} classes.")
    return clean_names(str(file), list(map(str, names)))


def _folder(root: Path, entry: str) -> Path:
    """A folder or list of a split, also where the path leaves the folder of the file, as in exports of Roboflow."""
    candidates = [root / entry, root / str(entry).lstrip('./')]
    return next((path for path in candidates if path.exists()), candidates[0])


def _images(root: Path, entries: Any) -> List[str]:
    """Paths of the images of a split, of folders or of text files that list them, as they stand there."""
    images: List[str] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        path = _folder(root, str(entry))
        if path.is_dir():
            images += [_relative(image, root) for image in image_files(path)]
        elif path.is_file():
            images += [line.strip() for line in read_lines(path) if line.strip()]
        else:
            raise InputError(f'No folder or list of images {path}.')
    return images


def _label_file(image: Path) -> Optional[Path]:
    """`.../images/a/b.jpg` -> `.../labels/a/b.txt`, by the last folder named images. Otherwise next to the image."""
    parts = list(image.with_suffix('').parts)
    named = [i for i, part in enumerate(parts[:-1]) if part.lower() == 'images']
    stems = [Path(*parts)]
    if named:
        stems = [Path(*parts[:named[-1]], name, *parts[named[-1] + 1:]) for name in ('labels', 'Labels')] + stems
    files = (stem.with_name(f'{stem.name}{suffix}') for stem in stems for suffix in ('.txt', '.TXT'))
    return next((file for file in files if file.is_file()), None)


def _classes(file: Path, count: int) -> List[int]:
    """Class indices of the lines of a label file. Raises ValueError."""
    classes = []
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        index = line.split()[0]
        if not index.isdecimal() or int(index) >= count:
            raise ValueError(f"line {number}: '{index}' is not a class index below {count}")
        classes.append(int(index))
    return sorted(set(classes))


def read_yolo(file: Union[str, Path], split_names: Sequence[str]) -> MultiLabelDataset:
    """Read one split of a data set in YOLO's format, without its boxes.

    Each line of the text file of an image starts with a class index. An image without a text file has no object, as in
    YOLO's own training. https://docs.ultralytics.com/datasets/detect/

    Args:
        file: The YAML file with `names`, the folders or lists of images of the splits, and optionally `path`, their
            root.
        split_names: What the split may be called, the most likely first.

    Raises:
        InputError: The YAML file, a folder or an image is missing, or a text file is damaged.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f'No file {file}. `data` must name the YAML file of the data set, as yolo:data.yaml.')
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise InputError(f'{file} must contain names, and the folders of the splits.')
    names = _names(file, content)
    split = next((name for name in split_names if content.get(name)), None)
    if split is None:
        raise InputError(
            f"{file} has no images of the split '{split_names[0]}'. Name another with ?val=..., or hold out a share"
            ' with ?val=0.2.')
    roots = [file.parent / str(content.get('path') or ''), file.parent]
    root = next((r for r in roots if _folder(r, str(_first(content[split]))).exists()), roots[0]).resolve()
    paths, problems, hints = _images(root, content[split]), [], []
    images = find_files(root, paths, [f'{split}: {path}' for path in paths], problems, hints)
    raise_problems(str(file), problems, hints=hints)
    labels, without = [], 0
    for image in images:
        label_file = _label_file(root / image)
        without += label_file is None
        try:
            labels.append((_classes(label_file, len(names)) if label_file else [],))
        except (ValueError, OSError) as error:
            problems.append(f'{label_file}: {error}')
    raise_problems(str(file), problems)
    if without == len(images):
        raise InputError(f'No image of {file} has a text file of labels, in labels/ for images/, or next to the image.')
    if without:
        _logger.warning('%s: %d of %d %s images have no text file, and so no object', file, without, len(images), split)
    return MultiLabelDataset(ImageFiles(root, images), SparseLabels(labels, len(names)), names)


def _first(entries: Any) -> Any:
    return entries[0] if isinstance(entries, list) else entries


def _relative(image: Path, root: Path) -> str:
    return image.relative_to(root).as_posix() if root in image.parents else str(image)
