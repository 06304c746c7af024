"""Tables: what they can express, and which line an error names."""
import datasets
import pytest
from PIL import Image

from timm_fan import InputError
from timm_fan.data import create_dataset


def write_images(folder, count=3):
    for i in range(count):
        Image.new('RGB', (8, 6), (20 * i, 0, 0)).save(folder / f'{i}.jpg')


def test_classes_are_inferred_and_labels_can_be_unknown(tmp_path):
    write_images(tmp_path)
    (tmp_path / 'train.csv').write_text('image,cat,dog\n0.jpg,1,0\n1.jpg,-1,1.0\n2.jpg,,0\n')
    dataset = create_dataset('table', tmp_path, 'train')
    assert dataset.class_names == ['cat', 'dog']
    assert dataset.targets().tolist() == [[1, 0], [-1, 1], [-1, 0]]
    (tmp_path / 'train.jsonl').write_text(
        '{"image": "0.jpg", "labels": ["dog"], "unknown": ["cat"]}\n{"image": "1.jpg", "labels": ["bird", "dog"]}\n')
    dataset = create_dataset('table:{split}.jsonl', tmp_path, 'train')
    assert dataset.class_names == ['bird', 'cat', 'dog']
    assert dataset.targets().tolist() == [[0, -1, 1], [1, 0, 1]]
    (tmp_path / 'train.jsonl').write_text('{"image": "0.jpg", "labels": ["dog"], "absent": ["cat"]}\n')
    dataset = create_dataset('table:{split}.jsonl?unlisted=unknown', tmp_path, 'train', class_names=['a', 'cat', 'dog'])
    assert dataset.targets().tolist() == [[-1, 0, 1]]
    assert dataset.labels.counts().tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_names_can_have_blanks_and_objects_can_omit_classes(tmp_path):
    for name in 'ab':
        Image.new('RGB', (8, 8)).save(tmp_path / f'{name}.jpg')
    (tmp_path / 'train.csv').write_text('image,labels,unknown\na.jpg,traffic light|car,\nb.jpg,car,bird|cow\n')
    train = create_dataset('table:{split}.csv', tmp_path, 'train')
    assert train.class_names == ['bird', 'car', 'cow', 'traffic light']
    assert train.targets().tolist() == [[0, 1, 0, 1], [-1, 1, -1, 0]]
    (tmp_path / 'val.csv').write_text('image,labels\na.jpg,traffic light\n')
    val = create_dataset('table:{split}.csv', tmp_path, 'val', class_names=train.class_names)
    assert val[0][1].tolist() == [0, 0, 0, 1]
    (tmp_path / 'train.jsonl').write_text('{"image": "a.jpg", "cat": 1}\n{"image": "b.jpg", "dog": 1, "cat": 0}\n')
    wide = create_dataset('table:{split}.jsonl', tmp_path, 'train')
    assert wide.class_names == ['cat', 'dog'] and wide.targets().tolist() == [[1, -1], [0, 1]]


@pytest.mark.parametrize('kind, text', [
    ('csv', 'image,labels\n0.jpg,cat\n'), ('tsv', 'image\tlabels\n0.jpg\tcat\n'),
    ('jsonl', '{"image": "0.jpg", "labels": ["cat"]}\n')])
def test_byte_order_marks_are_ignored(tmp_path, kind, text):
    write_images(tmp_path, 1)
    (tmp_path / f'train.{kind}').write_text(text, encoding='utf-8-sig')
    assert create_dataset(f'table:{{split}}.{kind}', tmp_path, 'train').class_names == ['cat']


def test_three_broken_lines_of_ten_thousand_are_reported(tmp_path):
    write_images(tmp_path, 1)
    names = [f'{i}.png' for i in range(10000)]
    content = (tmp_path / '0.jpg').read_bytes()
    for name in names:
        (tmp_path / name).write_bytes(content)
    lines = [f'{n},cat' for n in names]
    lines[41], lines[4998], lines[9000] = '41.png', '4998.png,horse', 'gone.png,dog'
    (tmp_path / 'train.csv').write_text('\n'.join(['image,labels', *lines]))
    with pytest.raises(InputError) as error:
        create_dataset('table', tmp_path, 'train', class_names=['cat', 'dog'])
    first, *rest = str(error.value).splitlines()
    assert '3 problems' in first and len(rest) == 3
    for where, what in (('line 43', '1 cells'), ('line 5000', 'horse'), ('line 9002', 'gone.png')):
        assert any(where + ':' in line and what in line for line in rest), (where, rest)


@pytest.mark.parametrize('text, options, words', [
    ('image,labels\n', '', ['has no rows']),
    ('picture,labels\n0.jpg,cat\n', '', ['column for the image', 'picture']),
    ('image,labels\n0.jpg,cat\n', '?labels=tags', ["'tags'", 'image, labels']),
    ('image,cat,dog\n0.jpg,1,2\n', '', ['line 2', "'2'", 'dog']),
    ('image,cat\n0.jpg,1\n0.jpg,0\n', '', ['line 3', 'already on line 2']),
    ('image,labels\n0.jpg,cat\n', '?classes=none.txt', ['none.txt']),
    ('image,labels\n0.jpg,cat\n', '?colour=red', ['colour=red', 'sep']),
    ('image,labels\n0.jpg,cat\n', '?unlisted=maybe', ['maybe']),
])
def test_bad_tables_are_named(tmp_path, text, options, words):
    write_images(tmp_path)
    (tmp_path / 'train.csv').write_text(text)
    with pytest.raises(InputError) as error:
        create_dataset('table:{split}.csv' + options, tmp_path, 'train')
    for word in words:
        assert word in str(error.value)


def test_broken_tables_are_named(tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.jpg')
    (tmp_path / 'train.csv').write_text('image,cat,cat\na.jpg,1,0\n')
    with pytest.raises(InputError, match="several columns named 'cat'"):
        create_dataset('table:{split}.csv', tmp_path, 'train')
    (tmp_path / 'train.jsonl').write_text('{"image": {"bytes": "x"}, "labels": ["cat"]}\n')
    with pytest.raises(InputError, match='line 1: .*is not the path of an image'):
        create_dataset('table:{split}.jsonl', tmp_path, 'train')
    file = tmp_path / 'train.parquet'
    datasets.Dataset.from_dict(dict(image=['a.jpg'] * 1000, labels=[['cat']] * 1000)).to_parquet(file)
    content = bytearray(file.read_bytes())
    content[4:40] = b'\xff' * 36
    file.write_bytes(content)
    with pytest.raises(InputError, match='train.parquet is not a Parquet file, or is damaged'):
        create_dataset('table:{split}.parquet', tmp_path, 'train')


def test_tables_of_other_classes_than_the_models_are_named(tmp_path):
    write_images(tmp_path)
    (tmp_path / 'val.csv').write_text('image,cat,dog\n0.jpg,1,0\n')
    with pytest.raises(InputError, match='1 of 3 classes, the first: horse'):
        create_dataset('table', tmp_path, 'val', class_names=['cat', 'dog', 'horse'])
    (tmp_path / 'labels.csv').write_text('image,cat,dog\n0.jpg,1,0\n')
    for data, word in (('table:labels.csv', 'split'), ('table:{split}.xlsx', 'val.xlsx')):
        with pytest.raises(InputError, match=word):
            create_dataset(data, tmp_path, 'val')


def test_relative_paths_do_not_leave_the_folder(tmp_path):
    (tmp_path / 'data').mkdir()
    write_images(tmp_path, 1)
    for path in ('../0.jpg', 'a/../../0.jpg', '..\\0.jpg'):
        (tmp_path / 'data' / 'train.csv').write_text(f'image,labels\n{path},cat\n')
        with pytest.raises(InputError, match='Paths outside of the folder'):
            create_dataset('table', tmp_path / 'data', 'train')
    (tmp_path / 'data' / 'train.csv').write_text(f'image,labels\n{tmp_path}/0.jpg,cat\n')
    assert create_dataset('table', tmp_path / 'data', 'train').load(0).size == (8, 6)
