"""PASCAL VOC in the layout of its devkit: `ImageSets/Main`, `Annotations`, `JPEGImages`."""
import re
from collections import Counter
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union
from xml.etree import ElementTree

from timm_fan.errors import InputError, raise_problems
from timm_fan.files import read_lines

from ..dataset import MultiLabelDataset
from ..packed import Sample
from .labels import clean_names

VOC_CLASSES = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable', 'dog',
    'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor')

DIFFICULT = ('ignore', 'positive', 'negative')
FLAGS = {'0': False, '1': True, 'false': False, 'true': True}


def read_voc(
        data_dir: Union[str, Path], year: int, image_set: str, difficult: str = 'ignore',
        class_names: Sequence[str] = VOC_CLASSES) -> MultiLabelDataset:
    """Read one image set of PASCAL VOC.

    Args:
        data_dir: The folder `VOC2007` (or another year), or a folder that contains it, directly or in `VOCdevkit/`.
        year: For example 2007 or 2012.
        image_set: A list in `ImageSets/Main`: 'trainval', 'test', 'train' or 'val'.
        difficult: Label of a class in an image where all its objects are marked difficult: 'positive', 'negative', or
            'ignore' for unknown, because the evaluation of the devkit leaves such images out of the class.
            http://host.robots.ox.ac.uk/pascal/VOC/voc2007/devkit_doc_07-Jun-2007.pdf, Section 4.1.
        class_names: Names in class order.

    Raises:
        InputError: A folder, list, annotation or image is missing or damaged, or an object has an unknown class.
    """
    root = Path(data_dir)
    folders = [root, root / f'VOC{year}', root / 'VOCdevkit' / f'VOC{year}']
    folder = next((f for f in folders if (f / 'ImageSets' / 'Main').is_dir()), None)
    if folder is None:
        raise InputError(
            f'No VOC devkit in {root}. `data_dir` must be the folder that contains VOC{year}/ImageSets/Main.')
    names = folder / 'ImageSets' / 'Main' / f'{image_set}.txt'
    if not names.is_file():
        raise InputError(f'No image list {names}.')
    files = [_listed(folder, line) for line in read_lines(names) if line.strip()]
    return _read(str(names), folder, files, 'JPEGImages', class_names, difficult)


def read_voc_folder(
        folder: Union[str, Path], class_names: Optional[Sequence[str]] = None,
        difficult: str = 'ignore') -> MultiLabelDataset:
    """Read a folder of images with an annotation in VOC's XML for each, as LabelImg, CVAT and Roboflow export it.

    Args:
        folder: Folder of the XML files, which are next to the images, or in `Annotations/` with the images in
            `JPEGImages/` or `images/`.
        class_names: Names in class order, by default those that occur, sorted.
        difficult: As for `read_voc`.

    Raises:
        InputError: As `read_voc`.
    """
    folder = Path(folder)
    annotations = folder / 'Annotations' if (folder / 'Annotations').is_dir() else folder
    files = sorted(
        file for file in annotations.rglob('*') if file.suffix.lower() == '.xml' and not file.name.startswith('.'))
    if not files:
        raise InputError(f'No annotation in VOC\'s XML in {folder}.')
    images = ''
    if annotations != folder:
        images = next((name for name in ('JPEGImages', 'images') if (folder / name).is_dir()), '')
    return _read(str(folder), folder, files, images, class_names, difficult, annotations)


def _listed(folder: Path, line: str) -> Path:
    """The annotation of a line in an image list: the name of an image, with an extension or a flag of some lists."""
    name = line.strip()
    without_flag = re.sub(r'\s+(-1|0|1)$', '', name)
    candidates = [name, without_flag, Path(without_flag).stem]
    files = [folder / 'Annotations' / f'{candidate}.xml' for candidate in candidates]
    return next((file for file in files if file.is_file()), files[1])


def _read(
        source: str, folder: Path, files: Sequence[Path], images: str, class_names: Optional[Sequence[str]],
        difficult: str, annotations: Optional[Path] = None) -> MultiLabelDataset:
    """The images of annotation files, whose images have the same names in the folder `images`."""
    if difficult not in DIFFICULT:
        raise InputError(f"`difficult` must be one of {', '.join(DIFFICULT)}, got '{difficult}'.")
    annotations = annotations or folder / 'Annotations'
    trees, problems = {}, []
    for file in files:
        try:
            if annotations.resolve() not in file.resolve().parents:
                raise ValueError(f"'{file.name}' is not a file name")
            trees[file] = _read_objects(file)
        except (OSError, ElementTree.ParseError, ValueError) as error:
            problems.append(f'{file}: {type(error).__name__}: {error}')
    found = Counter(item.name for _, items in trees.values() for item in items)
    if class_names is None:
        class_names = clean_names(source, sorted(found))
    unknown = {name: count for name, count in found.items() if name not in class_names}
    if unknown:
        some = ', '.join(f"'{name}' ({count})" for name, count in list(unknown.items())[:10])
        problems.append(f'{source}: objects of {len(unknown)} unknown classes: {some}')
    raise_problems(f'{source} cannot be read completely', problems, 'annotation', hints=[
        f'The {len(class_names)} classes are {", ".join(class_names[:20])}. For others, give classes=FILE, or take the'
        ' source voc:FOLDER for the classes that occur.'] if unknown else ())
    class_index = {name: i for i, name in enumerate(class_names)}
    samples = []
    for file in files:
        size, items = trees[file]
        image = file.relative_to(annotations).with_suffix('').as_posix()
        samples.append(_sample(image, size, items, class_index, difficult))
    return MultiLabelDataset.from_samples(folder, samples, class_names, images, list(map(str, files)))


class _Object(NamedTuple):
    """An object: its class, box (x, y, width, height) in pixels if there is one, and whether it is difficult."""
    name: str
    box: Optional[Tuple[float, float, float, float]]
    difficult: bool


def _size(tree: ElementTree.ElementTree) -> Optional[Tuple[int, int]]:
    """Width and height of the image, None if the annotation does not have them."""
    try:
        width, height = (round(float(tree.findtext(f'size/{key}'))) for key in ('width', 'height'))
    except (TypeError, ValueError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _read_objects(file: Path) -> Tuple[Optional[Tuple[int, int]], List[_Object]]:
    """The size of the image, and its objects. Raises ValueError for an object that is damaged."""
    tree = ElementTree.parse(file)
    if tree.getroot().tag != 'annotation':
        raise ValueError(f"it is no annotation, but '{tree.getroot().tag}'. Move it elsewhere")
    objects = []
    for item in tree.findall('object'):
        name, flag = (item.findtext('name') or '').strip(), (item.findtext('difficult') or '0').strip().lower()
        if not name:
            raise ValueError('an object without a name')
        if flag not in FLAGS:
            raise ValueError(f"difficult is '{flag}', not 0 or 1")
        box = None
        if item.find('bndbox') is not None:
            try:
                sides = (item.findtext(f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax'))
                left, top, right, bottom = map(float, sides)
            except (TypeError, ValueError) as error:
                raise ValueError(f"a damaged box of '{name}'") from error
            box = left - 1, top - 1, right - left + 1, bottom - top + 1  # VOC counts pixels from 1, inclusive
        objects.append(_Object(name, box, FLAGS[flag]))
    return _size(tree), objects


def _sample(
        image: str, size: Optional[Tuple[int, int]], items: Sequence[_Object], class_index: Dict[str, int],
        difficult: str) -> Sample:
    labels = {class_index[item.name] for item in items}
    easy = {class_index[item.name] for item in items if not item.difficult or difficult == 'positive'}
    boxed = [item for item in items if item.box is not None]
    return Sample(
        image, sorted(easy), [item.box for item in boxed], [class_index[item.name] for item in boxed],
        sorted(labels - easy) if difficult == 'ignore' else (), size)
