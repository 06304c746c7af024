"""From the decoded photograph to the network: uint8 in the workers, normalized as a batch on the device."""
import math
import random
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn as nn
from PIL import Image
from timm.data import create_transform as create_timm_transform
from timm.data import resolve_model_data_config
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

# PyTorch resizes by these as Pillow does; it lacks the others, or takes other pixels (NEAREST)
_TENSOR_MODES = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)

PILOrTensor = Union[Image.Image, torch.Tensor]


def _to_tensor(image: PILOrTensor) -> torch.Tensor:
    """uint8 (3, H, W) of an RGB image, in channels_last, where resizing is fastest"""
    if isinstance(image, torch.Tensor):
        return image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _to_pil(image: PILOrTensor) -> Image.Image:
    return image if isinstance(image, Image.Image) else v2.functional.to_pil_image(image)


def _mode(interpolation: str) -> InterpolationMode:
    return str_to_interp_mode('bilinear' if interpolation == 'random' else interpolation)


class EvalCrop(NamedTuple):
    """The part of a photograph that a model sees in evaluation.

    Attributes:
        resized: Height and width that the photograph is resized to.
        top, left: Corner of the crop in the resized photograph, negative where it is padded.
        size: Height and width of the crop.
    """
    resized: Tuple[int, int]
    top: int
    left: int
    size: Tuple[int, int]

    def box(self, width: int, height: int) -> Tuple[float, float, float, float]:
        """Left, top, right, bottom of the crop in pixels of the photograph, beyond its edges where it is padded."""
        scale_y, scale_x = height / self.resized[0], width / self.resized[1]
        return (self.left * scale_x, self.top * scale_y,
                (self.left + self.size[1]) * scale_x, (self.top + self.size[0]) * scale_y)


def eval_crop(width: int, height: int, data_config: Dict[str, Any]) -> EvalCrop:
    """The evaluation crop of timm (`transforms_imagenet_eval`) for a photograph of this size.

    Args:
        width, height: Size of the photograph in pixels.
        data_config: From `timm.data.resolve_model_data_config`: `input_size`, `crop_pct`, and `crop_mode` 'center',
            'squash' or 'border'.
    """
    target = tuple(data_config['input_size'][1:])
    scaled = [math.floor(side / (data_config.get('crop_pct') or 0.875)) for side in target]
    mode = data_config.get('crop_mode', 'center')
    if mode == 'squash':
        resized = scaled
    elif mode == 'center' and scaled[0] == scaled[1]:
        long_side = int(scaled[0] * max(width, height) / min(width, height))
        resized = [scaled[0], long_side] if height <= width else [long_side, scaled[0]]
    else:
        ratios = height / scaled[0], width / scaled[1]
        ratio = max(ratios) if mode == 'border' else min(ratios)
        resized = [max(1, round(height / ratio)), max(1, round(width / ratio))]
    top, left = (
        round((there - wanted) / 2) if there >= wanted else -((wanted - there) // 2)
        for there, wanted in zip(resized, target))
    return EvalCrop(tuple(resized), top, left, target)


class EvalTransform:
    """timm's evaluation transform without normalization, from PIL image to uint8 (3, height, width).

    timm resizes PIL images, this resizes tensors, which is faster. Pixels differ by rounding.

    Args:
        data_config: From `timm.data.resolve_model_data_config`.
    """

    def __init__(self, data_config: Dict[str, Any]):
        self.data_config = data_config
        self.mode = _mode(data_config.get('interpolation', 'bilinear'))
        padding = data_config['mean'] if data_config.get('crop_mode') == 'border' else (0., 0., 0.)
        self.fill = [round(255 * value) for value in padding]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        crop = eval_crop(*image.size, self.data_config)
        image = _to_tensor(image) if self.mode in _TENSOR_MODES else image
        pixels = _to_tensor(v2.functional.resize(image, list(crop.resized), self.mode))
        height, width = crop.size
        top, left = max(0, crop.top), max(0, crop.left)
        pixels = pixels[:, top:top + height, left:left + width]
        if pixels.shape[1:] != crop.size:
            border = [max(0, -crop.left), max(0, -crop.top)]
            border += [width - pixels.shape[2] - border[0], height - pixels.shape[1] - border[1]]
            pixels = v2.functional.pad(pixels, border, fill=self.fill)
        return pixels


class RandomCrop:
    """timm's random crop, resized, and mirrored in half of the cases.

    Args:
        size: Height and width of the result in pixels.
        scale: Smallest and largest area of the crop, as a share of the image.
        interpolation: 'bilinear', 'bicubic' or another one of timm's.
    """

    def __init__(self, size: Tuple[int, int], scale: Tuple[float, float], interpolation: str = 'bilinear'):
        self.size, self.scale = list(size), scale
        self.mode = _mode(interpolation)

    def __call__(self, image: PILOrTensor) -> PILOrTensor:
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self.scale, (3 / 4, 4 / 3))
        if not height or not width:  # an image of very few pixels
            top, left, (height, width) = 0, 0, v2.functional.get_size(image)
        flip = random.random() < 0.5
        image = v2.functional.crop(image, top, left, height, width)
        if isinstance(image, torch.Tensor):
            # cropping loses channels_last, without which resizing takes twice as long
            image = image[None].contiguous(memory_format=torch.channels_last)[0]
        image = v2.functional.resize(image, self.size, self.mode)
        return v2.functional.horizontal_flip(image) if flip else image


def create_train_transform(
        data_config: Dict[str, Any],
        scale: Tuple[float, float] = (0.08, 1.),
        auto_augment: Optional[str] = None,
) -> Callable[[Image.Image], torch.Tensor]:
    """Random crop and flip, then timm's auto-augment: from PIL image to uint8 (3, height, width).

    Args:
        data_config: From `timm.data.resolve_model_data_config`. Auto-augment fills with its mean.
        scale: Smallest and largest area of the crop, as a share of the image.
        auto_augment: timm's auto-augment, e.g. 'rand-m7-mstd0.5'.

    Raises:
        AssertionError, ValueError: timm does not know the auto-augment.
    """
    keys = ('input_size', 'mean', 'std', 'interpolation')
    options = {key: data_config[key] for key in keys if key in data_config}
    interpolation = data_config.get('interpolation', 'bilinear')
    steps = [_to_tensor] if _mode(interpolation) in _TENSOR_MODES else []
    steps.append(RandomCrop(data_config['input_size'][1:], scale, interpolation))
    if auto_augment:
        _, augment, _ = create_timm_transform(
            **options, is_training=True, auto_augment=auto_augment, color_jitter=None, separate=True)
        steps += [_to_pil, augment]
    return transforms.Compose([*steps, _to_tensor])


class Normalize(nn.Module):
    """uint8 images of 0..255 to float32 with the mean and standard deviation of a network; float images are unchanged.

    Args:
        mean, std: In 0..1, one value per channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device=None):
        super().__init__()
        mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (mean, std))
        self.register_buffer('scale', 1 / (255 * std), persistent=False)
        self.register_buffer('shift', -mean / std, persistent=False)

    @classmethod
    def of(cls, model: nn.Module, device=None) -> 'Normalize':
        """The normalization of a timm model."""
        config = resolve_model_data_config(model)
        return cls(config['mean'], config['std'], device)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same in channels_last"""
        if images.dtype != torch.uint8:
            return images.contiguous(memory_format=torch.channels_last)
        images = images.to(torch.float32, memory_format=torch.channels_last)
        return torch.addcmul(self.shift, images, self.scale)
