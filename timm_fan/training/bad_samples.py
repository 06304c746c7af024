"""The list of unreadable images of a run."""
import contextlib
import json
from pathlib import Path
from typing import List

from filelock import FileLock

from timm_fan.data.dataset import warn_unreadable
from timm_fan.errors import InputError
from timm_fan.files import printable

# further images are only listed in the file
_NUM_WARNINGS = 20


class BadSamples:
    """A file with one JSON object per line for each image that could not be read: `split`, `image`, `reason`.

    Workers, processes and machines, which share its file system, add to it under a lock. An image is listed once.
    """

    def __init__(self, file: Path):
        self.file = file

    def read(self) -> List[dict]:
        """All entries, without incomplete lines."""
        entries = []
        for line in self.file.read_text(encoding='utf-8').splitlines() if self.file.is_file() else ():
            with contextlib.suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
        return entries

    def add(self, split: str, limit: int, image: str, reason: Exception) -> None:
        """Add an image of the split 'train' or 'val', in any process.

        Raises:
            InputError: The split has more than `limit` unreadable images.
        """
        with FileLock(self.file.with_name(f'.{self.file.name}.lock')):
            entries = self.read()
            if any(e['split'] == split and e['image'] == image for e in entries):
                return
            entry = dict(split=split, image=image, reason=f'{type(reason).__name__}: {reason}')
            with open(self.file, 'a', encoding='utf-8') as file:
                file.write(json.dumps(entry) + '\n')
        count = 1 + sum(e['split'] == split for e in entries)
        if count <= _NUM_WARNINGS:
            warn_unreadable(image, reason)
        if count > limit:
            raise InputError(
                f'More than {limit} {split} images cannot be read, the last one was {printable(image)} ({reason}).'
                f' They are listed in {self.file}. Repair the data, or raise `max_bad_samples`.')
