#!/usr/bin/env python3
"""Show where a model sees its labels, beside another model, and measure how well that fits the boxes.

    python train_scripts/explain.py runs/scenes photo.jpg --output maps
    python train_scripts/explain.py runs/scenes photo.jpg --labels dog ball --maps attention
    python train_scripts/explain.py runs/fan --beside runs/backbone --data coco2014 --data-dir DIR --output maps

With --data the pictures show images of the data set, and all of its images with boxes are measured: the pointing game
and the energy in the boxes, in OUTPUT/localization.json.
"""
import argparse
import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import List, Optional, Set, Tuple

import torch
from accelerate.utils import tqdm
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch.utils.data import IterableDataset

from timm_fan import InputError
from timm_fan.data import SOURCES, UNREADABLE, MultiLabelDataset, load_image
from timm_fan.errors import check_device, exit_on_input_error
from timm_fan.evaluation import dataset_for_model
from timm_fan.explain import activation_maps, attention_maps, crop_box, localization, overlay
from timm_fan.figures import plot_maps
from timm_fan.files import write_text
from timm_fan.models import label_names, load_model

MAPS = {'activation': activation_maps, 'attention': attention_maps}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('model', help='run or model folder of train.py, or hf-hub:REPO')
    add('images', nargs='*', help='image files')
    add('--beside', metavar='MODEL', help='another model of the same classes, in a row below')
    add('--labels', nargs='+', metavar='NAME', help='labels to show (default: the likeliest)')
    add('--topk', type=int, default=3, help='of the likeliest labels, by the first model (default: %(default)s)')
    add('--maps', default='activation', choices=MAPS,
        help="Grad-CAM of the fused features, or what the CLN attends to for them (default: activation; --beside's"
        ' are always activation)')
    add('--data', help=f'NAME[:WHERE][?OPTION=VALUE], one of {", ".join(SOURCES)}')
    add('--data-dir', default='data', help='folder of the data set (default: %(default)s)')
    add('--split', default='val', choices=['train', 'val'])
    add('--num-images', type=int, default=8, help='pictures of the data set (default: %(default)s)')
    add('--output', type=Path, default=Path('maps'), help='folder of the pictures (default: %(default)s)')
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    if bool(args.images) == bool(args.data):
        parser.error('give image files or --data')
    if args.topk < 1 or args.num_images < 1:
        parser.error('--topk and --num-images must be at least 1')
    return args


def label_indices(args: argparse.Namespace, names: List[str], logits: torch.Tensor) -> List[int]:
    if args.labels:
        return [names.index(name) for name in args.labels]
    return logits.argsort(descending=True, stable=True)[:args.topk].tolist()


def explain(
        args: argparse.Namespace,
        models: List[Tuple[str, torch.nn.Module]],
        photo: Image.Image,
        target: Optional[torch.Tensor],
        file: Path,
) -> None:
    """One picture: a row for each model, a column for each label; labels that are false stand in red."""
    names, classes, rows = label_names(models[0][1]), None, []
    for i, (name, model) in enumerate(models):
        config = resolve_model_data_config(model)
        image = create_transform(**config)(photo).to(args.device)
        if classes is None:
            with torch.inference_mode():
                classes = label_indices(args, names, model(image[None])[0])
        cams, logits = (MAPS[args.maps] if i == 0 else activation_maps)(model, image, classes)
        seen, probabilities = crop_box(photo.size, config), logits.sigmoid().tolist()
        rows.append((name, [
            (f'{names[c]} {probabilities[c]:.2f}', 'red' if target is not None and target[c] == 0 else 'black',
             overlay(photo, cam, seen)) for c, cam in zip(classes, cams)]))
    plot_maps(photo, rows, file)


def measure(args: argparse.Namespace, models: List[Tuple[str, torch.nn.Module]], dataset: MultiLabelDataset) -> None:
    records = []
    for i, (name, model) in enumerate(models):
        found = localization(
            model, dataset, resolve_model_data_config(model), tqdm(range(len(dataset)), desc=name, leave=False),
            MAPS[args.maps] if i == 0 else activation_maps)
        print(f'{name}: pointing game {100 * found.pointing:.2f} (the centre {100 * found.centre:.2f}),'
              f' energy in boxes {100 * found.energy:.2f} (uniform {100 * found.area:.2f}), {found.labels} labels')
        records.append(dict(model=name, data=args.data, split=args.split, maps=args.maps if i == 0 else 'activation',
                            **asdict(found)))
    write_text(args.output / 'localization.json', json.dumps(records, indent=2))


def main() -> None:
    args = parse_args()
    check_device(args.device)
    sources = [args.model, args.beside] if args.beside else [args.model]
    models = [(source, load_model(source).to(args.device)) for source in sources]
    names = label_names(models[0][1])
    if label_names(models[-1][1]) != names:
        raise InputError(f'{args.beside} has other classes than {args.model}.')
    unknown = [name for name in args.labels or () if name not in names]
    if unknown:
        raise InputError(f"--labels: the model has no label '{unknown[0]}'. It has: {', '.join(names)}.")
    if args.maps == 'attention':
        attention_maps(models[0][1], torch.zeros(3, *resolve_model_data_config(models[0][1])['input_size'][1:],
                                                 device=args.device), [0])
    args.output.mkdir(parents=True, exist_ok=True)
    if args.data:
        dataset = dataset_for_model(models[0][1], args.data, args.data_dir, args.split)
        if isinstance(dataset, IterableDataset):
            raise InputError(f'--data {args.data}: images of a stream cannot be picked, leave streaming out.')
        steps = torch.linspace(0, len(dataset) - 1, min(args.num_images, len(dataset))).round().long().unique()
        for i in steps.tolist():
            try:
                photo = dataset.load(i)
            except UNREADABLE as error:
                print(f'unreadable image {dataset.images.name(i)} ({error}), left out')
                continue
            explain(args, models, photo, dataset.target(i), args.output / f'{i:06d}.png')
        if dataset.boxes is None:
            print(f'no boxes in {args.data}, so no pointing game')
        else:
            measure(args, models, dataset)
    stems: Set[str] = set()
    for file in map(Path, args.images):
        try:
            photo = load_image(file)
        except UNREADABLE as error:
            raise InputError(f'unreadable image {file}: {error}') from error
        names = itertools.chain([file.stem], (f'{file.stem}-{n}' for n in itertools.count(2)))
        stem = next(name for name in names if name not in stems)
        stems.add(stem)
        explain(args, models, photo, None, args.output / f'{stem}.png')
    print(f'pictures in {args.output}')


if __name__ == '__main__':
    with exit_on_input_error():
        main()
