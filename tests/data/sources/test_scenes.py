"""Scenes have the scales, the long tail and the co-occurrence that they were made for, and are written once."""
import dataclasses
import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from timm_fan import InputError
from timm_fan.data import read_coco, write_scenes
from timm_fan.data.sources.scenes import CLASSES, SCENES, ScenesPreset, compose_scene
from timm_fan.data.sources.scenes.drawing import draw_object

SMALL = dataclasses.replace(SCENES, img_size=80)  # with even fewer pixels, birds lose their thin parts
TINY = ScenesPreset(num_classes=10, img_size=48, num_train=40, num_val=8)


@pytest.fixture(scope='module')
def drawn():
    return [compose_scene(SMALL, 0, 'train', i) for i in range(600)]


def test_an_image_depends_only_on_its_arguments():
    later = compose_scene(SMALL, 0, 'train', 5)
    first = compose_scene(SMALL, 0, 'train', 5)
    assert np.array_equal(np.asarray(later[0]), np.asarray(first[0])) and later[1] == first[1]
    for other in ((1, 'train', 5), (0, 'val', 5), (0, 'train', 6)):
        assert not np.array_equal(np.asarray(compose_scene(SMALL, *other)[0].convert('RGB')),
                                  np.asarray(first[0].convert('RGB')))


def test_frequencies_have_a_long_tail(drawn):
    for i, item in enumerate(CLASSES):
        share = np.mean([any(o[0] == i for o in objects) for _, objects in drawn])
        spread = 4 * np.sqrt(item.frequency * (1 - item.frequency) / len(drawn))
        assert share == pytest.approx(item.frequency, abs=spread + 0.1 * item.frequency), item.name
    assert max(c.frequency for c in CLASSES) == 0.5 and min(c.frequency for c in CLASSES) == 0.01


def test_each_class_has_its_scale(drawn):
    for i, item in enumerate(CLASSES):
        areas = [w * h / SMALL.img_size ** 2 for _, objects in drawn for j, (_, _, w, h), _ in objects if j == i]
        if len(areas) >= 10:
            assert item.scale / 1.7 < np.mean(areas) < item.scale * 1.7, item.name
    assert min(c.scale for c in CLASSES) <= 0.015 and max(c.scale for c in CLASSES) >= 0.6
    logs = np.log([(c.scale, c.frequency) for c in CLASSES])
    assert abs(np.corrcoef(logs.T)[0, 1]) < 0.4


def test_classes_of_one_scene_type_occur_together(drawn):
    index = {c.name: i for i, c in enumerate(CLASSES)}
    shown = np.array([[any(o[0] == i for o in objects) for i in range(len(CLASSES))] for _, objects in drawn])
    for a, b in (('house', 'car'), ('bird', 'boat'), ('tree', 'rainbow')):
        both = (shown[:, index[a]] & shown[:, index[b]]).mean()
        assert both > 1.25 * shown[:, index[a]].mean() * shown[:, index[b]].mean(), (a, b)


def test_boxes_lie_inside_and_some_images_are_empty_or_grey(drawn):
    size = SMALL.img_size
    for _, objects in drawn:
        for _, (x, y, w, h), area in objects:
            assert x >= 0 and y >= 0 and x + w <= size and y + h <= size and 0 < area <= w * h
    assert 0.01 < np.mean([image.mode == 'L' for image, _ in drawn]) < 0.06
    assert 0.02 < np.mean([not objects for _, objects in drawn]) < 0.2


@pytest.mark.parametrize('item', CLASSES, ids=lambda item: item.name)
def test_every_class_is_drawn(item):
    patch = draw_object(np.random.default_rng(0), item.name, item.scale, item.aspect, 128)
    share = np.mean(np.asarray(patch)[..., 3] > 128)
    assert share > 0.15 and patch.width * patch.height / 128 ** 2 == pytest.approx(item.scale, rel=0.8)


def test_written_once_in_the_layout_of_coco(tmp_path):
    folder = write_scenes(tmp_path, TINY)
    for split, count in (('train', 40), ('val', 8)):
        dataset = read_coco(folder, split)
        assert len(dataset) == count and dataset.class_names == [c.name for c in CLASSES[:10]]
        assert all(image.size == (48, 48) for image, _ in dataset)
        coco = COCO(str(folder / 'annotations' / f'instances_{split}.json'))
        assert len(coco.getImgIds()) == count
    before = {p: p.stat().st_mtime_ns for p in folder.rglob('*')}
    assert write_scenes(tmp_path, TINY) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob('*')} == before
    again = write_scenes(tmp_path / 'again', TINY)
    for file in folder.rglob('*.*'):
        assert (again / file.relative_to(folder)).read_bytes() == file.read_bytes()


def test_interrupted_drawing_leaves_nothing(tmp_path):
    def interrupted(iterable, **kwargs):
        for n, item in enumerate(iterable):
            if n == 20:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path, TINY, progress=interrupted)
    assert list(tmp_path.iterdir()) == []


def test_scenes_of_another_version_or_preset_are_named(tmp_path):
    folder = write_scenes(tmp_path, TINY)
    with pytest.raises(InputError, match=str(folder)):
        write_scenes(tmp_path, dataclasses.replace(TINY, img_size=32))
    (folder / 'scenes.json').write_text(json.dumps(dict(version=-1)))
    with pytest.raises(InputError, match=str(folder)):
        write_scenes(tmp_path, TINY)
