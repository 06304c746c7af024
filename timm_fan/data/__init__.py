from .coco import read_coco
from .dataset import UNKNOWN, UNREADABLE, MultiLabelDataset, Sample, load_image
from .factory import SOURCES, create_dataset
from .hub import read_hub
from .mixup import MultiLabelMixup
from .scenes import write_scenes
from .shards import read_shards
from .table import read_table
from .transforms import Normalize, RandomCrop, collate, create_transform
from .voc import VOC_CLASSES, read_voc

__all__ = [
    'SOURCES',
    'UNKNOWN',
    'UNREADABLE',
    'VOC_CLASSES',
    'MultiLabelDataset',
    'MultiLabelMixup',
    'Normalize',
    'RandomCrop',
    'Sample',
    'collate',
    'create_dataset',
    'create_transform',
    'load_image',
    'read_coco',
    'read_hub',
    'read_shards',
    'read_table',
    'read_voc',
    'write_scenes',
]
