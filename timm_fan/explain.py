"""Where on an image a model sees a class: maps over the photograph, and how well they fit the boxes.

Grad-CAM, https://arxiv.org/abs/1610.02391, on the fused features. With average pooling before the linear classifier it
is CAM (https://arxiv.org/abs/1512.04150), which the paper's Figure 4 shows.
"""
import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from timm.layers import Format

from .data import UNREADABLE, MultiLabelDataset
from .errors import InputError
from .models import FAN

__all__ = ['Localization', 'activation_maps', 'attention_maps', 'box_mask', 'crop_box', 'localization', 'overlay']


def _fit(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(n, h, w) without negative values -> (n, H, W) in 0..1, the highest of each at 1."""
    maps = F.interpolate(maps[:, None], tuple(size), mode='bilinear', align_corners=False)[:, 0]
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def _grad_cam(model: nn.Module, features: torch.Tensor, classes: Sequence[int]) -> Tuple[torch.Tensor, torch.Tensor]:
    if features.ndim != 4:
        raise InputError(f'{type(model).__name__} has no feature map to explain, but {tuple(features.shape)}.')
    channels_last = getattr(model, 'output_fmt', None) == Format.NHWC  # Swin and others
    spatial, channels = ((1, 2), 3) if channels_last else ((2, 3), 1)
    with torch.enable_grad():
        features = features.detach().requires_grad_()
        logits = model.forward_head(features)[0]
        maps = []
        for index in classes:
            gradient, = torch.autograd.grad(logits[index], features, retain_graph=True)
            weights = gradient.mean(dim=spatial, keepdim=True)
            maps.append((weights * features).sum(dim=channels).relu().detach())
    return torch.cat(maps), logits.detach()


def activation_maps(model: nn.Module, image: torch.Tensor, classes: Sequence[int]) -> Tuple[torch.Tensor, torch.Tensor]:
    """Grad-CAM of some classes on the last feature map before the head.

    Args:
        model: With timm's `forward_features` that gives (B, C, h, w), or (B, h, w, C) as its `output_fmt` says, in
            evaluation mode.
        image: (3, H, W), normalized.
        classes: Of the logits to explain, at least one.

    Returns:
        A map for each class (n, H, W) in 0..1, all 0 where nothing speaks for it; and the logits (num_classes,).

    Raises:
        InputError: The model's features are no map.
    """
    with torch.no_grad():
        features = model.forward_features(image[None])
    maps, logits = _grad_cam(model, features, classes)
    return _fit(maps, image.shape[1:]), logits


def attention_maps(model: nn.Module, image: torch.Tensor, classes: Sequence[int]) -> Tuple[torch.Tensor, torch.Tensor]:
    """Where the positions that speak for a class look, in the CLN: its attention (Eq. 5), averaged by their Grad-CAM.

    Args and returns as of `activation_maps`.

    Raises:
        InputError: The model is no FAN, or one without a CLN.
    """
    if not isinstance(model, FAN) or model.cln is None:
        raise InputError('Only a FAN with its CLN has an attention to show, this model has none.')
    inputs: List[Tuple[torch.Tensor, ...]] = []
    handle = model.cln.register_forward_pre_hook(lambda _, tensors: inputs.append(tensors))
    try:
        with torch.no_grad():
            features = model.forward_features(image[None])
            attention = model.cln.attention(*inputs[0][:2])[0]  # (h*w, h*w), rows sum to 1
    finally:
        handle.remove()
    cams, logits = _grad_cam(model, features, classes)
    weights = cams.flatten(1)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return _fit((weights @ attention).view_as(cams), image.shape[1:]), logits


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


def box_mask(boxes: np.ndarray, seen: Tuple[float, float, float, float], size: Tuple[int, int]) -> torch.Tensor:
    """Which pixels of the network's input lie in some box, bool (H, W); a pixel counts by its centre.

    Args:
        boxes: x, y, width, height in pixels of the photograph, (n, 4).
        seen: Of `crop_box`.
        size: Height and width of the input.
    """
    left, top, right, bottom = seen
    x = left + (torch.arange(size[1]) + 0.5) * ((right - left) / size[1])
    y = top + (torch.arange(size[0]) + 0.5) * ((bottom - top) / size[0])
    mask = torch.zeros(size, dtype=torch.bool)
    for bx, by, width, height in boxes.tolist():
        mask |= ((y >= by) & (y < by + height))[:, None] & ((x >= bx) & (x < bx + width))
    return mask


@dataclass(frozen=True)
class Localization:
    """How well a model's maps lie on the objects, each a mean over classes in 0..1.

    Attributes:
        pointing: Share of the labels whose map is highest within a box of the class (the pointing game).
        energy: Share of the map's sum that lies within the boxes; a map of zeros has none there.
        centre: `pointing` of a map that is highest in the image's centre.
        area: `energy` of a uniform map: the share of the image that the boxes cover.
        labels: Pairs of an image and a present class that were looked at.
        per_class: Class name -> its pointing and energy, for the classes that were looked at.
    """
    pointing: float
    energy: float
    centre: float
    area: float
    labels: int
    per_class: Dict[str, Tuple[float, float]]


def localization(
        model: nn.Module,
        dataset: MultiLabelDataset,
        data_config: Dict[str, Any],
        indices: Optional[Sequence[int]] = None,
        maps: Callable = activation_maps,
) -> Localization:
    """The pointing game and the energy-based one, over the present labels of a data set with boxes.

    A label counts if one of its boxes reaches into what the network sees of the photograph. Predicted or not, its map
    is asked where it is highest; the authors' tolerance of 15 pixels around a box is not given.

    Args:
        model: In evaluation mode.
        dataset: With boxes; its transform is not used.
        data_config: The model's, as of `timm.data.resolve_model_data_config`.
        indices: Images to look at, by default all.
        maps: `activation_maps` or `attention_maps`.

    Raises:
        InputError: The data set has no boxes, or none of them can be seen.

    Source: https://arxiv.org/abs/1608.00507, Section 4.2, and https://arxiv.org/abs/1910.01279, Section 4.2.2.
    """
    if dataset.boxes is None:
        raise InputError('The pointing game needs boxes, which this data set has not.')
    device, transform = next(model.parameters()).device, create_transform(**data_config)
    size = tuple(data_config['input_size'][1:])
    found: Dict[int, List[Tuple[float, float, float, float]]] = {}
    for index in range(len(dataset)) if indices is None else indices:
        boxes, labels = dataset.boxes[index]
        try:
            photo = dataset.load(index)
        except UNREADABLE:
            continue
        if tuple(dataset.boxes.sizes[index]) not in (photo.size, (0, 0)):
            continue  # turned by its EXIF orientation, its boxes are not
        seen = crop_box(photo.size, data_config)
        target = dataset.target(index)
        masks = {c: box_mask(boxes[labels == c], seen, size) for c in sorted(set(labels.tolist())) if target[c] == 1}
        masks = {c: mask for c, mask in masks.items() if mask.any()}
        if not masks:
            continue
        cams, _ = maps(model, transform(photo).to(device), list(masks))
        for cam, (c, mask) in zip(cams.cpu(), masks.items()):
            highest = mask.flatten()[cam.flatten().argmax()] if cam.any() else False
            energy = (cam * mask).sum() / cam.sum().clamp(min=torch.finfo(cam.dtype).tiny)
            found.setdefault(c, []).append((
                float(highest), float(energy), float(mask[size[0] // 2, size[1] // 2]), float(mask.float().mean())))
    if not found:
        raise InputError('No label has a box within what the model sees of its images.')
    means = {c: np.mean(rows, axis=0) for c, rows in sorted(found.items())}
    pointing, energy, centre, area = np.mean(list(means.values()), axis=0).tolist()
    return Localization(
        pointing, energy, centre, area, sum(map(len, found.values())),
        {dataset.class_names[c]: (float(m[0]), float(m[1])) for c, m in means.items()})
