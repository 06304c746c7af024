"""Data sets of the `datasets` library: splits, columns, the order of classes, and files that rows refer to."""
import shutil

import datasets
import pytest
import torch
from helpers import encoded, photo, write_hub
from PIL import Image

from timm_fan import InputError
from timm_fan.data import create_dataset, read_coco


def test_bad_data_sets_are_named(coco_folder, tmp_path):
    data = write_hub(coco_folder, tmp_path, 'disk')
    for wrong, words in (
            (f'{data}?labels=tags', ['tags', 'image, labels']), (f'{data}?image=picture', ['picture']),
            (f'{data}?image=labels', ['labels', 'no images']), ('hub:', ['name']),
            ('hub:./none', ['none', 'cannot be opened'])):
        with pytest.raises(InputError) as error:
            create_dataset(wrong, tmp_path, 'train')
        for word in words:
            assert word in str(error.value)
    loaded = datasets.load_from_disk(tmp_path / 'set')
    datasets.DatasetDict(train=loaded['train']).save_to_disk(tmp_path / 'half')
    with pytest.raises(InputError, match="no split 'val', only: train"):
        create_dataset('hub:half', tmp_path, 'val')


@pytest.mark.parametrize('objects, words', [
    ([dict(bbox=[0, 0, 8, 8])], "has none of the keys category"),
    ([dict(category='horse-fly')], "row 1: 'horse-fly' is not one of the 2 classes"),
])
def test_broken_rows_are_named(coco_folder, tmp_path, objects, words):
    photo = dict(bytes=(coco_folder / 'val2014' / '000000.jpg').read_bytes(), path='0.jpg')
    # an empty list has no keys, so that the first row is right with any kind of objects
    rows = [dict(image=photo, objects=[]), dict(image=photo, objects=objects)]
    datasets.DatasetDict(train=datasets.Dataset.from_list(rows)).save_to_disk(tmp_path / 'set')
    with pytest.raises(InputError, match=words):
        create_dataset('hub:set', tmp_path, 'train', class_names=['a', 'b'])


def test_labels_follow_the_models_names(coco_folder, tmp_path):
    data = write_hub(coco_folder, tmp_path, 'disk')
    names = read_coco(coco_folder, 'val2014').class_names
    expected = create_dataset(data, tmp_path, 'val').targets().flip(1)
    assert torch.equal(create_dataset(data, tmp_path, 'val', class_names=names[::-1]).targets(), expected)


def test_unlabelled_rows_are_not_the_last_class(tmp_path):
    feature = datasets.Features(dict(image=datasets.Image(), label=datasets.ClassLabel(names=['cat', 'dog'])))
    rows = dict(image=[Image.new('RGB', (8, 8))] * 2, label=[0, -1])
    datasets.DatasetDict(validation=datasets.Dataset.from_dict(rows, feature)).save_to_disk(tmp_path / 'set')
    with pytest.raises(InputError, match="row 1: '-1' is not one of the 2 classes"):
        create_dataset('hub:set', tmp_path, 'val', class_names=['cat', 'dog'])


@pytest.mark.parametrize('splits, expected', [
    (dict(train='a', validation='b', test='c'), 'ab'),
    (dict(training='a', dev='b', test='c'), 'ab'),
    (dict(train='a', test='c'), 'ac'),
])
def test_splits_have_the_names_of_other_sources(tmp_path, splits, expected):
    """The test split is for validation where there is no other."""
    photo = Image.new('RGB', (8, 8))
    datasets.DatasetDict({
        name: datasets.Dataset.from_list([dict(image=photo, labels=[label])]) for name, label in splits.items()
    }).save_to_disk(tmp_path / 'set')
    found = [create_dataset('hub:set', tmp_path, split).class_names for split in ('train', 'val')]
    assert found == [[label] for label in expected]


def test_paths_are_relative_to_the_data_set(coco_folder, tmp_path):
    shutil.copy(coco_folder / 'val2014' / '000000.jpg', tmp_path / '0.jpg')
    datasets.Dataset.from_dict(dict(image=['0.jpg'], labels=[['cat']])).to_parquet(tmp_path / 'train.parquet')
    image, target = create_dataset(f'hub:{tmp_path}', tmp_path, 'train')[0]
    assert target.tolist() == [1] and image.size == (48, 48)


def test_a_data_set_cannot_name_files_elsewhere(coco_folder, tmp_path):
    (tmp_path / 'set').mkdir()
    rows = [dict(image=str(coco_folder / 'val2014' / '000000.jpg'), labels=['cat'])]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / 'set' / 'train-00000.parquet')
    dataset = create_dataset('hub:set', tmp_path, 'train')
    reasons = []
    dataset.on_unreadable = lambda name, error: reasons.append(str(error))
    assert dataset[0][1].tolist() == [-1] and 'outside' in reasons[0]


@pytest.mark.parametrize('cell', [
    None, dict(bytes=None, path=None), dict(bytes=None, path=''), dict(bytes=b'', path=None)])
def test_empty_cells_are_unreadable_images(tmp_path, cell):
    rows = dict(image=[cell, dict(bytes=encoded(photo(), 'JPEG'), path=None)], labels=[['cat']] * 2)
    datasets.DatasetDict(train=datasets.Dataset.from_dict(rows)).save_to_disk(tmp_path / 'set')
    dataset = create_dataset('hub:set', tmp_path, 'train')
    names = []
    dataset.on_unreadable = lambda name, error: names.append(name)
    assert [dataset[i][1].tolist() for i in range(2)] == [[-1], [1]] and names == ['row 0']
