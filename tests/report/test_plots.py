from timm_fan.data import create_dataset
from timm_fan.report import draw_statistics


def test_statistics_are_four_plots(coco_folder, tmp_path):
    draw_statistics(tmp_path / 'plots', create_dataset('coco2014', coco_folder, 'train'))
    assert sorted(p.name for p in (tmp_path / 'plots').iterdir()) == [
        'co_occurrence.png', 'frequencies.png', 'labels_per_image.png', 'scales.png']
