"""Images a second of one core, from encoded photographs to training batches, beside the pipelines of rivals."""
import argparse
import functools
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import torch
from accelerate.utils import set_seed
from PIL import Image
from timm.data import create_transform as create_timm_transform
from torch.utils.data import default_collate
from torchvision import transforms as v1
from tqdm import tqdm

from timm_fan import InputError
from timm_fan.data import (
    UNREADABLE,
    MultiLabelDataset,
    Normalize,
    RandomCrop,
    Sample,
    create_dataset,
    create_transform,
    load_image,
)
from timm_fan.data.device import DeviceDecoder, EncodedImages, collate_encoded
from timm_fan.data.prepare import write_shards
from timm_fan.data.transforms import stack_images
from timm_fan.errors import check_device
from timm_fan.files import write_text
from timm_fan.provenance import environment

BATCH_SIZE = 32
CONFIG = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation='bilinear')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('folder', type=Path, help='photographs (JPEG)')
    add('--img-size', type=int, default=448, help='pixels a side (default: %(default)s)')
    add('--short-side', type=int, help='of the prepared images (default: 8/7 of --img-size)')
    add('--images', type=int, default=100, help='photographs used, the first by name (default: %(default)s)')
    add('--device', help='decode on it too, with nvJPEG on cuda')
    add('--repeats', type=int, default=5)
    add('--results', type=Path, help='write a JSON file')


class Cutout:
    """A grey square of half the side, somewhere: https://arxiv.org/abs/1708.04552"""

    def __call__(self, image: Image.Image) -> Image.Image:
        pixels, half = np.array(image), min(image.size) // 4
        y, x = np.random.randint(image.height), np.random.randint(image.width)
        pixels[max(0, y - half):y + half, max(0, x - half):x + half] = np.random.randint(0, 256, 3)
        return Image.fromarray(pixels)


def pipelines(size: int) -> Dict[str, Callable[[Image.Image], torch.Tensor]]:
    """From PIL image to tensor; the rivals' as their training code composes them, on Pillow images."""
    _, rand_augment, _ = create_timm_transform(
        (3, size, size), **CONFIG, is_training=True, auto_augment='rand-m9-n2', separate=True)
    end = [v1.ToTensor(), v1.Normalize(CONFIG['mean'], CONFIG['std'])]
    ours = dict(input_size=(3, size, size), **CONFIG, is_training=True, scale=(0.7, 1.))
    return {
        'CSRA: flip, crop': v1.Compose([
            v1.RandomHorizontalFlip(), v1.RandomResizedCrop(size, scale=(0.7, 1.)), *end]),
        'ML-Decoder, Query2Label: cutout, RandAugment': v1.Compose([
            v1.Resize((size, size)), Cutout(), rand_augment, *end]),
        'timm: crop, flip': create_timm_transform(
            (3, size, size), **CONFIG, is_training=True, scale=(0.7, 1.), color_jitter=None),
        'ours: crop, flip': create_transform(**ours),
        'ours: crop, flip, RandAugment': create_transform(**ours, auto_augment='rand-m9-n2'),
    }


def batches(encoded: List[bytes], transform: Callable[[Image.Image], Any], make_batch: Callable) -> None:
    for first in range(0, len(encoded), BATCH_SIZE):
        make_batch([transform(load_image(io.BytesIO(content))) for content in encoded[first:first + BATCH_SIZE]])


def on_device(images: EncodedImages, decoder: DeviceDecoder) -> None:
    for first in range(0, len(images), BATCH_SIZE):
        items = [images[i] for i in range(first, min(first + BATCH_SIZE, len(images)))]
        decoder(*collate_encoded(items), range(first, first + BATCH_SIZE))
    if decoder.device.type == 'cuda':
        torch.cuda.synchronize(decoder.device)


def pixel_difference(images: List[Image.Image], size: int) -> Dict[str, float]:
    """Of our evaluation transform to timm's, in levels of 255."""
    config = dict(input_size=(3, size, size), **CONFIG, crop_pct=0.875)
    ours, theirs = create_transform(**config), create_timm_transform(**config, use_prefetcher=True)
    found = [(ours(image).int() - theirs(image).int()).abs() for image in images]
    return dict(mean=statistics.fmean(d.float().mean().item() for d in found), max=max(d.max().item() for d in found))


def run(args: argparse.Namespace) -> None:
    if args.device:
        check_device(args.device)
    files = sorted(p for p in args.folder.glob('*') if p.suffix.lower() in ('.jpg', '.jpeg'))[:args.images]
    if not files:
        raise InputError(f'{args.folder} holds no JPEG.')
    torch.set_num_threads(1)
    size = args.img_size
    short_side = args.short_side or round(size * 8 / 7)
    contents = [file.read_bytes() for file in files]
    decoded = []
    for file in files:
        try:
            decoded.append(load_image(file))
        except UNREADABLE as error:
            raise InputError(f'{file} cannot be decoded: {error}') from error
    with tempfile.TemporaryDirectory() as folder:
        dataset = MultiLabelDataset.from_samples(args.folder, [Sample(f.name, ()) for f in files], ['any'])
        prepared = {}
        for name, quality in (('prepared', 90), ('prepared, uncompressed,', None)):
            write_shards(dataset, folder, 'train', short_side, quality)
            shards = create_dataset('shards:{split}-*.tar', folder, 'train')
            prepared[name] = [shards.images.read(i) for i in range(len(shards))]
    transforms = pipelines(size)
    contenders: Dict[str, Callable[[], None]] = {
        'decoding alone': functools.partial(batches, contents, lambda image: image, len)}
    for name, transform in transforms.items():
        make_batch = stack_images if name.startswith('ours') else default_collate
        contenders[name] = functools.partial(batches, contents, transform, make_batch)
    for name, small in prepared.items():
        contenders[f'ours: crop, flip, {name} at {short_side} px'] = functools.partial(
            batches, small, transforms['ours: crop, flip'], stack_images)
    contenders[f'decoding alone, prepared at {short_side} px'] = functools.partial(
        batches, prepared['prepared'], lambda image: image, len)
    if args.device:
        dataset.transform = transforms['ours: crop, flip']  # of what is no plain JPEG
        crop = RandomCrop((size, size), (0.7, 1.))
        contenders[f'ours: crop, flip, decoded on {args.device}'] = functools.partial(
            on_device, EncodedImages(dataset, crop), DeviceDecoder(crop, torch.device(args.device)))
    seconds: Dict[str, List[float]] = {name: [] for name in contenders}
    for _ in tqdm(range(args.repeats), desc='rounds', leave=False):
        for name, work in contenders.items():
            set_seed(0)  # the operations of an augmentation take very different times
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    rates = {name: len(files) / statistics.median(values) for name, values in seconds.items()}
    batch = torch.stack([create_transform((3, size, size), **CONFIG)(image) for image in decoded[:8]])
    normalize = Normalize(CONFIG['mean'], CONFIG['std'])
    started = time.perf_counter()
    normalize(batch)
    normalization = len(batch) / (time.perf_counter() - started)
    widths, heights = zip(*(image.size for image in decoded))
    report = dict(
        img_size=size, images=len(files), mean_width=statistics.fmean(widths), mean_height=statistics.fmean(heights),
        mean_bytes=statistics.fmean(map(len, contents)), repeats=args.repeats, images_per_second=rates,
        normalization_on_this_core=normalization, pixel_difference=pixel_difference(decoded, size), **environment())
    reference = rates['CSRA: flip, crop']
    versions = report['versions']
    print(f'{len(files)} photographs of {report["mean_width"]:.0f} x {report["mean_height"]:.0f} pixels and'
          f' {report["mean_bytes"] / 1000:.0f} kB on average, to {size} px, one thread, median of {args.repeats} rounds'
          f' in turn; {report["hardware"]}, torch {versions["torch"]}, Pillow {versions["pillow"]}\n')
    print('| | images/s | |\n|---|---|---|')
    for name, rate in rates.items():
        print(f'| {name} | {rate:.0f} | {rate / reference:.2f} x |')
    difference = report['pixel_difference']
    print(f'\nOurs are normalized later, as one batch on the device: {normalization:.0f} images/s on this core.\n'
          f"Evaluation beside timm's, of 255 levels: {difference['mean']:.3f} on average, {difference['max']} at most.")
    if args.results:
        write_text(args.results, json.dumps(report, indent=1))
