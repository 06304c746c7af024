"""PASCAL VOC."""
import pytest
from helpers import write_devkit

from timm_fan import InputError
from timm_fan.data import VOC_CLASSES, create_dataset


def test_voc_gives_the_official_labels(tmp_path):
    objects = [('cat', 0), ('cat', 1), ('dog', 1), ('person', 0)]
    write_devkit(tmp_path, 2007, dict(trainval={'000001': objects, '000002': []}, test={'000003': [('sofa', 1)]}))
    cat, dog, person = (VOC_CLASSES.index(n) for n in ('cat', 'dog', 'person'))
    for policy, value in (('ignore', -1), ('positive', 1), ('negative', 0)):
        dataset = create_dataset(f'voc2007?difficult={policy}', tmp_path, 'train')
        target = dataset.target(0)
        assert (target[cat], target[person], target[dog]) == (1, 1, value)
        assert target.abs().sum() == 2 + abs(value) and not dataset.target(1).any()
    assert create_dataset('voc2007', tmp_path, 'val').target(0)[VOC_CLASSES.index('sofa')] == -1
    boxes, labels = dataset.boxes[0]
    assert boxes[0].tolist() == [0, 1, 10, 19] and labels.tolist() == [cat, cat, dog, person]
    assert dataset.boxes.sizes.tolist() == [[60, 40], [60, 40]]
    assert len(create_dataset('voc2007?val=trainval', tmp_path, 'val')) == 2
    assert len(create_dataset('voc2007?train=test', tmp_path, 'train')) == 1
    with pytest.raises(InputError, match='No image list.*other.txt'):
        create_dataset('voc2007?val=other', tmp_path, 'val')
    with pytest.raises(InputError, match='maybe'):
        create_dataset('voc2007?difficult=maybe', tmp_path, 'train')


def test_bad_devkits_are_named(tmp_path):
    with pytest.raises(InputError, match='VOC2012'):
        create_dataset('voc2012', tmp_path, 'train')
    write_devkit(tmp_path, 2012, dict(train={'a': [('unicorn', 0)], 'b': [('cat', 0)], 'c': []}))
    folder = tmp_path / 'VOCdevkit' / 'VOC2012'
    (folder / 'Annotations' / 'b.xml').write_text('<annotation>')
    with pytest.raises(InputError) as error:
        create_dataset('voc2012', tmp_path, 'train')
    assert '2 annotations' in str(error.value) and "'unicorn'" in str(error.value) and 'b.xml' in str(error.value)
    with pytest.raises(InputError, match='val.txt'):
        create_dataset('voc2012', tmp_path, 'val')


def test_a_list_cannot_name_files_elsewhere(tmp_path):
    (tmp_path / 'ImageSets' / 'Main').mkdir(parents=True)
    (tmp_path / 'ImageSets' / 'Main' / 'trainval.txt').write_text('../../secret\n')
    with pytest.raises(InputError, match='../../secret'):
        create_dataset('voc2007', tmp_path, 'train')
