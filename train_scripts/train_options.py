"""The options of a training run on the command line and in YAML files."""
import argparse
import re
import typing
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from command_line import find_config

import yaml

from timm_fan import InputError
from timm_fan.files import read_yaml
from timm_fan.training import RunFolder, TrainingOptions, merge_options

CONFIGS = Path(__file__).parent / 'configs'


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the fields of TrainingOptions. Only those that are given appear in the parsed arguments."""
    groups: Dict[str, Any] = {}
    for name, field in TrainingOptions.model_fields.items():
        extra = field.json_schema_extra
        if extra['group'] not in groups:
            groups[extra['group']] = parser.add_argument_group(extra['group'])
        default = ' (default: none)' if field.default in (None, {}) else f' (default: {field.default})'
        default = '' if 'default' in field.description else default
        options: Dict[str, Any] = dict(dest=name, default=argparse.SUPPRESS, help=f'{field.description}{default}')
        if field.annotation is bool:
            options['action'] = argparse.BooleanOptionalAction
        elif name == 'model_kwargs':
            options.update(nargs='*', metavar='KEY=VALUE')
        else:
            options['metavar'] = _metavar(field.annotation)
        if extra['const']:
            options.update(nargs='?', const=extra['const'])
        groups[extra['group']].add_argument(f'--{name.replace("_", "-")}', **options)


def _metavar(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Union:  # Optional
        annotation = typing.get_args(annotation)[0]
    choices = typing.get_args(annotation)
    if choices:
        return f'{{{",".join(choices)}}}' if len(choices) < 10 else 'NAME'
    return {int: 'N', float: 'X'}.get(annotation, 'TEXT')


def read_arguments(args: argparse.Namespace) -> Tuple[TrainingOptions, RunFolder, Optional[str], str]:
    """The options, the run folder, how `RunFolder.claim` is to resume it, and the recipe in words."""
    resumed = RunFolder(args.resume) if args.resume not in (None, 'auto') else None
    if resumed and args.output:
        raise InputError(f'`resume={args.resume}` continues in that folder: leave `output` out.')
    if resumed and not args.config and not resumed.config.is_file():
        raise InputError(f'`resume`: no file {resumed.config}. Give a run folder.')
    config = args.config or (str(resumed.config) if resumed else _default_config(args))
    file = find_config(config, CONFIGS, '`config`')
    recipe = file.stem if file.parent == CONFIGS else str(file)
    if not (args.config or resumed):
        recipe += ', as no other --config is given'
    options = _read_options(file, args).resolved()
    if resumed:
        return options, resumed, 'always', recipe
    own = RunFolder(file.parent.resolve())
    # the config.yaml of a run repeats it, next to it
    output = args.output or (f'{own.path}-again' if own.is_run() else f'runs/{file.stem}')
    return options, RunFolder(output), args.resume, recipe


def _default_config(args: argparse.Namespace) -> str:
    """A recipe for the data: that of the scenes is too small for photographs."""
    source = re.split('[:?]', getattr(args, 'data', 'scenes'))[0]
    return 'scenes' if source == 'scenes' else 'photos'


def _read_options(file: Path, args: argparse.Namespace) -> TrainingOptions:
    """The options of a file, with those of the command line on top.

    Another `model` or `backbone` on the command line replaces that of the file together with its arguments and weights.
    A backbone that learns there, Mixup and CutMix replace cached maps in the file.
    """
    values = read_yaml(file) or {}
    if not isinstance(values, dict):
        raise InputError(f'{file} must contain lines of option: value.')
    try:
        TrainingOptions.parse(values)
    except InputError as error:
        raise InputError(f'{file}: {error}'.replace('`', '')) from error
    given = {name: value for name, value in vars(args).items() if name in TrainingOptions.model_fields}
    if 'model_kwargs' in given:
        given['model_kwargs'] = dict(map(_parse_pair, given['model_kwargs']))
    if 'model' in given or 'backbone' in given:
        values.update(
            model='fan', backbone=None, pretrained=None, backbone_weights=None, model_kwargs=None, val_img_size=None)
    merged = merge_options(values, given)
    if 'cache_features' not in given:
        options = TrainingOptions.parse({**merged, 'cache_features': None})
        if options.backbone_lr != 0 or options.mixup or options.cutmix:
            return options
    return TrainingOptions.parse(merged)


def _parse_pair(pair: str) -> Tuple[str, Any]:
    key, sep, value = pair.partition('=')
    if not sep or not key.isidentifier():
        raise InputError(f"`model_kwargs`: '{pair}' is not KEY=VALUE, e.g. frn=false.")
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"`model_kwargs`: the value of '{pair}' cannot be read.") from error
