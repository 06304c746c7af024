"""Tables with an image path and labels in each row."""
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from timm_fan.errors import InputError, raise_problems

from ..dataset import ImageFiles, Images, MultiLabelDataset
from ..packed import SparseLabels
from ..paths import find_files
from .cells import Row, read_labels
from .labels import LABEL_COLUMNS, Labelled, clean_names, index_labels, value_of_unlisted
from .request import Request, match_split
from .table_files import Line, TableFile, find_column, is_empty, read_file

# in lower case
IMAGE_COLUMNS = (
    'image', 'file', 'file_name', 'filename', 'path', 'image_path', 'filepath', 'image_file', 'image_name', 'img',
    'image index')
# columns that are never classes
OTHER_COLUMNS = ('id', 'index', 'split', 'fold', 'is_valid', 'group', 'width', 'height')
VALUES = {'1': 1, '0': 0, '-1': -1, 'true': 1, 'false': 0, '': -1}


def _value(cell: Any) -> Optional[int]:
    """1 present, 0 absent, -1 unknown, None for a cell that is none of them."""
    if is_empty(cell):
        return -1
    text = str(cell).strip().lower()
    integer, point, fraction = text.partition('.')
    return VALUES.get(integer if point and not fraction.strip('0') else text)


class _Columns(NamedTuple):
    """Attributes:
        image: Column of the path.
        labels: Columns of present, absent and unknown labels. None if each class has its own column.
        class_names: Those of the table if each class has its own column, otherwise those that were requested.
    """
    image: str
    labels: Optional[Tuple[str, ...]]
    class_names: Optional[Sequence[str]]


def _wanted_column(table: TableFile, wanted: str, file: Path, option: str) -> str:
    if wanted in table.columns:
        return wanted
    found = find_column(table.columns, [wanted.lower()])
    if found is None:
        raise InputError(f"{file} has no column '{wanted}' ({option}=). It has: {', '.join(table.columns)}.")
    return found


def _image_column(table: TableFile, wanted: Optional[str], file: Path) -> str:
    image = _wanted_column(table, wanted, file, 'image') if wanted else find_column(table.columns, IMAGE_COLUMNS)
    if image is None:
        raise InputError(
            f'{file} has no column for the image: one of {", ".join(IMAGE_COLUMNS)}, or the one that image= names. It'
            f' has: {", ".join(table.columns)}.')
    return image


def _is_class(table: TableFile, column: str) -> bool:
    """Whether the cells of a column are mostly 1, 0, -1 or empty."""
    cells = [row.get(column) for _, row in table.lines]
    cells = [cell for cell in cells if not is_empty(cell)]
    return bool(cells) and sum(_value(cell) is not None for cell in cells) * 2 > len(cells)


def _label_column(table: TableFile, class_names: Optional[Sequence[str]]) -> Optional[str]:
    """The column of label lists. One that has a known name but only holds 0 and 1 is a class, unless others are known.
    """
    columns = [c for c in table.columns if class_names is None or c not in class_names]
    while True:
        column = find_column(columns, LABEL_COLUMNS)
        if column is None:
            return None
        if class_names is not None or any(_value(row.get(column)) is None for _, row in table.lines):
            return column
        columns.remove(column)


def _find_columns(
        file: Path, table: TableFile, image: Optional[str], labels: Optional[str],
        class_names: Optional[Sequence[str]], others: Sequence[str]) -> _Columns:
    """The meaning of the columns. `others` are neither images nor labels."""
    image = _image_column(table, image, file)
    labels = _wanted_column(table, labels, file, 'labels') if labels else _label_column(table, class_names)
    if labels is not None:
        more = [find_column(table.columns, [name]) or name for name in ('absent', 'unknown')]
        flags = next((c for c in more if c in table.columns and _is_class(table, c)), None)
        if flags:
            raise InputError(f"{file}: column '{flags}' holds 1 and 0, not labels. Rename it, if it is something else.")
        return _Columns(image, (labels, *more), class_names)
    rest = [c for c in table.columns if c != image and c not in others and c.lower() not in OTHER_COLUMNS]
    if class_names is None:
        class_names = clean_names(str(file), _class_columns(file, table, rest))
    known = set(table.columns)
    lacking = [c for c in class_names if c not in known]
    if lacking:
        folded = {c.lower(): c for c in table.columns}
        similar = folded.get(lacking[0].lower())
        raise InputError(
            f'{file} has no column for {len(lacking)} of {len(class_names)} classes, the first: {lacking[0]}'
            + (f" (column '{similar}' differs in case)." if similar else '.'))
    return _Columns(image, None, class_names)


def _class_columns(file: Path, table: TableFile, columns: Sequence[str]) -> List[str]:
    """The columns that are classes.

    Raises:
        InputError: There is none, or a column is none.
    """
    columns = [c for c in columns if not all(is_empty(row.get(c)) for _, row in table.lines)]
    is_class = {c: _is_class(table, c) for c in columns}
    classes, foreign = [c for c in columns if is_class[c]], [c for c in columns if not is_class[c]]
    if foreign and classes:
        cells = ((where, row.get(foreign[0])) for where, row in table.lines)
        where, cell = next((where, cell) for where, cell in cells if _value(cell) is None)
        raise InputError(
            f"{file}: columns that are no classes, because they hold other values than 1, 0, -1 or nothing:"
            f" {', '.join(foreign[:10])}{', ...' if len(foreign) > 10 else ''} ({where}: {cell!r:.40}). Name the"
            f" classes, as classes=FILE with one name per line or classes={classes[0]},...")
    if not classes:
        raise InputError(
            f'{file} has no column of labels: one of {", ".join(LABEL_COLUMNS)}, the one that labels= names, or a'
            f' column of 1 and 0 for each class. It has: {", ".join(table.columns)}.')
    return classes


def _by_columns(where: str, row: Dict[str, Any], class_names: Sequence[str], problems: List[str]) -> Labelled:
    """Present, absent and unknown labels of a row with a column for each class."""
    groups = {1: [], 0: [], -1: []}
    for name in class_names:
        value = _value(row.get(name))
        if value is None:
            problems.append(f"{where}: '{row[name]}' ({type(row[name]).__name__}) in column '{name}' is not 1, 0, -1"
                            ' or empty')
        else:
            groups[value].append(name)
    return Labelled(where, groups[1], (), groups[-1])  # unlisted ones are absent


def _image_paths(lines: Sequence[Line], column: str, problems: List[str]) -> List[Line]:
    """The lines that name an image. The others are added to `problems`."""
    named = []
    for where, row in lines:
        path = row.get(column)
        if is_empty(path):
            problems.append(f'{where}: no image')
        elif isinstance(path, bool) or not isinstance(path, (str, int)) or '\x00' in str(path):
            problems.append(f"{where}: '{path!r:.60}' ({type(path).__name__}) is not the path of an image")
        else:
            named.append((where, {**row, column: str(path).strip()}))
    return named


def _causes(lines: Sequence[Line], columns: _Columns) -> List[str]:
    """Why no image of a table can be found."""
    def has_images(column: str) -> bool:
        cells = [row.get(column) for _, row in lines[:100]]
        return any(isinstance(c, str) and c.lower().endswith(('.jpg', '.jpeg', '.png', '.webp')) for c in cells)

    if columns.labels and not has_images(columns.image) and has_images(columns.labels[0]):
        return [f"Are the columns '{columns.image}' and '{columns.labels[0]}' swapped?"]
    return []


def _chosen_lines(
        file: Path, table: TableFile, request: Optional[Request], column: Optional[str]) -> Optional[List[int]]:
    """The lines of the requested split by the column of splits, None for all."""
    if request is None:
        return None
    if not request.is_shared and not column:
        _check_split(file, table, request)
        return None
    column = column or find_column(table.columns, ['split'])
    if column is None and request.whole:
        return None
    if column is None:
        raise InputError(
            f"{file} is the same for all splits, and has no column 'split'. Hold out a share of its images with"
            ' ?val=0.2, name its column with split=, or write {split} in place of train and val.')
    return match_split([row.get(column) for _, row in table.lines], request, f"{file}, column '{column}',")


def _check_split(file: Path, table: TableFile, request: Request) -> None:
    """Raise InputError if the file of a split says that a line is of another one."""
    column = find_column(table.columns, ['split'])
    other = request.other().known_names()
    found = [(where, row[column]) for where, row in table.lines
             if column and str(row.get(column)).strip().casefold() in [name.casefold() for name in other]]
    if found:
        where, cell = found[0]
        raise InputError(
            f"{file}: {len(found)} lines are of another split by their column '{column}' ({where}: {cell!r}). Take only"
            f' its own with split={column}, or rename the column.')


def _group(cell: Any) -> str:
    """The name of a group, '' for none. A whole number is the same group as integer and as float."""
    text = '' if is_empty(cell) else str(cell).strip()
    return text.removesuffix('.0')


def _open(file: Path, image: Optional[str], problems: List[str]) -> TableFile:
    """The content of a table, whose column of images is `image` if it is named."""
    if not file.is_file():
        raise InputError(f'No table {file}.')
    return read_file(file, (image.lower(),) if image else IMAGE_COLUMNS, problems)


def _find_images(
        lines: Sequence[Line], column: str, root: Union[str, Path], problems: List[str],
        hints: List[str]) -> ImageFiles:
    """The images that lines of `_image_paths` mean."""
    places, paths = [where for where, _ in lines], [row[column] for _, row in lines]
    return ImageFiles(root, find_files(root, paths, places, problems, hints))


def table_path(request: Request) -> Path:
    """The file with the requested split."""
    return request.data_dir / request.where if request.is_shared else Path(
        request.path(request.where_or('{split}.csv')))


def read_table(
        file: Union[str, Path],
        class_names: Optional[Sequence[str]] = None,
        images: Optional[Union[str, Path]] = None,
        image: Optional[str] = None,
        labels: Optional[str] = None,
        sep: Optional[str] = None,
        unlisted: str = 'absent',
        group: Optional[str] = None,
        split: Optional[str] = None,
        request: Optional[Request] = None,
) -> MultiLabelDataset:
    """Read a table of image paths and labels.

    Labels are in one column (see `cells.read_labels`), optionally with columns `absent` and `unknown` of the same form;
    or each class has its own column with 1 or True present, 0 or False absent, -1 or empty unknown. Names of columns
    have no blanks around them and are found in any case. Columns without a name and lines without a cell are left out.

    Args:
        file: .csv (separated by , ; | or tabs), .tsv, .json, .jsonl or .parquet, the first two with a header.
        class_names: Names in class order, by default those that occur, sorted, or the class columns in their order.
        images: Folder that paths are relative to, by default that of the table.
        image: Column of the path, by default the first one that is in `IMAGE_COLUMNS`.
        labels: Column of the labels, by default the first one that is in `LABEL_COLUMNS` and does not only hold 0 and
            1. Without one, all other columns are classes, except `OTHER_COLUMNS`.
        sep: Separator of labels in a text, by default the one of | ; , tab and line break that occurs.
        unlisted: Meaning of labels that a list does not contain, 'absent' or 'unknown' (Open Images).
        group: Column of groups that a division into splits does not tear apart, such as patients.
        split: Column of the split, by default 'split'.
        request: The split that is requested, by default all lines.

    Raises:
        InputError: The file cannot be read or lacks a column. Broken or repeated rows, unknown labels and missing
            images are reported together, with their lines.
    """
    file, default, problems, hints = Path(file), value_of_unlisted(unlisted), [], []
    table = _open(file, image, problems)
    if not table.lines:
        raise_problems(str(file), problems)
        raise InputError(f'{file} has no rows.')
    group = _wanted_column(table, group, file, 'group') if group else None
    split = _wanted_column(table, split, file, 'split') if split else None
    columns = _find_columns(file, table, image, labels, class_names, [c for c in (group, split) if c])
    lines = _image_paths(table.lines, columns.image, problems)
    files = _find_images(lines, columns.image, images or file.parent, problems, hints)
    if columns.labels:
        rows = [Row(where, tuple(row.get(column) for column in columns.labels)) for where, row in lines]
        labelled, class_names = read_labels(str(file), rows, columns.class_names, problems, sep)
    else:
        labelled = [_by_columns(where, row, columns.class_names, problems) for where, row in lines]
        class_names = columns.class_names
    if problems:
        hints = [*_causes(lines, columns), *hints]
    class_names, indexed = index_labels(str(file), labelled, class_names, problems, hints)
    default = default if columns.labels else 0.
    dataset = MultiLabelDataset(files, SparseLabels(indexed, len(class_names), default), class_names)
    if group:
        dataset.groups = [_group(row.get(group)) for _, row in lines]
    chosen = _chosen_lines(file, TableFile(table.columns, lines), request, split)
    return dataset if chosen is None else dataset.part(chosen)


def table_images(
        request: Request, image: Optional[str] = None, images: Optional[str] = None, split: Optional[str] = None,
) -> Images:
    """The images of a table, which needs no labels. Options as for `read_table`.

    Raises:
        InputError: The file cannot be read or has no column of images. Missing images are reported with their lines.
    """
    file, problems, hints = table_path(request), [], []
    table = _open(file, image, problems)
    column = _image_column(table, image, file)
    split = _wanted_column(table, split, file, 'split') if split else None
    if request.is_shared and (split or find_column(table.columns, ['split'])):
        chosen = _chosen_lines(file, table, request, split)
        table = table._replace(lines=[table.lines[i] for i in chosen])
    lines = _image_paths(table.lines, column, problems)
    files = _find_images(lines, column, request.images(images) or file.parent, problems, hints)
    raise_problems(str(file), problems, hints=hints)
    if not len(files):
        raise InputError(f'{file} has no rows.')
    return files
