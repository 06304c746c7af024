"""One meaning for a cell of labels in every source: lists, texts, numbers, and rows of 0 and 1."""
import ast
import json
import math
import re
from collections import Counter
from typing import Any, Container, List, NamedTuple, Optional, Sequence, Tuple, Union

from timm_fan.errors import InputError

from .labels import Labelled

SEPARATORS = ('|', ';', ',', '\t', '\n')
# separators that are awkward to write in an address
SEPARATOR_NAMES = {'space': ' ', 'tab': '\t', 'newline': '\n', 'comma': ',', 'semicolon': ';', 'pipe': '|'}
# keys of labels in the values of Label Studio's results
LABEL_STUDIO_KEYS = (
    'choices', 'rectanglelabels', 'polygonlabels', 'brushlabels', 'ellipselabels', 'keypointlabels', 'labels')
# keys of labels in the dicts of a cell: categories of objects, results of Label Studio
LABEL_KEYS = ('category', 'categories', 'label', 'labels', 'category_id', *LABEL_STUDIO_KEYS[:-1])

# list if the cell has one, otherwise the text, to be separated
Parsed = Union[str, List[Any]]


class Row(NamedTuple):
    """One row of a source: its place, for messages, and the cells of present, absent and unknown labels."""
    where: str
    cells: Tuple[Any, ...]


def _parse_text(text: str) -> Any:
    """The list or dict that a text is as a whole, as JSON or Python, otherwise the text."""
    text = text.strip()
    if re.match(r'(array|tensor|set|frozenset|Index|Series|dict_\w+)\(', text):
        raise ValueError(f'{text!r:.60} is an object that Python has printed. Write its list as JSON')
    if text[:1] + text[-1:] not in ('[]', '{}', '()'):
        return text
    if text[0] != '(' and re.search(r"""(['"])\s+(['"])""", text):  # Python would join 'a' 'b' to 'ab'
        raise ValueError(f'{text!r:.60} has no commas, as lists that NumPy prints. Write it as JSON')
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    if text[0] == '(':  # a name in parentheses
        return text
    raise ValueError(f'{text!r:.60} is not a list in JSON or Python')


def _entry(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _parse(cell: Any) -> Parsed:
    """The list of a cell, of a single number too. Raises ValueError for what cannot be read, with the cell."""
    if isinstance(cell, str):
        cell = _parse_text(cell)
        if isinstance(cell, str):
            return cell
    if cell is None or isinstance(cell, float) and math.isnan(cell):
        return []
    if isinstance(cell, dict):
        key = next((k for k in LABEL_KEYS if k in cell), None)
        if key is None:
            raise ValueError(f'{cell!r:.60} has none of the keys {", ".join(LABEL_KEYS)}')
        inner = _parse(cell[key])
        return [inner] if isinstance(inner, str) else inner
    if not isinstance(cell, (list, tuple, set)):
        return [_entry(cell)]
    entries = []
    for value in sorted(cell) if isinstance(cell, set) else cell:
        entries += _parse(value) if isinstance(value, dict) else [_entry(value)]
    return [entry for entry in entries if entry != '']


def find_separator(source: str, texts: Sequence[str], names: Sequence[str] = ()) -> Optional[str]:
    """The separator of labels in texts, None if each is one label. Texts that are one of `names` are left out.

    Raises:
        InputError: It is not clear.
    """
    known = set(names)
    fitting = [s for s in SEPARATORS if known and all(part in known for t in texts for part in _separate(t, s, known))]
    if len(fitting) == 1:
        return fitting[0]
    texts = [t for t in dict.fromkeys(text.strip() for text in texts) if t and t not in known]
    found = {s: next((t for t in texts if s in t), None) for s in SEPARATORS}
    found = {s: text for s, text in found.items() if text is not None}
    if len(found) > 1:
        places = ' and '.join(f'{s!r} in {text!r:.60}' for s, text in found.items())
        raise InputError(
            f'{source}: the separator of labels is not clear, there is {places}. Give sep=, for example sep=|.')
    if found:
        separator, = found
        odd = next((t for t in texts if re.search(rf'\s{re.escape(separator)}\S', t)), None)
        if odd is None or separator.isspace():
            return separator
        raise InputError(
            f'{source}: it is not clear that {separator!r} separates labels in {odd!r:.60}. Give sep={separator}, or'
            ' sep=space if labels are separated by blanks.')
    _check_blanks(source, texts)
    return None


def _check_blanks(source: str, texts: Sequence[str]) -> None:
    """Raise InputError if the words of texts look like labels of their own."""
    words = Counter(word for text in texts for word in set(text.split()))
    several = [text for text in texts if len(text.split()) > 1]
    whole = set(texts)
    suspect = next((t for t in several if any(word in whole for word in t.split())), None)
    numbers = next((t for t in several if re.fullmatch(r'\d+(\s+\d+)+', t)), None)
    shared = [t for t in several if any(words[word] > 1 for word in t.split())]
    if suspect is None and numbers is None and len(shared) * 2 > len(texts) > 2:
        suspect = shared[0]
    suspect = suspect or numbers
    if suspect is not None:
        raise InputError(
            f'{source}: it is not clear whether {suspect!r:.60} is one label. Give sep=space if blanks separate labels,'
            ' otherwise sep=|.')


def _separate(text: str, separator: Optional[str], known: Container[str]) -> List[str]:
    text = text.strip()
    if not text or text in known or separator is None:
        return [text] if text else []
    return [part.strip() for part in text.split(separator) if part.strip()]


def _number(label: Any) -> Any:
    return int(label) if isinstance(label, str) and label in ('0', '1', '-1') else label


def multi_hot_length(rows: Sequence[Sequence[Any]], class_names: Optional[Sequence[str]]) -> Optional[int]:
    """Number of classes if all lists have the same length, with 1, 0 or -1 for each class, otherwise None.

    Empty lists, where a row says nothing, do not count.
    """
    lengths = {len(row) for row in rows if row}
    if len(lengths) != 1 or not all(_number(v) in (0, 1, -1) for row in rows for v in row):
        return None
    length, = lengths
    if length < 2 or class_names is not None and len(class_names) != length:
        return None
    return length


def _by_value(row: Sequence[Any]) -> List[List[int]]:
    return [[i for i, value in enumerate(row) if _number(value) == wanted] for wanted in (1, 0, -1)]


def read_labels(
        source: str,
        rows: Sequence[Row],
        class_names: Optional[Sequence[str]],
        problems: List[str],
        sep: Optional[str] = None,
        as_indices: bool = False,
) -> Tuple[List[Labelled], Optional[Sequence[str]]]:
    """The labels in the cells of a source, and its class names.

    A cell is a list, a text that is a list in JSON or Python, a dict with a list (objects, choices), a single name or
    number, or a text with separated labels. Lists of the same length in all rows that only have 1, 0, -1, True and
    False have one entry for each class. All other numbers are class indices.

    Args:
        source: File or data set, for messages.
        rows: Their cells.
        class_names: Names in class order, None if they are not known.
        problems: Cells that cannot be read are added to it.
        sep: Separator of labels in a text, or one of `SEPARATOR_NAMES`. By default, the one of | ; , tab and line break
            that occurs.
        as_indices: Numbers are always class indices.

    Returns:
        Labels of the rows, and `class_names`, or numbers as names if rows of 0 and 1 say how many classes there are.

    Raises:
        InputError: The separator is not clear.
    """
    parsed: List[List[Parsed]] = []
    for row in rows:
        cells: List[Parsed] = []
        for cell in row.cells:
            try:
                cells.append(_parse(cell))
            except ValueError as error:
                problems.append(f'{row.where}: {error}')
                cells.append([])
        parsed.append(cells)
    known = frozenset(class_names or ())
    texts = [cell for cells in parsed for cell in cells if isinstance(cell, str)]
    sep = SEPARATOR_NAMES.get(sep, sep) if sep else find_separator(source, texts, class_names or ())
    labels = [[_separate(cell, sep, known) if isinstance(cell, str) else cell for cell in cells] for cells in parsed]
    _drop_fractions(labels, texts)
    _numbers_as_indices(labels, class_names)
    if as_indices:
        return [Labelled(row.where, *groups) for row, groups in zip(rows, labels)], class_names
    first = [groups[0] for groups in labels]
    length = multi_hot_length(first, class_names)
    if length is not None and not any(group for groups in labels for group in groups[1:]):
        problems += [
            f'{row.where}: no entry, but the other rows have one of 1, 0 or -1 for each of {length} classes'
            for row, values in zip(rows, first) if not values]
        return ([Labelled(row.where, *_by_value(values)) for row, values in zip(rows, first)],
                class_names or [str(i) for i in range(length)])
    _check_repeated(rows, first, problems)
    return [Labelled(row.where, *groups) for row, groups in zip(rows, labels)], class_names


def _drop_fractions(labels: Sequence[Sequence[List[Any]]], texts: Sequence[str]) -> None:
    """'3.0' -> '3', in place, if all texts are numbers: pandas writes integers so where a column has empty cells."""
    if not any(re.fullmatch(r'\d+\.0+', text) for text in texts):
        return
    if all(re.fullmatch(r'\d+(\.0+)?', text) or not text for text in texts):
        for groups in labels:
            for group in groups:
                group[:] = [v.partition('.')[0] if isinstance(v, str) else v for v in group]


def _numbers_as_indices(labels: Sequence[Sequence[List[Any]]], class_names: Optional[Sequence[str]]) -> None:
    """'3' -> 3, in place, if all labels are such texts and none is a class name."""
    values = [v for groups in labels for group in groups for v in group]
    if not class_names or not values or not all(isinstance(v, str) and v.isdecimal() for v in values):
        return
    if set(values).isdisjoint(class_names):
        for groups in labels:
            for group in groups:
                group[:] = map(int, group)


def _check_repeated(rows: Sequence[Row], lists: Sequence[List[Any]], problems: List[str]) -> None:
    """Lists of 0 and 1 of different lengths, which may be rows of 0 and 1 or class indices, are problems."""
    numbers = [[_number(v) for v in values] for values in lists]
    several = [values for values in numbers if len(values) > 1]
    if several and all(v in (0, 1) for values in numbers for v in values):
        problems += [
            f"{row.where}: '{values!r:.60}' may be class indices or a row of 0 and 1. Write names, or in all rows one"
            ' entry for each class' for row, values in zip(rows, lists) if len(values) > 1]
