"""WebDataset shards: tar files in which the members of one sample share a name."""
import glob
import json
import re
import tarfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from timm_fan.errors import InputError, raise_problems

from .classes import Labelled, index_labels, read_class_names, value_of_unlisted
from .dataset import Boxes, MultiLabelDataset, PackedStrings, Sample, SparseLabels

__all__ = ['TarImages', 'expand_shards', 'read_shards']

IMAGE_SUFFIXES = ('jpg', 'jpeg', 'png', 'webp', 'bmp', 'gif', 'ppm', 'tif', 'tiff')


def expand_shards(pattern: str) -> List[str]:
    """`a-{000..127}.tar` -> its 128 names in order; a pattern with * or ? -> the files that match, sorted."""
    found = re.search(r'\{(\d+)\.\.(\d+)\}', pattern)
    if not found:
        # brackets may stand in a folder's name
        return sorted(glob.glob(pattern.replace('[', '[[]'))) if re.search(r'[*?]', pattern) else [pattern]
    first, last = found.groups()
    names = [f'{i:0{len(first)}d}' for i in range(int(first), int(last) + 1)]
    return [name for n in names for name in expand_shards(pattern[:found.start()] + n + pattern[found.end():])]


class TarImages:
    """Images inside uncompressed tar files, read by their position: any order, any number of workers and processes."""

    def __init__(self, shards: Sequence[str], members: Sequence[Tuple[int, str, int, int]]):
        self.shards = list(shards)
        self.names = PackedStrings(name for _, name, _, _ in members)
        self.positions = np.array([(s, start, size) for s, _, start, size in members], dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, index: int) -> str:
        return f'{self.shards[self.positions[index, 0]]}/{self.names[index]}'

    def fingerprint(self) -> bytes:
        return self.names.content.tobytes() + self.positions.tobytes()

    def read(self, index: int) -> bytes:
        shard, start, size = self.positions[index].tolist()
        with open(self.shards[shard], 'rb') as file:
            file.seek(start)
            return file.read(size)


def _scan(shard: str) -> Dict[str, Dict[str, Tuple[int, int]]]:
    """Key -> suffix -> position of one shard's members, in their order."""
    samples: Dict[str, Dict[str, Tuple[int, int]]] = {}
    size = Path(shard).stat().st_size
    with tarfile.open(shard, 'r:') as archive:
        for member in archive:
            if not member.isfile():
                continue
            if member.offset_data + member.size > size:
                raise tarfile.ReadError(f'member {member.name} is cut off')
            folder, _, base = member.name.rpartition('/')
            key, _, suffix = base.partition('.')
            samples.setdefault(f'{folder}/{key}' if folder else key, {})[suffix.lower()] = (
                member.offset_data, member.size)
        end = archive.offset
    with open(shard, 'rb') as file:
        file.seek(end)
        # tarfile takes a damaged header for the end of the archive
        if file.read(512) != bytes(512):
            raise tarfile.ReadError(f'damaged at byte {end}')
    return samples


def _parse(content: bytes, suffix: str) -> Tuple[Tuple[Sequence[Any], ...], Sample]:
    """What stands beside an image: its labels, and its objects as those of a Sample."""
    if suffix == 'json':
        entry = json.loads(content)
        groups = entry['labels'], entry.get('absent', []), entry.get('unknown', [])
        if not all(isinstance(group, list) for group in groups):
            raise ValueError(f'labels, absent and unknown must be lists, got {groups!r:.80}')
        boxes, box_labels = np.asarray(entry.get('boxes', ()), float).reshape(-1, 4), entry.get('box_labels', ())
        if len(boxes) != len(box_labels) or not all(isinstance(i, int) for i in box_labels):
            raise ValueError(f'box_labels must hold a class index for each of {len(boxes)} boxes, got {box_labels}')
        return groups, Sample('', (), boxes, box_labels, size=entry.get('size'))
    text = content.decode()
    if suffix == 'cls':
        return ([int(t) for t in re.split(r'[\s,]+', text.strip()) if t],), Sample('', ())
    return ([line.strip() for line in text.splitlines()],), Sample('', ())


def read_shards(
        pattern: str,
        class_names: Optional[Sequence[str]] = None,
        classes: Optional[Union[str, Path]] = None,
        unlisted: str = 'absent',
        transform: Optional[Callable] = None,
) -> MultiLabelDataset:
    """Read WebDataset shards: KEY.jpg (or another image) beside KEY.json, KEY.cls or KEY.txt.

    The JSON holds `labels`, and optionally `absent` and `unknown`, as lists of names or class indices, and of objects
    `boxes` (x, y, width, height in pixels), `box_labels` (class indices) and `size` (width, height of the image), as
    `timm_fan.data.prepare` writes them; .cls holds class indices; .txt a name a line. Shards are scanned once at the
    start, headers and labels only; images are then read by position, so an epoch is exact on any number of workers and
    processes, and shuffled as a whole. They must be uncompressed and on a file system.

    Args:
        pattern: Path with a range `{000..127}`, or with * or ?.
        class_names: Names in class order.
        classes: File of class names, one a line; by default `classes.txt` beside the shards, else the names that occur.
        unlisted: What a label is that a sample does not name, 'absent' or 'unknown' (Open Images).
        transform: Image transform.

    Raises:
        InputError: A shard is missing or damaged, or, all at once, samples without image or labels.
    """
    default = value_of_unlisted(unlisted)
    shards = expand_shards(pattern)
    missing = [s for s in shards if not Path(s).is_file()]
    if missing or not shards:
        more = f', and {len(missing) - 1} more' if len(missing) > 1 else ''
        raise InputError(f'No shard {missing[0] if missing else pattern}{more}.')
    beside = Path(shards[0]).parent / 'classes.txt'
    if class_names is None and (classes or beside.is_file()):
        class_names = read_class_names(classes or beside)

    members, rows, objects, problems = [], [], [], []
    for number, shard in enumerate(shards):
        try:
            samples = _scan(shard)
        except (tarfile.TarError, OSError, EOFError) as error:
            problems.append(f'{shard}: {error}')
            continue
        with open(shard, 'rb') as file:
            for key, found in samples.items():
                image = next((s for s in IMAGE_SUFFIXES if s in found), None)
                suffix = next((s for s in ('json', 'cls', 'txt') if s in found), None)
                if image is None or suffix is None:
                    problems.append(f'{shard}: {key} has no {"image" if image is None else "json, cls or txt"}')
                    continue
                start, size = found[suffix]
                file.seek(start)
                try:
                    groups, found_objects = _parse(file.read(size), suffix)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    problems.append(f'{shard}: {key}.{suffix}: {type(error).__name__}: {error}')
                    continue
                rows.append(Labelled(f'{shard}: {key}', *([x for x in g if x != ''] for g in groups)))
                objects.append(found_objects)
                members.append((number, f'{key}.{image}', *found[image]))
    if not rows:
        raise_problems(pattern, problems)
    names, indexed = index_labels(pattern, rows, class_names, problems)
    raise_problems(pattern, [
        f'{row.where}: box_labels name a class beyond the {len(names)}' for row, o in zip(rows, objects)
        if any(not 0 <= i < len(names) for i in o.box_labels)])
    labels = SparseLabels(indexed, len(names), default)
    boxes = Boxes(objects) if any(len(o.boxes) for o in objects) else None
    return MultiLabelDataset(TarImages(shards, members), labels, names, boxes, transform)
