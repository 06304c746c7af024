"""The maps of a frozen backbone, computed once, kept on disk, and trained on in place of images."""
import hashlib
import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import PIL
import timm
import torch
import torchvision
from accelerate.utils import broadcast_object_list, gather_object, tqdm
from filelock import FileLock, Timeout
from torch.utils.data import Dataset, Subset

from timm_fan.data import UNKNOWN, Images, MultiLabelDataset, SeededSamples, create_loader
from timm_fan.errors import InputError
from timm_fan.files import printable, read_json, write_text
from timm_fan.version import __version__

from .network import backbone_maps
from .training import Training

_logger = logging.getLogger(__name__)

_MAPS, _ABOUT = 'maps.bin', 'about.json'
_LARGEST = torch.finfo(torch.float16).max


class CachedMaps(Dataset):
    """Maps in place of the images of a data set.

    An item is (maps, target, index): a list of float16 maps (C, h, w), and a target as of the data set. An epoch has
    one view of each image.

    Args:
        dataset: The data set.
        views: Tensors (len(dataset), n) with the maps of each image, one after the other.
        shapes: Shape of each map.
        unreadable: Indices of images that could not be read. Their labels are unknown.
        seed: Runs of different seeds start with different views.
    """

    def __init__(
            self, dataset: MultiLabelDataset, views: Sequence[torch.Tensor], shapes: Sequence[Sequence[int]],
            unreadable: Sequence[int], seed: int = 0):
        self.dataset, self.class_names = dataset, dataset.class_names
        self.views, self.shapes, self.seed = views, [tuple(shape) for shape in shapes], seed
        self._sizes = [math.prod(shape) for shape in shapes]
        self._unreadable = set(unreadable)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Call it before the loader is iterated."""
        self._maps = self.views[(self.seed + epoch) % len(self.views)]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tuple[List[torch.Tensor], torch.Tensor, int]:
        parts = self._maps[index].split(self._sizes)
        target = self.dataset.target(index)
        if index in self._unreadable:
            target.fill_(UNKNOWN)
        return [part.view(shape) for part, shape in zip(parts, self.shapes)], target, index


class _Entry(NamedTuple):
    """One view of a data set: the folder of its maps, what they depend on, and its samples."""
    folder: Path
    key: Dict[str, Any]
    samples: Dataset


class FeatureCache:
    """Maps of frozen backbones, in one folder for any number of runs.

    A view is drawn from its number and the image, so that all runs on the same images share the views, whatever their
    seed, labels, heads and rates. A folder in it gets its name when it is complete.

    Args:
        folder: The folder, on a file system that all machines share.
        training: Its model computes the maps, in all of its processes.
        workers: Processes that load images for each of them.

    Raises:
        InputError: Every method raises it for maps that cannot be kept, or too many images that cannot be read.
    """

    def __init__(self, folder: Path, training: Training, workers: int = 0):
        self.folder, self.training, self.workers = folder, training, workers
        self.model, self.accelerator = training.network, training.accelerator
        # of the model, the augmentation, and the decoder
        versions = [timm.__version__, torchvision.__version__, PIL.__version__]
        self._key = dict(
            self._describe_model(), timm_fan=__version__, versions=versions,
            precision=self.accelerator.mixed_precision)

    def _describe_model(self) -> Dict[str, Any]:
        backbone = getattr(self.model, 'backbone', None)
        if backbone is None:
            about = dict(name=self.model.pretrained_cfg['architecture'], args=str(self.model._model_args))
            skipped = tuple(n for n, m in self.model.named_modules() if m is self.model.get_classifier())
        else:
            about, skipped = dict(name=backbone.name, args=str(backbone.args)), ()
        weights = hashlib.sha256()
        for name, tensor in (backbone or self.model).state_dict().items():
            if not name.startswith(skipped):
                weights.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return dict(**about, weights=weights.hexdigest())

    def _describe_images(self, dataset: MultiLabelDataset) -> str:
        """Hash of the images in their order. Neither their labels nor their names change their maps."""
        share = tqdm(self._share(len(dataset)), desc='images', leave=False)
        digests = gather_object([_digest(dataset.images, index) for index in share])
        return hashlib.sha256(b''.join(digests)).hexdigest()

    def _share(self, count: int) -> range:
        """Those of so many images that this process reads."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        return range(count * rank // processes, count * (rank + 1) // processes)

    def train_views(self, dataset: MultiLabelDataset) -> List[_Entry]:
        """The random views of the training images, whose transform must be set."""
        options, config = self.training.options, self.training.train_config
        key = dict(min_crop=options.min_crop, aa=options.aa, images=self._describe_images(dataset))
        entries = []
        for view in range(options.cache_features):
            samples = SeededSamples(dataset, seed=0)
            samples.set_epoch(view)
            entries.append(self._entry(samples, config, view=view, **key))
        return entries

    def _entry(self, samples: Dataset, config: Dict[str, Any], **key: Any) -> _Entry:
        key = {**self._key, 'config': {name: str(value) for name, value in config.items()}, **key}
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return _Entry(self.folder / name, key, samples)

    def open(self, train_set: MultiLabelDataset, val_set: MultiLabelDataset) -> Tuple[CachedMaps, CachedMaps]:
        """The maps of both splits, whose transforms must be set, computed as far as they are not there yet.

        Raises:
            InputError: There is no space for them.
        """
        train = self.train_views(train_set)
        val = self._entry(val_set, self.training.data_config, images=self._describe_images(val_set))
        self._check_space([entry for entry in (*train, val) if not entry.folder.is_dir()])
        return self._open(train_set, train, self.training.options.seed), self._open(val_set, [val])

    def _check_space(self, missing: List[_Entry]) -> None:
        if not missing:
            _logger.info('the maps of the frozen backbone are in %s', self.folder)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        size = sum(len(e.samples) * _num_bytes(self._shapes(e)) for e in missing)
        _logger.info(
            'the maps of the frozen backbone need %s bytes in %s, where %s are free', f'{size:,}', self.folder,
            f'{free:,}')
        if size > free:
            raise InputError(
                f'The maps of {self.training.options.cache_features} views need {size:,} bytes, but {self.folder} has'
                f' {free:,}. Choose another folder as `cache_dir`, lower `cache_features`, or set it to 0.')

    def _open(self, dataset: MultiLabelDataset, entries: List[_Entry], seed: int = 0) -> CachedMaps:
        abouts = [self._find(number, len(entries), entry) for number, entry in enumerate(entries, 1)]
        unreadable = sorted(set().union(*(about['unreadable'] for about in abouts)))
        for index in unreadable:
            _, target = dataset[index]  # lists it in this run
            if torch.equal(target, dataset.target(index)):
                _logger.warning(
                    'image %s could not be read when its maps were computed: to use it, delete %s',
                    printable(dataset.images.name(index)), self.folder)
        shapes = abouts[0]['shapes']
        size = len(dataset) * _num_bytes(shapes) // 2
        views = [
            torch.from_file(str(e.folder / _MAPS), size=size, dtype=torch.float16).view(len(dataset), -1)
            for e in entries]
        return CachedMaps(dataset, views, shapes, unreadable, seed)

    def _find(self, number: int, count: int, entry: _Entry) -> Dict[str, Any]:
        """What is known about the maps of an entry. Other runs wait for those that this one computes."""
        accelerator, lock = self.accelerator, FileLock(f'{entry.folder}.lock', timeout=60)
        # the others would not wait for the main process longer than the timeout of a collective operation
        while not broadcast_object_list([_acquired(lock) if accelerator.is_main_process else None])[0]:
            pass
        try:
            if not entry.folder.is_dir():
                self._compute(entry, f'maps, view {number}/{count}' if count > 1 else 'maps, validation')
            accelerator.wait_for_everyone()
        finally:
            if accelerator.is_main_process:
                lock.release()
        return read_json(entry.folder / _ABOUT)

    def _compute(self, entry: _Entry, description: str) -> None:
        accelerator = self.accelerator
        shapes = self._shapes(entry)
        new = entry.folder.with_name(f'.{entry.folder.name}.new')
        if accelerator.is_main_process:
            shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
            new.mkdir()
            (new / _MAPS).touch()
        accelerator.wait_for_everyone()
        try:
            unreadable = gather_object(self._write(new / _MAPS, entry.samples, _num_bytes(shapes), description))
            if accelerator.is_main_process:
                about = dict(shapes=shapes, unreadable=unreadable, **entry.key)
                write_text(new / _ABOUT, json.dumps(about, indent=1))
                os.rename(new, entry.folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise

    def _write(self, file: Path, samples: Dataset, row: int, description: str) -> List[int]:
        """Write the share of this process, in rows of so many bytes; returns the indices of unreadable images."""
        share = self._share(len(samples))
        dataset = getattr(samples, 'dataset', samples)
        loader = create_loader(Subset(samples, share), self.training.images_at_once, self.workers)
        unreadable, index = [], share.start
        with open(file, 'r+b') as stream:
            stream.seek(share.start * row)
            for images, targets, *_ in tqdm(loader, desc=description, leave=False):
                maps = self._maps(images.to(self.accelerator.device))
                packed = torch.cat([m.flatten(1) for m in maps], dim=1).clamp(-_LARGEST, _LARGEST)
                stream.write(packed.half().cpu().numpy().tobytes())
                for target in targets:
                    if not torch.equal(target, dataset.target(index)):
                        unreadable.append(index)
                    index += 1
        return unreadable

    @torch.inference_mode()
    def _maps(self, images: torch.Tensor) -> List[torch.Tensor]:
        self.model.eval()
        images = self.training.normalize(images)
        with self.accelerator.autocast():
            return [m.float() for m in backbone_maps(self.model, images)]

    def _shapes(self, entry: _Entry) -> List[List[int]]:
        images = entry.samples[0][0][None].to(self.accelerator.device)
        return [list(m.shape[1:]) for m in self._maps(images)]


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire()
    except Timeout:
        return False
    return True


def _num_bytes(shapes: Sequence[Sequence[int]]) -> int:
    """Bytes of the maps of an image."""
    return 2 * sum(map(math.prod, shapes))


def _digest(images: Images, index: int) -> bytes:
    try:
        return hashlib.sha256(images.read(index)).digest()
    except OSError:
        return b'-'
