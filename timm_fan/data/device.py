"""JPEGs decoded on the device: a GPU's decoder does in milliseconds what keeps the workers' cores busy."""
import functools
import io
import warnings
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from PIL import ExifTags, Image
from torch.utils.data import Dataset

from timm_fan.errors import InputError

from .dataset import UNKNOWN, UNREADABLE, MultiLabelDataset, decode, is_line
from .transforms import TENSOR_MODES, Crop, RandomCrop, collate, to_tensor

__all__ = ['DeviceDecoder', 'EncodedImage', 'EncodedImages', 'collate_encoded']


class EncodedImage(NamedTuple):
    """A JPEG, and what is to be shown of it."""
    content: bytes
    crop: Crop


def _open_plain(content: bytes) -> Optional[Image.Image]:
    """A whole, upright JPEG without a peculiarity that Pillow should see to, opened and not decoded; else None."""
    if not content.endswith(b'\xff\xd9'):  # cut off, or no JPEG
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except UNREADABLE:
        return None
    plain = image.format == 'JPEG' and image.mode in ('RGB', 'L') and not is_line(image.size)
    return image if plain and upright else None


class EncodedImages(Dataset):
    """A data set whose images are decoded later, by a `DeviceDecoder`.

    An item is (image, target): an `EncodedImage`, or uint8 (3, H, W) of an image that is no plain JPEG and was decoded
    and transformed here.

    Args:
        dataset: With a transform that does on the CPU what `crop` and the decoder do.
        crop: Draws the part to be shown.
    """

    def __init__(self, dataset: MultiLabelDataset, crop: RandomCrop):
        self.dataset, self.crop = dataset, crop

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tuple[Union[EncodedImage, torch.Tensor], torch.Tensor]:
        try:
            content = self.dataset.images.read(index)
        except UNREADABLE:
            return self.dataset[index]  # which says so
        image = _open_plain(content)
        if image is None:
            return self.dataset.item(index, lambda _: decode(content))
        return EncodedImage(content, self.crop.draw(image)), self.dataset.target(index)


# the images as a list, what else an item has as a batch
collate_encoded = functools.partial(collate, make_batch=list)


class DeviceDecoder:
    """Batches of `EncodedImages` to uint8 images on a device, by nvJPEG on a GPU.

    Pixels differ a little from Pillow's, in how colour is interpolated between its coarser samples.

    Args:
        crop: Whose drawn parts are applied.
        device: That decodes, a GPU or the CPU.
        on_unreadable: Called with the index of an image that nothing can decode, and the error.

    Raises:
        InputError: The interpolation is one of Pillow's alone, or this torchvision has no JPEG decoder for the device;
            from 0.29 on it is deprecated there.
    """

    def __init__(
            self,
            crop: RandomCrop,
            device: torch.device,
            on_unreadable: Callable[[int, Exception], None] = lambda index, error: None,
    ):
        if crop.mode not in TENSOR_MODES:
            raise InputError(f"Only Pillow resizes by '{crop.mode.value}': decode in the workers.")
        self.crop, self.device, self.on_unreadable = crop, device, on_unreadable
        buffer = io.BytesIO()
        Image.new('RGB', (16, 16)).save(buffer, 'jpeg')
        try:
            if device.type not in ('cpu', 'cuda'):
                raise RuntimeError('it can on GPUs of NVIDIA and on CPUs')
            from torchvision.io import ImageReadMode, decode_jpeg

            self._decode_jpeg = functools.partial(decode_jpeg, mode=ImageReadMode.RGB, device=device)
            self._decode([buffer.getvalue()])
        except (ImportError, AttributeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f'torchvision cannot decode JPEGs on {device}, let the workers: {reason}') from error

    def _decode(self, contents: Sequence[bytes]) -> List[torch.Tensor]:
        encoded = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
        if self.device.type == 'cuda':
            # torchvision decodes on a stream of its own into memory that queued kernels may still read:
            # https://github.com/pytorch/vision/issues/9606
            torch.cuda.current_stream(self.device).synchronize()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            return self._decode_jpeg(encoded)

    def __call__(
            self,
            images: Sequence[Union[EncodedImage, torch.Tensor]],
            targets: torch.Tensor,
            indices: torch.Tensor,
    ) -> torch.Tensor:
        """A list of images, their targets (B, num_classes) and indices (B,) -> uint8 (B, 3, H, W) on the device.

        Labels of an image that cannot be decoded become unknown in `targets`, as in `MultiLabelDataset`.
        """
        waiting = [i for i, image in enumerate(images) if isinstance(image, EncodedImage)]
        try:
            decoded = self._decode([images[i].content for i in waiting]) if waiting else []
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # of one of them, and it does not say which
            decoded = [self._decode_alone(images[i], targets[i], indices[i]) for i in waiting]
        batch = [None if isinstance(image, EncodedImage) else image.to(self.device) for image in images]
        for i, image in zip(waiting, decoded):
            batch[i] = self.crop.apply(image, images[i].crop)
        return torch.stack(batch)

    def _decode_alone(self, image: EncodedImage, target: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        try:
            return self._decode([image.content])[0]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            pass
        try:
            pixels = to_tensor(decode(image.content))
        except UNREADABLE as error:
            self.on_unreadable(int(index), error)
            target.fill_(UNKNOWN)
            top, left, height, width, _ = image.crop
            pixels = torch.full((3, top + height, left + width), 128, dtype=torch.uint8)
        return pixels.to(self.device)
