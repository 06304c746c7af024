"""inspect_data.py as a user runs it."""
import json

from helpers import run_here, write_table
from PIL import Image


def test_counts_of_both_splits_are_printed(monkeypatch, capsys, coco_folder):
    assert run_here(monkeypatch, 'inspect_data', '--data', 'coco2014', '--data-dir', coco_folder) == 0
    out = capsys.readouterr().out
    assert 'train: 34 images, 6 classes' in out and '0 images are in both splits' in out


def test_images_in_both_splits_are_found(monkeypatch, capsys, coco_folder, tmp_path):
    data = write_table(coco_folder, tmp_path, 'csv')
    moved = (tmp_path / 'train.csv').read_text().splitlines()[5]
    lines = (tmp_path / 'val.csv').read_text().splitlines()
    (tmp_path / 'val.csv').write_text('\n'.join([*lines, moved]))
    options = ['--data', data, '--data-dir', tmp_path]
    assert run_here(monkeypatch, 'inspect_data', *options, '--json', '--figures', tmp_path / 'figures') == 0
    report = json.loads(capsys.readouterr().out)
    assert report['val']['num_images'] == 14 and [pair[0] for pair in report['overlap']] == [moved.split(',')[0]]
    assert (tmp_path / 'figures' / 'co_occurrence.png').is_file()


def test_problems_of_a_kind_are_counted(monkeypatch, capsys, coco_folder, tmp_path):
    data = write_table(coco_folder, tmp_path, 'csv')
    lines = (tmp_path / 'val.csv').read_text().splitlines()
    (tmp_path / 'val.csv').write_text('\n'.join([*lines, *[f'{i}.jpg,horse' for i in range(30)]]))
    assert run_here(monkeypatch, 'inspect_data', '--data', data, '--data-dir', tmp_path) == 2
    text = capsys.readouterr().err
    assert '60 problems' in text and text.count('and 25 more of this kind') == 2 and len(text.splitlines()) < 16
    assert "'horse' is not one of the 6 classes" in text


def test_the_command_to_train_and_doubtful_names(monkeypatch, capsys, tmp_path):
    for i in range(10):
        Image.new('RGB', (8, 8), (i, 0, 0)).save(tmp_path / f'{i}.png')
    labels = ['cat', 'Cat', 'traffic light', 'traffic_light', 'dog'] + ['cat'] * 5
    (tmp_path / 'labels.csv').write_text('image,labels\n' + ''.join(f'{i}.png,{x}\n' for i, x in enumerate(labels)))
    data = 'table:labels.csv?val=0.2&sep=|'
    assert run_here(monkeypatch, 'inspect_data', '--data', data, '--data-dir', tmp_path) == 0
    text = capsys.readouterr().out
    assert f"train.py --config photos --data '{data}' --data-dir {tmp_path}" in text
    assert "2 classes have names that only differ in case, blanks or hyphens: 'Cat' = 'cat'" in text
    assert 'classes are in one training image only' in text
