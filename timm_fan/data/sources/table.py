"""Tables: CSV, TSV, JSON lines or Parquet with an image path and labels in each row."""
import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any, Container, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from timm_fan.errors import InputError, raise_problems
from timm_fan.files import printable

from ..dataset import ImageFiles, MultiLabelDataset
from ..packed import SparseLabels
from .labels import LABEL_COLUMNS, Labelled, index_labels, value_of_unlisted

IMAGE_COLUMNS = ('image', 'file', 'file_name', 'filename', 'path', 'image_path')
# columns that are never classes
OTHER_COLUMNS = ('id', 'split', 'width', 'height')
JSON_LINES = ('.jsonl', '.ndjson')
VALUES = {'1': 1, '0': 0, '-1': -1, '': -1}

# place in the file, for messages, and cells by column
Line = Tuple[str, Dict[str, Any]]


def _csv_rows(file: Path, delimiter: str, problems: List[str]) -> Iterator[Line]:
    with open(file, newline='', encoding='utf-8-sig') as stream:
        reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
        repeated = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
        if repeated:
            raise InputError(f'{file} has several columns named {repeated[0]!r}.')
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problems.append(f'line {reader.line_num}: {error}')
                continue
            where = f'line {reader.line_num}'
            if None in row or None in row.values():
                cells = sum(v is not None for k, v in row.items() if k is not None) + len(row.get(None, ()))
                problems.append(f'{where}: {cells} cells, but the header has {len(reader.fieldnames)}')
            else:
                yield where, row


def _json_rows(file: Path, problems: List[str]) -> Iterator[Line]:
    with open(file, encoding='utf-8-sig') as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = json.loads(line) if line.strip() else None
            except json.JSONDecodeError as error:
                problems.append(f'line {number}: not JSON ({error})')
                continue
            if isinstance(row, dict):
                yield f'line {number}', row
            elif line.strip():
                problems.append(f'line {number}: not a JSON object')


def _parquet_rows(file: Path) -> Iterator[Line]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError('Parquet requires pyarrow: pip install "timm-fan[data]".') from error
    try:
        rows = [row for batch in parquet.ParquetFile(file).iter_batches() for row in batch.to_pylist()]
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f'{file} is not a Parquet file, or is damaged ({error}).') from error
    for number, row in enumerate(rows, 1):
        yield f'row {number}', row


def _read_lines(file: Path, problems: List[str]) -> List[Line]:
    """The lines that can be read. The others are added to `problems`."""
    kind = file.suffix.lower()
    try:
        if kind in ('.csv', '.tsv'):
            return list(_csv_rows(file, '\t' if kind == '.tsv' else ',', problems))
        if kind in JSON_LINES:
            return list(_json_rows(file, problems))
        if kind == '.parquet':
            return list(_parquet_rows(file))
    except UnicodeDecodeError as error:
        raise InputError(f'{file} is not UTF-8 text ({error}).') from error
    raise InputError(
        f'{file}: a table is a .csv, .tsv, .jsonl or .parquet file, not {kind or "one without extension"}.')


def _column(
        columns: Sequence[str], wanted: Optional[str], known: Sequence[str], file: Path, what: str) -> Optional[str]:
    """The wanted column, otherwise the first known one that the table has."""
    if wanted is not None:
        if wanted not in columns:
            raise InputError(f"{file} has no column '{wanted}' ({what}=). It has: {', '.join(columns)}.")
        return wanted
    return next((c for c in known if c in columns), None)


class _Columns(NamedTuple):
    """Attributes:
        image: Column of the path.
        labels: Columns of present, absent and unknown labels. None if each class has its own column.
        class_names: Those of the table if each class has its own column, otherwise those that were requested.
    """
    image: str
    labels: Optional[Tuple[str, ...]]
    class_names: Optional[Sequence[str]]


def _find_columns(
        file: Path, columns: Sequence[str], image: Optional[str], labels: Optional[str],
        class_names: Optional[Sequence[str]]) -> _Columns:
    image = _column(columns, image, IMAGE_COLUMNS, file, 'image')
    if image is None:
        raise InputError(
            f'{file} has no column for the image: one of {", ".join(IMAGE_COLUMNS)}, or the one that image= names. It'
            f' has: {", ".join(columns)}.')
    labels = _column(columns, labels, LABEL_COLUMNS, file, 'labels')
    if labels is not None:
        return _Columns(image, (labels, 'absent', 'unknown'), class_names)
    if class_names is None:
        class_names = [c for c in columns if c != image and c not in OTHER_COLUMNS]
    lacking = [c for c in class_names if c not in columns]
    if lacking:
        raise InputError(
            f'{file} has no column for {len(lacking)} of {len(class_names)} classes, the first: {lacking[0]}.')
    return _Columns(image, None, class_names)


def _separator(texts: Sequence[Any]) -> str:
    return next((s for s in '|;,' if any(isinstance(t, str) and s in t for t in texts)), ' ')


def _split(value: Any, separator: str, names: Container[str]) -> List[Any]:
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (dict, bool)):
        return [value]
    text = str(value).strip()
    # a separator may only occur in the other split, and this one may have names of several words
    return [text] if text in names else [part.strip() for part in text.split(separator) if part.strip()]


def _by_columns(where: str, row: Dict[str, Any], class_names: Sequence[str], problems: List[str]) -> List[List[str]]:
    """Present, absent and unknown labels of a row with a column for each class. Unlisted ones are absent."""
    groups = [[], [], []]
    for name in class_names:
        cell = row.get(name)
        value = VALUES.get('' if cell is None else str(cell).strip().removesuffix('.0'))
        if value is None:
            problems.append(f"{where}: '{cell}' in column {name} is not 1, 0, -1 or empty")
        elif value:
            groups[0 if value == 1 else 2].append(name)
    return groups


def _label_images(
        lines: Sequence[Line], columns: _Columns, sep: Optional[str], problems: List[str],
) -> Tuple[List[str], List[Labelled]]:
    """Paths and labels of the images. Lines without an image, or with a repeated one, are added to `problems`."""
    if columns.labels and not sep:
        sep = _separator([row.get(column) for _, row in lines for column in columns.labels])
    known = frozenset(columns.class_names or ())
    first_line, labelled = {}, []
    for where, row in lines:
        path = row.get(columns.image)
        if not path or not isinstance(path, str):
            problems.append(f'{where}: no image' if not path else f'{where}: {path!r:.60} is not the path of an image')
        elif path in first_line:
            problems.append(f'{where}: image {printable(path)} is already on {first_line[path]}')
        else:
            first_line[path] = where
            labelled.append(Labelled(where, *(
                [_split(row.get(column), sep, known) for column in columns.labels] if columns.labels
                else _by_columns(where, row, columns.class_names, problems))))
    return list(first_line), labelled


def read_table(
        file: Union[str, Path],
        class_names: Optional[Sequence[str]] = None,
        images: Optional[Union[str, Path]] = None,
        image: Optional[str] = None,
        labels: Optional[str] = None,
        sep: Optional[str] = None,
        unlisted: str = 'absent',
) -> MultiLabelDataset:
    """Read a table of image paths and labels.

    Labels are in one column, as a list (JSON, Parquet) or a separated text, optionally with columns `absent` and
    `unknown` of the same form; or each class has its own column with 1 present, 0 absent, -1 or empty unknown.

    Args:
        file: .csv, .tsv, .jsonl or .parquet, the first two with a header.
        class_names: Names in class order, by default those that occur, sorted, or the class columns in their order.
        images: Folder that paths are relative to, by default that of the table.
        image: Column of the path, by default the first one that is in `IMAGE_COLUMNS`.
        labels: Column of the labels, by default the first one that is in `LABEL_COLUMNS`. Without one, all other
            columns are classes, except id, split, width and height.
        sep: Separator of labels in a text, by default the first of | ; , that occurs, or a space.
        unlisted: Meaning of labels that a list does not contain, 'absent' or 'unknown' (Open Images).

    Raises:
        InputError: The file cannot be read or lacks a column. Broken or repeated rows, unknown labels and missing
            images are reported together, with their lines.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f'No table {file}.')
    default = value_of_unlisted(unlisted)
    problems = []
    lines = _read_lines(file, problems)
    if not lines:
        raise_problems(str(file), problems)
        raise InputError(f'{file} has no rows.')
    # JSON objects may omit keys
    headers = [row for _, row in lines] if file.suffix.lower() in JSON_LINES else [lines[0][1]]
    names = list(dict.fromkeys(name for row in headers for name in row))
    columns = _find_columns(file, names, image, labels, class_names)
    paths, rows = _label_images(lines, columns, sep, problems)
    files = ImageFiles(images or file.parent, paths)
    problems += [f'{rows[i].where}: no image file {printable(files.name(i))}' for i in files.missing()]
    class_names, indexed = index_labels(str(file), rows, columns.class_names, problems)
    labels = SparseLabels(indexed, len(class_names), default if columns.labels else 0.)
    return MultiLabelDataset(files, labels, class_names)
