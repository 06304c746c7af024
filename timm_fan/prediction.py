"""From a photograph to the names of its labels."""
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence, Union

import torch
import torch.nn as nn
from PIL import Image, ImageOps
from timm.data import resolve_model_data_config

from .data import UNREADABLE, EvalTransform, Normalize, eval_crop, load_image, to_rgb
from .data.transforms import EvalCrop
from .errors import InputError
from .files import printable
from .models import BUNDLED, label_names, load_model, model_thresholds
from .tta import with_tta


class Label(NamedTuple):
    """A predicted label with its probability in 0..1."""
    name: str
    probability: float


class Predictor:
    """A trained model with everything that it needs to predict the labels of photographs.

    Args:
        model: From `load_model`, or another timm model. It is left in evaluation mode.
        device: Device of the computation.

    Attributes:
        model: The model.
        data_config: Its preprocessing, from `timm.data.resolve_model_data_config`.
        names: Class names in class order.
        thresholds: Probability above which each class is predicted, float32 (num_classes,).
    """

    def __init__(self, model: nn.Module, device: Union[str, torch.device] = 'cpu'):
        self.model, self.device = model.to(device).eval(), torch.device(device)
        self.data_config = resolve_model_data_config(model)
        self.names = label_names(model)
        self.thresholds = torch.tensor(model_thresholds(model), dtype=torch.float32).expand(len(self.names))
        self._transform, self._normalize = EvalTransform(self.data_config), Normalize.of(model, device)

    @classmethod
    def load(cls, source: Union[str, Path] = BUNDLED, device: Union[str, torch.device] = 'cpu') -> 'Predictor':
        """Load a model, by default the one that comes with the package. `source` and errors as for `load_model`."""
        return cls(load_model(source), device)

    def prepare(self, photos: Sequence[Image.Image]) -> torch.Tensor:
        """RGB photographs -> float32 (B, 3, H, W) on the device, cropped and normalized as in evaluation."""
        return self._normalize(torch.stack([self._transform(photo) for photo in photos]).to(self.device))

    def crop(self, photo: Image.Image) -> EvalCrop:
        """The part of a photograph that the model sees."""
        return eval_crop(*photo.size, self.data_config)

    @torch.inference_mode()
    def probabilities(self, photos: Sequence[Image.Image]) -> torch.Tensor:
        """RGB photographs -> float32 (B, num_classes) in 0..1 on the CPU.

        Raises:
            InputError: The model gives NaN.
        """
        probabilities = self.model(self.prepare(photos)).sigmoid().float().cpu()
        if probabilities.isnan().any():
            raise InputError('The model gives NaN. Its weights are damaged.')
        return probabilities

    def labels(
            self,
            probabilities: torch.Tensor,
            threshold: Optional[float] = None,
            topk: Optional[int] = None,
    ) -> List[Label]:
        """The labels of one photograph, the most likely first.

        Args:
            probabilities: (num_classes,).
            threshold: Probability above which a label is predicted, by default that of each class.
            topk: Number of labels to return, whatever their probabilities.
        """
        order = probabilities.argsort(descending=True, stable=True)
        if topk is not None:
            order = order[:topk]
        else:
            order = order[(probabilities > (self.thresholds if threshold is None else threshold))[order]]
        return [Label(self.names[i], probabilities[i].item()) for i in order.tolist()]


def predict(
        images: Union[str, Path, Image.Image, Sequence[Union[str, Path, Image.Image]]],
        model: Union[str, Path, nn.Module] = BUNDLED,
        threshold: Optional[float] = None,
        topk: Optional[int] = None,
        device: Union[str, torch.device] = 'cpu',
        batch_size: int = 32,
        tta: str = 'none',
) -> Union[List[Label], List[List[Label]]]:
    """Name what is on photographs.

    Args:
        images: A file or a PIL image, or a sequence of them. `timm_fan.data.find_images` lists those of folders.
        model: As `source` for `load_model`, or a model from there; by default the one that comes with the package,
            which knows the 20 classes of PASCAL VOC.
        threshold: Probability above which a label is predicted, by default that of the model for each class. A model
            that is not from `load_model` has 0.5.
        topk: Number of labels for each image, whatever their probabilities.
        device: Device of the computation.
        batch_size: Number of images that are computed at once.
        tta: 'flip' averages the logits of each image and of its mirror image.

    Returns:
        The labels of an image, the most likely first; for a sequence, a list of them.

    Raises:
        InputError: The model cannot be loaded, or an image cannot be read.
    """
    if isinstance(images, (str, Path, Image.Image)):
        return predict([images], model, threshold, topk, device, batch_size, tta)[0]
    predictor = Predictor(with_tta(model if isinstance(model, nn.Module) else load_model(model), tta), device)
    labels: List[List[Label]] = []
    for start in range(0, len(images), batch_size):
        photos = [_open_photo(image) for image in images[start:start + batch_size]]
        labels += [predictor.labels(row, threshold, topk) for row in predictor.probabilities(photos)]
    return labels


def _open_photo(image: Union[str, Path, Image.Image]) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image))
    if Path(image).is_dir():
        raise InputError(
            f"{printable(image)} is a folder. timm_fan.data.find_images(['{printable(image)}']) lists its images.")
    try:
        return load_image(image)
    except UNREADABLE as error:
        raise InputError(f'unreadable image {printable(image)}: {error}') from error
