#!/usr/bin/env python3
"""Predict the labels of photographs.

    python train_scripts/predict.py photo.jpg                      # by the model that comes with timm_fan
    python train_scripts/predict.py runs/scenes photo.jpg folder/
    python train_scripts/predict.py hf-hub:REPO photo.jpg --format json
    python train_scripts/predict.py runs/scenes/export/model.onnx photo.jpg     # on the CPU

predict_onnx.py does the last without PyTorch.
"""
import argparse
import json
import sys

from command_line import (
    add_device_argument,
    add_model_and_images,
    check_device,
    create_parser,
    model_and_images,
    run_program,
)

import predict_onnx

from timm_fan import InputError
from timm_fan.data import UNREADABLE, find_images, load_image
from timm_fan.files import printable
from timm_fan.models import load_model
from timm_fan.prediction import Predictor
from timm_fan.tta import TTA, with_tta


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    add = parser.add_argument
    add_model_and_images(parser, 'image files, or folders that are searched for images')
    add('--threshold', type=float,
        help='probability above which a label is predicted (default: that of the model, or 0.5)')
    add('--topk', type=int, metavar='K', help='print the K most likely labels, whatever their probabilities')
    add('--tta', default='none', choices=TTA,
        help='flip: average the logits of each image and its mirror image, in twice the time (default: %(default)s)')
    add('--format', default='text', choices=['text', 'json'],
        help='json: one list of {file, labels} objects (default: %(default)s)')
    add_device_argument(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    if args.topk is not None and args.topk < 1:
        raise InputError(f'`topk` must be at least 1, got {args.topk}.')
    if args.threshold is not None and not 0 < args.threshold < 1:
        raise InputError(f'`threshold` must be between 0 and 1, got {args.threshold}.')
    check_device(args.device)
    is_onnx = bool(args.inputs) and args.inputs[0].lower().endswith('.onnx')
    model, images = (args.inputs[0], args.inputs[1:]) if is_onnx else model_and_images(args)
    if not images:
        raise InputError('Give images, or folders of images.')
    if is_onnx:
        predict_onnx.predict(model, images, args.threshold, args.topk, args.format)
        return
    files = find_images(images)
    network = load_model(model)
    chosen = network.thresholds_chosen_on
    if chosen and chosen['tta'] != args.tta and args.threshold is None and args.topk is None:
        sys.stderr.write(f'the thresholds of {model} were chosen with --tta {chosen["tta"]}, and may not fit\n')
    predictor = Predictor(with_tta(network, args.tta), args.device)
    results = []
    for file in files:
        try:
            photo = load_image(file)
        except UNREADABLE as error:
            sys.stderr.write(f'unreadable image {printable(file)} ({error}), left out\n')
            continue
        labels = predictor.labels(predictor.probabilities([photo])[0], args.threshold, args.topk)
        results.append(dict(
            file=str(file), labels=[dict(label=name, probability=round(p, 4)) for name, p in labels]))
        if args.format == 'text':
            print(f'{printable(file)}: {", ".join(f"{printable(name)} {p:.2f}" for name, p in labels) or "no label"}')
    if args.format == 'json':
        print(json.dumps(results, indent=2))
    if not results:
        raise InputError('No image could be read.')


if __name__ == '__main__':
    run_program(build_parser(), main)
