"""PASCAL VOC in the layout of its devkit: `ImageSets/Main`, `Annotations`, `JPEGImages`."""
from pathlib import Path
from typing import Dict, Union
from xml.etree import ElementTree

from timm_fan.errors import InputError, raise_problems
from timm_fan.files import read_lines

from ..dataset import MultiLabelDataset
from ..packed import Sample

VOC_CLASSES = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable', 'dog',
    'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor')

DIFFICULT = ('ignore', 'positive', 'negative')


def read_voc(
        data_dir: Union[str, Path], year: int, image_set: str, difficult: str = 'ignore') -> MultiLabelDataset:
    """Read one image set of PASCAL VOC.

    Args:
        data_dir: The folder `VOC2007` (or another year), or a folder that contains it, directly or in `VOCdevkit/`.
        year: For example 2007 or 2012.
        image_set: A list in `ImageSets/Main`: 'trainval', 'test', 'train' or 'val'.
        difficult: Label of a class in an image where all its objects are marked difficult: 'positive', 'negative', or
            'ignore' for unknown, because the evaluation of the devkit leaves such images out of the class.
            http://host.robots.ox.ac.uk/pascal/VOC/voc2007/devkit_doc_07-Jun-2007.pdf, Section 4.1.

    Raises:
        InputError: A folder, list, annotation or image is missing or damaged, or an object has an unknown class.
    """
    if difficult not in DIFFICULT:
        raise InputError(f"`difficult` must be one of {', '.join(DIFFICULT)}, got '{difficult}'.")
    root = Path(data_dir)
    folders = [root, root / f'VOC{year}', root / 'VOCdevkit' / f'VOC{year}']
    folder = next((f for f in folders if (f / 'ImageSets' / 'Main').is_dir()), None)
    if folder is None:
        raise InputError(
            f'No VOC devkit in {root}. `data_dir` must be the folder that contains VOC{year}/ImageSets/Main.')
    names = folder / 'ImageSets' / 'Main' / f'{image_set}.txt'
    if not names.is_file():
        raise InputError(f'No image list {names}.')

    class_index = {name: i for i, name in enumerate(VOC_CLASSES)}
    samples, problems = [], []
    for line in read_lines(names):
        if not line.strip():
            continue
        name = line.split()[0]
        if Path(name).name != name:
            problems.append(f"'{name}' is not a file name")
            continue
        file = folder / 'Annotations' / f'{name}.xml'
        try:
            samples.append(_read_annotation(file, f'JPEGImages/{name}.jpg', class_index, difficult))
        except (OSError, ElementTree.ParseError, KeyError, ValueError, AttributeError, TypeError) as error:
            problems.append(f'{file}: {type(error).__name__}: {error}')
    raise_problems(f'{names} cannot be read completely', problems, 'annotation')
    return MultiLabelDataset.from_samples(folder, samples, VOC_CLASSES)


def _read_annotation(file: Path, image: str, class_index: Dict[str, int], difficult: str) -> Sample:
    tree = ElementTree.parse(file)
    boxes, labels, easy = [], [], set()
    for item in tree.findall('object'):
        name = item.find('name').text.strip()
        if name not in class_index:
            raise ValueError(f"unknown class '{name}'")
        box = item.find('bndbox')
        left, top, right, bottom = (float(box.find(k).text) for k in ('xmin', 'ymin', 'xmax', 'ymax'))
        boxes.append((left - 1, top - 1, right - left + 1, bottom - top + 1))  # VOC counts pixels from 1, inclusive
        labels.append(class_index[name])
        if item.findtext('difficult', '0').strip() != '1' or difficult == 'positive':
            easy.add(class_index[name])
    unknown = set(labels) - easy if difficult == 'ignore' else ()
    size = tree.find('size')
    size = None if size is None else (int(size.findtext('width')), int(size.findtext('height')))
    return Sample(image, sorted(easy), boxes, labels, sorted(unknown), size=size)
