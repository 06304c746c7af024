"""Items of the data set: targets with unknown labels, and images that cannot be read."""
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import encoded, mutate, photo
from PIL import Image

from timm_fan.data import UNKNOWN, MultiLabelDataset, Sample, create_train_transform
from timm_fan.metrics import evaluate_logits
from timm_fan.training.bad_samples import BadSamples

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)).resize((64, 48))


def one_image(folder: Path, name: str, unknown=()) -> MultiLabelDataset:
    return MultiLabelDataset.from_samples(folder, [Sample(name, (1,), unknown=unknown)], ['a', 'b', 'c'])


def test_unknown_labels(tmp_path):
    Image.new('RGB', (4, 4)).save(tmp_path / 'x.png')
    assert one_image(tmp_path, 'x.png', unknown=(2,)).targets().tolist() == [[0, 1, -1]]


def test_a_data_set_is_readable(tmp_path):
    for name in 'xyz':
        Image.new('RGB', (4, 4)).save(tmp_path / f'{name}.png')
    samples = [Sample('x.png', (0, 1)), Sample('y.png', (1, 5, 6), unknown=(2,)), Sample('z.png', ())]
    dataset = MultiLabelDataset.from_samples(tmp_path, samples, ['a', 'b', 'c\n', 'd', 'e', 'f', 'g'])
    assert repr(dataset) == (
        '<MultiLabelDataset: 3 images, 7 classes (a, b, c\\n, d, e, ...), 1.67 labels per image>')
    two = MultiLabelDataset.from_samples(tmp_path, samples[::2], ['a', 'b'])
    assert repr(two) == '<MultiLabelDataset: 2 images, 2 classes (a, b), 1.00 labels per image>'


def test_wrong_extension(tmp_path):
    (tmp_path / 'x.jpg').write_bytes(encoded(PHOTO, 'PNG'))
    dataset = MultiLabelDataset.from_samples(tmp_path, [Sample('x.jpg', (0,))], ['a'])
    image, target = dataset[0]
    assert image.tobytes() == PHOTO.tobytes() and target.tolist() == [1]


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


def test_unreadable_images_become_grey_with_unknown_labels(tmp_path):
    rotated = Image.Exif()
    rotated[0x0112] = 6
    whole = encoded(photo(), 'JPEG')
    contents = {
        'plain.jpg': whole, 'grey.jpg': encoded(photo().convert('L'), 'JPEG'), 'png.jpg': encoded(photo(), 'PNG'),
        'turned.jpg': encoded(photo(), 'JPEG', exif=rotated), 'cmyk.jpg': encoded(photo().convert('CMYK'), 'JPEG'),
        'cut.jpg': whole[:-100], 'line.jpg': encoded(Image.new('RGB', (500, 2)), 'JPEG'), 'none.jpg': b''}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    config = dict(input_size=(3, 96, 96), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), interpolation='bilinear')
    dataset = MultiLabelDataset.from_samples(
        tmp_path, [Sample(name, [0]) for name in contents], ['a', 'b'])
    dataset.transform = create_train_transform(config, scale=(0.5, 1.))
    items = dict(zip(contents, (dataset[i] for i in range(len(dataset)))))
    unknown = {name for name, (_, target) in items.items() if (target == UNKNOWN).all()}
    assert unknown == {'cut.jpg', 'line.jpg', 'none.jpg'}
    assert all((pixels == 128).all() == (name in unknown) for name, (pixels, _) in items.items())


@pytest.mark.filterwarnings('ignore')
def test_500_mutated_images(tmp_path):
    chance = random.Random(0)
    originals = [
        encoded(PHOTO.convert(mode), kind, **options) for kind, mode, options in (
            ('JPEG', 'RGB', {}), ('JPEG', 'CMYK', {}), ('JPEG', 'L', dict(progressive=True)), ('PNG', 'RGB', {}),
            ('PNG', 'P', {}), ('GIF', 'P', {}), ('WEBP', 'RGB', {}), ('BMP', 'RGB', {}), ('TIFF', 'F', {}),
            ('TIFF', 'RGB', dict(compression='tiff_lzw')))]
    for i in range(500):
        (tmp_path / f'{i}.img').write_bytes(mutate(chance.choice(originals), chance))
    dataset = MultiLabelDataset.from_samples(tmp_path, [Sample(f'{i}.img', (0,)) for i in range(500)], ['a', 'b'])
    listed = BadSamples(tmp_path / 'bad.jsonl')
    dataset.on_unreadable = lambda name, error: listed.add('train', 500, name, error)
    known = 0
    for i in range(500):
        image, target = dataset[i]
        assert image.mode == 'RGB' and target.tolist() in ([1, 0], [-1, -1])
        known += target[0] == 1
    assert len(listed.read()) == 500 - known and 50 < known < 450
