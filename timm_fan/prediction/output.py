"""Files of predictions that are written batch by batch, survive a kill, and continue where they stopped."""
import csv
import io
import json
import os
import re
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterable, Iterator, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from filelock import FileLock, Timeout

from timm_fan.errors import InputError
from timm_fan.files import printable, read_json, write_text

from .engine import Batches, PredictedBatch

SUFFIXES = {'.txt': 'text', '.csv': 'csv', '.jsonl': 'jsonl', '.parquet': 'parquet'}
# of Parquet, in memory at once
ROW_GROUP, LABELS_OF_GROUP = 10_000, 200_000


class Row(NamedTuple):
    """The result for one image.

    Attributes:
        file: Its name.
        labels: Predicted labels with their probabilities, the most likely first.
        probabilities: Of all classes, float32 (num_classes,), without meaning for an unreadable image.
        unreadable: The reason, if it cannot be read. Then it has no labels.
    """
    file: str
    labels: Sequence[Tuple[str, float]]
    probabilities: np.ndarray
    unreadable: str = ''


def shortest(probability: Any) -> float:
    """A float32 as the float64 with the fewest digits that is the same float32 again."""
    return float(str(np.float32(probability)))


def text_line(row: Row) -> str:
    labels = ', '.join(f'{printable(name)} {p:.2f}' for name, p in row.labels) or 'no label'
    return f'{printable(row.file)}: {f"unreadable ({printable(row.unreadable)})" if row.unreadable else labels}\n'


def json_line(row: Row) -> str:
    if row.unreadable:
        return json.dumps(dict(file=row.file, unreadable=row.unreadable)) + '\n'
    labels = [dict(label=name, probability=shortest(p)) for name, p in row.labels]
    return json.dumps(dict(file=row.file, labels=labels)) + '\n'


def _csv_line(cells: Iterable[Any]) -> str:
    """One line, because control characters are escaped: what a kill leaves of a file can be told by its line ends."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator='\n').writerow([printable(cell) for cell in cells])
    return stream.getvalue()


def csv_line(row: Row) -> str:
    names = [name for name, _ in row.labels]
    # a cell that `read_table` takes for the same labels
    labels = json.dumps(names, ensure_ascii=False) if any('|' in name for name in names) else '|'.join(names)
    return _csv_line([row.file, labels, '|'.join(str(shortest(p)) for _, p in row.labels), row.unreadable])


def class_columns_line(row: Row) -> str:
    probabilities = [''] * len(row.probabilities) if row.unreadable else map(shortest, row.probabilities)
    return _csv_line([row.file, *probabilities, row.unreadable])


class Format(NamedTuple):
    """Attributes:
        line: The line of an image.
        header: First line, by the class names.
    """
    line: Callable[[Row], str]
    header: Callable[[Sequence[str]], str] = lambda names: ''


FORMATS = {
    'text': Format(text_line),
    'csv': Format(csv_line, lambda names: _csv_line(['file', 'labels', 'probabilities', 'unreadable'])),
    'csv-classes': Format(class_columns_line, lambda names: _csv_line(['file', *names, 'unreadable'])),
    'jsonl': Format(json_line),
    'parquet': Format(json_line),  # its parts, of which the Parquet file is made at the end
}


def format_of(output: Optional[str], wanted: Optional[str]) -> str:
    """The wanted format, otherwise the one that the name of the file ends in, otherwise text.

    Raises:
        InputError: Parquet is wanted without a file, or without pyarrow.
    """
    kind = wanted or SUFFIXES.get(Path(output or '').suffix.lower(), 'text')
    if kind == 'parquet':
        if not output:
            raise InputError('`format=parquet` requires a file: `output`.')
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise InputError('Parquet requires pyarrow: pip install "timm-fan[data]".') from error
    return kind


class PredictionFile:
    """A file with one line for each image, in the order of the images.

    One process writes lines to the file itself, several processes write a part each, `FILE.part0` and so on. The
    main process joins the parts at the end. Batches are written as a whole. What a kill leaves of one is cut off when
    the run is resumed, and the batch is computed again. Until it is complete, `FILE.run.json` lies next to the file
    with what must not change.

    Args:
        file: The file.
        kind: One of FORMATS.
        names: Class names.
        num_photos: Number of all images.
        batch_size: Images in a batch.
        process, processes: Number of this process, and number of processes.
    """

    def __init__(
            self, file: str, kind: str, names: Sequence[str], num_photos: int, batch_size: int, process: int = 0,
            processes: int = 1):
        self.file, self.kind, self.format = Path(file), kind, FORMATS[kind]
        self.record = self.file.with_name(f'{self.file.name}.run.json')
        self._lock = FileLock(self.file.with_name(f'.{self.file.name}.lock'), timeout=0)
        self.num_photos, self.batch_size, self.process, self.processes = num_photos, batch_size, process, processes
        self.num_classes = len(names)
        header = self.format.header(names)
        self.header = ('\ufeff' + header if header else '').encode()  # without the mark, Excel takes UTF-8 for Latin-1
        self._in_parts = processes > 1 or kind == 'parquet'
        self._part_header = b'' if self._in_parts else self.header
        self._stream: Optional[BinaryIO] = None

    def _part(self, process: int) -> Path:
        return self.file.with_name(f'{self.file.name}.part{process}') if self._in_parts else self.file

    def prepare(self, settings: Dict[str, Any], resume: bool) -> None:
        """Check what is there, and record the settings. For the main process, before the others continue.

        Raises:
            InputError: The file exists, was started with other settings, or is written by another run.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise InputError(
                f'`output={self.file}` is written by another run: wait for it, or choose another one.') from error
        try:
            self._start(settings, resume)
        except InputError:
            self._unlock()
            raise
        if self.complete:
            self._unlock()

    def _unlock(self) -> None:
        self._lock.release()
        with suppress(OSError):  # another run has it already
            os.unlink(self._lock.lock_file)

    def _start(self, settings: Dict[str, Any], resume: bool) -> None:
        if not resume and (self.record.exists() or self.file.exists()):
            state = 'is unfinished: continue it with `resume`' if self.record.exists() else 'exists: choose another one'
            raise InputError(f'`output={self.file}` {state}, or delete it{self._and_record()}.')
        if self.record.exists():
            self._check(read_json(self.record), settings)
        elif not self.file.exists():
            self._remove_parts()
            write_text(self.record, json.dumps(settings, indent=1))

    def _and_record(self) -> str:
        return f' and {self.record}' if self.record.exists() else ''

    def _check(self, recorded: Dict[str, Any], settings: Dict[str, Any]) -> None:
        for name in settings:
            if recorded.get(name) != settings[name]:
                hidden = name in ('weights', 'images')  # hashes
                what = f'other {name}' if hidden else f'{name} {recorded.get(name)}, this is {settings[name]}'
                raise InputError(
                    f'`output={self.file}` was started with {what}. Repeat the first command with `resume`, or'
                    f' delete the file{self._and_record()}.')

    @property
    def begun(self) -> bool:
        """Whether an earlier run has written results."""
        parts = map(self._part, range(self.processes))
        return any(part.exists() and part.stat().st_size > len(self._part_header) for part in parts)

    @property
    def complete(self) -> bool:
        """Whether an earlier run has finished the file. For all processes, after `prepare`."""
        return self.file.exists() and not self.record.exists()

    def open(self) -> Batches:
        """Open the part of this process at the end of its last whole batch; returns the batches that remain."""
        part, header = self._part(self.process), self._part_header
        batches = Batches(self.num_photos, self.batch_size, self.process, self.processes)
        part.touch()
        self._stream = open(part, 'r+b')
        done, end = _whole_batches(self._stream, header, batches)
        self._stream.truncate(end)
        self._stream.seek(end)
        if end < len(header):
            self._stream.seek(0)
            self._write(header)
        return Batches(self.num_photos, self.batch_size, self.process, self.processes, done)

    def write(self, rows: Iterable[Row]) -> None:
        """Write a batch."""
        self._write(''.join(map(self.format.line, rows)).encode(errors='backslashreplace'))

    def _write(self, content: bytes) -> None:
        self._stream.write(content)
        self._stream.flush()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def finish(self) -> None:
        """Join the parts. For the main process, when all processes have closed theirs."""
        if self._in_parts:
            new = self.file.with_name(f'.{self.file.name}.new')
            if self.kind == 'parquet':
                _write_parquet(new, self._lines(), max(1, min(ROW_GROUP, LABELS_OF_GROUP // self.num_classes)))
            else:
                with open(new, 'wb') as stream:
                    stream.writelines(chain([self.header], self._lines()))
            os.replace(new, self.file)
        self.record.unlink()
        self._remove_parts()
        self._unlock()

    def _lines(self) -> Iterator[bytes]:
        """The lines of all parts in the order of the images."""
        parts = [open(self._part(process), 'rb') for process in range(self.processes)]
        try:
            for number, batch in enumerate(Batches(self.num_photos, self.batch_size)):
                lines = list(islice(parts[number % self.processes], len(batch)))
                assert len(lines) == len(batch) and lines[-1].endswith(b'\n'), f'{self.file}: a part is not complete'
                yield from lines
        finally:
            for part in parts:
                part.close()

    def _remove_parts(self) -> None:
        for path in self.file.parent.iterdir():
            if re.fullmatch(re.escape(self.file.name) + r'\.part\d+', path.name):
                path.unlink()


def _whole_batches(stream: BinaryIO, header: bytes, batches: Batches) -> Tuple[int, int]:
    """Number of batches at the start of a file that are there as a whole, and the position of their end."""
    if stream.read(len(header)) != header:
        return 0, 0
    position = end = len(header)
    done = lines = 0
    for line in stream:
        if done == len(batches) or not line.endswith(b'\n'):
            break
        position += len(line)
        lines += 1
        if lines == len(batches[done]):
            done, lines, end = done + 1, 0, position
    return done, end


def _write_parquet(file: Path, lines: Iterator[bytes], row_group: int) -> None:
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([
        ('file', pyarrow.string()), ('labels', pyarrow.list_(pyarrow.string())),
        ('probabilities', pyarrow.list_(pyarrow.float32())), ('unreadable', pyarrow.string())])
    with parquet.ParquetWriter(file, schema) as writer:
        while rows := list(map(_parquet_row, islice(lines, row_group))):
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
            del rows  # before the next ones are read


def _parquet_row(line: bytes) -> Dict[str, Any]:
    row = json.loads(line)
    if 'unreadable' in row:
        return dict(file=_valid(row['file']), unreadable=_valid(row['unreadable']))
    return dict(
        file=_valid(row['file']), labels=[_valid(label['label']) for label in row['labels']],
        probabilities=[label['probability'] for label in row['labels']])


def _valid(name: str) -> str:
    """A name that may not be UTF-8, with escapes."""
    return name.encode(errors='backslashreplace').decode()


class EmbeddingsFile:
    """A .npy file with the embeddings of all images in their order, float32 (N, width). Unreadable ones are NaN.

    It has its whole size from the start. Each batch is written to its place, by any process.

    Args:
        file: The file.
        num_photos: Number of all images.
        width: Length of an embedding.
    """

    def __init__(self, file: str, num_photos: int, width: int):
        self.file, self.width = Path(file), width
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, dict(descr='<f4', fortran_order=False, shape=(num_photos, width)))
        self._header = header.getvalue()
        self._size = len(self._header) + 4 * width * num_photos
        self._stream: Optional[BinaryIO] = None

    def check(self, predictions: PredictionFile) -> None:
        """Check that it exists where the run of the predictions is resumed, and only there.

        Raises:
            InputError: It exists without such a run, or is missing.
        """
        if self.file.exists() and not predictions.record.exists():
            raise InputError(f'`save_embeddings={self.file}` exists: choose another file, or delete it.')
        if predictions.begun and not self.file.exists():
            raise InputError(
                f'`save_embeddings={self.file}` is missing, but `output={predictions.file}` has results already. Delete'
                f' it and {predictions.record}, and start again.')

    def prepare(self) -> None:
        """Create the file, unless it is there already. For the main process, before the others continue."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.touch()
        with open(self.file, 'r+b') as stream:
            stream.write(self._header)
            stream.truncate(self._size)

    def open(self) -> None:
        self._stream = open(self.file, 'r+b')

    def write(self, indices: range, embeddings: Optional[np.ndarray], unreadable: Iterable[int]) -> None:
        """Write the embeddings of consecutive images, None if all are unreadable."""
        rows = np.full((len(indices), self.width), np.nan, '<f4') if embeddings is None else embeddings.astype('<f4')
        rows[[index - indices.start for index in unreadable]] = np.nan
        self._stream.seek(len(self._header) + 4 * self.width * indices.start)
        self._stream.write(rows.tobytes())
        self._stream.flush()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


def rows_of(
        files: Callable[[int], str],
        batch: PredictedBatch,
        labels: Callable[[torch.Tensor], Sequence[Tuple[str, float]]],
        num_classes: int,
) -> Iterator[Row]:
    """The results of a batch, by the names of the images and the labels for their probabilities."""
    for place, index in enumerate(batch.indices):
        if index in batch.unreadable:
            yield Row(files(index), (), np.zeros(num_classes), batch.unreadable[index])
        else:
            yield Row(files(index), labels(batch.probabilities[place]), batch.probabilities[place].numpy())
