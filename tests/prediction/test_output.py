import csv
import io
import json

import numpy as np
import pytest

import timm_fan
from timm_fan import InputError
from timm_fan.prediction import FORMATS, EmbeddingsFile, PredictionFile, Row, format_of
from timm_fan.prediction.output import shortest

NAMES = ['cat', 'big dog', 'Käse']
SETTINGS = dict(weights='a', batch_size=2)


def rows_for(indices):
    """Results that differ for each image; the fourth is unreadable, and the fifth has no label."""
    for i in indices:
        values = np.float32([(i + 1) / 10, 0.1 + i / 30, 0.7])
        if i == 3:
            yield Row('d\n.jpg', (), np.zeros(3), 'broken\nfile')
        else:
            yield Row(f'{i} é.jpg', [] if i == 4 else [(NAMES[2], 0.7), (NAMES[0], values[0])], values)


def write_all(file, kind, processes=1, resume=False, batch_size=2, count=7):
    """Write what is left of a file, all its processes one after the other."""
    files = [PredictionFile(str(file), kind, NAMES, count, batch_size, i, processes) for i in range(processes)]
    files[0].prepare(SETTINGS, resume)
    if files[0].complete:
        return 0
    written = 0
    for one in files:
        for batch in one.open():
            one.write(rows_for(batch))
            written += len(batch)
        one.close()
    files[0].finish()
    return written


@pytest.mark.parametrize('kind', FORMATS)
def test_number_of_processes_does_not_change_the_file(tmp_path, kind):
    for processes in (1, 2, 3, 5):
        assert write_all(tmp_path / f'{processes}.out', kind, processes) == 7
    contents = {(tmp_path / f'{processes}.out').read_bytes() for processes in (1, 2, 3, 5)}
    assert len(contents) == 1 and len(list(tmp_path.iterdir())) == 4  # nothing else is left


@pytest.mark.parametrize('kind', [kind for kind in FORMATS if kind != 'parquet'])
def test_a_file_that_was_cut_anywhere_is_continued(tmp_path, kind):
    write_all(tmp_path / 'whole', kind)
    whole = (tmp_path / 'whole').read_bytes()
    for cut in range(len(whole) + 1):
        file = tmp_path / 'cut'
        file.write_bytes(whole[:cut])
        (tmp_path / 'cut.run.json').write_text(json.dumps(SETTINGS))
        written = write_all(file, kind, resume=True)
        assert file.read_bytes() == whole
        assert written == 0 if cut == len(whole) else 1 <= written <= 7
        file.unlink()


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_parts_that_were_cut_are_continued(tmp_path, kind):
    write_all(tmp_path / 'whole', kind, 2)
    for process, cut in ((0, 0), (0, 40), (1, 20), (1, 45)):
        file = tmp_path / 'cut'
        parts = [PredictionFile(str(file), kind, NAMES, 7, 2, i, 2) for i in range(2)]
        parts[0].prepare(SETTINGS, True)
        for part in parts:
            for batch in part.open():
                part.write(rows_for(batch))
            part.close()
        with open(tmp_path / f'cut.part{process}', 'r+b') as stream:
            stream.truncate(cut)
        del parts, part  # as a kill, it leaves the file to others
        assert 0 < write_all(file, kind, 2, resume=True) < 7
        assert file.read_bytes() == (tmp_path / 'whole').read_bytes()
        file.unlink()


def test_a_kill_between_the_last_steps_loses_nothing(tmp_path):
    """After the file is joined, before the record or the parts are removed."""
    write_all(tmp_path / 'x', 'jsonl', 2)
    whole = (tmp_path / 'x').read_bytes()
    (tmp_path / 'x.part1').write_bytes(b'old')
    assert write_all(tmp_path / 'x', 'jsonl', 2, resume=True) == 0
    (tmp_path / 'x').unlink()
    assert write_all(tmp_path / 'x', 'jsonl', 2, resume=True) == 7  # parts of an earlier run are not continued
    assert (tmp_path / 'x').read_bytes() == whole


def test_a_file_is_neither_replaced_nor_mixed(tmp_path):
    file = PredictionFile(str(tmp_path / 'x.csv'), 'csv', NAMES, 7, 2)
    file.prepare(SETTINGS, False)
    with pytest.raises(InputError, match='is unfinished: continue it with `resume`, or delete it and .*run.json'):
        file.prepare(SETTINGS, False)
    with pytest.raises(InputError, match='was started with batch_size 2, this is 4'):
        file.prepare({**SETTINGS, 'batch_size': 4}, True)
    write_all(tmp_path / 'y.csv', 'csv')
    with pytest.raises(InputError, match='y.csv` exists: choose another one, or delete it.'):
        PredictionFile(str(tmp_path / 'y.csv'), 'csv', NAMES, 7, 2).prepare(SETTINGS, False)


def test_only_one_run_writes_to_a_file(tmp_path):
    file = tmp_path / 'x.csv'
    first, second = (PredictionFile(str(file), 'csv', NAMES, 7, 2) for _ in range(2))
    first.prepare(SETTINGS, False)
    for resume in (False, True):
        with pytest.raises(InputError, match='x.csv` is written by another run'):
            second.prepare(SETTINGS, resume)
    del first
    second.prepare(SETTINGS, True)
    for batch in second.open():
        second.write(rows_for(batch))
    second.close()
    second.finish()
    assert [path.name for path in tmp_path.iterdir()] == ['x.csv']


def test_csv_has_a_line_for_each_image(tmp_path):
    write_all(tmp_path / 'a.csv', 'csv')
    write_all(tmp_path / 'b.csv', 'csv-classes')
    text = (tmp_path / 'a.csv').read_text(encoding='utf-8-sig')
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(text.splitlines()) == 8 and rows[0] == dict(
        file='0 é.jpg', labels='Käse|cat', probabilities='0.7|0.1', unreadable='')
    assert rows[3] == dict(file=r'd\n.jpg', labels='', probabilities='', unreadable=r'broken\nfile')
    rows = list(csv.DictReader(io.StringIO((tmp_path / 'b.csv').read_text(encoding='utf-8-sig'))))
    assert rows[1] == {'file': '1 é.jpg', 'cat': '0.2', 'big dog': '0.13333334', 'Käse': '0.7', 'unreadable': ''}
    assert rows[3]['cat'] == '' and rows[3]['unreadable']


def test_predicted_labels_can_be_read_as_a_table(tmp_path):
    """Also names with the separator."""
    line = FORMATS['csv'].line
    rows = [Row('0.jpg', [('a|b', 0.9), ('c', 0.6)], np.empty(0)), Row('1.jpg', [('c', 0.6)], np.empty(0))]
    for row in rows:
        (tmp_path / row.file).write_bytes(b'')
    (tmp_path / 'x.csv').write_text(FORMATS['csv'].header([]) + line(rows[0]) + line(rows[1]))
    dataset = timm_fan.read_table(tmp_path / 'x.csv', ['a|b', 'c'])
    assert dataset.targets().tolist() == [[1, 1], [0, 1]]


def test_parquet_has_the_types_of_its_columns(tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet')
    write_all(tmp_path / 'x.parquet', 'parquet')
    rows = parquet.read_table(tmp_path / 'x.parquet').to_pylist()
    assert rows[0]['file'] == '0 é.jpg' and rows[0]['labels'] == ['Käse', 'cat'] and rows[4]['labels'] == []
    assert np.float32(rows[0]['probabilities'][0]) == np.float32(0.7)
    assert rows[3] == dict(file='d\n.jpg', labels=None, probabilities=None, unreadable='broken\nfile')


def test_parquet_limits_the_labels_in_memory(monkeypatch, tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet')
    monkeypatch.setattr('timm_fan.prediction.output.LABELS_OF_GROUP', 6)
    write_all(tmp_path / 'x.parquet', 'parquet')
    file = parquet.ParquetFile(tmp_path / 'x.parquet')
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 2, 2, 1]
    assert [row['file'][0] for row in file.read().to_pylist()] == [*'012d456']


def test_probabilities_are_not_rounded():
    values = np.random.default_rng(0).random(1000, dtype=np.float32) ** 8
    for value in values:
        assert np.float32(shortest(value)) == value and len(repr(shortest(value))) <= 15


def test_formats_by_the_name_of_the_file():
    assert [format_of(name, None) for name in ('a.csv', 'a.JSONL', 'a.parquet', 'a.txt', 'a', None)] == [
        'csv', 'jsonl', 'parquet', 'text', 'text', 'text']
    assert format_of('a.csv', 'csv-classes') == 'csv-classes'


def test_embeddings_are_at_the_place_of_their_image(tmp_path):
    values = np.random.default_rng(0).random((5, 3), dtype=np.float32)
    file = EmbeddingsFile(str(tmp_path / 'new' / 'x.npy'), 5, 3)
    file.prepare()
    file.open()
    file.write(range(3, 5), None, [3, 4])
    file.write(range(0, 3), values[:3], [1])
    file.close()
    file.prepare()  # keeps what is there
    found = np.load(tmp_path / 'new' / 'x.npy', mmap_mode='r')
    assert found.shape == (5, 3) and (found[[0, 2]] == values[[0, 2]]).all() and np.isnan(found[[1, 3, 4]]).all()
