"""Predictions for any number of photographs: decoded by worker processes, computed in batches, in constant memory."""
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Deque, Dict, Iterator, List, NamedTuple, Optional, Protocol, Sequence, Tuple

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from timm_fan.data import UNREADABLE, Images, load_image
from timm_fan.data.loaders import stack_images
from timm_fan.processes import ignore_signals


class Photos(Protocol):
    """What `predict_photos` predicts."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Image.Image:
        """A photograph as RGB. Raises one of `UNREADABLE`."""


class EncodedPhotos:
    """The images of a data set, or files, as photographs."""

    def __init__(self, images: Images):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Image.Image:
        return load_image(self.images.read(index))


class BatchPredictor(Protocol):
    """What `predict_photos` predicts with, such as `Predictor`."""

    def transform(self, photo: Image.Image) -> torch.Tensor:
        """RGB photograph -> an array of one size, for a batch."""

    def compute(self, images: torch.Tensor, embeddings: bool = False) -> List[torch.Tensor]:
        """Batch (B, ...) -> probabilities (B, num_classes), perhaps embeddings (B, width)"""


class PredictedBatch(NamedTuple):
    """Attributes:
        indices: Of the photographs, consecutive.
        probabilities: float32 (B, num_classes) in 0..1, without meaning for unreadable images.
        unreadable: Index -> the reason why a photograph cannot be read.
        embeddings: float32 (B, head_hidden_size), if they were wanted.
    """
    indices: range
    probabilities: torch.Tensor
    unreadable: Dict[int, str]
    embeddings: Optional[torch.Tensor] = None


class _Transformed(Dataset):
    """A photograph as (index, transformed image or None, reason why it is unreadable)."""

    def __init__(self, photos: Photos, transform: Any):
        self.photos, self.transform = photos, transform

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Tuple[int, Optional[torch.Tensor], str]:
        try:
            return index, self.transform(self.photos.load(index)), ''
        except UNREADABLE as error:
            return index, None, str(error) or type(error).__name__


def _collate(samples: Sequence[Tuple[int, Optional[torch.Tensor], str]]) -> Tuple[range, Any, Dict[int, str]]:
    """Indices, the images in channels_last (None if all are unreadable), and the reasons.

    A black image is in the place of an unreadable one, so that the size of a batch does not depend on it.
    """
    indices = range(samples[0][0], samples[-1][0] + 1)
    readable = [image for _, image, _ in samples if image is not None]
    reasons = {index: reason for index, image, reason in samples if image is None}
    if not readable:
        return indices, None, reasons
    black = torch.zeros_like(readable[0])
    return indices, stack_images([black if image is None else image for _, image, _ in samples]), reasons


def default_batch_size(device: torch.device) -> int:
    """What is fast: small enough for the caches of a CPU core, and large enough to keep a GPU busy."""
    return 4 if device.type == 'cpu' else 64


class Batches(Sequence[range]):
    """The batches that a process predicts: of all batches, each `processes`-th one.

    A photograph is always computed next to the same others, whatever the number of processes, and whether the run was
    interrupted. Its probabilities are therefore the same, bit for bit, on the same hardware.

    Args:
        num_photos: Number of all photographs.
        batch_size: Photographs in a batch.
        process: Number of the process, from 0.
        processes: Number of processes.
        done: Batches of this process that are done.
    """

    def __init__(self, num_photos: int, batch_size: int, process: int = 0, processes: int = 1, done: int = 0):
        self.num_photos, self.batch_size = num_photos, batch_size
        self.starts = range(process * batch_size, num_photos, processes * batch_size)[done:]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> range:
        start = self.starts[index]
        return range(start, min(start + self.batch_size, self.num_photos))


def predict_photos(
        predictor: BatchPredictor,
        photos: Photos,
        batch_size: int = 32,
        workers: int = 0,
        threads: int = 1,
        batches: Optional[Sequence[range]] = None,
        embeddings: bool = False,
        pad: bool = False,
) -> Iterator[PredictedBatch]:
    """Predict photographs, batch by batch in their order.

    Worker processes decode while the model computes. Only a few batches per worker and thread are in memory.

    Args:
        predictor: The model, such as a `Predictor`.
        photos: The photographs.
        batch_size: Photographs that are computed at once.
        workers: Processes that decode, 0 for none.
        threads: Batches that are computed at the same time. On a CPU, this many batches on a thread of PyTorch each
            (`torch.set_num_threads(1)`) take less time than one batch after the other on all threads, which wait for
            each other in every layer. On a GPU, the second one is ready when the first one ends.
        batches: The batches to predict, by default all.
        embeddings: Return the pooled features as well.
        pad: Fill up the last batch, because a compiled model would be compiled again for its size.

    Raises:
        InputError: The model gives NaN.
    """
    if batches is None:
        batches = Batches(len(photos), batch_size)
    loader = DataLoader(
        _Transformed(photos, predictor.transform), batch_sampler=batches, num_workers=workers, collate_fn=_collate,
        worker_init_fn=ignore_signals, pin_memory=torch.cuda.is_available())

    def compute(loaded: Tuple[range, Any, Dict[int, str]]) -> PredictedBatch:
        indices, images, unreadable = loaded
        if images is None:
            return PredictedBatch(indices, torch.empty(0), unreadable)
        if pad and len(images) < batch_size:
            images = torch.cat([images, images[-1:].expand(batch_size - len(images), -1, -1, -1)])
        results = [x[:len(indices)] for x in predictor.compute(images, embeddings)]
        return PredictedBatch(indices, results[0], unreadable, *results[1:])

    with ThreadPoolExecutor(threads) as pool:
        waiting: Deque[Future] = deque()
        try:
            for loaded in loader:
                waiting.append(pool.submit(compute, loaded))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
