"""Lists of class names, and labels that are neither names nor class indices."""
import json
import tarfile

import datasets
import pytest
from helpers import add_member, encoded
from PIL import Image

from timm_fan import InputError
from timm_fan.data import create_dataset
from timm_fan.data.sources.labels import read_class_names


def test_class_lists_from_windows(tmp_path):
    (tmp_path / 'classes.txt').write_bytes('\ufeffkatze\r\nhund\r\n'.encode())
    assert read_class_names(tmp_path / 'classes.txt') == ['katze', 'hund']
    (tmp_path / 'classes.txt').write_bytes('vögel\n'.encode('latin-1'))
    with pytest.raises(InputError, match='not UTF-8'):
        read_class_names(tmp_path / 'classes.txt')


@pytest.mark.parametrize('kind, labels', [
    (kind, labels) for kind in ('jsonl', 'shard', 'hub')
    for labels in ({'cat': 1, 'dog': 0}, [True, False], [1.0, 0.0], ['cat', None], [['cat']], True)
    if not (kind == 'hub' and isinstance(labels, dict))])  # there it is an object without a category
def test_labels_of_another_kind_are_named(tmp_path, kind, labels):
    """Otherwise they would become classes of their own, or the wrong ones."""
    photo = encoded(Image.new('RGB', (8, 8)), 'JPEG')
    if kind == 'jsonl':
        (tmp_path / '0.jpg').write_bytes(photo)
        (tmp_path / 'train.jsonl').write_text(json.dumps(dict(image='0.jpg', labels=labels)))
        data = 'table:{split}.jsonl'
    elif kind == 'shard':
        with tarfile.open(tmp_path / 'train-0.tar', 'w') as archive:
            add_member(archive, '0.jpg', photo)
            add_member(archive, '0.json', json.dumps(dict(labels=labels)).encode())
        data = 'shards:{split}-*.tar'
    else:
        rows = datasets.Dataset.from_dict(dict(image=[dict(bytes=photo, path=None)], labels=[labels]))
        datasets.DatasetDict(train=rows).save_to_disk(tmp_path / 'set')
        data = 'hub:set'
    with pytest.raises(InputError) as error:
        create_dataset(data, tmp_path, 'train')
    assert any(words in str(error.value) for words in ('neither a name nor a class index', 'must be lists'))
