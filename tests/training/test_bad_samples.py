"""Images that cannot be read: listed, and too many of them."""
import json
import shutil
from pathlib import Path

from helpers import SCRIPTS, TINY, launch, run_here

from timm_fan.training.bad_samples import BadSamples


def spoil(coco: Path, target: Path, count: int) -> Path:
    """A copy of a data set whose first training images are empty files."""
    data = shutil.copytree(coco, target)
    for file in sorted((data / 'train2014').iterdir())[:count]:
        file.write_bytes(b'')
    return data


def test_unreadable_images_are_listed_once(coco_folder, tmp_path):
    data, run = spoil(coco_folder, tmp_path / 'coco', 3), tmp_path / 'run'
    bad = data / 'val2014' / '000007.jpg'
    bad.write_bytes(bad.read_bytes()[:400])
    options = [*TINY, '--workers', '2', '--epochs', '3', '--batch-size', '17']
    result = launch(SCRIPTS / 'train.py', *options, '--data-dir', data, '--output', run)
    entries = [json.loads(line) for line in (run / 'bad_samples.jsonl').read_text().splitlines()]
    names = [str(data / 'train2014' / f'{i:06d}.jpg') for i in range(3)] + [str(bad)]
    assert sorted(e['image'] for e in entries) == sorted(names)
    assert [e['split'] for e in entries].count('val') == 1 and all('Error' in e['reason'] for e in entries)
    assert 'unreadable images so far: 4, see' in result.stdout


def test_damaged_jpegs_are_listed(monkeypatch, coco_folder, tmp_path):
    data, run = shutil.copytree(coco_folder, tmp_path / 'coco'), tmp_path / 'run'
    files = [data / 'train2014' / f'{i:06d}.jpg' for i in range(3)]
    for file in files:
        content = bytearray(file.read_bytes())
        start = content.index(b'\xff\xc4') + 4  # a Huffman table
        content[start + 1:start + 17] = b'\xff' * 16
        file.write_bytes(content)
    assert run_here(monkeypatch, 'train', *TINY, '--data-dir', data, '--output', run, '--no-report') == 0
    listed = [json.loads(line)['image'] for line in (run / 'bad_samples.jsonl').read_text().splitlines()]
    assert sorted(listed) == list(map(str, files))


def test_too_many_unreadable_images_end_the_run(monkeypatch, capsys, coco_folder, tmp_path):
    data = spoil(coco_folder, tmp_path / 'coco', 12)
    for workers in ('0', '2'):  # the error of a worker comes without its traceback
        run = tmp_path / f'run{workers}'
        assert run_here(
            monkeypatch, 'train', *TINY, '--workers', workers, '--data-dir', data, '--output', run) == 2
        error = capsys.readouterr().err
        assert 'More than 10 train images cannot be read' in error and 'Traceback' not in error.split('error: ')[-1]
        assert '--max-bad-samples' in error and str(run / 'bad_samples.jsonl') in error
    allowed = ['--max-bad-samples', '0.5', '--output', tmp_path / 'allowed', '--no-report']
    assert run_here(monkeypatch, 'train', *TINY, '--data-dir', data, *allowed) == 0


def test_truncated_images_are_reported_and_ignored(monkeypatch, coco_folder, tmp_path, capsys):
    data = shutil.copytree(coco_folder, tmp_path / 'coco')
    train, val = data / 'train2014' / '000005.jpg', data / 'val2014' / '000007.jpg'
    for file in (train, val):
        file.write_bytes(file.read_bytes()[:400])
    options = [*TINY, '--workers', '1', '--data-dir', data, '--output', tmp_path / 'run']
    assert run_here(monkeypatch, 'train', *options) == 0
    log = (tmp_path / 'run' / 'train.log').read_text()
    assert 'unreadable image' in log and str(train) in log
    scores = json.loads((tmp_path / 'run' / 'report' / 'metrics.json').read_text())
    assert (scores['num_images'], scores['num_unlabelled']) == (12, 1)
    capsys.readouterr()
    assert run_here(monkeypatch, 'predict', tmp_path / 'run', val.parent) == 0
    output = capsys.readouterr()
    assert str(val) in output.err and f'{val}: unreadable' in output.out and output.out.count('\n') == 13


def test_a_list_with_an_incomplete_line_is_read(tmp_path):
    bad = BadSamples(tmp_path / 'bad.jsonl')
    bad.add('train', 9, 'a.jpg', OSError('no'))
    (tmp_path / 'bad.jsonl').write_text((tmp_path / 'bad.jsonl').read_text() + '{"split": "tr')
    assert [e['image'] for e in bad.read()] == ['a.jpg']
