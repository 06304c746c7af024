"""Batches."""
import pytest
import torch
from helpers import photo
from torch.utils.data import default_collate

from timm_fan.data import EvalTransform, collate, create_train_transform

CONFIG = dict(input_size=(3, 96, 96), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), interpolation='bicubic')


@pytest.mark.parametrize('transform', [
    EvalTransform(CONFIG), create_train_transform(CONFIG), create_train_transform(CONFIG, auto_augment='rand-m9-n2'),
    EvalTransform({**CONFIG, 'crop_mode': 'border'}), EvalTransform({**CONFIG, 'interpolation': 'lanczos'}),
], ids=['evaluation', 'training', 'auto-augment', 'border', 'lanczos'])
def test_batches_are_pytorchs_in_channels_last(transform):
    samples = [(transform(photo(w, 100)), torch.tensor([w]), w) for w in (120, 90, 200)]
    for ours, theirs in zip(collate(samples), default_collate(samples)):
        assert torch.equal(ours, theirs)
    assert collate(samples)[0].is_contiguous(memory_format=torch.channels_last)
