"""WebDataset shards: the reader, and the writer, which keeps labels, unknown ones too, and boxes."""
import json
import tarfile

import pytest
import torch
from helpers import add_member, encoded, write_tars
from PIL import Image

from timm_fan import InputError
from timm_fan.data import UNKNOWN, ImageFiles, MultiLabelDataset, Sample, SparseLabels, create_dataset, write_shards
from timm_fan.data.sources.shards import expand_shards


def test_names_of_shards():
    assert expand_shards('a-{008..011}.tar') == ['a-008.tar', 'a-009.tar', 'a-010.tar', 'a-011.tar']
    assert expand_shards('{0..1}-{0..1}.tar') == ['0-0.tar', '0-1.tar', '1-0.tar', '1-1.tar']
    assert expand_shards('a.tar') == ['a.tar']


def test_folder_with_brackets_and_lines_of_windows(coco_folder, tmp_path):
    folder = tmp_path / 'set [1]'
    folder.mkdir()
    with tarfile.open(folder / 'train-0.tar', 'w') as archive:
        archive.add(coco_folder / 'val2014' / '000000.jpg', '0.jpg')
        add_member(archive, '0.txt', b'cat\r\ndog\r\n')
    assert create_dataset('shards:{split}-*.tar', folder, 'train').class_names == ['cat', 'dog']


def test_damaged_shards_are_named(coco_folder, tmp_path):
    data = write_tars(coco_folder, tmp_path, 'json')
    shard = tmp_path / 'train-001.tar'
    content = shard.read_bytes()
    with tarfile.open(shard) as archive:
        second = archive.getmembers()[2]
    damages = [
        (content[:second.offset_data + 10], 'cut off|damaged|unexpected'),
        (content[:second.offset] + b'x' * 512 + content[second.offset + 512:], f'damaged at byte {second.offset}'),
        (b'', 'empty'),
    ]
    for damaged, word in damages:
        shard.write_bytes(damaged)
        with pytest.raises(InputError, match=f'train-001.tar.*({word})'):
            create_dataset(data, tmp_path, 'train')
    with tarfile.open(shard, 'w') as archive:
        add_member(archive, 'a.jpg', b'')
        add_member(archive, 'b.jpg', b'')
        add_member(archive, 'b.json', b'{"labels": ["horse-fly"]}')
        add_member(archive, 'c.jpg', b'')
        add_member(archive, 'c.json', b'{"tags": []}')
    with pytest.raises(InputError) as error:
        create_dataset(data, tmp_path, 'train')
    text = str(error.value)
    for word in ('3 problems', 'a has no json', 'horse-fly', "c.json: KeyError: 'labels'"):
        assert word in text
    shard.unlink()
    with pytest.raises(InputError, match='No shard .*train-001.tar'):
        create_dataset(data, tmp_path, 'train')


def write_shard(folder, kind, content):
    with tarfile.open(folder / 'train-0.tar', 'w') as archive:
        add_member(archive, 'a.jpg', encoded(Image.new('RGB', (8, 8)), 'JPEG'))
        add_member(archive, f'a.{kind}', content)


@pytest.mark.parametrize('broken, words', [
    (dict(boxes=[[1, 2, 3]]), 'reshape'), (dict(boxes=[['a', 2, 3, 4]]), 'float'), (dict(boxes={}), 'float'),
    (dict(boxes=[[1, 2, 3, 10 ** 400]]), 'too large'), (dict(boxes=[[1, 2, 3, 1e30]]), 'numbers below'),
    (dict(boxes=[[1, 2, 3, None]]), 'numbers below'), (dict(boxes=[[1, 2, 3, float('nan')]]), 'numbers below'),
    (dict(boxes=[[1, 2, 3, 4]] * 2), 'each of 2 boxes'), (dict(boxes=None), 'reshape'),
    (dict(box_labels=[5]), 'beyond the 2'), (dict(box_labels=['x']), 'class index'), (dict(box_labels=0), 'len'),
    *((dict(size=size), 'size must be') for size in (
        'abc', 8, [8], [8, 8, 8], [8, '8'], [8, 0], [8, 8.5], [8, 10 ** 30], [None, None], {}, True))])
def test_broken_boxes_are_named(tmp_path, broken, words):
    entry = dict(labels=[0, 1], boxes=[[1, 2, 3, 4]], box_labels=[0], size=[8, 8])
    write_shard(tmp_path, 'json', json.dumps({**entry, **broken}).encode())
    with pytest.raises(InputError, match=f'train-0.tar: a.*{words}'):
        create_dataset('shards', tmp_path, 'train')


def test_size_means_nothing_without_boxes(tmp_path):
    write_shard(tmp_path, 'json', b'{"labels": ["cat"], "size": "12 kB"}')
    assert create_dataset('shards', tmp_path, 'train').boxes is None


@pytest.mark.parametrize('kind, content, names', [
    ('json', '{"labels": ["cat"]}', ['cat']), ('txt', 'cat', ['cat']), ('cls', '1', ['0', '1'])])
def test_byte_order_marks_are_ignored(tmp_path, kind, content, names):
    write_shard(tmp_path, kind, content.encode('utf-8-sig'))
    assert create_dataset('shards', tmp_path, 'train').class_names == names


def test_unreadable_images_are_named_and_ignored(coco_folder, tmp_path, caplog):
    data = write_tars(coco_folder, tmp_path, 'json')
    dataset = create_dataset(data, tmp_path, 'val')
    shard, start, size = dataset.images.positions[3].tolist()
    with open(dataset.images.shards[shard], 'r+b') as file:
        file.seek(start)
        file.write(bytes(size))
    _, target = dataset[3]
    assert target.tolist() == [-1] * 6 and 'val-000.tar/000003.jpg' in caplog.text


def test_a_shard_cannot_write_or_name_files_elsewhere(coco_folder, tmp_path):
    """Members are read by position and never unpacked; links are no samples."""
    photo = (coco_folder / 'val2014' / '000000.jpg').read_bytes()
    with tarfile.open(tmp_path / 'train-000.tar', 'w') as archive:
        add_member(archive, '../../evil.jpg', photo)
        add_member(archive, '../../evil.txt', b'cat')
        link = tarfile.TarInfo('link.jpg')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        archive.addfile(link)
    before = sorted(tmp_path.parent.rglob('evil*'))
    dataset = create_dataset('shards', tmp_path, 'train')
    assert len(dataset) == 1 and dataset.load(0).size[0] > 1
    assert sorted(tmp_path.parent.rglob('evil*')) == before == []


def test_written_labels_can_be_unknown_and_unreadable_images_are_left_out(tmp_path):
    Image.new('RGB', (90, 60), (200, 100, 0)).save(tmp_path / 'a.png')
    (tmp_path / 'b.jpg').write_bytes(b'no image')
    Image.new('L', (8, 20), 99).save(tmp_path / 'c.jpg')
    labels = SparseLabels([((0,), (1,), (2,)), ((1,), (), ()), ((), (), ())], 3, default=UNKNOWN)
    dataset = MultiLabelDataset(ImageFiles(tmp_path, ['a.png', 'b.jpg', 'c.jpg']), labels, ['x', 'y', 'z'])
    (tmp_path / 'out').mkdir()
    left_out = write_shards(dataset, tmp_path / 'out', 'train', short_side=30)
    assert len(left_out) == 1 and 'b.jpg' in left_out[0]
    again = create_dataset('shards:{split}-*.tar?unlisted=unknown', tmp_path / 'out', 'train')
    assert [again.load(i).size for i in range(2)] == [(45, 30), (8, 20)] and again.boxes is None
    assert again.targets().tolist() == [[1, 0, -1], [-1, -1, -1]]


def test_written_images_with_rotated_sides_have_no_boxes(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in (('a.jpg', dict(exif=exif)), ('b.jpg', {})):
        Image.new('RGB', (80, 40)).save(tmp_path / name, **options)
    box = dict(boxes=[(0, 0, 10, 20)], box_labels=[0], size=(80, 40))
    samples = [Sample(name, (0,), **box) for name in ('a.jpg', 'b.jpg')]
    dataset = MultiLabelDataset.from_samples(tmp_path, samples, ['x'])
    (tmp_path / 'out').mkdir()
    method = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method('forkserver', force=True)  # the default of Python 3.14
    try:
        write_shards(dataset, tmp_path / 'out', 'train', 20, num_workers=1)
    finally:
        torch.multiprocessing.set_start_method(method, force=True)
    again = create_dataset('shards:{split}-*.tar', tmp_path / 'out', 'train')
    assert [again.load(i).size for i in range(2)] == [(20, 40), (40, 20)]
    assert [len(again.boxes[i][0]) for i in range(2)] == [0, 1] and again.boxes[1][0].tolist() == [[0, 0, 5, 10]]
