"""timm's `create_model` with errors that a user can act on, and self-contained model folders."""
import copy
import difflib
import json
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import safetensors
import timm
import torch
import torch.nn as nn
from timm.models import parse_model_name, save_for_hf

from timm_fan.errors import InputError
from timm_fan.files import write_text, written_folder
from timm_fan.hub import WEIGHTS_NAME, hub_errors, read_saved_config

__all__ = ['create_model', 'label_names', 'load_model', 'model_folder', 'model_thresholds', 'save_model',
           'save_thresholds']


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """`timm.create_model`, in which a wrong name, argument or file raises InputError.

    Args:
        name: A registered model, with or without tag, or one with timm's prefix `local-dir:` or `hf-hub:`.
        kwargs: Arguments of `timm.create_model`.

    Raises:
        InputError: With what timm, safetensors or the Hub said.
    """
    try:
        source, _ = parse_model_name(name)
    except ValueError as error:
        raise InputError(str(error)) from error
    if source is None and not timm.is_model(name.split('.')[0]):
        near = difflib.get_close_matches(name.split('.')[0], timm.list_models(), n=5)
        hint = f'Close: {", ".join(near)}.' if near else "timm.list_models('fan*') lists the FANs."
        raise InputError(f"No model '{name}'. {hint}")
    try:
        with hub_errors(name):
            return timm.create_model(name, **kwargs)
    except InputError:
        raise
    except (UnicodeDecodeError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise InputError(f'{name} cannot be read: {error}') from error
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise InputError(f"{name} cannot be created with {kwargs or 'no arguments'}: {error}") from error


def label_names(model: nn.Module) -> List[str]:
    """Class names that a model was saved with, in class order; indices as text where it carries none."""
    names = model.pretrained_cfg.get('label_names')
    if isinstance(names, dict):
        names = [names[k] for k in sorted(names, key=int)]
    return list(names) if names else [str(i) for i in range(model.num_classes)]


def save_model(
        model: nn.Module,
        folder: Union[str, Path],
        class_names: Sequence[str],
        data_config: Dict[str, Any],
        extra: Optional[Dict[str, Any]] = None,
) -> None:
    """Write `model.safetensors` and a `config.json` that `timm.create_model('local-dir:FOLDER')` reads.

    The folder needs nothing else: the config holds the architecture, its arguments, the class names and the
    preprocessing, and no path to backbone weights. It replaces a model's folder as a whole.

    Args:
        model: A timm model from `create_model`, not wrapped by DDP or EMA.
        folder: Where to write.
        class_names: Names in class order.
        data_config: As of `timm.data.resolve_model_data_config`.
        extra: More entries of config.json.

    Raises:
        InputError: The weights cannot be written, or the folder holds something that is no model.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / 'config.json').is_file():
        raise InputError(f'{folder} holds other files, and no model to replace: choose a new folder.')
    # safetensors takes no channels_last
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    args = getattr(model, '_model_args', {})
    # the weights are in this folder: loading it must fetch no backbone
    without_sources = {k: v for k, v in dict(pretrained_backbone=False, backbone_weights=None).items() if k in args}
    with written_folder(folder) as new:
        try:
            save_for_hf(
                model,
                str(new),
                model_config=dict(
                    label_names=list(class_names), problem_type='multi_label_classification', **(extra or {})),
                model_args=without_sources,
                safe_serialization=True,
                data_config={k: list(v) if isinstance(v, tuple) else v for k, v in data_config.items()},
            )
        except safetensors.SafetensorError as error:
            raise InputError(f'{folder} cannot be written: {error}') from error
        # it stands beside them too, and transformers' wrapper of timm would pass it twice
        file = new / 'config.json'
        config = json.loads(file.read_text())
        config.get('model_args', {}).pop('num_classes', None)
        file.write_text(json.dumps(config, indent=2))


def save_thresholds(folder: Union[str, Path], thresholds: Sequence[float], policy: str) -> None:
    """Keep chosen thresholds in the config.json of a model or run folder, for `load_model` and `model_thresholds`."""
    file = model_folder(folder) / 'config.json'
    config = json.loads(file.read_text())
    config.update(thresholds=list(thresholds), threshold_policy=policy)
    write_text(file, json.dumps(config, indent=2))


def model_thresholds(model: nn.Module) -> Union[float, List[float]]:
    """Probability above which a label is predicted: one for each class if the model was saved with them, or 0.5."""
    return getattr(model, 'thresholds', None) or 0.5


def model_folder(folder: Union[str, Path]) -> Path:
    """The folder itself if it holds a model, or the `best` model of a run folder.

    Raises:
        InputError: It is neither.
    """
    folder = Path(folder)
    if (folder / 'best' / 'config.json').is_file():
        folder = folder / 'best'
    for name in ('config.json', WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise InputError(f'{folder} holds no {name}. Give a run folder of train.py, or its best/ or last/.')
    return folder


def _are_thresholds(values: Any, num_classes: int) -> bool:
    return isinstance(values, list) and len(values) == num_classes and all(
        isinstance(v, (int, float)) and 0 < v < 1 for v in values)


def load_model(source: Union[str, Path], cache_dir: Optional[Union[str, Path]] = None) -> nn.Module:
    """Load a trained model for evaluation, with its thresholds (see `model_thresholds`).

    Args:
        source: A model folder, a run folder of train.py (its `best` model), or a name for `timm.create_model`, e.g.
            `hf-hub:someone/fan_resnet101.coco2014`, with `@REVISION` at its end if need be.
        cache_dir: Where files of the Hub are kept, by default the Hub's own cache.

    Raises:
        InputError: The folder is no model folder, or its files are broken or do not fit.
    """
    if Path(source).is_dir():
        source = f'local-dir:{model_folder(source)}'
    elif ':' not in str(source) and '/' in str(source):
        is_repo = re.fullmatch(r'[\w.-]+/[\w.-]+', str(source))
        hint = f' A model of the Hub is written hf-hub:{source}.' if is_repo else ''
        raise InputError(f'No model or run folder {source}.{hint}')
    model = create_model(str(source), pretrained=True, cache_dir=cache_dir).eval()
    if len(label_names(model)) != model.num_classes:
        raise InputError(
            f'{source}: config.json names {len(label_names(model))} labels for {model.num_classes} classes.')
    thresholds = read_saved_config(model.pretrained_cfg, cache_dir).get('thresholds')
    if thresholds is not None and not _are_thresholds(thresholds, model.num_classes):
        raise InputError(
            f'{source}: the thresholds in config.json must be {model.num_classes} numbers between 0 and 1, one for each'
            f' class, got {thresholds!r:.80}. Choose them again: validate.py --choose-thresholds.')
    model.thresholds = thresholds
    return model
