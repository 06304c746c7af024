#!/usr/bin/env python3
"""Predict the labels of photographs with an ONNX file from export.py: predict.py without PyTorch.

    python train_scripts/predict_onnx.py runs/scenes/export/model.onnx photo.jpg folder/

predict.py uses it for ONNX files. It only requires onnxruntime, numpy and Pillow. Therefore it contains its own copies
of what `timm_fan.data.images`, `timm_fan.data.transforms.eval_crop` and `timm_fan.files.printable` do: timm_fan itself
imports PyTorch.
"""
import argparse
import json
import math
import sys
import warnings
from pathlib import Path
from typing import List, NoReturn, Optional

import numpy as np
from PIL import Image, ImageOps

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('model', help='ONNX file of export.py')
    add('images', nargs='+', help='image files, or folders that are searched for images')
    add('--threshold', type=float, help='probability above which a label is predicted (default: that of the model)')
    add('--topk', type=int, metavar='K',
        help='print the K most likely labels, whatever their probabilities (default: none)')
    add('--format', default='text', choices=['text', 'json'],
        help='json: one list of {file, labels} objects (default: %(default)s)')
    args = parser.parse_args()
    if args.topk is not None and args.topk < 1:
        fail(f'--topk must be at least 1, got {args.topk}.')
    if args.threshold is not None and not 0 < args.threshold < 1:
        fail(f'--threshold must be between 0 and 1, got {args.threshold}.')
    return args


def fail(message: str) -> NoReturn:
    sys.stderr.write(f'error: {message}\n')
    sys.exit(2)


def printable(name: Path) -> str:
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in str(name))


def find_images(paths: List[str]) -> List[Path]:
    extensions = Image.registered_extensions()
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob('*') if p.suffix.lower() in extensions)
            if not found:
                fail(f'There is no image in {printable(path)}.')
            files += found
        elif path.is_file():
            files.append(path)
        else:
            fail(f'No image file or folder {printable(path)}.')
    return files


def load_image(file: Path) -> Image.Image:
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
    """An exported model with its label names, thresholds and preprocessing."""

    def __init__(self, file: str):
        try:
            import onnxruntime
        except ImportError:
            fail('onnxruntime is required: pip install onnxruntime.')
        if not Path(file).is_file():
            fail(f'No ONNX file {file}. export.py writes one.')
        try:
            # as bytes, because onnxruntime only opens names in UTF-8
            content = Path(file).read_bytes()
            self.session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
            self.config = json.loads(self.session.get_modelmeta().custom_metadata_map['timm_fan'])
        except KeyError:
            fail(f'{file} was not written by export.py: it contains no label names.')
        except Exception as error:  # onnxruntime has a class for each cause
            fail(f'{file} is not a readable ONNX file ({" ".join(str(error).split())}).')
        self.names = self.config['label_names']
        self.thresholds = np.float32(self.config['thresholds'])

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Resize, crop the centre, normalize: (1, 3, H, W)"""
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

    def probabilities(self, image: Image.Image) -> np.ndarray:
        logits = self.session.run(None, {'image': self.prepare(image)})[0][0]
        return 1 / (1 + np.exp(-logits))


def predict(
        model_file: str, images: List[str], threshold: Optional[float], topk: Optional[int], kind: str) -> None:
    """Print the labels of images, by the arguments of the command line."""
    files = find_images(images)
    model = OnnxModel(model_file)
    thresholds = model.thresholds if threshold is None else np.float32(threshold)
    results = []
    for file in files:
        try:
            probabilities = model.probabilities(load_image(file))
        except UNREADABLE as error:
            sys.stderr.write(f'unreadable image {printable(file)} ({error}), left out\n')
            continue
        if np.isnan(probabilities).any():
            fail('The model gives NaN. Its weights are damaged.')
        order = (-probabilities).argsort(kind='stable')
        order = order[:topk] if topk is not None else order[(probabilities > thresholds)[order]]
        labels = [(model.names[i], float(probabilities[i])) for i in order]
        results.append(dict(
            file=str(file), labels=[dict(label=name, probability=round(p, 4)) for name, p in labels]))
        if kind == 'text':
            print(f'{printable(file)}: {", ".join(f"{printable(name)} {p:.2f}" for name, p in labels) or "no label"}')
    if kind == 'json':
        print(json.dumps(results, indent=2))
    if not results:
        fail('No image could be read.')


def main() -> None:
    for stream in (sys.stdout, sys.stderr):  # names may have characters that the terminal cannot show
        stream.reconfigure(errors='backslashreplace')
    args = parse_args()
    predict(args.model, args.images, args.threshold, args.topk, args.format)


if __name__ == '__main__':
    main()
