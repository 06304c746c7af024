"""Images per second of one core, from encoded photographs to training batches, next to other pipelines."""
import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import torch
from accelerate.utils import set_seed
from PIL import Image
from timm.data import create_transform as create_timm_transform
from torch.utils.data import default_collate
from torchvision import transforms as v1

from benchmarks.timing import median_seconds, seconds
from timm_fan import InputError
from timm_fan.data import (
    UNREADABLE,
    EvalTransform,
    MultiLabelDataset,
    Normalize,
    Sample,
    create_dataset,
    create_train_transform,
    load_image,
    write_shards,
)
from timm_fan.data.loaders import stack_images
from timm_fan.files import write_text
from timm_fan.provenance import environment

BATCH_SIZE = 32
CONFIG = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation='bilinear')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('folder', type=Path, help='photographs (JPEG)')
    add('--img-size', type=int, default=448, metavar='N', help='image size in pixels (default: %(default)s)')
    add('--short-side', type=int, metavar='N', help='of prepared images, in pixels (default: 8/7 of --img-size)')
    add('--images', type=int, default=100, metavar='N',
        help='number of photographs, the first by name (default: %(default)s)')
    add('--repeats', type=int, default=5, metavar='N', help='rounds (default: %(default)s)')
    add('--results', type=Path, help='write a JSON file')


class Cutout:
    """A square of half the side at a random position: https://arxiv.org/abs/1708.04552"""

    def __call__(self, image: Image.Image) -> Image.Image:
        pixels, half = np.array(image), min(image.size) // 4
        y, x = np.random.randint(image.height), np.random.randint(image.width)
        pixels[max(0, y - half):y + half, max(0, x - half):x + half] = np.random.randint(0, 256, 3)
        return Image.fromarray(pixels)


def pipelines(size: int) -> Dict[str, Callable[[Image.Image], torch.Tensor]]:
    """From PIL image to tensor. Those of other methods are composed as in their training code, on Pillow images."""
    _, rand_augment, _ = create_timm_transform(
        (3, size, size), **CONFIG, is_training=True, auto_augment='rand-m9-n2', separate=True)
    end = [v1.ToTensor(), v1.Normalize(CONFIG['mean'], CONFIG['std'])]
    config = dict(input_size=(3, size, size), **CONFIG)
    return {
        'CSRA: flip, crop': v1.Compose([
            v1.RandomHorizontalFlip(), v1.RandomResizedCrop(size, scale=(0.7, 1.)), *end]),
        'ML-Decoder, Query2Label: cutout, RandAugment': v1.Compose([
            v1.Resize((size, size)), Cutout(), rand_augment, *end]),
        'timm: crop, flip': create_timm_transform(
            (3, size, size), **CONFIG, is_training=True, scale=(0.7, 1.), color_jitter=None),
        'ours: crop, flip': create_train_transform(config, (0.7, 1.)),
        'ours: crop, flip, RandAugment': create_train_transform(config, (0.7, 1.), 'rand-m9-n2'),
    }


def batches(encoded: List[bytes], transform: Callable[[Image.Image], Any], make_batch: Callable) -> None:
    for first in range(0, len(encoded), BATCH_SIZE):
        make_batch([transform(load_image(content)) for content in encoded[first:first + BATCH_SIZE]])


def pixel_difference(images: List[Image.Image], size: int) -> Dict[str, float]:
    """Difference between our evaluation transform and timm's, in levels of 0..255."""
    config = dict(input_size=(3, size, size), **CONFIG, crop_pct=0.875)
    ours, theirs = EvalTransform(config), create_timm_transform(**config, use_prefetcher=True)
    found = [(ours(image).int() - theirs(image).int()).abs() for image in images]
    return dict(mean=statistics.fmean(d.float().mean().item() for d in found), max=max(d.max().item() for d in found))


def read_photographs(args: argparse.Namespace) -> Tuple[List[Path], List[bytes], List[Image.Image]]:
    """The files, their content, and the decoded images."""
    files = sorted(p for p in args.folder.glob('*') if p.suffix.lower() in ('.jpg', '.jpeg'))[:args.images]
    if not files:
        raise InputError(f'There is no JPEG in {args.folder}.')
    decoded = []
    for file in files:
        try:
            decoded.append(load_image(file))
        except UNREADABLE as error:
            raise InputError(f'{file} cannot be decoded: {error}') from error
    return files, [file.read_bytes() for file in files], decoded


def prepared_photographs(folder: Path, files: List[Path], short_side: int) -> Dict[str, List[bytes]]:
    """The content of the shards that prepare_data.py writes."""
    dataset = MultiLabelDataset.from_samples(folder, [Sample(f.name, ()) for f in files], ['any'])
    prepared = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, quality in (('prepared', 90), ('prepared, uncompressed,', None)):
            write_shards(dataset, temporary, 'train', short_side, quality)
            shards = create_dataset('shards:{split}-*.tar', temporary, 'train')
            prepared[name] = [shards.images.read(i) for i in range(len(shards))]
    return prepared


def create_contenders(
        contents: List[bytes], prepared: Dict[str, List[bytes]], size: int, short_side: int,
) -> Dict[str, Callable[[], None]]:
    contenders = {'decoding alone': partial(batches, contents, lambda image: image, len)}
    transforms = pipelines(size)
    for name, transform in transforms.items():
        make_batch = stack_images if name.startswith('ours') else default_collate
        contenders[name] = partial(batches, contents, transform, make_batch)
    for name, small in prepared.items():
        contenders[f'ours: crop, flip, {name} at {short_side} px'] = partial(
            batches, small, transforms['ours: crop, flip'], stack_images)
    contenders[f'decoding alone, prepared at {short_side} px'] = partial(
        batches, prepared['prepared'], lambda image: image, len)
    return contenders


def normalization_rate(images: List[Image.Image], size: int) -> float:
    """Images per second that are normalized as a batch."""
    transform = EvalTransform(dict(input_size=(3, size, size), **CONFIG))
    batch = torch.stack([transform(image) for image in images[:8]])
    normalize = Normalize(CONFIG['mean'], CONFIG['std'])
    return len(batch) / seconds(lambda: normalize(batch))


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    size = args.img_size
    short_side = args.short_side or round(size * 8 / 7)
    files, contents, decoded = read_photographs(args)
    prepared = prepared_photographs(args.folder, files, short_side)
    contenders = create_contenders(contents, prepared, size, short_side)
    # the operations of an augmentation differ in time
    times = median_seconds(contenders, args.repeats, dict.fromkeys(contenders, partial(set_seed, 0)))
    widths, heights = zip(*(image.size for image in decoded))
    report = dict(
        img_size=size, images=len(files), mean_width=statistics.fmean(widths), mean_height=statistics.fmean(heights),
        mean_bytes=statistics.fmean(map(len, contents)), repeats=args.repeats,
        images_per_second={name: len(files) / value for name, value in times.items()},
        normalization_on_this_core=normalization_rate(decoded, size), pixel_difference=pixel_difference(decoded, size),
        **environment())
    print(format_report(report))
    if args.results:
        write_text(args.results, json.dumps(report, indent=1))


def format_report(report: Dict[str, Any]) -> str:
    """Markdown, with rates as multiples of that of CSRA's pipeline."""
    rates, versions, difference = report['images_per_second'], report['versions'], report['pixel_difference']
    reference = rates['CSRA: flip, crop']
    lines = [
        f'{report["images"]} photographs of {report["mean_width"]:.0f} x {report["mean_height"]:.0f} pixels and'
        f' {report["mean_bytes"] / 1000:.0f} kB on average, to {report["img_size"]} px, one thread, median of'
        f' {report["repeats"]} rounds in turn; {report["hardware"]}, torch {versions["torch"]}, Pillow'
        f' {versions["pillow"]}',
        '', '| | images/s | |', '|---|---|---|',
        *(f'| {name} | {rate:.0f} | {rate / reference:.2f} x |' for name, rate in rates.items()),
        '', f'Ours are normalized later, as a batch on the device: {report["normalization_on_this_core"]:.0f} images/s'
        ' on this core.',
        f"Evaluation compared with timm's, in levels of 0..255: {difference['mean']:.3f} on average,"
        f' {difference["max"]} at most.']
    return '\n'.join(lines)
