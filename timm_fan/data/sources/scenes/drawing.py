"""Drawing of scenes: objects, distractors and backgrounds, which resemble photographs a little."""
import colorsys
import math
from typing import Callable, Dict, Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Color = Tuple[int, int, int]


def _rgb(hue: float, saturation: float, value: float) -> Color:
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue % 1, saturation, value))


class _Pen:
    """Draws in the unit square on a transparent patch."""

    def __init__(self, width: int, height: int, rng: np.random.Generator):
        self.image = Image.new('RGBA', (width, height), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.image)
        self.scale = np.array([width - 1, height - 1])
        self.stroke = max(1, round(0.08 * min(width, height)))
        hue, value = rng.random(), rng.uniform(0.55, 0.95)
        self.main = _rgb(hue, rng.uniform(0.45, 0.95), value)
        self.dark = _rgb(hue, 0.8, 0.4 * value)
        self.accent = _rgb(hue + rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.9), rng.uniform(0.7, 1.))

    def _xy(self, *points):
        return [tuple((np.array(p) * self.scale).tolist()) for p in points]

    def polygon(self, color, *points):
        self.draw.polygon(self._xy(*points), fill=color)

    def rect(self, color, x0, y0, x1, y1):
        self.draw.rectangle(self._xy((x0, y0), (x1, y1)), fill=color)

    def ellipse(self, color, x0, y0, x1, y1):
        self.draw.ellipse(self._xy((x0, y0), (x1, y1)), fill=color)

    def slice(self, color, x0, y0, x1, y1, start, end):
        self.draw.pieslice(self._xy((x0, y0), (x1, y1)), start, end, fill=color)

    def arc(self, color, x0, y0, x1, y1, start, end, width=1.):
        self.draw.arc(self._xy((x0, y0), (x1, y1)), start, end, fill=color, width=max(1, round(width * self.stroke)))

    def line(self, color, *points, width=1.):
        self.draw.line(self._xy(*points), fill=color, width=max(1, round(width * self.stroke)), joint='curve')


def _tree(pen, rng):
    pen.rect(_rgb(0.07, 0.6, 0.4), 0.43, 0.55, 0.57, 1)
    hue, value = rng.uniform(0.18, 0.42), rng.uniform(0.35, 0.75)
    for x, y, r in ((0.28, 0.42, 0.28), (0.72, 0.42, 0.28), (0.5, 0.24, 0.24), (0.5, 0.5, 0.26)):
        pen.ellipse(_rgb(hue, 0.7, value * rng.uniform(0.8, 1.1)), x - r, y - r, x + r, y + r)


def _ball(pen, rng):
    pen.ellipse(pen.main, 0, 0, 1, 1)
    for start in (0, 120, 240):
        pen.slice((245, 245, 245), 0, 0, 1, 1, start, start + 60)


def _house(pen, rng):
    pen.rect(pen.accent, 0.08, 0.42, 0.92, 1)
    pen.polygon(pen.dark, (0, 0.45), (0.5, 0), (1, 0.45))
    pen.rect(pen.main, 0.42, 0.65, 0.6, 1)
    for x in (0.16, 0.68):
        pen.rect((210, 230, 250), x, 0.55, x + 0.18, 0.73)
        pen.line((60, 60, 60), (x + 0.09, 0.55), (x + 0.09, 0.73), width=0.2)


def _bird(pen, rng):
    color = _rgb(rng.random(), 0.3, rng.uniform(0.05, 0.35))
    pen.polygon(color, (0, 0.15), (0.3, 0.25), (0.5, 0.75), (0.3, 0.55))
    pen.polygon(color, (1, 0.15), (0.7, 0.25), (0.5, 0.75), (0.7, 0.55))
    pen.ellipse(color, 0.38, 0.45, 0.62, 0.95)


def _car(pen, rng):
    pen.polygon(pen.main, (0.2, 0.45), (0.34, 0.05), (0.7, 0.05), (0.84, 0.45))
    pen.rect(pen.main, 0, 0.42, 1, 0.8)
    pen.polygon((190, 215, 235), (0.27, 0.42), (0.37, 0.13), (0.5, 0.13), (0.5, 0.42))
    pen.polygon((190, 215, 235), (0.54, 0.42), (0.54, 0.13), (0.67, 0.13), (0.77, 0.42))
    for x in (0.12, 0.64):
        pen.ellipse((25, 25, 25), x, 0.58, x + 0.23, 1)
        pen.ellipse((170, 170, 170), x + 0.07, 0.7, x + 0.16, 0.88)


def _cup(pen, rng):
    pen.arc(pen.main, 0.55, 0.2, 1, 0.75, 0, 360, width=1.4)
    pen.polygon(pen.main, (0, 0.1), (0.76, 0.1), (0.66, 1), (0.1, 1))
    pen.ellipse(pen.dark, 0, 0, 0.76, 0.22)


def _flower(pen, rng):
    pen.line((40, 130, 50), (0.5, 0.35), (0.5, 1), width=0.9)
    pen.ellipse((50, 140, 60), 0.5, 0.68, 0.92, 0.84)
    for angle in np.linspace(0, 2 * np.pi, 6)[:-1]:
        x, y = 0.5 + 0.3 * np.cos(angle), 0.3 + 0.2 * np.sin(angle)
        pen.ellipse(pen.main, x - 0.2, y - 0.13, x + 0.2, y + 0.13)
    pen.ellipse((250, 210, 60), 0.36, 0.21, 0.64, 0.39)


def _boat(pen, rng):
    pen.polygon(pen.dark, (0, 0.75), (1, 0.75), (0.82, 1), (0.16, 1))
    pen.line((90, 60, 40), (0.5, 0), (0.5, 0.78), width=0.6)
    pen.polygon((245, 245, 240), (0.46, 0.02), (0.46, 0.7), (0.04, 0.7))
    pen.polygon(pen.main, (0.55, 0.12), (0.55, 0.7), (0.92, 0.7))


def _rainbow(pen, rng):
    for i, hue in enumerate((0., 0.08, 0.15, 0.35, 0.6, 0.75)):
        inset = 0.05 * i
        pen.slice(_rgb(hue, 0.75, 0.95), inset, 2 * inset, 1 - inset, 2, 180, 360)
    inset = 0.3
    hole = Image.new('L', pen.image.size, 255)
    w, h = pen.scale
    ImageDraw.Draw(hole).ellipse((inset * w, 2 * inset * h, (1 - inset) * w, 2 * h), fill=0)
    pen.image.paste((0, 0, 0, 0), mask=hole.point(lambda v: 255 - v))


def _key(pen, rng):
    color = _rgb(rng.uniform(0.08, 0.16), rng.uniform(0.2, 0.8), rng.uniform(0.6, 0.95))
    pen.arc(color, 0, 0.08, 0.42, 0.92, 0, 360, width=2.4)
    pen.rect(color, 0.38, 0.4, 1, 0.6)
    pen.rect(color, 0.72, 0.55, 0.8, 1)
    pen.rect(color, 0.9, 0.55, 1, 1)


_SHAPES: Dict[str, Callable[[_Pen, np.random.Generator], None]] = {
    'tree': _tree, 'ball': _ball, 'house': _house, 'bird': _bird, 'car': _car, 'cup': _cup, 'flower': _flower,
    'boat': _boat, 'rainbow': _rainbow, 'key': _key,
}


def draw_object(rng: np.random.Generator, name: str, scale: float, aspect: float, size: int) -> Image.Image:
    """An object as an RGBA patch.

    Args:
        rng: Generator that decides on colour, size, light and rotation.
        name: Class of the object.
        scale: Typical area of its box as a share of the scene.
        aspect: Width over height of its box.
        size: Side of the scene in pixels.
    """
    side = size * math.sqrt(scale) * float(np.clip(np.exp(rng.normal(0, 0.15)), 0.7, 1.4))
    width, height = (max(6, round(min(v, 0.98 * size))) for v in
                     (side * math.sqrt(aspect), side / math.sqrt(aspect)))
    pen = _Pen(3 * width, 3 * height, rng)
    _SHAPES[name](pen, rng)
    patch = pen.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else pen.image
    # light from one side
    pixels = np.asarray(patch, np.float32).copy()
    ramp = np.linspace(*rng.permutation([0.75, 1.15]), pixels.shape[1])[None, :, None]
    pixels[..., :3] *= ramp * (1 + 0.06 * rng.standard_normal((*pixels.shape[:2], 1)))
    patch = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    patch = patch.rotate(rng.normal(0, 7), expand=True, resample=Image.Resampling.BILINEAR)
    patch = patch.resize((max(1, patch.width // 3), max(1, patch.height // 3)), Image.Resampling.BOX)
    return patch.crop(patch.getbbox())


def draw_distractor(rng: np.random.Generator, size: int) -> Image.Image:
    """A coloured shape that belongs to no class, as an RGBA patch."""
    side = round(size * rng.uniform(0.05, 0.22))
    pen = _Pen(3 * side, max(9, round(3 * side * rng.uniform(0.4, 1.))), rng)
    kind = rng.integers(4)
    if kind == 0:
        pen.ellipse(pen.main, 0, 0, 1, 1)
    elif kind == 1:
        pen.rect(pen.main, 0, 0, 1, 1)
    elif kind == 2:
        pen.polygon(pen.main, *rng.random((3, 2)))
    else:
        pen.line(pen.main, *rng.random((4, 2)), width=1.2)
    return pen.image.rotate(rng.uniform(0, 360), expand=True).reduce(3)


def _noise(rng: np.random.Generator, size: int, coarse: Tuple[int, int], octaves: int = 4) -> np.ndarray:
    """Smooth noise of several octaves, about -1..1, (size, size). `coarse` is its largest grain as (rows, columns)."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        rows, columns = (min(size, n * 2 ** octave) for n in coarse)
        grid = Image.fromarray(rng.standard_normal((rows + 1, columns + 1)).astype(np.float32))
        total += np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC)) / 2 ** octave
    return total / 2


def _shade(color: Color, texture: np.ndarray) -> np.ndarray:
    return np.array(color, np.float32) * (1 + texture[..., None])


def draw_background(rng: np.random.Generator, kind: str, size: int) -> np.ndarray:
    """A background of one of the scene types, float32 (size, size, 3) in about 0..255"""
    y = np.linspace(0, 1, size, dtype=np.float32)[:, None] * np.ones((1, size), np.float32)
    haze = _noise(rng, size, (3, 3))
    if kind == 'table':
        grain = _noise(rng, size, (24, 2) if rng.random() < 0.5 else (2, 24))
        return _shade(_rgb(rng.uniform(0.04, 0.12), rng.uniform(0.2, 0.7), rng.uniform(0.4, 0.85)), 0.15 * grain)
    if kind == 'room':
        wall = _shade(_rgb(rng.random(), rng.uniform(0.05, 0.4), rng.uniform(0.5, 0.9)), 0.06 * haze - 0.1 * y)
        stripes = np.sin(np.linspace(0, rng.uniform(20, 60), size, dtype=np.float32))[None, :, None]
        wall *= 1 + rng.choice([0, 0.05]) * stripes
        floor = _shade(_rgb(rng.uniform(0.04, 0.12), rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.7)),
                       0.12 * _noise(rng, size, (20, 3)))
        return np.where((y > rng.uniform(0.6, 0.8))[..., None], floor, wall)

    # all others have a sky
    sky = _shade(_rgb(rng.uniform(0.5, 0.66), rng.uniform(0.1, 0.6), rng.uniform(0.6, 0.95)), 0.25 * (y - 0.5))
    clouds = np.clip(_noise(rng, size, (4, 2)) - rng.uniform(-0.2, 0.7), 0, 1)[..., None]
    sky = sky * (1 - clouds) + 245 * clouds
    if kind == 'sky':
        return sky
    horizon = rng.uniform(0.3, 0.6) + 0.02 * _noise(rng, size, (1, 4))[:1]
    if kind == 'street':
        ground = _shade(_rgb(rng.random(), 0.06, rng.uniform(0.25, 0.55)), 0.12 * _noise(rng, size, (16, 16)))
    elif kind == 'meadow':
        ground = _shade(_rgb(rng.uniform(0.18, 0.36), rng.uniform(0.4, 0.8), rng.uniform(0.35, 0.7)),
                        0.25 * _noise(rng, size, (12, 24)))
    else:
        waves = np.sin(40 * y ** 2 + 3 * haze) * 0.08
        ground = _shade(_rgb(rng.uniform(0.48, 0.62), rng.uniform(0.4, 0.9), rng.uniform(0.35, 0.75)),
                        waves + 0.12 * _noise(rng, size, (24, 4)))
    return np.where((y > horizon)[..., None], ground, sky)


def paste(canvas: np.ndarray, patch: Image.Image, x: int, y: int, shadow: float) -> np.ndarray:
    """Blend a patch over the canvas in place, with a soft shadow. Returns its alpha on the canvas, 0..1."""
    size = canvas.shape[0]
    layer = Image.new('RGBA', (size, size), (0, 0, 0, 0))
    layer.paste(patch, (x, y))
    pixels = np.asarray(layer, np.float32)
    alpha = pixels[..., 3] / 255
    if shadow:
        offset = max(1, size // 64)
        blurred = layer.getchannel('A').filter(ImageFilter.GaussianBlur(1.5 * offset))
        cast = np.roll(np.asarray(blurred, np.float32) / 255, (offset, offset), (0, 1))
        canvas *= 1 - shadow * (cast * (1 - alpha))[..., None]
    canvas *= 1 - alpha[..., None]
    canvas += pixels[..., :3] * alpha[..., None]
    return alpha
