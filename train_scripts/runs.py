"""Runs of train.py that other programs start, and the evaluation of their models."""
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import yaml
from accelerate import Accelerator

from timm_fan import InputError
from timm_fan.data import create_loader
from timm_fan.evaluation import Evaluation, dataset_for_model, evaluate
from timm_fan.files import read_json, write_text
from timm_fan.models import load_model, model_thresholds
from timm_fan.training import RunFolder

TRAIN = Path(__file__).parent / 'train.py'
STOPPED = 75  # exit code of train.py after a signal
# options that do not change the result
_INDECISIVE = {'backbone_weights', 'keep', 'log_with', 'val_interval', 'workers'}
_under_way: List[subprocess.Popen] = []  # training of this process


def decisive(options: Dict[str, Any]) -> Dict[str, Any]:
    """The options that the result depends on."""
    return {k: v for k, v in options.items() if k not in _INDECISIVE}


def started_from(options: Dict[str, Any], model: Path) -> Dict[str, Any]:
    """Options of a run that starts from a saved model, instead of a network that they describe."""
    network = ('backbone', 'backbone_weights', 'model_kwargs', 'pretrained', 'pretrained_backbone')
    return {**{k: v for k, v in options.items() if k not in network}, 'model': f'local-dir:{model}'}


def train(
        options: Dict[str, Any], folder: Path, identity: Dict[str, Any], quiet: bool = False,
        threads: Optional[int] = None) -> None:
    """Train a run with train.py in a process of its own, or continue one that was interrupted.

    Args:
        options: Options of train.py.
        folder: The run folder.
        identity: What the result depends on. It is kept next to the folder.
        quiet: Show nothing of the training.
        threads: CPU threads, by default those that train.py chooses.

    Raises:
        InputError: The folder has a run of another identity, or train.py fails or is stopped.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    known, config = _identity_file(folder), folder.with_name(f'{folder.name}.yaml')
    if folder.exists() and known.is_file():
        before = read_json(known)
        other = sorted(key for key in {*before, *identity} if before.get(key) != identity.get(key))
        if other:
            raise InputError(
                f'{folder} was trained with other options ({", ".join(other)}). Remove it, or give another folder as'
                ' `runs`.')
    write_text(known, json.dumps(identity))
    write_text(config, yaml.safe_dump(options))
    command = [sys.executable, TRAIN, '--config', config, '--output', folder, '--resume']
    env = {**({'OMP_NUM_THREADS': str(threads)} if threads else {}), **os.environ}
    streams = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding='utf-8', errors='replace')
    with subprocess.Popen(command, env=env, **streams if quiet else {}) as training:
        _under_way.append(training)
        _, errors = training.communicate()
        _under_way.clear()
    if training.returncode == STOPPED:
        raise InputError(f'{folder} was stopped. The same command continues it.')
    if training.returncode:
        raise InputError(f'{folder} ended with exit code {training.returncode}. {(errors or "").strip()[-2000:]}')


def stop_training() -> None:
    """Ask the training of this process to stop. It saves a checkpoint, and resumes at the next start."""
    for training in _under_way:
        training.terminate()


def is_trained(folder: Path, identity: Dict[str, Any], epochs: int) -> bool:
    """Whether a run of this identity has had all its epochs."""
    known = _identity_file(folder)
    return known.is_file() and read_json(known) == identity and len(RunFolder(folder).read_history()) == epochs


def _identity_file(folder: Path) -> Path:
    return folder.with_name(f'{folder.name}.json')


def evaluate_folder(folder: Path, data: str, data_dir: str, workers: int = 0) -> Evaluation:
    """Evaluation of a saved model, with its thresholds, on the validation split of a data source."""
    accelerator = Accelerator()
    model = load_model(folder).to(accelerator.device)
    loader = create_loader(dataset_for_model(model, data, data_dir, 'val'), 32, workers)
    return evaluate(model, accelerator.prepare(loader), accelerator, model_thresholds(model))
