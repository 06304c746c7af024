#!/usr/bin/env python3
"""Export a trained model to ONNX and to a torch.export program, and check both against PyTorch.

    python train_scripts/export.py runs/scenes --images photos/
    python train_scripts/predict.py runs/scenes/export/model.onnx photo.jpg --onnx      # needs onnxruntime only

The batch is of any size, and so is the image, in steps of the network's stride. Backbones whose arithmetic on sizes
torch.export does not get through (Swin and other windowed transformers, tf_* with TensorFlow's padding) are exported
for one image size, which --img-size may change.
"""
import argparse
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.layers import AvgPool2dSame, Conv2dSame
from torch.export import Dim, ExportedProgram

from timm_fan import FAN, InputError
from timm_fan.data import load_image
from timm_fan.data.scenes import PRESETS, draw_scene
from timm_fan.errors import exit_on_input_error
from timm_fan.hub import read_saved_config
from timm_fan.models import create_model, label_names, load_model, model_folder, model_thresholds

TOLERANCE = 1e-4  # of logits


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('model', help='run or model folder of train.py, or hf-hub:REPO')
    add('--output', help='folder to write model.onnx and model.pt2 into (default: export/ in the given folder)')
    add('--formats', nargs='+', default=['onnx', 'torch'], choices=['onnx', 'torch'])
    add('--fixed-size', action='store_true', help='one image size for any other backbone too')
    add('--img-size', type=int, help="pixels a side of the checks, and of a fixed-size export (default: the model's)")
    add('--images', nargs='+', default=[], help='photographs to check with, or folders of them (default: drawn scenes)')
    return parser.parse_args()


def open_model(source: str, img_size: int, fixed: bool) -> Tuple[torch.nn.Module, bool]:
    """The model, and whether its image size is free; a network that only embeds positions is rebuilt so that it is."""
    model = load_model(source)
    free = not (fixed or model.pretrained_cfg.get('fixed_input_size')
                or any(isinstance(m, (Conv2dSame, AvgPool2dSame)) for m in model.modules()))
    network = getattr(model.backbone.net, 'model', None) if isinstance(model, FAN) else None
    if not fixed and model.pretrained_cfg.get('fixed_input_size') and hasattr(network, 'pos_embed'):
        name = f'local-dir:{model_folder(source)}' if Path(source).is_dir() else source
        args = read_saved_config(model.pretrained_cfg).get('model_args', {}).get('backbone_args') or {}
        try:
            dynamic = create_model(name, pretrained=True, backbone_args={**args, 'dynamic_img_size': True}).eval()
        except InputError:  # this backbone has no such argument
            pass
        else:
            dynamic.thresholds = model.thresholds
            model, free = dynamic, True
    if not free and img_size and model.pretrained_cfg.get('fixed_input_size'):
        if not hasattr(model, 'set_input_size'):
            raise InputError(f'--img-size: {source} has a fixed size, {model.pretrained_cfg["input_size"][1:]}.')
        model.set_input_size(img_size=(img_size, img_size))
    return model, free


def read_images(paths: List[str], count: int = 4) -> List[Image.Image]:
    files = [f for p in map(Path, paths) for f in (sorted(p.rglob('*')) if p.is_dir() else [p])]
    files = [f for f in files if f.suffix.lower() in Image.registered_extensions()]
    if paths and not files:
        raise InputError(f'--images: no image in {", ".join(paths)}.')
    if not files:
        return [draw_scene(PRESETS['small'], 0, 'val', i)[0] for i in range(count)]
    try:
        return [load_image(f) for f in files[:count]]
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f'--images: {error}') from error


def export_program(model: torch.nn.Module, size: Tuple[int, int], free: bool) -> ExportedProgram:
    image = torch.zeros(2, model.pretrained_cfg['input_size'][0], *size)
    shapes: Dict[int, Any] = {0: Dim('batch', min=1, max=65535)}
    if free:
        step = stride(model)
        shapes.update({2: step * Dim('rows', min=2, max=256), 3: step * Dim('columns', min=2, max=256)})
    return torch.export.export(model, (image,), dynamic_shapes=(shapes,))


def stride(model: torch.nn.Module) -> int:
    return max(info['reduction'] for info in model.feature_info)


def check(name: str, run: Callable, model: torch.nn.Module, images: List[Image.Image], sizes: List[int]) -> float:
    """Largest difference of the logits, over batches of one and of all images at each size."""
    worst = 0.
    for size in sizes:
        config = {**resolve_model_data_config(model), 'input_size': (3, size, size)}
        batch = torch.stack([create_transform(**config)(image) for image in images])
        for part in (batch[:1], batch):
            with torch.inference_mode():
                wanted = model(part)
            worst = max(worst, float((torch.as_tensor(run(part)) - wanted).abs().max()))
    print(f'{name}: logits differ from PyTorch by at most {worst:.1e}, {len(images)} images,'
          f' {", ".join(f"{s} px" for s in sizes)}')
    if not worst <= TOLERANCE:
        raise InputError(f'{name}: the exported model differs by {worst:.1e}, more than {TOLERANCE}: not written.')
    return worst


def write_onnx(program: ExportedProgram, model: torch.nn.Module, config: Dict[str, Any], file: Path) -> Callable:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch.onnx needs
    except ImportError as error:
        raise InputError('ONNX needs the extra: pip install "timm-fan[export]".') from error
    onnx = torch.onnx.export(
        program, dynamo=True, input_names=['image'], output_names=['logits'], verbose=False)
    thresholds = np.broadcast_to(model_thresholds(model), model.num_classes).tolist()
    onnx.model.metadata_props['timm_fan'] = json.dumps(
        dict(label_names=label_names(model), thresholds=thresholds, **config))
    onnx.save(str(file))
    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    return lambda images: session.run(None, {'image': images.numpy()})[0]


def write_torch(program: ExportedProgram, file: Path) -> Callable:
    torch.export.save(program, file)
    module = torch.export.load(file).module()
    return lambda images: module(images).detach()


def main() -> None:
    args = parse_args()
    folder = Path(args.model)
    if args.img_size is not None and args.img_size < 1:
        raise InputError(f'--img-size must be at least 1, got {args.img_size}.')
    if args.output is None and not folder.is_dir():
        raise InputError('--output: say where to, for a model that is no folder here.')
    output = Path(args.output) if args.output else folder / 'export'
    images = read_images(args.images)
    model, free = open_model(args.model, args.img_size, args.fixed_size)
    config = resolve_model_data_config(model)
    if config['crop_mode'] not in ('center', 'squash'):
        raise InputError(f"{args.model}: predict.py --onnx crops by center or squash, not by '{config['crop_mode']}'.")
    size = args.img_size or config['input_size'][1]
    sizes = [size]
    if free:
        step = stride(model)
        if size % step or size < 2 * step:
            raise InputError(f'--img-size {size} is no multiple of {step} px, the stride of the network, from 2 x on.')
        sizes += [size + 2 * step, *([size - step] if size >= 3 * step else ())]
        print(f'any batch, any image size in steps of {step} px')
    else:
        config['input_size'] = (config['input_size'][0], size, size)
        print(f'any batch, images of {size} px')
    output.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(dir=output) as new:
        warnings.simplefilter('ignore')
        program = export_program(model, (size, size), free)
        writers = dict(
            onnx=('model.onnx', lambda file: write_onnx(program, model, config, file)),
            torch=('model.pt2', lambda file: write_torch(program, file)))
        for kind in args.formats:
            name, write = writers[kind]
            run = write(Path(new) / name)
            check(name, run, model, images, sizes)
            os.replace(Path(new) / name, output / name)
            print(f'{output / name}: {(output / name).stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
    with exit_on_input_error():
        main()
