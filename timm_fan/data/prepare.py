"""A data set written once as shards of smaller images, which decode several times as fast as photographs."""
import io
import json
import tarfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from .dataset import UNREADABLE, MultiLabelDataset

__all__ = ['write_shards']


class _Resized(Dataset):
    """Of each image the encoded small one and what stands beside it, or the reason why it cannot be read."""

    def __init__(self, dataset: MultiLabelDataset, short_side: int, quality: Optional[int]):
        self.dataset, self.short_side, self.quality = dataset, short_side, quality

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tuple[Optional[bytes], Union[Dict[str, Any], str]]:
        try:
            image = self.dataset.load(index)
        except UNREADABLE as error:
            return None, f'{self.dataset.images.name(index)}: {error}'
        size = image.size
        scale = min(1., self.short_side / min(size))
        if scale < 1:
            image = image.resize([max(1, round(side * scale)) for side in size], Image.Resampling.BICUBIC)
        file = io.BytesIO()
        if self.quality is None:
            image.save(file, 'ppm')
        else:
            image.save(file, 'jpeg', quality=self.quality)
        classes, values = self.dataset.labels.listed(index)
        entry: Dict[str, Any] = {
            key: classes[values == value].tolist() for key, value in (('labels', 1), ('absent', 0), ('unknown', -1))}
        # boxes count in the stored image, which an EXIF orientation turns
        if self.dataset.boxes is not None and tuple(self.dataset.boxes.sizes[index]) in (size, (0, 0)):
            boxes, box_labels = self.dataset.boxes[index]
            scales = [new / old for new, old in zip(image.size, size)] * 2
            entry.update(boxes=(boxes * scales).round(2).tolist(), box_labels=box_labels.tolist(), size=image.size)
        return file.getvalue(), entry


def _as_it_is(sample: Any) -> Any:
    return sample


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_shards(
        dataset: MultiLabelDataset,
        folder: Union[str, Path],
        split: str,
        short_side: int = 512,
        quality: Optional[int] = 90,
        shard_size: int = 2000,
        workers: int = 0,
        progress: Callable = lambda iterable, **_: iterable,
) -> List[str]:
    """Write a split as WebDataset shards `SPLIT-00000.tar`, ..., to be read as `shards:{split}-*.tar`.

    Images are written upright; those that an EXIF orientation turns lose their boxes, which count before the turn.

    Args:
        dataset: Its transform is not used.
        folder: To write into; gets `classes.txt` too.
        split: First part of the shards' names.
        short_side: Of the written images in pixels; smaller ones keep their size.
        quality: Of the JPEGs; None writes uncompressed PPM, 3 bytes a pixel, which hardly takes time to decode.
        shard_size: Images a shard.
        workers: Processes that decode and encode.
        progress: A progress bar as tqdm's.

    Returns:
        The images that could not be read and were left out, each with its reason.
    """
    folder = Path(folder)
    (folder / 'classes.txt').write_text('\n'.join(dataset.class_names) + '\n')
    loader = DataLoader(
        _Resized(dataset, short_side, quality), batch_size=None, num_workers=workers, collate_fn=_as_it_is)
    unreadable, archive, written = [], None, 0
    for content, entry in progress(loader, desc=split, total=len(dataset)):
        if content is None:
            unreadable.append(entry)
            continue
        if written % shard_size == 0:
            if archive is not None:
                archive.close()
            archive = tarfile.open(folder / f'{split}-{written // shard_size:05d}.tar', 'w')
        _add(archive, f'{written:09d}.{"ppm" if quality is None else "jpg"}', content)
        _add(archive, f'{written:09d}.json', json.dumps(entry).encode())
        written += 1
    if archive is not None:
        archive.close()
    return unreadable
