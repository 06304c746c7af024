"""Training and evaluation of the runs of a grid, several at a time."""
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, List, Optional

import torch
import yaml
from accelerate import Accelerator

from timm_fan import InputError
from timm_fan.data import create_loader
from timm_fan.data.statistics import correlated_classes
from timm_fan.evaluation import dataset_for_model, evaluate
from timm_fan.explain import localization
from timm_fan.files import read_yaml, write_text
from timm_fan.models import load_model
from timm_fan.prediction import Predictor
from timm_fan.report import percent
from timm_fan.training import RunFolder, merge_options

from .grid import Results, Run, decisive

TRAIN = Path(__file__).parents[1] / 'train.py'
_under_way: List[subprocess.Popen] = []  # training of this process

_RECORDED = (
    'parameters', 'train_images', 'val_images', 'seconds', 'hardware', 'versions', 'git_revision', 'data')


@dataclass(frozen=True)
class Place:
    """Where runs find their data and put their folders.

    Attributes:
        data_dir: Folder of the data set.
        runs: Folder of the run folders.
        backbone_weights: Safetensors file of the backbone of all rows, or None.
    """
    data_dir: str
    runs: Path
    backbone_weights: Optional[str] = None

    def options(self, run: Run) -> Dict[str, object]:
        """Options for train.py."""
        weights = dict(backbone_weights=self.backbone_weights) if self.backbone_weights else {}
        return merge_options(run.options, weights, dict(data_dir=self.data_dir, seed=run.seed, report=False))


def work(runs: List[Run], results: Results, place: Place, jobs: int) -> None:
    """Train and evaluate the runs that have no results yet.

    Raises:
        InputError: A run fails. Those under way are finished and kept, no others start.
    """
    spawn = multiprocessing.get_context('spawn')  # a forked process cannot use a GPU
    with ProcessPoolExecutor(jobs, spawn, _start_worker, (torch.get_num_threads(),)) as pool:
        missing = {pool.submit(_train_and_evaluate, run, place): run for run in runs if not results.find(run)}

        def keep(record: dict, run: Run) -> None:
            results.add(record)
            RunFolder(place.runs / run.name).delete_checkpoints()
            print(f'{run.name}: mAP {percent(record["mAP"])}, {record["seconds"]:.0f} s', flush=True)

        try:
            for future in as_completed(missing):
                keep(future.result(), missing[future])
        except BaseException as error:
            pool.shutdown(cancel_futures=True)
            for future, run in missing.items():
                if not future.cancelled() and not future.exception() and not results.find(run):
                    keep(future.result(), run)
            if isinstance(error, BrokenProcessPool):
                raise InputError(f'A process was killed, perhaps for lack of memory: lower `jobs`. {error}') from error
            raise


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Otherwise a worker and its training would outlive a program that is killed."""
    multiprocessing.parent_process().join()
    for training in _under_way:
        training.terminate()  # it saves a checkpoint, and resumes at the next start
    os._exit(1)


def _train_and_evaluate(run: Run, place: Place) -> dict:
    _train(run, place)
    return _evaluate(run, place)


def _train(run: Run, place: Place) -> None:
    place.runs.mkdir(parents=True, exist_ok=True)
    folder = place.runs / run.name
    config = folder.with_name(f'{folder.name}.yaml')
    options = place.options(run)
    if folder.exists() and config.is_file() and decisive(read_yaml(config)) != decisive(options):
        raise InputError(f'{folder} was trained with other options. Remove it, or give another folder as `runs`.')
    write_text(config, yaml.safe_dump(options))
    command = [sys.executable, TRAIN, '--config', config, '--output', folder, '--resume']
    env = {'OMP_NUM_THREADS': str(torch.get_num_threads()), **os.environ}
    with subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding='utf-8', errors='replace',
    ) as training:
        _under_way.append(training)
        _, errors = training.communicate()
        _under_way.clear()
    if training.returncode:
        raise InputError(f'{folder} ended with exit code {training.returncode}: {errors.strip()[-2000:]}')


def _evaluate(run: Run, place: Place) -> dict:
    """Results of the last model of a run, with their provenance."""
    accelerator = Accelerator()
    folder = RunFolder(place.runs / run.name)
    model = load_model(folder.last).to(accelerator.device)
    dataset = dataset_for_model(model, run.options.get('data', 'scenes'), place.data_dir, 'val')
    evaluation = evaluate(model, accelerator.prepare(create_loader(dataset, 32)), accelerator)
    scores, groups = evaluation.scores, evaluation.groups()
    ap = {c.name: c.AP for c in scores.per_class}
    tied = [name for name in correlated_classes(dataset) if ap[name] is not None][:6]
    located = dataset.boxes is not None and run.tried is None
    where = localization(Predictor(model, accelerator.device), dataset) if located else None
    weights = dict(backbone_weights=Path(place.backbone_weights).name) if place.backbone_weights else {}
    record = folder.read_record()
    return dict(
        row=run.row, seed=run.seed, search=run.tried is not None, options=merge_options(run.options, weights),
        mAP=scores.mAP, CF1=scores.all.CF1, OF1=scores.all.OF1, tail=asdict(groups.tail),
        small=asdict(groups.small) if groups.small else None,
        correlated=dict(classes=tied, mAP=statistics.fmean(ap[n] for n in tied) if tied else None),
        pointing=where and where.pointing, energy=where and where.energy, centre=where and where.centre,
        area=where and where.area, AP=ap, **{key: record[key] for key in _RECORDED})
