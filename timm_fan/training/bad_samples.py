"""The list of unreadable images of a run."""
import json
import logging
from pathlib import Path
from typing import List, Union

from filelock import FileLock

from timm_fan.errors import InputError
from timm_fan.files import printable

_logger = logging.getLogger(__name__)

# further images are only listed in the file
_NUM_WARNINGS = 20


class BadSamples:
    """A file with one JSON object per line for each image that could not be read: `split`, `image`, `reason`.

    Workers, processes and machines add to it under a lock. An image is listed once.

    Args:
        file: On a file system that all of them share.
    """

    def __init__(self, file: Union[str, Path]):
        self.file = Path(file)

    def read(self) -> List[dict]:
        """All entries, without incomplete lines."""
        entries = []
        for line in self.file.read_text(encoding='utf-8').splitlines() if self.file.is_file() else ():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return entries

    def add(self, split: str, limit: int, image: str, reason: Exception) -> None:
        """Add an image, in any process.

        Args:
            split: 'train' or 'val'.
            limit: Number of images of the split that may be unreadable.
            image: Name of the image.
            reason: The error when it was read.

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
            _logger.warning(
                'unreadable image %s (%s): replaced by a grey one with unknown labels', printable(image), reason)
        if count > limit:
            raise InputError(
                f'More than {limit} {split} images cannot be read, the last one was {printable(image)} ({reason}).'
                f' They are listed in {self.file}. Repair the data, or raise `max_bad_samples`.')
