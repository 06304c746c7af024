"""A saved model: `model.safetensors` and a `config.json` with architecture, labels, preprocessing and thresholds."""
import json
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import timm
import torch
import torch.nn as nn
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf

from timm_fan.errors import InputError
from timm_fan.files import check_utf8, read_json, write_text, written_folder
from timm_fan.hub import CONFIG_NAME, WEIGHTS_NAME, hub_errors

from .factory import BEST, create_model


def label_names(model: nn.Module) -> List[str]:
    """Class names that a model was saved with, in class order, otherwise the class indices as text."""
    names = model.pretrained_cfg.get('label_names')
    if isinstance(names, dict):
        names = [names[k] for k in sorted(names, key=int)]
    return list(names) if names else [str(i) for i in range(model.num_classes)]


def model_thresholds(model: nn.Module) -> Union[float, List[float]]:
    """Probability above which a label is predicted: one per class if the model was saved with them, otherwise 0.5."""
    return getattr(model, 'thresholds', None) or 0.5


def unshared(state_dict: Mapping[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """The tensors as safetensors accepts them: contiguous, and without memory that two of them share."""
    tensors, seen = {}, set()
    for name, tensor in state_dict.items():
        tensor = tensor.detach().contiguous()
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return tensors


def save_model(
        model: nn.Module,
        folder: Union[str, Path],
        class_names: Sequence[str],
        data_config: Dict[str, Any],
) -> None:
    """Write `model.safetensors` and a `config.json` that `timm.create_model('local-dir:FOLDER')` reads.

    The folder is self-contained: the config has the architecture, its arguments, the class names and the preprocessing,
    and no path to weights of the backbone. It replaces the folder of an earlier model.

    Args:
        model: A timm model from `create_model`, not wrapped by DDP or EMA.
        folder: The folder to write.
        class_names: Names in class order.
        data_config: From `timm.data.resolve_model_data_config`.

    Raises:
        InputError: The weights cannot be written, or the folder contains other files and no model.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG_NAME).is_file():
        raise InputError(f'{folder} contains other files, and no model to replace. Choose a new folder.')
    args = getattr(model, '_model_args', {})
    # loading this folder must not fetch a backbone
    without_sources = {k: v for k, v in dict(pretrained_backbone=False, backbone_weights=None).items() if k in args}
    with written_folder(folder) as new:
        try:
            save_file(unshared(model.state_dict()), new / WEIGHTS_NAME)
        except SafetensorError as error:
            raise InputError(f'{folder} cannot be written: {error}') from error
        file = new / CONFIG_NAME
        save_config_for_hf(
            model,
            str(file),
            model_config=dict(
                label_names=list(class_names), problem_type='multi_label_classification'),
            model_args=without_sources,
            data_config={k: list(v) if isinstance(v, tuple) else v for k, v in data_config.items()},
        )
        # num_classes is also an entry of its own, and transformers' timm wrapper would pass it twice
        config = read_json(file)
        config.get('model_args', {}).pop('num_classes', None)
        write_text(file, json.dumps(config, indent=2))


def save_thresholds(
        folder: Union[str, Path],
        thresholds: Sequence[float],
        policy: str,
        chosen_on: Optional[Dict[str, Any]] = None,
) -> Path:
    """Store thresholds in the config.json of a model or run folder, for `load_model` and `model_thresholds`.

    Args:
        folder: A run or model folder.
        thresholds: Probability for each class, in 0..1.
        policy: How they were chosen.
        chosen_on: The images they were chosen on: `data`, `split`, `images` (their number), `fingerprint` (that of the
            data set), and the test-time augmentation `tta`.

    Returns:
        The file.

    Raises:
        InputError: The folder contains no model.
    """
    file = model_folder(folder) / CONFIG_NAME
    chosen = dict(thresholds=list(thresholds), threshold_policy=policy, thresholds_chosen_on=chosen_on)
    write_text(file, json.dumps({**read_json(file), **chosen}, indent=2))
    return file


def is_model(source: Union[str, Path]) -> bool:
    """Whether this names a model rather than images: a folder with one or with a run, or a name for `load_model`.

    The model may still be missing in the folder, or damaged.
    """
    folder, name = Path(source), str(source)
    if folder.exists():
        names = (f'{depth}{name}' for depth in ('', '*/', '*/*/') for name in (CONFIG_NAME, 'config.yaml'))
        return any(next(folder.glob(pattern), None) for pattern in names)
    known = timm.is_model(name.partition('.')[0]) and folder.suffix.lower() not in Image.registered_extensions()
    return known or name.startswith(('hf-hub:', 'hf_hub:', 'local-dir:'))


def model_folder(folder: Union[str, Path]) -> Path:
    """The folder itself if it contains a model, or the best model of a run folder.

    Raises:
        InputError: It is neither, or its name is not UTF-8.
    """
    folder = Path(folder)
    check_utf8(folder)
    if (folder / BEST / CONFIG_NAME).is_file():
        folder = folder / BEST
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise InputError(f'{folder} contains no {name}. Pass a run folder, or the folder of a model in it.')
    return folder


def read_saved_config(pretrained_cfg: Dict[str, Any], cache_dir: Optional[Union[str, Path]] = None) -> Dict[str, Any]:
    """The whole config.json that a model was loaded with. timm itself keeps only a part of it.

    Args:
        pretrained_cfg: Config of the model. Unless its source is a folder or a repository, the result is empty.
        cache_dir: Cache of the Hub's client.

    Raises:
        InputError: It cannot be read.
    """
    source = pretrained_cfg.get('source')
    if source == 'local-dir':
        file = Path(pretrained_cfg['file']) / CONFIG_NAME
    elif source == 'hf-hub':
        repo, _, revision = pretrained_cfg['hf_hub_id'].partition('@')
        with hub_errors(f'hf-hub:{pretrained_cfg["hf_hub_id"]}'):
            file = Path(hf_hub_download(repo, CONFIG_NAME, revision=revision or None, cache_dir=cache_dir))
    else:
        return {}
    try:
        return read_json(file)
    except OSError as error:
        raise InputError(f'{file} cannot be read: {error}') from error


def _are_thresholds(values: Any, num_classes: int) -> bool:
    return isinstance(values, list) and len(values) == num_classes and all(
        isinstance(v, (int, float)) and 0 < v < 1 for v in values)


def load_model(source: Union[str, Path], cache_dir: Optional[Union[str, Path]] = None) -> nn.Module:
    """Load a trained model in evaluation mode, with its thresholds (see `model_thresholds`).

    Its attributes `threshold_policy` and `thresholds_chosen_on` are what `save_thresholds` stored, or None.

    Args:
        source: A model folder, a run folder (its best model), or a name for `timm.create_model`, e.g.
            `hf-hub:someone/fan_resnet101.coco2014`, optionally with `@REVISION` after it.
        cache_dir: Cache of the Hub's client, by default its own.

    Raises:
        InputError: The folder contains no model, or its files are damaged or do not match.
    """
    if Path(source).is_dir():
        source = f'local-dir:{model_folder(source)}'
    elif ':' not in str(source) and '/' in str(source):
        is_repo = re.fullmatch(r'[\w.-]+/[\w.-]+', str(source))
        hint = f" The name of a model on the Hub starts with 'hf-hub:', as in hf-hub:{source}." if is_repo else ''
        raise InputError(f'No model or run folder {source}.{hint}')
    model = create_model(str(source), pretrained=True, cache_dir=cache_dir).eval()
    if len(label_names(model)) != model.num_classes:
        raise InputError(
            f'{source}: config.json names {len(label_names(model))} labels for {model.num_classes} classes.')
    config = read_saved_config(model.pretrained_cfg, cache_dir)
    thresholds = config.get('thresholds')
    if thresholds is not None and not _are_thresholds(thresholds, model.num_classes):
        raise InputError(
            f'{source}: the thresholds in config.json must be {model.num_classes} numbers between 0 and 1, one for each'
            f' class, got {thresholds!r:.80}. Choose the thresholds again.')
    model.thresholds, model.threshold_policy = thresholds, config.get('threshold_policy')
    model.thresholds_chosen_on = config.get('thresholds_chosen_on')
    return model
