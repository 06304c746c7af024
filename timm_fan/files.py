"""Text files, and writes that leave either the old file or folder, or the complete new one.

Every text file is UTF-8, whatever the locale. File names that are not UTF-8 keep Python's surrogate escapes.
"""
import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Iterator, List, Union

from .errors import InputError


def printable(name: Union[str, Path]) -> str:
    """A file name on one line of valid text: control characters and surrogate escapes are escaped."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in str(name))


def check_utf8(path: Path) -> None:
    """Raise InputError for the path of a model folder that is not UTF-8, which safetensors cannot open."""
    try:
        os.fsencode(path.absolute()).decode('utf-8')
    except UnicodeDecodeError as error:
        raise InputError(f'{printable(path)} is not UTF-8, and safetensors could not read it. Rename it.') from error


def read_text(file: Path) -> str:
    """The content of a text file, without the byte order mark that Windows adds.

    Raises:
        InputError: It is not UTF-8.
        OSError: It cannot be read.
    """
    try:
        return file.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise InputError(f'{file} is not UTF-8 text ({error}).') from error


def read_lines(file: Path) -> List[str]:
    """The lines of a text file. Raises as `read_text` does."""
    return read_text(file).splitlines()


def read_json(file: Path) -> Any:
    """The content of a JSON file. Raises as `read_text` does, and InputError if it is not valid JSON."""
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise InputError(f'{file} is not valid JSON ({error}).') from error


def read_yaml(file: Path) -> Any:
    """The content of a YAML file. Raises as `read_text` does, and InputError if it is not valid YAML."""
    import yaml

    text = read_text(file)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # PyYAML lets the ValueErrors of dates through
        raise InputError(f'{file} is not valid YAML: {error}') from error


def write_text(file: Union[str, Path], text: str) -> None:
    """Replace the content of `file`. Characters that UTF-8 cannot encode are written as escapes."""
    file = Path(file)
    new = file.with_name(f'.{file.name}.new')
    try:
        new.write_text(text, encoding='utf-8', errors='backslashreplace', newline='\n')
        os.replace(new, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise OSError(error.errno, error.strerror, str(file)) from error


def _replace_folder(new: Path, target: Path) -> None:
    """Move the finished folder `new` to `target`, which may exist, on the same file system."""
    old = target.with_name(f'.{target.name}.old')
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    os.rename(new, target)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Restore a folder whose replacement by `written_folder` was killed between its two moves."""
    old = target.with_name(f'.{target.name}.old')
    if old.exists() and not target.exists():
        os.rename(old, target)


@contextlib.contextmanager
def written_folder(target: Union[str, Path]) -> Iterator[Path]:
    """Yield an empty folder that replaces `target` if the block succeeds.

    Everything in `target` is deleted then: only for folders that belong to this package.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f'.{target.name}.', dir=target.parent))
    new.chmod(0o755)
    try:
        yield new
        _replace_folder(new, target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


@contextlib.contextmanager
def filled_folder(target: Union[str, Path]) -> Iterator[Path]:
    """Yield an empty folder whose files move into `target` if the block succeeds; other files in `target` stay."""
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix='.new.', dir=target))
    try:
        yield new
        for file in new.iterdir():
            os.replace(file, target / file.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
