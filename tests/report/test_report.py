import json
import re

from helpers import open_browser

from timm_fan.evaluation import Evaluation
from timm_fan.report import ReportInfo, write_report


def test_report_is_one_page_with_everything(evaluation, tmp_path):
    scores, intervals = evaluation.scores, evaluation.intervals(samples=50)
    info = ReportInfo('<b>a & b</b>', 'coco2014', thresholds='Chosen elsewhere.')
    write_report(tmp_path / 'report', evaluation, info, intervals, evaluation.groups())
    page = (tmp_path / 'report' / 'report.html').read_text()
    assert f'{100 * scores.mAP:.2f}' in page and f'{100 * intervals["mAP"].low:.2f}' in page
    assert 'paper: ResNet-101 FAN' in page and '81.8' in page
    assert '&lt;b&gt;a &amp; b' in page and '<b>a' not in page
    assert not re.search(r'(src|href)="(?!data:)', page), 'the page must be self-contained'
    assert sorted(p.stem for p in (tmp_path / 'report').glob('*.png')) == [
        'false_negatives', 'false_positives', 'per_class', 'precision_recall', 'predictions', 'thresholds']
    assert page.count('data:image/png') == 3 and page.count('data:image/jpeg') == 13 + 8 + 8
    for c in scores.per_class:
        assert c.name in page
    metrics = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
    assert metrics['groups']['tail']['classes']
    assert metrics['confusions'] == [] and 'No image has both a missed and a wrong label.' in page
    assert 'Labels are predicted above a probability of 0.5. Chosen elsewhere.' in page


def test_scores_of_the_paper_are_only_shown_for_its_data(evaluation, tmp_path):
    write_report(tmp_path / 'plain', evaluation, ReportInfo(), {}, evaluation.groups())
    assert 'paper:' not in (tmp_path / 'plain' / 'report.html').read_text()


def test_confused_labels_are_a_table(evaluation, tmp_path):
    wrong = Evaluation.of(evaluation.dataset, -evaluation.logits, evaluation.targets, [0.3, 0.4, 0.5, 0.5, 0.5, 0.5])
    write_report(tmp_path, wrong, ReportInfo(), {}, wrong.groups())
    page, pairs = (tmp_path / 'report.html').read_text(), json.loads((tmp_path / 'metrics.json').read_text())
    assert len(pairs['confusions']) == 20
    for pair in pairs['confusions']:
        assert f'<td>{pair["missed"]}</td><td class="name">{pair["predicted"]}</td><td>{pair["images"]}</td>' in page
    assert 'Each class has its own threshold, from 0.3 to 0.5.' in page


def test_scores_fit_on_a_phone(evaluation, tmp_path):
    write_report(tmp_path, evaluation, ReportInfo('x' * 80, 'coco2014'), {}, evaluation.groups())
    with open_browser(390) as driver:
        driver.get(f'file://{tmp_path / "report.html"}')
        widths = driver.execute_script("""
            const table = document.querySelector('.scroll');
            return [document.documentElement.scrollWidth, innerWidth, table.scrollWidth, table.clientWidth];
        """)
    assert widths[0] <= widths[1] == 390 and widths[2] <= widths[3]
