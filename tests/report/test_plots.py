import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from timm_fan.data import MultiLabelDataset, Sample, create_dataset
from timm_fan.evaluation import Evaluation
from timm_fan.report import ReportInfo, draw_statistics, write_report
from timm_fan.report.plots import plot_per_class, plot_precision_recall, plot_thresholds


@pytest.fixture
def saved(monkeypatch):
    """File name -> (all texts, left and right ends of the titles as a share of the width) of each saved figure."""
    found, save = {}, Figure.savefig

    def savefig(figure, file, **kwargs):
        save(figure, file, **kwargs)
        titles = [figure.get_suptitle() and figure._suptitle, *(axis.title for axis in figure.axes)]
        ends = [t.get_window_extent().intervalx / figure.bbox.width for t in titles if t and t.get_text()]
        found[file.name] = [t.get_text() for t in figure.findobj(Text)], ends

    monkeypatch.setattr(Figure, 'savefig', savefig)
    return found


def test_statistics_are_four_plots(coco_folder, tmp_path):
    draw_statistics(tmp_path / 'plots', create_dataset('coco2014', coco_folder, 'train'))
    assert sorted(p.name for p in (tmp_path / 'plots').iterdir()) == [
        'co_occurrence.png', 'frequencies.png', 'labels_per_image.png', 'scales.png']


def test_plots_show_plain_numbers_and_cut_no_title(evaluation, tmp_path, saved):
    write_report(tmp_path / 'report', evaluation, ReportInfo(), {}, evaluation.groups())
    draw_statistics(tmp_path / 'plots', evaluation.dataset)
    assert {'per_class.png', 'frequencies.png', 'co_occurrence.png'} <= set(saved)
    for name, (texts, ends) in saved.items():
        assert not any('$' in text for text in texts), name
        assert all(0 <= left and right <= 1 for left, right in ends), name


def draw_all(folder, names, samples):
    """Draw the figures of random logits and of the data set; returns the sizes of the pictures."""
    for sample in samples:
        (folder / sample.file).touch()
    dataset = MultiLabelDataset.from_samples(folder, samples, names)
    torch.manual_seed(0)
    targets = dataset.targets()
    evaluation = Evaluation.of(dataset, 2 * targets - 1 + torch.randn_like(targets), targets)
    plot_per_class(evaluation.scores, folder / 'per_class.png')
    plot_precision_recall(evaluation, folder / 'precision_recall.png')
    plot_thresholds(evaluation, folder / 'thresholds.png')
    draw_statistics(folder, dataset)
    return [Image.open(file).size for file in folder.glob('*.png')]


def test_figures_of_a_thousand_classes_show_some_and_say_how_many(tmp_path, saved):
    samples = [Sample(f'{i}.jpg', tuple(range(i, 1000, 7))) for i in range(7)]
    sizes = draw_all(tmp_path, [f'tag_{i}' for i in range(1000)], samples)
    assert max(max(size) for size in sizes) < 2500
    for name, words in (
            ('per_class.png', 'the 40 best and the 40 worst of 1000 classes'),
            ('precision_recall.png', 'of 1000 classes, named: the 5 best and the 5 worst by AP'),
            ('frequencies.png', 'the 80 most frequent of 1000 classes'),
            ('co_occurrence.png', 'the 80 most frequent of 1000 classes')):
        assert any(words in text for text in saved[name][0]), name


def test_any_name_is_shown(tmp_path, saved):
    names = ['$_$', '_a', ':|', '日本', '<b>x</b>', 'line\nbreak', 'a name as long as a whole sentence' * 3]
    samples = [Sample(f'{i}.jpg', tuple(range(i % 3, 7, 2))) for i in range(6)]
    sizes = draw_all(tmp_path, names, samples)
    assert max(max(size) for size in sizes) < 1300
    for file in ('per_class.png', 'precision_recall.png', 'frequencies.png', 'co_occurrence.png'):
        texts = '\n'.join(saved[file][0])
        for name in ('$_$', '_a', ':|', '日本', '<b>x</b>', r'line\nbreak', 'a name as long as a who'):
            assert name in texts, (file, name)
