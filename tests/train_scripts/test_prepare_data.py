"""prepare_data.py writes a data set as shards of smaller images."""
import json
import shutil

import numpy as np
import pytest
from helpers import run_here

from timm_fan.data import create_dataset


def test_prepared_scenes(monkeypatch, capsys, coco_folder, tmp_path):
    options = ['--data', 'coco2014', '--data-dir', coco_folder, '--short-side', '32', '--shard-size', '20']
    output = tmp_path / 'prepared'
    assert run_here(monkeypatch, 'prepare_data', *options, '--output', output) == 0
    assert "--data 'shards:{split}-*.tar' --data-dir" in capsys.readouterr().out
    assert sorted(p.name for p in output.iterdir()) == [
        'classes.txt', 'train-00000.tar', 'train-00001.tar', 'val-00000.tar']
    for split in ('train', 'val'):
        before = create_dataset('coco2014', coco_folder, split)
        after = create_dataset('shards:{split}-*.tar', output, split)
        assert after.class_names == before.class_names and (after.targets() == before.targets()).all()
        for i in range(len(before)):
            old, new = before.load(i), after.load(i)
            assert min(new.size) == 32 and new.size == tuple(after.boxes.sizes[i])
            assert max(new.size) / min(new.size) == pytest.approx(max(old.size) / min(old.size), rel=0.02)
            (boxes, labels), (old_boxes, old_labels) = after.boxes[i], before.boxes[i]
            assert (labels == old_labels).all()
            scales = np.tile(np.divide(new.size, old.size), 2)
            np.testing.assert_allclose(boxes, old_boxes * scales, atol=0.01)
    raw = tmp_path / 'raw'
    assert run_here(monkeypatch, 'prepare_data', *options, '--output', raw, '--uncompressed') == 0
    before, after = (create_dataset('shards:{split}-*.tar', folder, 'val') for folder in (output, raw))
    assert after.images.name(0).endswith('.ppm') and (after.targets() == before.targets()).all()
    for i in range(len(before)):
        old, new = (np.asarray(dataset.load(i), float) for dataset in (before, after))
        assert old.shape == new.shape and abs(old - new).mean() < 8


def test_wrong_options_and_splits_of_different_classes_are_named(monkeypatch, capsys, coco_folder, tmp_path):
    options = ['--data', 'coco2014', '--data-dir', coco_folder]
    (tmp_path / 'prepared').mkdir()
    assert run_here(monkeypatch, 'prepare_data', *options, '--output', tmp_path / 'prepared') == 2
    assert 'already exists' in capsys.readouterr().err
    for option, value, words in (
            ('--quality', '0', 'at least 1, got 0'), ('--quality', '96', 'at most 95, got 96'),
            ('--short-side', '0', 'at least 1, got 0'), ('--workers', '-1', 'at least 0, got -1')):
        assert run_here(monkeypatch, 'prepare_data', *options, '--output', tmp_path / 'x', option, value) == 2
        assert f'{option} must be {words}' in capsys.readouterr().err
    annotations = coco_folder / 'annotations' / 'instances_val2014.json'
    other = tmp_path / 'other'
    shutil.copytree(coco_folder, other)
    content = json.loads(annotations.read_text())
    content['categories'][0]['name'], content['categories'][1]['name'] = 'one', 'two'
    (other / 'annotations' / annotations.name).write_text(json.dumps(content))
    options[3] = other
    assert run_here(monkeypatch, 'prepare_data', *options, '--output', tmp_path / 'x') == 2
    assert 'different classes' in capsys.readouterr().err and not (tmp_path / 'x').exists()
