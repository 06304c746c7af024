"""From the labels in the rows of a source to class indices."""
import difflib
from collections import Counter
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, Union

from timm_fan.errors import InputError, raise_problems
from timm_fan.files import printable, read_text

from ..packed import UNKNOWN

# columns of labels, in lower case, if none is named
LABEL_COLUMNS = ('labels', 'label', 'tags', 'choice', 'classes', 'finding labels')


class Labelled(NamedTuple):
    """One row of a source: its place, for messages, and its labels as names or class indices."""
    where: str
    present: Sequence[Any]
    absent: Sequence[Any] = ()
    unknown: Sequence[Any] = ()


def clean_names(source: str, names: Sequence[str]) -> List[str]:
    """Class names without blanks around them.

    Raises:
        InputError: A name is empty, or occurs twice, or has a line break, which a list of one name per line cannot
            hold.
    """
    cleaned = [name.strip() for name in names]
    empty = sum(not name for name in cleaned)
    if empty:
        raise InputError(f'{source}: {empty} of {len(cleaned)} classes have an empty name.')
    broken = next((name for name in cleaned if len(name.splitlines()) > 1), None)
    if broken is not None:
        raise InputError(f"{source}: the class name '{printable(broken)}' has a line break. Replace it.")
    repeated = sorted(name for name, count in Counter(cleaned).items() if count > 1)
    if repeated:
        raise InputError(f'{source} lists more than once: {", ".join(map(repr, repeated[:10]))}.')
    return cleaned


def read_class_names(file: Union[str, Path]) -> List[str]:
    """Class names from a text file, one per line, in class order.

    Raises:
        InputError: The file is missing, empty or not UTF-8, contains a name twice, or an empty line between names.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f'No class list {file}.')
    # not splitlines(), which also splits at characters that a name may contain by mistake
    lines = read_text(file).rstrip().replace('\r\n', '\n').split('\n')
    if lines == ['']:
        raise InputError(f'{file} names no class.')
    empty = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
    if empty is not None:
        raise InputError(f'{file}: line {empty} is empty. A class list has one name per line, in class order.')
    return clean_names(str(file), lines)


def value_of_unlisted(unlisted: str) -> float:
    """Target of a label that a source does not list: 0 for 'absent', -1 for 'unknown'. Raises InputError otherwise."""
    if unlisted not in ('absent', 'unknown'):
        raise InputError(f"`unlisted` must be 'absent' or 'unknown', got '{unlisted}'.")
    return UNKNOWN if unlisted == 'unknown' else 0.


def _is_label(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _hints(unknown: Sequence[str], class_names: Sequence[str]) -> List[str]:
    """Likely causes of names that are no classes."""
    unknown = [name for name in unknown if not name.lstrip('-').isdecimal()]
    folded = {name.casefold(): name for name in class_names}
    for name in unknown:
        if name.casefold() in folded:
            return [f"'{name}' and the class '{folded[name.casefold()]}' differ only in case."]
    close = ((name, difflib.get_close_matches(name, class_names[:5000], 1)) for name in unknown[:20])
    return next(([f"Is '{name}' the class '{found[0]}'?"] for name, found in close if found), [])


def index_labels(
        source: str,
        rows: Sequence[Labelled],
        class_names: Optional[Sequence[str]] = None,
        problems: Sequence[str] = (),
        hints: Sequence[str] = (),
) -> Tuple[List[str], List[Tuple[List[int], List[int], List[int]]]]:
    """Class names, and the present, absent and unknown class indices of each row.

    Args:
        source: File or data set, for messages.
        rows: Rows whose labels are names, or class indices as integers.
        class_names: Names in class order, by default those that occur, sorted.
        problems: Other problems of the source, to be reported together.
        hints: Their likely causes.

    Raises:
        InputError: Rows have an unknown class, or one class with two meanings; all are listed. A name that occurs
            cannot be a class name.
    """
    problems, unknown = list(problems), {}
    if class_names is None:
        labels = {label for row in rows for group in row[1:] for label in group if _is_label(label)}
        numbers = [label for label in labels if isinstance(label, int)]
        if numbers and len(numbers) < len(labels):
            raise InputError(f'{source} has both names and class indices as labels.')
        class_names = [str(i) for i in range(max(numbers) + 1)] if numbers else clean_names(source, sorted(labels))
    index = {name: i for i, name in enumerate(class_names)}
    indexed = []
    for row in rows:
        groups = []
        for group in row[1:]:
            found = []
            for label in group:
                if not _is_label(label):
                    problems.append(
                        f"{row.where}: '{label!r:.60}' ({type(label).__name__}) is neither a name nor a class index")
                    continue
                i = label if isinstance(label, int) else index.get(label)
                if i is None or not 0 <= i < len(class_names):
                    problems.append(f"{row.where}: '{label}' is not one of the {len(class_names)} classes")
                    unknown[str(label)] = None
                else:
                    found.append(i)
            groups.append(sorted(set(found)))
        if sum(map(len, groups)) > len(set().union(*groups)):
            problems.append(f'{row.where}: one class is listed with two meanings')
        indexed.append(tuple(groups))
    raise_problems(source, problems, hints=[*hints, *_hints(list(unknown), class_names)])
    if not class_names:
        raise InputError(f'{source} names no class.')
    return list(class_names), indexed
