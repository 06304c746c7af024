#!/usr/bin/env python3
"""Export a trained model to ONNX and to a torch.export program, and check both against PyTorch.

    python train_scripts/export.py runs/scenes --images photos/
    python train_scripts/predict_onnx.py runs/scenes/export/model.onnx photo.jpg      # only requires onnxruntime

The batch size is dynamic, and so is the image size in steps of the stride of the network. Backbones whose computations
with sizes torch.export does not support (Swin and other windowed transformers, and tf_* with TensorFlow's padding) are
exported for one image size, which --img-size sets.
"""
import argparse
from pathlib import Path
from typing import List

from command_line import create_parser, run_program

from PIL import Image

from timm_fan import InputError
from timm_fan.data import UNREADABLE, find_images, load_image
from timm_fan.data.sources.scenes import SCENES, compose_scene
from timm_fan.export import FORMATS, Exporter
from timm_fan.files import printable

NUM_IMAGES = 4


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    add = parser.add_argument
    add('model', help='run or model folder, or hf-hub:REPO')
    add('--output', metavar='DIR', help='folder for model.onnx and model.pt2 (default: export/ in the given folder)')
    add('--formats', nargs='+', default=list(FORMATS), choices=FORMATS, help='formats to write (default: both)')
    add('--fixed-size', action='store_true', help='export any backbone for one image size')
    add('--img-size', type=int, metavar='N',
        help='image size in pixels of the checks, and of an export with one size (default: that of the model)')
    add('--images', nargs='+', default=[], metavar='PATH',
        help=f'photographs to check with, or folders of them, of which the first {NUM_IMAGES} are used (default: drawn'
        ' scenes)')
    return parser


def read_images(paths: List[str]) -> List[Image.Image]:
    if not paths:
        return [compose_scene(SCENES, 0, 'val', i)[0].convert('RGB') for i in range(NUM_IMAGES)]
    images = []
    for file in find_images(paths)[:NUM_IMAGES]:
        try:
            images.append(load_image(file))
        except UNREADABLE as error:
            raise InputError(f'`images`: {printable(file)} cannot be read: {error}') from error
    return images


def main(args: argparse.Namespace) -> None:
    folder = Path(args.model)
    if args.output is None and not folder.is_dir():
        raise InputError('`output` is required for a model that is not a local folder.')
    images = read_images(args.images)
    exporter = Exporter(args.model, args.img_size, args.fixed_size)
    dynamic = exporter.dynamic_size
    size = f'any image size in steps of {exporter.stride} px' if dynamic else f'images of {exporter.sizes[0]} px'
    print(f'any batch size, {size}')
    for file, difference in exporter.export(args.output or folder / 'export', images, args.formats):
        sizes = ', '.join(f'{size} px' for size in exporter.sizes)
        print(f'{file}: {file.stat().st_size / 1e6:.1f} MB, logits differ from PyTorch by at most {difference:.1e},'
              f' {len(images)} images, {sizes}')


if __name__ == '__main__':
    run_program(build_parser(), main)
