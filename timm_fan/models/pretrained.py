"""Where weights come from, and what is refused: FANs load safetensors only, never a pickle."""
import contextlib
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Optional, Tuple, Union

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.models import PretrainedCfg, load_model_config_from_hf, resolve_pretrained_cfg
from timm.models._hub import load_model_config_from_path

from timm_fan.errors import InputError, raise_problems
from timm_fan.hub import WEIGHTS_NAME, default_repo, hub_errors

# folders of the models that come with the package, named as their repositories
WEIGHTS = Path(__file__).parents[1] / 'weights'
# the model for photographs if none is named
BUNDLED = 'fan_tf_efficientnet_lite2.voc2007'
_REFUSAL = 'FANs load safetensors only, which cannot run code.'


def check_plain_weights(name: str, state_dict: Dict[str, torch.Tensor], source: str) -> None:
    """Raise InputError, naming `source`, unless `state_dict` has all tensors of the plain timm model `name`."""
    # the feature network ignores missing classifier tensors, and would hide the weights of another model
    wanted = timm.create_model(name, num_classes=0, device='meta').state_dict().keys()
    missing = sorted(wanted - state_dict.keys())
    if missing:
        raise InputError(
            f"{source} lacks {len(missing)} of {len(wanted)} tensors of '{name}', the first: {missing[0]}."
            " Use weights of this backbone with timm's parameter names.")


def read_backbone_weights(name: str, file: Union[str, Path]) -> Dict[str, torch.Tensor]:
    """Weights of the plain timm model `name` from a safetensors file.

    Raises:
        InputError: The file is missing, is not a safetensors file, or lacks parameters of that model.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f'`backbone_weights`: no file {file}. Pass a safetensors file of the timm model {name}.')
    try:
        state_dict = safetensors.torch.load_file(file)
    except SafetensorError as error:
        raise InputError(
            f'`backbone_weights`: {file} is damaged, or is not a safetensors file ({error}).'
            ' Download or write it again.') from error
    check_plain_weights(name, state_dict, f'`backbone_weights`: {file}')
    return state_dict


class PretrainedSource(NamedTuple):
    """Where the weights of a whole FAN come from.

    Attributes:
        name: The source in words, for messages.
        pretrained_cfg: Config to create the model with; None for that of its tag.
        overlay: What replaces entries of that config.
        model_args: Model arguments that the weights were published with.
    """
    name: str
    pretrained_cfg: Optional[Union[PretrainedCfg, Dict[str, Any], str]]
    overlay: Dict[str, Any]
    model_args: Dict[str, Any]


def find_weights(
        variant: str,
        pretrained_cfg: Optional[Union[PretrainedCfg, Dict[str, Any], str]],
        overlay: Dict[str, Any],
        cache_dir: Optional[Union[str, Path]] = None,
) -> PretrainedSource:
    """Find the weights for `pretrained=True`: those of the config, otherwise those of its tag.

    The weights of a tag come with the package, or are on the Hub.

    Args:
        variant: Name of the model.
        pretrained_cfg: As for `timm.create_model`.
        overlay: As `pretrained_cfg_overlay` for `timm.create_model`.
        cache_dir: Cache of the Hub's client.

    Raises:
        InputError: Nothing is published, the source is not safetensors, or it cannot be read.
    """
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay)
    model_args: Dict[str, Any] = {}
    if not (cfg.has_weights or cfg.state_dict):
        pretrained_cfg, model_args = _published(variant, cfg.tag, cache_dir)
        cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay)
    name, safe = _safe_source(cfg)
    return PretrainedSource(name, pretrained_cfg, {**overlay, **safe}, model_args)


def _published(variant: str, tag: Optional[str], cache_dir: Any) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Config and model arguments of the weights of a default tag."""
    repo = default_repo(variant, tag)
    bundled = WEIGHTS / repo.rpartition('/')[2]
    if bundled.is_dir():
        cfg, _, model_args = load_model_config_from_path(bundled)
        return cfg, model_args
    try:
        with hub_errors(repo):
            cfg, architecture, model_args = load_model_config_from_hf(repo, cache_dir=cache_dir)
    except InputError as error:
        raise InputError(
            f'No pretrained weights for {variant}: {error} Train the model, pass a file'
            " (pretrained_cfg_overlay=dict(file='model.safetensors')), or start from the ImageNet weights of the"
            ' backbone (pretrained=False, pretrained_backbone=True).') from error
    except (ValueError, KeyError) as error:
        raise InputError(f'{repo}: its config.json does not describe a timm model ({error}).') from error
    if architecture != variant:
        raise InputError(f"{repo} contains a {architecture}, not a {variant}. Create 'hf-hub:{repo}' to load it.")
    return cfg, model_args


def _safe_source(cfg: PretrainedCfg) -> Tuple[str, Dict[str, Any]]:
    """Source of the weights of `cfg` in words, and config entries that keep timm from looking for pickles."""
    if cfg.source == 'local-dir':
        if not (Path(cfg.file) / WEIGHTS_NAME).is_file():
            raise InputError(f'{cfg.file} contains no {WEIGHTS_NAME}. {_REFUSAL}')
        return f'{cfg.file}/{WEIGHTS_NAME}', {}
    if cfg.source != 'hf-hub' and (cfg.state_dict or cfg.file):
        if cfg.state_dict:
            return 'state_dict', {}
        if Path(cfg.file).suffix != '.safetensors':
            raise InputError(f'{cfg.file}: not a .safetensors file. {_REFUSAL}')
        if not Path(cfg.file).is_file():
            raise InputError(f'No weights file {cfg.file}.')
        return cfg.file, {}
    if not cfg.hf_hub_id:
        raise InputError(f'{cfg.url}: pass a .safetensors file or a repository of the Hub, not a URL. {_REFUSAL}')
    filename = cfg.hf_hub_filename or WEIGHTS_NAME
    if not filename.endswith('.safetensors'):
        raise InputError(f'{cfg.hf_hub_id}/{filename}: not a .safetensors file. {_REFUSAL}')
    return f'hf-hub:{cfg.hf_hub_id}', dict(hf_hub_filename=filename)


@contextlib.contextmanager
def weights_errors(source: PretrainedSource, variant: str) -> Iterator[None]:
    """Turn what goes wrong while weights are loaded into an InputError that names their source."""
    try:
        with hub_errors(source.name):
            yield
    except SafetensorError as error:
        raise InputError(
            f'{source.name}: the file is damaged, or is not a safetensors file ({error}). Download or write it again.'
        ) from error
    except RuntimeError as error:
        if 'state_dict' in str(error):
            differences = [line.strip() for line in str(error).splitlines()[1:]]
            raise_problems(f'{source.name}: the weights do not fit {variant}', differences, 'difference', shown=5)
        raise
