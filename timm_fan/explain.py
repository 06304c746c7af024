"""Where on an image a model sees a class: class activation maps over the photograph.

Grad-CAM, https://arxiv.org/abs/1610.02391, on the fused features. With average pooling before the linear classifier it
is CAM (https://arxiv.org/abs/1512.04150), which the paper's Figure 4 shows.
"""
import math
from typing import Any, Dict, Tuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

from .errors import InputError

__all__ = ['class_activation_map', 'crop_box', 'overlay']


def class_activation_map(model: nn.Module, image: torch.Tensor, class_index: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """Grad-CAM of one class on the last feature map before the head.

    Args:
        model: With timm's `forward_features` that gives (B, C, h, w), in evaluation mode.
        image: (3, H, W), normalized.
        class_index: Of the logit to explain.

    Returns:
        The map (H, W) in 0..1, all 0 where nothing speaks for the class; and the logits (num_classes,).

    Raises:
        InputError: The model's features are no map.
    """
    with torch.enable_grad():
        features = model.forward_features(image[None])
        if features.ndim != 4:
            raise InputError(f'{type(model).__name__} has no feature map to explain, but {tuple(features.shape)}.')
        features = features.detach().requires_grad_()
        logits = model.forward_head(features)[0]
        gradient, = torch.autograd.grad(logits[class_index], features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    cam = (weights * features).sum(dim=1, keepdim=True).relu().detach()
    cam = F.interpolate(cam, image.shape[1:], mode='bilinear', align_corners=False)[0, 0]
    return cam / cam.max().clamp(min=torch.finfo(cam.dtype).tiny), logits.detach()


def crop_box(size: Tuple[int, int], data_config: Dict[str, Any]) -> Tuple[float, float, float, float]:
    """Left, top, right, bottom of what timm's evaluation transform shows of a photograph, in its pixels.

    Args:
        size: Width and height of the photograph.
        data_config: As of `timm.data.resolve_model_data_config`.
    """
    width, height = size
    rows, columns = data_config['input_size'][1:]
    if data_config['crop_mode'] == 'squash':
        part = min(1., data_config['crop_pct'])
        w, h = part * width, part * height
    else:
        scale = math.floor(rows / data_config['crop_pct']) / min(width, height)
        w, h = min(width, columns / scale), min(height, rows / scale)
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def overlay(photo: Image.Image, cam: torch.Tensor, box: Tuple[float, float, float, float]) -> Image.Image:
    """The photograph with the map over the part that the network saw; the rest, which it did not see, is dimmed.

    Args:
        photo: RGB.
        cam: (H, W) in 0..1, from blue over yellow to red.
        box: Of `crop_box`.
    """
    left, top, right, bottom = (round(v) for v in box)
    size = max(1, right - left), max(1, bottom - top)
    heat = Image.fromarray((255 * cam.cpu().numpy()).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    heat = np.asarray(heat, np.float32)[:, :, None] / 255
    # strong where the class is, and the photograph itself where it is not
    colors = np.concatenate([np.clip(4 * heat - 1, 0, 1), np.clip(2 - abs(4 * heat - 2.4), 0, 1),
                             np.clip(1.5 - 3 * heat, 0, 1)], axis=2)
    pixels = np.asarray(photo, np.float32) * 0.45
    seen = np.asarray(photo, np.float32)[top:top + size[1], left:left + size[0]]
    alpha = 0.65 * np.sqrt(heat)
    pixels[top:top + size[1], left:left + size[0]] = (1 - alpha) * seen + alpha * 255 * colors
    return Image.fromarray(pixels.round().astype(np.uint8))
