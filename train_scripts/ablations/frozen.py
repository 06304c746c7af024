"""Runs with a frozen backbone: its maps are computed once, for all rows and seeds."""
import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np
import torch
from accelerate.utils import set_seed, tqdm
from filelock import FileLock

from timm_fan import FAN
from timm_fan.data import (
    EvalTransform,
    MultiLabelDataset,
    Normalize,
    SeededSamples,
    create_loader,
    create_train_transform,
)
from timm_fan.evaluation import Evaluation, refuse_nan
from timm_fan.files import written_folder
from timm_fan.training import Training, TrainingOptions, create_accelerator, create_network, new_record, open_splits
from timm_fan.training.network import Network


class Maps(NamedTuple):
    """x2, x3, x4 of a data set, each float16 (N, C, h, w), and its targets (N, num_classes)."""
    maps: List[np.ndarray]
    targets: torch.Tensor

    def batches(
            self, order: np.ndarray, size: int, device: torch.device,
    ) -> Iterator[Tuple[List[torch.Tensor], torch.Tensor]]:
        """Maps and targets of these images, in this order but for the order within a batch."""
        for start in range(0, len(order), size):
            rows = np.sort(order[start:start + size])
            maps = [torch.from_numpy(array[rows]).to(device).float() for array in self.maps]
            yield maps, self.targets[rows].to(device)


def compute_logits(model: FAN, maps: List[torch.Tensor]) -> torch.Tensor:
    return model.forward_head(model.fuse(maps))


@contextlib.contextmanager
def _all_cores() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count())
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class MapFolder:
    """Maps of a frozen backbone, kept in files.

    Args:
        path: Folder for the maps of all backbones and data.
        model: Its backbone is frozen.
        network: Its preprocessing.
        options: Options of the run, of which some determine the maps.
    """

    def __init__(self, path: Path, model: FAN, network: Network, options: TrainingOptions):
        self.path, self.model, self.options = path, model, options
        self.data_config, self.train_config = network.data_config, network.train_config
        self.device = next(model.parameters()).device
        weights = hashlib.sha256()
        for tensor in model.backbone.state_dict().values():
            weights.update(tensor.cpu().numpy().tobytes())
        self._key = dict(
            backbone=model.backbone.name, channels=model.backbone.channels, weights=weights.hexdigest(),
            precision=options.mixed_precision)

    def augmented(self, dataset: MultiLabelDataset, view: int) -> Maps:
        """One random view of each image, the same for every run."""
        augmentation = dict(min_crop=self.options.min_crop, aa=self.options.aa)
        dataset.transform = create_train_transform(self.train_config, (self.options.min_crop, 1.), self.options.aa)
        samples = SeededSamples(dataset, seed=0)
        samples.set_epoch(view)
        return self._find(samples, self.train_config, dict(data=dataset.fingerprint(), view=view, **augmentation))

    def evaluated(self, dataset: MultiLabelDataset) -> Maps:
        dataset.transform = EvalTransform(self.data_config)
        return self._find(dataset, self.data_config, dict(data=dataset.fingerprint()))

    def _find(self, samples: Any, config: Dict[str, Any], key: Dict[str, Any]) -> Maps:
        config = {name: str(value) for name, value in config.items()}
        text = json.dumps({**self._key, 'config': config, **key}, sort_keys=True)
        folder = self.path / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(f'{folder}.lock'):
            if not folder.is_dir():
                with written_folder(folder) as new, _all_cores():  # other runs wait for these maps
                    self._write(new, samples)
        maps = [np.load(file, mmap_mode='r') for file in sorted(folder.glob('map*.npy'))]
        return Maps(maps, torch.from_numpy(np.load(folder / 'targets.npy')))

    @torch.inference_mode()
    def _write(self, folder: Path, samples: Any) -> None:
        model, device, start = self.model.eval(), self.device, 0
        normalize = Normalize(self.data_config['mean'], self.data_config['std'], device)
        arrays, targets = [], []
        for images, labels, *_ in tqdm(create_loader(samples, 64, num_workers=1), desc='maps', leave=False):
            with torch.autocast(device.type, torch.bfloat16, enabled=self.options.mixed_precision == 'bf16'):
                maps = model.forward_maps(normalize(images))
            if not arrays:
                arrays = [
                    np.lib.format.open_memmap(folder / f'map{i}.npy', 'w+', np.float16, (len(samples), *m.shape[1:]))
                    for i, m in enumerate(maps)]
            for array, part in zip(arrays, maps):
                array[start:start + len(part)] = part.half().cpu().numpy()
            targets.append(labels)
            start += len(labels)
        np.save(folder / 'targets.npy', torch.cat(targets).numpy())


def train_on_maps(
        options: TrainingOptions, views: int, folder: Path, maps_folder: Path) -> Tuple[Evaluation, Dict[str, Any]]:
    """Train the layers after a frozen backbone on its maps, with the optimizer, schedule and loss of train.py.

    Args:
        options: Of a FAN, with `backbone_lr=0`, and without Mixup and CutMix.
        views: Random views of each training image. Epochs use them in turn.
        folder: Where the model is saved.
        maps_folder: Where the maps are kept.

    Returns:
        The evaluation on the validation split, and the record of the run.

    Raises:
        InputError: Options that do not fit, or data or weights that cannot be read.
    """
    accelerator, options = create_accelerator(options.resolved(), folder)
    set_seed(options.seed)
    train_set, val_set = open_splits(options, accelerator)
    network = create_network(options, train_set, accelerator)
    training = Training(network, train_set, options, accelerator)
    kept = MapFolder(maps_folder, training.network, network, options)
    augmented = [kept.augmented(train_set, view) for view in range(views)]
    held_out = kept.evaluated(val_set)

    started, updates = time.time(), 0
    shuffle = np.random.default_rng(options.seed)
    training.set_train_mode()
    for epoch in range(options.epochs):
        order = shuffle.permutation(len(train_set))[:training.updates_per_epoch * options.batch_size]
        view = augmented[(options.seed + epoch) % views]
        for maps, targets in view.batches(order, options.batch_size, accelerator.device):
            with accelerator.autocast():
                logits = compute_logits(training.network, maps)
            accelerator.backward(training.criterion(logits.float(), targets))
            updates += 1
            training.update(updates)
    record = {**new_record(training, train_set, val_set), 'seconds': round(time.time() - started, 1)}
    training.save_models(folder)
    return evaluate_maps(training.evaluated, held_out, val_set), record


@torch.inference_mode()
def evaluate_maps(model: FAN, held_out: Maps, dataset: MultiLabelDataset) -> Evaluation:
    """Evaluate a model on the maps of a data set, in float32."""
    model.eval()
    batches = held_out.batches(np.arange(len(dataset)), 128, next(model.parameters()).device)
    logits = torch.cat([compute_logits(model, maps).cpu() for maps, _ in batches])
    refuse_nan(logits)
    return Evaluation.of(dataset, logits, held_out.targets)
