import torch

from timm_fan.data import create_dataset
from timm_fan.data.statistics import co_occurrence, describe, scan_images


def test_statistics_by_counting(coco_folder):
    dataset = create_dataset('coco2014', coco_folder, 'train')
    statistics, targets = describe(dataset), dataset.targets()
    assert statistics.present == targets.sum(0).tolist()
    assert statistics.num_images == 34 and statistics.num_empty == (targets.sum(1) == 0).sum()
    assert sum(n * k for n, k in enumerate(statistics.labels_per_image)) == targets.sum()
    assert torch.equal(co_occurrence(dataset), (targets.T @ targets).long())
    assert sum(map(len, scan_images(dataset).hashes.values())) == 34 and not scan_images(dataset).unreadable
