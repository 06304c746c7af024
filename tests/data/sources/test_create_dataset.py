"""The address of a data set, and the same photographs give the same labels through every source."""
import numpy as np
import pytest
import torch
from helpers import SPLITS, write_hub, write_table, write_tars

from timm_fan import InputError
from timm_fan.data import create_dataset

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
