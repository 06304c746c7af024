"""From a photograph to the names of its labels."""
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional, Sequence, Union

import torch
import torch.nn as nn
from PIL import Image, ImageOps
from timm.data import resolve_model_data_config
from timm.models._features import FeatureHooks

from timm_fan.data import EvalTransform, Normalize, eval_crop, load_image, to_rgb
from timm_fan.data.transforms import EvalCrop
from timm_fan.errors import InputError
from timm_fan.files import printable
from timm_fan.models import BUNDLED, label_names, load_model, model_thresholds
from timm_fan.tta import with_tta

from .engine import predict_photos

# by the names of Accelerate
DTYPES = {'no': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}


class Label(NamedTuple):
    """A predicted label with its probability in 0..1."""
    name: str
    probability: float


class Predictor:
    """A trained model with everything that it needs to predict the labels of photographs.

    Args:
        model: From `load_model`, or another timm model. It is left in evaluation mode and channels_last.
        device: Device of the computation.
        mixed_precision: 'bf16' or 'fp16' computes with autocast.
        torchcompile: Compile the model. Then all batches should have the same size.

    Attributes:
        model: The model.
        data_config: Its preprocessing, from `timm.data.resolve_model_data_config`.
        transform: From PIL image to uint8 (3, H, W), cropped as in evaluation.
        names: Class names in class order.
        thresholds: Probability above which each class is predicted, float32 (num_classes,).
    """

    def __init__(
            self, model: nn.Module, device: Union[str, torch.device] = 'cpu', mixed_precision: str = 'no',
            torchcompile: bool = False):
        self.device = torch.device(device)
        self.model = model.to(device, memory_format=torch.channels_last).eval()
        self.data_config = resolve_model_data_config(model)
        self.names = label_names(model)
        self.thresholds = torch.tensor(model_thresholds(model), dtype=torch.float32).expand(len(self.names))
        self.transform, self._normalize = EvalTransform(self.data_config), Normalize.of(model, device)
        self._dtype = DTYPES[mixed_precision]
        # timm's hooks keep the maps of the batch in the model: other batches wait
        hooked = any(isinstance(x, FeatureHooks) for m in model.modules() for x in vars(m).values())
        self._alone = threading.Lock() if hooked else nullcontext()
        self._forward: Callable[[torch.Tensor, bool], Sequence[torch.Tensor]] = self._logits
        if torchcompile:
            self._forward = torch.compile(self._logits)

    @classmethod
    def load(cls, source: Union[str, Path] = BUNDLED, device: Union[str, torch.device] = 'cpu') -> 'Predictor':
        """Load a model, by default the one that comes with the package. `source` and errors as for `load_model`."""
        return cls(load_model(source), device)

    def prepare(self, photos: Sequence[Image.Image]) -> torch.Tensor:
        """RGB photographs -> float32 (B, 3, H, W) on the device, cropped and normalized as in evaluation."""
        return self._normalize(torch.stack([self.transform(photo) for photo in photos]).to(self.device))

    def crop(self, photo: Image.Image) -> EvalCrop:
        """The part of a photograph that the model sees."""
        return eval_crop(*photo.size, self.data_config)

    def _logits(self, images: torch.Tensor, embeddings: bool) -> Sequence[torch.Tensor]:
        if not embeddings:
            return [self.model(images)]
        features = self.model.forward_features(images)
        return self.model.forward_head(features), self.model.forward_head(features, pre_logits=True)

    @torch.inference_mode()
    def compute(self, images: torch.Tensor, embeddings: bool = False) -> List[torch.Tensor]:
        """Probabilities of transformed images, and what the classifier computes them from.

        Args:
            images: uint8 (B, 3, H, W) from `transform`, or float32 from `prepare`.
            embeddings: Return the pooled features as well.

        Returns:
            float32 (B, num_classes) in 0..1 and, with `embeddings`, float32 (B, head_hidden_size), on the CPU.

        Raises:
            InputError: The model gives NaN.
        """
        images = self._normalize(images.to(self.device, non_blocking=True))
        with self._alone, torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
            logits, *features = self._forward(images, embeddings)
        probabilities, *features = [x.cpu() for x in (logits.float().sigmoid(), *(x.float() for x in features))]
        if probabilities.isnan().any():
            raise InputError(
                'The model gives NaN. Its weights are damaged'
                + ('.' if self._dtype is None else ', or `mixed_precision` has too small a range for it.'))
        return [probabilities, *features]

    def probabilities(self, photos: Sequence[Image.Image]) -> torch.Tensor:
        """RGB photographs -> float32 (B, num_classes) in 0..1 on the CPU.

        Raises:
            InputError: The model gives NaN.
        """
        return self.compute(torch.stack([self.transform(photo) for photo in photos]))[0]

    def labels(
            self,
            probabilities: torch.Tensor,
            threshold: Optional[float] = None,
            topk: Optional[int] = None,
    ) -> List[Label]:
        """The labels of one photograph, the most likely first.

        Args:
            probabilities: (num_classes,).
            threshold: Probability above which a label is predicted, by default that of each class. 0 gives all labels.
            topk: Number of labels to return, whatever their probabilities.
        """
        order = probabilities.argsort(descending=True, stable=True)
        if topk is not None:
            order = order[:topk]
        elif threshold != 0:
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
        workers: int = 0,
) -> Union[List[Label], List[List[Label]]]:
    """Name what is on photographs.

    Args:
        images: A file or a PIL image, or a sequence of them. `timm_fan.data.find_images` lists those of folders.
        model: As `source` for `load_model`, or a model from there; by default the one that comes with the package,
            which knows the 20 classes of PASCAL VOC.
        threshold: Probability above which a label is predicted, by default that of the model for each class. A model
            that is not from `load_model` has 0.5. 0 gives all labels.
        topk: Number of labels for each image, whatever their probabilities.
        device: Device of the computation.
        batch_size: Number of images that are computed at once.
        tta: 'flip' averages the logits of each image and of its mirror image.
        workers: Number of processes that decode images, 0 for none.

    Returns:
        The labels of an image, the most likely first; for a sequence, a list of them.

    Raises:
        InputError: The model cannot be loaded, or an image cannot be read.
    """
    if isinstance(images, (str, Path, Image.Image)):
        return predict([images], model, threshold, topk, device, batch_size, tta)[0]
    predictor = Predictor(with_tta(model if isinstance(model, nn.Module) else load_model(model), tta), device)
    labels: List[List[Label]] = []
    for batch in predict_photos(predictor, OpenedPhotos(images), batch_size, workers):
        for index, reason in batch.unreadable.items():
            raise InputError(f'unreadable image {printable(images[index])}: {reason}')
        labels += [predictor.labels(row, threshold, topk) for row in batch.probabilities]
    return labels


class OpenedPhotos:
    """Photographs for `predict_photos`: files and PIL images."""

    def __init__(self, images: Sequence[Union[str, Path, Image.Image]]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Image.Image:
        image = self.images[index]
        if isinstance(image, Image.Image):
            return to_rgb(ImageOps.exif_transpose(image))
        if Path(image).is_dir():
            raise InputError(
                f"{printable(image)} is a folder. timm_fan.data.find_images(['{printable(image)}']) lists its images.")
        return load_image(image)
