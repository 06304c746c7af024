"""inspect_data.py as a user runs it."""
import json

from helpers import run_here, write_table


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


def test_all_problems_are_listed(monkeypatch, capsys, coco_folder, tmp_path):
    data = write_table(coco_folder, tmp_path, 'csv')
    lines = (tmp_path / 'val.csv').read_text().splitlines()
    (tmp_path / 'val.csv').write_text('\n'.join([*lines, *[f'{i}.jpg,horse' for i in range(30)]]))
    assert run_here(monkeypatch, 'inspect_data', '--data', data, '--data-dir', tmp_path) == 2
    captured = capsys.readouterr()
    assert captured.out.count("'horse' is not one of the 6 classes") == 30 and '60 problems' in captured.err
