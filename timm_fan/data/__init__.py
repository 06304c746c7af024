from .coco import read_coco
from .dataset import UNKNOWN, MultiLabelDataset, Sample, load_image
from .factory import SOURCES, create_dataset
from .mixup import MultiLabelMixup
from .scenes import write_scenes

__all__ = [
    'SOURCES',
    'UNKNOWN',
    'MultiLabelDataset',
    'MultiLabelMixup',
    'Sample',
    'create_dataset',
    'load_image',
    'read_coco',
    'write_scenes',
]
