"""Scenes: drawn, photograph-like multi-label images in COCO's layout, the embedded default data set.

Made to hold what the FAN paper is about (Section I): each class has a scale of its own, from 1% to 60% of the image,
the class frequencies have a long tail, and latent scene types make labels co-occur.
"""
import colorsys
import json
import math
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple, Union

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from timm_fan.errors import InputError

__all__ = ['CLASSES', 'PRESETS', 'ScenesPreset', 'SceneClass', 'draw_scene', 'write_scenes']

# raised whenever the same seed draws other images
VERSION = 1

SCENE_TYPES = ('street', 'meadow', 'sea', 'table', 'sky', 'room')
# odds of a class outside of its scene types, relative to those inside
_LEAK = 0.2
# smallest share of an object's pixels that must stay visible for it to be labelled
_MIN_VISIBLE = 0.4
_EMPTY_SHARE = 0.03
_GREY_SHARE = 0.03

# class index, box (x, y, width, height) in pixels, number of visible pixels
SceneObject = Tuple[int, Tuple[float, float, float, float], int]


class SceneClass(NamedTuple):
    """A class: scale is the typical box area as a share of the image, frequency the share of images that show it."""
    name: str
    scale: float
    frequency: float
    aspect: float
    types: Tuple[str, ...]


CLASSES = (
    #          name            scale  freq.  w/h
    SceneClass('tree',          0.200, 0.50, 0.70, ('meadow', 'street', 'sky', 'sea')),
    SceneClass('ball',          0.016, 0.37, 1.00, ('meadow', 'sea', 'room')),
    SceneClass('house',         0.300, 0.28, 1.00, ('street', 'meadow')),
    SceneClass('bird',          0.022, 0.22, 1.60, ('sky', 'sea')),
    SceneClass('car',           0.120, 0.18, 1.80, ('street',)),
    SceneClass('cup',           0.050, 0.15, 1.15, ('table', 'room')),
    SceneClass('flower',        0.030, 0.12, 0.70, ('meadow', 'table')),
    SceneClass('boat',          0.100, 0.09, 1.00, ('sea',)),
    SceneClass('rainbow',       0.600, 0.035, 1.70, ('sky',)),
    SceneClass('key',           0.012, 0.01, 2.00, ('table',)),
    SceneClass('lamp',          0.080, 0.20, 0.60, ('room', 'street')),
    SceneClass('chair',         0.150, 0.17, 0.70, ('room',)),
    SceneClass('clock',         0.050, 0.14, 1.00, ('room', 'street')),
    SceneClass('book',          0.040, 0.11, 1.20, ('table', 'room')),
    SceneClass('fish',          0.030, 0.08, 1.70, ('sea',)),
    SceneClass('kite',          0.045, 0.05, 0.80, ('sky', 'meadow')),
    SceneClass('balloon',       0.250, 0.04, 0.75, ('sky',)),
    SceneClass('umbrella',      0.180, 0.03, 1.10, ('sea', 'street')),
    SceneClass('traffic light', 0.020, 0.02, 0.45, ('street',)),
    SceneClass('whale',         0.450, 0.012, 1.70, ('sea',)),
)


@dataclass(frozen=True)
class ScenesPreset:
    """The first `num_classes` of CLASSES on square images of `img_size` pixels a side."""
    num_classes: int
    img_size: int
    num_train: int
    num_val: int


PRESETS = {
    'small': ScenesPreset(10, 128, 6000, 1000),
    'full': ScenesPreset(20, 256, 10000, 5000),
}


class _Pen:
    """Draws in a unit square on a transparent patch."""

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


def _rgb(hue: float, saturation: float, value: float) -> Tuple[int, int, int]:
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue % 1, saturation, value))


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


def _lamp(pen, rng):
    pen.polygon(pen.main, (0.25, 0), (0.75, 0), (1, 0.42), (0, 0.42))
    pen.rect((80, 80, 85), 0.45, 0.42, 0.55, 0.93)
    pen.ellipse((80, 80, 85), 0.2, 0.88, 0.8, 1)


def _chair(pen, rng):
    pen.rect(pen.main, 0, 0, 0.16, 1)
    for y in (0.06, 0.24):
        pen.rect(pen.main, 0.1, y, 0.3, y + 0.1)
    pen.rect(pen.main, 0, 0.5, 1, 0.62)
    pen.rect(pen.dark, 0.86, 0.6, 1, 1)
    pen.rect(pen.dark, 0.3, 0.6, 0.4, 0.88)


def _clock(pen, rng):
    pen.ellipse(pen.dark, 0, 0, 1, 1)
    pen.ellipse((248, 248, 240), 0.12, 0.12, 0.88, 0.88)
    for length in (0.22, 0.33):
        angle = rng.uniform(0, 2 * np.pi)
        pen.line((20, 20, 20), (0.5, 0.5), (0.5 + length * np.cos(angle), 0.5 + length * np.sin(angle)), width=0.8)


def _book(pen, rng):
    for side in (-1, 1):
        pen.polygon(pen.main, (0.5, 0.15), (0.5 + 0.5 * side, 0), (0.5 + 0.5 * side, 0.85), (0.5, 1))
        pen.polygon((250, 246, 235), (0.5, 0.2), (0.5 + 0.42 * side, 0.08), (0.5 + 0.42 * side, 0.78), (0.5, 0.92))
        for y in (0.3, 0.45, 0.6):
            pen.line((90, 90, 90), (0.5 + 0.08 * side, y + 0.04), (0.5 + 0.34 * side, y - 0.04), width=0.4)


def _fish(pen, rng):
    pen.polygon(pen.accent, (0.66, 0.5), (1, 0.05), (0.92, 0.5), (1, 0.95))
    pen.ellipse(pen.main, 0, 0.12, 0.78, 0.88)
    pen.ellipse((250, 250, 250), 0.12, 0.3, 0.24, 0.5)
    for x in (0.36, 0.52):
        pen.line(pen.accent, (x, 0.22), (x, 0.78))


def _kite(pen, rng):
    points = (0.5, 0), (1, 0.35), (0.5, 0.8), (0, 0.35)
    pen.polygon(pen.main, *points)
    pen.polygon(pen.accent, points[0], points[1], (0.5, 0.35))
    pen.polygon(pen.accent, points[2], points[3], (0.5, 0.35))
    pen.line((60, 60, 60), (0.5, 0.8), (0.62, 0.88), (0.45, 0.94), (0.6, 1), width=0.4)


def _balloon(pen, rng):
    pen.polygon(pen.dark, (0.08, 0.45), (0.92, 0.45), (0.6, 0.84), (0.4, 0.84))
    for i, x in enumerate((0., 0.2, 0.4)):
        pen.ellipse((pen.main, pen.accent, pen.main)[i], x, 0, 1 - x, 0.72)
    pen.rect((120, 80, 40), 0.4, 0.88, 0.6, 1)


def _umbrella(pen, rng):
    pen.slice(pen.main, 0, 0, 1, 1, 180, 360)
    pen.slice(pen.accent, 0.25, 0, 0.75, 1, 180, 360)
    pen.rect((70, 70, 70), 0.48, 0.45, 0.53, 0.92)
    pen.arc((70, 70, 70), 0.48, 0.85, 0.66, 1, 0, 180, width=0.6)


def _traffic_light(pen, rng):
    pen.rect((35, 38, 40), 0, 0, 1, 0.78)
    pen.rect((60, 60, 60), 0.4, 0.78, 0.6, 1)
    lit = rng.integers(3)
    for i, color in enumerate(((235, 50, 40), (245, 190, 40), (60, 210, 90))):
        dim = tuple(v // (1 if i == lit else 3) for v in color)
        pen.ellipse(dim, 0.2, 0.03 + 0.25 * i, 0.8, 0.25 + 0.25 * i)


def _whale(pen, rng):
    color = _rgb(rng.uniform(0.5, 0.68), rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.7))
    pen.polygon(color, (0.62, 0.5), (0.9, 0.3), (0.8, 0.02), (0.92, 0.14), (1, 0), (0.98, 0.4), (0.7, 0.9))
    pen.slice(color, 0, 0.12, 0.86, 1.3, 180, 360)
    pen.rect(color, 0, 0.7, 0.72, 0.86)
    pen.polygon((215, 222, 228), (0.02, 0.8), (0.5, 0.86), (0.6, 1), (0.12, 1))
    pen.ellipse((15, 15, 15), 0.14, 0.56, 0.2, 0.66)


_DRAW: Dict[str, Callable] = {
    'tree': _tree, 'ball': _ball, 'house': _house, 'bird': _bird, 'car': _car, 'cup': _cup, 'flower': _flower,
    'boat': _boat, 'rainbow': _rainbow, 'key': _key, 'lamp': _lamp, 'chair': _chair, 'clock': _clock, 'book': _book,
    'fish': _fish, 'kite': _kite, 'balloon': _balloon, 'umbrella': _umbrella, 'traffic light': _traffic_light,
    'whale': _whale,
}


def _noise(rng: np.random.Generator, size: int, coarse: Tuple[int, int], octaves: int = 4) -> np.ndarray:
    """Smooth noise of several octaves, about -1..1, (size, size); coarse is its largest grain as (rows, columns)."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        rows, columns = (min(size, n * 2 ** octave) for n in coarse)
        grid = Image.fromarray(rng.standard_normal((rows + 1, columns + 1)).astype(np.float32))
        total += np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC)) / 2 ** octave
    return total / 2


def _shade(color, texture: np.ndarray) -> np.ndarray:
    return np.array(color, np.float32) * (1 + texture[..., None])


def _background(rng: np.random.Generator, kind: str, size: int) -> np.ndarray:
    """float32 (size, size, 3) in about 0..255."""
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

    # the others have a sky
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


def _paste(canvas: np.ndarray, patch: Image.Image, x: int, y: int, shadow: float) -> np.ndarray:
    """Blend a patch over the canvas in place, with a soft shadow; returns its alpha on the canvas, 0..1."""
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


def _object(rng: np.random.Generator, item: SceneClass, size: int) -> Image.Image:
    """One instance of a class as an RGBA patch."""
    side = size * math.sqrt(item.scale) * float(np.clip(np.exp(rng.normal(0, 0.15)), 0.7, 1.4))
    width, height = (max(6, round(min(v, 0.98 * size))) for v in
                     (side * math.sqrt(item.aspect), side / math.sqrt(item.aspect)))
    pen = _Pen(3 * width, 3 * height, rng)
    _DRAW[item.name](pen, rng)
    patch = pen.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else pen.image
    # light from one side
    pixels = np.asarray(patch, np.float32).copy()
    ramp = np.linspace(*rng.permutation([0.75, 1.15]), pixels.shape[1])[None, :, None]
    pixels[..., :3] *= ramp * (1 + 0.06 * rng.standard_normal((*pixels.shape[:2], 1)))
    patch = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    patch = patch.rotate(rng.normal(0, 7), expand=True, resample=Image.Resampling.BILINEAR)
    patch = patch.resize((max(1, patch.width // 3), max(1, patch.height // 3)), Image.Resampling.BOX)
    return patch.crop(patch.getbbox())


def _distractor(rng: np.random.Generator, size: int) -> Image.Image:
    """A coloured shape that is no class."""
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


def _choose_classes(rng: np.random.Generator, kind: str, num_classes: int) -> List[int]:
    if rng.random() < _EMPTY_SHARE:
        return []
    chosen = []
    for i, item in enumerate(CLASSES[:num_classes]):
        inside = len(item.types) / len(SCENE_TYPES)
        odds = item.frequency / (1 - _EMPTY_SHARE) / (inside + _LEAK * (1 - inside))
        if rng.random() < odds * (1 if kind in item.types else _LEAK):
            chosen.append(i)
    return chosen


def draw_scene(preset: ScenesPreset, seed: int, split: str, index: int) -> Tuple[Image.Image, List[SceneObject]]:
    """Draw one image; it depends on the arguments alone, not on what was drawn before.

    Returns:
        The image and its objects, each as class index, box (x, y, width, height) of the visible pixels, and the number
        of those.
    """
    rng = np.random.default_rng([VERSION, seed, ('train', 'val').index(split), index])
    size = preset.img_size
    kind = SCENE_TYPES[rng.integers(len(SCENE_TYPES))]
    canvas = _background(rng, kind, size)

    classes = _choose_classes(rng, kind, preset.num_classes)
    things: List[Tuple[float, int]] = [(0.02 * rng.random(), -1) for _ in range(rng.integers(2, 7))]
    for i in classes:
        count = rng.integers(1, 4) if CLASSES[i].scale < 0.035 else 1
        # the large stand further back, mostly
        things += [(CLASSES[i].scale * rng.uniform(0.5, 1.5), i) for _ in range(count)]
    layers: List[Tuple[int, np.ndarray]] = []
    for _, i in sorted(things, reverse=True):
        patch = _distractor(rng, size) if i < 0 else _object(rng, CLASSES[i], size)
        x, y = (int(rng.integers(0, max(1, size - v + 1))) for v in patch.size)
        layers.append((i, _paste(canvas, patch, x, y, rng.choice([0, 0.35]))))

    objects = []
    covered = np.zeros((size, size), np.float32)
    for i, alpha in reversed(layers):
        visible = alpha * (1 - covered) > 0.5
        covered = np.maximum(covered, alpha)
        if i >= 0 and visible.sum() >= _MIN_VISIBLE * max(1, (alpha > 0.5).sum()):
            rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
            if len(rows):
                box = columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
                objects.append((i, tuple(float(v) for v in box), int(visible.sum())))

    # light, lens and sensor
    canvas = (canvas - 128) * rng.uniform(0.7, 1.15) + 128 + rng.uniform(-25, 25)
    canvas *= 1 + rng.normal(0, 0.05, 3)
    canvas += rng.normal(0, rng.uniform(2, 9), canvas.shape)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9) * size / 128))
    if rng.random() < _GREY_SHARE:
        image = image.convert('L')
    return image, objects


def _draw_file(preset: ScenesPreset, seed: int, split: str, index: int) -> Tuple[bytes, List[SceneObject]]:
    image, objects = draw_scene(preset, seed, split, index)
    buffer = BytesIO()
    image.save(buffer, 'JPEG', quality=90)
    return buffer.getvalue(), objects


def _write_split(folder: Path, preset: ScenesPreset, seed: int, split: str, count: int, first_id: int, info, progress):
    (folder / split).mkdir()
    images, annotations = [], []
    categories = [
        dict(id=i + 1, name=item.name, supercategory=item.types[0])
        for i, item in enumerate(CLASSES[:preset.num_classes])]
    with ProcessPoolExecutor() as pool:
        drawn = pool.map(partial(_draw_file, preset, seed, split), range(count), chunksize=16)
        for index, (content, objects) in enumerate(progress(drawn, total=count, desc=f'draw {split} scenes')):
            image_id, name = first_id + index, f'{index:06d}.jpg'
            (folder / split / name).write_bytes(content)
            images.append(dict(id=image_id, file_name=name, width=preset.img_size, height=preset.img_size))
            for i, box, area in objects:
                annotations.append(dict(
                    id=first_id * 100 + len(annotations) + 1, image_id=image_id, category_id=i + 1, bbox=list(box),
                    area=area, iscrowd=0))
    content = dict(info=info, images=images, annotations=annotations, categories=categories)
    (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def _no_progress(iterable: Iterable, **kwargs) -> Iterable:
    return iterable


def write_scenes(
        root: Union[str, Path],
        preset: str = 'small',
        seed: int = 0,
        progress: Optional[Callable[..., Iterable]] = None,
) -> Path:
    """Draw a preset once, in COCO's layout, and return its folder.

    A finished folder is used as it is; an interrupted one is never mistaken for it.

    Args:
        root: The folder `scenes_PRESET_SEED` is made below it.
        preset: A name in PRESETS: 'small' has 10 classes at 128 px, 'full' 20 at 256 px.
        seed: Another seed draws other images.
        progress: A progress bar as tqdm's: progress(iterable, total=, desc=).

    Raises:
        InputError: Unknown preset, or the folder was drawn by another version of this module.
    """
    if preset not in PRESETS:
        raise InputError(f"No scenes preset '{preset}', choose from {', '.join(PRESETS)}.")
    sizes = PRESETS[preset]
    info = dict(description=f'scenes {preset}', version=VERSION, seed=seed, **asdict(sizes))
    folder = Path(root) / f'scenes_{preset}_{seed}'
    if folder.exists():
        try:
            found = json.loads((folder / 'scenes.json').read_text())
        except (OSError, ValueError):
            found = None
        if found != info:
            raise InputError(f'{folder} was drawn by another version of scenes. Delete it, or change --data-dir.')
        return folder

    Path(root).mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=root))
    new.chmod(0o755)
    try:
        (new / 'annotations').mkdir()
        for split, count, first_id in (('train', sizes.num_train, 1), ('val', sizes.num_val, sizes.num_train + 1)):
            _write_split(new, sizes, seed, split, count, first_id, info, progress or _no_progress)
        (new / 'scenes.json').write_text(json.dumps(info))
        try:
            os.rename(new, folder)
        except OSError:
            if not folder.exists():
                raise
            # another process was faster, with the same images
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder
