"""Text files are UTF-8 whatever the locale, and file names need not be UTF-8."""
import json
import os
import tarfile

import pytest
from helpers import add_member, encoded, launch, photo

from timm_fan import InputError
from timm_fan.data import (
    MultiLabelDataset,
    Sample,
    create_dataset,
    find_images,
    load_image,
    read_coco,
    read_shards,
    write_shards,
)
from timm_fan.data.sources.coco import write_coco
from timm_fan.data.sources.labels import read_class_names

NAMES = ['Hündin', 'canapé', '猫']
TEXTS = {
    'csv': 'image,labels\na.jpg,猫;Hündin\n',
    'tsv': 'image\tHündin\tcanapé\t猫\na.jpg\t1\t0\t1\n',
    'jsonl': '{"image": "a.jpg", "labels": ["猫", "Hündin"]}\n',
}
# in Latin-1, as older systems wrote it; Python lists it with a surrogate escape
LATIN = os.fsdecode(b'caf\xe9.jpg')
JPEG = encoded(photo(40, 30), 'JPEG')


@pytest.fixture
def latin_folder(tmp_path):
    """A folder whose name is not UTF-8, with an image whose name is not either."""
    folder = tmp_path / os.fsdecode(b'donn\xe9es')
    try:
        folder.mkdir()
        (folder / LATIN).write_bytes(JPEG)
    except OSError:
        pytest.skip('the file system refuses names that are not UTF-8')
    return folder


def assert_readable(dataset: MultiLabelDataset) -> None:
    dataset.on_unreadable = lambda name, error: pytest.fail(f'{name!r}: {error}')
    for i in range(len(dataset)):
        assert dataset[i][0].size == (40, 30)
    assert len(dataset.fingerprint()) == 64


@pytest.mark.parametrize('kind', TEXTS)
def test_tables_and_class_lists_are_utf8(tmp_path, kind):
    (tmp_path / 'a.jpg').write_bytes(JPEG)
    (tmp_path / 'classes.txt').write_bytes('\r\n'.join(NAMES).encode())
    (tmp_path / f'train.{kind}').write_bytes(TEXTS[kind].encode())
    assert read_class_names(tmp_path / 'classes.txt') == NAMES
    dataset = create_dataset(f'table:{{split}}.{kind}?classes=classes.txt', tmp_path, 'train')
    assert dataset.class_names == NAMES and dataset.targets().tolist() == [[1, 0, 1]]
    assert_readable(dataset)


@pytest.mark.parametrize('kind, content', [
    ('json', '{"labels": ["猫", "Hündin"]}'), ('txt', '猫\nHündin\n')])
def test_labels_in_shards_are_utf8(tmp_path, kind, content):
    with tarfile.open(tmp_path / 'train-0.tar', 'w') as archive:
        add_member(archive, 'a.jpg', JPEG)
        add_member(archive, f'a.{kind}', content.encode())
    assert create_dataset('shards', tmp_path, 'train').class_names == ['Hündin', '猫']
    (tmp_path / 'classes.txt').write_bytes('\n'.join(NAMES).encode())
    dataset = create_dataset('shards', tmp_path, 'train')
    assert dataset.class_names == NAMES and dataset.targets().tolist() == [[1, 0, 1]]


def test_written_annotations_and_class_lists_are_utf8(tmp_path):
    categories = [dict(id=i, name=name) for i, name in enumerate(NAMES, 1)]
    write_coco(tmp_path, 'train', [(JPEG, (40, 30), [(1, (1., 2., 3., 4.), 12)])], categories)
    dataset = read_coco(tmp_path, 'train')
    assert dataset.class_names == NAMES
    (tmp_path / 'out').mkdir()
    assert write_shards(dataset, tmp_path / 'out', 'train') == []
    assert (tmp_path / 'out' / 'classes.txt').read_bytes().decode().splitlines() == NAMES
    again = create_dataset('shards', tmp_path / 'out', 'train')
    assert again.class_names == NAMES and again.targets().tolist() == [[0, 1, 0]]


def test_tables_and_coco_find_any_file_name(latin_folder):
    # JSON can express the surrogate escape of such a name
    (latin_folder / 'train.jsonl').write_bytes(json.dumps(dict(image=LATIN, labels=['cat'])).encode())
    (latin_folder / 'classes.txt').write_bytes(b'cat\n')
    dataset = create_dataset('table:{split}.jsonl?classes=classes.txt', latin_folder, 'train')
    assert dataset.images.name(0) == str(latin_folder / LATIN)
    assert_readable(dataset)
    content = dict(
        images=[dict(id=1, file_name=LATIN, width=40, height=30)], categories=[dict(id=1, name='cat')],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1, 2, 3, 4])])
    (latin_folder / 'train').mkdir()
    (latin_folder / 'train' / LATIN).write_bytes(JPEG)
    (latin_folder / 'annotations').mkdir()
    (latin_folder / 'annotations' / 'instances_train.json').write_bytes(json.dumps(content).encode())
    assert_readable(read_coco(latin_folder, 'train'))


@pytest.mark.parametrize('form', [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=['gnu', 'pax'])
def test_shards_can_have_any_file_name(latin_folder, form):
    key = LATIN.removesuffix('.jpg')
    with tarfile.open(latin_folder / f'train-{key}.tar', 'w', format=form) as archive:
        add_member(archive, f'{key}.jpg', JPEG)
        add_member(archive, f'{key}.txt', b'cat')
    for dataset in (create_dataset('shards', latin_folder, 'train'),
                    read_shards(str(latin_folder / f'train-{key}.tar'))):
        assert dataset.images.name(0) == str(latin_folder / f'train-{key}.tar' / LATIN)
        assert dataset.class_names == ['cat']
        assert_readable(dataset)
    written = latin_folder / 'out'
    written.mkdir()
    assert write_shards(dataset, written, 'train', short_side=15) == []
    assert create_dataset('shards', written, 'train').load(0).size == (20, 15)


def test_images_with_any_file_name_are_found(latin_folder):
    (latin_folder / 'two\nlines.jpg').write_bytes(JPEG)
    assert find_images([latin_folder]) == [latin_folder / LATIN, latin_folder / 'two\nlines.jpg']
    assert find_images([latin_folder / LATIN]) == [latin_folder / LATIN]
    assert load_image(latin_folder / LATIN).size == (40, 30)


def test_messages_with_any_file_name_are_one_line_of_text(latin_folder, tmp_path, caplog):
    for name in (LATIN, 'two\nlines.jpg'):
        (latin_folder / name).write_bytes(b'')
        dataset = MultiLabelDataset.from_samples(latin_folder, [Sample(name, (0,))], ['cat'])
        assert dataset[0][1].tolist() == [-1]
        (latin_folder / name).unlink()
        with pytest.raises(InputError) as error:
            find_images([latin_folder / name])
        text = str(error.value)
        text.encode()
        assert text.count('\n') == 0 and name[:3] in text
    assert len(caplog.records) == 2
    for record in caplog.records:
        record.message.encode()
        assert record.message.count('\n') == 0
    assert r'caf\udce9.jpg' in caplog.text and r'two\nlines.jpg' in caplog.text


def test_all_of_this_holds_in_another_locale(monkeypatch):
    """Where Python's default encoding is not UTF-8, such as cp1252 of Windows."""
    for name, value in (('LC_ALL', 'C'), ('PYTHONUTF8', '0'), ('PYTHONCOERCECLOCALE', '0'), ('PYTEST_ADDOPTS', '')):
        monkeypatch.setenv(name, value)
    encoding = launch('-c', 'import locale; print(locale.getpreferredencoding())').stdout
    assert 'utf' not in encoding.lower()
    launch('-m', 'pytest', __file__, '-p', 'no:cacheprovider', '-k', 'not another_locale')
