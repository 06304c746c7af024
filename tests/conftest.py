import json
from pathlib import Path

import pytest
import torch

import timm_fan  # noqa: F401  registers the models before tests are collected
from timm_fan.data.scenes import CLASSES, ScenesPreset, draw_scene

SHARED = Path(__file__).resolve().parents[2] / 'shared'
# tiny models, and tests may share two cores: spinning threads would wait for each other
torch.set_num_threads(1)


def write_coco(root: Path, num_train: int, num_val: int, num_classes: int = 6, img_size: int = 48) -> Path:
    """A small data set in COCO 2014's layout, of drawn scenes; every class occurs in both halves."""
    preset = ScenesPreset(num_classes, img_size, num_train, num_val)
    categories = [dict(id=10 * i + 3, name=c.name) for i, c in enumerate(CLASSES[:num_classes])]
    (root / 'annotations').mkdir(parents=True)
    for split, name, count in (('train', 'train2014', num_train), ('val', 'val2014', num_val)):
        (root / name).mkdir()
        images, annotations = [], []
        for i in range(count):
            image, objects = draw_scene(preset, 0, split, i)
            image.save(root / name / f'{i}.jpg', quality=90)
            images.append(dict(id=i, file_name=f'{i}.jpg', width=img_size, height=img_size))
            # frequencies are the generator's business, not these tests'
            objects = objects or [(i % num_classes, (0., 0., 8., 8.), 64)]
            for label, box, area in objects + [(i % num_classes, (0., 0., 8., 8.), 64)]:
                annotations.append(dict(
                    id=len(annotations) + 1, image_id=i, category_id=10 * label + 3, bbox=list(box), area=area,
                    iscrowd=0))
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / 'annotations' / f'instances_{name}.json').write_text(json.dumps(content))
    return root


@pytest.fixture(scope='session')
def coco_folder(tmp_path_factory) -> Path:
    return write_coco(tmp_path_factory.mktemp('data') / 'coco', num_train=34, num_val=13)


@pytest.fixture(scope='session')
def coco_mini() -> Path:
    folder = SHARED / 'coco_mini'
    if not folder.is_dir():
        pytest.skip('needs ../shared/coco_mini, the photographs for development')
    return folder


@pytest.fixture(scope='session')
def lite0_weights() -> Path:
    file = SHARED / 'weights' / 'tf_efficientnet_lite0.in1k.safetensors'
    if not file.is_file():
        pytest.skip('needs ../shared/weights, the ImageNet backbone for development')
    return file
