import json
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from timm_fan import InputError
from timm_fan.data import MultiLabelDataset, Sample, create_dataset, load_image, read_coco
from timm_fan.metrics import evaluate_logits

CATEGORIES = [dict(id=40, name='dog'), dict(id=3, name='cat'), dict(id=17, name='bird')]
#       image, category, box, crowd
OBJECTS = [(7, 40, (1, 2, 3, 4), 0), (7, 40, (5, 5, 2, 2), 0), (7, 3, (0, 0, 8, 8), 0), (2, 17, (2, 2, 4, 4), 1)]


@pytest.fixture
def folder(tmp_path):
    """Ids neither sorted nor contiguous; image 5 shows nothing, image 2 is grey."""
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'train2014').mkdir()
    for i in (7, 5, 2):
        Image.fromarray(np.full((10, 12, 3), 20 * i, np.uint8)).convert('L' if i == 2 else 'RGB').save(
            tmp_path / 'train2014' / f'{i}.jpg')
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=12, height=10) for i in (7, 5, 2)],
        annotations=[
            dict(id=n, image_id=i, category_id=c, bbox=box, area=box[2] * box[3], iscrowd=crowd)
            for n, (i, c, box, crowd) in enumerate(OBJECTS, 1)],
        categories=CATEGORIES)
    (tmp_path / 'annotations' / 'instances_train2014.json').write_text(json.dumps(content))
    return tmp_path


def edit(folder, change):
    file = folder / 'annotations' / 'instances_train2014.json'
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_coco_layout(folder):
    dataset = read_coco(folder, 'train2014')
    assert dataset.class_names == ['cat', 'bird', 'dog']
    assert list(dataset.images.files) == ['train2014/2.jpg', 'train2014/5.jpg', 'train2014/7.jpg']
    assert dataset.targets().tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1]]
    boxes, labels = dataset.boxes[2]
    assert boxes.tolist() == [[1, 2, 3, 4], [5, 5, 2, 2], [0, 0, 8, 8]] and labels.tolist() == [2, 2, 0]
    assert dataset.boxes[1][0].shape == (0, 4) and dataset.boxes.sizes.tolist() == [[12, 10]] * 3
    for image, _ in dataset:
        assert image.mode == 'RGB' and image.size == (12, 10)


def test_coco_mini_against_pycocotools(coco_mini):
    for split, count in (('train', 368), ('val', 175)):
        dataset = create_dataset('coco2014', coco_mini, split)
        coco = COCO(str(coco_mini / 'annotations' / f'instances_{split}2014.json'))
        assert len(dataset) == count and len(dataset.class_names) == 80
        assert dataset.class_names[0] == 'person' and dataset.class_names[-1] == 'toothbrush'
        columns = {c: i for i, c in enumerate(sorted(coco.getCatIds()))}
        expected = torch.zeros(count, 80)
        for row, image_id in enumerate(sorted(coco.getImgIds())):
            for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image_id)):
                expected[row, columns[annotation['category_id']]] = 1
        assert torch.equal(dataset.targets(), expected)
        assert (expected.sum(0) > 0).all()


@pytest.mark.parametrize('change, words', [
    (lambda c: c['annotations'][1].update(category_id=999), ['999', 'annotation 2']),
    (lambda c: c['annotations'][1].pop('category_id'), ['category_id', 'entry 1']),
    (lambda c: c['images'][1].update(file_name='../../secret.jpg'), ['../../secret.jpg', 'outside']),
    (lambda c: c['annotations'][0].update(image_id=12345), ['12345', 'annotation 1']),
    (lambda c: c.pop('categories'), ['categories']),
    (lambda c: c.pop('images'), ['images']),
    (lambda c: c['images'][0].pop('file_name'), ['file_name']),
    (lambda c: c['annotations'][0].pop('bbox'), ['bbox']),
])
def test_bad_annotations_are_named(folder, change, words):
    edit(folder, change)
    with pytest.raises(InputError) as error:
        read_coco(folder, 'train2014')
    assert str(folder) in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize('text', ['{', '[]', '3', '{}', '{"images": 3}', ''])
def test_files_of_another_kind_are_named(folder, text):
    file = folder / 'annotations' / 'instances_train2014.json'
    file.write_text(text)
    with pytest.raises(InputError, match='instances_train2014.json'):
        read_coco(folder, 'train2014')


def test_missing_files_are_named(folder):
    for root, split, word in (
            (folder / 'none', 'train2014', 'none'), (folder, 'val2014', 'instances_val2014.json')):
        with pytest.raises(InputError, match=word):
            read_coco(root, split)
    (folder / 'train2014' / '5.jpg').unlink()
    with pytest.raises(InputError, match='1 of 3 images.*5.jpg'):
        read_coco(folder, 'train2014')
    shutil.rmtree(folder / 'train2014')
    with pytest.raises(InputError, match='3 of 3 images'):
        read_coco(folder, 'train2014')
    edit(folder, lambda c: c.update(images=[], annotations=[]))
    with pytest.raises(InputError, match='no image'):
        read_coco(folder, 'train2014')
    with pytest.raises(InputError, match='coco2014'):
        create_dataset('imagenet', folder, 'train')


def one_image(tmp_path, name, unknown=()):
    return MultiLabelDataset.from_samples(tmp_path, [Sample(name, (1,), unknown=unknown)], ['a', 'b', 'c'])


def test_unknown_labels(tmp_path):
    Image.new('RGB', (4, 4)).save(tmp_path / 'x.png')
    assert one_image(tmp_path, 'x.png', unknown=(2,)).targets().tolist() == [[0, 1, -1]]


@pytest.mark.parametrize('damage', [lambda b: b[:500], lambda b: b'', lambda b: b'not an image'])
def test_unreadable_image_counts_nowhere(tmp_path, caplog, damage):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / 'x.jpg')
    (tmp_path / 'x.jpg').write_bytes(damage((tmp_path / 'x.jpg').read_bytes()))
    dataset = one_image(tmp_path, 'x.jpg')
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            image, target = dataset[0]
    assert image.mode == 'RGB' and target.tolist() == [-1, -1, -1]
    assert [str(tmp_path / 'x.jpg') in r.message for r in caplog.records] == [True]
    scores = evaluate_logits(torch.zeros(2, 3), torch.stack([target, torch.ones(3)]))
    assert (scores.num_images, scores.num_unlabelled) == (1, 1)


def test_damaged_jpegs_never_raise(tmp_path):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize((64, 64))
    smooth.save(tmp_path / 'x.jpg')
    content = (tmp_path / 'x.jpg').read_bytes()
    dataset = one_image(tmp_path, 'x.jpg')
    for _ in range(60):
        damaged = bytearray(content[:rng.integers(1, len(content))] if rng.random() < 0.4 else content)
        for position in rng.integers(0, len(damaged), rng.integers(1, 10)):
            damaged[position] = rng.integers(256)
        (tmp_path / 'x.jpg').write_bytes(bytes(damaged))
        image, target = dataset[0]
        assert image.mode == 'RGB' and target.tolist() in ([0, 1, 0], [-1, -1, -1])


@pytest.mark.parametrize('mode, name', [
    ('P', 'x.png'), ('RGBA', 'x.png'), ('LA', 'x.png'), ('1', 'x.png'), ('CMYK', 'x.jpg'), ('L', 'x.jpg'),
    ('P', 'x.gif')])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, name):
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
