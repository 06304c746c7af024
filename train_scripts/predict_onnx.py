#!/usr/bin/env python3
"""Predict the labels of photographs with an ONNX file from export.py: predict.py without PyTorch.

    python train_scripts/predict_onnx.py runs/scenes/export/model.onnx photo.jpg folder/

predict.py computes ONNX files with it, and has more options. It only requires onnxruntime, numpy and Pillow. Therefore
it contains its own copies of what `timm_fan.data.images`, `timm_fan.data.transforms.eval_crop` and the formats of
`timm_fan.prediction` do: timm_fan itself imports PyTorch.
"""
import argparse
import json
import math
import os
import sys
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Dict, FrozenSet, Iterator, List, NoReturn, Tuple

import numpy as np
from PIL import Image, ImageOps

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('model', help='ONNX file of export.py')
    add('images', nargs='+', help='image files, or folders that are searched for images')
    add('--threshold', type=float,
        help='probability above which a label is predicted, 0 for all labels (default: that of the model)')
    add('--topk', type=int, metavar='K',
        help='print the K most likely labels, whatever their probabilities (default: none)')
    add('--format', default='text', choices=['text', 'jsonl'],
        help='jsonl: an object with file and labels on each line (default: %(default)s)')
    add('--batch-size', type=int, default=4, help='images that are computed at once (default: %(default)s)')
    args = parser.parse_args()
    if args.topk is not None and args.topk < 1:
        fail(f'--topk must be at least 1, got {args.topk}.')
    if args.threshold is not None and not 0 <= args.threshold < 1:
        fail(f'--threshold must be at least 0 and less than 1, got {args.threshold}.')
    if args.batch_size < 1:
        fail(f'--batch-size must be at least 1, got {args.batch_size}.')
    return args


def fail(message: str) -> NoReturn:
    sys.stderr.write(f'error: {message}\n')
    sys.exit(2)


def printable(name: Any) -> str:
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in str(name))


def walk_images(folder: str, parents: FrozenSet[str] = frozenset()) -> Iterator[str]:
    extensions, real = Image.registered_extensions(), os.path.realpath(folder)
    if real in parents:
        return
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.name.startswith(('.', '__MACOSX')):
            continue
        if entry.is_dir():
            yield from walk_images(entry.path, parents | {real})
        elif os.path.splitext(entry.name)[1].lower() in extensions and entry.is_file():
            yield str(Path(entry.path))  # without ./


def find_images(paths: List[str]) -> Iterator[str]:
    for path in map(Path, paths):
        if path.is_dir():
            found = walk_images(str(path))
            first = next(found, None)
            if first is None:
                fail(f'There is no image in {printable(path)}.')
            yield first
            yield from found
        elif path.is_file():
            yield str(path)
        else:
            fail(f'No image file or folder {printable(path)}.')


def load_image(file: str) -> Image.Image:
    try:
        with (
            warnings.catch_warnings(action='ignore', category=Image.DecompressionBombWarning),
            Image.open(file) as image,
        ):
            if max(image.size) > 100 * min(image.size):
                raise ValueError(f'{image.width} x {image.height} pixels: one side is more than 100 times the other')
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith('I;16'):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            elif image.mode in ('I', 'F'):
                values = np.nan_to_num(np.asarray(image, dtype=np.float32))
                highest = values.max()
                white = 65535. if highest > 255 else 1. if image.mode == 'F' and highest <= 1 else 255.
                image = Image.fromarray((values * (255. / white)).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
            return image.convert('RGB')
    except UNREADABLE:
        raise
    except Exception as error:  # Pillow's plugins raise anything for damaged files
        raise OSError(f'{type(error).__name__}: {error}') from error


class OnnxModel:
    """An exported model with its label names, thresholds and preprocessing.

    Args:
        file: ONNX file of export.py.
        threads: Threads that compute a batch, 0 for one per core.
    """

    def __init__(self, file: str, threads: int = 0):
        try:
            import onnxruntime
        except ImportError:
            fail('onnxruntime is required: pip install onnxruntime.')
        if not Path(file).is_file():
            fail(f'No ONNX file {file}. export.py writes one.')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            # as bytes, because onnxruntime only opens names in UTF-8
            self.content = Path(file).read_bytes()
            self.session = onnxruntime.InferenceSession(self.content, options, providers=['CPUExecutionProvider'])
            self.config = json.loads(self.session.get_modelmeta().custom_metadata_map['timm_fan'])
        except KeyError:
            fail(f'{file} was not written by export.py: it contains no label names.')
        except Exception as error:  # onnxruntime has a class for each cause
            fail(f'{file} is not a readable ONNX file ({" ".join(str(error).split())}).')
        self.names = self.config['label_names']
        self.thresholds = np.float32(self.config['thresholds'])

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Resize, crop the centre, normalize: float32 (1, 3, H, W)"""
        config = self.config
        height, width = config['input_size'][1:]
        rows, columns = (math.floor(side / config['crop_pct']) for side in (height, width))
        w, h = image.size
        if config['crop_mode'] == 'squash':
            size = columns, rows
        elif rows == columns:
            size = (rows, int(rows * h / w)) if w <= h else (int(rows * w / h), rows)
        else:
            ratio = min(w / columns, h / rows)
            size = max(1, round(w / ratio)), max(1, round(h / ratio))
        image = image.resize(size, Image.Resampling[config['interpolation'].upper()])
        left, top = (int(round((a - b) / 2)) for a, b in zip(image.size, (width, height)))
        pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / np.float32(255)
        pixels = (pixels - np.float32(config['mean'])) / np.float32(config['std'])
        return pixels.transpose(2, 0, 1)[None]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """float32 (B, 3, H, W) of `prepare` -> float32 (B, num_classes) in 0..1"""
        logits = self.session.run(None, {'image': images})[0]
        probabilities = 1 / (1 + np.exp(-logits))
        if np.isnan(probabilities).any():
            fail('The model gives NaN. Its weights are damaged.')
        return probabilities

    def predict(self, files: List[str]) -> Tuple[List[np.ndarray], Dict[str, Exception]]:
        """Probabilities of the files that can be read, and why the others cannot."""
        images, unreadable = [], {}
        for file in files:
            try:
                images.append(self.prepare(load_image(file)))
            except UNREADABLE as error:
                unreadable[file] = error
        return list(self.probabilities(np.concatenate(images))) if images else [], unreadable


def predict_files(
        model: OnnxModel, files: Iterator[str], batch_size: int, threads: int) -> Iterator[Tuple[str, Any]]:
    """Each file with its probabilities, or with the reason why it cannot be read.

    Each thread decodes and computes batches of its own. Pillow and onnxruntime let the others work meanwhile.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        while True:
            batch = list(islice(files, batch_size))
            if batch:
                waiting.append((batch, pool.submit(model.predict, batch)))
            if waiting and (len(waiting) > 2 * threads or not batch):
                done, future = waiting.popleft()
                probabilities, unreadable = future.result()
                rows = iter(probabilities)
                yield from ((file, unreadable[file] if file in unreadable else next(rows)) for file in done)
            elif not batch:
                return


def format_line(file: str, labels: List[Tuple[str, np.float32]], kind: str) -> str:
    if kind == 'text':
        return f'{printable(file)}: {", ".join(f"{printable(name)} {p:.2f}" for name, p in labels) or "no label"}'
    # the fewest digits that give the same float32
    return json.dumps(dict(file=file, labels=[dict(label=name, probability=float(str(p))) for name, p in labels]))


def main() -> None:
    for stream in (sys.stdout, sys.stderr):  # names may have characters that the terminal cannot show
        stream.reconfigure(errors='backslashreplace')
    args = parse_args()
    files = iter(list(find_images(args.images)))  # a mistake ends here, before anything is computed
    threads = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    model = OnnxModel(args.model, threads=1)
    thresholds = model.thresholds if args.threshold is None else np.float32(args.threshold)
    readable = 0
    for file, result in predict_files(model, files, args.batch_size, threads):
        if isinstance(result, Exception):
            sys.stderr.write(f'unreadable image {printable(file)} ({printable(result)})\n')
            reason = printable(result)
            print(f'{printable(file)}: unreadable ({reason})' if args.format == 'text'
                  else json.dumps(dict(file=file, unreadable=str(result))))
            continue
        readable += 1
        order = (-result).argsort(kind='stable')
        if args.topk is not None:
            order = order[:args.topk]
        elif args.threshold != 0:
            order = order[(result > thresholds)[order]]
        print(format_line(file, [(model.names[i], result[i]) for i in order], args.format))
    if not readable:
        fail('No image could be read.')


if __name__ == '__main__':
    main()
