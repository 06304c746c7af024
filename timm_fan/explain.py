"""Where in an image a model sees a class: maps over the photograph, and how well they match the boxes.

Grad-CAM, https://arxiv.org/abs/1610.02391, on the fused features. With average pooling before the linear classifier it
equals CAM (https://arxiv.org/abs/1512.04150), which Figure 4 of the paper shows.
"""
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from timm.layers import Format

from .data import UNREADABLE, MultiLabelDataset
from .errors import InputError
from .models import FAN
from .prediction import Predictor

# left, top, right, bottom in pixels
Region = Tuple[float, float, float, float]
# model, image (3, H, W), class indices -> maps (n, H, W), logits (num_classes,)
Maps = Callable[[nn.Module, torch.Tensor, Sequence[int]], Tuple[torch.Tensor, torch.Tensor]]


def _fit(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Non-negative maps (n, h, w) -> (n, H, W) in 0..1, each with a maximum of 1"""
    maps = F.interpolate(maps[:, None], tuple(size), mode='bilinear', align_corners=False)[:, 0]
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def _grad_cam(model: nn.Module, features: torch.Tensor, classes: Sequence[int]) -> Tuple[torch.Tensor, torch.Tensor]:
    if features.ndim != 4:
        raise InputError(
            f'{type(model).__name__} has no feature map to explain, but features of shape {tuple(features.shape)}.')
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
        model: A timm model in evaluation mode whose `forward_features` returns (B, C, h, w), or (B, h, w, C) according
            to its `output_fmt`.
        image: Normalized image (3, H, W).
        classes: Class indices to explain, at least one.

    Returns:
        A map for each class (n, H, W) in 0..1, all 0 if no evidence was found, and the logits (num_classes,).

    Raises:
        InputError: The features of the model are not a map.
    """
    with torch.no_grad():
        features = model.forward_features(image[None])
    maps, logits = _grad_cam(model, features, classes)
    return _fit(maps, image.shape[1:]), logits


def attention_maps(model: nn.Module, image: torch.Tensor, classes: Sequence[int]) -> Tuple[torch.Tensor, torch.Tensor]:
    """What the CLN brings from each position as evidence for a class: its attention times the gradient of the logit.

    With the attention A (Eq. 5) of all positions i to a position j, the map at j is the sum over i of
    (dlogit / dA_ij * A_ij)+, the relevance of https://arxiv.org/abs/2103.15679, Eq. 5. The attention alone would be the
    same for all classes. What reaches the logits beside the CLN is not part of it.

    Args and returns as for `activation_maps`.

    Raises:
        InputError: The model is not a FAN with a CLN.
    """
    if not isinstance(model, FAN) or model.cln is None:
        raise InputError('Only a FAN with a CLN has attention to show, this model has none.')
    inputs: List[torch.Tensor] = []
    handle = model.cln.register_forward_pre_hook(lambda _, tensors: inputs.extend(tensors))
    try:
        with torch.no_grad():
            features = model.forward_features(image[None])
    finally:
        handle.remove()
    p2, p3, p4 = inputs
    with torch.no_grad():
        attention = model.cln.attention(p2, p3)[0]  # (h*w, h*w), rows sum to 1
        values = model.cln.g(p4)[0].flatten(1)  # (C4, h*w)
    relevances = []
    with torch.enable_grad():
        features = features.detach().requires_grad_()
        logits = model.forward_head(features)[0]
        for index in classes:
            gradient, = torch.autograd.grad(logits[index], features, retain_graph=True)
            gradient = gradient[0, -len(values):].flatten(1)  # of the output of the CLN, the last channels
            relevances.append(((gradient.T @ values) * attention).relu().sum(0).view(p4.shape[2:]))
    return _fit(torch.stack(relevances), image.shape[1:]), logits.detach()


def overlay(photo: Image.Image, cam: torch.Tensor, seen: Region) -> Image.Image:
    """The photograph with a map over the part that the network saw. The rest is dimmed.

    Args:
        photo: RGB.
        cam: (H, W) in 0..1, shown from blue over yellow to red.
        seen: That part, from `EvalCrop.box`.
    """
    left, top, right, bottom = (round(v) for v in seen)
    size = max(1, right - left), max(1, bottom - top)
    heat = Image.fromarray((255 * cam.cpu().numpy()).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    # what the network saw beyond the edges was padding
    inside = max(0, left), max(0, top), min(photo.width, left + size[0]), min(photo.height, top + size[1])
    heat = heat.crop((inside[0] - left, inside[1] - top, inside[2] - left, inside[3] - top))
    heat = np.asarray(heat, np.float32)[:, :, None] / 255
    colors = np.concatenate([np.clip(4 * heat - 1, 0, 1), np.clip(2 - abs(4 * heat - 2.4), 0, 1),
                             np.clip(1.5 - 3 * heat, 0, 1)], axis=2)
    alpha = 0.65 * np.sqrt(heat)  # opaque where the class is, transparent where it is not
    pixels = np.asarray(photo, np.float32)
    window = (slice(inside[1], inside[3]), slice(inside[0], inside[2]))
    result = pixels * 0.45
    result[window] = (1 - alpha) * pixels[window] + alpha * 255 * colors
    return Image.fromarray(result.round().astype(np.uint8))


def box_mask(boxes: np.ndarray, seen: Region, size: Tuple[int, int]) -> torch.Tensor:
    """Pixels of the network's input whose centre is inside a box, bool (H, W)

    Args:
        boxes: x, y, width, height in pixels of the photograph, (n, 4).
        seen: The part that the network saw, from `EvalCrop.box`.
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
    """How well the maps of a model match the objects, each a mean over classes in 0..1.

    Attributes:
        pointing: Share of the labels whose map has its maximum in a box of the class (the pointing game).
        energy: Share of the sum of the map that is inside the boxes, 0 for a map of zeros.
        centre: `pointing` of a map with its maximum in the centre of the image.
        area: `energy` of a uniform map, the share of the image that the boxes cover.
        labels: Number of pairs of an image and a present class.
        per_class: Class name -> pointing and energy, for the classes with labels.
    """
    pointing: float
    energy: float
    centre: float
    area: float
    labels: int
    per_class: Dict[str, Tuple[float, float]]


def _measure(cam: torch.Tensor, mask: torch.Tensor) -> Tuple[float, float, float, float]:
    """Pointing, energy, centre and area of one map and the mask of its boxes."""
    highest = mask.flatten()[cam.flatten().argmax()] if cam.any() else False
    energy = (cam * mask).sum() / cam.sum().clamp(min=torch.finfo(cam.dtype).tiny)
    centre = mask[mask.shape[0] // 2, mask.shape[1] // 2]
    return float(highest), float(energy), float(centre), float(mask.float().mean())


def localization(
        predictor: Predictor,
        dataset: MultiLabelDataset,
        indices: Optional[Sequence[int]] = None,
        maps: Maps = activation_maps,
) -> Localization:
    """The pointing game and the energy-based pointing game over the present labels of a data set with boxes.

    A label counts if the model sees a part of one of its boxes, whether it predicts the label or not. There is no
    tolerance around a box; the authors allow 15 pixels.

    Args:
        predictor: The model.
        dataset: A data set with boxes. Its transform is not used.
        indices: Images to measure, by default all.
        maps: `activation_maps` or `attention_maps`.

    Raises:
        InputError: The data set has no boxes, or the model sees none of them.

    Source: https://arxiv.org/abs/1608.00507, Section 4.2, and https://arxiv.org/abs/1910.01279, Section 4.2.2.
    """
    if dataset.boxes is None:
        raise InputError('The pointing game requires boxes, and this data set has none.')
    found: Dict[int, List[Tuple[float, float, float, float]]] = {}
    for index in range(len(dataset)) if indices is None else indices:
        boxes, labels = dataset.boxes[index]
        try:
            photo = dataset.load(index)
        except UNREADABLE:
            continue
        if not dataset.boxes.fit(index, photo.size):
            continue
        crop, target = predictor.crop(photo), dataset.target(index)
        seen = crop.box(*photo.size)
        present = [c for c in sorted(set(labels.tolist())) if target[c] == 1]
        masks = {c: box_mask(boxes[labels == c], seen, crop.size) for c in present}
        masks = {c: mask for c, mask in masks.items() if mask.any()}
        if not masks:
            continue
        cams, _ = maps(predictor.model, predictor.prepare([photo])[0], list(masks))
        for cam, (c, mask) in zip(cams.cpu(), masks.items()):
            found.setdefault(c, []).append(_measure(cam, mask))
    if not found:
        raise InputError('No box of a label is in the part of these images that the model sees.')
    means = {c: np.mean(rows, axis=0) for c, rows in sorted(found.items())}
    pointing, energy, centre, area = np.mean(list(means.values()), axis=0).tolist()
    return Localization(
        pointing, energy, centre, area, sum(map(len, found.values())),
        {dataset.class_names[c]: (float(m[0]), float(m[1])) for c, m in means.items()})
