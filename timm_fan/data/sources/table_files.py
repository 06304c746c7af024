"""Files with tables: CSV, TSV, JSON, JSON lines and Parquet."""
import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from timm_fan.errors import InputError

JSON_LINES = ('.jsonl', '.ndjson')
DELIMITERS = (',', ';', '\t', '|')
csv.field_size_limit(2 ** 31 - 1)  # a line may be long, with a column for each of many classes
BYTE_ORDER_MARKS = {b'\xef\xbb\xbf': 'utf-8-sig', b'\xff\xfe': 'utf-16', b'\xfe\xff': 'utf-16'}
TABLES = ('.csv', '.tsv', '.json', *JSON_LINES, '.parquet')

# place in the file, for messages, and cells by column
Line = Tuple[str, Dict[str, Any]]


class TableFile(NamedTuple):
    """The content of a file.

    Attributes:
        columns: Names of the columns without blanks around them, in order. Columns without a name, such as the index
            that pandas writes, are left out.
        lines: Lines that are not empty.
    """
    columns: List[str]
    lines: List[Line]


def _encoding(file: Path) -> str:
    with open(file, 'rb') as stream:
        start = stream.read(3)
    return next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), 'utf-8')


def _delimiter(header: str, image_columns: Sequence[str]) -> str:
    """The delimiter that finds a column of images in the header, otherwise the one that finds most columns."""
    headers = {d: [name.strip().lower() for name in next(csv.reader([header], delimiter=d), [])] for d in DELIMITERS}
    known = [d for d, names in headers.items() if len(names) > 1 and set(names) & set(image_columns)]
    return known[0] if known else max(headers, key=lambda d: len(headers[d]))


def _csv_lines(file: Path, image_columns: Sequence[str], problems: List[str]) -> Iterator[Line]:
    with open(file, newline='', encoding=_encoding(file)) as stream:
        start, above, header = 0, 0, stream.readline()
        while header and not header.strip():
            start, above, header = stream.tell(), above + 1, stream.readline()
        own = re.fullmatch(r'sep=(.)\s*', header, re.IGNORECASE)  # a line of Excel's
        above += bool(own)
        if not own:
            stream.seek(start)
        delimiter = own[1] if own else '\t' if file.suffix.lower() == '.tsv' else _delimiter(header, image_columns)
        reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
        named = [name.strip() for name in reader.fieldnames or ()]
        repeated = [name for name, count in Counter(filter(None, named)).items() if count > 1]
        if repeated:
            raise InputError(f'{file} has several columns named {repeated[0]!r}.')
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problems.append(f'line {reader.line_num + above}: {error}')
                continue
            where = f'line {reader.line_num + above}'
            more = row.pop(None, [])
            if any(more) or None in row.values():
                cells = sum(v is not None for v in row.values()) + len(more)
                problems.append(f'{where}: {cells} cells, but the header has {len(named)}')
            else:
                yield where, row


def _json_lines(file: Path, problems: List[str]) -> Iterator[Line]:
    with open(file, encoding=_encoding(file)) as stream:
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


def _json_objects(file: Path, problems: List[str]) -> Iterator[Line]:
    try:
        rows = json.loads(file.read_text(encoding=_encoding(file)))
    except json.JSONDecodeError as error:
        raise InputError(f'{file} is not valid JSON ({error}).') from error
    if not isinstance(rows, list):
        raise InputError(f'{file}: a table in JSON is a list of objects, one for each image.')
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            yield f'entry {number}', row
        else:
            problems.append(f'entry {number}: not a JSON object')


def _parquet_lines(file: Path) -> Iterator[Line]:
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


def is_empty(cell: Any) -> bool:
    """Whether a cell is None, NaN, or a text of blanks."""
    return cell is None or cell != cell or isinstance(cell, str) and not cell.strip()


def _has_name(column: str) -> bool:
    return bool(column) and not column.startswith(('Unnamed: ', '__index_level_'))  # as pandas and pyarrow write them


def read_file(file: Path, image_columns: Sequence[str], problems: List[str]) -> TableFile:
    """The content of a table. Lines that cannot be read are added to `problems`.

    The delimiter of a CSV file is found by its header, the encoding by a byte order mark, UTF-8 otherwise.

    Args:
        file: .csv, .tsv, .json, .jsonl or .parquet.
        image_columns: Names of columns of images, in lower case.

    Raises:
        InputError: The file is no table, or damaged.
    """
    kind = file.suffix.lower()
    try:
        if kind in ('.csv', '.tsv'):
            lines = list(_csv_lines(file, image_columns, problems))
        elif kind in JSON_LINES:
            lines = list(_json_lines(file, problems))
        elif kind == '.json':
            lines = list(_json_objects(file, problems))
        elif kind == '.parquet':
            lines = list(_parquet_lines(file))
        else:
            raise InputError(
                f'{file}: a table is a {", ".join(TABLES)} file, not {kind or "one without extension"}. Programs for'
                ' spreadsheets save as CSV.')
    except UnicodeError as error:
        raise InputError(f'{file} is not UTF-8 text ({error}). Save it as CSV UTF-8.') from error
    found = dict.fromkeys(name for _, row in lines for name in row)
    columns = {name: name.strip() for name in found if _has_name(name.strip())}
    repeated = [name for name, count in Counter(columns.values()).items() if count > 1]
    if repeated:
        raise InputError(f'{file} has several columns named {repeated[0]!r}, apart from blanks.')
    lines = [(where, {columns[name]: cell for name, cell in row.items() if name in columns}) for where, row in lines]
    return TableFile(list(dict.fromkeys(columns.values())), [
        (where, row) for where, row in lines if not all(map(is_empty, row.values()))])


def find_column(columns: Sequence[str], names: Sequence[str]) -> Optional[str]:
    """The first of the names, in lower case, that a column has in any case.

    Raises:
        InputError: Two columns have it.
    """
    by_name: Dict[str, str] = {}
    for column in columns:
        other = by_name.setdefault(column.lower(), column)
        if other != column and column.lower() in names:
            raise InputError(f"The columns '{other}' and '{column}' only differ in case. Rename one of them.")
    return next((by_name[name] for name in names if name in by_name), None)
