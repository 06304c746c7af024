import random

import numpy as np
import torch

from timm_fan.data import seed_step
from timm_fan.data.seeding import SeededSamples


class Noise(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_samples_depend_on_seed_epoch_and_index_only():
    samples = SeededSamples(Noise(), seed=0)
    seed_step(0, 1, 2, 3)
    outside = random.random(), float(np.random.rand()), float(torch.rand(()))
    seed_step(0, 1, 2, 3)
    first = samples[1]
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == outside
    assert samples[1] == first and samples[2] != first
    samples.set_epoch(1)
    assert samples[1] != first
    assert SeededSamples(Noise(), seed=1)[1] != first
