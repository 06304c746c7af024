"""The work on a row of the zoo. Each part is skipped if its result is there."""
import json
import shutil
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from PIL import Image
from runs import decisive, evaluate_folder, is_trained, started_from, train
from timm.data import resolve_model_data_config

from timm_fan import InputError
from timm_fan.evaluation import Evaluation
from timm_fan.files import read_json, write_text
from timm_fan.hub import CONFIG_NAME, WEIGHTS_NAME
from timm_fan.metrics import choose_thresholds, compare, percent
from timm_fan.models import label_names, load_model, save_model, save_thresholds
from timm_fan.prediction import Predictor
from timm_fan.processes import share_cores
from timm_fan.provenance import environment, file_sha256
from timm_fan.report import ReportInfo, write_report
from timm_fan.training import RunFolder, merge_options

from .zoo import Kind, Options, Row

# largest difference in mAP, in 0..1, that half precision may make
TOLERANCE = 0.0005
_RECORDED = ('hardware', 'versions', 'git_revision', 'seconds', 'train_images', 'val_images')
_PUBLISHED = ('metrics.json', 'per_class.csv', 'precision_recall.png')


@dataclass(frozen=True)
class Place:
    """Where a row finds its data and puts its folders.

    Attributes:
        data_dir: Folder of the data set.
        runs: Folder with a folder for each row.
        backbone_weights: Safetensors file of the backbone, instead of the Hub.
    """
    data_dir: str
    runs: Path
    backbone_weights: Optional[str] = None


class Work:
    """A row in its place."""

    def __init__(self, row: Row, place: Place):
        self.row, self.place = row, place
        self.folder = place.runs / row.name
        self.model = self.folder / 'model'
        self.picture = self.folder / 'report' / 'per_class.png'

    def trainings(self) -> Iterator['Training']:
        """All trainings of the row, in order."""
        row = self.row
        yield Training(self, 'held_out', 'fan', row.held_out, 0, row.cost.held_out_images)
        for seed in range(row.seeds):
            yield Training(self, f'seed{seed}', 'fan', row.train, seed, row.cost.train_images)
        yield Training(self, 'plain', 'plain', row.train, 0, row.cost.train_images)

    def make(self) -> Dict[str, Any]:
        """Do what is missing, and return the record of the release."""
        trainings = {training.name: training for training in self.trainings()}
        for training in trainings.values():
            training.run()
        self._assemble(trainings)
        return self._evaluate(trainings)

    def _evaluation(self, model: Path, data: str) -> Evaluation:
        return evaluate_folder(model, data, self.place.data_dir, share_cores(self.row.options.get('workers', 2)))

    def _plain_model(self, source: Path) -> Path:
        """The plain timm model, which is to see the same part of an image as the FAN."""
        target, ours = self.folder / 'plain_model', read_json(self.model / CONFIG_NAME)['pretrained_cfg']
        _save_copy(source, target, **{key: ours[key] for key in ('input_size', 'crop_pct', 'crop_mode')})
        return target

    def _mAP(self, model: Path, data: str) -> float:
        return self._evaluation(model, data).scores.mAP

    def _assemble(self, trainings: Dict[str, 'Training']) -> None:
        """The model of the first seed, with thresholds chosen by the model that has not seen the held-out images."""
        row, source, chooser = self.row, trainings['seed0'].last, trainings['held_out'].last
        origin = dict(
            source=file_sha256(source / WEIGHTS_NAME), chooser=file_sha256(chooser / WEIGHTS_NAME),
            thresholds=row.thresholds, half=row.half)
        file = self.folder / 'model.json'
        if file.is_file() and read_json(file)['origin'] == origin:
            return
        held_out = self._evaluation(chooser, row.held_out)
        thresholds = choose_thresholds(held_out.logits, held_out.targets, row.thresholds)
        _save_copy(source, self.model, row.half)
        save_thresholds(self.model, thresholds, row.thresholds)
        record = dict(
            origin=origin, held_out=dict(data=row.held_out, images=len(held_out.targets), mAP=held_out.scores.mAP))
        if row.half:
            _save_copy(chooser, self.folder / 'held_out_half', half=True)
            full, half = held_out.scores.mAP, self._mAP(self.folder / 'held_out_half', row.held_out)
            if abs(full - half) > TOLERANCE:
                raise InputError(
                    f'{row.name}: half precision changes mAP from {full:.4f} to {half:.4f}. Set half: false.')
            record['half'] = dict(full=full, half=half)
        write_text(file, json.dumps(record, indent=2))

    def _evaluate(self, trainings: Dict[str, 'Training']) -> Dict[str, Any]:
        """Evaluate the model, the other seeds and the plain timm model on the test images."""
        row, file = self.row, self.folder / 'release.json'
        weights = file_sha256(self.model / WEIGHTS_NAME)
        others = [trainings[f'seed{seed}'].last for seed in range(1, row.seeds)]
        plain_weights = file_sha256(trainings['plain'].last / WEIGHTS_NAME)
        known = read_json(file) if file.is_file() else {}
        record: Dict[str, Any] = dict(
            row=row.model_dump(), config=read_json(self.model / CONFIG_NAME), weights=weights,
            **read_json(self.folder / 'model.json'))
        compared = known.get('plain', {}).get('weights') == plain_weights
        if compared and all(known.get(key) == value for key, value in record.items()):
            return known
        evaluation = self._evaluation(self.model, row.test)
        intervals, groups = evaluation.intervals(), evaluation.groups()
        info = ReportInfo(f'{row.name}', row.test, 'val', weights)
        write_report(self.folder / 'report', evaluation, info, intervals, groups)
        plain = self._evaluation(self._plain_model(trainings['plain'].last), row.test)
        difference = compare(plain.logits, evaluation.logits, evaluation.targets)['mAP']
        record.update(
            metrics=read_json(self.folder / 'report' / 'metrics.json'),
            seeds=[evaluation.scores.mAP, *(self._mAP(model, row.test) for model in others)],
            plain=dict(
                model=row.backbone, weights=plain_weights, mAP=plain.scores.mAP, all=asdict(plain.scores.all),
                top3=asdict(plain.scores.top3), AP={c.name: c.AP for c in plain.scores.per_class},
                difference=asdict(difference)),
            milliseconds=milliseconds(self.model), machine=environment()['hardware'],
            trainings={name: training.records() for name, training in trainings.items()})
        write_text(file, json.dumps(record, indent=2))
        return record

    def publication(self, target: Path, card: str) -> None:
        """Write the files to publish to an empty folder: the card, the model, and how it was trained and evaluated."""
        write_text(target / 'README.md', card)
        shutil.copyfile(self.picture, target / f'{self.row.name}.png')
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            shutil.copyfile(self.model / name, target / name)
        for folder in ('training', 'evaluation'):
            (target / folder).mkdir()
        shutil.copyfile(self.folder / 'release.json', target / 'training' / 'release.json')
        for name in _PUBLISHED:
            shutil.copyfile(self.folder / 'report' / name, target / 'evaluation' / name)


def _save_copy(source: Path, target: Path, half: bool = False, **preprocessing: Any) -> None:
    """Save a model again, in half precision or with other preprocessing."""
    model = load_model(source)
    data_config = {**resolve_model_data_config(model), **preprocessing}
    save_model(model.half() if half else model, target, label_names(model), data_config)


class Training(NamedTuple):
    """One training of a row, in one or more steps.

    Attributes:
        work: The row in its place.
        name: What it is for: 'held_out', 'seed0', ..., 'plain'.
        kind: 'fan', or 'plain' for the plain timm model.
        data: Data that it is trained on.
        seed: Its seed.
        images: Number of training images.
    """
    work: Work
    name: str
    kind: Kind
    data: str
    seed: int
    images: int

    @property
    def folders(self) -> List[Path]:
        return [self.work.folder / f'{self.name}-{i}' for i in range(1, len(self.work.row.steps_of(self.kind)) + 1)]

    @property
    def last(self) -> Path:
        """Folder of the trained model."""
        return RunFolder(self.folders[-1]).last

    def options(self, step: Options, start: Optional[Path]) -> Options:
        """Options of train.py for a step that starts from a model, or from the backbone."""
        place = self.work.place
        options = merge_options(step, dict(
            data=self.data, data_dir=place.data_dir, seed=self.seed, report=False, val_interval=step['epochs']))
        if start:
            return started_from(options, start)
        if place.backbone_weights:
            options.update(pretrained_backbone=False, backbone_weights=place.backbone_weights)
        return options

    def identity(self, step: Options, start: Optional[Path]) -> Dict[str, Any]:
        """What the result of a step depends on: not the places of data and weights."""
        weights = start / WEIGHTS_NAME if start else None
        return dict(
            decisive(step), data=self.data, seed=self.seed,
            start=file_sha256(weights) if weights and weights.is_file() else None)

    def _steps(self) -> Iterator[Tuple[Options, Optional[Path], Path]]:
        """Options, start and run folder of each step."""
        start = None
        for step, folder in zip(self.work.row.steps_of(self.kind), self.folders):
            yield step, start, folder
            start = RunFolder(folder).last

    def is_done(self) -> bool:
        return all(
            is_trained(folder, self.identity(step, start), step['epochs']) for step, start, folder in self._steps())

    def run(self) -> None:
        for step, start, folder in self._steps():
            identity = self.identity(step, start)
            if not is_trained(folder, identity, step['epochs']):
                train(self.options(step, start), folder, identity)

    def records(self) -> List[Dict[str, Any]]:
        """Hardware, versions, time and number of images of each step."""
        records = [RunFolder(folder).read_record() for folder in self.folders]
        return [{key: record[key] for key in _RECORDED} for record in records]


def milliseconds(model: Path) -> float:
    """Time for one photograph of 500 x 375 px on one thread of a CPU, without reading the file: median of 20."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        predictor = Predictor.load(model)
        photo = Image.fromarray(np.random.default_rng(0).integers(256, size=(375, 500, 3), dtype=np.uint8))
        times = []
        for _ in range(23):
            start = time.perf_counter()
            predictor.probabilities([photo])
            times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times[3:])
    finally:
        torch.set_num_threads(threads)


def describe_plan(work: Work) -> str:
    """What a row consists of, what of it is done, and what it costs."""
    row, lines, missing = work.row, [f'{work.row.name}, in {work.folder}'], 0
    for training in work.trainings():
        images, done = row.images(training.kind, training.images), training.is_done()
        steps = 'one step' if len(training.folders) == 1 else f'{len(training.folders)} steps'
        missing += 0 if done else images
        state = 'done   ' if done else 'missing'
        lines.append(f'  {state}  train {training.name}: {training.data}, {steps}, {images:,} images')
    record = work.folder / 'release.json'
    state = f'mAP {percent(read_json(record)["metrics"]["mAP"])} before' if record.is_file() else 'missing'
    lines.append(f'  {state}  thresholds ({row.thresholds}), evaluation on {row.test}, card')
    rate = row.cost.images_per_second
    hours = f'at most {missing / rate / 3600:.1f} hours at {rate:g} images/s' if rate else 'time not measured'
    lines.append(f'  {missing:,} images to train: {hours} on {row.cost.device}')
    return '\n'.join(lines)
