import json
import shutil

import pytest
import timm
from helpers import run_here
from PIL import Image
from timm.data import resolve_model_data_config

from timm_fan.data import read_coco
from timm_fan.models import save_model


@pytest.fixture(scope='module')
def models(coco_folder, tmp_path_factory):
    """A FAN and its bare backbone, untrained."""
    names = read_coco(coco_folder, 'val2014').class_names
    folders = []
    for kwargs in (dict(embed_dim=16, cln=True), dict(frn=False)):
        model = timm.create_model('fan', backbone='test_resnet', num_classes=len(names), **kwargs)
        folders.append(tmp_path_factory.mktemp('models') / 'model')
        config = resolve_model_data_config(model, args=dict(img_size=64))
        save_model(model, folders[-1], names, config)
    return folders


def test_pictures_of_files_with_the_same_name(monkeypatch, tmp_path):
    model = timm.create_model('fan', backbone='test_resnet', embed_dim=16, num_classes=3)
    save_model(model, tmp_path / 'model', ['a', 'b', 'c'], dict(input_size=(3, 64, 64)))
    files = [tmp_path / name for name in ('one/photo.png', 'two/photo.png', 'two/photo-2.png')]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        Image.new('RGB', (70, 64)).save(file)
    assert run_here(monkeypatch, 'explain', tmp_path / 'model', *files, '--output', tmp_path / 'maps') == 0
    assert {p.name for p in (tmp_path / 'maps').iterdir()} == {'photo.png', 'photo-2.png', 'photo-2-2.png'}


def test_folder_of_images(monkeypatch, capsys, models, tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    for name in ('a.png', 'b.jpg'):
        Image.new('RGB', (70, 64)).save(folder / name)
    (folder / 'broken.jpg').write_bytes(b'')
    assert run_here(monkeypatch, 'explain', models[0], folder, '--output', tmp_path / 'maps') == 0
    assert {p.name for p in (tmp_path / 'maps').iterdir()} == {'a.png', 'b.png'}
    assert f'unreadable image {folder / "broken.jpg"}' in capsys.readouterr().err
    content = (folder / 'a.png').read_bytes()
    assert run_here(monkeypatch, 'explain', models[0], folder, '--output', folder) == 2
    assert f'--output {folder} is the folder of the images' in capsys.readouterr().err
    assert (folder / 'a.png').read_bytes() == content


def test_program_draws_and_measures(monkeypatch, capsys, models, coco_folder, tmp_path):
    options = ['--beside', models[1], '--data', 'coco2014', '--data-dir', coco_folder, '--num-images', '2']
    assert run_here(monkeypatch, 'explain', models[0], *options, '--output', tmp_path / 'maps') == 0
    assert sorted(p.name for p in (tmp_path / 'maps').iterdir()) == ['000000.png', '000012.png', 'localization.json']
    records = json.loads((tmp_path / 'maps' / 'localization.json').read_text())
    assert [r['model'] for r in records] == [str(folder) for folder in models]
    assert all(0 <= r['pointing'] <= 1 and 0 < r['labels'] for r in records)
    assert records[0]['area'] == records[1]['area']
    assert capsys.readouterr().out.count('pointing game') == 2

    photo = coco_folder / 'val2014' / '000003.jpg'
    options = ['--labels', 'tree', '--maps', 'attention', '--output', tmp_path / 'one']
    assert run_here(monkeypatch, 'explain', models[0], photo, *options) == 0
    assert Image.open(tmp_path / 'one' / '000003.png').width > 300


def test_unreadable_images_of_the_data_are_left_out(monkeypatch, capsys, models, coco_folder, tmp_path):
    data = shutil.copytree(coco_folder, tmp_path / 'coco')
    (data / 'val2014' / '000000.jpg').write_bytes(b'')
    options = ['--data', 'coco2014', '--data-dir', data, '--num-images', '2', '--output', tmp_path / 'maps']
    assert run_here(monkeypatch, 'explain', models[0], *options) == 0
    assert sorted(p.name for p in (tmp_path / 'maps').iterdir()) == ['000012.png', 'localization.json']
    assert '000000.jpg' in capsys.readouterr().out


def test_without_boxes_there_are_pictures_only(monkeypatch, capsys, models, coco_folder, tmp_path):
    name = read_coco(coco_folder, 'val2014').class_names[0]
    (tmp_path / 'labels_val.csv').write_text(f'image,labels\nval2014/000003.jpg,{name}\n')
    data = f'table:labels_{{split}}.csv?images={coco_folder}'
    options = ['--data', data, '--data-dir', tmp_path, '--output', tmp_path / 'maps']
    assert run_here(monkeypatch, 'explain', models[0], *options) == 0
    assert [p.name for p in (tmp_path / 'maps').iterdir()] == ['000000.png']
    assert 'no boxes in table:' in capsys.readouterr().out


@pytest.mark.parametrize('args, message', [
    (['FAN'], 'Give image files or --data.'),
    (['FAN', 'PHOTO', '--labels', 'cat'], "--labels: the model has no label 'cat'. It has: "),
    (['BACKBONE', 'PHOTO', '--maps', 'attention'], 'Only a FAN with a CLN has attention to show, this model has none.'),
    (['FAN', 'none.jpg'], 'none.jpg'),
    (['FAN', 'broken.jpg'], 'unreadable image broken.jpg'),
    (['runs/none', 'PHOTO'], 'No image file or folder runs/none'),
    (['run', 'PHOTO'], 'run contains no config.json'),
    (['runs/none', '--data', 'scenes'], 'No model runs/none'),
    (['FAN', 'PHOTO', '--device', 'nothing'], '--device nothing is not a device of PyTorch'),
])
def test_mistakes_end_in_one_message(monkeypatch, capsys, models, coco_folder, tmp_path, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'broken.jpg').write_bytes(b'')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.yaml').write_text('epochs: 2')
    places = dict(FAN=models[0], BACKBONE=models[1], PHOTO=coco_folder / 'val2014' / '000003.jpg')
    assert run_here(monkeypatch, 'explain', *(places.get(arg, arg) for arg in args), '--output', 'maps') == 2
    error = capsys.readouterr().err
    assert message in error and 'Traceback' not in error
