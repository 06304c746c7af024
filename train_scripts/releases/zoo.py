"""The rows of hub_cards/zoo.yaml."""
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional

from command_line import find_config

import timm
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from train_options import CONFIGS

from timm_fan import InputError
from timm_fan.files import read_yaml
from timm_fan.hub import default_repo
from timm_fan.metrics import parse_policy
from timm_fan.models import create_model
from timm_fan.training import TrainingOptions, merge_options

Options = Dict[str, Any]
Kind = Literal['fan', 'plain']


class Cost(BaseModel):
    """What a training costs.

    Attributes:
        device: Where `images_per_second` was measured.
        images_per_second: Of a training step, None if it was not measured.
        train_images, held_out_images: Training images of `Row.train` and of `Row.held_out`.
    """
    model_config = ConfigDict(extra='forbid', frozen=True)

    device: str
    images_per_second: Optional[float] = Field(gt=0)
    train_images: int = Field(ge=1)
    held_out_images: int = Field(ge=1)


class Row(BaseModel):
    """A published model. The comment of zoo.yaml describes its keys; `name` is the key of the row."""
    model_config = ConfigDict(extra='forbid', frozen=True)

    name: str
    train: str
    held_out: str
    test: str
    thresholds: str
    seeds: int = Field(1, ge=1)
    half: bool = False
    bundled: bool = False
    options: Options = {}
    steps: List[Options] = Field(min_length=1)
    plain_steps: Optional[List[Options]] = Field(None, min_length=1)
    cost: Cost

    @property
    def model(self) -> str:
        return self.name.partition('.')[0]

    @property
    def repo(self) -> str:
        model, _, tag = self.name.partition('.')
        return default_repo(model, tag)

    @cached_property
    def backbone(self) -> str:
        """The plain timm model that it is compared with."""
        args = {k: v for k, v in self.options.items() if k == 'backbone'}
        return create_model(self.model, device='meta', **args, **self.options.get('model_kwargs', {})).backbone.name

    def steps_of(self, kind: Kind) -> List[Options]:
        """Options of train.py for each step of a FAN, or of the plain timm model."""
        steps = self.steps if kind == 'fan' else self.plain_steps or self.steps
        shared = {**self.options, 'model': self.model}
        if kind == 'plain':
            shared = {k: v for k, v in shared.items() if k not in ('backbone', 'model_kwargs')}
            shared['model'] = self.backbone
        return [merge_options(shared, step) for step in steps]

    def images(self, kind: Kind, images: int) -> int:
        """Images that a training computes, over all epochs."""
        return images * sum(step['epochs'] for step in self.steps_of(kind))


def read_zoo(file: Path) -> Dict[str, Row]:
    """The rows of a zoo by name.

    Raises:
        InputError: The file is missing or wrong.
    """
    if not file.is_file():
        raise InputError(f'No file {file}.')
    content = read_yaml(file)
    if not isinstance(content, dict) or not all(isinstance(row, dict) for row in content.values()):
        raise InputError(f'{file} must contain rows with their keys.')
    rows = {}
    for name, values in content.items():
        try:
            rows[name] = Row(name=name, **_with_config(values))
            parse_policy(rows[name].thresholds)
            for kind in ('fan', 'plain'):
                for step in rows[name].steps_of(kind):
                    TrainingOptions.parse(step)
                    if 'epochs' not in step:
                        raise InputError('each step needs epochs.')
        except ValidationError as error:
            first = error.errors()[0]
            key = '.'.join(map(str, first['loc']))
            raise InputError(f"{file}, row '{name}': {key}: {first['msg']}.") from error
        except InputError as error:
            raise InputError(f"{file}, row '{name}': {error}".replace('`', '')) from error
        if not timm.is_model(rows[name].model):
            raise InputError(f"{file}: the row '{name}' does not start with the name of a model of timm.")
    return rows


def _with_config(values: Dict[str, Any]) -> Dict[str, Any]:
    """A row whose options have those of its `config` below them, without its data and model."""
    if 'config' not in values:
        return values
    config = read_yaml(find_config(values['config'], CONFIGS, 'config'))
    options = merge_options({k: v for k, v in config.items() if k not in ('data', 'model')}, values.get('options'))
    return {**{k: v for k, v in values.items() if k != 'config'}, 'options': options}
