"""Splits of data that have none: shares, folds, columns, names, and their record."""
import numpy as np
import pytest
import torch
from PIL import Image

from timm_fan import InputError
from timm_fan.data import create_dataset, create_splits, is_divided, write_division

CLASSES = ['common', 'rare', 'rarest']


@pytest.fixture
def folder(tmp_path):
    """200 images in a table, of which every twentieth is a copy of the one before, and 40 patients."""
    lines = ['image,labels,patient,part']
    for i in range(200):
        shade = i - 1 if i % 20 == 19 else i
        Image.new('RGB', (8, 8), (shade, 7, 255 - shade)).save(tmp_path / f'{i:03d}.png')
        labels = [name for name, every in zip(CLASSES, (2, 10, 40)) if i % every == 0]
        lines.append(f'{i:03d}.png,{"|".join(labels)},{i // 5},{("Training", "dev")[i % 4 == 0]}')
    (tmp_path / 'labels.csv').write_text('\n'.join(lines))
    return tmp_path


def names(dataset):
    return [dataset.images.key(i) for i in range(len(dataset))]


def test_shares_have_the_frequencies_of_the_whole(folder):
    train, val = create_splits('table:labels.csv?val=0.2', folder)
    assert sorted(names(train) + names(val)) == [f'{i:03d}.png' for i in range(200)]
    assert 36 <= len(val) <= 44
    assert val.labels.counts()[0].tolist() == pytest.approx([20, 4, 1], abs=1)
    again = create_dataset('table:labels.csv?val=0.2', folder, 'val')
    assert names(again) == names(val)


def test_copies_stay_together(folder):
    train, val = create_splits('table:labels.csv?val=0.4', folder)
    contents = [{dataset.images.read(i) for i in range(len(dataset))} for dataset in (train, val)]
    assert not contents[0] & contents[1]


def test_groups_stay_together(folder):
    for data in ('table:labels.csv?val=0.3&group=patient', 'table:labels.csv?fold=1/4&group=Patient'):
        train, val = create_splits(data, folder)
        patients = [{int(name[:3]) // 5 for name in names(dataset)} for dataset in (train, val)]
        assert not patients[0] & patients[1] and len(patients[0] | patients[1]) == 40
        assert train.groups is not None and 30 <= len(val) <= 80


def test_folds_are_a_partition(folder):
    parts = [create_splits(f'table:labels.csv?fold={k}/5', folder) for k in range(5)]
    held_out = [name for _, val in parts for name in names(val)]
    assert sorted(held_out) == [f'{i:03d}.png' for i in range(200)]
    for train, val in parts:
        assert len(train) + len(val) == 200 and abs(len(val) - 40) <= 4
        assert abs(int(val.labels.counts()[0, 1]) - 4) <= 1


def test_a_column_of_splits(folder):
    for data in ('table:labels.csv?split=part', 'table:labels.csv?split=Part&val=DEV'):
        train, val = create_splits(data, folder)
        assert names(val) == [f'{i:03d}.png' for i in range(0, 200, 4)] and len(train) == 150
        assert train.class_names == val.class_names == CLASSES
    with pytest.raises(InputError, match="no holdout split, but 'dev', 'Training'.*?train=...&val=..."):
        create_splits('table:labels.csv?split=part&val=holdout', folder)
    with pytest.raises(InputError, match="has no column 'split'"):
        create_splits('table:labels.csv', folder)


def test_files_of_splits_have_any_name(folder):
    lines = (folder / 'labels.csv').read_text().splitlines()
    (folder / 'one.csv').write_text('\n'.join(lines[:150]))
    (folder / 'other').mkdir()
    (folder / 'other' / 'two.csv').write_text('\n'.join([lines[0], *lines[150:]]))
    train, val = create_splits('table:?train=one.csv&val=other/two.csv&images=.', folder)
    assert (len(train), len(val)) == (149, 51)
    with pytest.raises(InputError, match='No table .*val.csv'):
        create_splits('table:{split}.csv?train=one', folder)


def test_a_recorded_division_is_repeated(folder):
    train, val = create_splits('table:labels.csv?val=0.2', folder)
    write_division(folder / 'split.csv', train=train, val=val)
    other = create_splits('table:labels.csv?val=0.5', folder, folder / 'split.csv')
    assert [names(dataset) for dataset in other] == [names(train), names(val)]
    again = create_dataset('table:labels.csv?val=0.5', folder, 'val', division=folder / 'split.csv')
    assert torch.equal(again.targets(), val.targets())
    assert is_divided('table:labels.csv?fold=0/5') and not is_divided('voc2007?val=val')
    lines = (folder / 'labels.csv').read_text().splitlines()
    (folder / 'labels.csv').write_text('\n'.join(lines[:-1]))
    with pytest.raises(InputError, match='divides 200 images, but the data set has 199'):
        create_splits('table:labels.csv?val=0.2', folder, folder / 'split.csv')


def test_divisions_of_one_class_and_of_images_without_labels(tmp_path):
    for i in range(40):
        Image.new('RGB', (8, 8), (i, 0, 0)).save(tmp_path / f'{i}.png')
    (tmp_path / 'labels.csv').write_text('image,x\n' + ''.join(f'{i}.png,{int(i < 10)}\n' for i in range(40)))
    train, val = create_splits('table:labels.csv?val=0.5', tmp_path)
    assert np.allclose([d.targets().sum() for d in (train, val)], 5, atol=1)
    (tmp_path / 'labels.csv').write_text('image,x\n' + ''.join(f'{i}.png,1\n' for i in range(2)))
    with pytest.raises(InputError, match='fold=0/5 of 2 different images leaves a split without images'):
        create_splits('table:labels.csv?fold=0/5', tmp_path)


def test_only_training_images_are_divided(folder):
    train, val = create_splits('table:labels.csv?split=part&val=0.2', folder)
    both = sorted(names(train) + names(val))
    assert both == [f'{i:03d}.png' for i in range(200) if i % 4] and 27 <= len(val) <= 33
    train, _ = create_splits('table:labels.csv?split=PART&train=Training&val=dev', folder)
    assert train.class_names == CLASSES


def test_values_of_0_and_1_are_splits(folder):
    lines = (folder / 'labels.csv').read_text().replace('Training', '0').replace('dev', '1')
    (folder / 'labels.csv').write_text(lines)
    train, val = create_splits('table:labels.csv?split=part&train=0&val=1', folder)
    assert (len(train), len(val)) == (150, 50)


@pytest.mark.parametrize('share', [0.02, 0.1, 0.3, 0.5, 0.9, 0.97])
def test_shares_are_kept_with_many_rare_classes(tmp_path, share):
    lines = ['image,labels']
    for i in range(200):
        Image.new('RGB', (8, 8), (i, 9, 255 - i)).save(tmp_path / f'{i}.png')
        lines.append(f'{i}.png,class{i % 150}')
    (tmp_path / 'labels.csv').write_text('\n'.join(lines))
    train, val = create_splits(f'table:labels.csv?val={share}', tmp_path)
    assert abs(len(val) - share * 200) <= 10 and len(train) + len(val) == 200


def test_the_group_0_is_a_group(folder):
    rows = '\n'.join(f'{{"image": "{i:03d}.png", "labels": ["a"], "patient": {i % 2 * 1.0}}}' for i in range(4))
    (folder / 'rows.jsonl').write_text(rows)
    train, val = create_splits('table:rows.jsonl?val=0.5&group=patient', folder)
    assert {*train.groups, *val.groups} == {'0', '1'} and not set(train.groups) & set(val.groups)


@pytest.mark.parametrize('value', ['20%', '0,2', '1/5'])
def test_shares_in_another_form_are_refused(folder, value):
    with pytest.raises(InputError, match='Write it as val=0.2'):
        create_splits(f'table:labels.csv?val={value}', folder)
