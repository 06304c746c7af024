"""The model of a training run: created from the options, with the layers frozen that are not trained."""
from typing import Any, Dict, List, NamedTuple, Sequence

import torch
import torch.nn as nn
from accelerate import Accelerator
from timm.data import resolve_model_data_config
from timm.layers import PatchEmbed, convert_sync_batchnorm
from timm.models import get_model_input_config

from timm_fan.data import MultiLabelDataset
from timm_fan.errors import InputError
from timm_fan.layers import set_classifier_bias
from timm_fan.models import create_model, label_names
from timm_fan.models.backbone import unused_parameters
from timm_fan.models.factory import check_name
from timm_fan.models.pretrained import read_backbone_weights

from .loss import balanced_weights
from .options import TrainingOptions


class Network(NamedTuple):
    """A model to train.

    Attributes:
        model: The model.
        data_config: Its preprocessing, as of `timm.data.resolve_model_data_config`.
        train_config: The same in training, where images may have another size.
        frozen_norms: BatchNorm layers that must stay in evaluation mode.
        notes: Notes for the user.
    """
    model: nn.Module
    data_config: Dict[str, Any]
    train_config: Dict[str, Any]
    frozen_norms: List[nn.Module]
    notes: List[str]


def create_network(options: TrainingOptions, train_set: MultiLabelDataset, accelerator: Accelerator) -> Network:
    """Create the model for the classes of the data, and freeze the layers that are not trained.

    A new classifier starts at the frequencies of the training labels. One process of each machine downloads the weights
    before the others. `options` must be resolved.

    Raises:
        InputError: Options that do not fit each other, the model or the device, or the model cannot be created.
    """
    with accelerator.local_main_process_first():
        model = _create_model(options, len(train_set.class_names))
    notes = []
    trained = _has_classifier(options) and model.num_classes == model.pretrained_cfg['num_classes']
    saved_names = model.pretrained_cfg.get('label_names')
    if saved_names is not None and label_names(model) != list(train_set.class_names):
        model.reset_classifier(model.num_classes)
        notes.append(f'{options.model} was trained on other classes, or the same in another order: it gets a new head')
        trained = False
    if not trained:
        if not hasattr(model, 'backbone'):
            _draw_classifier(model)
        set_classifier_bias(model.get_classifier(), _initial_bias(options, train_set))
    train_config = resolve_model_data_config(model, args=dict(img_size=options.img_size))
    data_config = _evaluated_config(model, train_config, options)
    unused = _freeze_unused(model, train_config['input_size'], options)
    if unused:
        notes.append(f'{len(unused)} parameters do not affect the logits and are frozen: {unused[0]}, ...')
    model = _set_execution_options(model, options, accelerator.device)
    return Network(model, data_config, train_config, _freeze_layers(model, options), notes)


def _draw_classifier(model: nn.Module) -> None:
    """Draw the new classifier of a plain timm model as PyTorch does, so that it starts at its bias.

    timm draws that of an EfficientNet uniformly from +-0.22 for 20 classes, in which the bias drowns.
    """
    classifier = model.get_classifier()
    for module in nn.ModuleList([classifier] if isinstance(classifier, nn.Module) else classifier).modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()


def _evaluated_config(model: nn.Module, train_config: Dict[str, Any], options: TrainingOptions) -> Dict[str, Any]:
    size = options.val_img_size
    if not size or train_config['input_size'][1:] == (size, size):
        return train_config
    if get_model_input_config(model)['fixed_input_size']:
        raise InputError(
            f"`val_img_size={size}`: '{options.model}' has a fixed size, {train_config['input_size'][1:]} here.")
    return {**train_config, 'input_size': (3, size, size)}


def _is_saved(options: TrainingOptions) -> bool:
    return ':' in options.model


def _has_classifier(options: TrainingOptions) -> bool:
    """Whether the model comes with weights of a whole model, which may have a classifier of these classes."""
    return _is_saved(options) or options.pretrained


def _initial_bias(options: TrainingOptions, train_set: MultiLabelDataset) -> torch.Tensor:
    """Bias of a new classifier, (num_classes,): the constant logit of each class with the least loss."""
    if options.head_init_bias is not None:
        return torch.full((len(train_set.class_names),), options.head_init_bias)
    bias = train_set.labels.prior().logit()
    return bias + balanced_weights(train_set.labels).log() if options.class_weights == 'balanced' else bias


def _freeze_unused(model: nn.Module, input_size: Sequence[int], options: TrainingOptions) -> List[str]:
    """`freeze_unused` for images of a size that the model can compute, otherwise InputError."""
    size = input_size[-1]
    for patches in (m for m in model.modules() if isinstance(m, PatchEmbed) and not m.dynamic_img_pad):
        patch = patches.patch_size[-1]
        if size % patch:  # timm leaves out the rest of the image, or ends in an assertion
            near = max(patch, size // patch * patch)
            raise InputError(
                f'`img_size={size}` is not a multiple of {patch}, the size of the patches of'
                f" '{options.backbone or options.model}'. Use {near} or {near + patch}.")
    try:
        return freeze_unused(model, input_size)
    except (AssertionError, RuntimeError) as error:
        raise InputError(
            f"'{options.backbone or options.model}' cannot compute images of {size} pixels: {error}. Choose another"
            ' `img_size`.') from error


def starting_point(options: TrainingOptions) -> str:
    """The weights that a new run starts from, in words."""
    if options.pretrained:
        return 'its published weights'
    if _is_saved(options):
        return 'its trained weights'
    if options.backbone_weights:
        return f'{options.backbone_weights}, the weights of the backbone'
    if options.pretrained_backbone:
        return "timm's pretrained weights of the backbone"
    return 'random weights, from scratch'


def _create_model(options: TrainingOptions, num_classes: int) -> nn.Module:
    kwargs = dict(options.model_kwargs)
    if 'num_classes' in kwargs or kwargs.get('in_chans', 3) != 3:
        raise InputError('`model_kwargs`: the data determines num_classes, and images have three channels.')
    if 'pretrained' in kwargs or 'features_only' in kwargs:
        raise InputError('`model_kwargs` must not have features_only, nor pretrained: set `pretrained_backbone`.')
    if options.model.startswith('fan'):
        if options.img_size:
            kwargs.setdefault('img_size', options.img_size)
        source = options.model_dump(include={'backbone', 'backbone_weights', 'pretrained_backbone'})
        kwargs.update({key: value for key, value in source.items() if value})
        model = create_model(options.model, pretrained=options.pretrained, num_classes=num_classes, **kwargs)
    else:
        model = _create_other_model(options, num_classes, kwargs)
    size, config = options.img_size, get_model_input_config(model)
    if size and config['fixed_input_size'] and config['input_size'][1:] != (size, size):
        if not hasattr(model, 'set_input_size'):
            raise InputError(
                f"`img_size={size}`: '{options.model}' has the fixed size {config['input_size'][1:]}. Try"
                f' img_size={size} in `model_kwargs`.')
        model.set_input_size(img_size=(size, size))
    return model


def _create_other_model(options: TrainingOptions, num_classes: int, kwargs: Dict[str, Any]) -> nn.Module:
    """A saved model, or a plain timm model, whose pretrained classifier is not used."""
    if _is_saved(options):
        if options.backbone_weights:
            raise InputError(f'`model={options.model}` has weights: leave `backbone_weights` out.')
        return create_model(options.model, pretrained=True, num_classes=num_classes, **kwargs)
    pretrained = options.pretrained_backbone
    if options.backbone_weights:
        check_name(options.model)
        pretrained = True
        weights = read_backbone_weights(options.model, options.backbone_weights)
        kwargs['pretrained_cfg_overlay'] = dict(state_dict=weights)
    model = create_model(options.model, pretrained=pretrained, num_classes=num_classes, **kwargs)
    model.pretrained_cfg.pop('state_dict', None)
    if pretrained and num_classes == model.pretrained_cfg['num_classes']:
        model.reset_classifier(num_classes)
    return model


def backbone_parameters(model: nn.Module) -> List[nn.Parameter]:
    """Parameters of the backbone. For a plain timm model these are all but those of the classifier."""
    if hasattr(model, 'backbone'):
        return list(model.backbone.parameters())
    head = {id(p) for p in model.get_classifier().parameters()}
    return [p for p in model.parameters() if id(p) not in head]


def freeze_unused(model: nn.Module, input_size: Sequence[int]) -> List[str]:
    """Freeze parameters that the logits do not depend on, because DistributedDataParallel would wait for them.

    Args:
        model: On the CPU. Its mode is unchanged.
        input_size: (C, H, W) of an image.

    Returns:
        Their names.
    """
    unused = unused_parameters(model, input_size)
    for name in unused:
        model.get_parameter(name).requires_grad_(False)
    return unused


def _set_execution_options(model: nn.Module, options: TrainingOptions, device: torch.device) -> nn.Module:
    """Enable gradient checkpointing and synchronized BatchNorm."""
    if options.grad_checkpointing:
        try:
            model.set_grad_checkpointing()
        except (AssertionError, AttributeError) as error:
            raise InputError(f'{options.model} does not support `grad_checkpointing`. {error}') from error
    if options.sync_bn:
        if device.type == 'cpu':
            raise InputError('`sync_bn` requires GPUs.')
        model = convert_sync_batchnorm(model)
    return model


def _freeze_layers(model: nn.Module, options: TrainingOptions) -> List[nn.Module]:
    """Freeze the backbone or its BatchNorm; returns the BatchNorm layers among them."""
    if options.backbone_lr == 0:
        for parameter in backbone_parameters(model):
            parameter.requires_grad_(False)
    if not (options.freeze_bn or options.backbone_lr == 0):
        return []
    # timm's FrozenBatchNorm2d takes twice the time of a BatchNorm in evaluation mode on CPUs
    norms = [m for m in getattr(model, 'backbone', model).modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.requires_grad_(False)
    return norms


def backbone_maps(model: nn.Module, images: torch.Tensor) -> List[torch.Tensor]:
    """What the layers that are trained over a frozen backbone see: x2, x3, x4 of a FAN, one map of another timm model.

    Raises:
        InputError: timm's model gives something else.
    """
    if hasattr(model, 'backbone'):
        return model.backbone(images)
    features = model.forward_features(images)
    if not isinstance(features, torch.Tensor):
        raise InputError(f'`cache_features`: {type(model).__name__} has no single map to keep. Set it to 0.')
    return [features]


def _to_float(maps: Sequence[torch.Tensor]) -> List[torch.Tensor]:
    return [m.float() for m in maps]


def _to_float_map(maps: Sequence[torch.Tensor], **_: Any) -> torch.Tensor:  # some models pass a mask
    return maps[0].float()


def start_after_backbone(model: nn.Module) -> None:
    """Let a model take what `backbone_maps` has given, instead of images. Its weights and how it is saved stay."""
    if hasattr(model, 'backbone'):
        model.backbone.forward = _to_float
    else:
        model.forward_features = _to_float_map
