"""Composition of scenes: which objects an image shows, where, and how much of them is visible.

Made for what the FAN paper is about (Section I): each class has its own scale, from 1% to 60% of the image, the class
frequencies have a long tail, and latent scene types make labels co-occur.
"""
import io
import json
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Tuple, Union

import numpy as np
from PIL import Image, ImageFilter

from timm_fan.errors import InputError
from timm_fan.files import read_json, write_text
from timm_fan.processes import ignore_signals

from ..coco import CocoImage, CocoObject, write_coco
from .drawing import draw_background, draw_distractor, draw_object, paste

# raise it whenever the same seed gives other images
VERSION = 1

SCENE_TYPES = ('street', 'meadow', 'sea', 'table', 'sky', 'room')
# odds of a class outside of its scene types, relative to those inside
_LEAK = 0.2
# an object is labelled if at least this share of its pixels is visible
_MIN_VISIBLE = 0.4
_EMPTY_SHARE = 0.03
_GREY_SHARE = 0.03


class SceneClass(NamedTuple):
    """A class of objects.

    Attributes:
        name: Name of the class.
        scale: Typical area of its box as a share of the image.
        frequency: Share of images that show it.
        aspect: Width over height of its box.
        types: Scene types where it is common.
    """
    name: str
    scale: float
    frequency: float
    aspect: float
    types: Tuple[str, ...]


CLASSES = (
    #          name       scale  freq.  w/h
    SceneClass('tree',    0.200, 0.50, 0.70, ('meadow', 'street', 'sky', 'sea')),
    SceneClass('ball',    0.016, 0.37, 1.00, ('meadow', 'sea', 'room')),
    SceneClass('house',   0.300, 0.28, 1.00, ('street', 'meadow')),
    SceneClass('bird',    0.022, 0.22, 1.60, ('sky', 'sea')),
    SceneClass('car',     0.120, 0.18, 1.80, ('street',)),
    SceneClass('cup',     0.050, 0.15, 1.15, ('table', 'room')),
    SceneClass('flower',  0.030, 0.12, 0.70, ('meadow', 'table')),
    SceneClass('boat',    0.100, 0.09, 1.00, ('sea',)),
    SceneClass('rainbow', 0.600, 0.035, 1.70, ('sky',)),
    SceneClass('key',     0.012, 0.01, 2.00, ('table',)),
)


@dataclass(frozen=True)
class ScenesPreset:
    """The first `num_classes` of CLASSES on square images of `img_size` pixels."""
    num_classes: int
    img_size: int
    num_train: int
    num_val: int


SCENES = ScenesPreset(10, 128, 6000, 1000)


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


def _paste_objects(rng: np.random.Generator, canvas: np.ndarray, classes: List[int]) -> List[Tuple[int, np.ndarray]]:
    """Draw objects and distractors on the canvas, the front ones last: class index (or -1) and alpha of each."""
    size = canvas.shape[0]
    things = [(0.02 * rng.random(), -1) for _ in range(rng.integers(2, 7))]
    for i in classes:
        count = rng.integers(1, 4) if CLASSES[i].scale < 0.035 else 1
        # large objects are mostly further back
        things += [(CLASSES[i].scale * rng.uniform(0.5, 1.5), i) for _ in range(count)]
    layers = []
    for _, i in sorted(things, reverse=True):
        if i < 0:
            patch = draw_distractor(rng, size)
        else:
            patch = draw_object(rng, CLASSES[i].name, CLASSES[i].scale, CLASSES[i].aspect, size)
        x, y = (int(rng.integers(0, max(1, size - v + 1))) for v in patch.size)
        layers.append((i, paste(canvas, patch, x, y, rng.choice([0, 0.35]))))
    return layers


def _visible_objects(layers: List[Tuple[int, np.ndarray]]) -> List[CocoObject]:
    objects = []
    covered = np.zeros_like(layers[0][1])
    for i, alpha in reversed(layers):
        visible = alpha * (1 - covered) > 0.5
        covered = np.maximum(covered, alpha)
        if i >= 0 and visible.sum() >= _MIN_VISIBLE * max(1, (alpha > 0.5).sum()):
            rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
            if len(rows):
                box = columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
                objects.append((i, tuple(float(v) for v in box), int(visible.sum())))
    return objects


def _photograph(rng: np.random.Generator, canvas: np.ndarray) -> Image.Image:
    """Light, lens and sensor."""
    canvas = (canvas - 128) * rng.uniform(0.7, 1.15) + 128 + rng.uniform(-25, 25)
    canvas *= 1 + rng.normal(0, 0.05, 3)
    canvas += rng.normal(0, rng.uniform(2, 9), canvas.shape)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9) * canvas.shape[0] / 128))
    return image.convert('L') if rng.random() < _GREY_SHARE else image


def compose_scene(preset: ScenesPreset, seed: int, split: str, index: int) -> Tuple[Image.Image, List[CocoObject]]:
    """One image, which depends on the arguments only, not on other images.

    Returns:
        The image, and its objects as class index, box (x, y, width, height) of the visible pixels, and their number.
    """
    rng = np.random.default_rng([VERSION, seed, ('train', 'val').index(split), index])
    kind = SCENE_TYPES[rng.integers(len(SCENE_TYPES))]
    canvas = draw_background(rng, kind, preset.img_size)
    layers = _paste_objects(rng, canvas, _choose_classes(rng, kind, preset.num_classes))
    return _photograph(rng, canvas), _visible_objects(layers)


def encode_scene(preset: ScenesPreset, seed: int, split: str, index: int) -> CocoImage:
    """`compose_scene` as a JPEG, for `write_coco`."""
    image, objects = compose_scene(preset, seed, split, index)
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=90)
    return buffer.getvalue(), image.size, objects


def _write_split(folder: Path, preset: ScenesPreset, split: str, info: Dict[str, Any], progress: Callable) -> None:
    count, first_id = (preset.num_train, 1) if split == 'train' else (preset.num_val, preset.num_train + 1)
    categories = [
        dict(id=i + 1, name=item.name, supercategory=item.types[0])
        for i, item in enumerate(CLASSES[:preset.num_classes])]
    with ProcessPoolExecutor(initializer=ignore_signals) as pool:
        drawn = pool.map(partial(encode_scene, preset, info['seed'], split), range(count), chunksize=16)
        try:
            write_coco(
                folder, split, progress(drawn, total=count, desc=f'draw {split} scenes'), categories, first_id, info)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # otherwise it would draw the rest first
            raise


def write_scenes(
        data_dir: Union[str, Path],
        preset: ScenesPreset = SCENES,
        seed: int = 0,
        progress: Callable[..., Iterable] = lambda iterable, **_: iterable,
) -> Path:
    """Draw all images once, in the layout of COCO, and return their folder.

    A complete folder is reused. An interrupted one is never mistaken for a complete one.

    Args:
        data_dir: Folder in which `scenes_small_SEED` is created.
        progress: A progress bar like tqdm.

    Raises:
        InputError: The folder was drawn with another preset or version.
    """
    info = dict(description='scenes small', version=VERSION, seed=seed, **asdict(preset))
    folder = Path(data_dir) / f'scenes_small_{seed}'
    if folder.exists():
        try:
            found = read_json(folder / 'scenes.json')
        except (OSError, InputError):
            found = None
        if found != info:
            raise InputError(
                f'{folder} was drawn by another version of timm-fan. Delete it, or choose another `data_dir`.')
        return folder

    Path(data_dir).mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=data_dir))
    new.chmod(0o755)
    try:
        for split in ('train', 'val'):
            _write_split(new, preset, split, info, progress)
        write_text(new / 'scenes.json', json.dumps(info))
        try:
            os.rename(new, folder)
        except OSError:
            if not folder.exists():
                raise
            # another process was faster, with the same images
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder
