"""From the labels in the rows of a source to class indices."""
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, Union

from timm_fan.errors import InputError, raise_problems
from timm_fan.files import read_lines

from ..packed import UNKNOWN

# columns of labels, if none is named
LABEL_COLUMNS = ('labels', 'label', 'tags')


class Labelled(NamedTuple):
    """One row of a source: its place, for messages, and its labels as names or class indices."""
    where: str
    present: Sequence[Any]
    absent: Sequence[Any] = ()
    unknown: Sequence[Any] = ()


def read_class_names(file: Union[str, Path]) -> List[str]:
    """Class names from a text file, one per line, in class order.

    Raises:
        InputError: The file is missing, empty or not UTF-8, or contains a name twice.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f'No class list {file}.')
    names = [line.strip() for line in read_lines(file) if line.strip()]
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated or not names:
        wrong = f'lists more than once: {", ".join(repeated)}' if repeated else 'names no class'
        raise InputError(f'{file} {wrong}.')
    return names


def value_of_unlisted(unlisted: str) -> float:
    """Target of a label that a source does not list: 0 for 'absent', -1 for 'unknown'. Raises InputError otherwise."""
    if unlisted not in ('absent', 'unknown'):
        raise InputError(f"`unlisted` must be 'absent' or 'unknown', got '{unlisted}'.")
    return UNKNOWN if unlisted == 'unknown' else 0.


def _is_label(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def index_labels(
        source: str,
        rows: Sequence[Labelled],
        class_names: Optional[Sequence[str]] = None,
        problems: Sequence[str] = (),
) -> Tuple[List[str], List[Tuple[List[int], List[int], List[int]]]]:
    """Class names, and the present, absent and unknown class indices of each row.

    Args:
        source: File or data set, for messages.
        rows: Rows whose labels are names, or class indices as integers.
        class_names: Names in class order, by default those that occur, sorted.
        problems: Other problems of the source, to be reported together.

    Raises:
        InputError: Rows have an unknown class, or one class with two meanings; all are listed.
    """
    problems = list(problems)
    if class_names is None:
        labels = {label for row in rows for group in row[1:] for label in group if _is_label(label)}
        numbers = [label for label in labels if isinstance(label, int)]
        if numbers and len(numbers) < len(labels):
            raise InputError(f'{source} has both names and class indices as labels.')
        class_names = [str(i) for i in range(max(numbers) + 1)] if numbers else sorted(labels)
    index = {name: i for i, name in enumerate(class_names)}
    indexed = []
    for row in rows:
        groups = []
        for group in row[1:]:
            found = []
            for label in group:
                if not _is_label(label):
                    problems.append(f'{row.where}: {label!r:.60} is neither a name nor a class index')
                    continue
                i = label if isinstance(label, int) else index.get(label)
                if i is None or not 0 <= i < len(class_names):
                    problems.append(f"{row.where}: '{label}' is not one of the {len(class_names)} classes")
                else:
                    found.append(i)
            groups.append(sorted(set(found)))
        if sum(map(len, groups)) > len(set().union(*groups)):
            problems.append(f'{row.where}: one class is listed with two meanings')
        indexed.append(tuple(groups))
    raise_problems(source, problems)
    if not class_names:
        raise InputError(f'{source} names no class.')
    return list(class_names), indexed
