"""Folders of images: with a text file of labels for each, or a folder for each class."""
import re
from collections import defaultdict
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Union

from timm_fan.errors import InputError, raise_problems

from ..dataset import ImageFiles, MultiLabelDataset
from ..images import image_files
from ..packed import SparseLabels
from .cells import Row, read_labels
from .labels import Labelled, clean_names, index_labels
from .request import SPLIT_NAMES
from .splits import content_keys


def _images_in(folder: Path) -> List[str]:
    if not folder.is_dir():
        raise InputError(f'No folder {folder}.')
    files = [file.relative_to(folder).as_posix() for file in image_files(folder)]
    if not files:
        raise InputError(f'There is no image in {folder}.')
    return files


def read_label_files(
        folder: Union[str, Path], class_names: Optional[Sequence[str]] = None,
        sep: Optional[str] = None) -> MultiLabelDataset:
    """Read a folder of images with a text file of labels for each: `photo.jpg` and `photo.txt`.

    A text file has one label per line, or what a cell of a table may have. An empty one has no label.

    Args:
        folder: The folder, which is searched with its subfolders.
        class_names: Names in class order, by default those that occur, sorted.
        sep: Separator of labels, by default the one of | ; , tab and line break that occurs.

    Raises:
        InputError: There is no image, a text file is missing or not UTF-8, or a label is no class.
    """
    folder = Path(folder)
    files, rows, problems = _images_in(folder), [], []
    for file in files:
        text_file = (folder / file).with_suffix('.txt')
        try:
            text = text_file.read_text(encoding='utf-8-sig').strip()
        except FileNotFoundError:
            problems.append(f"{file}: no file '{text_file.name}' with its labels, which may be empty")
            continue
        except UnicodeDecodeError:
            problems.append(f"{file}: '{text_file.name}' is not UTF-8 text")
            continue
        rows.append(Row(text_file.name, (text,)))
    raise_problems(str(folder), problems)
    lines = [line for row in rows for line in row.cells[0].splitlines()]
    if lines and all(re.fullmatch(r'\d+(\s+[\d.eE+-]+){4,}\s*', line) for line in lines):
        raise InputError(f"{folder}: the text files have YOLO's format. Read them as yolo:data.yaml.")
    labelled, class_names = read_labels(str(folder), rows, class_names, problems, sep)
    class_names, indexed = index_labels(str(folder), labelled, class_names, problems)
    return MultiLabelDataset(ImageFiles(folder, files), SparseLabels(indexed, len(class_names)), class_names)


def read_class_folders(
        folder: Union[str, Path], class_names: Optional[Sequence[str]] = None) -> MultiLabelDataset:
    """Read a folder with a folder for each class, as torchvision's ImageFolder does.

    An image that is in the folders of several classes, as a link or as a copy, is one image with several labels.

    Args:
        folder: The folder.
        class_names: Names in class order, by default those of the folders, sorted.

    Raises:
        InputError: There is no image, or a folder is no class.
    """
    folder = Path(folder)
    files = [file for file in _images_in(folder) if '/' in file]
    if not files:
        raise InputError(f'{folder} has no folder of a class with images.')
    names = sorted({file.partition('/')[0] for file in files})
    if {name.lower() for name in names} <= {name for known in SPLIT_NAMES.values() for name in known} | {'test'}:
        raise InputError(f'{folder} has folders of splits, not of classes: {", ".join(names)}. Take folders:{{split}}.')
    merged: Dict[str, List[str]] = defaultdict(list)
    for key, file in zip(content_keys(ImageFiles(folder, files)), files):
        merged[key].append(file)
    images = [same[0] for same in merged.values()]
    labelled = [Labelled(same[0], [file.partition('/')[0].strip() for file in same]) for same in merged.values()]
    class_names = class_names or clean_names(str(folder), names)
    class_names, indexed = index_labels(str(folder), labelled, class_names)
    return MultiLabelDataset(ImageFiles(folder, images), SparseLabels(indexed, len(class_names)), class_names)
