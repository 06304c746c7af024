"""The programs as a user runs them: on the command line, on small drawn scenes."""
import csv
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from safetensors.torch import load_file, save_file
from test_sources import write_devkit, write_hub, write_shards, write_table

from timm_fan.cost import count_cost
from timm_fan.data import VOC_CLASSES, read_coco
from timm_fan.errors import exit_on_input_error
from timm_fan.models import load_model

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / 'train_scripts'
TINY = [
    '--config', str(SCRIPTS / 'configs' / 'scenes.yaml'), '--data', 'coco2014', '--backbone', 'test_resnet',
    '--img-size', '48', '--epochs', '2', '--batch-size', '8', '--workers', '0', '--log-with', 'none',
]


def launch(*command, processes=0, check=True, timeout=300, cpu=True) -> subprocess.CompletedProcess:
    launcher = [sys.executable]
    if processes:
        # accelerate launch starts several processes on CPUs by MPI only
        launcher += [
            '-m', 'torch.distributed.run', '--nproc_per_node', str(processes), '--rdzv_backend', 'c10d',
            '--rdzv_endpoint', '127.0.0.1:0']
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': str(cpu).lower()}
    result = subprocess.run([*launcher, *map(str, command)], capture_output=True, text=True, env=env, timeout=timeout)
    if check:
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def run_here(monkeypatch, program: str, *args, prepare=lambda module: None) -> int:
    """Run a program in this process, which spares an interpreter's start; returns the exit code."""
    monkeypatch.syspath_prepend(SCRIPTS)
    spec = importlib.util.spec_from_file_location(program, SCRIPTS / f'{program}.py')
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, program, module)  # other processes find its functions by name
    spec.loader.exec_module(module)
    prepare(module)
    monkeypatch.setattr(sys, 'argv', [f'{program}.py', *map(str, args)])
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        with exit_on_input_error():
            module.main()
    except SystemExit as stop:
        return stop.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


def history(run: Path):
    with open(run / 'history.csv') as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope='module')
def run_folder(coco_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('runs') / 'one'
    launch(SCRIPTS / 'train.py', *TINY, '--data-dir', coco_folder, '--output', folder)
    return folder


def test_run_folder(run_folder):
    for name in (
            'config.yaml', 'train.log', 'history.csv', 'best/config.json', 'best/model.safetensors',
            'last/model.safetensors', 'run.json', 'report/metrics.json', 'report/per_class.csv',
            'report/curves.png', 'report/per_class.png', 'report/predictions.png'):
        assert (run_folder / name).stat().st_size > 0, name
    assert not [p for p in run_folder.iterdir() if p.name.startswith('.')]
    assert len(history(run_folder)) == 2


def test_epochs_without_evaluation(monkeypatch, coco_folder, tmp_path):
    """The last is evaluated always, and the best is one of those that were."""
    run, options = tmp_path / 'run', ['--epochs', '3', '--val-interval', '2', '--data-dir', coco_folder]
    assert run_here(monkeypatch, 'train', *TINY, *options, '--output', run) == 0
    with open(run / 'history.csv') as file:
        rows = list(csv.DictReader(file))
    assert [bool(row['mAP']) for row in rows] == [False, True, True] and all(row['train_loss'] for row in rows)
    assert (run / 'report' / 'curves.png').stat().st_size
    best = json.loads((run / 'report' / 'metrics.json').read_text())
    assert best['mAP'] == pytest.approx(max(float(row['mAP']) for row in rows[1:]), abs=1e-5)


def test_model_folder_needs_nothing_else(run_folder, coco_folder, tmp_path):
    folder = shutil.copytree(run_folder / 'best', tmp_path / 'moved')
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert model.pretrained_cfg['label_names'] == read_coco(coco_folder, 'val2014').class_names
    assert model.pretrained_cfg['input_size'] == (3, 48, 48)
    assert str(coco_folder) not in (folder / 'config.json').read_text()


@pytest.mark.parametrize('processes', [0, 2])
def test_validate_repeats_training(run_folder, coco_folder, processes):
    result = launch(
        SCRIPTS / 'validate.py', run_folder / 'last', '--data', 'coco2014', '--data-dir', coco_folder, '--workers', '0',
        '--batch-size', '4', '--json', processes=processes)
    scores = json.loads(result.stdout[result.stdout.index('{'):])
    last = history(run_folder)[-1]
    assert scores['num_images'] == 13
    assert scores['mAP'] == pytest.approx(last['mAP'], abs=1e-5)
    assert scores['all']['CF1'] == pytest.approx(last['CF1'], abs=1e-5)
    assert scores['all']['OF1'] == pytest.approx(last['OF1'], abs=1e-5)


@pytest.mark.parametrize('write, kind', [(write_table, 'csv'), (write_hub, 'disk'), (write_shards, 'json')])
def test_two_processes_evaluate_every_source_as_one(run_folder, coco_folder, tmp_path, write, kind):
    data = write(coco_folder, tmp_path, kind)
    result = launch(
        SCRIPTS / 'validate.py', run_folder / 'best', '--data', data, '--data-dir', tmp_path, '--workers', '0',
        '--batch-size', '4', '--bootstrap', '0', '--json', processes=2)
    scores = json.loads(result.stdout[result.stdout.index('{'):])
    alone = json.loads((run_folder / 'report' / 'metrics.json').read_text())
    for key in ('mAP', 'all', 'top3', 'num_images', 'per_class', 'mAP_by_definition', 'sample_f1'):
        assert scores[key] == alone[key], key


def test_streamed_data_trains_and_evaluates_alike(coco_folder, tmp_path):
    data = write_hub(coco_folder, tmp_path, 'disk') + '?streaming=true'
    options = ['--data', data, '--data-dir', tmp_path, '--workers', '2']
    runs = []
    for processes in (0, 2):
        run = tmp_path / f'run{processes}'
        launch(SCRIPTS / 'train.py', *TINY, *options, '--output', run, processes=processes)
        runs.append(json.loads((run / 'report' / 'metrics.json').read_text()))
        assert runs[-1]['num_images'] == 13 and len(history(run)) == 2
    result = launch(
        SCRIPTS / 'validate.py', tmp_path / 'run0', '--data', 'coco2014', '--data-dir', coco_folder, '--workers', '0',
        '--bootstrap', '0', '--json')
    scores = json.loads(result.stdout[result.stdout.index('{'):])
    assert scores['per_class'] == runs[0]['per_class'] and scores['mAP'] == runs[0]['mAP']


def test_voc_trains_and_evaluates(monkeypatch, capsys, tmp_path):
    objects = [[('cat', 0), ('dog', 1)], [('dog', 0)], [('person', 0), ('cat', 0)], []]
    splits = dict(trainval=range(12), test=range(20, 27))
    write_devkit(tmp_path, 2007, {k: {f'{i:06d}': objects[i % 4] for i in v} for k, v in splits.items()})
    options = ['--data', 'voc2007', '--data-dir', tmp_path]
    assert run_here(monkeypatch, 'train', *TINY, *options, '--epochs', '1', '--output', tmp_path / 'run') == 0
    capsys.readouterr()
    assert run_here(monkeypatch, 'validate', tmp_path / 'run', *options, '--workers', '0', '--json') == 0
    scores = json.loads(capsys.readouterr().out)
    report = json.loads((tmp_path / 'run' / 'report' / 'metrics.json').read_text())
    assert report == {**report, **scores}
    dog = scores['per_class'][VOC_CLASSES.index('dog')]
    assert (dog['positives'], dog['images']) == (2, 5)  # the difficult dogs of two images count nowhere


def test_thresholds_are_kept_and_applied(monkeypatch, capsys, run_folder, coco_folder, tmp_path):
    folder = shutil.copytree(run_folder / 'best', tmp_path / 'model')
    common = ['--data', 'coco2014', '--data-dir', coco_folder, '--workers', '0', '--bootstrap', '0', '--json']
    assert run_here(monkeypatch, 'validate', folder, *common, '--choose-thresholds', 'global-f1') == 0
    chosen = json.loads(capsys.readouterr().out)
    config = json.loads((folder / 'config.json').read_text())
    assert config['threshold_policy'] == 'global-f1' and len(config['thresholds']) == 6
    plain = json.loads((run_folder / 'report' / 'metrics.json').read_text())
    assert chosen['all']['OF1'] > plain['all']['OF1'] and chosen['mAP'] == plain['mAP']
    assert run_here(monkeypatch, 'validate', folder, *common) == 0
    assert json.loads(capsys.readouterr().out)['all'] == chosen['all']
    assert run_here(monkeypatch, 'validate', folder, *common, '--threshold', '0.5') == 0
    assert json.loads(capsys.readouterr().out)['all'] == plain['all']

    assert run_here(monkeypatch, 'predict', folder, coco_folder / 'val2014', '--format', 'json') == 0
    found = json.loads(capsys.readouterr().out)
    threshold = config['thresholds'][0]
    assert sum(len(r['labels']) for r in found) > 0
    assert all(label['probability'] >= round(threshold, 4) for r in found for label in r['labels'])
    for options, word in (
            (['--choose-thresholds', 'best'], 'class-f1'), (['--threshold', '1.5'], '1.5')):
        assert run_here(monkeypatch, 'validate', folder, *common, *options) == 2
        assert word in capsys.readouterr().err
    (folder / 'config.json').write_text(json.dumps({**config, 'thresholds': [0.5]}))
    assert run_here(monkeypatch, 'predict', folder, coco_folder / 'val2014') == 2
    assert 'must be 6 numbers' in capsys.readouterr().err


def test_thresholds_survive_data_that_cannot_be_evaluated(monkeypatch, capsys, run_folder, tmp_path):
    folder = shutil.copytree(run_folder / 'best', tmp_path / 'model')
    names = json.loads((folder / 'config.json').read_text())['label_names']
    Image.new('RGB', (48, 48)).save(tmp_path / 'a.png')
    (tmp_path / 'val.csv').write_text(','.join(['image', *names]) + '\na.png' + ',-1' * len(names) + '\n')
    before = (folder / 'config.json').read_text()
    for options in (['--choose-thresholds', 'class-f1'], [], ['--binned']):
        code = run_here(
            monkeypatch, 'validate', folder, '--data', 'table', '--data-dir', tmp_path, '--workers', '0', *options)
        assert code == 2 and 'No label of the data set is known' in capsys.readouterr().err
    assert (folder / 'config.json').read_text() == before


@pytest.mark.parametrize('options', [
    ['--binned', '--report', 'x'], ['--binned', '--json'], ['--choose-thresholds', 'class-f1', '--threshold', '0.4'],
    ['--batch-size', '0'], ['--workers', '-1'], ['--bootstrap', '-1']])
def test_options_of_validate_that_would_do_nothing(monkeypatch, capsys, run_folder, options):
    assert run_here(monkeypatch, 'validate', run_folder, *options) == 2
    assert options[0] in capsys.readouterr().err


def test_weights_of_nan_are_named(monkeypatch, capsys, run_folder, coco_folder, tmp_path):
    folder = shutil.copytree(run_folder / 'best', tmp_path / 'model')
    weights = load_file(folder / 'model.safetensors')
    save_file({**weights, 'head.fc.bias': weights['head.fc.bias'] * float('nan')}, folder / 'model.safetensors')
    data = ['--data', 'coco2014', '--data-dir', coco_folder, '--workers', '0']
    for options in (['validate', folder, *data], ['validate', folder, *data, '--binned'],
                    ['predict', folder, coco_folder / 'val2014']):
        assert run_here(monkeypatch, *options) == 2
        assert 'gives NaN' in capsys.readouterr().err


def test_class_names_of_digits_are_names_too(monkeypatch, capsys, run_folder, coco_folder, tmp_path):
    folder = shutil.copytree(run_folder / 'best', tmp_path / 'model')
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'label_names': list('012345')}))
    assert run_here(monkeypatch, 'validate', folder, '--data', 'coco2014', '--data-dir', coco_folder) == 2
    assert "Class 0 is '0' in the model" in capsys.readouterr().err


def test_weights_as_model_arguments(monkeypatch, lite0_weights):
    monkeypatch.syspath_prepend(SCRIPTS)
    train = importlib.import_module('train')
    options = ['--backbone', 'tf_efficientnet_lite0', '--model-kwargs', f'backbone_weights={lite0_weights}']
    monkeypatch.setattr(sys, 'argv', ['train.py', *options])
    model = train.build_model(train.parse_args(), 3)
    assert torch.equal(model.backbone.net.conv_stem.weight, load_file(lite0_weights)['conv_stem.weight'])


def test_comparison_of_two_runs(monkeypatch, capsys, run_folder, coco_folder):
    common = ['--data', 'coco2014', '--data-dir', coco_folder, '--workers', '0', '--bootstrap', '50']
    assert run_here(monkeypatch, 'validate', '--compare', run_folder / 'best', run_folder / 'best', *common) == 0
    out = capsys.readouterr().out
    assert 'mAP  +0.00' in out and 'does not exceed' in out


def test_binned_evaluation(monkeypatch, capsys, run_folder, coco_folder):
    common = ['--data', 'coco2014', '--data-dir', coco_folder, '--workers', '0']
    assert run_here(monkeypatch, 'validate', run_folder, *common, '--binned') == 0
    low, high = map(float, re.search(r'within ([\d.]+) to ([\d.]+)', capsys.readouterr().out).groups())
    exact = 100 * json.loads((run_folder / 'report' / 'metrics.json').read_text())['mAP']
    assert low - 0.01 <= exact <= high + 0.01


def test_inspection(monkeypatch, capsys, coco_folder, tmp_path):
    assert run_here(monkeypatch, 'inspect_data', '--data', 'coco2014', '--data-dir', coco_folder) == 0
    out = capsys.readouterr().out
    assert 'train: 34 images, 6 classes' in out and '0 images are in both splits' in out
    data = write_table(coco_folder, tmp_path, 'csv')
    lines = (tmp_path / 'val.csv').read_text().splitlines()
    moved = (tmp_path / 'train.csv').read_text().splitlines()[5]
    (tmp_path / 'val.csv').write_text('\n'.join([*lines, moved]))
    options = ['--data', data, '--data-dir', tmp_path]
    assert run_here(monkeypatch, 'inspect_data', *options, '--json', '--figures', tmp_path / 'figures') == 0
    report = json.loads(capsys.readouterr().out)
    assert report['val']['num_images'] == 14 and [pair[0] for pair in report['overlap']] == [moved.split(',')[0]]
    assert (tmp_path / 'figures' / 'co_occurrence.png').is_file()
    (tmp_path / 'val.csv').write_text('\n'.join([*lines, *[f'{i}.jpg,horse' for i in range(30)]]))
    assert run_here(monkeypatch, 'inspect_data', *options) == 2
    captured = capsys.readouterr()
    assert captured.out.count("'horse' is not one of the 6 classes") == 30 and '60 problems' in captured.err


def test_two_processes_train_and_evaluate_all_images(coco_folder, tmp_path):
    result = launch(SCRIPTS / 'train.py', *TINY, '--data-dir', coco_folder, '--output', tmp_path / 'two', processes=2)
    assert 'cpu on 2 process(es)' in result.stdout
    scores = json.loads((tmp_path / 'two' / 'report' / 'metrics.json').read_text())
    assert scores['num_images'] == 13
    result = launch(
        SCRIPTS / 'validate.py', tmp_path / 'two' / 'best', '--data', 'coco2014', '--data-dir', coco_folder,
        '--workers', '0', '--json')
    alone = json.loads(result.stdout[result.stdout.index('{'):])
    assert alone['mAP'] == pytest.approx(scores['mAP'], abs=1e-6)
    assert alone['top3'] == pytest.approx(scores['top3'], abs=1e-6)


def test_resume_gives_the_undisturbed_weights(monkeypatch, coco_folder, tmp_path):
    options = [*TINY, '--epochs', '3', '--data-dir', coco_folder, '--ema-decay', '0.9', '--cutmix', '1']
    assert run_here(monkeypatch, 'train', *options, '--output', tmp_path / 'whole') == 0

    class Killed(BaseException):
        pass

    def kill_in_the_third_epoch(module):
        train_one_epoch = module.train_one_epoch

        def train_or_die(epoch, *args):
            if epoch == 2:
                raise Killed
            return train_one_epoch(epoch, *args)

        module.train_one_epoch = train_or_die

    with pytest.raises(Killed):
        run_here(monkeypatch, 'train', *options, '--output', tmp_path / 'cut', prepare=kill_in_the_third_epoch)
    assert run_here(monkeypatch, 'train', *options, '--output', tmp_path / 'cut', '--resume') == 0
    assert [row['mAP'] for row in history(tmp_path / 'cut')] == [row['mAP'] for row in history(tmp_path / 'whole')]
    whole = load_file(tmp_path / 'whole' / 'last' / 'model.safetensors')
    for name, tensor in load_file(tmp_path / 'cut' / 'last' / 'model.safetensors').items():
        assert torch.equal(tensor, whole[name]), name


def test_predict(run_folder, coco_folder, capsys, monkeypatch):
    photo = coco_folder / 'val2014' / '3.jpg'
    assert run_here(monkeypatch, 'predict', run_folder, photo, coco_folder / 'val2014', '--topk', '2') == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 14
    assert re.fullmatch(rf'{photo}: \w+ [01]\.\d\d, \w+ [01]\.\d\d', lines[0])
    assert run_here(monkeypatch, 'predict', run_folder, photo, '--device', 'nothing') == 2
    assert "--device 'nothing'" in capsys.readouterr().err
    assert run_here(monkeypatch, 'predict', run_folder, photo, '--threshold', '0.01', '--format', 'json') == 0
    [result] = json.loads(capsys.readouterr().out)
    names = read_coco(coco_folder, 'val2014').class_names
    assert result['file'] == str(photo) and {x['label'] for x in result['labels']} <= set(names)
    probabilities = [x['probability'] for x in result['labels']]
    assert probabilities == sorted(probabilities, reverse=True) and all(0.01 < p <= 1 for p in probabilities)


def test_truncated_jpeg_is_named_and_the_run_goes_on(monkeypatch, coco_folder, tmp_path, capsys):
    data = shutil.copytree(coco_folder, tmp_path / 'coco')
    for file in (data / 'train2014' / '5.jpg', data / 'val2014' / '7.jpg'):
        file.write_bytes(file.read_bytes()[:400])
    options = [*TINY, '--workers', '1', '--data-dir', data, '--output', tmp_path / 'run']
    assert run_here(monkeypatch, 'train', *options) == 0
    log = (tmp_path / 'run' / 'train.log').read_text()
    assert 'unreadable image' in log and str(data / 'train2014' / '5.jpg') in log
    scores = json.loads((tmp_path / 'run' / 'report' / 'metrics.json').read_text())
    assert (scores['num_images'], scores['num_unlabelled']) == (12, 1)
    assert run_here(monkeypatch, 'predict', tmp_path / 'run', data / 'val2014') == 0
    output = capsys.readouterr()
    assert str(data / 'val2014' / '7.jpg') in output.err and '7.jpg' not in output.out.split('predict')[-1]


def broken_category(folder: Path) -> Path:
    file = folder / 'annotations' / 'instances_train2014.json'
    content = json.loads(file.read_text())
    content['annotations'][3]['category_id'] = 777
    file.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize('options, words', [
    (['--data-dir', '/nowhere'], ['/nowhere', '--data-dir']),
    (['--model', 'fan_resnet1O1'], ['fan_resnet1O1', 'fan_resnet101']),
    (['--backbone', 'resnet999'], ['resnet999']),
    (['--backbone-weights', '/no/file.safetensors'], ['/no/file.safetensors']),
    (['--model-kwargs', 'frm=false'], ['frm']),
    (['--model-kwargs', 'frn'], ['frn', 'KEY=VALUE']),
    (['--config', 'nothing'], ['nothing', 'coco2014']),
    (['--batch-size', '7', '--grad-accum-steps', '2'], ['7', '2']),
    (['--batch-size', '500'], ['34', '--batch-size']),
    (['--opt', 'nothing'], ['nothing']),
    (['--sync-bn'], ['--sync-bn', 'GPUs']),
    (['--torchcompile', 'nothing'], ['nothing']),
    (['--loss', 'zlpr', '--cutmix', '1'], ['zlpr', 'cutmix']),
    (['--decode', 'device', '--aa', 'rand-m7'], ['--decode', 'rand-m7']),
    (['--backbone', 'levit_128s', '--img-size', '224', '--freeze-bn'], ['levit_128s', 'BatchNorm2d']),
    (['--resume', '/no/run'], ['/no/run']),
    (['--backbone', 'nest_tiny', '--img-size', '50'], ['nest_tiny', 'img_size=50', 'divide']),
    (['--aa', 'none'], ['--aa', 'none', 'rand-m7']),
    (['--smoothing', '2'], ['--smoothing', '0 to 0.99', '2']),
    (['--mixup', '-1'], ['--mixup', 'at least 0', '-1']),
    (['--img-size', '0'], ['--img-size', 'at least 1']),
    (['--seed', '-1'], ['--seed', '-1']),
    (['--clip-grad', '-1'], ['--clip-grad', '-1']),
    (['--lr', 'nan'], ['--lr', 'nan']),
    (['--lr-base-size', '-4'], ['--lr-base-size', '-4']),
    (['--model-kwargs', 'in_chans=1'], ['--model-kwargs', 'three channels']),
    (['--model-kwargs', 'num_classes=3'], ['--model-kwargs', 'num_classes']),
    (['--model-kwargs', 'drop_rate=2'], ['drop_rate', 'between 0 and 1']),
])
def test_a_mistake_ends_in_one_message(monkeypatch, capsys, coco_folder, tmp_path, options, words):
    code = run_here(
        monkeypatch, 'train', *TINY, '--data-dir', coco_folder, '--output', tmp_path / 'run', *options)
    error = capsys.readouterr().err
    assert code == 2
    assert error.count('error:') == 1 and 'Traceback' not in error
    for word in words:
        assert word in error


def test_unknown_category_ends_in_one_message(coco_folder, tmp_path):
    data = broken_category(shutil.copytree(coco_folder, tmp_path / 'coco'))
    result = launch(SCRIPTS / 'train.py', *TINY, '--data-dir', data, '--output', tmp_path / 'run', check=False)
    assert result.returncode == 2
    assert '777' in result.stderr and 'instances_train2014.json' in result.stderr and 'Traceback' not in result.stderr
    assert not (tmp_path / 'run').exists()


def test_config_file_is_checked(monkeypatch, capsys, coco_folder, tmp_path):
    for content, word in (
            ('epoch: 3', 'epoch'), ('lr: fast', 'fast'), ('[1, 2', 'YAML'), ('- 3', 'option'),
            ('freeze_bn: "false"', "freeze_bn is true or false, got 'false'"),
            ('model_kwargs: [frn=false]', 'model_kwargs must hold')):
        file = tmp_path / 'own.yaml'
        file.write_text(content)
        code = run_here(monkeypatch, 'train', '--config', file, '--data-dir', coco_folder, '--output', tmp_path / 'run')
        error = capsys.readouterr().err
        assert code == 2 and word in error and 'Traceback' not in error


def test_other_class_count_ends_in_one_message(monkeypatch, capsys, run_folder, tmp_path):
    from conftest import write_coco

    data = write_coco(tmp_path / 'coco', 4, 4, num_classes=4)
    common = ['--data', 'coco2014', '--data-dir', data]
    assert run_here(monkeypatch, 'validate', run_folder, *common) == 2
    assert '6 classes' in capsys.readouterr().err
    resumed = shutil.copytree(run_folder, tmp_path / 'run')
    code = run_here(monkeypatch, 'train', *TINY, *common, '--batch-size', '4', '--output', resumed, '--resume')
    assert code == 2 and '6 classes' in capsys.readouterr().err


def test_a_file_in_the_way(monkeypatch, capsys, coco_folder, tmp_path):
    (tmp_path / 'run').write_text('mine')
    assert run_here(monkeypatch, 'train', *TINY, '--data-dir', coco_folder, '--output', tmp_path / 'run') == 2
    assert 'run: File exists' in capsys.readouterr().err and (tmp_path / 'run').read_text() == 'mine'


def test_workers_give_no_image_of_a_stream_twice(monkeypatch, capsys, coco_folder, run_folder, tmp_path):
    data = f'{write_hub(coco_folder, tmp_path, "parquet")}?streaming=true&val_length=10'
    options = ['--data', data, '--data-dir', tmp_path, '--bootstrap', '0', '--json']
    found = []
    for workers in ('0', '2'):
        assert run_here(monkeypatch, 'validate', run_folder, *options, '--workers', workers) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1] and found[0]['num_images'] == 10


def test_streams_shorter_than_they_say(monkeypatch, capsys, coco_folder, tmp_path):
    for lengths, words in (
            ('train_length=48&val_length=13', 'train_length'), ('train_length=32&val_length=20', 'val_length')):
        data = f'{write_hub(coco_folder, tmp_path, "parquet")}?streaming=true&{lengths}'
        options = ['--data', data, '--data-dir', tmp_path, '--output', tmp_path / words]
        assert run_here(monkeypatch, 'train', *TINY, *options, '--epochs', '1') == 2
        assert f'a stream needs its true {words}=' in capsys.readouterr().err


def test_reports_and_figures_leave_what_else_is_in_their_folder(monkeypatch, coco_folder, run_folder, tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('precious')
    data = ['--data', 'coco2014', '--data-dir', coco_folder]
    for _ in range(2):
        assert run_here(monkeypatch, 'inspect_data', *data, '--figures', tmp_path / 'mine') == 0
        assert run_here(monkeypatch, 'validate', run_folder, *data, '--report', tmp_path / 'mine') == 0
    names = {p.name for p in (tmp_path / 'mine').iterdir()}
    assert {'thesis.txt', 'frequencies.png', 'report.html', 'metrics.json'} <= names
    assert not any(name.startswith('.') for name in names)


def test_finished_run_is_not_overwritten(monkeypatch, capsys, run_folder, coco_folder):
    before = (run_folder / 'history.csv').read_bytes()
    assert run_here(monkeypatch, 'train', *TINY, '--data-dir', coco_folder, '--output', run_folder) == 2
    assert '--resume' in capsys.readouterr().err
    assert (run_folder / 'history.csv').read_bytes() == before


@pytest.mark.parametrize('options', [
    ['--opt', 'sgd', '--lr', '0.1', '--backbone-lr', '0.01', '--sched', 'plateau'],
    ['--loss', 'asl', '--cutmix', '1', '--mixup', '0.2', '--ema-decay', '0.9', '--aa', 'rand-m5', '--clip-grad', '1'],
    ['--grad-accum-steps', '2', '--mixed-precision', 'bf16', '--model-kwargs', 'frn=false', 'cln=false'],
    ['--loss', 'db', '--smoothing', '0.1', '--log-with', 'tensorboard'],
    ['--grad-checkpointing', '--ema-decay', '0.9'],
    ['--torchcompile', 'eager', '--ema-decay', '0.9'],
    ['--model', 'test_resnet', '--model-kwargs', 'global_pool=max'],
    ['--model', 'test_vit'],
    ['--backbone', 'test_vit'],
])
def test_recipes(monkeypatch, coco_folder, tmp_path, options):
    run = tmp_path / 'run'
    tiny = TINY if '--model' not in options else [o for o in TINY if o not in ('--backbone', 'test_resnet')]
    assert run_here(
        monkeypatch, 'train', *tiny, '--epochs', '1', '--data-dir', coco_folder, '--output', run, *options) == 0
    assert json.loads((run / 'report' / 'metrics.json').read_text())['num_images'] == 13


@pytest.mark.parametrize('model, head', [
    (['--model', 'test_resnet'], 'fc.'),
    (['--backbone', 'test_resnet', '--model-kwargs', 'cln=false'], ('frn.', 'head.')),
])
def test_a_frozen_backbone_stays_as_it_is(monkeypatch, coco_folder, tmp_path, model, head):
    """With its batch norm: the same after one epoch and after two."""
    tiny = [o for o in TINY if o not in ('--backbone', 'test_resnet')]
    weights = []
    for epochs in ('1', '2'):
        run = tmp_path / epochs
        options = [*model, '--data-dir', coco_folder, '--output', run, '--no-report']
        assert run_here(monkeypatch, 'train', *tiny, *options, '--epochs', epochs, '--backbone-lr', '0') == 0
        weights.append(load_file(run / 'last' / 'model.safetensors'))
        load_model(run / 'last')
    frozen = {name: v for name, v in weights[0].items() if not name.startswith(head)}
    assert any('running_mean' in name for name in frozen) and len(frozen) < len(weights[0])
    assert all(torch.equal(v, weights[1][name]) for name, v in frozen.items())
    assert not all(torch.equal(v, weights[1][name]) for name, v in weights[0].items())


@pytest.mark.parametrize('config', sorted(p.stem for p in (SCRIPTS / 'configs').glob('*.yaml')))
def test_configs_name_known_options(monkeypatch, capsys, config, tmp_path):
    options = ['--data', 'coco2014', '--data-dir', tmp_path / 'no', '--output', tmp_path / 'run']
    assert run_here(monkeypatch, 'train', '--config', config, *options) == 2
    assert str(tmp_path / 'no') in capsys.readouterr().err


def test_ci_runs_the_test_command_of_the_readme():
    commands = re.findall(r'^python3 -m venv .* && \.venv/bin/python .*$', (ROOT / 'README.md').read_text(), flags=re.M)
    assert len(commands) == 2
    assert 'train_scripts/train.py' in commands[0] and 'pytest' in commands[1]
    assert commands[1] in (ROOT / '.ci' / 'run').read_text().splitlines()


@pytest.mark.slow
def test_coco_mini_reaches_40_map(coco_mini, lite0_weights, tmp_path):
    launch(
        SCRIPTS / 'train.py', '--config', 'coco2014', '--data-dir', coco_mini, '--output', tmp_path / 'run',
        '--backbone', 'tf_efficientnet_lite0', '--backbone-weights', lite0_weights, '--img-size', '224',
        '--epochs', '16', '--batch-size', '16', '--lr', '5e-4', '--backbone-lr', '3e-4', '--ema-decay', '0.99',
        '--cutmix', '0', '--min-crop', '0.4', '--mixed-precision', 'no', '--workers', '1', timeout=3600)
    assert json.loads((tmp_path / 'run' / 'report' / 'metrics.json').read_text())['mAP'] >= 0.4


def test_benchmark_of_models(monkeypatch, capsys, tmp_path):
    """Costs are those counted, ratios those of the times in the JSON file; a folded model has no training step."""
    file, page = tmp_path / 'model.json', tmp_path / 'model.md'
    options = ['--rows', 'FAN', '--engines', 'eager', 'folded', '--repeats', '2', '--results', file]
    tiny = ['--backbone', 'test_resnet', '--img-size', '64', '--device', 'cpu', '--table', page]
    assert run_here(monkeypatch, 'benchmark', 'model', 'fan', *tiny, *options) == 0
    report = json.loads(file.read_text())
    assert [(r['row'], r['engine']) for r in report['rows']] == [
        (row, engine) for engine in ('eager', 'folded') for row in ('backbone', 'FAN')]
    backbone, fan = report['rows'][:2]
    expected = count_cost(timm.create_model('fan', backbone='test_resnet', num_classes=80).eval(), (3, 64, 64))
    assert (fan["parameters"], fan["multiply_adds"]) == tuple(expected)
    assert fan['memory_training'] > fan['memory_inference'] > 0
    assert [('training' in r) for r in report['rows']] == [True] * 2 + [False] * 2
    assert f"| {fan['latency'] / backbone['latency']:.2f} |" in page.read_text()
    assert page.read_text() in capsys.readouterr().out
    assert run_here(monkeypatch, 'benchmark', 'model', 'fan_resnet1O1') == 2
    assert 'fan_resnet101' in capsys.readouterr().err
    assert run_here(monkeypatch, 'benchmark', 'model', 'fan', *tiny, '--engines', 'graph') == 2
    assert '--engines graph is of CUDA devices' in capsys.readouterr().err


def test_benchmark_of_the_data(monkeypatch, capsys, coco_folder, tmp_path):
    file = tmp_path / 'data.json'
    folder = shutil.copytree(coco_folder / 'val2014', tmp_path / 'photographs')
    exif = Image.Exif()
    exif[0x0112] = 6  # the device leaves it to Pillow
    Image.open(folder / '1.jpg').save(folder / '0.jpg', exif=exif)
    options = [folder, '--img-size', '48', '--repeats', '1', '--images', '5', '--results', file]
    assert run_here(monkeypatch, 'benchmark', 'data', *options, '--device', 'cpu') == 0
    report = json.loads(file.read_text())
    assert report['images'] == 5 and report['pixel_difference']['mean'] < 0.5
    rates, output = report['images_per_second'], capsys.readouterr().out
    assert 'ours: crop, flip, decoded on cpu' in rates
    for name, rate in rates.items():
        assert f'| {name} | {rate:.0f} | {rate / rates["CSRA: flip, crop"]:.2f} x |' in output
    assert run_here(monkeypatch, 'benchmark', 'data', *options, '--repeats', '0') == 2
    assert '--repeats must be at least 1, got 0' in capsys.readouterr().err
    assert run_here(monkeypatch, 'benchmark', 'model', '--device', 'nothing') == 2
    assert "--device 'nothing'" in capsys.readouterr().err
    assert run_here(monkeypatch, 'benchmark', 'data', tmp_path / 'none') == 2
    assert 'holds no JPEG' in capsys.readouterr().err


def test_benchmark_of_the_metrics(monkeypatch, capsys):
    options = ['metrics', '--images', '300', '--classes', '5', '--repeats', '1', '--bootstrap', '5']
    assert run_here(monkeypatch, 'benchmark', *options) == 0
    values = re.findall(r'mAP alone  mAP ([\d.]+)', capsys.readouterr().out)
    assert len(values) == 3 and all(float(v) == pytest.approx(float(values[0]), abs=1e-6) for v in values)
    assert run_here(monkeypatch, 'benchmark', 'metrics', '--stream-images', '1200', '--stream-classes', '4') == 0
    assert 'is inside its bounds' in capsys.readouterr().out


def test_sweep_over_backbones(monkeypatch, capsys, tmp_path):
    table, results = tmp_path / 'page' / 'backbones.md', tmp_path / 'rows.jsonl'
    options = ['backbones', '--names', 'test_[rc]*', '--table', table, '--results', results]
    assert run_here(monkeypatch, 'benchmark', *options, '--all') == 0
    page = table.read_text()
    assert f'timm {timm.__version__}' in page and capsys.readouterr().out.startswith('# FAN over timm backbones')
    assert '| resnet | `test_resnet` | 0.4 | 8 16 32 | 48 192 96 |  | any | 1 of 1 | 1 |' in page
    assert f'{len(results.read_text().splitlines())} models tried' in page
    assert run_here(monkeypatch, 'benchmark', 'backbones', '--names', 'nothing*') == 2
    assert 'nothing*' in capsys.readouterr().err
