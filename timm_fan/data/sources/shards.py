"""WebDataset shards: tar files where the members of one sample share a name. The reader, and a writer."""
import glob
import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from timm_fan.errors import InputError, raise_problems
from timm_fan.files import write_text
from timm_fan.processes import ignore_signals

from ..dataset import MultiLabelDataset
from ..images import UNREADABLE
from ..packed import Boxes, PackedStrings, Sample, SparseLabels
from .cells import Row, read_labels
from .labels import index_labels, read_class_names, value_of_unlisted
from .request import Request

IMAGE_SUFFIXES = ('jpg', 'jpeg', 'png', 'webp', 'bmp', 'gif', 'ppm', 'tif', 'tiff')


def expand_shards(pattern: str) -> List[str]:
    """Names of `a-{000..127}.tar` in order, or the files that match a pattern with * or ?, sorted."""
    found = re.search(r'\{(\d+)\.\.(\d+)\}', pattern)
    if not found:
        # the name of a folder may contain brackets
        return sorted(glob.glob(pattern.replace('[', '[[]'))) if re.search(r'[*?]', pattern) else [pattern]
    first, last = found.groups()
    names = [f'{i:0{len(first)}d}' for i in range(int(first), int(last) + 1)]
    return [name for n in names for name in expand_shards(pattern[:found.start()] + n + pattern[found.end():])]


class TarImages:
    """Images in uncompressed tar files, read by position: in any order, by any number of workers and processes."""

    def __init__(self, shards: Sequence[str], members: Sequence[Tuple[int, str, int, int]]):
        self.shards = list(shards)
        self._folder = os.path.commonpath([os.path.dirname(os.path.abspath(shard)) for shard in self.shards])
        self.names = PackedStrings(name for _, name, _, _ in members)
        self.positions = np.array([(s, start, size) for s, _, start, size in members], dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, index: int) -> str:
        return f'{self.shards[self.positions[index, 0]]}/{self.names[index]}'

    def key(self, index: int) -> str:
        shard = os.path.relpath(self.shards[self.positions[index, 0]], self._folder)
        return f'{shard}/{self.names[index]}'

    def size(self, index: int) -> int:
        return int(self.positions[index, 2])

    def fingerprint(self) -> bytes:
        return self.names.content.tobytes() + self.positions.tobytes()

    def read(self, index: int) -> bytes:
        shard, start, size = self.positions[index].tolist()
        with open(self.shards[shard], 'rb') as file:
            file.seek(start)
            return file.read(size)


def _is_meta(name: str) -> bool:
    """Whether a member is no part of a sample: files of macOS (`._x`, `.DS_Store`), or an index (`__index__.json`)."""
    return name.rpartition('/')[2].startswith(('.', '__'))


def _scan(shard: str) -> Dict[str, Dict[str, Tuple[int, int]]]:
    """Key -> suffix -> position of the members of one shard, in their order."""
    samples = {}
    size = Path(shard).stat().st_size
    with open(shard, 'rb') as file:
        if file.read(2) in (b'\x1f\x8b', b'BZ', b'\xfd7', b'(\xb5'):
            raise tarfile.ReadError('the shard is compressed, and its images could not be read by position: unpack it')
    with tarfile.open(shard, 'r:') as archive:
        for member in archive:
            if not member.isfile() or _is_meta(member.name):
                continue
            if member.offset_data + member.size > size:
                raise tarfile.ReadError(f'member {member.name} is cut off')
            folder, slash, base = member.name.rpartition('/')
            key, _, suffix = base.partition('.')
            sample = samples.setdefault(folder + slash + key, {})
            if suffix.lower() in sample:
                raise tarfile.ReadError(f'member {member.name} is there twice')
            sample[suffix.lower()] = member.offset_data, member.size
        end = archive.offset
    with open(shard, 'rb') as file:
        file.seek(end)
        # tarfile treats a damaged header as the end of the archive
        if file.read(512) != bytes(512):
            raise tarfile.ReadError(f'damaged at byte {end}')
    return samples


def _parse(content: bytes, suffix: str) -> Tuple[Tuple[Any, ...], Sample]:
    """Cells of labels of an image, and a Sample with its objects, from the member next to it."""
    if suffix == 'json':
        entry = json.loads(content)
        groups = entry['labels'], entry.get('absent'), entry.get('unknown')
        boxes, box_labels = np.asarray(entry.get('boxes', ()), float).reshape(-1, 4), entry.get('box_labels', ())
        if len(boxes) != len(box_labels) or not all(isinstance(i, int) for i in box_labels):
            raise ValueError(f'box_labels must have a class index for each of {len(boxes)} boxes, got {box_labels}')
        if not (abs(boxes) < 1e9).all():
            raise ValueError('boxes must be numbers below 1e9')
        size = entry.get('size') if len(boxes) else None  # other programs write other things as size
        if size is not None and not (
                isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and 0 < n < 1e9 for n in size)):
            raise ValueError(f'size must be width and height in pixels, got {size!r:.80}')
        return groups, Sample('', (), boxes, box_labels, size=size)
    text = content.decode('utf-8-sig')
    if suffix == 'cls':
        try:
            return ([int(t) for t in re.split(r'[\s,]+', text.strip()) if t],), Sample('', ())
        except ValueError as error:
            raise ValueError(f'{text.strip()!r:.60} is not a list of class indices') from error
    return (text.strip(),), Sample('', ())


def _has_labels(file: BinaryIO, start: int, size: int) -> bool:
    """Whether a JSON member has labels, and not only other metadata."""
    file.seek(start)
    try:
        return 'labels' in json.loads(file.read(size))
    except (ValueError, TypeError):
        return True  # its problem is reported


def _samples(shard: str, problems: List[str]) -> Iterator[Tuple[str, str, Tuple[int, int], Sequence[Any], Sample]]:
    """Key, image suffix, position of the image, labels and objects of each sample. Others are added to `problems`."""
    try:
        samples = _scan(shard)
    except (tarfile.TarError, OSError, EOFError) as error:
        problems.append(f'{shard}: {error}')
        return
    with open(shard, 'rb') as file:
        for key, found in samples.items():
            image = next((s for s in IMAGE_SUFFIXES if s in found), None)
            suffix = next((s for s in ('json', 'cls', 'txt') if s in found), None)
            if suffix == 'json' and ('cls' in found or 'txt' in found) and not _has_labels(file, *found['json']):
                suffix = 'cls' if 'cls' in found else 'txt'
            if image is None or suffix is None:
                problems.append(f'{shard}: {key} has no {"image" if image is None else "json, cls or txt"}')
                continue
            start, size = found[suffix]
            file.seek(start)
            try:
                groups, objects = _parse(file.read(size), suffix)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                problems.append(f'{shard}: {key}.{suffix}: {type(error).__name__}: {error}')
                continue
            yield key, image, found[image], groups, objects


def _existing_shards(pattern: str) -> List[str]:
    shards = expand_shards(pattern)
    missing = [s for s in shards if not Path(s).is_file()]
    if missing or not shards:
        more = f', and {len(missing) - 1} more' if len(missing) > 1 else ''
        raise InputError(f'No shard {missing[0] if missing else pattern}{more}.')
    return shards


def read_shards(
        pattern: str, class_names: Optional[Sequence[str]] = None, unlisted: str = 'absent',
        sep: Optional[str] = None) -> MultiLabelDataset:
    """Read WebDataset shards: KEY.jpg (or another image format), and KEY.json, KEY.cls or KEY.txt.

    The JSON has `labels`, and optionally `absent` and `unknown`, as `cells.read_labels` reads them, and for objects
    `boxes` (x, y, width, height in pixels), `box_labels` (class indices) and `size` (width, height of the image), as
    `write_shards` writes them. .cls has class indices, .txt one name per line. Shards are scanned once at the start,
    only headers and labels. Images are then read by position, so that an epoch is shuffled as a whole and repeats no
    image, with any number of workers and processes. Shards must be uncompressed and on a file system.

    Args:
        pattern: Path with a range `{000..127}`, or with * or ?.
        class_names: Names in class order, by default those in `classes.txt` next to the shards, otherwise those that
            occur.
        unlisted: Meaning of labels that a sample does not list, 'absent' or 'unknown' (Open Images).
        sep: Separator of labels in a text, by default the one of | ; , tab and line break that occurs.

    Raises:
        InputError: A shard is missing or damaged. Samples without an image or labels are reported together.
    """
    default = value_of_unlisted(unlisted)
    shards = _existing_shards(pattern)
    beside = Path(shards[0]).parent / 'classes.txt'
    if class_names is None and beside.is_file():
        class_names = read_class_names(beside)

    members, rows, objects, problems = [], [], [], []
    for number, shard in enumerate(shards):
        for key, image, position, groups, found_objects in _samples(shard, problems):
            rows.append(Row(f'{shard}: {key}', groups))
            objects.append(found_objects)
            members.append((number, f'{key}.{image}', *position))
    if not rows:
        raise_problems(pattern, problems)
    labelled, class_names = read_labels(pattern, rows, class_names, problems, sep)
    names, indexed = index_labels(pattern, labelled, class_names, problems)
    raise_problems(pattern, [
        f'{row.where}: box_labels has an index beyond the {len(names)} classes' for row, o in zip(rows, objects)
        if any(not 0 <= i < len(names) for i in o.box_labels)])
    labels = SparseLabels(indexed, len(names), default)
    boxes = Boxes(objects) if any(len(o.boxes) for o in objects) else None
    return MultiLabelDataset(TarImages(shards, members), labels, names, boxes)


def shard_images(request: Request) -> TarImages:
    """The images of shards, which need no labels.

    Raises:
        InputError: A shard is missing or damaged, or has no image.
    """
    pattern = str(request.data_dir / request.where)
    if not request.where or '{split}' in pattern:
        pattern = request.path(
            request.where_or('{split}-*.tar'), lambda path: any(map(os.path.isfile, expand_shards(path)[:1])))
    shards = _existing_shards(pattern)
    members, problems = [], []
    for number, shard in enumerate(shards):
        try:
            samples = _scan(shard)
        except (tarfile.TarError, OSError, EOFError) as error:
            problems.append(f'{shard}: {error}')
            continue
        for key, found in samples.items():
            image = next((s for s in IMAGE_SUFFIXES if s in found), None)
            if image is not None:
                members.append((number, f'{key}.{image}', *found[image]))
    raise_problems(pattern, problems)
    if not members:
        raise InputError(f'{pattern}: the shards have no images.')
    return TarImages(shards, members)


class _Resized(Dataset):
    """Encoded small images with their entries for the JSON, or None and the reason why an image cannot be read."""

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
        image.save(file, 'ppm' if self.quality is None else 'jpeg', quality=self.quality)
        classes, values = self.dataset.labels.listed(index)
        entry = {
            key: classes[values == value].tolist() for key, value in (('labels', 1), ('absent', 0), ('unknown', -1))}
        if self.dataset.boxes is not None and self.dataset.boxes.fit(index, size):
            boxes, box_labels = self.dataset.boxes[index]
            scales = [new / old for new, old in zip(image.size, size)] * 2
            entry.update(boxes=(boxes * scales).round(2).tolist(), box_labels=box_labels.tolist(), size=image.size)
        return file.getvalue(), entry


def _add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
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
        num_workers: int = 0,
        progress: Callable = lambda iterable, **_: iterable,
) -> List[str]:
    """Write a split as shards `SPLIT-00000.tar`, ... of smaller images, which decode several times as fast.

    Images are written upright. Those whose EXIF orientation swaps width and height lose their boxes, which refer to the
    stored image.

    Args:
        dataset: The data set. Its transform is not used.
        folder: Existing folder to write to, which also gets `classes.txt`.
        split: Start of the names of the shards.
        short_side: Short side of the written images in pixels. Smaller images keep their size.
        quality: JPEG quality, or None for uncompressed PPM, 3 bytes per pixel, which takes hardly any time to decode.
        shard_size: Images per shard.
        num_workers: Processes that decode and encode.
        progress: A progress bar like tqdm.

    Returns:
        Images that could not be read and were left out, with the reason.
    """
    folder = Path(folder)
    write_text(folder / 'classes.txt', '\n'.join(dataset.class_names) + '\n')
    loader = DataLoader(
        _Resized(dataset, short_side, quality), batch_size=None, num_workers=num_workers, worker_init_fn=ignore_signals)
    unreadable, archive, written = [], None, 0
    for content, entry in progress(loader, desc=split, total=len(dataset)):
        if content is None:
            unreadable.append(entry)
            continue
        if written % shard_size == 0:
            if archive is not None:
                archive.close()
            archive = tarfile.open(folder / f'{split}-{written // shard_size:05d}.tar', 'w')
        _add_member(archive, f'{written:09d}.{"ppm" if quality is None else "jpg"}', content)
        _add_member(archive, f'{written:09d}.json', json.dumps(entry).encode())
        written += 1
    if archive is not None:
        archive.close()
    return unreadable
