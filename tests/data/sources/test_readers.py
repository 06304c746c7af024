"""Formats of annotation tools, written as the tools write them."""
import json
import os
import shutil

import pytest
from PIL import Image

from timm_fan import InputError
from timm_fan.data import create_dataset, create_splits

NAMES = ['cat', 'dog', 'traffic light']
LABELS = {'a.jpg': ['cat'], 'b.png': ['cat', 'traffic light'], 'c.jpg': [], 'd.jpg': ['dog']}
TARGETS = [[1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 1, 0]]


def write_images(folder, names=tuple(LABELS)):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new('RGB', (20, 10), (40 * i, 10 * len(folder.name), 99)).save(folder / name)


def read(data, folder, split='train'):
    dataset = create_dataset(data, folder, split)
    names = [dataset.images.name(i).rpartition('/')[2] for i in range(len(dataset))]
    order = sorted(range(len(names)), key=lambda i: names[i])
    for i in range(len(dataset)):
        dataset.load(i)
    return [names[i] for i in order], dataset.class_names, dataset.targets()[order].tolist()


EXPECTED = (sorted(LABELS), NAMES, TARGETS)


def test_text_files(tmp_path):
    write_images(tmp_path / 'train')
    for name, labels in LABELS.items():
        (tmp_path / 'train' / name).with_suffix('.txt').write_text('\n'.join(labels))
    assert read('txt', tmp_path) == EXPECTED
    assert read('txt:train?val=0.5&train=train', tmp_path)[1] == NAMES
    (tmp_path / 'train' / 'b.txt').write_text('cat, traffic light')
    assert read('txt', tmp_path) == EXPECTED
    assert read('txt:train?val=0.5', tmp_path)[1] == NAMES
    (tmp_path / 'train' / 'c.txt').unlink()
    with pytest.raises(InputError, match="c.jpg: no file 'c.txt'"):
        read('txt', tmp_path)
    with pytest.raises(InputError, match='No folder .*val'):
        read('txt', tmp_path, 'val')


def test_class_folders_with_links_and_copies(tmp_path):
    write_images(tmp_path / 'all')
    for name in NAMES:
        (tmp_path / 'train' / name).mkdir(parents=True)
    for name, labels in LABELS.items():
        for number, label in enumerate(labels):
            target = tmp_path / 'train' / label / name
            if number == 0:
                shutil.copy(tmp_path / 'all' / name, target)
            else:
                os.symlink(tmp_path / 'train' / labels[0] / name, target)
    (tmp_path / 'train' / 'cat' / '._a.jpg').write_bytes(b'\0\5\26\7')
    os.symlink(tmp_path / 'gone.jpg', tmp_path / 'train' / 'dog' / 'gone.jpg')
    expected = (['a.jpg', 'b.png', 'd.jpg'], NAMES, [TARGETS[i] for i in (0, 1, 3)])
    assert read('folders', tmp_path) == expected
    (tmp_path / 'train' / 'traffic light' / 'b.png').unlink()
    shutil.copy(tmp_path / 'all' / 'b.png', tmp_path / 'train' / 'traffic light' / 'b.png')
    assert read('folders', tmp_path) == expected


@pytest.mark.parametrize('names', [NAMES, dict(enumerate(NAMES))])
@pytest.mark.parametrize('train', ['images/train', ['images/train'], '../images/train', 'train.txt'])
def test_yolo(tmp_path, names, train):
    write_images(tmp_path / 'images' / 'train')
    (tmp_path / 'labels' / 'train').mkdir(parents=True)
    (tmp_path / 'train.txt').write_text(''.join(f'./images/train/{name}\n' for name in LABELS))
    for name, labels in LABELS.items():
        if labels:  # YOLO has no file for an image without objects
            lines = [f'{NAMES.index(label)} 0.5 0.5 0.2 0.3\n' for label in labels + labels]
            (tmp_path / 'labels' / 'train' / name).with_suffix('.txt').write_text(''.join(lines))
    (tmp_path / 'data.yaml').write_text(json.dumps(dict(names=names, nc=3, train=train, val='images/none')))
    assert read('yolo', tmp_path) == EXPECTED
    with pytest.raises(InputError, match='No folder or list of images .*none'):
        read('yolo', tmp_path, 'val')
    (tmp_path / 'labels' / 'train' / 'd.txt').write_text('3 0.5 0.5 1 1\n')
    with pytest.raises(InputError, match="d.txt: line 1: '3' is not a class index below 3"):
        read('yolo', tmp_path)
    shutil.rmtree(tmp_path / 'labels')
    with pytest.raises(InputError, match='No image of .* has a text file of labels'):
        read('yolo', tmp_path)


def test_label_studio(tmp_path):
    write_images(tmp_path / 'media')
    tasks = []
    for i, (name, labels) in enumerate(LABELS.items()):
        path = ['/data/upload/3/0a1b2c3d-{}', '/data/local-files/?d=media/{}', 'https://example.org/media/{}', '{}'][i]
        choices = [dict(type='choices', value=dict(choices=labels))] if i % 2 else [
            dict(type='rectanglelabels', value=dict(x=1, y=1, width=5, height=5, rectanglelabels=[label]))
            for label in labels]
        annotations = [dict(result=choices), dict(result=[], was_cancelled=True)]
        tasks.append(dict(id=i + 1, data=dict(image=path.format(name)), annotations=annotations))
    tasks.append(dict(id=9, data=dict(image='a.jpg'), annotations=[]))
    (tmp_path / 'export.json').write_text(json.dumps(tasks))
    assert read('label_studio:export.json?images=media&val=0.5&train=x', tmp_path)[1] == NAMES
    whole = 'label_studio:{split}.json?train=export&images=media'
    assert read(whole, tmp_path) == EXPECTED
    tasks[0]['annotations'].append(dict(result=[dict(type='choices', value=dict(choices=['dog']))]))
    (tmp_path / 'export.json').write_text(json.dumps(tasks))
    with pytest.raises(InputError, match='task 1: its annotations disagree'):
        read(whole, tmp_path)
    minimal = [dict(image=f'/data/upload/3/0a1b2c3d-{name}', id=i, choice=labels[0] if len(labels) == 1 else
                    dict(choices=labels)) for i, (name, labels) in enumerate(LABELS.items())]
    (tmp_path / 'train.json').write_text(json.dumps(minimal))
    assert read('table:{split}.json?images=media', tmp_path) == EXPECTED


def coco(names=NAMES, first=1):
    images = [dict(id=str(i), file_name=name) for i, name in enumerate(LABELS)]
    annotations = [
        dict(image_id=i, category_id=NAMES.index(label) + first) for i, labels in enumerate(LABELS.values())
        for label in labels]
    categories = [dict(id=i + first, name=name, supercategory='things') for i, name in enumerate(names)]
    return dict(images=images, annotations=annotations, categories=categories)


def test_coco_of_roboflow_and_cvat(tmp_path):
    write_images(tmp_path / 'train')
    content = coco()
    content['categories'].insert(0, dict(id=0, name='things', supercategory='none'))
    (tmp_path / 'train' / '_annotations.coco.json').write_text(json.dumps(content))
    assert read('coco', tmp_path) == EXPECTED
    write_images(tmp_path / 'cvat' / 'images')
    (tmp_path / 'cvat' / 'annotations').mkdir()
    (tmp_path / 'cvat' / 'annotations' / 'instances_default.json').write_text(json.dumps(coco()))
    assert read('coco:cvat/annotations/instances_default.json?val=0.5', tmp_path)[1] == NAMES
    assert read('coco:cvat/annotations/instances_{split}.json?train=default', tmp_path) == EXPECTED


def voc(labels, name):
    objects = ''.join(f'<object><name>{label}</name></object>' for label in labels)
    return f'<annotation><filename>{name}</filename>{objects}</annotation>'


@pytest.mark.parametrize('folders', [('', ''), ('Annotations', 'JPEGImages'), ('Annotations', 'images')])
def test_voc_folders_of_other_classes(tmp_path, folders):
    annotations, images = (tmp_path / 'train' / folder for folder in folders)
    write_images(images)
    annotations.mkdir(exist_ok=True)
    for name, labels in LABELS.items():
        (annotations / name).with_suffix('.xml').write_text(voc(labels, name))
    assert read('voc', tmp_path) == EXPECTED
    with pytest.raises(InputError, match=r"unknown classes: 'traffic light' \(1\)"):
        read('voc?classes=cat,dog', tmp_path)


def test_roboflows_table(tmp_path):
    for split in ('train', 'valid'):
        write_images(tmp_path / split)
        lines = ['filename, cat, dog, traffic light', *(
            ', '.join([name, *(str(int(n in labels)) for n in NAMES)]) for name, labels in LABELS.items())]
        (tmp_path / split / '_classes.csv').write_text('\n'.join(lines))
    train, val = create_splits('table:{split}/_classes.csv', tmp_path)
    assert train.class_names == NAMES and train.targets().tolist() == val.targets().tolist() == TARGETS
    assert 'valid' in val.images.name(0)


def test_nih_and_chexpert(tmp_path):
    write_images(tmp_path / 'images')
    (tmp_path / 'train.csv').write_text(
        'Image Index,Finding Labels,Follow-up #,Patient ID\na.jpg,cat,0,1\nb.png,cat|traffic light,1,1\n'
        'c.jpg,No Finding,0,2\nd.jpg,dog,0,3\n')
    assert read('table?images=images', tmp_path)[1] == ['No Finding', *NAMES]
    (tmp_path / 'train.csv').write_text(
        'Path,Sex,Age,cat,dog,traffic light\nCheXpert-v1.0-small/train/a.jpg,Female,68,1.0,,0.0\n'
        'CheXpert-v1.0-small/train/b.png,Male,7,0.0,-1.0,1.0\n')
    with pytest.raises(InputError, match='columns that are no classes.*: Sex, Age'):
        read('table?images=images', tmp_path)
    assert read('table?images=images&classes=cat,dog,traffic light', tmp_path)[2] == [[1, -1, 0], [0, -1, 1]]


def test_folders_of_data_without_splits(tmp_path):
    for name, labels in LABELS.items():
        for label in labels:
            write_images(tmp_path / label, [name])
    write_images(tmp_path / 'cat' / '.ipynb_checkpoints')
    write_images(tmp_path / '__MACOSX')
    train, val = create_splits('folders?val=0.4', tmp_path)
    assert train.class_names == NAMES and len(train) + len(val) == 3  # a.jpg and d.jpg are the same
    for split in ('train', 'val'):
        write_images(tmp_path / 'splits' / split)
    with pytest.raises(InputError, match='folders of splits, not of classes'):
        read('folders:splits?val=0.5', tmp_path)


def test_yolo_lists_of_other_machines(tmp_path):
    write_images(tmp_path / 'Images')
    (tmp_path / 'labels').mkdir()
    for name, labels in LABELS.items():
        text = ''.join(f'{NAMES.index(label)} 0.5 0.5 0.2 0.3\n' for label in labels)
        (tmp_path / 'labels' / name).with_suffix('.TXT').write_text(text)
    (tmp_path / 'data.yaml').write_text(json.dumps(dict(names=NAMES, train='train.txt')))
    for prefix in ('/content/data/Images/', 'C:\\data\\Images\\', 'data/Images/'):
        (tmp_path / 'train.txt').write_text(''.join(f'{prefix}{name}\n' for name in LABELS))
        assert read('yolo', tmp_path) == EXPECTED
    for wrong in (dict(names=['yes', True, 'no']), dict(names=NAMES, nc=4)):
        (tmp_path / 'data.yaml').write_text(json.dumps(dict(train='train.txt', **wrong)))
        with pytest.raises(InputError, match='truth value|nc is 4'):
            read('yolo', tmp_path)


def test_text_files_of_yolo_are_not_labels(tmp_path):
    write_images(tmp_path / 'train')
    for name in LABELS:
        (tmp_path / 'train' / name).with_suffix('.txt').write_text('0 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.2 0.2\n')
    with pytest.raises(InputError, match="have YOLO's format"):
        read('txt', tmp_path)


@pytest.mark.parametrize('result, words', [
    (dict(type='choices', value=dict(choices='cat')), None), (dict(type='relation', direction='right'), None),
    (dict(type='choices', value=dict(choices=None)), 'has no names of classes'),
    (dict(type='taxonomy', value=dict(taxonomy=[['cat', 'red']])), "a result of type 'taxonomy' cannot be read")])
def test_results_of_label_studio(tmp_path, result, words):
    write_images(tmp_path, ['a.jpg'])
    annotation = dict(result=[result, dict(type='choices', value=dict(choices=['cat ']))])
    task = dict(id=1, data=dict(photo='a.jpg', text='a cat'), annotations=[annotation])
    (tmp_path / 'train.json').write_text(json.dumps([task]))
    if words:
        with pytest.raises(InputError, match=words):
            read('label_studio:{split}.json', tmp_path)
    else:
        assert read('label_studio:{split}.json', tmp_path)[1:] == (['cat'], [[1]])
    task['data']['other'] = 'b.jpg'
    (tmp_path / 'train.json').write_text(json.dumps([task]))
    with pytest.raises(InputError, match='its data has 2 paths of images|cannot be read|no names'):
        read('label_studio:{split}.json', tmp_path)
