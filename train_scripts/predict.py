#!/usr/bin/env python3
"""Name what is on photographs.

    python train_scripts/predict.py runs/scenes photo.jpg folder/
    python train_scripts/predict.py hf-hub:REPO photo.jpg --format json
    python train_scripts/predict.py model.onnx photo.jpg --onnx            # of export.py; no PyTorch needed
"""
import argparse
import json
import math
import sys
from pathlib import Path
from typing import List, NoReturn

import numpy as np
from PIL import Image, ImageOps

# as in timm_fan.data, which would import PyTorch: what Pillow raises for an image that it cannot decode
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('model', help='run or model folder of train.py, hf-hub:REPO, or with --onnx a file of export.py')
    add('images', nargs='+', help='image files, or folders that are searched for images')
    add('--onnx', action='store_true', help='run an ONNX file on onnxruntime alone')
    add('--threshold', type=float, help="probability above which a label is given (default: the model's own, or 0.5)")
    add('--topk', type=int, help='give the K highest labels instead, whatever their probabilities')
    add('--format', default='text', choices=['text', 'json'], help='json: one list of {file, labels} objects')
    add('--device', help='default: cuda where there is one')
    return parser.parse_args()


def fail(message: str) -> NoReturn:
    sys.stderr.write(f'error: {message}\n')
    sys.exit(2)


def find_images(paths: List[str]) -> List[Path]:
    extensions = Image.registered_extensions()
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob('*') if p.suffix.lower() in extensions)
            if not found:
                fail(f'{path} holds no image.')
            files += found
        elif path.is_file():
            files.append(path)
        else:
            fail(f'No image file or folder {path}.')
    return files


class TorchPredictor:
    """Probabilities from PyTorch.

    Attributes:
        names: In the order of the probabilities.
        thresholds: Probability above which a label is predicted, (num_classes,).
    """

    def __init__(self, source: str, device: str):
        import torch
        from timm.data import create_transform, resolve_model_data_config

        from timm_fan.errors import check_device
        from timm_fan.models import fold_batch_norm, label_names, load_model, model_thresholds

        self.device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
        check_device(self.device)
        self.model = load_model(source).to(self.device)
        data_config = resolve_model_data_config(self.model)
        fold_batch_norm(self.model, data_config['input_size'])
        self.transform = create_transform(**data_config)
        self.names = label_names(self.model)
        self.thresholds = np.broadcast_to(np.float32(model_thresholds(self.model)), len(self.names))

    def __call__(self, file: Path) -> np.ndarray:
        import torch

        from timm_fan.data import load_image

        image = self.transform(load_image(file))[None].to(self.device)
        with torch.inference_mode():
            return self.model(image).sigmoid()[0].float().cpu().numpy()


def load_plain(file: Path) -> Image.Image:
    """As timm_fan.data's load_image, which needs PyTorch."""
    try:
        with Image.open(file) as image:
            if max(image.size) > 100 * min(image.size):
                raise ValueError(f'{image.width} x {image.height} pixels are a line and no image')
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
    except Exception as error:  # Pillow's plugins raise what they like on damaged files
        raise OSError(f'{type(error).__name__}: {error}') from error


class OnnxPredictor:
    """The same from an ONNX file that export.py wrote, with numpy and Pillow only."""

    def __init__(self, file: str):
        try:
            import onnxruntime
        except ImportError:
            fail('--onnx needs onnxruntime: pip install onnxruntime.')
        if not Path(file).is_file():
            fail(f'No ONNX file {file}. train_scripts/export.py writes one.')
        try:
            self.session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
            self.config = json.loads(self.session.get_modelmeta().custom_metadata_map['timm_fan'])
        except KeyError:
            fail(f'{file} was not written by train_scripts/export.py: it carries no label names.')
        except Exception as error:  # onnxruntime's own, one class for each cause
            fail(f'{file} is no readable ONNX file ({" ".join(str(error).split())}).')
        self.names = self.config['label_names']
        self.thresholds = np.float32(self.config['thresholds'])

    def transform(self, image: Image.Image) -> np.ndarray:
        """As timm's evaluation transform: resize the short side, crop the centre, normalize; (1, 3, H, W)."""
        config = self.config
        height, width = config['input_size'][1:]
        scale_height, scale_width = (math.floor(s / config['crop_pct']) for s in (height, width))
        if config['crop_mode'] == 'squash':
            size = scale_width, scale_height
        else:
            w, h = image.size
            size = (scale_height, int(scale_height * h / w)) if w <= h else (int(scale_height * w / h), scale_height)
        image = image.resize(size, Image.Resampling[config['interpolation'].upper()])
        left, top = (int(round((a - b) / 2)) for a, b in zip(image.size, (width, height)))
        pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / np.float32(255)
        pixels = (pixels - np.float32(config['mean'])) / np.float32(config['std'])
        return pixels.transpose(2, 0, 1)[None]

    def __call__(self, file: Path) -> np.ndarray:
        logits = self.session.run(None, {'image': self.transform(load_plain(file))})[0][0]
        return 1 / (1 + np.exp(-logits))


def main() -> None:
    args = parse_args()
    if args.topk is not None and args.topk < 1:
        fail(f'--topk must be at least 1, got {args.topk}.')
    if args.threshold is not None and not 0 < args.threshold < 1:
        fail(f'--threshold must be between 0 and 1, got {args.threshold}.')
    files = find_images(args.images)
    if args.onnx:
        predict = OnnxPredictor(args.model)
    else:
        from timm_fan.errors import exit_on_input_error
        with exit_on_input_error():
            predict = TorchPredictor(args.model, args.device)
    thresholds = predict.thresholds if args.threshold is None else np.float32(args.threshold)

    results, unreadable = [], 0
    for file in files:
        try:
            probabilities = predict(file)
        except UNREADABLE as error:
            sys.stderr.write(f'unreadable image {file} ({error}), left out\n')
            unreadable += 1
            continue
        if np.isnan(probabilities).any():
            fail(f'{args.model} gives NaN for {file}: its weights are broken.')
        order = (-probabilities).argsort(kind='stable')
        order = order[:args.topk] if args.topk is not None else order[(probabilities > thresholds)[order]]
        labels = [dict(label=predict.names[i], probability=round(float(probabilities[i]), 4)) for i in order]
        results.append(dict(file=str(file), labels=labels))
        if args.format == 'text':
            print(f'{file}: ' + (', '.join(f'{x["label"]} {x["probability"]:.2f}' for x in labels) or 'no label'))
    if args.format == 'json':
        print(json.dumps(results, indent=2))
    if unreadable == len(files):
        fail('No image could be read.')


if __name__ == '__main__':
    main()
