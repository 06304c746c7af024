"""The one error that a user's mistake ends in."""
import contextlib
import errno
import sys
from typing import Iterator, Sequence

import torch

_DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENAMETOOLONG)


class InputError(ValueError):
    """Something that the user gave is wrong: a path, a file's content, an option.

    The message names the file or option, the value and the remedy. `problems` lists all that is wrong with a file, of
    which the message shows the first.
    """
    problems: Sequence[str] = ()


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """For programs: an InputError ends the process with its message on stderr and exit code 2, without a traceback.

    So does a file that cannot be written or opened: no space, no permission, something in the way.
    """
    try:
        yield
    except InputError as error:
        # a data loader's worker passes its error on as text, behind a traceback
        text = str(error)
        if text.startswith('Caught '):
            text = text.rpartition('InputError: ')[2].strip()
        sys.stderr.write(f'error: {text}\n')
        sys.exit(2)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        sys.stderr.write(f'error: {error.filename or "the disk"}: {error.strerror}.\n')
        sys.exit(2)


def check_device(name: str) -> None:
    """For programs: raises an InputError unless `--device NAME` is there to compute on."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device '{name}' is none of PyTorch's, give cpu or cuda.") from error
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise InputError(f'--device {name}: PyTorch sees no GPU here.')


def raise_problems(source: str, problems: Sequence[str], noun: str = 'problem', shown: int = 20) -> None:
    """Raises one InputError for all that is wrong with a file, if anything is; `noun` says what is counted."""
    if problems:
        more = f'\n  ... and {len(problems) - shown} more' if len(problems) > shown else ''
        lines = ''.join(f'\n  {p}' for p in problems[:shown])
        error = InputError(f'{source}: {len(problems)} {noun}{"s" if len(problems) > 1 else ""}:{lines}{more}')
        error.problems = problems
        raise error
