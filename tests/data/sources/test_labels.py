"""Lists of class names, and labels that are neither names nor class indices."""
import csv
import json
import tarfile

import datasets
import pytest
from helpers import add_member, encoded
from PIL import Image

from timm_fan import InputError
from timm_fan.data import create_dataset
from timm_fan.data.sources.cells import find_separator
from timm_fan.data.sources.labels import read_class_names


def test_class_lists_from_windows(tmp_path):
    (tmp_path / 'classes.txt').write_bytes('\ufeffkatze\r\nhund\r\n'.encode())
    assert read_class_names(tmp_path / 'classes.txt') == ['katze', 'hund']
    (tmp_path / 'classes.txt').write_bytes('vögel\n'.encode('latin-1'))
    with pytest.raises(InputError, match='not UTF-8'):
        read_class_names(tmp_path / 'classes.txt')


def write_source(folder, kind, labels):
    """A source of one photograph for each cell of labels, and its address."""
    photos = {f'{i}.jpg': encoded(Image.new('RGB', (8, 8), (20 * i, 0, 0)), 'JPEG') for i in range(len(labels))}
    for name, content in photos.items():
        (folder / name).write_bytes(content)
    if kind == 'jsonl':
        lines = [json.dumps(dict(image=name, labels=cell)) for name, cell in zip(photos, labels)]
        (folder / 'train.jsonl').write_text('\n'.join(lines))
        return 'table:{split}.jsonl'
    if kind == 'csv':
        with open(folder / 'train.csv', 'w', newline='') as file:
            csv.writer(file).writerows([('image', 'labels'), *zip(photos, labels)])
        return 'table'
    if kind == 'shard':
        with tarfile.open(folder / 'train-0.tar', 'w') as archive:
            for i, (name, cell) in enumerate(zip(photos, labels)):
                add_member(archive, name, photos[name])
                add_member(archive, f'{i}.json', json.dumps(dict(labels=cell)).encode())
        return 'shards'
    images = [dict(bytes=content, path=None) for content in photos.values()]
    rows = datasets.Dataset.from_dict(dict(image=images, labels=labels))
    datasets.DatasetDict(train=rows).save_to_disk(folder / 'set')
    return 'hub:set'


NAMES = ['a', 'b', 'c']
MEANINGS = [
    # cells of three photographs, class names, targets
    ([['b', 'a'], [], ['c']], NAMES, [[1, 1, 0], [0, 0, 0], [0, 0, 1]]),
    (['b|a', '', 'c'], NAMES, [[1, 1, 0], [0, 0, 0], [0, 0, 1]]),
    (['b; a', '', ' c '], NAMES, [[1, 1, 0], [0, 0, 0], [0, 0, 1]]),
    (['["b", "a"]', '[]', '["c"]'], NAMES, [[1, 1, 0], [0, 0, 0], [0, 0, 1]]),
    (["['b', 'a']", '[]', "['c']"], NAMES, [[1, 1, 0], [0, 0, 0], [0, 0, 1]]),
    (["('b', 'a')", '()', "('c',)"], NAMES, [[1, 1, 0], [0, 0, 0], [0, 0, 1]]),
    (['b\na', '', 'c'], NAMES, [[1, 1, 0], [0, 0, 0], [0, 0, 1]]),
    (['{"choices": ["b", "a"]}', '', 'c'], NAMES, [[1, 1, 0], [0, 0, 0], [0, 0, 1]]),
    (['traffic light', 'car', 'traffic light'], ['car', 'traffic light'], [[0, 1], [1, 0], [0, 1]]),
    ([[1, 0, 0], [0, 1, 1], [0, 0, 0]], ['0', '1', '2'], [[1, 0, 0], [0, 1, 1], [0, 0, 0]]),
    ([[1., 0., 0.], [0., 1., -1.], [0., 0., 0.]], ['0', '1', '2'], [[1, 0, 0], [0, 1, -1], [0, 0, 0]]),
    ([[True, False], [False, True], [False, False]], ['0', '1'], [[1, 0], [0, 1], [0, 0]]),
    (['[1, 0]', '[0, 1]', '[1, 1]'], ['0', '1'], [[1, 0], [0, 1], [1, 1]]),
    ([[2, 0], [1], []], ['0', '1', '2'], [[1, 0, 1], [0, 1, 0], [0, 0, 0]]),
    ([2, 0, 1], ['0', '1', '2'], [[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
]
REFUSED = [
    ([['a'], ['b', None], ['c']], 'neither a name nor a class index'),
    ([[['a']], [['b']], [['c']]], 'neither a name nor a class index'),
    ([[0.5], [1.], [0.]], 'neither a name nor a class index'),
    ([[1, 0, 0], [0, 1], [1, 1]], 'may be class indices or a row of 0 and 1'),
    (['a|b', 'a;b', 'c'], 'separator of labels is not clear'),
    (['smile ;d', 'smile', 'solo'], "';' separates labels"),
    (['complex rust', 'rust', 'scab'], 'whether .complex rust. is one label'),
    (['1girl smile', '1girl solo', 'smile solo'], 'is one label'),
    (['1 0 0', '0 1 0', '0 0 1'], 'is one label'),
    (["['a' 'b']", "['c']", '[]'], 'has no commas'),
    (['[a, b]', '[c]', '[]'], 'is not a list in JSON or Python'),
    ([[0, 1], [1, 0], []], 'no entry, but the other rows have one'),
    ([[0, 1], [1, 0], [1]], 'may be class indices or a row of 0 and 1'),
    (['array([0, 1])', 'array([1, 0])', '[1, 1]'], 'is an object that Python has printed'),
    (['a', 'b\u2028c', 'd'], 'has a line break'),
]


def kinds_of(labels):
    """Sources that can hold these cells as they are."""
    mixed = len({type(v) for cell in labels for v in (cell if isinstance(cell, list) else [cell])}) > 1
    return ['jsonl', 'shard', *(() if mixed else ['hub']), *(['csv'] if isinstance(labels[0], str) else ())]


def each_kind(cases):
    return [(kind, *case) for case in cases for kind in kinds_of(case[0])]


@pytest.mark.parametrize('kind, labels, names, targets', each_kind(MEANINGS))
def test_a_cell_means_the_same_in_every_source(tmp_path, kind, labels, names, targets):
    dataset = create_dataset(write_source(tmp_path, kind, labels), tmp_path, 'train')
    assert (dataset.class_names, dataset.targets().tolist()) == (names, targets)


@pytest.mark.parametrize('kind, labels, words', each_kind(REFUSED))
def test_a_cell_that_is_not_clear_is_refused_in_every_source(tmp_path, kind, labels, words):
    with pytest.raises(InputError, match=words):
        create_dataset(write_source(tmp_path, kind, labels), tmp_path, 'train')


def test_separators_can_be_given(tmp_path):
    data = write_source(tmp_path, 'csv', ['1girl smile solo', '1boy ;d solo', 'smile outdoors'])
    dataset = create_dataset(f'{data}?sep=space', tmp_path, 'train')
    assert dataset.class_names == ['1boy', '1girl', ';d', 'outdoors', 'smile', 'solo']
    data = write_source(tmp_path, 'csv', ['brown bear', 'bear', 'polar bear'])
    assert create_dataset(f'{data}?sep=|', tmp_path, 'train').class_names == ['bear', 'brown bear', 'polar bear']
    data = write_source(tmp_path, 'csv', ['3.0', '', '12.0'])
    assert create_dataset(data, tmp_path, 'train').class_names == ['12', '3']


def test_numbers_in_a_text_are_indices_of_known_classes(tmp_path):
    data = write_source(tmp_path, 'csv', ['0,2', '1', ''])
    assert create_dataset(f'{data}?classes=a,b,c', tmp_path, 'train').targets().tolist() == [
        [1, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert create_dataset(data, tmp_path, 'train').class_names == ['0', '1', '2']
    data = write_source(tmp_path, 'csv', ['0', '1', '1'])
    assert create_dataset(f'{data}?classes=a,b', tmp_path, 'train').targets().tolist() == [[1, 0], [0, 1], [0, 1]]


def test_unknown_labels_of_a_hub_data_set(tmp_path):
    rows = datasets.Dataset.from_dict(dict(
        image=[dict(bytes=encoded(Image.new('RGB', (8, 8), (i, 0, 0)), 'JPEG'), path=None) for i in range(2)],
        labels=[['dog'], ['cat']], unknown=[['cat'], []]))
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / 'set')
    assert create_dataset('hub:set', tmp_path, 'train').targets().tolist() == [[-1, 1], [1, 0]]


def test_texts_of_many_words_are_checked_in_linear_time(tmp_path):
    """Each is looked up among all others."""
    texts = [f'name {i} of many' for i in range(20000)]
    with pytest.raises(InputError, match='is one label'):
        find_separator('a table', texts)


def test_known_names_are_not_separated(tmp_path):
    data = write_source(tmp_path, 'csv', ['Detroit, MI', 'cat|Detroit, MI', 'cat'])
    dataset = create_dataset(data, tmp_path, 'train', class_names=['cat', 'Detroit, MI'])
    assert dataset.targets().tolist() == [[0, 1], [1, 1], [1, 0]]


@pytest.mark.parametrize('text, words', [
    ('cat\n\ndog\n', 'line 2 is empty'), ('cat\ncat \n', "lists more than once: 'cat'"), ('\n \n', 'names no class'),
    ('cat\u2028x\ndog', 'has a line break'), ('cat\x85x\ndog', 'has a line break')])
def test_class_lists_that_would_shift_are_refused(tmp_path, text, words):
    (tmp_path / 'classes.txt').write_text(text)
    with pytest.raises(InputError, match=words):
        read_class_names(tmp_path / 'classes.txt')


def test_unknown_names_that_are_close_to_a_class_are_pointed_out(tmp_path):
    data = write_source(tmp_path, 'csv', ['Cat'])
    with pytest.raises(InputError, match="'Cat' and the class 'cat' differ only in case"):
        create_dataset(data, tmp_path, 'train', class_names=['cat', 'dog'])
    data = write_source(tmp_path, 'csv', ['elefant'])
    with pytest.raises(InputError, match="Is 'elefant' the class 'elephant'?"):
        create_dataset(data, tmp_path, 'train', class_names=['cat', 'elephant'])


@pytest.mark.parametrize('kind', ['jsonl', 'shard', 'hub'])
def test_many_problems_of_one_kind_are_a_few_lines(tmp_path, kind):
    data = write_source(tmp_path, kind, [['horse']] * 200)
    with pytest.raises(InputError) as error:
        create_dataset(data, tmp_path, 'train', class_names=['cat', 'dog'])
    assert len(error.value.problems) == 200 and '200 problems' in str(error.value)
    assert '... and 190 more of this kind' in str(error.value) and len(str(error.value).splitlines()) == 12
