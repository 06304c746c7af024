"""YOLO's format: a YAML file with class names and folders of images, and a text file for each image."""
from pathlib import Path
from typing import Any, Dict, List, Sequence, Union

from timm_fan.errors import InputError, raise_problems
from timm_fan.files import read_lines, read_yaml

from ..dataset import MultiLabelDataset
from ..images import image_files
from ..packed import Sample
from .labels import clean_names


def _names(file: Path, content: Dict[str, Any]) -> List[str]:
    names = content.get('names')
    if isinstance(names, dict):
        by_index = {str(key): name for key, name in names.items()}
        names = [by_index.get(str(i)) for i in range(len(by_index))]
        if None in names:
            raise InputError(f"{file}: the keys of 'names' are not the class indices from 0 to {len(names) - 1}.")
    if not isinstance(names, list) or not names:
        raise InputError(f"{file} has no list of class names: 'names'.")
    return clean_names(str(file), list(map(str, names)))


def _folder(root: Path, entry: str) -> Path:
    """A folder or list of a split, also where the path leaves the folder of the file, as in exports of Roboflow."""
    candidates = [root / entry, root / str(entry).lstrip('./')]
    return next((path for path in candidates if path.exists()), candidates[0])


def _images(root: Path, entries: Any) -> List[Path]:
    """The image files of a split: of folders, or of text files that list them."""
    images: List[Path] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        path = _folder(root, str(entry))
        if path.is_dir():
            images += image_files(path)
        elif path.is_file():
            listed = (line.strip() for line in read_lines(path))
            images += [root / line if (root / line).exists() else path.parent / line for line in listed if line]
        else:
            raise InputError(f"No folder or list of images {path}.")
    return images


def _label_file(image: Path) -> Path:
    """`.../images/a/b.jpg` -> `.../labels/a/b.txt`, by the last folder named images. Otherwise next to the image."""
    parts = list(image.with_suffix('.txt').parts)
    if 'images' in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index('images')
        parts[last] = 'labels'
    return Path(*parts)


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
    samples, problems, with_labels = [], [], 0
    images = _images(root, content[split])
    for image in images:
        label_file = _label_file(image)
        try:
            classes = _classes(label_file, len(names)) if label_file.is_file() else []
            with_labels += label_file.is_file()
            samples.append(Sample(_relative(image, root), classes))
        except (ValueError, OSError) as error:
            problems.append(f'{label_file}: {error}')
    raise_problems(str(file), problems)
    if images and not with_labels:
        raise InputError(f'No image of {file} has a text file of labels, the first would be {_label_file(images[0])}.')
    return MultiLabelDataset.from_samples(root, samples, names)


def _first(entries: Any) -> Any:
    return entries[0] if isinstance(entries, list) else entries


def _relative(image: Path, root: Path) -> str:
    return image.relative_to(root).as_posix() if root in image.parents else str(image)
