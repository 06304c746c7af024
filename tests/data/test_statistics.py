import torch
from PIL import Image

from timm_fan.data import MultiLabelDataset, Sample, create_dataset
from timm_fan.data.statistics import co_occurrence, describe, scan_images


def test_statistics_by_counting(coco_folder):
    dataset = create_dataset('coco2014', coco_folder, 'train')
    statistics, targets = describe(dataset), dataset.targets()
    assert statistics.present == targets.sum(0).tolist()
    assert statistics.num_images == 34 and statistics.labels_per_image == targets.sum(1).long().bincount().tolist()
    assert torch.equal(co_occurrence(dataset), (targets.T @ targets).long())
    names, unreadable = scan_images(dataset)
    assert sum(map(len, names.values())) == 34 and not unreadable


def test_scales_need_no_size_of_images_without_boxes(tmp_path):
    for name in 'ab':
        Image.new('RGB', (20, 10)).save(tmp_path / f'{name}.png')
    with_box = Sample('b.png', (1,), [(0, 0, 5, 10)], [1])
    for first, scales in ((Sample('a.png', ()), [None, 0.25]), (with_box, None)):
        samples = [first._replace(file='a.png'), with_box._replace(size=(20, 10))]
        assert describe(MultiLabelDataset.from_samples(tmp_path, samples, ['x', 'y'])).scales == scales
