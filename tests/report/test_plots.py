import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from timm_fan.data import create_dataset
from timm_fan.report import ReportInfo, draw_statistics, write_report


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
