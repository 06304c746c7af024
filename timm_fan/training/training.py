"""Everything that is trained: model, moving average, loss, optimizer and schedule."""
import copy
import logging
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import DistributedType
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from torch.optim.lr_scheduler import ReduceLROnPlateau

from timm_fan.data import MultiLabelDataset, MultiLabelMixup, Normalize
from timm_fan.errors import InputError
from timm_fan.models import save_model

from .checkpoint import Progress
from .engine import images_at_once
from .loss import balanced_weights, create_loss
from .moving_average import MovingAverage
from .network import Network, backbone_parameters, start_after_backbone
from .options import TrainingOptions

_logger = logging.getLogger(__name__)


def param_groups(model: nn.Module, lr: float, backbone_lr: float, weight_decay: float) -> List[Dict[str, Any]]:
    """Parameter groups for an optimizer: no weight decay for norms and biases, and a separate rate for the backbone."""
    backbone = {id(p) for p in backbone_parameters(model)}
    groups = []
    no_decay = model.no_weight_decay() if hasattr(model, 'no_weight_decay') else ()
    for group in param_groups_weight_decay(model, weight_decay, no_weight_decay_list=no_decay):
        for rate, part in (
                (backbone_lr, [p for p in group['params'] if id(p) in backbone]),
                (lr, [p for p in group['params'] if id(p) not in backbone]),
        ):
            if part:
                groups.append({**group, 'params': part, 'lr': rate})
    return groups


class Training:
    """Model, moving average, loss, optimizer and schedule, prepared by Accelerate.

    `network` must be on the CPU, and `options` resolved.

    Attributes:
        model: The model as it is trained, perhaps wrapped by DDP.
        network: The same model, never wrapped.
        ema: Moving average of the weights, or None.
        evaluated: The model to evaluate and save: the moving average, otherwise the network.
        criterion: Loss of (logits, targets).
        updates_per_epoch: Updates in an epoch, which has whole batches only.
        images_at_once: Images that each process computes at once.

    Raises:
        InputError: Options that do not fit each other or the data.
    """

    def __init__(
            self, network: Network, train_set: MultiLabelDataset, options: TrainingOptions, accelerator: Accelerator):
        self.options, self.accelerator = options, accelerator
        self.class_names = train_set.class_names
        self.data_config, self.train_config = network.data_config, network.train_config
        self.updates_per_epoch = len(train_set) // options.batch_size
        self.images_at_once = images_at_once(options, accelerator)
        for note in network.notes:
            _logger.warning(note)
        self.normalize = Normalize(self.data_config['mean'], self.data_config['std'], accelerator.device)
        self.mixup = self._create_mixup()
        self.criterion = create_loss(
            options.loss, options.smoothing, soft_targets=self.mixup is not None,
            class_counts=self._count_labels(train_set), num_samples=len(train_set),
            pos_weight=balanced_weights(train_set.labels) if options.class_weights == 'balanced' else None,
        ).to(accelerator.device)

        self._sharded = accelerator.distributed_type == DistributedType.FSDP
        self.network, self._frozen_norms = network.model, network.frozen_norms
        if not self._sharded:  # FSDP requires contiguous parameters
            self.network = self.network.to(memory_format=torch.channels_last)
        optimizer = self._create_optimizer()
        self.scheduler = self._create_scheduler(optimizer)
        # a whole copy to save, where the network only has its shards
        self._whole = copy.deepcopy(self.network) if self._sharded and accelerator.is_main_process else None
        # not the scheduler: a prepared one takes a step for each process
        self.model, self.optimizer = accelerator.prepare(self.network, optimizer)
        self.ema = None
        if options.ema_decay:
            self.ema = MovingAverage(self.network, options.ema_decay, self._frozen_norms)
        self.evaluated = self.network if self.ema is None else self.ema.module

    def _create_mixup(self) -> Optional[MultiLabelMixup]:
        options = self.options
        if not (options.mixup or options.cutmix):
            return None
        if self.images_at_once % 2:
            raise InputError(
                '`mixup` and `cutmix` require an even number of images per process and'
                f' accumulation step, got {self.images_at_once}.')
        return MultiLabelMixup(
            len(self.class_names), mixup_alpha=options.mixup, cutmix_alpha=options.cutmix, prob=options.mixup_prob)

    def _count_labels(self, train_set: MultiLabelDataset) -> torch.Tensor:
        counts = train_set.labels.counts()[0]
        absent = [name for name, count in zip(self.class_names, counts.tolist()) if not count]
        if absent:
            _logger.warning('classes without a positive training image: %s', ', '.join(absent))
        return counts

    def _create_optimizer(self) -> torch.optim.Optimizer:
        options = self.options
        groups = param_groups(self.network, options.lr, options.backbone_lr, options.weight_decay)
        try:
            return create_optimizer_v2(
                groups, opt=options.opt, lr=options.lr, weight_decay=options.weight_decay, momentum=0.9)
        except (ValueError, AssertionError) as error:
            raise InputError(f'`opt={options.opt}`: {error}') from error

    def _create_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        options = self.options
        if options.sched == 'plateau':
            return ReduceLROnPlateau(optimizer, mode='max', factor=0.1, patience=3)
        scheduler, _ = create_scheduler_v2(
            optimizer, sched='cosine', num_epochs=options.epochs, warmup_epochs=options.warmup_epochs, warmup_lr=0.,
            step_on_epochs=False, updates_per_epoch=self.updates_per_epoch)
        scheduler.step_update(0)
        return scheduler

    @property
    def lr(self) -> float:
        """Current learning rate of the new layers."""
        return self.optimizer.param_groups[-1]['lr']

    def set_train_mode(self) -> None:
        """Training mode for all layers but frozen BatchNorm."""
        self.model.train()
        for norm in self._frozen_norms:
            norm.eval()

    def compute(self, images: Union[torch.Tensor, List[torch.Tensor]], targets: torch.Tensor) -> torch.Tensor:
        """Forward and backward pass of one part of an update; returns the loss, a scalar.

        Args:
            images: uint8 (B, C, H, W), or with `cache_features` the maps of the backbone.
            targets: 1 present, 0 absent, -1 unknown, (B, num_classes).
        """
        if isinstance(images, torch.Tensor):
            images = self.normalize(images)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        with self.accelerator.autocast():
            logits = self.model(images)
        loss = self.criterion(logits, targets)
        self.accelerator.backward(loss)
        return loss.detach()

    def start_after_backbone(self) -> None:
        """Let the model and its moving average take the maps of the backbone instead of images, see `features`."""
        for model in {self.network, self.evaluated}:
            start_after_backbone(model)

    def update(self, total_updates: int, apply: bool = True) -> None:
        """Update the weights, their moving average and the learning rate from the accumulated gradients.

        Args:
            total_updates: Updates since the start of the run, including this one.
            apply: Whether to change the weights.
        """
        if apply:
            if self.options.clip_grad:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.options.clip_grad)
            self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.network, step=total_updates)
        if self.options.sched == 'cosine':
            self.scheduler.step_update(total_updates)

    def finish_epoch(self, mean_ap: Optional[float]) -> None:
        """Let a plateau schedule decide on the rates, by the mAP of the epoch in 0..1."""
        if self.options.sched == 'plateau':
            self.scheduler.step(mean_ap)

    def scheduler_state(self) -> Optional[Dict[str, Any]]:
        """State of a schedule that does not follow from the number of updates."""
        return self.scheduler.state_dict() if self.options.sched == 'plateau' else None

    def resume(self, progress: Progress) -> None:
        """Set the schedule to where a run stopped. The rest is restored by `load_checkpoint`."""
        if self.options.sched == 'plateau':
            self.scheduler.load_state_dict(progress.scheduler)
        else:
            self.scheduler.step_update(progress.total_updates)

    def _network_to_save(self) -> nn.Module:
        if not self._sharded:
            return self.evaluated
        state = self.accelerator.get_state_dict(self.model)
        if self._whole is not None:
            self._whole.load_state_dict(state)
        return self._whole

    def save_models(self, *folders: Path) -> None:
        """Write the model to self-contained folders. Called by every process."""
        network = self._network_to_save()
        if self.accelerator.is_main_process:
            for folder in folders:
                save_model(network, folder, self.class_names, self.data_config)

    def try_to_save(self, folder: Path) -> None:
        """Save the model to a temporary folder in `folder`, to find out before it is trained whether that works.

        Raises:
            InputError: The model cannot be saved.
        """
        with tempfile.TemporaryDirectory(prefix='.try.', dir=folder) as temporary:
            self.save_models(Path(temporary) / 'model')
