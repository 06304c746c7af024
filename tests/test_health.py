"""Sick data and sick runs: what goes on, what stops, and what is said."""
import csv
import io
import json
import pickle
import random
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from test_programs import SCRIPTS, TINY, launch, run_here

from timm_fan import InputError
from timm_fan.data import Sample, create_dataset
from timm_fan.data.bad_samples import BadSamples
from timm_fan.data.dataset import MultiLabelDataset, decode
from timm_fan.models import load_model, save_model


def quiet(module) -> None:
    """Without the report, which takes longer than the training."""
    module.write_report = lambda *args, **kwargs: None
    module.bootstrap = lambda *args, **kwargs: {}


def spoil(coco: Path, target: Path, count: int) -> Path:
    data = shutil.copytree(coco, target)
    for i in range(count):
        (data / 'train2014' / f'{i}.jpg').write_bytes(b'')
    return data


def test_unreadable_images_are_listed_once(coco_folder, tmp_path):
    data, run = spoil(coco_folder, tmp_path / 'coco', 3), tmp_path / 'run'
    (data / 'val2014' / '7.jpg').write_bytes((data / 'val2014' / '7.jpg').read_bytes()[:400])
    options = [*TINY, '--workers', '2', '--epochs', '3', '--batch-size', '17']
    result = launch(SCRIPTS / 'train.py', *options, '--data-dir', data, '--output', run)
    entries = [json.loads(line) for line in (run / 'bad_samples.jsonl').read_text().splitlines()]
    names = [str(data / 'train2014' / f'{i}.jpg') for i in range(3)] + [str(data / 'val2014' / '7.jpg')]
    assert sorted(e['image'] for e in entries) == sorted(names)
    assert [e['split'] for e in entries].count('val') == 1 and all('Error' in e['reason'] for e in entries)
    assert '4 images could not be read' in result.stdout


def test_too_many_unreadable_images_end_the_run(monkeypatch, capsys, coco_folder, tmp_path):
    data = spoil(coco_folder, tmp_path / 'coco', 12)
    for workers in ('0', '2'):  # the error comes out of a worker without its traceback
        run = tmp_path / f'run{workers}'
        assert run_here(
            monkeypatch, 'train', *TINY, '--workers', workers, '--data-dir', data, '--output', run) == 2
        error = capsys.readouterr().err
        assert 'More than 10 train images cannot be read' in error and 'Traceback' not in error.split('error: ')[-1]
    allowed = ['--max-bad-samples', '0.5', '--output', tmp_path / 'allowed']
    assert run_here(monkeypatch, 'train', *TINY, '--data-dir', data, *allowed, prepare=quiet) == 0


def test_unreadable_images_of_a_stream_are_listed_once(tmp_path):
    rows = [dict(image=dict(bytes=b'no image', path=None), labels=['a']) for _ in range(2)]
    rows.append(dict(image=dict(bytes=encoded(PHOTO, 'PNG'), path=None), labels=['a']))
    (tmp_path / 'set').mkdir()
    features = datasets.Features(image=datasets.Image(), labels=datasets.List(datasets.ClassLabel(names=['a'])))
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / 'set' / 'train-00000.parquet')
    stream = create_dataset('hub:set?streaming=true&train_length=3', tmp_path, 'train')
    bad = BadSamples(tmp_path / 'bad.jsonl')
    stream.on_unreadable = lambda name, error: bad.add('train', 10, name, error)
    for _ in range(2):
        assert [target.item() for _, target in stream] == [-1, -1, 1]
    assert len(bad.read()) == 1 and 'SHA-256' in bad.read()[0]['image']


def test_list_of_bad_samples_survives_a_cut_line(tmp_path):
    bad = BadSamples(tmp_path / 'bad.jsonl')
    bad.add('train', 9, 'a.jpg', OSError('no'))
    (tmp_path / 'bad.jsonl').write_text((tmp_path / 'bad.jsonl').read_text() + '{"split": "tr')
    assert [e['image'] for e in bad.read()] == ['a.jpg']


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)).resize((64, 48))
GREY = np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64)


@pytest.mark.parametrize('content', [
    encoded(PHOTO.convert('CMYK'), 'JPEG'),
    encoded(PHOTO.convert('P'), 'PNG'),
    encoded(PHOTO, 'GIF', save_all=True, append_images=[Image.new('RGB', PHOTO.size)]),
    encoded(PHOTO, 'WEBP', save_all=True, append_images=[Image.new('RGB', PHOTO.size)], lossless=True),
], ids=['CMYK', 'palette', 'animated GIF', 'animated WebP'])
def test_kinds_of_images_look_like_the_photo(content):
    """The first of an animation; colours within what the kind of file keeps."""
    difference = np.asarray(decode(content), dtype=float) - np.asarray(PHOTO, dtype=float)
    assert np.abs(difference).mean() < 20


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_transparent_images_stand_on_white(mode):
    drawing = Image.new('RGBA', (8, 8), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (2, 2, 4, 4))
    pixels = np.asarray(decode(encoded(drawing.convert(mode), 'PNG')))
    assert (pixels[2:4, 2:4] == 0).all() and (pixels[5:] == 255).all()


@pytest.mark.parametrize('values', [
    (GREY * 65535).astype(np.uint16), (GREY * 65535).astype(np.int32), GREY, GREY * 255,
], ids=['16 bits', '32 bits', 'float 0..1', 'float 0..255'])
def test_deep_greys_keep_their_range(values):
    pixels = np.asarray(decode(encoded(Image.fromarray(values), 'TIFF')), dtype=float)[..., 0]
    assert np.abs(pixels - 255 * GREY).max() <= 1.5


def test_strips_and_bombs_are_refused():
    with pytest.raises(ValueError, match='30000 x 1'):
        decode(encoded(Image.new('L', (30000, 1)), 'PNG'))
    header = bytearray(encoded(Image.new('L', (8, 8)), 'BMP'))
    header[18:26] = np.array([60000, 60000], np.int32).tobytes()
    with pytest.raises(Image.DecompressionBombError):
        decode(bytes(header))


def test_wrong_extension(tmp_path):
    (tmp_path / 'x.jpg').write_bytes(encoded(PHOTO, 'PNG'))
    dataset = MultiLabelDataset.from_samples(tmp_path, [Sample('x.jpg', (0,))], ['a'])
    image, target = dataset[0]
    assert image.tobytes() == PHOTO.tobytes() and target.tolist() == [1]


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Cut off, overwritten in places (mostly in its head), or with a piece taken out or doubled."""
    damaged = bytearray(content)
    kind = chance.randrange(4)
    if kind == 0:
        return bytes(damaged[:chance.randrange(len(damaged))])
    end = len(damaged) if kind == 1 else min(64, len(damaged))
    for _ in range(chance.randint(1, 8)):
        damaged[chance.randrange(end)] = chance.choice([0, 127, 128, 255, chance.randrange(256)])
    if kind == 3:
        a, b = sorted(chance.randrange(len(damaged)) for _ in range(2))
        damaged = damaged[:a] + damaged[b:] if chance.random() < 0.5 else damaged[:b] + damaged[a:]
    return bytes(damaged)


@pytest.mark.filterwarnings('ignore')
def test_500_mutated_images(tmp_path):
    chance = random.Random(0)
    seeds = [
        encoded(PHOTO.convert(mode), kind, **options) for kind, mode, options in (
            ('JPEG', 'RGB', {}), ('JPEG', 'CMYK', {}), ('JPEG', 'L', dict(progressive=True)), ('PNG', 'RGB', {}),
            ('PNG', 'P', {}), ('GIF', 'P', {}), ('WEBP', 'RGB', {}), ('BMP', 'RGB', {}), ('TIFF', 'F', {}),
            ('TIFF', 'RGB', dict(compression='tiff_lzw')))]
    dataset = MultiLabelDataset.from_samples(
        _written(tmp_path, [mutate(chance.choice(seeds), chance) for _ in range(500)]),
        [Sample(f'{i}.img', (0,)) for i in range(500)], ['a', 'b'])
    listed = BadSamples(tmp_path / 'bad.jsonl')
    dataset.on_unreadable = lambda name, error: listed.add('train', 500, name, error)
    known = 0
    for i in range(500):
        image, target = dataset[i]
        assert image.mode == 'RGB' and target.tolist() in ([1, 0], [-1, -1])
        known += target[0] == 1
    assert len(listed.read()) == 500 - known and 50 < known < 450


def _written(folder: Path, contents) -> Path:
    for i, content in enumerate(contents):
        (folder / f'{i}.img').write_bytes(content)
    return folder


def mutate_json(value, chance: random.Random):
    """One entry somewhere within gets another type or value, or goes."""
    if isinstance(value, (dict, list)) and value and chance.random() < 0.85:
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if chance.random() < 0.2:
            del value[key]
        else:
            value[key] = mutate_json(value[key], chance)
        return value
    return chance.choice([
        None, -1, 10 ** 30, 1.5, float('nan'), '', 'x', '../../x', [], {}, [None], {'id': 1}, True, '\x00', [[]]])


@pytest.mark.filterwarnings('ignore')
def test_200_mutated_annotation_files(coco_folder, tmp_path):
    """COCO's JSON, changed as JSON or as bytes, and tables: a data set that can be read, or one clear error."""
    chance = random.Random(0)
    original = (coco_folder / 'annotations' / 'instances_val2014.json').read_text()
    data = tmp_path / 'coco'
    (data / 'annotations').mkdir(parents=True)
    (data / 'val2014').symlink_to(coco_folder / 'val2014')
    file = data / 'annotations' / 'instances_val2014.json'
    outcomes = [0, 0]
    for i in range(140):
        if i % 3:
            file.write_text(json.dumps(mutate_json(json.loads(original), chance)))
        else:
            file.write_bytes(mutate(original.encode(), chance))
        outcomes[_outcome('coco2014', data, file)] += 1
    rows = [['image', 'labels']] + [[f'val2014/{i}.jpg', 'cat;dog' if i % 2 else 'dog'] for i in range(13)]
    table = data / 'val.csv'
    for _ in range(60):
        stream = io.StringIO()
        csv.writer(stream).writerows(rows)
        table.write_bytes(mutate(stream.getvalue().encode(), chance))
        outcomes[_outcome('table', data, table)] += 1
    assert min(outcomes) > 5  # both happen


def _outcome(data: str, folder: Path, file: Path) -> bool:
    try:
        dataset = create_dataset(data, folder, 'val')
    except InputError as error:
        assert str(folder) in str(error), error
        return False
    for i in range(len(dataset)):
        _, target = dataset[i]
        assert set(target.tolist()) <= {0., 1., -1.}
    return True


@pytest.mark.filterwarnings('ignore')
def test_100_mutated_configs(monkeypatch, capsys, tmp_path):
    """Each ends in one message, at the latest for want of data; nothing is written."""
    chance = random.Random(0)
    original = (SCRIPTS / 'configs' / 'coco2014.yaml').read_bytes()
    file = tmp_path / 'own.yaml'
    for i in range(100):
        if i % 2:
            options = mutate_json(yaml.safe_load(original), chance)
            file.write_text(yaml.safe_dump(options))
        else:
            file.write_bytes(mutate(original, chance))
        code = run_here(
            monkeypatch, 'train', '--config', file, '--data', 'coco2014', '--data-dir', tmp_path / 'none', '--output',
            tmp_path / 'run', '--log-with', 'none', '--batch-size', '8')
        error = capsys.readouterr().err
        assert code == 2 and 'error:' in error and 'Traceback' not in error, (file.read_text(), error)
        assert not (tmp_path / 'run').exists()


def poison(update: int, count: int = 1):
    """The loss is NaN from an update on, for `count` updates."""
    def prepare(module):
        quiet(module)
        create_loss, calls = module.create_loss, []

        def create(*args, **kwargs):
            criterion = create_loss(*args, **kwargs)
            if not args:  # of the evaluation
                return criterion
            forward = criterion.forward

            def poisoned(logits, targets):
                calls.append(1)
                sick = update <= len(calls) < update + count
                return forward(logits, targets) * (float('nan') if sick else 1.)

            criterion.forward = poisoned
            return criterion

        module.create_loss = create
    return prepare


def test_a_loss_of_nan_stops_before_it_harms(monkeypatch, capsys, coco_folder, tmp_path):
    run = tmp_path / 'run'
    options = [*TINY, '--checkpoint-every', '1', '--data-dir', coco_folder, '--output', run]
    assert run_here(monkeypatch, 'train', *options, prepare=poison(3)) == 2
    error = capsys.readouterr().err
    assert 'loss is nan in epoch 1, update 3, learning rate' in error and error.count('.jpg') == 8
    assert '--non-finite skip' in error and 'Traceback' not in error
    assert run_here(monkeypatch, 'train', *options, '--resume', prepare=quiet) == 0
    assert all(t.isfinite().all() for t in load_file(run / 'last' / 'model.safetensors').values())


def test_skipped_updates(monkeypatch, capsys, coco_folder, tmp_path):
    options = [*TINY, '--epochs', '4', '--non-finite', 'skip', '--data-dir', coco_folder, '--output']
    assert run_here(monkeypatch, 'train', *options, tmp_path / 'some', prepare=poison(2, 3)) == 0
    assert (tmp_path / 'some' / 'train.log').read_text().count('is left out') == 3
    weights = load_file(tmp_path / 'some' / 'last' / 'model.safetensors')
    assert all(t.isfinite().all() for t in weights.values())
    assert run_here(monkeypatch, 'train', *options, tmp_path / 'all', prepare=poison(2, 99)) == 2
    assert '10th time in succession' in capsys.readouterr().err


def test_out_of_memory_names_what_fits(monkeypatch, capsys, coco_folder, tmp_path):
    def small_memory(module):
        build_model = module.build_model

        def build(*args):
            model = build_model(*args)

            def full(_, inputs):
                if len(inputs[0]) > 3:
                    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.')

            model.register_forward_pre_hook(full)
            return model

        module.build_model = build

    run = tmp_path / 'run'
    assert run_here(
        monkeypatch, 'train', *TINY, '--data-dir', coco_folder, '--output', run, prepare=small_memory) == 2
    error = capsys.readouterr().err
    assert '3 fit: --grad-accum-steps 4 keeps the step of 8 and computes 2 at once' in error
    assert 'Traceback' not in error


def test_a_class_without_positives_is_named(monkeypatch, coco_folder, tmp_path):
    data = shutil.copytree(coco_folder, tmp_path / 'coco')
    file = data / 'annotations' / 'instances_train2014.json'
    content = json.loads(file.read_text())
    name = content['categories'][2]['name']
    content['annotations'] = [
        a for a in content['annotations'] if a['category_id'] != content['categories'][2]['id']]
    file.write_text(json.dumps(content))
    run = tmp_path / 'run'
    assert run_here(
        monkeypatch, 'train', *TINY, '--epochs', '1', '--data-dir', data, '--output', run, prepare=quiet) == 0
    assert f'1 classes have no positive training image: {name}' in (run / 'train.log').read_text()


def test_batches_without_a_positive_are_counted(monkeypatch, coco_folder, tmp_path):
    data = shutil.copytree(coco_folder, tmp_path / 'coco')
    file = data / 'annotations' / 'instances_train2014.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), 'annotations': []}))
    run = tmp_path / 'run'
    assert run_here(
        monkeypatch, 'train', *TINY, '--epochs', '1', '--data-dir', data, '--output', run, prepare=quiet) == 0
    assert 'epoch 1: 4 of 4 batches hold no positive label' in (run / 'train.log').read_text()


def test_labels_in_another_order_start_a_fresh_head(monkeypatch, coco_folder, tmp_path):
    options = [*TINY, '--epochs', '1', '--data-dir', coco_folder]
    assert run_here(monkeypatch, 'train', *options, '--output', tmp_path / 'first', prepare=quiet) == 0
    model = load_model(tmp_path / 'first')
    names = model.pretrained_cfg['label_names']
    save_model(model, tmp_path / 'turned', names[::-1], dict(model.pretrained_cfg))
    tune = [o for o in options if o not in ('--backbone', 'test_resnet')]
    for folder, fresh in (('turned', True), ('first/last', False)):
        run = tmp_path / f'run_{fresh}'
        model = f'local-dir:{tmp_path / folder}'
        assert run_here(monkeypatch, 'train', *tune, '--model', model, '--output', run, prepare=quiet) == 0
        assert ('its head starts anew' in (run / 'train.log').read_text()) == fresh


def test_a_runs_own_config_repeats_it(monkeypatch, coco_folder, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = [
        *TINY, '--data-dir', coco_folder, '--cutmix', '1', '--ema-decay', '0.9', '--model-kwargs', 'drop_rate=0.2']
    assert run_here(monkeypatch, 'train', *options, '--output', 'one', prepare=quiet) == 0
    assert run_here(monkeypatch, 'train', '--config', 'one/config.yaml', prepare=quiet) == 0
    weights = load_file('one/last/model.safetensors')
    for name, tensor in load_file('one-again/last/model.safetensors').items():
        assert torch.equal(tensor, weights[name]), name
    records = [json.loads(Path(run, 'run.json').read_text()) for run in ('one', 'one-again')]
    assert records[0]['data'] == records[1]['data'] and records[0]['seed'] == 0


def test_the_learning_rate_follows_the_batch_size(monkeypatch, coco_folder, tmp_path):
    for opt, factor in (('momentum', 0.25), ('adamw', 0.5)):
        run = tmp_path / opt
        options = [*TINY, '--epochs', '1', '--warmup-epochs', '0', '--opt', opt, '--lr', '0.1', '--lr-base-size', '32']
        assert run_here(
            monkeypatch, 'train', *options, '--data-dir', coco_folder, '--output', run, prepare=quiet) == 0
        assert yaml.safe_load((run / 'config.yaml').read_text())['lr'] == pytest.approx(0.1 * factor)


def test_a_pickle_in_a_checkpoint_is_not_executed(monkeypatch, capsys, coco_folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / 'executed',)

    run = tmp_path / 'run'
    options = [*TINY, '--data-dir', coco_folder, '--output', run]
    assert run_here(monkeypatch, 'train', *options, '--epochs', '1', prepare=quiet) == 0
    [checkpoint] = (run / 'checkpoints').iterdir()
    # the random states are not needed: those of every step follow from the seed
    for name, code in (('optimizer.bin', 2), ('random_states_0.pkl', 0)):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(pickle.dumps(Evil()))
        assert run_here(monkeypatch, 'train', *options, '--resume', prepare=quiet) == code, name
        assert ('damaged' in capsys.readouterr().err) == (code == 2) and not (tmp_path / 'executed').exists()
        (checkpoint / name).write_bytes(content)
