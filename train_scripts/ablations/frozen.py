"""Runs over a frozen backbone, whose maps all rows and seeds share."""
import time
from pathlib import Path
from typing import Any, Dict, Tuple

import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from timm_fan.data import MultiLabelDataset, seed_step
from timm_fan.evaluation import Evaluation, refuse_nan
from timm_fan.training import (
    Training,
    TrainingOptions,
    create_accelerator,
    create_loaders,
    create_network,
    new_record,
    open_splits,
    set_transforms,
)


def train_on_maps(options: TrainingOptions, folder: Path, cache_dir: Path) -> Tuple[Evaluation, Dict[str, Any]]:
    """Train as train.py does with `cache_features`, without checkpoints, and evaluate only at the end.

    Args:
        options: With `cache_features`.
        folder: Where the model is saved.
        cache_dir: Where the maps are kept.

    Returns:
        The evaluation on the validation split, and the record of the run.

    Raises:
        InputError: Options that do not fit, or data or weights that cannot be read.
    """
    accelerator, options = create_accelerator(options.resolved(), folder)
    set_seed(options.seed)
    train_set, val_set = open_splits(options, accelerator)
    network = create_network(options, train_set, accelerator)
    set_transforms(train_set, val_set, network, options)
    training = Training(network, train_set, options, accelerator)
    threads = torch.get_num_threads()
    train_loader, val_loader = create_loaders(train_set, val_set, training, cache_dir)
    torch.set_num_threads(threads)  # the share of a job; the maps, which others wait for, are computed on all cores

    started, updates = time.time(), 0
    training.set_train_mode()
    for epoch in range(options.epochs):
        train_loader.set_epoch(epoch)
        train_loader.dataset.set_epoch(epoch)
        for step, (maps, targets, _) in enumerate(train_loader):
            seed_step(options.seed, epoch, step, accelerator.process_index)
            with accelerator.accumulate(training.model):
                training.compute(maps, targets)
                if accelerator.sync_gradients:
                    updates += 1
                    training.update(updates)
    record = {**new_record(training, train_set, val_set), 'seconds': round(time.time() - started, 1)}
    training.save_models(folder)
    return evaluate_maps(training, val_loader, val_set), record


@torch.inference_mode()
def evaluate_maps(training: Training, loader: DataLoader, dataset: MultiLabelDataset) -> Evaluation:
    """Evaluate the model of one process on the maps of a data set, in float32."""
    model = training.evaluated.eval()
    logits, targets = zip(*((model(maps).cpu(), targets.cpu()) for maps, targets, _ in loader))
    refuse_nan(torch.cat(logits))
    return Evaluation.of(dataset, torch.cat(logits), torch.cat(targets))
