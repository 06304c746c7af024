#!/usr/bin/env python3
"""Show where a model sees its labels, next to another model, and measure how well that matches the boxes.

    python train_scripts/explain.py photo.jpg                      # by the model that comes with timm_fan
    python train_scripts/explain.py runs/scenes photo.jpg folder/ --output maps
    python train_scripts/explain.py runs/scenes photo.jpg --labels tree ball --maps attention
    python train_scripts/explain.py runs/fan --beside runs/backbone --data coco2014 --data-dir DIR --output maps

With --data, the pictures show images of the data set, and all its images with boxes are measured: the pointing game and
the energy in the boxes, in OUTPUT/localization.json.
"""
import argparse
import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Dict, List, Optional, Set

from command_line import (
    add_data_arguments,
    add_device_argument,
    add_model_and_images,
    check_device,
    create_parser,
    model_and_images,
    run_program,
)

import torch
from accelerate.utils import tqdm
from PIL import Image

from timm_fan import InputError
from timm_fan.data import UNREADABLE, MultiLabelDataset, find_images, load_image
from timm_fan.evaluation import check_class_names, dataset_for_model
from timm_fan.explain import activation_maps, attention_maps, localization, overlay
from timm_fan.files import printable, write_text
from timm_fan.metrics import percent, short_name, some_names
from timm_fan.models import BUNDLED
from timm_fan.prediction import Predictor
from timm_fan.report import plot_maps

MAPS = {'activation': activation_maps, 'attention': attention_maps}


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    add = parser.add_argument
    add_model_and_images(parser, 'image files, or folders that are searched for images')
    add('--beside', metavar='MODEL', help='another model with the same classes, in a second row')
    add('--labels', nargs='+', metavar='NAME', help='labels to show (default: the most likely ones)')
    add('--topk', type=int, default=3, help='number of the most likely labels, by the first model (default: 3)')
    add('--maps', default='activation', choices=MAPS,
        help='activation: Grad-CAM of the fused features; attention: from where the CLN brings evidence for the label'
        ' (default: activation; always for the model of --beside)')
    add_data_arguments(parser, default=None, split=True)
    add('--num-images', type=int, default=8, help='pictures of the data set (default: %(default)s)')
    add('--output', type=Path, default=Path('maps'), help='folder of the pictures (default: %(default)s)')
    add_device_argument(parser)
    return parser


class Explainer:
    """One or two models with the same classes, and the maps to show of each."""

    def __init__(self, model: str, args: argparse.Namespace):
        sources = [model, args.beside] if args.beside else [model]
        self.models: Dict[str, Predictor] = {source: Predictor.load(source, args.device) for source in sources}
        self.first = self.models[model]
        self.maps = {source: MAPS[args.maps] if source == model else activation_maps for source in sources}
        self.topk, self.names = args.topk, args.labels
        for predictor in self.models.values():
            check_class_names(self.first.names, predictor.names, 'other model')
        unknown = [name for name in args.labels or () if name not in self.first.names]
        if unknown:
            known = some_names(self.first.names)
            raise InputError(f"`labels`: the model has no label '{unknown[0]}'. It has: {known}.")

    def classes(self, photo: Image.Image) -> List[int]:
        """Class indices of the labels to show."""
        if self.names:
            return [self.first.names.index(name) for name in self.names]
        probabilities = self.first.probabilities([photo])[0]
        return probabilities.argsort(descending=True, stable=True)[:self.topk].tolist()

    def picture(self, photo: Image.Image, target: Optional[torch.Tensor], file: Path) -> None:
        """A row for each model, a column for each label. Labels that are absent in `target` are red."""
        classes, rows = self.classes(photo), []
        for source, predictor in self.models.items():
            cams, logits = self.maps[source](predictor.model, predictor.prepare([photo])[0], classes)
            seen, probabilities = predictor.crop(photo).box(*photo.size), logits.sigmoid().tolist()
            rows.append((printable(source), [
                (f'{short_name(predictor.names[c])} {probabilities[c]:.2f}',
                 'red' if target is not None and target[c] == 0 else 'black', overlay(photo, cam, seen))
                for c, cam in zip(classes, cams)]))
        plot_maps(photo, rows, file)


def explain_dataset(args: argparse.Namespace, explainer: Explainer, dataset: MultiLabelDataset) -> None:
    chosen = torch.linspace(0, len(dataset) - 1, min(args.num_images, len(dataset))).round().long().unique()
    for i in chosen.tolist():
        try:
            photo = dataset.load(i)
        except UNREADABLE as error:
            print(f'unreadable image {printable(dataset.images.name(i))} ({error}), left out')
            continue
        explainer.picture(photo, dataset.target(i), args.output / f'{i:06d}.png')
    if dataset.boxes is None:
        print(f'no boxes in {args.data}, so no pointing game')
        return
    records = []
    for source, predictor in explainer.models.items():
        bar = tqdm(range(len(dataset)), desc=source, leave=False)
        found = localization(predictor, dataset, bar, explainer.maps[source])
        print(f'{source}: pointing game {percent(found.pointing)} (the centre {percent(found.centre)}),'
              f' energy in boxes {percent(found.energy)} (uniform {percent(found.area)}), labels {found.labels}')
        kind = next(name for name, maps in MAPS.items() if maps is explainer.maps[source])
        records.append(dict(model=source, data=args.data, split=args.split, maps=kind, **asdict(found)))
    write_text(args.output / 'localization.json', json.dumps(records, indent=2))


def explain_files(args: argparse.Namespace, explainer: Explainer, files: List[Path]) -> None:
    stems: Set[str] = set()
    for file in files:
        try:
            photo = load_image(file)
        except UNREADABLE as error:
            sys.stderr.write(f'unreadable image {printable(file)} ({error}), left out\n')
            continue
        names = itertools.chain([file.stem], (f'{file.stem}-{n}' for n in itertools.count(2)))
        stem = next(name for name in names if name not in stems)
        stems.add(stem)
        explainer.picture(photo, None, args.output / f'{stem}.png')
    if not stems:
        raise InputError('No image could be read.')


def main(args: argparse.Namespace) -> None:
    model, images = model_and_images(args)
    if images and args.data and model == BUNDLED:
        raise InputError(f'No model {images[0]}. With `data`, give a run or model folder, or hf-hub:REPO.')
    if bool(images) == bool(args.data):
        raise InputError('Give image files or `data`.')
    if args.topk < 1 or args.num_images < 1:
        raise InputError('`topk` and `num_images` must be at least 1.')
    check_device(args.device)
    files = find_images(images)
    if args.output.resolve() in {file.resolve().parent for file in files}:
        raise InputError(f'`output={args.output}` is the folder of the images. Choose another one.')
    explainer = Explainer(model, args)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.data:
        dataset = dataset_for_model(explainer.first.model, args.data, args.data_dir, args.split)
        explain_dataset(args, explainer, dataset)
    else:
        explain_files(args, explainer, files)
    print(f'pictures in {printable(args.output)}')


if __name__ == '__main__':
    run_program(build_parser(), main)
