"""The folder of a training run: the only place that knows which files are in it."""
import csv
import io
import json
import logging
import shlex
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterator, List, Literal, Optional, Sequence, Union

import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object
from filelock import FileLock, Timeout

from timm_fan.data import MultiLabelDataset, is_divided, write_division
from timm_fan.data.statistics import doubtful_labels
from timm_fan.errors import InputError
from timm_fan.files import check_utf8, read_json, read_yaml, recover_folder, write_text
from timm_fan.hub import CONFIG_NAME
from timm_fan.models.folder import BEST
from timm_fan.provenance import environment

from .bad_samples import BadSamples
from .checkpoint import Progress, latest_checkpoint, load_checkpoint, read_progress, save_checkpoint
from .engine import start_logger
from .options import TrainingOptions
from .training import Training

_logger = logging.getLogger(__name__)


def new_record(training: Training, train_set: MultiLabelDataset, val_set: MultiLabelDataset) -> Dict[str, Any]:
    """Where the results of a run come from: command, hardware, versions, seed, parameters, and the data."""
    accelerator = training.accelerator
    return dict(
        command=shlex.join(sys.argv), **environment(accelerator.device, accelerator.num_processes),
        seed=training.options.seed, parameters=sum(p.numel() for p in training.network.parameters()),
        train_images=len(train_set), val_images=len(val_set), seconds=0.,
        data=dict(train=train_set.fingerprint(), val=val_set.fingerprint()))


class RunFolder:
    """A run on disk: claims the folder, resumes and records the run, and stores models, history and checkpoints.

    Reading one needs nothing but the path. To write it, call `claim`, `load_progress`, `open` and `begin` in this
    order, in every process. All machines share the file system of the folder, which `open` creates.

    Attributes:
        best, last: Model folders of the best and of the latest epoch.
        report: Report on the best model.
        config: Options of the run.
        history: Metrics of each epoch.
        log: Log file.
        bad_samples: List of unreadable images.
        division: Which images are in which split, if the data has no splits of its own.
        checkpoint: Checkpoint to resume from, None for a new run.
        progress: How far the run has got.
    """

    def __init__(self, path: Union[str, Path]):
        self.path = Path(path)
        self.best, self.last = self.path / BEST, self.path / 'last'
        self.report = self.path / 'report'
        self.config, self.history, self.log = (self.path / name for name in ('config.yaml', 'history.csv', 'train.log'))
        self.bad_samples = BadSamples(self.path / 'bad_samples.jsonl')
        self.division = self.path / 'split.csv'
        self.checkpoint: Optional[Path] = None
        self.progress: Optional[Progress] = None
        self._record_file, self._checkpoints = self.path / 'run.json', self.path / 'checkpoints'
        self._record: Dict[str, Any] = {}
        self._changed: Dict[str, Any] = {}
        self._lock = FileLock(self.path / 'run.lock', timeout=0)
        self._started = time.time()
        # time and updates of the start of this process, to predict the time that is left
        self._began, self._updates_before = self._started, 0

    def is_run(self) -> bool:
        """Whether the folder contains a run that has begun."""
        return self._record_file.is_file()

    def latest_checkpoint(self) -> Optional[Path]:
        return latest_checkpoint(self._checkpoints)

    def read_options(self) -> Dict[str, Any]:
        """Options that the run was started with.

        Raises:
            InputError, OSError: They cannot be read.
        """
        options = read_yaml(self.config)
        if not isinstance(options, dict):
            raise InputError(f'{self.config} contains no options.')
        return options

    def read_record(self) -> Optional[Dict[str, Any]]:
        """Command, hardware, versions, number of images and time of the run, None if they were not recorded."""
        return read_json(self._record_file) if self._record_file.is_file() else None

    def read_history(self) -> List[Dict[str, str]]:
        """One dict per epoch, with empty strings where an epoch was not evaluated."""
        if not self.history.is_file():
            return []
        with open(self.history, newline='', encoding='utf-8') as file:
            return list(csv.DictReader(file))

    def _acquire(self) -> None:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise InputError(
                f'Another run is training in {self.path}. Wait for it, or choose another `output`.') from error

    def claim(self, accelerator: Accelerator, resume: Optional[Literal['auto', 'always']] = None) -> None:
        """Decide whether the run may use the folder, and whether it resumes an earlier one.

        Args:
            accelerator: Its processes decide together.
            resume: None starts a new run, 'always' resumes one, 'auto' resumes one if it has a checkpoint.

        Raises:
            InputError: The folder has a run or a trained model and is not to be resumed, there is nothing to resume,
                another run is training in it, the machines do not share it, or its name is not UTF-8.
        """
        check_utf8(self.path)
        if accelerator.is_main_process and self.path.is_dir():
            self._acquire()
        self.checkpoint = self.latest_checkpoint()
        if len(set(gather_object([str(self.checkpoint)]))) > 1:
            raise InputError(f'`output={self.path}` must be on a file system that all machines share.')
        if self.checkpoint and resume is None:
            raise InputError(
                f'{self.path} already contains a run. Resume it with `resume`, or choose another `output`.')
        if resume is None and (self.best / CONFIG_NAME).is_file():
            raise InputError(
                f'{self.path} already contains a trained model. Choose another `output`, or delete the folder.')
        if not self.checkpoint and resume == 'always':
            raise InputError(f'{self.path} contains no checkpoint to resume from. Leave out `resume` for a new run.')
        accelerator.wait_for_everyone()

    def load_progress(self, options: TrainingOptions, class_names: Sequence[str], num_images: int) -> None:
        """Set `progress`: none for a new run, otherwise that of the checkpoint. `num_images` are those for training.

        Raises:
            InputError: The checkpoint is damaged, or does not fit the data or the options.
        """
        updates_per_epoch = num_images // options.batch_size
        if self.checkpoint is None:
            self.progress = Progress(list(class_names), updates_per_epoch)
            return
        self._check_unchanged(options)
        self.progress = read_progress(self.checkpoint, class_names, updates_per_epoch)

    def _check_unchanged(self, options: TrainingOptions) -> None:
        """Raise InputError unless the options fit the checkpoint. Note which others have changed."""
        try:
            before = self.read_options()
        except (OSError, InputError):
            return
        now = options.model_dump()
        self._changed = {name: [before[name], now[name]] for name in now if before.get(name, now[name]) != now[name]}
        fixed = TrainingOptions.names(resumable=False)
        if options.sched == 'plateau':
            fixed += ('lr', 'backbone_lr')
        elif 0 in self._changed.get('backbone_lr', ()):  # the optimizer has no state for a frozen backbone
            fixed += ('backbone_lr',)
        for name in fixed:
            if name in self._changed:
                was, wanted = ('none' if value is None else value for value in self._changed[name])
                raise InputError(
                    f'{self.path} was started with `{name}={was}` and cannot be resumed with {wanted}. Start a new run'
                    f' with `model=local-dir:{self.best}`.')

    def open(self, options: TrainingOptions, accelerator: Accelerator, **splits: MultiLabelDataset) -> None:
        """Create the folder, if necessary, reserve it for this run until the process ends, and start its log.

        Unreadable images of the splits 'train' and 'val' are listed in it.

        Raises:
            InputError: Another run has started in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if accelerator.is_main_process:
            self._reserve()
        self._start_log(accelerator.is_main_process)
        for split, dataset in splits.items():
            limit = max(10, int(options.max_bad_samples * len(dataset)))
            dataset.on_unreadable = partial(self.bad_samples.add, split, limit)

    def _reserve(self) -> None:
        self._acquire()
        if self.latest_checkpoint() != self.checkpoint:
            raise InputError(f'Another run has trained in {self.path}. Resume it, or choose another `output`.')
        if self.checkpoint is None:
            self.bad_samples.file.unlink(missing_ok=True)
        else:
            for folder in (self.best, self.last):
                recover_folder(folder)
            for name in (self.best.name, self.last.name, 'try'):  # incomplete models of a run that was killed
                for leftover in self.path.glob(f'.{name}.*/'):
                    shutil.rmtree(leftover, ignore_errors=True)

    def _start_log(self, is_main_process: bool) -> None:
        handlers = [logging.StreamHandler(sys.stdout)]
        if is_main_process:
            handlers.append(logging.FileHandler(self.log, encoding='utf-8', errors='backslashreplace'))
        logging.basicConfig(
            format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.WARNING, handlers=handlers, force=True)
        logging.getLogger('timm_fan').setLevel(logging.INFO if is_main_process else logging.WARNING)

    def begin(self, training: Training, train_set: MultiLabelDataset, val_set: MultiLabelDataset) -> None:
        """Restore the checkpoint, if there is one, then record the run, and start its logger.

        Raises:
            InputError: The checkpoint is damaged or does not fit, the model cannot be saved, or the logger not started.
        """
        options, accelerator = training.options, training.accelerator
        self._record = new_record(training, train_set, val_set)
        _logger.info(
            '%s: %.1f M parameters, %d classes, %d training and %d validation images at %d px, %s on %d process(es)',
            options.model, self._record['parameters'] / 1e6, len(train_set.class_names), len(train_set), len(val_set),
            training.train_config['input_size'][1], accelerator.device.type, accelerator.num_processes)
        for warning in doubtful_labels(train_set) if accelerator.is_main_process else ():
            _logger.warning(warning)
        if self.checkpoint is None:
            training.try_to_save(self.path)
        else:
            load_checkpoint(accelerator, self.checkpoint, training.ema)
            training.resume(self.progress)
            self._record = self._continued(self._record)
            self._log_resumption(accelerator.num_processes)
        self.progress.num_processes = accelerator.num_processes
        self._began, self._updates_before = time.time(), self.progress.total_updates
        self._started = self._began - self.progress.seconds
        if accelerator.is_main_process:
            write_text(self.config, yaml.safe_dump(options.model_dump()))
            if is_divided(options.data):
                write_division(self.division, train=train_set, val=val_set)
        start_logger(accelerator, options, self.path)

    def _continued(self, record: Dict[str, Any]) -> Dict[str, Any]:
        """The record of a resumed run, with its changed options, and those of earlier starts under `earlier`."""
        try:
            earlier = self.read_record()
        except InputError:
            return record
        if earlier is None:
            return record
        if earlier.get('data') != record['data']:
            _logger.warning('the data has changed since %s was started: other images, labels or classes', self.path)
        return {**record, 'changed_options': self._changed, 'earlier': [*earlier.pop('earlier', []), earlier]}

    def _log_resumption(self, num_processes: int) -> None:
        progress = self.progress
        _logger.info('resumed %s after epoch %d and %d updates', self.path, len(progress.history), progress.updates)
        for name, (before, now) in self._changed.items():
            _logger.info('%s is %s now, and was %s', name, now, before)
        if progress.num_processes != num_processes:
            _logger.info(
                'it ran on %d process(es) and continues with %d: the batches are the same, but divided'
                ' differently, so that BatchNorm, dropout and rounding change the weights slightly',
                progress.num_processes, num_processes)

    def seconds(self) -> float:
        """Training time so far, over all starts."""
        return time.time() - self._started

    def seconds_left(self, epochs: int) -> float:
        """Time that the rest of the epochs takes at the rate of this process so far, with evaluations."""
        done = self.progress.total_updates
        rate = (time.time() - self._began) / max(1, done - self._updates_before)
        return rate * (epochs * self.progress.updates_per_epoch - done)

    def epochs_without_gain(self) -> int:
        """Epochs since the one with the best mAP, counted at the latest evaluation."""
        evaluated = [row for row in self.progress.history if row['mAP'] is not None]
        best = next((row['epoch'] for row in evaluated if row['mAP'] == self.progress.best), 0)
        return evaluated[-1]['epoch'] - best if evaluated else 0

    def stopped_early(self, options: TrainingOptions) -> bool:
        """Whether the patience of the options has been exhausted."""
        return 0 < options.patience <= self.epochs_without_gain()

    def remaining_epochs(self, options: TrainingOptions) -> Iterator[int]:
        """Epochs to train, counted from 0. Each must have been finished before the next is requested."""
        while len(self.progress.history) < options.epochs and not self.stopped_early(options):
            yield len(self.progress.history)

    def finish_epoch(self, training: Training, row: Dict[str, Any]) -> None:
        """Record the metrics of an epoch, save its model, the best model so far, and a checkpoint.

        `mAP` in the row is None if the epoch was not evaluated.
        """
        progress = self.progress
        is_best = row['mAP'] is not None and row['mAP'] > progress.best
        if is_best:
            progress.best = row['mAP']
        progress.history.append(row)
        progress.updates, progress.loss_sum = 0, 0.
        training.save_models(*((self.best, self.last) if is_best else (self.last,)))
        if training.accelerator.is_main_process:
            self._write_history()
        self.save_checkpoint(training)

    def _write_history(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.progress.history[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows(self.progress.history)
        write_text(self.history, text.getvalue())

    def delete_checkpoints(self) -> None:
        """Delete all checkpoints, after which the run cannot be resumed."""
        shutil.rmtree(self._checkpoints)

    def save_checkpoint(self, training: Training) -> None:
        """Write a checkpoint of the current update.

        Raises:
            InputError: It cannot be written. Earlier ones are unchanged.
        """
        self.progress.seconds = round(self.seconds(), 1)
        self.progress.scheduler = training.scheduler_state()
        if training.accelerator.is_main_process:
            early = self.stopped_early(training.options)
            record = {**self._record, 'seconds': self.progress.seconds, 'stopped_early': early}
            write_text(self._record_file, json.dumps(record, indent=2))
        save_checkpoint(training.accelerator, self._checkpoints, training.ema, self.progress, training.options.keep)
