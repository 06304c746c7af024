#!/usr/bin/env python3
"""Predict the labels of photographs.

    python train_scripts/predict.py photo.jpg                      # by the model that comes with timm_fan
    python train_scripts/predict.py runs/scenes photo.jpg folder/ 'other/**/*.png'
    python train_scripts/predict.py hf-hub:REPO folder/ --output labels.csv          # also .jsonl, .parquet, .txt
    python train_scripts/predict.py hf-hub:REPO folder/ --output labels.csv --resume
    python train_scripts/predict.py runs/scenes --data table:new.csv --data-dir photos --output labels.csv
    accelerate launch train_scripts/predict.py hf-hub:REPO --list files.txt --output labels.parquet
    python train_scripts/predict.py runs/scenes/export/model.onnx photo.jpg     # on the CPU

predict_onnx.py does the last without PyTorch.
"""
import argparse
import hashlib
import os
import sys
import time
from datetime import timedelta
from typing import Any, Dict, List, Optional, Tuple

from command_line import (
    add_data_arguments,
    add_device_argument,
    add_model_and_images,
    check_device,
    create_parser,
    model_and_images,
    run_program,
)

import predict_onnx
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from tqdm import tqdm

from timm_fan import InputError
from timm_fan.data import Images
from timm_fan.files import printable
from timm_fan.models import load_model
from timm_fan.prediction import (
    FORMATS,
    Batches,
    EmbeddingsFile,
    EncodedPhotos,
    PredictedBatch,
    PredictionFile,
    Predictor,
    default_batch_size,
    find_photos,
    fold_batch_norms,
    format_of,
    open_images,
    predict_photos,
    rows_of,
)
from timm_fan.prediction.predictor import DTYPES
from timm_fan.processes import prediction_cores
from timm_fan.tta import TTA, with_tta

# what a run must not change when it is resumed, because it changes the result
SETTINGS = (
    'format', 'batch_size', 'threshold', 'topk', 'tta', 'mixed_precision', 'torchcompile', 'save_embeddings')


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    add = parser.add_argument
    add_model_and_images(parser, 'image files, folders that are searched for images, or patterns in quotes')
    add('--list', dest='list_file', metavar='FILE', help='file with the path of an image on each line (default: none)')
    add_data_arguments(parser, default='', split=True)
    add('--threshold', type=float,
        help='probability above which a label is predicted, 0 for all labels (default: that of the model, or 0.5)')
    add('--topk', type=int, metavar='K', help='write the K most likely labels, whatever their probabilities')
    add('--tta', default='none', choices=TTA,
        help='flip: average the logits of each image and its mirror image, in twice the time (default: %(default)s)')
    add('--output', metavar='FILE',
        help='write to this file, batch by batch (default: standard output)')
    add('--format', choices=FORMATS,
        help='csv: columns file, labels, probabilities, unreadable; csv-classes: a column with the probability of each'
        ' class; jsonl: a line for each image; parquet (default: by the name of the file, otherwise text)')
    add('--resume', action='store_true', help='continue --output where a run with the same options stopped')
    add('--save-embeddings', metavar='FILE',
        help='write the pooled features before the classifier to this .npy file, a row for each image')
    add('--batch-size', type=int, help='images that are computed at once (default: 64 on a GPU, 4 on a CPU)')
    add('--workers', type=int, help='decoding processes per process (default: one per core)')
    add('--mixed-precision', default='no', choices=list(DTYPES), help='(default: %(default)s)')
    add('--torchcompile', action='store_true', help='compile the model first, for many images')
    add_device_argument(parser)
    return parser


def is_onnx(inputs: List[str]) -> bool:
    return bool(inputs) and inputs[0].lower().endswith('.onnx')


def check_arguments(args: argparse.Namespace) -> None:
    """Check the arguments, and set those whose default depends on others."""
    for name, least in (('topk', 1), ('batch_size', 1), ('workers', 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f'`{name}` must be at least {least}, got {value}.')
    if args.threshold is not None and not 0 <= args.threshold < 1:
        raise InputError(f'`threshold` must be at least 0 and less than 1, got {args.threshold}.')
    if args.resume and not args.output:
        raise InputError('`resume` continues a file: name it with `output`.')
    if args.save_embeddings:
        if not args.output or not args.save_embeddings.endswith('.npy'):
            raise InputError(f'`save_embeddings={args.save_embeddings}` must be a .npy file, and requires `output`.')
        if args.tta != 'none':
            raise InputError(f'`save_embeddings` excludes `tta={args.tta}`.')
    if is_onnx(args.inputs):
        args.device = 'cpu'
    check_device(args.device)
    args.format = format_of(args.output, args.format)
    if args.batch_size is None:
        args.batch_size = default_batch_size(torch.device(args.device))


class OnnxPredictor:
    """An ONNX file of export.py for `predict_photos`."""

    def __init__(self, file: str):
        self.model = predict_onnx.OnnxModel(file, threads=1)
        self.names, self.thresholds = self.model.names, torch.from_numpy(self.model.thresholds)

    def transform(self, photo: Image.Image) -> torch.Tensor:
        return torch.from_numpy(self.model.prepare(photo)[0])

    def compute(self, images: torch.Tensor, embeddings: bool = False) -> List[torch.Tensor]:
        return [torch.from_numpy(self.model.probabilities(images.contiguous().numpy()))]

    labels = Predictor.labels


def open_inputs(args: argparse.Namespace) -> Tuple[str, Images]:
    """The name of the model, and the images."""
    model, paths = (args.inputs[0], args.inputs[1:]) if is_onnx(args.inputs) else model_and_images(args)
    if args.data and (paths or args.list_file):
        raise InputError('`data` excludes other images.')
    if not (args.data or paths or args.list_file):
        raise InputError('Give images, or folders of images.')
    return model, open_images(args.data, args.data_dir, args.split) if args.data else find_photos(paths, args.list_file)


def open_model(name: str, args: argparse.Namespace, device: torch.device) -> Any:
    """The predictor."""
    if is_onnx([name]):
        for option in ('save_embeddings', 'torchcompile'):
            if getattr(args, option):
                raise InputError(f'`{option}` requires a PyTorch model, not an ONNX file.')
        if args.tta != 'none' or args.mixed_precision != 'no':
            raise InputError('An ONNX file is computed as it is: leave `tta` and `mixed_precision` out.')
        return OnnxPredictor(name)
    network = load_model(name)
    chosen = network.thresholds_chosen_on
    if chosen and chosen['tta'] != args.tta and args.threshold is None and args.topk is None:
        sys.stderr.write(f'the thresholds of {name} were chosen with --tta {chosen["tta"]}, and may not fit\n')
    network = with_tta(fold_batch_norms(network), args.tta)
    predictor = Predictor(network, device, args.mixed_precision, args.torchcompile)
    if args.torchcompile:  # before several threads want it
        predictor.compute(
            torch.zeros(args.batch_size, *predictor.data_config['input_size'], dtype=torch.uint8),
            bool(args.save_embeddings))
    return predictor


def settings_of(
        args: argparse.Namespace, model: str, predictor: Any, images: Images, state: PartialState) -> Dict[str, Any]:
    """What a resumed run must repeat."""
    if isinstance(predictor, OnnxPredictor):
        weights = hashlib.sha256(predictor.model.content)
    else:
        weights = hashlib.sha256()
        for tensor in predictor.model.state_dict().values():
            weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return dict(
        model=model, weights=weights.hexdigest()[:16], images=hashlib.sha256(images.fingerprint()).hexdigest()[:16],
        thresholds=predictor.thresholds.tolist(), processes=state.num_processes,
        data_dir=os.path.abspath(args.data_dir) if args.data else None,
        device=torch.device(args.device).type, **{name: getattr(args, name) for name in SETTINGS})


class Output:
    """Where the results go: standard output, or files."""

    def __init__(self, args: argparse.Namespace, model: str, predictor: Any, images: Images, state: PartialState):
        self.args, self.predictor, self.images, self.state = args, predictor, images, state
        self.format = FORMATS[args.format]
        self.file: Optional[PredictionFile] = None
        self.embeddings: Optional[EmbeddingsFile] = None
        if args.output:
            self.file = PredictionFile(
                args.output, args.format, predictor.names, len(images), args.batch_size, state.process_index,
                state.num_processes)
            if args.save_embeddings:
                width = predictor.model.head_hidden_size
                self.embeddings = EmbeddingsFile(args.save_embeddings, len(images), width)
            if state.is_main_process:
                self.prepare(settings_of(args, model, predictor, images, state))
            state.wait_for_everyone()

    def prepare(self, settings: Dict[str, Any]) -> None:
        """Check the files before either of them is written."""
        if self.embeddings and not self.file.complete:
            self.embeddings.check(self.file)
        self.file.prepare(settings, self.args.resume)
        if self.embeddings and not self.file.complete:
            self.embeddings.prepare()

    def open(self) -> Batches:
        """The batches that this process has to predict."""
        if self.file is None:
            sys.stdout.write(self.format.header(self.predictor.names))
            return Batches(len(self.images), self.args.batch_size)
        if self.embeddings:
            self.embeddings.open()
        return self.file.open()

    def write(self, batch: PredictedBatch) -> None:
        for index, reason in batch.unreadable.items():
            tqdm.write(
                f'unreadable image {printable(self.images.name(index))} ({printable(reason)})', file=sys.stderr)
        if self.embeddings:  # first, because a line says that its image is done
            features = None if batch.embeddings is None else batch.embeddings.numpy()
            self.embeddings.write(batch.indices, features, batch.unreadable)
        rows = rows_of(self.images.key, batch, self.labels, len(self.predictor.names))
        if self.file is None:
            sys.stdout.write(''.join(map(self.format.line, rows)))
            sys.stdout.flush()
        else:
            self.file.write(rows)

    def labels(self, probabilities: torch.Tensor) -> List[Tuple[str, float]]:
        if self.args.format == 'csv-classes':
            return []
        return self.predictor.labels(probabilities, self.args.threshold, self.args.topk)

    def finish(self) -> None:
        if self.file is None:
            return
        self.file.close()
        if self.embeddings:
            self.embeddings.close()
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            self.file.finish()
        self.state.wait_for_everyone()


def predict(args: argparse.Namespace, predictor: Any, output: Output, workers: int, threads: int) -> None:
    """Predict what is left to predict, with a progress bar."""
    batches, num_photos, state = output.open(), len(output.images), output.state
    own = sum(map(len, Batches(num_photos, args.batch_size, state.process_index, state.num_processes)))
    left = sum(map(len, batches))
    results = predict_photos(
        predictor, EncodedPhotos(output.images), args.batch_size, workers if len(batches) > 1 else 0, threads, batches,
        bool(args.save_embeddings), pad=args.torchcompile)
    started, unreadable = time.perf_counter(), 0
    with tqdm(total=own, initial=own - left, unit='image', disable=None if state.is_main_process else True) as bar:
        for batch in results:
            output.write(batch)
            bar.update(len(batch.indices))
            unreadable += len(batch.unreadable)
    output.finish()
    elapsed = time.perf_counter() - started
    now, unreadable = (sum(counts) for counts in zip(*gather_object([(left, unreadable)])))
    if args.output and state.is_main_process:
        sys.stderr.write(
            f'{args.output}: {num_photos:,} images, {now:,} of them now in {elapsed:.1f} s, {now / elapsed:.1f} per'
            f' second; {unreadable:,} unreadable\n')
    if unreadable == num_photos:
        raise InputError('No image could be read.')


def main(args: argparse.Namespace) -> None:
    check_arguments(args)
    # the processes only wait for each other at the end, perhaps for long
    state = PartialState(cpu=torch.device(args.device).type == 'cpu', timeout=timedelta(days=7))
    if state.num_processes > 1 and not args.output:
        raise InputError('Several processes write to a file: name it with `output`.')
    device = state.device if state.num_processes > 1 else torch.device(args.device)
    workers, threads = prediction_cores(args.workers, device.type)
    with state.local_main_process_first():
        model, images = open_inputs(args)
        predictor = open_model(model, args, device)
    output = Output(args, model, predictor, images, state)
    if output.file is not None and output.file.complete:
        if state.is_main_process:
            sys.stderr.write(f'{args.output} is complete, because there is no {output.file.record.name}\n')
    else:
        predict(args, predictor, output, workers, threads)
    if state.num_processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == '__main__':
    run_program(build_parser(), main)
