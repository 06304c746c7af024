"""Export of a trained model to ONNX and to a torch.export program, each checked against PyTorch."""
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from PIL import Image
from timm.data import resolve_model_data_config
from timm.layers import AvgPool2dSame, Conv2dSame
from torch.export import Dim, ExportedProgram

from .data import EvalTransform, Normalize
from .errors import InputError
from .models import FAN, create_model, label_names, load_model, model_folder, model_thresholds
from .models.folder import read_saved_config

FORMATS = ('onnx', 'torch')
TOLERANCE = 1e-4  # of logits


class Exported(NamedTuple):
    """An exported model.

    Attributes:
        file: The written file.
        difference: Largest difference of a logit from PyTorch.
    """
    file: Path
    difference: float


class Exporter:
    """A trained model, prepared for export.

    The batch size is dynamic, and so is the image size in steps of the stride of the network. Backbones whose
    computations with sizes torch.export does not support (Swin and other windowed transformers, and tf_* with
    TensorFlow's padding) are exported for one image size.

    Args:
        source: As for `load_model`.
        img_size: Image size in pixels of the checks, and of an export with one size; by default that of the model.
        fixed_size: Export any backbone for one image size.

    Attributes:
        model: The model.
        dynamic_size: Whether the image size is dynamic.
        stride: Stride of the network in pixels.
        sizes: Image sizes in pixels that are checked.

    Raises:
        InputError: The model cannot be loaded or exported at this size.
    """

    def __init__(self, source: Union[str, Path], img_size: Optional[int] = None, fixed_size: bool = False):
        if img_size is not None and img_size < 1:
            raise InputError(f'`img_size` must be at least 1, got {img_size}.')
        self.model, self.dynamic_size = _load(source, img_size, fixed_size)
        self.config = resolve_model_data_config(self.model)
        if self.config['crop_mode'] not in ('center', 'squash'):
            raise InputError(
                f"{source}: the exported model is cropped by center or squash, not by '{self.config['crop_mode']}'.")
        self.stride = max(info['reduction'] for info in self.model.feature_info)
        size = img_size or self.config['input_size'][1]
        self.sizes = [size]
        if self.dynamic_size:
            if size % self.stride or size < 2 * self.stride:
                raise InputError(
                    f'`img_size={size}` must be a multiple of the stride of the network, {self.stride} px, and at least'
                    f' {2 * self.stride}.')
            self.sizes += [size + 2 * self.stride, *([size - self.stride] if size >= 3 * self.stride else ())]
        else:
            self.config['input_size'] = (self.config['input_size'][0], size, size)

    def export(
            self,
            output: Union[str, Path],
            images: Sequence[Image.Image],
            formats: Sequence[str] = FORMATS,
    ) -> Iterator[Exported]:
        """Write model.onnx and model.pt2, each after a check against PyTorch.

        Args:
            output: Folder to write to.
            images: RGB images to check with.
            formats: Formats to write, from FORMATS.

        Raises:
            InputError: The extra for ONNX is missing, or a logit differs by more than 1e-4. Nothing is written then.
        """
        output = Path(output)
        output.mkdir(parents=True, exist_ok=True)
        writers = dict(onnx=('model.onnx', self._write_onnx), torch=('model.pt2', self._write_torch))
        with warnings.catch_warnings(), tempfile.TemporaryDirectory(dir=output) as new:
            warnings.simplefilter('ignore')
            program = self._export_program()
            for kind in formats:
                name, write = writers[kind]
                difference = self._check(name, write(program, Path(new) / name), images)
                os.replace(Path(new) / name, output / name)
                yield Exported(output / name, difference)

    def _export_program(self) -> ExportedProgram:
        image = torch.zeros(2, self.model.pretrained_cfg['input_size'][0], self.sizes[0], self.sizes[0])
        shapes: Dict[int, Any] = {0: Dim('batch', min=1, max=65535)}
        if self.dynamic_size:
            shapes[2] = self.stride * Dim('rows', min=2, max=256)
            shapes[3] = self.stride * Dim('columns', min=2, max=256)
        return torch.export.export(self.model, (image,), dynamic_shapes=(shapes,))

    def _write_onnx(self, program: ExportedProgram, file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
        try:
            import onnxruntime
            import onnxscript  # noqa: F401  required by torch.onnx
        except ImportError as error:
            raise InputError('ONNX requires the extra: pip install "timm-fan[export]".') from error
        onnx = torch.onnx.export(
            program, dynamo=True, input_names=['image'], output_names=['logits'], verbose=False)
        thresholds = torch.tensor(model_thresholds(self.model)).expand(self.model.num_classes).tolist()
        onnx.model.metadata_props['timm_fan'] = json.dumps(
            dict(label_names=label_names(self.model), thresholds=thresholds, **self.config))
        onnx.save(str(file))
        # as bytes, because onnxruntime only opens names in UTF-8
        session = onnxruntime.InferenceSession(file.read_bytes(), providers=['CPUExecutionProvider'])
        return lambda images: torch.as_tensor(session.run(None, {'image': images.numpy()})[0])

    def _write_torch(self, program: ExportedProgram, file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
        with open(file, 'w+b') as stream:
            torch.export.save(program, stream)
            stream.seek(0)
            module = torch.export.load(stream).module()
        return lambda images: module(images).detach()

    def _check(
            self, name: str, run: Callable[[torch.Tensor], torch.Tensor], images: Sequence[Image.Image]) -> float:
        """Largest difference of a logit, for a batch of one image and of all images at each size."""
        worst, normalize = 0., Normalize.of(self.model)
        for size in self.sizes:
            transform = EvalTransform({**self.config, 'input_size': (3, size, size)})
            batch = normalize(torch.stack([transform(image) for image in images])).contiguous()
            for part in (batch[:1], batch):
                with torch.inference_mode():
                    expected = self.model(part)
                worst = max(worst, float((run(part) - expected).abs().max()))
        if not worst <= TOLERANCE:
            raise InputError(
                f'{name}: the exported model differs by {worst:.1e}, more than {TOLERANCE}. It was not written.')
        return worst


def _load(source: Union[str, Path], img_size: Optional[int], fixed_size: bool) -> Tuple[nn.Module, bool]:
    """The model, and whether its image size is dynamic. If only position embeddings fix it, the model is rebuilt."""
    model = load_model(source)
    fixed = bool(model.pretrained_cfg.get('fixed_input_size'))
    dynamic_size = not (fixed_size or fixed or any(isinstance(m, (Conv2dSame, AvgPool2dSame)) for m in model.modules()))
    network = getattr(model.backbone.net, 'model', None) if isinstance(model, FAN) else None
    if fixed and not fixed_size and hasattr(network, 'pos_embed'):
        name = f'local-dir:{model_folder(source)}' if Path(source).is_dir() else str(source)
        args = read_saved_config(model.pretrained_cfg).get('model_args', {}).get('backbone_args') or {}
        try:
            dynamic = create_model(name, pretrained=True, backbone_args={**args, 'dynamic_img_size': True}).eval()
        except InputError:  # this backbone has no such argument
            pass
        else:
            dynamic.thresholds = model.thresholds
            return dynamic, True
    if fixed and img_size:
        if not hasattr(model, 'set_input_size'):
            raise InputError(
                f'`img_size`: {source} has the fixed size {model.pretrained_cfg["input_size"][1:]}.')
        model.set_input_size(img_size=(img_size, img_size))
    return model, dynamic_size
