"""Training and evaluation of the runs of a grid, several at a time."""
import multiprocessing
import os
import statistics
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, List, Optional

import torch
from accelerate import Accelerator
from runs import decisive, evaluate_folder, started_from, stop_training, train

from timm_fan import InputError
from timm_fan.data import MultiLabelDataset
from timm_fan.data.statistics import correlated_classes
from timm_fan.evaluation import Evaluation
from timm_fan.explain import Localization, localization
from timm_fan.hub import WEIGHTS_NAME
from timm_fan.metrics import percent
from timm_fan.prediction import Predictor
from timm_fan.training import RunFolder, TrainingOptions, merge_options

from .frozen import train_on_maps
from .grid import Grid, Results, Run

_RECORDED = (
    'parameters', 'train_images', 'val_images', 'seconds', 'hardware', 'versions', 'git_revision', 'data')


@dataclass(frozen=True)
class Start:
    """The models of another grid, which runs start from.

    Attributes:
        grid: The other grid.
        results: Its results.
        runs: Folder of its run folders.
    """
    grid: Grid
    results: Results
    runs: Path

    def model(self, run: Run) -> Path:
        """Folder of the model that a run starts from."""
        choice = self.grid.choose(run.row, self.results)
        earlier = choice.best if run.tried is not None else self.grid.run(run.row, run.seed, choice.options)
        folder = RunFolder(self.runs / earlier.name).last if earlier else self.runs
        if not earlier or not self.results.find(earlier) or not (folder / WEIGHTS_NAME).is_file():
            raise InputError(
                f"The run {run.name} starts from a model of the grid {self.grid.name}, which is not in {folder}, or has"
                f" no line in {self.results.file}. Run that grid first, with the same `runs` and `results`.")
        return folder


@dataclass(frozen=True)
class Place:
    """Where runs find their data and put their folders.

    Attributes:
        data_dir: Folder of the data set.
        runs: Folder of the run folders.
        backbone_weights: Safetensors file of the backbone of all rows, or None.
        start: The models that runs start from, None for new ones.
    """
    data_dir: str
    runs: Path
    backbone_weights: Optional[str] = None
    start: Optional[Start] = None

    def options(self, run: Run) -> Dict[str, object]:
        """Options for train.py."""
        options = merge_options(run.options, dict(data_dir=self.data_dir, seed=run.seed, report=False))
        if self.start:
            return started_from(options, self.start.model(run))
        return merge_options(options, dict(backbone_weights=self.backbone_weights) if self.backbone_weights else {})


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
            if not run.views:
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
    stop_training()
    os._exit(1)


def _train_and_evaluate(run: Run, place: Place) -> dict:
    folder = RunFolder(place.runs / run.name)
    if run.views:
        options = TrainingOptions.parse({**place.options(run), 'cache_features': run.views})
        evaluation, record = train_on_maps(options, folder.last, place.runs / 'features')
    else:
        options = place.options(run)
        train(options, folder.path, decisive(options), quiet=True, threads=torch.get_num_threads())
        evaluation = evaluate_folder(folder.last, run.options.get('data', 'scenes'), place.data_dir)
        record = folder.read_record()
    return _result(run, place, evaluation, record)


def _locate(run: Run, place: Place, dataset: MultiLabelDataset) -> Optional[Localization]:
    """The pointing game of a final run, as far as there are boxes; with a trained backbone only for the first seed."""
    trained = run.views or run.start_from
    if dataset.boxes is None or run.tried is not None or (trained and run.seed):
        return None
    return localization(Predictor.load(RunFolder(place.runs / run.name).last, Accelerator().device), dataset)


def _result(run: Run, place: Place, evaluation: Evaluation, record: dict) -> dict:
    """The line of a run: its results, with their provenance."""
    scores, groups, dataset = evaluation.scores, evaluation.groups(), evaluation.dataset
    ap = {c.name: c.AP for c in scores.per_class}
    tied = [name for name in correlated_classes(dataset) if ap[name] is not None][:6]
    where = _locate(run, place, dataset)
    weights = dict(backbone_weights=Path(place.backbone_weights).name) if place.backbone_weights else {}
    return dict(
        row=run.row, seed=run.seed, search=run.tried is not None, views=run.views, start_from=run.start_from,
        options=merge_options(run.options, weights), mAP=scores.mAP, all=asdict(scores.all), top3=asdict(scores.top3),
        tail=asdict(groups.tail), small=asdict(groups.small) if groups.small else None,
        correlated=dict(classes=tied, mAP=statistics.fmean(ap[n] for n in tied) if tied else None),
        pointing=where and where.pointing, energy=where and where.energy, centre=where and where.centre,
        area=where and where.area, AP=ap, **{key: record[key] for key in _RECORDED})
