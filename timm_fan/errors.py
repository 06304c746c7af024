"""The error that a user's mistake ends in."""
import re
from typing import Dict, List, Sequence


class InputError(ValueError):
    """Something the user provided is wrong: a path, the content of a file, an argument.

    The message names the file or argument, the value and the remedy. Arguments are in backquotes, such as `data_dir` or
    `non_finite=skip`, so that a program can print them as its own options.

    Attributes:
        problems: Everything that is wrong with a file. The message shows the first few.
    """
    problems: Sequence[str] = ()


def raise_problems(
        source: str, problems: Sequence[str], noun: str = 'problem', shown: int = 10,
        hints: Sequence[str] = ()) -> None:
    """Raise one InputError for everything that is wrong with a file, if anything is.

    Args:
        source: Name of the file.
        problems: One line for each problem: its place, a colon, and what is wrong, with values in quotes.
        noun: What is counted, in the singular.
        shown: Number of problems in the message.
        hints: Likely causes and their remedies, for the end of the message.
    """
    if not problems:
        return
    lines = ''.join(f'\n  {line}' for line in summarize(problems, shown))
    more = ''.join(f'\n{hint}' for hint in hints)
    error = InputError(f'{source}: {len(problems):,} {noun}{"s" if len(problems) > 1 else ""}:{lines}{more}')
    error.problems = problems
    raise error


def _kind(problem: str) -> str:
    """What a problem has in common with others: its text without the place, values in quotes, and numbers."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "''", problem.partition(': ')[2] or problem)
    return re.sub(r'\d+', '0', text)


def summarize(problems: Sequence[str], shown: int = 10) -> List[str]:
    """At most about `shown` of the problems, the first of each kind, and the number of the others of the kind."""
    if len(problems) <= shown:
        return list(problems)
    kinds: Dict[str, List[str]] = {}
    for problem in problems:
        kinds.setdefault(_kind(problem), []).append(problem)
    each, lines = max(1, shown // len(kinds)), []
    for same in list(kinds.values())[:shown]:
        lines += same[:each]
        if len(same) > each:
            lines.append(f'... and {len(same) - each:,} more of this kind')
    if len(kinds) > shown:
        lines.append(f'... and problems of {len(kinds) - shown:,} more kinds')
    return lines
