"""What the programs share: options, errors and output."""
import argparse
import contextlib
import errno
import re
import sys
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Tuple

from timm_fan import InputError
from timm_fan.data import SOURCES
from timm_fan.models import BUNDLED, is_model
from timm_fan.processes import best_device

# errors of the disk, not of the program
_DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENAMETOOLONG)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Ends the description of each option with its default, unless the description has it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, switch = action.help or '', action.nargs == 0
        if not action.option_strings or action.required or switch or 'default' in text:
            return text
        if action.default is argparse.SUPPRESS:
            return text
        return f'{text} (default: {"none" if action.default in (None, []) else "%(default)s"})'


def create_parser(description: str) -> argparse.ArgumentParser:
    """A parser whose `--help` starts with the docstring of a program, and has the defaults of all options."""
    return argparse.ArgumentParser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)


def run_program(parser: argparse.ArgumentParser, main: Callable[[argparse.Namespace], None]) -> None:
    """Run `main` with the arguments of the command line. A user's mistake ends in one message and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # names may have characters that the terminal cannot show
            stream.reconfigure(errors='backslashreplace')
    with exit_on_error(parser):
        main(parser.parse_args())


@contextlib.contextmanager
def exit_on_error(parser: argparse.ArgumentParser) -> Iterator[None]:
    """End the process without a traceback for a user's mistake, a file that cannot be written or read, and Ctrl-C."""
    try:
        yield
    except InputError as error:
        text = str(error)
        if text.startswith('Caught '):  # from a worker of a data loader, after its traceback
            text = text.rpartition('InputError: ')[2].strip()
        _exit(f'error: {with_flags(text, parser)}')
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _exit(f'error: {error.filename or "the disk"}: {error.strerror}.')
    except KeyboardInterrupt:
        _exit('interrupted', code=130)


def _exit(message: str, code: int = 2) -> None:
    sys.stderr.write(f'{message}\n')
    sys.exit(code)


def with_flags(text: str, parser: argparse.ArgumentParser) -> str:
    """Replace `argument` and `argument=value` in a message of the library by the options of a program."""
    parsers = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
    flags = {action.dest: action.option_strings[0] for p in parsers for action in p._actions if action.option_strings}

    def flag(found: re.Match) -> str:
        name, sep, value = found[1].partition('=')
        return f'{flags[name]}{" " if sep else ""}{value}' if name in flags else found[1]

    return re.sub(r'`([a-z_]+(?:=[^`]*)?)`', flag, text)


def add_data_arguments(
        parser: argparse.ArgumentParser, default: Optional[str] = 'scenes', split: bool = False,
        of_run: bool = False) -> None:
    """Add the options of a data source. With `of_run`, they are None by default, for those of the run."""
    add = parser.add_argument
    text = ' (default: that of the run, otherwise {})' if of_run else ' (default: {})'
    add('--data', default=None if of_run else default,
        help=f'data source NAME[:WHERE][?OPTION=VALUE], one of {", ".join(SOURCES)}'
        + (text.format(default or 'scenes') if default or of_run else ''))
    add('--data-dir', default=None if of_run else 'data', help=f'folder of the data set{text.format("data")}')
    if split:
        add('--split', default='val', choices=['train', 'val'], help='split of the data set (default: %(default)s)')


def add_model_and_images(parser: argparse.ArgumentParser, images: str) -> None:
    """Add `[MODEL] IMAGE ...`, which `model_and_images` takes apart. `images` is their description."""
    parser.add_argument('inputs', nargs='*', metavar='[MODEL] IMAGE',
        help='a run or model folder, or hf-hub:REPO (default: the model that comes with timm_fan, for the 20 classes of'
        f' PASCAL VOC), and {images}')


def model_and_images(args: argparse.Namespace) -> Tuple[str, List[str]]:
    """The model and the images of `add_model_and_images`. The first input is a model, unless it is an image."""
    if args.inputs and is_model(args.inputs[0]):
        return args.inputs[0], args.inputs[1:]
    sys.stderr.write(f'model {BUNDLED}, which comes with timm_fan\n')
    return BUNDLED, args.inputs


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--device', default=best_device(), help='default: the first of cuda, mps and cpu that PyTorch can use')


def check_device(name: str) -> None:
    """Raise InputError unless there is such a device."""
    import torch  # after timm_fan

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"`device={name}` is not a device of PyTorch. Use cuda, mps or cpu.") from error
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise InputError(f'`device={name}`: PyTorch finds no GPU.')
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise InputError(f'`device={name}`: PyTorch cannot compute there. Use cuda, mps or cpu.') from error


def find_config(name: str, folder: Path, what: str) -> Path:
    """The YAML file `name`, or that of this name in `folder`."""
    file = Path(name) if name.endswith(('.yaml', '.yml')) else folder / f'{name}.yaml'
    if not file.is_file():
        known = ', '.join(sorted(p.stem for p in folder.glob('*.yaml')))
        raise InputError(f'{what}: no file {file}. Use a YAML file or one of {known}.')
    return file
