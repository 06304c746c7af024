"""From the decoded photograph to the network: uint8 in the workers, normalized as one batch on the device."""
import random
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn as nn
from PIL import Image
from timm.data import create_transform as create_timm_transform
from timm.data import resolve_model_data_config
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from torch.utils.data import default_collate
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

__all__ = ['Crop', 'Normalize', 'RandomCrop', 'collate', 'create_transform', 'stack_images']

# PyTorch resizes by these, by the others only Pillow
TENSOR_MODES = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC, InterpolationMode.NEAREST)


def to_tensor(image: Union[Image.Image, torch.Tensor]) -> torch.Tensor:
    """uint8 (3, H, W) of an RGB image, in channels_last, which resizing is fastest in; a tensor as it is."""
    if isinstance(image, torch.Tensor):
        return image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _to_pil(image: Union[Image.Image, torch.Tensor]) -> Image.Image:
    return image if isinstance(image, Image.Image) else v2.functional.to_pil_image(image)


def _mode(interpolation: str) -> InterpolationMode:
    return str_to_interp_mode('bilinear' if interpolation == 'random' else interpolation)


class Crop(NamedTuple):
    """Part of an image in pixels, and whether it is mirrored."""
    top: int
    left: int
    height: int
    width: int
    flip: bool


class RandomCrop:
    """timm's random crop, resized and in half of the cases mirrored.

    Args:
        size: Height and width of the result in pixels.
        scale: Area of the crop, lowest and highest part of the image.
        interpolation: 'bilinear', 'bicubic' or another of timm's.
    """

    def __init__(self, size: Tuple[int, int], scale: Tuple[float, float], interpolation: str = 'bilinear'):
        self.size, self.scale = list(size), scale
        self.mode = _mode(interpolation)

    def draw(self, image: Union[Image.Image, torch.Tensor]) -> Crop:
        """By Python's generator; of the image only the size counts."""
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self.scale, (3 / 4, 4 / 3))
        if not height or not width:  # of an image of very few pixels
            width, height = v2.functional.get_size(image)[::-1]
            top = left = 0
        return Crop(top, left, height, width, random.random() < 0.5)

    def apply(self, image: Union[Image.Image, torch.Tensor], crop: Crop) -> Union[Image.Image, torch.Tensor]:
        image = v2.functional.crop(image, *crop[:4])
        if isinstance(image, torch.Tensor) and image.device.type == 'cpu':
            # a part of an image in channels_last is not, and resizing it takes twice as long
            image = image[None].contiguous(memory_format=torch.channels_last)[0]
        image = v2.functional.resize(image, self.size, self.mode)
        return v2.functional.horizontal_flip(image) if crop.flip else image

    def __call__(self, image: Union[Image.Image, torch.Tensor]) -> Union[Image.Image, torch.Tensor]:
        return self.apply(image, self.draw(image))


def create_transform(
        input_size: Tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = 'bilinear',
        crop_pct: float = 0.875,
        crop_mode: str = 'center',
        is_training: bool = False,
        scale: Tuple[float, float] = (0.08, 1.),
        auto_augment: Optional[str] = None,
) -> Callable[[Image.Image], torch.Tensor]:
    """timm's `create_transform` without colour jitter and normalization: from PIL image to uint8 (3, height, width).

    Training: random crop, resize, flip, then timm's auto-augment; evaluation: resize, centre crop. Tensors are resized,
    not PIL images as by timm, which is faster and differs by rounding.

    Args:
        input_size: (channels, height, width) that the network takes.
        mean, std: Of the network's input, in 0..1; auto-augment fills with the mean.
        interpolation: 'bilinear', 'bicubic' or another of timm's.
        crop_pct: Part of the resized image that the evaluation's crop keeps, in 0..1.
        crop_mode: 'center', 'squash' or 'border', as in timm.
        is_training: Which of the two.
        scale: Area of the random crop, lowest and highest part of the image.
        auto_augment: timm's, e.g. 'rand-m7-mstd0.5'.
    """
    height, width = input_size[1:]
    options = dict(
        input_size=input_size, mean=mean, std=std, interpolation=interpolation, use_prefetcher=True, color_jitter=None)
    if not is_training and crop_mode != 'squash' and (crop_mode != 'center' or height != width):
        return create_timm_transform(**options, crop_pct=crop_pct, crop_mode=crop_mode)
    mode = _mode(interpolation)
    steps = [to_tensor] if mode in TENSOR_MODES else []
    if is_training:
        steps.append(RandomCrop((height, width), scale, interpolation))
        if auto_augment:
            _, augment, _ = create_timm_transform(**options, is_training=True, auto_augment=auto_augment, separate=True)
            steps += [_to_pil, augment]
    else:
        resized = [int(side / crop_pct) for side in (height, width)]
        steps += [
            v2.Resize(resized if crop_mode == 'squash' else resized[0], interpolation=mode),
            v2.CenterCrop((height, width))]
    return transforms.Compose([*steps, to_tensor])


def stack_images(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Images (C, H, W) as a batch (B, C, H, W) in channels_last.

    The transforms' images have their channels side by side, so that each is copied as it is.
    """
    return default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def collate(samples: Sequence[Tuple[Any, ...]], make_batch: Callable = stack_images) -> List[Any]:
    """PyTorch's `default_collate` for tuples that begin with an image, of which `make_batch` makes a batch."""
    images, *others = zip(*samples)
    return [make_batch(images), *map(default_collate, others)]


class Normalize(nn.Module):
    """uint8 images of 0..255 to float32 with the network's mean and standard deviation; float images stay as they are.

    Args:
        mean, std: In 0..1, one value a channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device=None):
        super().__init__()
        mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (mean, std))
        self.register_buffer('scale', 1 / (255 * std), persistent=False)
        self.register_buffer('shift', -mean / std, persistent=False)

    @classmethod
    def of(cls, model: nn.Module, device=None) -> 'Normalize':
        """With what a timm model was, or is to be, trained on."""
        config = resolve_model_data_config(model)
        return cls(config['mean'], config['std'], device)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same in channels_last."""
        if images.dtype != torch.uint8:
            return images.contiguous(memory_format=torch.channels_last)
        images = images.to(torch.float32, memory_format=torch.channels_last)
        return torch.addcmul(self.shift, images, self.scale)
