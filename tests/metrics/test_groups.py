import json

import pytest

from timm_fan.data.statistics import class_scales, largest_areas
from timm_fan.metrics import score_groups


def test_groups_by_counting(evaluation, coco_folder, monkeypatch):
    monkeypatch.setattr('timm_fan.metrics.groups.SMALL', 10)
    monkeypatch.setattr('timm_fan.metrics.groups.MEDIUM', 20)
    dataset, logits, targets, scores = evaluation.dataset, evaluation.logits, evaluation.targets, evaluation.scores
    groups = score_groups(
        scores, logits, targets, scales=class_scales(dataset), largest=largest_areas(dataset), group_size=2)
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
