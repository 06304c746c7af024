#!/usr/bin/env python3
"""Name what is on photographs.

    python train_scripts/predict.py runs/scenes photo.jpg folder/
    python train_scripts/predict.py hf-hub:REPO photo.jpg --format json
"""
import argparse
import json
import sys
from pathlib import Path
from typing import List

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from timm_fan import InputError
from timm_fan.data import UNREADABLE, load_image
from timm_fan.errors import exit_on_input_error
from timm_fan.models import label_names, load_model, model_thresholds


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('model', help='run or model folder of train.py, or hf-hub:REPO')
    add('images', nargs='+', help='image files, or folders that are searched for images')
    add('--threshold', type=float, help="probability above which a label is given (default: the model's own, or 0.5)")
    add('--topk', type=int, help='give the K highest labels instead, whatever their probabilities')
    add('--format', default='text', choices=['text', 'json'], help='json: one list of {file, labels} objects')
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser.parse_args()


def find_images(paths: List[str]) -> List[Path]:
    extensions = Image.registered_extensions()
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob('*') if p.suffix.lower() in extensions)
            if not found:
                raise InputError(f'{path} holds no image.')
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f'No image file or folder {path}.')
    return files


@torch.inference_mode()
def main() -> None:
    args = parse_args()
    if args.topk is not None and args.topk < 1:
        raise InputError(f'--topk must be at least 1, got {args.topk}.')
    files = find_images(args.images)
    model = load_model(args.model).to(args.device)
    transform = create_transform(**resolve_model_data_config(model))
    names = label_names(model)
    thresholds = torch.as_tensor(model_thresholds(model) if args.threshold is None else args.threshold)

    results, unreadable = [], 0
    for file in files:
        try:
            image = load_image(file)
        except UNREADABLE as error:
            sys.stderr.write(f'unreadable image {file} ({error}), left out\n')
            unreadable += 1
            continue
        probabilities = model(transform(image)[None].to(args.device)).sigmoid()[0]
        order = probabilities.argsort(descending=True)
        if args.topk is not None:
            order = order[:args.topk]
        else:
            order = order[(probabilities > thresholds.to(probabilities))[order]]
        labels = [dict(label=names[i], probability=round(probabilities[i].item(), 4)) for i in order.tolist()]
        results.append(dict(file=str(file), labels=labels))
        if args.format == 'text':
            print(f'{file}: ' + (', '.join(f'{x["label"]} {x["probability"]:.2f}' for x in labels) or 'no label'))
    if args.format == 'json':
        print(json.dumps(results, indent=2))
    if unreadable == len(files):
        raise InputError('No image could be read.')


if __name__ == '__main__':
    with exit_on_input_error():
        main()
