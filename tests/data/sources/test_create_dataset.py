"""The address of a data set, and the same photographs give the same labels through every source."""
import numpy as np
import pytest
import torch
from helpers import SPLITS, write_hub, write_table, write_tars

from timm_fan import InputError
from timm_fan.data import create_dataset, create_splits

WRITERS = [
    (write_table, 'csv'), (write_table, 'csv-wide'), (write_table, 'tsv'), (write_table, 'jsonl'),
    (write_table, 'parquet'), (write_hub, 'disk'), (write_hub, 'objects'), (write_hub, 'parquet'),
    (write_tars, 'json'), (write_tars, 'cls'), (write_tars, 'txt')]


def assert_same(coco, root, data):
    for split in SPLITS:
        expected, found = create_dataset('coco2014', coco, split), create_dataset(data, root, split)
        assert found.class_names == expected.class_names
        assert torch.equal(found.targets(), expected.targets())
        assert torch.equal(found.labels.counts(), expected.labels.counts())
        for i in (0, len(found) - 1):
            assert np.array_equal(np.asarray(found[i][0]), np.asarray(expected[i][0]))


@pytest.mark.parametrize('write, kind', WRITERS, ids=[f'{w.__name__[6:]}-{k}' for w, k in WRITERS])
def test_every_source_gives_cocos_labels(coco_folder, tmp_path, write, kind):
    assert_same(coco_folder, tmp_path, write(coco_folder, tmp_path, kind))


@pytest.mark.parametrize('write, kind', [(write_table, 'csv'), (write_hub, 'disk'), (write_tars, 'json')])
def test_coco_mini_through_every_source(coco_mini, tmp_path, write, kind):
    assert_same(coco_mini, tmp_path, write(coco_mini, tmp_path, kind))


def test_unknown_sources_are_named(coco_folder):
    with pytest.raises(InputError, match='coco2014'):
        create_dataset('imagenet', coco_folder, 'train')


@pytest.mark.parametrize('share', [0.1, 0.5])
def test_a_share_of_the_training_images_is_held_out(coco_folder, share):
    whole = create_dataset('coco2014', coco_folder, 'train')
    train, val = create_splits(f'coco2014?val={share}', coco_folder)
    names = [{d.images.name(i): i for i in range(len(d))} for d in (train, val)]
    assert abs(len(val) - share * len(whole)) <= 2 and not names[0].keys() & names[1].keys()
    assert names[0].keys() | names[1].keys() == {whole.images.name(i) for i in range(len(whole))}
    for dataset, found in zip((train, val), names):
        for i in range(len(whole)):
            j = found.get(whole.images.name(i))
            if j is not None:
                assert torch.equal(dataset.target(j), whole.target(i))
                assert all((a == b).all() for a, b in zip(dataset.boxes[j], whole.boxes[i]))
                assert dataset.load(j).tobytes() == whole.load(i).tobytes()
    again = create_dataset(f'coco2014?val={share}', coco_folder, 'val')
    assert again.fingerprint() == val.fingerprint() != create_dataset(
        'coco2014?val=0.2', coco_folder, 'val').fingerprint()
    assert torch.equal(val.labels.counts() + train.labels.counts(), whole.labels.counts())


def test_a_share_of_one_table_is_held_out(coco_folder, tmp_path):
    data = write_table(coco_folder, tmp_path, 'csv')
    one = data.replace('{split}', 'train')
    with pytest.raises(InputError, match='Hold out a share'):
        create_dataset(one, tmp_path, 'val')
    separator = '&' if '?' in one else '?'
    train, val = create_splits(f'{one}{separator}val=0.25', tmp_path)
    assert len(train) + len(val) == len(create_dataset(data, tmp_path, 'train')) and abs(len(val) - 0.25 * 34) <= 2


@pytest.mark.parametrize('value', ['0', '1', '-0.1', '1.5', '0.001', '1e-9'])
def test_a_share_leaves_images_in_both_splits(coco_folder, value):
    with pytest.raises(InputError, match='leaves a split without images'):
        create_dataset(f'coco2014?val={value}', coco_folder, 'train')


def test_options_of_a_source_are_named(coco_folder):
    with pytest.raises(InputError, match="'sep=x' is not an option of coco2014, which has: val=SHARE, fold=K/N"):
        create_dataset('coco2014?sep=x', coco_folder, 'train')
    for wrong in ('fold=5/5', 'fold=-1/5', 'fold=1', 'fold=0/1', 'fold=a/b'):
        with pytest.raises(InputError, match=f'{wrong} must be a fold and their number'):
            create_dataset(f'coco2014?{wrong}', coco_folder, 'train')
    with pytest.raises(InputError, match='divides the images twice'):
        create_dataset('coco2014?fold=0/5&val=0.2', coco_folder, 'train')
    with pytest.raises(InputError, match='minival'):
        create_dataset('coco2014?val=minival', coco_folder, 'val')
    assert len(create_dataset('coco2014?val=train2014', coco_folder, 'val')) == 34
