"""Randomness as a function of seed, epoch and step, so that a run resumes as if it had never stopped."""
import contextlib
import random
from typing import Any, Iterator, Tuple

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.utils.data import Dataset


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_step(seed: int, epoch: int, step: int, process: int) -> None:
    """Seed Python, NumPy and PyTorch for one batch of one process, on which dropout and Mixup depend."""
    set_seed(_mix(seed, epoch, step, process))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generators of Python, NumPy and PyTorch within the block, and restore their states after it."""
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
    """A data set whose augmentations depend on seed, epoch and index, not on the images read before.

    An item is that of the data set, a tuple, followed by its index.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed
        # shared with the workers, which live longer than an epoch
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Call it before the loader is iterated."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tuple[Any, ...]:
        with _seeded(_mix(self.seed, int(self.epoch), index)):
            return *self.dataset[index], index
