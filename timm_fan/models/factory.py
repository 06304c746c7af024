"""timm's `create_model`, with errors that say what to do."""
import difflib
import json
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch.nn as nn
from timm.models import parse_model_name

from timm_fan.errors import InputError
from timm_fan.hub import CONFIG_NAME, hub_errors

# folder of the best model in a folder that has several
BEST = 'best'


def check_name(name: str, what: str = 'The model') -> None:
    """Raise InputError, with similar names, unless `name` is a timm model. A tag is ignored."""
    name = name.split('.')[0]
    if not timm.is_model(name):
        similar = difflib.get_close_matches(name, timm.list_models(), n=5)
        hint = f'Similar names: {", ".join(similar)}.' if similar else 'timm.list_models() lists all models.'
        raise InputError(f"{what} '{name}' is not known to timm. {hint}")


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """`timm.create_model`, where a wrong name, argument or file raises InputError.

    Args:
        name: A registered model, with or without a tag, or one with timm's prefix `local-dir:` or `hf-hub:`. The best
            model of a run folder is loaded.
        kwargs: Arguments of `timm.create_model`.

    Raises:
        InputError: Unknown name or argument, a missing or damaged file, or an error of the Hub.
    """
    try:
        source, place = parse_model_name(name)
    except ValueError as error:
        raise InputError(str(error)) from error
    if source == 'local-dir' and (Path(place) / BEST / CONFIG_NAME).is_file():
        place = str(Path(place) / BEST)
        name = f'local-dir:{place}'
    if source is None:
        check_name(name)
    elif source == 'local-dir' and not Path(place).is_dir():
        raise InputError(f'{name}: no such folder. Pass the folder of a saved model.')
    elif source == 'local-dir' and not (Path(place) / CONFIG_NAME).is_file():
        raise InputError(f'{name}: no {CONFIG_NAME}. Pass a run folder, or the folder of a model in it.')
    try:
        with hub_errors(name):
            return timm.create_model(name, **kwargs)
    except InputError:
        raise
    except (UnicodeDecodeError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise InputError(f'{name}: a file of the model is damaged ({error}). Download or write it again.') from error
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise InputError(f"{name} cannot be created with {kwargs or 'no arguments'}: {error}") from error
