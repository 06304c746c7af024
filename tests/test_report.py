"""Groups, statistics and the report, on drawn photographs."""
import json
import re

import pytest
import torch

from timm_fan.data import create_dataset
from timm_fan.groups import score_groups
from timm_fan.metrics import evaluate_logits
from timm_fan.report import format_scores, write_report
from timm_fan.statistics import class_scales, co_occurrence, describe, draw_statistics, scan_images
from timm_fan.uncertainty import bootstrap


@pytest.fixture(scope='module')
def evaluated(coco_folder):
    dataset = create_dataset('coco2014', coco_folder, 'val')
    torch.manual_seed(0)
    targets = dataset.targets()
    targets[3] = -1
    logits = 2 * targets - 1 + torch.randn_like(targets)
    return dataset, logits, targets, evaluate_logits(logits, targets, dataset.class_names)


def test_groups_by_counting(evaluated, coco_folder, monkeypatch):
    monkeypatch.setattr('timm_fan.groups.SMALL', 10)
    monkeypatch.setattr('timm_fan.groups.MEDIUM', 20)
    dataset, logits, targets, scores = evaluated
    groups = score_groups(scores, logits, targets, dataset, num_classes=2)
    by_count = sorted(scores.per_class, key=lambda c: c.positives)[:2]
    assert groups.tail.classes == [c.name for c in by_count]
    assert groups.tail.mAP == pytest.approx(sum(c.AP for c in by_count) / 2)

    content = json.loads((coco_folder / 'annotations' / 'instances_val2014.json').read_text())
    names = {c['id']: c['name'] for c in content['categories']}
    size = {i['id']: i['width'] * i['height'] for i in content['images']}
    shares, largest = {}, {}
    for a in content['annotations']:
        area = a['bbox'][2] * a['bbox'][3]
        shares.setdefault(names[a['category_id']], []).append(area / size[a['image_id']])
        key = (a['image_id'], names[a['category_id']])
        largest[key] = max(area, largest.get(key, 0))
    means = {n: sum(v) / len(v) for n, v in shares.items()}
    assert groups.small.classes == sorted(means, key=means.get)[:2]
    assert class_scales(dataset).tolist() == pytest.approx([means[n] for n in dataset.class_names], rel=1e-5)

    ids = [i['id'] for i in content['images']]
    for name, low, high in (('small', 0, 100), ('medium', 100, 400), ('large', 400, 1e9)):
        pairs = [
            (ids.index(i), dataset.class_names.index(n)) for (i, n), area in largest.items() if low <= area < high
            and targets[ids.index(i), 0] >= 0]
        found = groups.recall_by_size[name]
        assert found.labels == len(pairs) > 0
        assert found.recall == pytest.approx(sum(bool(logits[p] > 0) for p in pairs) / len(pairs))


def test_statistics_by_counting(coco_folder, tmp_path):
    dataset = create_dataset('coco2014', coco_folder, 'train')
    statistics, targets = describe(dataset), dataset.targets()
    assert statistics.present == targets.sum(0).tolist()
    assert statistics.num_images == 34 and statistics.num_empty == (targets.sum(1) == 0).sum()
    assert sum(n * k for n, k in enumerate(statistics.labels_per_image)) == targets.sum()
    assert torch.equal(co_occurrence(dataset), (targets.T @ targets).long())
    assert sum(map(len, scan_images(dataset).hashes.values())) == 34 and not scan_images(dataset).unreadable
    draw_statistics(tmp_path / 'figures', dataset)
    assert sorted(p.name for p in (tmp_path / 'figures').iterdir()) == [
        'co_occurrence.png', 'frequencies.png', 'labels_per_image.png', 'scales.png']


def test_report_is_one_page_with_everything(evaluated, tmp_path):
    dataset, logits, targets, scores = evaluated
    intervals = bootstrap(logits, targets, samples=50)
    groups = score_groups(scores, logits, targets, dataset)
    write_report(
        tmp_path / 'report', scores, logits, targets, dataset, intervals=intervals, groups=groups, data='coco2014',
        title='<b>a & b</b>')
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
    write_report(tmp_path / 'plain', scores, logits, targets, dataset)
    assert 'paper:' not in (tmp_path / 'plain' / 'report.html').read_text()


def test_text_has_the_protocol_and_every_figure(evaluated):
    dataset, logits, targets, scores = evaluated
    text = format_scores(scores, bootstrap(logits, targets, samples=20), score_groups(scores, logits, targets, dataset))
    for word in ('12 images', 'non-interpolated', 'voc07', 'sample F1', '95% over images', 'rarest',
                 'smallest', 'recall by size', '1 images without a known label'):
        assert word in text
