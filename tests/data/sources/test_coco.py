"""The layout of COCO: what is read, what is written, and which file and entry an error names."""
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import encoded, photo
from PIL import Image
from pycocotools.coco import COCO

from timm_fan import InputError
from timm_fan.data import create_dataset, read_coco
from timm_fan.data.sources.coco import write_coco

CATEGORIES = [dict(id=40, name='dog'), dict(id=3, name='cat'), dict(id=17, name='bird')]
#       image, category, box, crowd
OBJECTS = [(7, 40, (1, 2, 3, 4), 0), (7, 40, (5, 5, 2, 2), 0), (7, 3, (0, 0, 8, 8), 0), (2, 17, (2, 2, 4, 4), 1)]


@pytest.fixture
def folder(tmp_path):
    """Ids are neither sorted nor contiguous; image 5 shows nothing, image 2 is grey."""
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
    (lambda c: c['annotations'][0].update(bbox=['1', '2', '3', '4']), ['bbox', 'entry 0']),
])
def test_bad_annotations_are_named(folder, change, words):
    edit(folder, change)
    with pytest.raises(InputError) as error:
        read_coco(folder, 'train2014')
    assert str(folder) in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize('change, words', [
    (lambda c: c['images'][1].update(id=c['images'][0]['id']), "several of 'images' have the id '1'"),
    (lambda c: c['categories'][1].update(id=c['categories'][0]['id']), "several of 'categories' have the id '3'"),
    (lambda c: c['categories'][1].update(name=c['categories'][0]['name']), "several of 'categories' have the name"),
    (lambda c: c['images'][1].update(id=str(c['images'][0]['id'])), "several of 'images' have the id '1'"),
])
def test_merged_files_need_new_ids(coco_folder, tmp_path, change, words):
    root = shutil.copytree(coco_folder, tmp_path / 'coco')
    file = root / 'annotations' / 'instances_val2014.json'
    content = json.loads(file.read_text())
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] > 2]
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=words):
        read_coco(root, 'val2014')


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
    with pytest.raises(InputError, match=r"(?s)3 images in .*image 5: no image file '5.jpg'"):
        read_coco(folder, 'train2014')
    shutil.rmtree(folder / 'train2014')
    with pytest.raises(InputError, match=r'(?s)3 problems.*There is no folder .*train2014'):
        read_coco(folder, 'train2014')
    edit(folder, lambda c: c.update(images=[], annotations=[]))
    with pytest.raises(InputError, match='no image'):
        read_coco(folder, 'train2014')


def test_what_is_written_can_be_read(tmp_path):
    objects = [
        [(1, (1., 2., 30., 40.5), 900), (0, (0., 0., 8., 8.), 64), (1, (5.25, 6., 7., 8.), 50)], [],
        [(2, (0., 0., 80., 40.), 3200)]]
    images = [
        (encoded(photo(*size), 'JPEG'), size, listed) for size, listed in zip([(60, 50), (48, 64), (80, 40)], objects)]
    categories = [dict(id=5, name='cat'), dict(id=9, name='dog'), dict(id=31, name='größer')]
    for split, first_id in (('train', 1), ('val', 4)):
        write_coco(tmp_path, split, iter(images), categories, first_id, dict(description='three photos'))
    for split in ('train', 'val'):
        dataset = read_coco(tmp_path, split)
        assert dataset.class_names == ['cat', 'dog', 'größer']
        assert list(dataset.images.files) == [f'{split}/00000{i}.jpg' for i in range(3)]
        assert [dataset.images.read(i) for i in range(3)] == [content for content, _, _ in images]
        assert dataset.targets().tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
        assert dataset.boxes.sizes.tolist() == [[60, 50], [48, 64], [80, 40]]
        for i, listed in enumerate(objects):
            boxes, labels = dataset.boxes[i]
            assert labels.tolist() == [label for label, _, _ in listed]
            assert boxes.tolist() == [list(box) for _, box, _ in listed]
    contents = [json.loads((tmp_path / 'annotations' / f'instances_{s}.json').read_text()) for s in ('train', 'val')]
    assert [c['info'] for c in contents] == [dict(description='three photos')] * 2
    assert [a['area'] for a in contents[0]['annotations']] == [900, 64, 50, 3200]
    # splits can be merged
    assert len({image['id'] for c in contents for image in c['images']}) == 6
    assert len({annotation['id'] for c in contents for annotation in c['annotations']}) == 8


def test_an_existing_split_is_not_overwritten(tmp_path):
    images = [(encoded(photo(), 'JPEG'), (160, 120), [])]
    write_coco(tmp_path, 'train', images, [dict(id=1, name='cat')])
    with pytest.raises(FileExistsError):
        write_coco(tmp_path, 'train', images, [dict(id=1, name='cat')])
