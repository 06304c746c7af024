"""Our transforms give timm's pixels, and the evaluation crop is timm's."""
import random

import numpy as np
import pytest
import timm
import torch
from helpers import photo, pixel_difference
from PIL import Image
from timm.data import create_transform as create_timm_transform
from timm.data import resolve_model_data_config
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms.v2 import functional

from timm_fan.data import EvalTransform, Normalize, create_train_transform, eval_crop
from timm_fan.data.transforms import RandomCrop

CONFIG = dict(input_size=(3, 96, 96), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), interpolation='bicubic')


@pytest.mark.parametrize('options', [
    dict(crop_pct=0.875), dict(crop_pct=1.0), dict(crop_pct=0.9, crop_mode='squash'), dict(crop_mode='border'),
    dict(interpolation='bilinear'), dict(interpolation='lanczos'), dict(input_size=(3, 96, 64))], ids=str)
@pytest.mark.parametrize('size', [(160, 120), (97, 203), (40, 50)])
def test_evaluation_shows_what_timms_does(options, size):
    config, image = {**CONFIG, **options}, photo(*size)
    ours = EvalTransform(config)(image)
    theirs = create_timm_transform(**config, use_prefetcher=True)(image)
    assert ours.dtype == torch.uint8 and ours.shape == theirs.shape == config['input_size']
    assert pixel_difference(ours, theirs).max() <= 4 and pixel_difference(ours, theirs).float().mean() < 0.5
    normalized = create_timm_transform(**config)(image)
    ours = Normalize(config['mean'], config['std'])(ours[None])[0]
    assert (ours - normalized).abs().mean() < 0.5 / 255 / 0.2


@pytest.mark.parametrize('options', [
    dict(), dict(crop_pct=0.5), dict(crop_pct=0.95), dict(crop_pct=1.0), dict(crop_mode='squash'),
    dict(crop_mode='squash', crop_pct=1.0), dict(crop_mode='border'), dict(crop_mode='border', crop_pct=1.0),
    dict(input_size=(3, 96, 64)), dict(input_size=(3, 64, 96), crop_pct=0.7),
    dict(input_size=(3, 64, 96), crop_mode='squash'), dict(input_size=(3, 96, 64), crop_mode='border')], ids=str)
@pytest.mark.parametrize('size', [(160, 120), (97, 203), (40, 50), (128, 128), (250, 60)])
def test_eval_crop_is_the_part_that_timm_shows(options, size):
    """Red and green encode the coordinates of a pixel, and blue that it belongs to the photograph."""
    config, (width, height) = {**CONFIG, 'interpolation': 'bilinear', **options}, size
    step_x, step_y = (width - 1) / 255, (height - 1) / 255  # pixels per grey level
    y, x = np.mgrid[:height, :width]
    image = Image.fromarray(np.stack([x / step_x, y / step_y, np.full_like(x, 255)], 2).round().astype(np.uint8))
    shown_x, shown_y, inside = create_timm_transform(**config, use_prefetcher=True)(image).float().numpy()

    crop = eval_crop(width, height, config)
    left, top, right, bottom = crop.box(width, height)
    assert crop.size == shown_x.shape == config['input_size'][1:]
    scale_x, scale_y = (right - left) / crop.size[1], (bottom - top) / crop.size[0]
    columns = (left + (np.arange(crop.size[1]) + 0.5) * scale_x)[None]
    rows = (top + (np.arange(crop.size[0]) + 0.5) * scale_y)[:, None]
    expected = (0 < rows) & (rows < height) & (0 < columns) & (columns < width)
    assert ((inside == 255) == expected).all() and expected.any()
    for shown, middles, limit, step, scale in (
            (shown_x, columns, width, step_x, scale_x), (shown_y, rows, height, step_y, scale_y)):
        predicted = (middles - 0.5).clip(0, limit - 1)  # a coordinate is that of the middle of a pixel
        tolerance = step + 0.1 * scale  # of rounding, and a tenth of a shown pixel
        assert np.abs(shown * step - predicted)[expected].max() <= tolerance


@pytest.mark.parametrize('size', [(200, 120), (120, 200), (97, 97)])
@pytest.mark.parametrize('mode, pct', [('center', 0.8), ('center', 1.), ('squash', 1.)])
def test_box_of_the_crop_is_what_the_transform_of_timm_shows(size, mode, pct):
    """The colours of the photograph are its coordinates."""
    width, height = size
    image = Image.new('RGB', size)
    image.putdata([(x, y, 0) for y in range(height) for x in range(width)])
    config = dict(
        input_size=(3, 64, 64), crop_pct=pct, crop_mode=mode, interpolation='bilinear', mean=(0.,) * 3, std=(1.,) * 3)
    seen = 255 * create_timm_transform(**config)(image)
    left, top, right, bottom = eval_crop(*size, config).box(*size)
    step = (right - left) / 64
    assert seen[0, 32, 0] == pytest.approx(left + step / 2 - 0.5, abs=1 + step / 2)
    assert seen[0, 32, -1] == pytest.approx(right - step / 2 - 0.5, abs=1 + step / 2)
    assert seen[1, 0, 32] == pytest.approx(top, abs=1.5 + step)
    assert seen[1, -1, 32] == pytest.approx(bottom, abs=1.5 + step)


def test_normalization_is_timms():
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    normalize = Normalize.of(timm.create_model('test_resnet'))
    config = resolve_model_data_config(timm.create_model('test_resnet'))
    mean, std = (torch.tensor(config[k])[:, None, None] for k in ('mean', 'std'))
    torch.testing.assert_close(normalize(images), (images / 255 - mean) / std)
    assert normalize(images).is_contiguous(memory_format=torch.channels_last)
    floats = torch.randn(2, 3, 5, 7)
    assert torch.equal(normalize(floats), floats)


def test_auto_augment_adds_no_colour_jitter():
    assert 'ColorJitter' not in repr(create_train_transform(CONFIG, auto_augment='3a'))


@pytest.mark.parametrize('size', [(1, 1), (1, 2), (3, 1)])
def test_images_of_few_pixels_can_be_cropped(size):
    transform = create_train_transform(CONFIG)
    for _ in range(50):
        assert transform(Image.new('RGB', size, (77, 77, 77))).unique().tolist() == [77]


@pytest.mark.parametrize('seed', range(4))
def test_random_crops_have_timms_pixels(seed):
    image = photo(100 + 20 * seed, 120)
    random.seed(seed)
    ours = RandomCrop((96, 96), (0.5, 1.))(functional.pil_to_tensor(image))
    random.seed(seed)
    theirs = RandomResizedCropAndInterpolation((96, 96), (0.5, 1.), interpolation='bilinear')(image)
    if random.random() < 0.5:
        theirs = functional.horizontal_flip(theirs)
    assert ours.dtype == torch.uint8 and ours.shape == (3, 96, 96)
    assert pixel_difference(ours, functional.pil_to_tensor(theirs)).max() <= 2


def test_training_crops_resizes_and_flips_by_the_seed():
    transform, augmented = (
        create_train_transform(CONFIG, scale=(0.5, 1.), auto_augment=a) for a in (None, 'rand-m9-n2'))
    image = photo()

    def drawn(transform, seed):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        return transform(image)

    for t in (transform, augmented):
        assert drawn(t, 0).shape == (3, 96, 96) and drawn(t, 0).dtype == torch.uint8
        assert torch.equal(drawn(t, 0), drawn(t, 0)) and not torch.equal(drawn(t, 0), drawn(t, 1))
    assert any(not torch.equal(drawn(transform, s), drawn(augmented, s)) for s in range(5))
    flat = Image.new('RGB', (60, 40), (77, 78, 79))
    assert (transform(flat) == torch.tensor([77, 78, 79])[:, None, None]).all()
