import random

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform as create_timm_transform
from timm.data import resolve_model_data_config
from torch.utils.data import default_collate

from timm_fan.data import Normalize, collate, create_transform

CONFIG = dict(input_size=(3, 96, 96), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), interpolation='bicubic')


def photo(width=160, height=120) -> Image.Image:
    """Smooth structure and some noise, as a photograph has."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (7 + c) + y / 11) * np.cos(y / (5 + c)) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 8, (height, width, 3))
    return Image.fromarray((127 + 90 * np.stack(waves, 2) + noise).clip(0, 255).astype(np.uint8))


def difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.int() - b.int()).abs()


@pytest.mark.parametrize('options', [
    dict(crop_pct=0.875), dict(crop_pct=1.0), dict(crop_pct=0.9, crop_mode='squash'), dict(crop_mode='border'),
    dict(interpolation='bilinear'), dict(interpolation='lanczos'), dict(input_size=(3, 96, 64))], ids=str)
@pytest.mark.parametrize('size', [(160, 120), (97, 203), (40, 50)])
def test_evaluation_shows_what_timms_does(options, size):
    config, image = {**CONFIG, **options}, photo(*size)
    ours = create_transform(**config)(image)
    theirs = create_timm_transform(**config, use_prefetcher=True)(image)
    assert ours.dtype == torch.uint8 and ours.shape == theirs.shape == config['input_size']
    assert difference(ours, theirs).max() <= 4 and difference(ours, theirs).float().mean() < 0.5
    normalized = create_timm_transform(**config)(image)
    ours = Normalize(config['mean'], config['std'])(ours[None])[0]
    assert (ours - normalized).abs().mean() < 0.5 / 255 / 0.2


def test_normalization_is_timms():
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    normalize = Normalize.of(timm.create_model('test_resnet'))
    config = resolve_model_data_config(timm.create_model('test_resnet'))
    mean, std = (torch.tensor(config[k])[:, None, None] for k in ('mean', 'std'))
    torch.testing.assert_close(normalize(images), (images / 255 - mean) / std)
    assert normalize(images).is_contiguous(memory_format=torch.channels_last)
    floats = torch.randn(2, 3, 5, 7)
    assert torch.equal(normalize(floats), floats)


def test_auto_augment_brings_no_colour_jitter():
    assert 'ColorJitter' not in repr(create_transform(**CONFIG, is_training=True, auto_augment='3a'))


@pytest.mark.parametrize('options', [
    dict(), dict(is_training=True), dict(is_training=True, auto_augment='rand-m9-n2'), dict(crop_mode='border'),
    dict(interpolation='lanczos')], ids=str)
def test_batches_are_pytorchs_in_channels_last(options):
    transform = create_transform(**{**CONFIG, **options})
    samples = [(transform(photo(w, 100)), torch.tensor([w]), w) for w in (120, 90, 200)]
    for ours, theirs in zip(collate(samples), default_collate(samples)):
        assert torch.equal(ours, theirs)
    assert collate(samples)[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('size', [(1, 1), (1, 2), (3, 1)])
def test_images_of_few_pixels_can_be_cropped(size):
    transform = create_transform(**CONFIG, is_training=True)
    for _ in range(50):
        assert transform(Image.new('RGB', size, (77, 77, 77))).unique().tolist() == [77]


def test_training_crops_resizes_and_flips_by_the_seed():
    transform, augmented = (
        create_transform(**CONFIG, is_training=True, scale=(0.5, 1.), auto_augment=a) for a in (None, 'rand-m9-n2'))
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
