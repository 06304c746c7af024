"""Images per second of predict.py, next to its parts alone and to other ways to predict the same photographs."""
import argparse
import gc
import json
import logging
import os
import resource
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from command_line import add_device_argument, check_device

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data import ImageDataset, create_loader
from timm.data.readers.reader import Reader
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks.timing import beside_busy_process, seconds
from timm_fan.data import ImageFiles, load_image
from timm_fan.files import write_text
from timm_fan.models import BUNDLED, load_model, model_folder
from timm_fan.models.pretrained import WEIGHTS
from timm_fan.prediction import (
    EncodedPhotos,
    Predictor,
    default_batch_size,
    find_photos,
    fold_batch_norms,
    predict_photos,
)
from timm_fan.prediction.engine import _collate, _Transformed
from timm_fan.prediction.predictor import DTYPES
from timm_fan.processes import prediction_cores
from timm_fan.provenance import environment

LOADER, MODEL, ENGINE, SINGLY = 'loader alone', 'model alone', 'predict.py', 'one image at a time'
TIMM, PIPELINE = 'timm: create_loader and a loop', 'transformers: pipeline'
BUSY = 'predict.py beside a busy process'
OTHERS = [BUSY, SINGLY, TIMM, PIPELINE]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('folder', type=Path, nargs='?', help='photographs (default: JPEGs of about 500 px that are drawn)')
    add('--model', default=BUNDLED, metavar='NAME', help='model, as for predict.py (default: %(default)s)')
    add('--images', type=int, default=200, metavar='N', help='number of photographs (default: %(default)s)')
    add('--batch-size', type=int, help='(default: 64 on a GPU, 4 on a CPU)')
    add('--workers', type=int, help='decoding processes (default: one per core)')
    add('--mixed-precision', default='no', choices=list(DTYPES), help='(default: %(default)s)')
    add('--torchcompile', action='store_true', help='compile the model for predict.py and alone')
    add('--contenders', nargs='+', choices=OTHERS, default=OTHERS, metavar='NAME',
        help='others to measure (default: all)')
    add('--repeats', type=int, default=5, metavar='N', help='rounds (default: %(default)s)')
    add('--memory-images', type=int, default=0, metavar='N',
        help='instead, the memory of predict.py after a tenth of N images and after all (default: 0)')
    add('--results', type=Path, help='write a JSON file')
    add('--table', type=Path, help='write the table as Markdown')
    add_device_argument(parser)


def draw_photographs(folder: Path, count: int) -> None:
    """JPEGs of about 500 px and 60 kB, whose blurred noise decodes about as fast as a photograph."""
    random = np.random.default_rng(0)
    for i in range(count):
        size = (500, 375) if i % 4 else (375, 500)
        coarse = Image.fromarray(random.integers(0, 256, (size[1] // 25, size[0] // 25, 3), dtype=np.uint8))
        fine = random.normal(0, 12, (size[1], size[0], 3))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32) + fine
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))
        image.save(folder / f'{i:06d}.jpg', quality=90)


class _Files(Reader):
    """timm's reader for a list of files."""

    def __init__(self, files: List[str]):
        super().__init__()
        self.files = files

    def __getitem__(self, index: int) -> Tuple[Any, int]:
        return open(self.files[index], 'rb'), 0

    def __len__(self) -> int:
        return len(self.files)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self.files[index]


class Benchmark:
    """The contenders for some photographs, each a function without arguments."""

    def __init__(self, files: List[str], args: argparse.Namespace):
        self.files, self.args, self.device = files, args, torch.device(args.device)
        self.all_threads = torch.get_num_threads()
        self.workers, self.threads = prediction_cores(args.workers, self.device.type)
        self.few_threads = torch.get_num_threads()
        network = load_model(args.model)
        self.predictor = Predictor(fold_batch_norms(network), self.device, args.mixed_precision, args.torchcompile)
        self.plain = Predictor(network, self.device, args.mixed_precision)
        self.photos = EncodedPhotos(ImageFiles('', files))
        self.batch = torch.randint(
            0, 256, (args.batch_size, *self.predictor.data_config['input_size']), dtype=torch.uint8)
        self.unavailable: Dict[str, str] = {}

    def contenders(self) -> Dict[str, Callable[[], Any]]:
        args = self.args
        if args.torchcompile:
            self.predictor.compute(self.batch)
        found = {LOADER: self.load, MODEL: self.compute, ENGINE: self.predict}
        others = {
            BUSY: beside_busy_process(self.predict), SINGLY: self.predict_singly, TIMM: self.predict_by_timm}
        found.update({name: run for name, run in others.items() if name in args.contenders})
        if PIPELINE in args.contenders:
            pipeline = self.create_pipeline()
            if pipeline is not None:
                found[PIPELINE] = pipeline
        return found

    def set_threads(self, name: str) -> None:
        ours = name in (LOADER, MODEL, ENGINE, BUSY)
        torch.set_num_threads(self.few_threads if ours else self.all_threads)

    def load(self) -> None:
        loader = DataLoader(
            _Transformed(self.photos, self.predictor.transform), self.args.batch_size, num_workers=self.workers,
            collate_fn=_collate, pin_memory=torch.cuda.is_available())
        for _ in loader:
            pass

    def compute(self) -> None:
        """As many batches as there are, by the threads of predict.py, on images in memory."""
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(
                lambda _: self.predictor.compute(self.batch), range(-(-len(self.files) // self.args.batch_size))))

    def predict(self) -> None:
        for _ in predict_photos(
                self.predictor, self.photos, self.args.batch_size, self.workers, self.threads,
                pad=self.args.torchcompile):
            pass

    def predict_singly(self) -> None:
        """In one process, as predict.py did before it had batches."""
        for file in self.files:
            self.plain.probabilities([load_image(file)])

    def predict_by_timm(self) -> None:
        """The loop of timm's inference.py."""
        config = self.plain.data_config
        loader = create_loader(
            ImageDataset('', reader=_Files(self.files)), batch_size=self.args.batch_size, use_prefetcher=self._cuda,
            num_workers=self.workers, device=self.device, **config)
        for images, _ in loader:
            with torch.inference_mode(), self._autocast():
                probabilities = self.plain.model(images.to(self.device)).sigmoid()
            probabilities.float().cpu()

    @property
    def _cuda(self) -> bool:
        return self.device.type == 'cuda'

    def _autocast(self) -> torch.autocast:
        dtype = DTYPES[self.args.mixed_precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def create_pipeline(self) -> Optional[Callable[[], None]]:
        """The image classification pipeline of transformers, if it is installed and can load the model."""
        try:
            from transformers import pipeline
            from transformers.utils import logging as transformers_logging
            transformers_logging.set_verbosity_error()
            run = pipeline(  # not in the half precision of the file
                'image-classification', model=local_folder(self.args.model), device=self.device, dtype=torch.float32,
                function_to_apply='sigmoid', batch_size=self.args.batch_size, num_workers=self.workers)
            run(self.files[:2])
        except Exception as error:  # it has no common class for what it cannot load
            self.unavailable[PIPELINE] = f'{type(error).__name__}: {(str(error).splitlines() or [""])[0]:.200}'
            return None

        def predict() -> None:
            with torch.inference_mode(), self._autocast():
                for _ in run(self.files, top_k=len(self.plain.names)):
                    pass
        return predict


def local_folder(name: str) -> str:
    """The folder of a model for transformers, which knows no names of timm_fan."""
    if Path(name).is_dir():
        return str(model_folder(name))
    bundled = WEIGHTS / name
    return str(bundled) if bundled.is_dir() else name.removeprefix('hf-hub:')


def measure(benchmark: Benchmark, repeats: int) -> Dict[str, List[float]]:
    """Images per second of each contender in each round."""
    contenders = benchmark.contenders()
    rates: Dict[str, List[float]] = {name: [] for name in contenders}
    for number in tqdm(range(repeats + 1), desc='rounds', leave=False):
        for name, run in contenders.items():
            benchmark.set_threads(name)
            gc.collect()
            elapsed = seconds(run, benchmark.args.device)
            if number:  # the first one warms up
                rates[name].append(len(benchmark.files) / elapsed)
    return rates


def bound(rates: Dict[str, float], device: str) -> float:
    """What the parts allow: the slower one; on a CPU, whose cores they share, both after one another on all cores."""
    loader, model = rates[LOADER], rates[MODEL]
    return 1 / (1 / loader + 1 / model) if torch.device(device).type == 'cpu' else min(loader, model)


def run(args: argparse.Namespace) -> None:
    check_device(args.device)
    if args.batch_size is None:
        args.batch_size = default_batch_size(torch.device(args.device))
    for name in ('timm', 'transformers'):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        if args.folder is None:
            draw_photographs(Path(temporary), args.images)
        images = find_photos([args.folder or temporary])
        files = [images.key(i) for i in range(min(args.images, len(images)))]
        report = memory_report(files, args) if args.memory_images else speed_report(files, args)
    text = report.pop('text')
    print(text)
    if args.results:
        write_text(args.results, json.dumps(report, indent=1))
    if args.table:
        write_text(args.table, text + '\n')


def speed_report(files: List[str], args: argparse.Namespace) -> Dict[str, Any]:
    benchmark = Benchmark(files, args)
    rounds = measure(benchmark, args.repeats)
    rates = {name: statistics.median(values) for name, values in rounds.items()}
    report = dict(
        model=args.model, images=len(files), generated=args.folder is None, batch_size=args.batch_size,
        workers=benchmark.workers, threads=benchmark.threads, mixed_precision=args.mixed_precision,
        torchcompile=args.torchcompile, repeats=args.repeats, load_average=os.getloadavg()[0],
        input_size=benchmark.predictor.data_config['input_size'], images_per_second=rates, rounds=rounds,
        bound=bound(rates, args.device), unavailable=benchmark.unavailable, **environment(args.device))
    return {**report, 'text': format_report(report, args.device)}


def format_report(report: Dict[str, Any], device: str) -> str:
    """Markdown."""
    rates, limit, ours = report['images_per_second'], report['bound'], report['images_per_second'][ENGINE]
    cpu = torch.device(device).type == 'cpu'
    rule = '1 / (1 / loader + 1 / model), because they share the cores' if cpu else 'the slower part'
    lines = [
        f'{report["images"]} {"drawn JPEGs of 500 px" if report["generated"] else "photographs"}, {report["model"]} at'
        f' {report["input_size"][-1]} px, batch size {report["batch_size"]}, {report["workers"]} decoding processes,'
        f' {report["threads"]} batches at a time, mixed precision {report["mixed_precision"]}'
        f'{", compiled" if report["torchcompile"] else ""}; median of {report["repeats"]} rounds in turn;'
        f' {report["hardware"]}, torch {report["versions"]["torch"]}, load average {report["load_average"]:.1f}',
        '', '| | images/s | predict.py is | |', '|---|---|---|---|',
        *(f'| {name} | {rate:.1f} | {ours / rate:.2f} x | {min(report["rounds"][name]):.1f} to'
          f' {max(report["rounds"][name]):.1f} |' for name, rate in rates.items()),
        f'| what the parts allow: {rule} | {limit:.1f} | {ours / limit:.2f} x | |',
        *(['', f'Half of the slower part alone, its share of the cores: {min(rates[LOADER], rates[MODEL]) / 2:.1f}.']
          if cpu else []),
        '', f'A million photographs take {1e6 / ours / 3600:.1f} hours at this rate.',
        *(f'{name} is left out: {reason}.' for name, reason in report['unavailable'].items())]
    return '\n'.join(lines)


def memory_report(files: List[str], args: argparse.Namespace) -> Dict[str, Any]:
    """The highest resident memory of this process after a tenth of the images, and after all of them."""
    count = args.memory_images
    predictor = Predictor(fold_batch_norms(load_model(args.model)), args.device, args.mixed_precision)
    workers, threads = prediction_cores(args.workers, torch.device(args.device).type)
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as names:
        names.writelines(f'{files[i % len(files)]}\n' for i in range(count))
        names.flush()
        images = find_photos([], names.name)
    peaks, done = [], 0
    for batch in tqdm(predict_photos(predictor, EncodedPhotos(images), args.batch_size, workers, threads),
                      total=-(-count // args.batch_size), leave=False):
        before, done = done, done + len(batch.indices)
        if before < count // 10 <= done or done == count:
            peaks.append(_peak_memory())
    text = (f'{count // 10:,} images: {peaks[0] / 2 ** 20:.0f} MiB at most; {count:,} images: {peaks[-1] / 2 ** 20:.0f}'
            ' MiB at most (the process that computes)')
    return dict(
        model=args.model, memory_images=count, batch_size=args.batch_size, peaks=peaks, text=text,
        **environment(args.device))


def _peak_memory() -> int:
    """Bytes; ru_maxrss is in KiB on Linux."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


