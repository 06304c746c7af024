"""Runs with a frozen backbone: its maps are computed once, for all rows and seeds."""
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from accelerate.utils import set_seed, tqdm
from filelock import FileLock

from timm_fan import FAN, InputError
from timm_fan.data import (
    EvalTransform,
    MultiLabelDataset,
    Normalize,
    SeededSamples,
    create_loader,
    create_train_transform,
)
from timm_fan.evaluation import Evaluation
from timm_fan.files import written_folder
from timm_fan.provenance import environment
from timm_fan.training import Training, TrainingOptions, create_accelerator, create_network, open_splits


class Maps(NamedTuple):
    """x2, x3, x4 of a data set, each float16 (N, C, h, w), and its targets (N, num_classes)."""
    maps: List[np.ndarray]
    targets: torch.Tensor

    def read(self, rows: np.ndarray) -> Tuple[List[torch.Tensor], torch.Tensor]:
        rows = np.sort(rows)
        return [torch.from_numpy(array[rows]).float() for array in self.maps], self.targets[rows]

    def batches(self, order: Sequence[int], size: int) -> Iterator[Tuple[List[torch.Tensor], torch.Tensor]]:
        for start in range(0, len(order), size):
            yield self.read(np.asarray(order[start:start + size]))


def compute_logits(model: FAN, maps: List[torch.Tensor]) -> torch.Tensor:
    return model.forward_head(model.fuse(maps))


class MapFolder:
    """Maps of a frozen backbone, kept in files.

    Args:
        path: Folder for the maps of all backbones and data.
        model: Its backbone is frozen.
        data_config: Its preprocessing.
        options: Options of the run, of which some determine the maps.
    """

    def __init__(self, path: Path, model: FAN, data_config: Dict[str, Any], options: TrainingOptions):
        self.path, self.model, self.data_config, self.options = path, model, data_config, options
        weights = hashlib.sha256()
        for tensor in model.backbone.state_dict().values():
            weights.update(tensor.numpy().tobytes())
        self._key = dict(
            backbone=model.backbone.name, channels=model.backbone.channels, weights=weights.hexdigest(),
            config={k: str(v) for k, v in data_config.items()}, precision=options.mixed_precision)

    def augmented(self, dataset: MultiLabelDataset, view: int) -> Maps:
        """One random view of each image, the same for every run."""
        augmentation = dict(min_crop=self.options.min_crop, aa=self.options.aa)
        dataset.transform = create_train_transform(self.data_config, (self.options.min_crop, 1.), self.options.aa)
        samples = SeededSamples(dataset, seed=0)
        samples.set_epoch(view)
        return self._find(samples, dict(data=dataset.fingerprint(), view=view, **augmentation))

    def evaluated(self, dataset: MultiLabelDataset) -> Maps:
        dataset.transform = EvalTransform(self.data_config)
        return self._find(dataset, dict(data=dataset.fingerprint()))

    def _find(self, samples: Any, key: Dict[str, Any]) -> Maps:
        text = json.dumps({**self._key, **key}, sort_keys=True)
        folder = self.path / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(f'{folder}.lock'):
            if not folder.is_dir():
                threads = torch.get_num_threads()
                torch.set_num_threads(os.cpu_count())  # other runs wait for these maps
                with written_folder(folder) as new:
                    self._write(new, samples)
                torch.set_num_threads(threads)
        maps = [np.load(file, mmap_mode='r') for file in sorted(folder.glob('map*.npy'))]
        return Maps(maps, torch.from_numpy(np.load(folder / 'targets.npy')))

    @torch.inference_mode()
    def _write(self, folder: Path, samples: Any) -> None:
        arrays, targets, normalize = [], [], Normalize(self.data_config['mean'], self.data_config['std'], 'cpu')
        model, bf16 = self.model.eval(), self.options.mixed_precision == 'bf16'
        for images, labels, *_ in tqdm(create_loader(samples, 64, num_workers=1), desc='maps', leave=False):
            with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
                maps = model.forward_maps(normalize(images))
            if not arrays:
                arrays = [
                    np.lib.format.open_memmap(folder / f'map{i}.npy', 'w+', np.float16, (len(samples), *m.shape[1:]))
                    for i, m in enumerate(maps)]
            start = sum(map(len, targets))
            for array, part in zip(arrays, maps):
                array[start:start + len(part)] = part.half().numpy()
            targets.append(labels)
        np.save(folder / 'targets.npy', torch.cat(targets).numpy())


def train_on_maps(
        options: TrainingOptions, views: int, folder: Path, maps_folder: Path) -> Tuple[Evaluation, Dict[str, Any]]:
    """Train the layers after a frozen backbone on its maps, with the optimizer, schedule and loss of train.py.

    Args:
        options: With `backbone_lr=0`, and without Mixup and CutMix.
        views: Random views of each training image. Epochs use them in turn.
        folder: Where the model is saved.
        maps_folder: Where the maps are kept.

    Returns:
        The evaluation on the validation split, and the record of the run.

    Raises:
        InputError: Options that do not fit, or data or weights that cannot be read.
    """
    if options.backbone_lr != 0 or options.mixup or options.cutmix:
        raise InputError('`views` requires a frozen backbone (`backbone_lr=0`), without Mixup and CutMix.')
    accelerator, options = create_accelerator(options.resolved(), folder)
    set_seed(options.seed)
    train_set, val_set = open_splits(options, accelerator)
    network = create_network(options, train_set, accelerator)
    if not isinstance(network.model, FAN):
        raise InputError(f'`views` requires a fan model, not `model={options.model}`.')
    training = Training(network, train_set, options, accelerator)
    kept = MapFolder(maps_folder, training.network, network.data_config, options)
    augmented = [kept.augmented(train_set, view) for view in range(views)]
    held_out = kept.evaluated(val_set)

    started, updates = time.time(), 0
    shuffle = np.random.default_rng(options.seed)
    training.set_train_mode()
    for epoch in range(options.epochs):
        order = shuffle.permutation(len(train_set))[:training.updates_per_epoch * options.batch_size]
        for maps, targets in augmented[(options.seed + epoch) % views].batches(order, options.batch_size):
            with accelerator.autocast():
                logits = compute_logits(training.network, maps)
            accelerator.backward(training.criterion(logits.float(), targets))
            updates += 1
            training.update(updates)
    record = dict(
        **environment(accelerator.device), seconds=round(time.time() - started, 1),
        parameters=sum(p.numel() for p in training.network.parameters()), train_images=len(train_set),
        val_images=len(val_set), data=dict(train=train_set.fingerprint(), val=val_set.fingerprint()))
    training.save_models(folder)
    return evaluate_maps(training.evaluated, held_out, val_set), record


@torch.inference_mode()
def evaluate_maps(model: FAN, held_out: Maps, dataset: MultiLabelDataset) -> Evaluation:
    """Evaluate a model on the maps of a data set, in float32."""
    model.eval()
    logits = [compute_logits(model, maps) for maps, _ in held_out.batches(range(len(dataset)), 128)]
    return Evaluation.of(dataset, torch.cat(logits), held_out.targets)
