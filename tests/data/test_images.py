"""Every kind of image becomes upright 8-bit RGB, or raises one of UNREADABLE."""
import numpy as np
import pytest
from helpers import encoded
from PIL import Image

from timm_fan.data import load_image

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)).resize((64, 48))
GREY = np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64)


@pytest.mark.parametrize('mode, name', [
    ('P', 'x.png'), ('RGBA', 'x.png'), ('LA', 'x.png'), ('1', 'x.png'), ('CMYK', 'x.jpg'), ('L', 'x.jpg'),
    ('P', 'x.gif')])
def test_every_mode_becomes_rgb(tmp_path, mode, name):
    Image.new('RGB', (6, 4), (250, 10, 10)).convert(mode).save(tmp_path / name)
    image = load_image(tmp_path / name)
    assert image.mode == 'RGB' and image.size == (6, 4)


def test_16_bit_image_is_scaled(tmp_path):
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / 'x.png')
    assert np.asarray(load_image(tmp_path / 'x.png')).mean() == pytest.approx(128, abs=1)


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (6, 4)).save(tmp_path / 'x.jpg', exif=exif)
    assert load_image(tmp_path / 'x.jpg').size == (4, 6)


@pytest.mark.parametrize('content', [
    encoded(PHOTO.convert('CMYK'), 'JPEG'),
    encoded(PHOTO.convert('P'), 'PNG'),
    encoded(PHOTO, 'GIF', save_all=True, append_images=[Image.new('RGB', PHOTO.size)]),
    encoded(PHOTO, 'WEBP', save_all=True, append_images=[Image.new('RGB', PHOTO.size)], lossless=True),
], ids=['CMYK', 'palette', 'animated GIF', 'animated WebP'])
def test_kinds_of_images_look_like_the_photo(content):
    """The first image of an animation, and colours as exact as the kind of file can store them."""
    difference = np.asarray(load_image(content), dtype=float) - np.asarray(PHOTO, dtype=float)
    assert np.abs(difference).mean() < 20


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_transparent_pixels_become_white(mode):
    drawing = Image.new('RGBA', (8, 8), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (2, 2, 4, 4))
    pixels = np.asarray(load_image(encoded(drawing.convert(mode), 'PNG')))
    assert (pixels[2:4, 2:4] == 0).all() and (pixels[5:] == 255).all()


@pytest.mark.parametrize('values', [
    (GREY * 65535).astype(np.uint16), (GREY * 65535).astype(np.int32), GREY, GREY * 255,
], ids=['16 bits', '32 bits', 'float 0..1', 'float 0..255'])
def test_deep_greys_keep_their_range(values):
    pixels = np.asarray(load_image(encoded(Image.fromarray(values), 'TIFF')), dtype=float)[..., 0]
    assert np.abs(pixels - 255 * GREY).max() <= 1.5


def test_lines_and_bombs_are_refused():
    with pytest.raises(ValueError, match='30000 x 1'):
        load_image(encoded(Image.new('L', (30000, 1)), 'PNG'))
    header = bytearray(encoded(Image.new('L', (8, 8)), 'BMP'))
    header[18:26] = np.array([60000, 60000], np.int32).tobytes()
    with pytest.raises(Image.DecompressionBombError):
        load_image(bytes(header))
