"""The list of a run's unreadable images."""
import json
import logging
from pathlib import Path
from typing import List, Union

from filelock import FileLock

from timm_fan.errors import InputError

__all__ = ['BadSamples']

_logger = logging.getLogger(__name__)

# a warning each for the first, the list has them all
_WARNED = 20


class BadSamples:
    """A file with one JSON object a line for each image that could not be read: `split`, `image`, `reason`.

    Workers, processes and machines add to it under a lock; an image stands there once.

    Args:
        file: On a file system that all of them share.
    """

    def __init__(self, file: Union[str, Path]):
        self.file = Path(file)

    def read(self) -> List[dict]:
        """All entries; a line that was cut off is left out."""
        entries = []
        for line in self.file.read_text().splitlines() if self.file.is_file() else ():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return entries

    def add(self, split: str, limit: int, image: str, reason: Exception) -> None:
        """Note an image, in any process.

        Args:
            split: 'train' or 'val'.
            limit: Images of the split that may be unreadable.
            image: What it is called.
            reason: What was raised when it was read.

        Raises:
            InputError: The split has more than `limit` unreadable images.
        """
        with FileLock(self.file.with_name(f'.{self.file.name}.lock')):
            entries = self.read()
            if any(e['split'] == split and e['image'] == image for e in entries):
                return
            entry = dict(split=split, image=image, reason=f'{type(reason).__name__}: {reason}')
            with open(self.file, 'a') as file:
                file.write(json.dumps(entry) + '\n')
        count = 1 + sum(e['split'] == split for e in entries)
        if count <= _WARNED:
            _logger.warning('unreadable image %s (%s): a grey one with unknown labels stands in for it.', image, reason)
        if count > limit:
            raise InputError(
                f'More than {limit} {split} images cannot be read, the last was {image} ({reason}). {self.file} lists'
                ' them: mend the data, or raise --max-bad-samples.')
