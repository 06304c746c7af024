"""From the bytes of an image file to an upright 8-bit RGB image."""
import io
import os
import warnings
from pathlib import Path
from typing import FrozenSet, Iterator, List, Sequence, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from timm_fan.errors import InputError
from timm_fan.files import printable

# raised by Pillow for an image that it cannot decode
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def load_image(source: Union[str, Path, bytes]) -> Image.Image:
    """Decode a file or its content, of an animation the first frame, to RGB, rotated by its EXIF orientation.

    Greyscale of more than 8 bits is scaled down. Transparent pixels become white, as most programs show them.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: Pillow cannot decode it (OSError also for a
            truncated file), or one side is more than 100 times the other, which resizing to the input size of a model
            would blow up.
    """
    try:
        with (
            warnings.catch_warnings(action='ignore', category=Image.DecompressionBombWarning),
            Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image,
        ):
            if max(image.size) > 100 * min(image.size):
                raise ValueError(f'{image.width} x {image.height} pixels: one side is more than 100 times the other')
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except UnidentifiedImageError as error:
        if isinstance(source, bytes):  # the message would name a buffer in memory
            raise UnidentifiedImageError('cannot identify image file') from error
        raise
    except UNREADABLE:
        raise
    except Exception as error:  # Pillow's plugins raise anything for damaged files
        raise OSError(f'{type(error).__name__}: {error}') from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image -> RGB. Greyscale of more than 8 bits is scaled down, transparent pixels become white."""
    image = _to_8_bits(image)
    if image.has_transparency_data:  # mostly black underneath
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
    return image if image.mode == 'RGB' else image.convert('RGB')  # convert() always copies


def walk_images(folder: Union[str, Path], parents: FrozenSet[str] = frozenset()) -> Iterator[str]:
    """Paths of `image_files`, one folder at a time. `parents` are the real paths of the folders above."""
    extensions, real = Image.registered_extensions(), os.path.realpath(folder)
    if real in parents:  # a link to a folder above
        return
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.name.startswith(('.', '__MACOSX')):
            continue
        if entry.is_dir():
            yield from walk_images(entry.path, parents | {real})
        elif os.path.splitext(entry.name)[1].lower() in extensions and entry.is_file():
            yield str(Path(entry.path))  # without ./


def image_files(folder: Path) -> List[Path]:
    """Files below a folder with the extension of an image, sorted, also in linked folders.

    Hidden files and folders (`._x.jpg` and `__MACOSX` of macOS, `.ipynb_checkpoints`) are left out.
    """
    return [Path(file) for file in walk_images(folder)]


def some_images(found: Iterator[str], path: Union[str, Path]) -> Iterator[str]:
    """What was found at a path. Raises InputError if it is nothing."""
    first = next(found, None)
    if first is None:
        raise InputError(f'There is no image in {printable(path)}.')
    yield first
    yield from found


def images_at(path: Union[str, Path]) -> Iterator[str]:
    """The path of a file, or those of `image_files`.

    Raises:
        InputError: The path does not exist, or a folder contains no image.
    """
    path = Path(path)
    if path.is_dir():
        yield from some_images(walk_images(path), path)
    elif path.is_file():
        yield str(path)
    else:
        raise InputError(f'No image file or folder {printable(path)}.')


def find_images(paths: Sequence[Union[str, Path]]) -> List[Path]:
    """Image files among `paths`, where folders are searched for files with the extension of an image.

    Raises:
        InputError: A path does not exist, or a folder contains no image.
    """
    return [Path(file) for path in paths for file in images_at(path)]


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale greyscale of more than 8 bits down.

    The range is 16 bits if a value exceeds 255, 0..1 for floats up to 1, and 8 bits otherwise.
    """
    if image.mode.startswith('I;16'):  # convert() would clip everything above 255 to white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ('I', 'F'):
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        highest = values.max()
        white = 65535. if highest > 255 else 1. if image.mode == 'F' and highest <= 1 else 255.
        return Image.fromarray((values * (255. / white)).clip(0, 255).astype(np.uint8))
    return image
