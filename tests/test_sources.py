"""VOC, tables, `datasets` and shards: the same photographs give the same labels through every source."""
import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from timm_fan import InputError
from timm_fan.data import VOC_CLASSES, create_dataset, read_coco
from timm_fan.data.classes import read_class_names
from timm_fan.data.dataset import PackedStrings, SparseLabels
from timm_fan.data.hub import HubStream
from timm_fan.data.shards import expand_shards

SPLITS = {'train': 'train2014', 'val': 'val2014'}


def write_table(coco: Path, root: Path, kind: str) -> str:
    """A COCO folder as tables; returns the --data that reads them."""
    for split, name in SPLITS.items():
        dataset = read_coco(coco, name)
        rows = []
        for i in range(len(dataset)):
            present = [dataset.class_names[j] for j in dataset.target(i).nonzero().flatten().tolist()]
            rows.append((dataset.images.name(i), present, dataset.target(i).int().tolist()))
        file = root / f'{split}.{kind.removesuffix("-wide")}'
        if kind == 'jsonl':
            file.write_text(''.join(json.dumps(dict(image=n, labels=p)) + '\n' for n, p, _ in rows))
        elif kind == 'parquet':
            datasets.Dataset.from_list([dict(image=n, labels=p) for n, p, _ in rows]).to_parquet(file)
        else:
            with open(file, 'w', newline='') as stream:
                writer = csv.writer(stream, delimiter='\t' if kind == 'tsv' else ',')
                if kind == 'csv-wide':
                    writer.writerow(['image', *dataset.class_names])
                    writer.writerows([n, *values] for n, _, values in rows)
                else:
                    writer.writerow(['image', 'labels'])
                    writer.writerows([n, ';'.join(p)] for n, p, _ in rows)
    (root / 'classes.txt').write_text('\n'.join(dataset.class_names))
    classes = '' if kind == 'csv-wide' else '&classes=classes.txt'
    return f'table:{{split}}.{kind.removesuffix("-wide")}?images={coco}{classes}'


def write_hub(coco: Path, root: Path, kind: str) -> str:
    splits = {}
    for split, name in (('train', 'train2014'), ('validation', 'val2014')):
        dataset = read_coco(coco, name)
        label = datasets.ClassLabel(names=dataset.class_names)
        rows, objects = [], []
        for i in range(len(dataset)):
            image = dict(bytes=dataset.images.read(i), path=f'{i}.jpg')
            rows.append(dict(image=image, labels=dataset.target(i).nonzero().flatten().tolist()))
            boxes, classes = dataset.boxes[i]
            objects.append([dict(bbox=b, category=c) for b, c in zip(boxes.tolist(), classes.tolist())])
        features = dict(image=datasets.Image())
        if kind == 'objects':
            rows = [dict(image=r['image'], objects=o) for r, o in zip(rows, objects)]
            features['objects'] = [dict(bbox=datasets.List(datasets.Value('float32'), 4), category=label)]
        else:
            features['labels'] = datasets.List(label)
        splits[split] = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    if kind == 'parquet':
        for split, dataset in splits.items():
            (root / 'set').mkdir(exist_ok=True)
            dataset.to_parquet(root / 'set' / f'{split}-00000.parquet')
    else:
        datasets.DatasetDict(splits).save_to_disk(root / 'set')
    return 'hub:set'


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_shards(coco: Path, root: Path, kind: str) -> str:
    for split, name in SPLITS.items():
        dataset = read_coco(coco, name)
        archives = [tarfile.open(root / f'{split}-{n:03d}.tar', 'w') for n in range(3)]
        bounds = np.linspace(0, len(dataset), 4).astype(int)
        for n, archive in enumerate(archives):
            with archive:
                for i in range(bounds[n], bounds[n + 1]):
                    present = dataset.target(i).nonzero().flatten().tolist()
                    names = [dataset.class_names[j] for j in present]
                    content = dict(json=json.dumps(dict(labels=names)), cls=' '.join(map(str, present)),
                                   txt='\n'.join(names))[kind]
                    add_member(archive, f'{i:06d}.jpg', Path(dataset.images.name(i)).read_bytes())
                    add_member(archive, f'{i:06d}.{kind}', content.encode())
    (root / 'classes.txt').write_text('\n'.join(dataset.class_names))
    return 'shards:{split}-{000..002}.tar'


WRITERS = [
    (write_table, 'csv'), (write_table, 'csv-wide'), (write_table, 'tsv'), (write_table, 'jsonl'),
    (write_table, 'parquet'), (write_hub, 'disk'), (write_hub, 'objects'), (write_hub, 'parquet'),
    (write_shards, 'json'), (write_shards, 'cls'), (write_shards, 'txt')]


def assert_same(coco: Path, root: Path, data: str) -> None:
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


@pytest.mark.parametrize('write, kind', [(write_table, 'csv'), (write_hub, 'disk'), (write_shards, 'json')])
def test_coco_mini_through_every_scheme(coco_mini, tmp_path, write, kind):
    assert_same(coco_mini, tmp_path, write(coco_mini, tmp_path, kind))


def image_folder(tmp_path, count=3):
    for i in range(count):
        Image.new('RGB', (8, 6), (20 * i, 0, 0)).save(tmp_path / f'{i}.jpg')
    return tmp_path


def test_table_infers_classes_and_knows_unknown(tmp_path):
    image_folder(tmp_path)
    (tmp_path / 'train.csv').write_text('image,cat,dog\n0.jpg,1,0\n1.jpg,-1,1.0\n2.jpg,,0\n')
    dataset = create_dataset('table', tmp_path, 'train')
    assert dataset.class_names == ['cat', 'dog']
    assert dataset.targets().tolist() == [[1, 0], [-1, 1], [-1, 0]]
    (tmp_path / 'train.jsonl').write_text(
        '{"image": "0.jpg", "labels": ["dog"], "unknown": ["cat"]}\n{"image": "1.jpg", "labels": ["bird", "dog"]}\n')
    dataset = create_dataset('table:{split}.jsonl', tmp_path, 'train')
    assert dataset.class_names == ['bird', 'cat', 'dog']
    assert dataset.targets().tolist() == [[0, -1, 1], [1, 0, 1]]
    (tmp_path / 'train.jsonl').write_text('{"image": "0.jpg", "labels": ["dog"], "absent": ["cat"]}\n')
    dataset = create_dataset('table:{split}.jsonl?unlisted=unknown', tmp_path, 'train', class_names=['a', 'cat', 'dog'])
    assert dataset.targets().tolist() == [[-1, 0, 1]]
    assert dataset.labels.counts().tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_three_broken_lines_of_ten_thousand_are_reported(tmp_path):
    image_folder(tmp_path, 1)
    names = [f'{i}.png' for i in range(10000)]
    content = (tmp_path / '0.jpg').read_bytes()
    for name in names:
        (tmp_path / name).write_bytes(content)
    lines = [f'{n},cat' for n in names]
    lines[41], lines[4998], lines[9000] = '41.png', '4998.png,horse', 'gone.png,dog'
    (tmp_path / 'train.csv').write_text('\n'.join(['image,labels', *lines]))
    with pytest.raises(InputError) as error:
        create_dataset('table', tmp_path, 'train', class_names=['cat', 'dog'])
    first, *rest = str(error.value).splitlines()
    assert '3 problems' in first and len(rest) == 3
    for where, what in (('line 43', '1 cells'), ('line 5000', 'horse'), ('line 9002', 'gone.png')):
        assert any(where + ':' in line and what in line for line in rest), (where, rest)


@pytest.mark.parametrize('text, options, words', [
    ('image,labels\n', '', ['has no line']),
    ('picture,labels\n0.jpg,cat\n', '', ['column for the image', 'picture']),
    ('image,labels\n0.jpg,cat\n', '?labels=tags', ["'tags'", 'image, labels']),
    ('image,cat,dog\n0.jpg,1,2\n', '', ['line 2', "'2'", 'dog']),
    ('image,cat\n0.jpg,1\n0.jpg,0\n', '', ['line 3', 'line 2 already']),
    ('image,labels\n0.jpg,cat\n', '?classes=none.txt', ['none.txt']),
    ('image,labels\n0.jpg,cat\n', '?colour=red', ['colour=red', 'sep']),
    ('image,labels\n0.jpg,cat\n', '?unlisted=maybe', ['maybe']),
])
def test_bad_tables_are_named(tmp_path, text, options, words):
    image_folder(tmp_path)
    (tmp_path / 'train.csv').write_text(text)
    with pytest.raises(InputError) as error:
        create_dataset('table:{split}.csv' + options, tmp_path, 'train')
    for word in words:
        assert word in str(error.value)


def test_table_of_other_classes_than_the_models(tmp_path):
    image_folder(tmp_path)
    (tmp_path / 'val.csv').write_text('image,cat,dog\n0.jpg,1,0\n')
    with pytest.raises(InputError, match='1 of 3 classes: horse'):
        create_dataset('table', tmp_path, 'val', class_names=['cat', 'dog', 'horse'])
    for data, word in (('table:labels.csv', 'split'), ('table:{split}.xlsx', 'val.xlsx')):
        with pytest.raises(InputError, match=word):
            create_dataset(data, tmp_path, 'val')


def test_shard_names():
    assert expand_shards('a-{008..011}.tar') == ['a-008.tar', 'a-009.tar', 'a-010.tar', 'a-011.tar']
    assert expand_shards('{0..1}-{0..1}.tar') == ['0-0.tar', '0-1.tar', '1-0.tar', '1-1.tar']
    assert expand_shards('a.tar') == ['a.tar']


def test_damaged_shards_are_named(coco_folder, tmp_path):
    data = write_shards(coco_folder, tmp_path, 'json')
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


def test_unreadable_member_is_named_and_the_run_goes_on(coco_folder, tmp_path, caplog):
    data = write_shards(coco_folder, tmp_path, 'json')
    dataset = create_dataset(data, tmp_path, 'val')
    shard, start, size = dataset.images.positions[3].tolist()
    with open(dataset.images.shards[shard], 'r+b') as file:
        file.seek(start)
        file.write(bytes(size))
    _, target = dataset[3]
    assert target.tolist() == [-1] * 6 and 'val-000.tar/000003.jpg' in caplog.text


def test_bad_hub_data_sets_are_named(coco_folder, tmp_path):
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


def test_stream_gives_every_image_once_an_epoch(coco_folder, tmp_path):
    data = write_hub(coco_folder, tmp_path, 'disk')
    whole = create_dataset(data, tmp_path, 'train')
    stream = create_dataset(data + '?streaming=true', tmp_path, 'train')
    stream.transform = lambda image: torch.from_numpy(np.asarray(image).copy())
    assert len(stream) == len(whole) == 34 and stream.class_names == whole.class_names
    assert torch.equal(torch.stack([t for _, t in stream]), whole.targets())
    for workers in (0, 1, 2):
        batches = list(torch.utils.data.DataLoader(stream, 4, num_workers=workers))
        assert sum(len(t) for _, t in batches) == 34
        assert torch.cat([t for _, t in batches]).sum(0).tolist() == whole.targets().sum(0).tolist()
    stream.shuffle_and_limit(32, seed=0)
    epochs = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        epochs.append(torch.stack([t for _, t in stream]))
        assert len(epochs[-1]) == 32
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])
    with pytest.raises(InputError, match='other classes'):
        create_dataset(data + '?streaming=true', tmp_path, 'val', class_names=whole.class_names[::-1])
    (tmp_path / 'files').mkdir()
    files = write_hub(coco_folder, tmp_path / 'files', 'parquet')
    with pytest.raises(InputError, match='train_length'):
        create_dataset(files + '?streaming=true', tmp_path / 'files', 'train')
    assert len(create_dataset(files + '?streaming=true&train_length=20', tmp_path / 'files', 'train')) == 20


@pytest.mark.parametrize('objects, words', [
    ([dict(bbox=[0, 0, 8, 8])], "row 1: 'objects' has none of category"),
    ([dict(category='horse-fly')], "row 1: 'horse-fly' is not one of the 2 classes"),
])
def test_broken_row_of_a_stream_is_named(coco_folder, tmp_path, objects, words):
    photo = dict(bytes=(coco_folder / 'val2014' / '0.jpg').read_bytes(), path='0.jpg')
    rows = [dict(image=photo, objects=[dict(category='a')]), dict(image=photo, objects=objects)]
    (tmp_path / 'set').mkdir()
    # as they come from Python, where rows need no common schema
    whole = datasets.IterableDataset.from_generator(lambda: iter(rows))
    stream = HubStream(whole, 'image', 'objects', ['a', 'b'], 2, [])
    with pytest.raises(InputError, match=words):
        list(stream)


def test_hub_labels_follow_the_models_names(coco_folder, tmp_path):
    data = write_hub(coco_folder, tmp_path, 'disk')
    names = read_coco(coco_folder, 'val2014').class_names
    expected = create_dataset(data, tmp_path, 'val').targets().flip(1)
    assert torch.equal(create_dataset(data, tmp_path, 'val', class_names=names[::-1]).targets(), expected)


@pytest.mark.parametrize('kind, labels', [
    (kind, labels) for kind in ('jsonl', 'shard', 'hub')
    for labels in ({'cat': 1, 'dog': 0}, [True, False], [1.0, 0.0], ['cat', None], [['cat']], True)
    if not (kind == 'hub' and isinstance(labels, dict))])  # there it is an object without a category
def test_labels_of_another_shape_are_named(tmp_path, kind, labels):
    """They would else become classes of their own, or the wrong ones."""
    photo = io.BytesIO()
    Image.new('RGB', (8, 8)).save(photo, 'jpeg')
    if kind == 'jsonl':
        (tmp_path / '0.jpg').write_bytes(photo.getvalue())
        (tmp_path / 'train.jsonl').write_text(json.dumps(dict(image='0.jpg', labels=labels)))
        data = 'table:{split}.jsonl'
    elif kind == 'shard':
        with tarfile.open(tmp_path / 'train-0.tar', 'w') as archive:
            for name, content in (('0.jpg', photo.getvalue()), ('0.json', json.dumps(dict(labels=labels)).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        data = 'shards:{split}-*.tar'
    else:
        rows = datasets.Dataset.from_dict(dict(image=[dict(bytes=photo.getvalue(), path=None)], labels=[labels]))
        datasets.DatasetDict(train=rows).save_to_disk(tmp_path / 'set')
        data = 'hub:set'
    with pytest.raises(InputError) as error:
        create_dataset(data, tmp_path, 'train')
    assert any(words in str(error.value) for words in ('neither a name nor a class index', 'must be lists'))


def test_unlabelled_rows_of_the_hub_are_not_the_last_class(tmp_path):
    feature = datasets.Features(dict(image=datasets.Image(), label=datasets.ClassLabel(names=['cat', 'dog'])))
    rows = dict(image=[Image.new('RGB', (8, 8))] * 2, label=[0, -1])
    datasets.DatasetDict(validation=datasets.Dataset.from_dict(rows, feature)).save_to_disk(tmp_path / 'set')
    with pytest.raises(InputError, match="row 1: '-1' is not one of the 2 classes"):
        create_dataset('hub:set', tmp_path, 'val', class_names=['cat', 'dog'])


def test_hub_paths_are_relative_to_the_data(coco_folder, tmp_path):
    shutil.copy(coco_folder / 'val2014' / '0.jpg', tmp_path / '0.jpg')
    datasets.Dataset.from_dict(dict(image=['0.jpg'], labels=[['cat']])).to_parquet(tmp_path / 'train.parquet')
    image, target = create_dataset(f'hub:{tmp_path}', tmp_path, 'train')[0]
    assert target.tolist() == [1] and image.size == (48, 48)


def test_tables_of_names_with_blanks_and_of_objects_with_gaps(tmp_path):
    for name in 'ab':
        Image.new('RGB', (8, 8)).save(tmp_path / f'{name}.jpg')
    (tmp_path / 'train.csv').write_text('image,labels,unknown\na.jpg,traffic light|car,\nb.jpg,car,bird|cow\n')
    train = create_dataset('table:{split}.csv', tmp_path, 'train')
    assert train.class_names == ['bird', 'car', 'cow', 'traffic light']
    assert train.targets().tolist() == [[0, 1, 0, 1], [-1, 1, -1, 0]]
    (tmp_path / 'val.csv').write_text('image,labels\na.jpg,traffic light\n')
    val = create_dataset('table:{split}.csv', tmp_path, 'val', class_names=train.class_names)
    assert val[0][1].tolist() == [0, 0, 0, 1]
    (tmp_path / 'train.jsonl').write_text('{"image": "a.jpg", "cat": 1}\n{"image": "b.jpg", "dog": 1, "cat": 0}\n')
    wide = create_dataset('table:{split}.jsonl', tmp_path, 'train')
    assert wide.class_names == ['cat', 'dog'] and wide.targets().tolist() == [[1, -1], [0, 1]]


def test_broken_tables_are_named(tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.jpg')
    (tmp_path / 'train.csv').write_text('image,cat,cat\na.jpg,1,0\n')
    with pytest.raises(InputError, match="several columns 'cat'"):
        create_dataset('table:{split}.csv', tmp_path, 'train')
    (tmp_path / 'train.jsonl').write_text('{"image": {"bytes": "x"}, "labels": ["cat"]}\n')
    with pytest.raises(InputError, match='line 1: .*is no path of an image'):
        create_dataset('table:{split}.jsonl', tmp_path, 'train')
    file = tmp_path / 'train.parquet'
    datasets.Dataset.from_dict(dict(image=['a.jpg'] * 1000, labels=[['cat']] * 1000)).to_parquet(file)
    content = bytearray(file.read_bytes())
    content[4:40] = b'\xff' * 36
    file.write_bytes(content)
    with pytest.raises(InputError, match='train.parquet is not a Parquet file, or damaged'):
        create_dataset('table:{split}.parquet', tmp_path, 'train')


def test_class_lists_from_windows(tmp_path):
    (tmp_path / 'classes.txt').write_bytes('\ufeffkatze\r\nhund\r\n'.encode())
    assert read_class_names(tmp_path / 'classes.txt') == ['katze', 'hund']
    (tmp_path / 'classes.txt').write_bytes('vögel\n'.encode('latin-1'))
    with pytest.raises(InputError, match='not UTF-8'):
        read_class_names(tmp_path / 'classes.txt')


def test_shards_in_a_folder_with_brackets_and_windows_lines(coco_folder, tmp_path):
    folder = tmp_path / 'set [1]'
    folder.mkdir()
    with tarfile.open(folder / 'train-0.tar', 'w') as archive:
        archive.add(coco_folder / 'val2014' / '0.jpg', '0.jpg')
        member = tarfile.TarInfo('0.txt')
        member.size = 10
        archive.addfile(member, io.BytesIO(b'cat\r\ndog\r\n'))
    assert create_dataset('shards:{split}-*.tar', folder, 'train').class_names == ['cat', 'dog']


@pytest.mark.parametrize('change, words', [
    (lambda c: c['images'][1].update(id=c['images'][0]['id']), "several of 'images' have id 0"),
    (lambda c: c['categories'][1].update(id=c['categories'][0]['id']), "several of 'categories' have id 3"),
    (lambda c: c['categories'][1].update(name=c['categories'][0]['name']), "several of 'categories' have name"),
    (lambda c: c['images'][1].update(id='one'), "some of 'images' have a number and some a text"),
])
def test_merged_coco_files_need_new_ids(coco_folder, tmp_path, change, words):
    root = shutil.copytree(coco_folder, tmp_path / 'coco')
    file = root / 'annotations' / 'instances_val2014.json'
    content = json.loads(file.read_text())
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] > 1]
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=words):
        read_coco(root, 'val2014')


def write_devkit(root: Path, year: int, sets) -> None:
    folder = root / 'VOCdevkit' / f'VOC{year}'
    for name in ('ImageSets/Main', 'Annotations', 'JPEGImages'):
        (folder / name).mkdir(parents=True)
    for image_set, images in sets.items():
        (folder / 'ImageSets' / 'Main' / f'{image_set}.txt').write_text('\n'.join(images) + '\n')
        for name, objects in images.items():
            Image.new('RGB', (60, 40)).save(folder / 'JPEGImages' / f'{name}.jpg')
            (folder / 'Annotations' / f'{name}.xml').write_text(
                '<annotation><size><width>60</width><height>40</height><depth>3</depth></size>' + ''.join(
                    f'<object><name>{c}</name><difficult>{d}</difficult><bndbox><xmin>1</xmin><ymin>2</ymin>'
                    '<xmax>10</xmax><ymax>20</ymax></bndbox></object>' for c, d in objects) + '</annotation>')


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


def test_packed_strings_and_labels():
    strings = ['', 'a', 'größer', 'x/y.jpg']
    assert list(PackedStrings(strings)) == strings
    labels = SparseLabels([((0, 2), (), ()), ((), (1,), (2,)), ((), (), ())], 3)
    assert torch.stack([labels.target(i) for i in range(3)]).tolist() == [[1, 0, 1], [0, 0, -1], [0, 0, 0]]
    assert labels.counts().tolist() == [[1, 0, 1], [2, 3, 1], [0, 0, 1]]


def test_labels_of_open_images_size_stay_small():
    # 9,605 classes, 20 verified labels an image; dense float32 targets would take 38 kB an image
    rng = np.random.default_rng(0)
    rows = (((rng.integers(9605),), rng.integers(9605, size=19).tolist(), ()) for _ in range(2000))
    labels = SparseLabels(rows, 9605, default=-1.)
    assert (labels.ends.nbytes + labels.classes.nbytes + labels.values.nbytes) / 2000 < 120
    assert labels.target(1999).shape == (9605,)


def test_a_table_cannot_name_files_elsewhere(coco_folder, tmp_path):
    (tmp_path / 'data').mkdir()
    for path in ('/etc/passwd', '../secret.jpg', 'a/../../secret.jpg', str(tmp_path / 'data2' / 'x.jpg')):
        (tmp_path / 'data' / 'train.csv').write_text(f'image,labels\n{path},cat\n')
        with pytest.raises(InputError, match='outside'):
            create_dataset('table', tmp_path / 'data', 'train')


def test_a_voc_list_cannot_name_files_elsewhere(tmp_path):
    (tmp_path / 'ImageSets' / 'Main').mkdir(parents=True)
    (tmp_path / 'ImageSets' / 'Main' / 'trainval.txt').write_text('../../secret\n')
    with pytest.raises(InputError, match='../../secret'):
        create_dataset('voc2007', tmp_path, 'train')


def test_a_hub_data_set_cannot_name_files_elsewhere(coco_folder, tmp_path):
    (tmp_path / 'set').mkdir()
    rows = [dict(image=str(coco_folder / 'val2014' / '0.jpg'), labels=['cat'])]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / 'set' / 'train-00000.parquet')
    dataset = create_dataset('hub:set', tmp_path, 'train')
    reasons = []
    dataset.on_unreadable = lambda name, error: reasons.append(str(error))
    assert dataset[0][1].tolist() == [-1] and 'outside' in reasons[0]


def test_a_shard_cannot_leave_itself(coco_folder, tmp_path):
    """Members are read by position, never unpacked; links are no samples."""
    photo = (coco_folder / 'val2014' / '0.jpg').read_bytes()
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
