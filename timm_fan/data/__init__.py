from .dataset import ImageFiles, Images, MultiLabelDataset
from .images import UNREADABLE, find_images, load_image, to_rgb
from .loaders import collate, create_loader
from .mixup import MultiLabelMixup
from .packed import UNKNOWN, Boxes, PackedStrings, Sample, SparseLabels
from .seeding import SeededSamples, seed_step
from .sources import SOURCES, create_dataset, create_splits, is_divided
from .sources.coco import read_coco, read_coco_file
from .sources.folders import read_class_folders, read_label_files
from .sources.hf_datasets import read_hf_dataset
from .sources.label_studio import read_label_studio
from .sources.scenes import write_scenes
from .sources.shards import read_shards, write_shards
from .sources.splits import write_division
from .sources.table import read_table
from .sources.voc import VOC_CLASSES, read_voc, read_voc_folder
from .sources.yolo import read_yolo
from .transforms import EvalTransform, Normalize, create_train_transform, eval_crop
