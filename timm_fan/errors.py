"""The error that a user's mistake ends in."""
from typing import Sequence


class InputError(ValueError):
    """Something the user provided is wrong: a path, the content of a file, an argument.

    The message names the file or argument, the value and the remedy. Arguments are in backquotes, such as `data_dir` or
    `non_finite=skip`, so that a program can print them as its own options.

    Attributes:
        problems: Everything that is wrong with a file. The message shows the first few.
    """
    problems: Sequence[str] = ()


def raise_problems(source: str, problems: Sequence[str], noun: str = 'problem', shown: int = 20) -> None:
    """Raise one InputError for everything that is wrong with a file, if anything is.

    Args:
        source: Name of the file.
        problems: One line for each problem.
        noun: What is counted, in the singular.
        shown: Number of problems in the message.
    """
    if not problems:
        return
    lines = ''.join(f'\n  {problem}' for problem in problems[:shown])
    more = f'\n  ... and {len(problems) - shown} more' if len(problems) > shown else ''
    error = InputError(f'{source}: {len(problems)} {noun}{"s" if len(problems) > 1 else ""}:{lines}{more}')
    error.problems = problems
    raise error
