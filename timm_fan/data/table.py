"""Tables: CSV, TSV, JSON lines or Parquet with an image path and labels on each line."""
import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Container, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from timm_fan.errors import InputError, raise_problems

from .classes import Labelled, index_labels, value_of_unlisted
from .dataset import ImageFiles, MultiLabelDataset, SparseLabels

__all__ = ['read_table']

IMAGE_COLUMNS = ('image', 'file', 'file_name', 'filename', 'path', 'image_path')
LABEL_COLUMNS = ('labels', 'label', 'tags')
# of a column that belongs to no class
OTHER_COLUMNS = ('id', 'split', 'width', 'height')
JSON_LINES = ('.jsonl', '.ndjson')
VALUES = {'1': 1, '0': 0, '-1': -1, '': -1}


def _rows(file: Path, problems: List[str]) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """(where, row) of each line that can be read; the others go to `problems`."""
    kind = file.suffix.lower()
    if kind in ('.csv', '.tsv'):
        with open(file, newline='', encoding='utf-8-sig') as stream:
            reader = csv.DictReader(stream, delimiter='\t' if kind == '.tsv' else ',', strict=True)
            twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
            if twice:
                raise InputError(f'{file} has several columns {twice[0]!r}.')
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
                    problems.append(f'{where}: {cells} cells, the header has {len(reader.fieldnames)}')
                else:
                    yield where, row
    elif kind in JSON_LINES:
        with open(file, encoding='utf-8') as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    problems.append(f'line {number}: not JSON ({error})')
                    continue
                if isinstance(row, dict):
                    yield f'line {number}', row
                else:
                    problems.append(f'line {number}: not a JSON object')
    elif kind == '.parquet':
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise InputError('Parquet needs pyarrow: pip install "timm-fan[data]".') from error
        try:
            rows = [row for batch in parquet.ParquetFile(file).iter_batches() for row in batch.to_pylist()]
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f'{file} is not a Parquet file, or damaged ({error}).') from error
        for number, row in enumerate(rows, 1):
            yield f'row {number}', row
    else:
        raise InputError(f'{file}: a table is .csv, .tsv, .jsonl or .parquet, not {kind or "without extension"}.')


def _column(
        columns: Sequence[str], wanted: Optional[str], known: Sequence[str], file: Path, what: str) -> Optional[str]:
    if wanted is not None:
        if wanted not in columns:
            raise InputError(f"{file} has no column '{wanted}' ({what}=). It has: {', '.join(columns)}.")
        return wanted
    return next((c for c in known if c in columns), None)


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
    # another split may show the separator, and this one just names of several words
    return [text] if text in names else [part.strip() for part in text.split(separator) if part.strip()]


def read_table(
        file: Union[str, Path],
        class_names: Optional[Sequence[str]] = None,
        images: Optional[Union[str, Path]] = None,
        image: Optional[str] = None,
        labels: Optional[str] = None,
        sep: Optional[str] = None,
        unlisted: str = 'absent',
        transform: Optional[Callable] = None,
) -> MultiLabelDataset:
    """Read a table of image paths and labels.

    Labels stand in one column as a list (JSON, Parquet) or a separated text, optionally with columns `absent` and
    `unknown` of the same form beside it; or each class has its own column of 1 present, 0 absent, -1 or empty unknown.

    Args:
        file: .csv, .tsv, .jsonl or .parquet; the first two with a header.
        class_names: Names in class order; by default those that occur, sorted, or the class columns in their order.
        images: Folder that paths are relative to, the table's by default.
        image: Column of the path, by default the first there is of `IMAGE_COLUMNS`.
        labels: Column of the labels, by default the first there is of `LABEL_COLUMNS`; without one, every other column
            but id, split, width and height is a class.
        sep: Between labels in a text; by default the first of | ; , that occurs, or blanks.
        unlisted: What a label is that a list does not name, 'absent' or 'unknown' (Open Images).
        transform: Image transform.

    Raises:
        InputError: The file cannot be read or lacks a column; or, all at once and with their line, rows that are broken
            or repeated, unknown labels and missing images.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f'No table {file}.')
    default = value_of_unlisted(unlisted)
    problems: List[str] = []
    try:
        lines = list(_rows(file, problems))
    except UnicodeDecodeError as error:
        raise InputError(f'{file} is not UTF-8 text ({error}).') from error
    if not lines:
        raise_problems(str(file), problems)
        raise InputError(f'{file} has no line.')
    # objects may leave keys out
    named = [row for _, row in lines] if file.suffix.lower() in JSON_LINES else [lines[0][1]]
    columns = list(dict.fromkeys(column for row in named for column in row))
    image_column = _column(columns, image, IMAGE_COLUMNS, file, 'image')
    if image_column is None:
        raise InputError(
            f'{file} has no column for the image: one of {", ".join(IMAGE_COLUMNS)}, or name it by image=. It has:'
            f' {", ".join(columns)}.')
    label_column = _column(columns, labels, LABEL_COLUMNS, file, 'labels')

    first_line: Dict[str, str] = {}
    paths, rows = [], []
    if label_column is not None:
        label_columns = (label_column, 'absent', 'unknown')
        sep = sep or _separator([row.get(column) for _, row in lines for column in label_columns])
        known = frozenset(class_names or ())
    else:
        if class_names is None:
            class_names = [c for c in columns if c != image_column and c not in OTHER_COLUMNS]
        absent = [c for c in class_names if c not in columns]
        if absent:
            raise InputError(f'{file} has no column for {len(absent)} of {len(class_names)} classes: {absent[0]}, ...')
    for where, row in lines:
        path = row.get(image_column)
        if not path or not isinstance(path, str):
            problems.append(f'{where}: no image' if not path else f'{where}: {path!r:.60} is no path of an image')
            continue
        if path in first_line:
            problems.append(f'{where}: image {path} stands on {first_line[path]} already')
            continue
        if label_column is not None:
            groups = [_split(row.get(column), sep, known) for column in label_columns]
        else:
            groups = [[], [], []]
            for name in class_names:
                value = row.get(name)
                value = VALUES.get('' if value is None else str(value).strip().removesuffix('.0'))
                if value is None:
                    problems.append(f"{where}: '{row.get(name)}' in column {name} is none of 1, 0, -1, empty")
                elif value:  # what is not listed is absent
                    groups[0 if value == 1 else 2].append(name)
        first_line[path] = where
        paths.append(path)
        rows.append(Labelled(where, *groups))

    files = ImageFiles(images or file.parent, paths)
    problems += [f'{rows[i].where}: no image file {files.name(i)}' for i in files.missing()]
    names, indexed = index_labels(str(file), rows, class_names, problems)
    if label_column is None:
        default = 0.
    return MultiLabelDataset(files, SparseLabels(indexed, len(names), default), names, transform=transform)
