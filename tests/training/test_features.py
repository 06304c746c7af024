"""Training on the maps of a frozen backbone, which are computed once."""
import json
import os
import shutil
from pathlib import Path

import pytest
import timm
import torch
from helpers import SCRIPTS, TINY, history, launch, run_here, run_killed
from PIL import Image
from safetensors.torch import load_file, save_file

from timm_fan.data import MultiLabelDataset
from timm_fan.training import features

NO_BACKBONE = [o for o in TINY if o not in ('--backbone', 'test_resnet')]
FROZEN = ['--backbone-lr', '0', '--no-report', '--min-crop', '0.5']
OPTIONS = [*TINY, *FROZEN, '--cache-features', '2']


def weights(run: Path) -> dict:
    return load_file(run / 'last' / 'model.safetensors')


def assert_close(a: dict, b: dict, atol: float) -> None:
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], atol=atol, rtol=0.01, msg=lambda text, name=name: f'{name} {text}')


def views(folder: Path) -> dict:
    return {file.parent.name: os.stat(file).st_mtime_ns for file in folder.glob('*/maps.bin')}


@pytest.mark.parametrize('model', [
    ['--backbone', 'test_resnet'],
    ['--backbone', 'test_vit', '--model-kwargs', 'embed_dim=32'],
    ['--backbone', 'test_convnext', '--ema-decay', '0.9', '--mixed-precision', 'bf16', '--model-kwargs', 'lite=false'],
    ['--model', 'test_vit', '--grad-accum-steps', '2'],
    ['--model', 'test_efficientnet', '--torchcompile', 'eager', '--val-img-size', '64'],
])
def test_the_first_epoch_is_that_on_images(monkeypatch, coco_folder, tmp_path, model):
    """Its view is the one that seed 0 draws, so that only the rounding of the maps differs. Then views are repeated."""
    options = [*NO_BACKBONE, *FROZEN, *model, '--data-dir', coco_folder, '--epochs', '1']
    assert run_here(monkeypatch, 'train', *options, '--output', tmp_path / 'images') == 0
    assert run_here(monkeypatch, 'train', *options, '--output', tmp_path / 'maps', '--cache-features', '2') == 0
    assert_close(weights(tmp_path / 'images'), weights(tmp_path / 'maps'), atol=0.02)
    for column in ('train_loss', 'val_loss'):
        images, maps = (float(history(tmp_path / run)[0][column]) for run in ('images', 'maps'))
        assert images == pytest.approx(maps, rel=0.02)


def test_runs_share_their_maps(monkeypatch, coco_folder, tmp_path):
    """Heads, rates, labels and seeds do not change them; views, sizes, images and augmentation do."""
    cache = tmp_path / 'features'
    data = shutil.copytree(coco_folder, tmp_path / 'coco')
    options = [*OPTIONS, '--data-dir', data, '--epochs', '1', '--head-init-bias', '0', '--backbone-weights']
    save_file(timm.create_model('test_resnet').state_dict(), tmp_path / 'w.safetensors')

    def train(*args) -> int:
        run = tmp_path / f'run{len(list(tmp_path.glob("run*")))}'
        assert run_here(monkeypatch, 'train', *options, tmp_path / 'w.safetensors', '--output', run, *args) == 0
        log = (run / 'train.log').read_text()
        assert ('bytes in' in log) == (len(views(cache)) > counts[-1])
        counts.append(len(views(cache)))
        return counts[-1] - counts[-2]

    counts = [0]
    assert train() == 3
    before = views(cache)
    file = data / 'annotations' / 'instances_train2014.json'
    content = json.loads(file.read_text())
    content['annotations'] = content['annotations'][:-1]
    file.write_text(json.dumps(content))
    assert train('--seed', '3', '--lr', '0.1', '--model-kwargs', 'frn=false') == 0
    assert train('--cache-features', '3') == 1
    assert train('--img-size', '64', '--aa', 'rand-m5') == 3
    image = data / 'train2014' / content['images'][0]['file_name']
    Image.new('RGB', (100, 80)).save(image, format='BMP')
    assert train() == 2
    Image.new('RGB', (100, 80), 'red').save(image, format='BMP')  # of the same size
    assert train() == 2
    monkeypatch.setattr('timm.__version__', '9.9')
    assert train() == 3
    assert views(cache).items() >= before.items()
    assert not list(cache.glob('.*'))


def test_an_unreadable_image_is_ignored_and_listed_in_every_run(monkeypatch, coco_folder, tmp_path):
    data = shutil.copytree(coco_folder, tmp_path / 'coco')
    bad = sorted((data / 'train2014').iterdir())[3]
    bad.write_bytes(b'no image')
    for run in ('one', 'two'):
        options = [*OPTIONS, '--data-dir', data, '--output', tmp_path / run, '--cache-dir', tmp_path / 'maps']
        assert run_here(monkeypatch, 'train', *options) == 0
        entries = [json.loads(line) for line in (tmp_path / run / 'bad_samples.jsonl').read_text().splitlines()]
        assert [(e['split'], e['image']) for e in entries] == [('train', str(bad))]
    assert len(views(tmp_path / 'maps')) == 3 and not (tmp_path / 'features').exists()


def test_an_image_that_was_unreadable_for_a_while_is_named(monkeypatch, coco_folder, tmp_path):
    """Such as on a network that failed: it is ignored as before, which is said."""
    options = [*OPTIONS, '--data-dir', coco_folder, '--cache-dir', tmp_path / 'maps', '--epochs', '1']
    bad = min((coco_folder / 'train2014').iterdir()).name

    def failing(self, index):
        if self.images.name(index).endswith(bad):
            raise OSError('no answer')
        return load(self, index)

    load = MultiLabelDataset.load
    with monkeypatch.context() as context:
        context.setattr(MultiLabelDataset, 'load', failing)
        assert run_here(context, 'train', *options, '--output', tmp_path / 'one') == 0
    assert run_here(monkeypatch, 'train', *options, '--output', tmp_path / 'two') == 0
    message = f'{bad} could not be read when its maps were computed: to use it, delete {tmp_path / "maps"}'
    assert message in (tmp_path / 'two' / 'train.log').read_text()


def test_other_runs_are_waited_for(monkeypatch, coco_folder, tmp_path):
    waited = iter([False, False, True])
    acquired = features._acquired
    monkeypatch.setattr(features, '_acquired', lambda lock: next(waited, True) and acquired(lock))
    options = [*OPTIONS, '--data-dir', coco_folder, '--epochs', '1', '--output', tmp_path / 'run']
    assert run_here(monkeypatch, 'train', *options) == 0
    assert next(waited, None) is None and len(views(tmp_path / 'features')) == 3


def test_two_processes_write_the_maps_of_one(monkeypatch, coco_folder, tmp_path):
    options = [*OPTIONS, '--data-dir', coco_folder, '--epochs', '1']
    assert run_here(monkeypatch, 'train', *options, '--output', tmp_path / 'one' / 'run') == 0
    launch(SCRIPTS / 'train.py', *options, '--output', tmp_path / 'two' / 'run', processes=2)
    one, two = ({f.parent.name: f for f in (tmp_path / n / 'features').glob('*/maps.bin')} for n in ('one', 'two'))
    assert one.keys() == two.keys()
    for name, file in one.items():
        maps = [torch.frombuffer(bytearray(f.read_bytes()), dtype=torch.float16) for f in (file, two[name])]
        torch.testing.assert_close(*maps, atol=0.01, rtol=0.01)
    assert len(history(tmp_path / 'two' / 'run')) == 1


def test_maps_of_a_killed_run_are_not_used(monkeypatch, coco_folder, tmp_path):
    """Whatever it has written of a view."""
    options = [*OPTIONS, '--data-dir', coco_folder]
    assert run_here(monkeypatch, 'train', *options, '--output', tmp_path / 'whole' / 'run') == 0

    class Killed(BaseException):
        pass

    def killed(*_args, **_kwargs):
        raise Killed

    with monkeypatch.context() as context:
        context.setattr(features, 'write_text', killed)
        context.setattr(features.shutil, 'rmtree', lambda *_args, **_kwargs: None)
        with pytest.raises(Killed):
            run_here(context, 'train', *options, '--output', tmp_path / 'cut' / 'first')
    left, = (tmp_path / 'cut' / 'features').glob('.*.new')
    (left / 'maps.bin').write_bytes(b'\0')
    assert run_here(monkeypatch, 'train', *options, '--output', tmp_path / 'cut' / 'run') == 0
    assert not left.exists()
    assert_close(weights(tmp_path / 'whole' / 'run'), weights(tmp_path / 'cut' / 'run'), atol=0)


def test_the_space_is_checked_first(monkeypatch, capsys, coco_folder, tmp_path):
    monkeypatch.setattr(features.shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(10, 9, 1))
    assert run_here(monkeypatch, 'train', *OPTIONS, '--data-dir', coco_folder, '--output', tmp_path / 'run') == 2
    error = capsys.readouterr().err
    assert f'{tmp_path}/features has 1. Choose another folder as --cache-dir, lower --cache-features' in error


def test_a_run_on_maps_resumes(monkeypatch, coco_folder, tmp_path):
    options = [*OPTIONS, '--epochs', '3', '--data-dir', coco_folder, '--ema-decay', '0.9', '--checkpoint-every', '1']
    assert run_here(monkeypatch, 'train', *options, '--output', tmp_path / 'whole') == 0
    run_killed(monkeypatch, 2, *options, '--output', tmp_path / 'cut')
    assert run_here(monkeypatch, 'train', '--resume', tmp_path / 'cut') == 0
    assert_close(weights(tmp_path / 'whole'), weights(tmp_path / 'cut'), atol=0)
