"""Text files, and writing that leaves either the old file or folder, or the whole new one."""
import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator, List, Union

from .errors import InputError

__all__ = ['filled_folder', 'read_lines', 'recover_folder', 'replace_folder', 'write_text', 'written_folder']


def replace_folder(new: Path, target: Path) -> None:
    """Put the finished folder `new` in the place of `target`, which may exist; both on one file system."""
    old = target.with_name(f'.{target.name}.old')
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    os.rename(new, target)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Put back what a `replace_folder` that was killed between its two moves had put aside."""
    old = target.with_name(f'.{target.name}.old')
    if old.exists() and not target.exists():
        os.rename(old, target)


def read_lines(file: Path) -> List[str]:
    """Lines of a UTF-8 text, which may begin with a byte order mark as on Windows; InputError for other texts."""
    try:
        return file.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f'{file} is not UTF-8 text ({error}).') from error


def write_text(file: Union[str, Path], text: str) -> None:
    """Put `text` in the place of what `file` holds."""
    file = Path(file)
    new = file.with_name(f'.{file.name}.new')
    new.write_text(text)
    os.replace(new, file)


@contextlib.contextmanager
def written_folder(target: Union[str, Path]) -> Iterator[Path]:
    """Yields an empty folder beside `target` and puts it in target's place if the block succeeds.

    Whatever target holds is gone then: for folders that are this package's own.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f'.{target.name}.', dir=target.parent))
    new.chmod(0o755)
    try:
        yield new
        replace_folder(new, target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


@contextlib.contextmanager
def filled_folder(target: Union[str, Path]) -> Iterator[Path]:
    """Yields an empty folder and moves its files into `target` if the block succeeds; what else is there stays."""
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix='.new.', dir=target))
    try:
        yield new
        for file in new.iterdir():
            os.replace(file, target / file.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
