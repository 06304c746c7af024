"""Randomness as a function of where the training stands, so that it can go on at any step as if never stopped."""
import contextlib
import random
from typing import Any, Iterator, Tuple

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.utils.data import Dataset

__all__ = ['SeededSamples', 'seed_step']


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_step(seed: int, epoch: int, step: int, process: int) -> None:
    """Seed Python, NumPy and PyTorch for one batch of one process, so that dropout and Mixup depend on nothing else."""
    set_seed(_mix(seed, epoch, step, process))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and PyTorch's CPU generators seeded within, and untouched afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededSamples(Dataset):
    """A data set whose augmentations depend on the seed, the epoch and the index, not on what was read before.

    An item is the data set's and its index.

    Attributes:
        epoch: Shared with the workers, which outlive epochs; set it before the loader is iterated.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tuple[Any, ...]:
        with _seeded(_mix(self.seed, int(self.epoch), index)):
            return *self.dataset[index], index
