"""What tests of several folders use: launchers of the programs, pictures, and writers of small data sets."""
import contextlib
import csv
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import datasets
import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from hypothesis import strategies as st
from PIL import Image

from timm_fan.data import read_coco
from timm_fan.data.sources.coco import write_coco
from timm_fan.data.sources.scenes import CLASSES, ScenesPreset, encode_scene
from timm_fan.models import save_model

# the arguments of a FAN as the paper prints it
PRINTED = dict(lite=False, cln=True, joint=False, cln_residual=False, head='linear')
ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / 'train_scripts'
LABELS = ['cat', 'dog', 'person']
# one for each way in which timm returns feature maps: list, class of its own, getter with and without norm, NHWC, fixed
# size
TINY_BACKBONES = ['test_resnet', 'test_efficientnet', 'test_vit', 'test_vit_relpos', 'test_mambaout', 'test_coatnet']
# options of train.py for a run of seconds on the folder of `write_small_coco`
TINY = [
    '--config', str(SCRIPTS / 'configs' / 'scenes.yaml'), '--data', 'coco2014', '--backbone', 'test_resnet',
    '--img-size', '48', '--epochs', '2', '--batch-size', '8', '--workers', '0', '--log-with', 'none',
]


def launch(*command, processes=0, check=True, timeout=300, cpu=True) -> subprocess.CompletedProcess:
    """Run a Python program in a new process, or in several that train together."""
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


def load_program(monkeypatch, program: str) -> Any:
    """A program of train_scripts as a new module, for its functions."""
    monkeypatch.syspath_prepend(SCRIPTS)
    spec = importlib.util.spec_from_file_location(program, SCRIPTS / f'{program}.py')
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, program, module)  # other processes find its functions by name
    spec.loader.exec_module(module)
    return module


def run_here(monkeypatch, program: str, *args, prepare: Callable[[Any], None] = lambda module: None) -> int:
    """Run a program in this process, which saves the start of an interpreter; returns the exit code."""
    module = load_program(monkeypatch, program)
    prepare(module)
    monkeypatch.setattr(sys, 'argv', [f'{program}.py', *map(str, args)])
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    from command_line import run_program
    try:
        run_program(module.build_parser(), module.main)
    except SystemExit as stop:
        return stop.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


def run_killed(monkeypatch, epoch: int, *args) -> None:
    """Run train.py up to an epoch, counted from 0, at whose start it ends as if it were killed."""
    class Killed(BaseException):
        pass

    def prepare(module: Any) -> None:
        train_one_epoch = module.train_one_epoch

        def train_or_die(current: int, *args) -> float:
            if current == epoch:
                raise Killed
            return train_one_epoch(current, *args)

        module.train_one_epoch = train_or_die

    with pytest.raises(Killed):
        run_here(monkeypatch, 'train', *args, prepare=prepare)


@contextlib.contextmanager
def open_browser(width: int) -> Iterator[Any]:
    """A Chromium of this width, as Selenium's driver, a phone below 600 pixels. Skips the test without Chromium."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='requires selenium')
    chromedriver = shutil.which('chromedriver')
    if not (chromedriver and shutil.which('chromium')):
        pytest.skip("requires Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    for flag in ('headless', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run',
                 'disable-background-networking', 'disable-component-update', 'disable-sync'):
        options.add_argument(f'--{flag}')
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        size = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
        yield driver
    finally:
        driver.quit()


def history(run: Path) -> List[Dict[str, float]]:
    """Rows of history.csv of a run whose epochs were all evaluated."""
    with open(run / 'history.csv', encoding='utf-8') as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def photo(width: int = 160, height: int = 120) -> Image.Image:
    """An RGB image with smooth structure and some noise, like a photograph."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (7 + c) + y / 11) * np.cos(y / (5 + c)) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 8, (height, width, 3))
    return Image.fromarray((127 + 90 * np.stack(waves, 2) + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """The content of an image file, kind 'JPEG', 'PNG', ..."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@st.composite
def ranked_results(draw):
    """Logits with ties, and targets of 1, 0 and -1 with at least one known label, both (N, num_classes)"""
    n, c = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1)))
    logits = rng.integers(-3, 4, (n, c)) / draw(st.sampled_from([1., 2.]))
    targets = rng.choice([1, 0, -1], (n, c), p=draw(st.sampled_from([(.4, .4, .2), (.1, .8, .1), (.3, .7, 0.)])))
    targets[0, 0] = abs(targets[0, 0])
    return torch.tensor(logits), torch.tensor(targets, dtype=torch.float32)


def plain_average_precision(scores, targets) -> Optional[float]:
    """Mean over the positives of the share of positives among all that score at least as high, None without any."""
    known = [(s, t) for s, t in zip(scores, targets) if t >= 0]
    precisions = []
    for score, target in known:
        if target == 1:
            above = [t for s, t in known if s >= score]
            precisions.append(sum(above) / len(above))
    return sum(precisions) / len(precisions) if precisions else None


def small_fan(backbone: str = 'test_resnet', **kwargs) -> torch.nn.Module:
    """An untrained FAN with 7 classes, the same at each call; `kwargs` are those of the model."""
    torch.manual_seed(0)
    return timm.create_model('fan', **{'backbone': backbone, 'num_classes': 7, 'embed_dim': 16, **kwargs})


def save_small_fan(folder: Path, backbone: str = 'test_resnet', img_size: int = 64, **kwargs) -> Path:
    """Save an untrained FAN with the classes LABELS, whose logits depend on the image; returns the folder."""
    torch.manual_seed(0)
    model = timm.create_model('fan', backbone=backbone, embed_dim=16, num_classes=len(LABELS), **kwargs).eval()
    with torch.no_grad():  # the logits of a new classifier are next to 0
        model.head.fc.weight.mul_(30)
    save_model(model, folder, LABELS, dict(input_size=(3, img_size, img_size), crop_pct=0.9))
    return folder


def randomize(module: torch.nn.Module) -> torch.nn.Module:
    """Fill a module at random, in double precision: new layers contain zeros, which hide wrong connections."""
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.5
    for m in module.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean = torch.randn(m.running_mean.shape, generator=generator)
            m.running_var = torch.rand(m.running_var.shape, generator=generator) + 0.5
    return module.double().eval()


def random_map(*shape: int) -> torch.Tensor:
    """Normal numbers in double precision, the same for the same shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape))).double()


def convolve(x: np.ndarray, layer: torch.nn.Conv2d) -> np.ndarray:
    """2-D convolution of one image (C, H, W), zero padded, by its definition."""
    weight = layer.weight.detach().numpy()
    pad = weight.shape[-1] // 2
    _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((len(weight), height, width))
    for o in range(len(weight)):
        for i in range(height):
            for j in range(width):
                out[o, i, j] = (weight[o] * padded[:, i:i + 2 * pad + 1, j:j + 2 * pad + 1]).sum()
    if layer.bias is not None:
        out += layer.bias.detach().numpy()[:, None, None]
    return out


def file_contents(folder: Path) -> Dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def run_with_hub(url: str, home: Path, code: str, **env: str) -> str:
    """Output of Python code in a new process that talks to a Hub, with its cache in `home`."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'HF_ENDPOINT': url, **env,
           'HF_HOME': str(home), 'HF_HUB_DISABLE_XET': '1'}
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def pixel_difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.int() - b.int()).abs()


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Cut a file off, overwrite bytes (mostly in its header), or remove or repeat a part."""
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


def mutate_json(value: Any, chance: random.Random) -> Any:
    """Give one entry somewhere within another type or value, or remove it."""
    if isinstance(value, (dict, list)) and value and chance.random() < 0.85:
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if chance.random() < 0.2:
            del value[key]
        else:
            value[key] = mutate_json(value[key], chance)
        return value
    return chance.choice([
        None, -1, 10 ** 30, 1.5, float('nan'), '', 'x', '../../x', [], {}, [None], {'id': 1}, True, '\x00', [[]]])


def write_small_coco(root: Path, num_train: int, num_val: int, num_classes: int = 6, img_size: int = 48) -> Path:
    """Scenes in the layout of COCO 2014. Every class occurs in both splits, and category ids have gaps."""
    preset = ScenesPreset(num_classes, img_size, num_train, num_val)
    categories = [dict(id=10 * i + 3, name=c.name) for i, c in enumerate(CLASSES[:num_classes])]

    def images(split: str, count: int):
        for i in range(count):
            content, size, objects = encode_scene(preset, 0, split, i)
            # independent of the frequencies of the scenes
            yield content, size, [*objects, (i % num_classes, (0., 0., 8., 8.), 64)]

    for split, name, count in (('train', 'train2014', num_train), ('val', 'val2014', num_val)):
        write_coco(root, name, images(split, count), categories)
    return root


SPLITS = {'train': 'train2014', 'val': 'val2014'}


def write_table(coco: Path, root: Path, kind: str) -> str:
    """Write a COCO folder as tables, kind 'csv', 'csv-wide', 'tsv', 'jsonl' or 'parquet'; returns their `data`."""
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
    """Write a COCO folder as a `datasets` data set, kind 'disk', 'objects' or 'parquet'; returns its `data`."""
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


def write_tars(coco: Path, root: Path, kind: str) -> str:
    """Write a COCO folder as three shards for each split, labels as 'json', 'cls' or 'txt'; returns their `data`."""
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


def write_devkit(root: Path, year: int, sets: Dict[str, Dict[str, list]]) -> None:
    """Write a VOC devkit.

    Args:
        root: Folder of the devkit.
        year: Year of VOC.
        sets: Image set -> name of an image -> its objects, as (class name, 1 if difficult, else 0).
    """
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
