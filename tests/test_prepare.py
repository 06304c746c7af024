"""Shards of smaller images keep labels, unknown ones too, and boxes."""
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from test_programs import run_here

from timm_fan import InputError
from timm_fan.data import MultiLabelDataset, Sample, create_dataset
from timm_fan.data.prepare import write_shards


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
    assert run_here(monkeypatch, 'prepare_data', *options, '--output', output) == 2
    assert 'exists already' in capsys.readouterr().err
    assert run_here(monkeypatch, 'prepare_data', *options, '--output', tmp_path / 'x', '--quality', '0') == 2
    annotations = coco_folder / 'annotations' / 'instances_val2014.json'
    other = tmp_path / 'other'
    shutil.copytree(coco_folder, other)
    content = json.loads(annotations.read_text())
    content['categories'][0]['name'], content['categories'][1]['name'] = 'one', 'two'
    (other / 'annotations' / annotations.name).write_text(json.dumps(content))
    options[3] = other
    assert run_here(monkeypatch, 'prepare_data', *options, '--output', tmp_path / 'x') == 2
    assert 'different categories' in capsys.readouterr().err and not (tmp_path / 'x').exists()


def test_unknown_labels_small_images_and_unreadable_ones(tmp_path):
    Image.new('RGB', (90, 60), (200, 100, 0)).save(tmp_path / 'a.png')
    (tmp_path / 'b.jpg').write_bytes(b'no image')
    Image.new('L', (8, 20), 99).save(tmp_path / 'c.jpg')
    samples = [Sample('a.png', (0,), unknown=(2,), absent=(1,)), Sample('b.jpg', (1,)), Sample('c.jpg', ())]
    dataset = MultiLabelDataset.from_samples(tmp_path, samples, ['x', 'y', 'z'], default=-1.)
    (tmp_path / 'out').mkdir()
    left_out = write_shards(dataset, tmp_path / 'out', 'train', short_side=30)
    assert len(left_out) == 1 and 'b.jpg' in left_out[0]
    again = create_dataset('shards:{split}-*.tar?unlisted=unknown', tmp_path / 'out', 'train')
    assert [again.load(i).size for i in range(2)] == [(45, 30), (8, 20)] and again.boxes is None
    assert again.targets().tolist() == [[1, 0, -1], [-1, -1, -1]]


def test_boxes_of_turned_images_are_dropped(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in (('a.jpg', dict(exif=exif)), ('b.jpg', {})):
        Image.new('RGB', (80, 40)).save(tmp_path / name, **options)
    box = dict(boxes=[(0, 0, 10, 20)], box_labels=[0], size=(80, 40))
    samples = [Sample(name, (0,), **box) for name in ('a.jpg', 'b.jpg')]
    (tmp_path / 'out').mkdir()
    method = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method('forkserver', force=True)  # the default of Python 3.14
    try:
        write_shards(MultiLabelDataset.from_samples(tmp_path, samples, ['x']), tmp_path / 'out', 'train', 20, workers=1)
    finally:
        torch.multiprocessing.set_start_method(method, force=True)
    again = create_dataset('shards:{split}-*.tar', tmp_path / 'out', 'train')
    assert [again.load(i).size for i in range(2)] == [(20, 40), (40, 20)]
    assert [len(again.boxes[i][0]) for i in range(2)] == [0, 1] and again.boxes[1][0].tolist() == [[0, 0, 5, 10]]


def test_broken_boxes_are_named(tmp_path):
    for boxes, box_labels, words in (
            ([[1, 2, 3]], [0], 'reshape'), ([[1, 2, 3, 4]], [5], 'beyond the 2'),
            ([[1, 2, 3, 4]], ['x'], 'class index'), ([['a', 2, 3, 4]], [0], 'float')):
        with tarfile.open(tmp_path / 'train-0.tar', 'w') as archive:
            image = io.BytesIO()
            Image.new('RGB', (8, 8)).save(image, 'jpeg')
            entry = json.dumps(dict(labels=[0, 1], boxes=boxes, box_labels=box_labels, size=[8, 8]))
            for name, content in (('0.jpg', image.getvalue()), ('0.json', entry.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        with pytest.raises(InputError, match=words):
            create_dataset('shards:{split}-*.tar', tmp_path, 'train')
