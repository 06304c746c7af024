"""The options of a training run. This is the only list of them."""
from typing import Any, Dict, Literal, Mapping, Optional, Tuple

from accelerate.utils import DynamoBackend
from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, field_validator, model_validator

from timm_fan.data import SOURCES
from timm_fan.errors import InputError
from timm_fan.processes import DEVICES

from .loss import LOSSES, WEIGHTED_LOSSES


def _option(
        default: Any, help: str, group: str, *, card: bool = True, resumable: bool = True, const: Any = None,
        **limits: Any) -> Any:
    """A field of TrainingOptions.

    Args:
        help: Description, with units.
        group: Heading that it belongs to.
        card: Whether it appears on a model card; not if it only concerns the machine.
        resumable: Whether it may change when a run is resumed.
        const: Value of the command-line option without a value.
        limits: Constraints of pydantic, e.g. ge=0.
    """
    return Field(
        default, description=help,
        json_schema_extra=dict(group=group, card=card, resumable=resumable, const=const), **limits)


class TrainingOptions(BaseModel):
    """Options of `train_scripts/train.py`, checked when they are created, and constant afterwards."""
    model_config = ConfigDict(extra='forbid', frozen=True, allow_inf_nan=False, protected_namespaces=())

    data: str = _option(
        'scenes', f'data source NAME[:WHERE][?OPTION=VALUE], one of {", ".join(SOURCES)}', 'data')
    data_dir: str = _option('data', 'folder of the data set; the scenes are drawn there once', 'data', card=False)

    model: str = _option(
        'fan', 'timm model, or local-dir:FOLDER (a model or run folder) or hf-hub:REPO to fine-tune one', 'model',
        resumable=False)
    backbone: Optional[str] = _option(None, "timm model that 'fan' is built on", 'model', resumable=False)
    pretrained: StrictBool = _option(
        False, 'start from the published weights of a whole FAN; those of fan_tf_efficientnet_lite2 come with timm_fan',
        'model', resumable=False)
    backbone_weights: Optional[str] = _option(
        None, 'safetensors file of the plain timm model', 'model', resumable=False)
    pretrained_backbone: StrictBool = _option(
        False, "load timm's weights of the backbone from the Hub; without effect next to pretrained", 'model',
        resumable=False)
    head_init_bias: Optional[float] = _option(
        None, 'bias of a new classifier at the start; default: the log-odds of each class among the known training'
        ' labels', 'model', resumable=False)
    model_kwargs: Dict[str, Any] = _option({}, 'other arguments of the model, e.g. frn=false', 'model')
    img_size: Optional[int] = _option(None, 'image size in pixels; default: that of the model', 'model', ge=1)
    val_img_size: Optional[int] = _option(
        None, 'image size of evaluations and of the saved model; default: img_size', 'model', ge=1)

    epochs: int = _option(20, 'number of epochs', 'optimization', ge=1)
    batch_size: int = _option(
        32, 'images per update, over all processes and accumulation steps', 'optimization', ge=1)
    opt: str = _option('adamw', 'timm optimizer', 'optimization', resumable=False)
    lr: float = _option(1e-3, 'peak learning rate of new layers', 'optimization', ge=0)
    backbone_lr: Optional[float] = _option(
        None, 'peak learning rate of the backbone, 0 to freeze it; default: lr', 'optimization', ge=0)
    lr_base_size: Optional[int] = _option(
        None, 'batch size that the rates refer to; they scale with the batch size linearly, or with its square root for'
        ' adaptive optimizers; default: batch size', 'optimization', ge=1)
    weight_decay: float = _option(
        0.05, 'weight decay, except for norms and biases', 'optimization', resumable=False, ge=0)
    sched: Literal['cosine', 'plateau'] = _option(
        'cosine', 'schedule; plateau multiplies the rates by 0.1 in the fourth epoch without a better mAP',
        'optimization', resumable=False)
    warmup_epochs: float = _option(1., 'epochs of linear warm-up of the cosine schedule', 'optimization', ge=0)
    clip_grad: float = _option(0., 'maximum norm of the gradient, 0 for no limit', 'optimization', ge=0)
    ema_decay: float = _option(
        0., 'decay of the moving average of the weights, which is evaluated instead of them; 0 for none',
        'optimization', ge=0, le=1)
    freeze_bn: StrictBool = _option(
        False, 'freeze BatchNorm of the backbone, for small batches and few images', 'optimization', resumable=False)
    seed: int = _option(0, 'random seed', 'optimization', ge=0, le=2 ** 32 - 1)

    loss: Literal[LOSSES] = _option('bce', 'loss', 'loss and augmentation')
    class_weights: Literal['none', 'balanced'] = _option(
        'none', 'weigh the positive labels of a class in bce or asl; balanced: by absent / present among its known'
        ' training labels', 'loss and augmentation')
    smoothing: float = _option(0., 'label smoothing', 'loss and augmentation', ge=0, le=0.99)
    mixup: float = _option(0., 'alpha of Mixup, 0 for none', 'loss and augmentation', ge=0)
    cutmix: float = _option(0., 'alpha of CutMix, 0 for none', 'loss and augmentation', ge=0)
    mixup_prob: float = _option(
        1., 'share of the batches that Mixup or CutMix is applied to', 'loss and augmentation', ge=0, le=1)
    aa: Optional[str] = _option(None, "timm's auto-augment, e.g. rand-m7-mstd0.5", 'loss and augmentation')
    min_crop: float = _option(
        0.25, 'smallest area of the random crop, as a share of the image', 'loss and augmentation', ge=0, le=1)

    cache_features: int = _option(
        0, 'random views of each training image whose maps a frozen backbone computes once, and epochs use in turn;'
        ' 0 for new views in each epoch', 'loss and augmentation', resumable=False, ge=0)
    cache_dir: Optional[str] = _option(
        None, 'folder of these maps, for any number of runs; default: features, next to the run folder',
        'loss and augmentation', card=False)

    device: Optional[Literal[DEVICES]] = _option(
        None, 'device of the training; default: what Accelerate finds or accelerate launch says, cuda, then mps, then'
        ' cpu', 'execution', card=False)
    mixed_precision: Optional[Literal['no', 'bf16', 'fp16']] = _option(
        None, "precision of the computation; default: that of accelerate's configuration, or no", 'execution')
    grad_accum_steps: int = _option(
        1, 'accumulation steps per update, to save memory', 'execution', ge=1)
    grad_checkpointing: StrictBool = _option(
        False, 'recompute activations instead of storing them, to save memory', 'execution')
    sync_bn: StrictBool = _option(False, 'compute BatchNorm over all GPUs', 'execution')
    torchcompile: Optional[Literal[tuple(backend.value.lower() for backend in DynamoBackend)]] = _option(
        None, 'compile the model with this backend of torch.compile, inductor if none is given', 'execution',
        const='inductor')
    workers: int = _option(
        2, 'data loading processes per training process, at most one per core', 'execution', card=False, ge=0)

    val_interval: int = _option(
        1, 'epochs between evaluations; the last epoch is always evaluated', 'evaluation and checkpoints', ge=1)
    patience: int = _option(
        0, 'end the run after so many epochs without a better mAP, 0 to train all epochs',
        'evaluation and checkpoints', ge=0)
    checkpoint_every: int = _option(
        0, 'updates between checkpoints within an epoch, 0 for none', 'evaluation and checkpoints', ge=0)
    keep: int = _option(2, 'number of checkpoints to keep', 'evaluation and checkpoints', ge=1)
    max_bad_samples: float = _option(
        0.05, 'largest share of unreadable images, though 10 are always allowed', 'evaluation and checkpoints',
        ge=0, le=1)
    non_finite: Literal['stop', 'skip'] = _option(
        'stop', 'what to do if a loss is NaN or infinite: stop, or skip the update; the tenth in a row ends the run',
        'evaluation and checkpoints')
    report: StrictBool = _option(True, 'report on the best model at the end', 'evaluation and checkpoints')
    log_with: Literal['tensorboard', 'trackio', 'none'] = _option(
        'tensorboard', 'logger of the metrics', 'evaluation and checkpoints', card=False)

    @field_validator('*', mode='before')
    @classmethod
    def _no_bool_for_others(cls, value: Any, info: Any) -> Any:
        annotation = cls.model_fields[info.field_name].annotation
        if value is False and info.field_name in ('mixed_precision', 'torchcompile'):
            return 'no'  # which YAML reads as false
        if isinstance(value, bool) and annotation is not bool:
            raise ValueError('should not be true or false')
        return value

    @model_validator(mode='after')
    def _consistent(self) -> 'TrainingOptions':
        if self.sched == 'plateau' and self.val_interval > 1:
            raise ValueError(
                f'`sched=plateau` requires an evaluation of every epoch, not `val_interval={self.val_interval}`')
        if self.backbone and self.model != 'fan':
            raise ValueError(
                f'`backbone` belongs to `model=fan`: leave it out for `model={self.model}`, which has its own')
        if self.pretrained and not self.model.startswith('fan_'):
            raise ValueError(
                f'`pretrained` belongs to a FAN with published weights, not to `model={self.model}`: load those of a'
                ' backbone or of a plain timm model by `pretrained_backbone`')
        if self.class_weights == 'balanced' and self.loss not in WEIGHTED_LOSSES:
            raise ValueError(
                f"`class_weights=balanced` requires `loss` {' or '.join(WEIGHTED_LOSSES)}, whose positive labels timm"
                f' can weigh, not {self.loss}')
        if self.cache_features and (self.backbone_lr != 0 or self.mixup or self.cutmix):
            raise ValueError(
                f'`cache_features={self.cache_features}` keeps the maps of a frozen backbone: it requires'
                ' `backbone_lr=0`, and neither `mixup` nor `cutmix`, which mix images')
        return self

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> 'TrainingOptions':
        """Options from a file or a command line. Options that are None or missing have their default.

        Raises:
            InputError: Unknown or invalid options, with one line for each.
        """
        unknown = [name for name in values if name not in cls.model_fields]
        if unknown:
            raise InputError(f"Unknown option '{unknown[0]}'. Known: {', '.join(sorted(cls.model_fields))}.")
        try:
            return cls.model_validate({k: v for k, v in values.items() if v is not None})
        except ValidationError as error:
            raise InputError('\n'.join(map(_message, error.errors()))) from error

    def resolved(self) -> 'TrainingOptions':
        """With `backbone_lr` set, and both rates scaled from `lr_base_size` to the batch size."""
        backbone_lr, scale = self.lr if self.backbone_lr is None else self.backbone_lr, 1.
        if self.lr_base_size:
            scale = self.batch_size / self.lr_base_size
            if any(name in self.opt.lower() for name in ('ada', 'lamb')):
                scale **= 0.5
        return self.model_copy(update=dict(
            lr=self.lr * scale, backbone_lr=backbone_lr * scale, lr_base_size=None))

    @classmethod
    def names(cls, **metadata: Any) -> Tuple[str, ...]:
        """Names of the options with this metadata, e.g. `card=True`."""
        return tuple(
            name for name, field in cls.model_fields.items()
            if all(field.json_schema_extra[key] == value for key, value in metadata.items()))


def _message(error: Mapping[str, Any]) -> str:
    text = error['msg'].removeprefix('Value error, ')
    if not error['loc']:
        return f'{text}.'
    # pydantic's "Input should be a valid number, unable to parse string as a number"
    text = text.replace('a valid boolean', 'true or false').removeprefix('Input ')
    text = text.partition(', unable')[0].partition(', got')[0]
    return f'`{error["loc"][0]}` {text}, got {_shown(error["input"]):.200}.'


def _shown(value: Any) -> str:
    """A value in a message. A number is the same from a file, and from the command line, which gives it as text."""
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return repr(value)
    return str(value)


def merge_options(*layers: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    """Options as a dict, where later layers have priority; `model_kwargs` are merged one by one."""
    merged: Dict[str, Any] = {}
    for layer in layers:
        kwargs = {**(merged.get('model_kwargs') or {}), **((layer or {}).get('model_kwargs') or {})}
        merged.update(layer or {})
        if kwargs:
            merged['model_kwargs'] = kwargs
    return merged
