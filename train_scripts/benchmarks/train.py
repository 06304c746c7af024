"""Time of an epoch over a frozen backbone, on images and on maps that were computed once."""
import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Dict

from command_line import add_data_arguments

import torch

from benchmarks.timing import beside_busy_process, median_seconds, seconds
from timm_fan.files import write_text
from timm_fan.provenance import environment
from timm_fan.training import (
    Training,
    TrainingOptions,
    create_accelerator,
    create_loaders,
    create_network,
    open_splits,
    set_transforms,
)

ROWS: Dict[str, Dict[str, Any]] = {'FAN': {}, 'FAN with full FTBs': dict(lite=False)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_data_arguments(parser)
    add('--backbone', default='tf_efficientnet_lite0', help='timm model, with random weights (default: %(default)s)')
    add('--img-size', type=int, default=224, metavar='N', help='image size in pixels (default: %(default)s)')
    add('--batch-size', type=int, default=16, metavar='N', help='(default: %(default)s)')
    add('--workers', type=int, default=2, metavar='N', help='data loading processes (default: %(default)s)')
    add('--repeats', type=int, default=3, metavar='N', help='epochs of each (default: %(default)s)')
    add('--results', type=Path, help='write a JSON file')
    add('--table', type=Path, help='write a Markdown page')


class Epochs:
    """Trains an epoch at each call. `maps_seconds` is the time to compute one view of all images, 0 for none."""

    def __init__(self, options: TrainingOptions, folder: Path):
        accelerator, options = create_accelerator(options.resolved(), folder)
        train_set, val_set = open_splits(options, accelerator)
        network = create_network(options, train_set, accelerator)
        set_transforms(train_set, val_set, network, options)
        self.training, self.updates = Training(network, train_set, options, accelerator), 0
        loaders = partial(create_loaders, train_set, val_set, self.training, folder)
        self.maps_seconds = seconds(lambda: setattr(self, 'loaders', loaders()))
        self.threads = torch.get_num_threads()  # without workers, all cores
        self.images = len(train_set)

    def __call__(self) -> None:
        torch.set_num_threads(self.threads)
        training = self.training
        training.set_train_mode()
        for images, targets, _ in self.loaders[0]:
            with training.accelerator.accumulate(training.model):
                training.compute(images, targets)
            self.updates += 1
            training.update(self.updates)


def run(args: argparse.Namespace) -> None:
    options = dict(
        data=args.data, data_dir=args.data_dir, backbone=args.backbone, img_size=args.img_size, backbone_lr=0,
        batch_size=args.batch_size, workers=args.workers, ema_decay=0.99, min_crop=0.4, log_with='none')
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row, kwargs in ROWS.items():
            epochs = {
                views: Epochs(TrainingOptions.parse({**options, 'model_kwargs': kwargs, 'cache_features': views}),
                              Path(folder)) for views in (0, 1)}
            runs = dict(images=epochs[0], busy=beside_busy_process(epochs[0]), maps=epochs[1])
            times = median_seconds(runs, args.repeats, description=row)
            rows.append(dict(row=row, **times, computing=epochs[1].maps_seconds))
    report = dict(
        rows=rows, train_images=epochs[1].images, repeats=args.repeats, **options,
        **environment(epochs[1].training.accelerator.device))
    page = format_report(report)
    if args.results:
        write_text(args.results, json.dumps(report, indent=1))
    if args.table:
        write_text(args.table, page)
    print(page)


def format_report(report: Dict[str, Any]) -> str:
    """Markdown, with the time on images as a multiple of that on maps."""
    lines = [
        f'Seconds of an epoch of {report["train_images"]} images at {report["img_size"]} px over a frozen'
        f' {report["backbone"]}, without the evaluation, batch size {report["batch_size"]}, median of'
        f' {report["repeats"]} in turn; {report["hardware"]}, torch {report["versions"]["torch"]}',
        '', '| | on images | on maps | ratio | to compute a view of both splits | on images, beside a busy process |',
        '|---|---|---|---|---|---|',
        *(f'| {r["row"]} | {r["images"]:.2f} | {r["maps"]:.2f} | {r["images"] / r["maps"]:.1f} |'
          f' {r["computing"]:.1f} | {r["busy"]:.2f} |' for r in report['rows'])]
    return '\n'.join(lines) + '\n'
