"""From the bytes of an image file to an upright 8-bit RGB image."""
import io
import warnings
from pathlib import Path
from typing import BinaryIO, List, Sequence, Tuple, Union

import numpy as np
from PIL import Image, ImageOps

from timm_fan.errors import InputError
from timm_fan.files import printable

# raised by Pillow for an image that it cannot decode
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def load_image(source: Union[str, Path, BinaryIO]) -> Image.Image:
    """Decode an image, or the first frame of an animation, to RGB, rotated by its EXIF orientation.

    Greyscale of more than 8 bits is scaled down. Transparent pixels become white.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: Pillow cannot decode it (OSError also for a
            truncated file), or one side is more than 100 times the other, which resizing to the input size of a model
            would blow up.
    """
    try:
        with Image.open(source) as image:
            _refuse_line(image.size)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            image = _on_white(_to_8_bits(image))
            return image if image.mode == 'RGB' else image.convert('RGB')  # convert() always copies
    except UNREADABLE:
        raise
    except Exception as error:  # Pillow's plugins raise anything for damaged files
        raise OSError(f'{type(error).__name__}: {error}') from error


def decode(content: bytes) -> Image.Image:
    """`load_image` for the content of a file, without a warning for large images."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)
        return load_image(io.BytesIO(content))


def find_images(paths: Sequence[Union[str, Path]]) -> List[Path]:
    """Image files among `paths`, where folders are searched for files with the extension of an image.

    Raises:
        InputError: A path does not exist, or a folder contains no image.
    """
    extensions = Image.registered_extensions()
    files: List[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob('*') if p.suffix.lower() in extensions)
            if not found:
                raise InputError(f'There is no image in {printable(path)}.')
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f'No image file or folder {printable(path)}.')
    return files


def _refuse_line(size: Tuple[int, int]) -> None:
    if max(size) > 100 * min(size):
        raise ValueError(f'{size[0]} x {size[1]} pixels: one side is more than 100 times the other')


def _on_white(image: Image.Image) -> Image.Image:
    """The image on a white background, as most programs show it. Transparent pixels are mostly black underneath."""
    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))


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
