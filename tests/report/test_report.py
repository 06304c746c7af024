import json
import re

from timm_fan.report import ReportInfo, write_report


def test_report_is_one_page_with_everything(evaluation, tmp_path):
    scores, intervals = evaluation.scores, evaluation.intervals(samples=50)
    info = ReportInfo('<b>a & b</b>', 'coco2014')
    write_report(tmp_path / 'report', evaluation, info, intervals, evaluation.groups())
    page = (tmp_path / 'report' / 'report.html').read_text()
    assert f'{100 * scores.mAP:.2f}' in page and f'{100 * intervals["mAP"].low:.2f}' in page
    assert 'paper: ResNet-101 FAN' in page and '81.8' in page
    assert '&lt;b&gt;a &amp; b' in page and '<b>a' not in page
    assert not re.search(r'(src|href)="(?!data:)', page), 'the page must be self-contained'
    assert sorted(p.stem for p in (tmp_path / 'report').glob('*.png')) == [
        'false_negatives', 'false_positives', 'per_class', 'precision_recall', 'predictions']
    assert page.count('data:image/png') == 2 and page.count('data:image/jpeg') == 13 + 8 + 8
    for c in scores.per_class:
        assert c.name in page
    assert json.loads((tmp_path / 'report' / 'metrics.json').read_text())['groups']['tail']['classes']


def test_scores_of_the_paper_are_only_shown_for_its_data(evaluation, tmp_path):
    write_report(tmp_path / 'plain', evaluation, ReportInfo(), {}, evaluation.groups())
    assert 'paper:' not in (tmp_path / 'plain' / 'report.html').read_text()
