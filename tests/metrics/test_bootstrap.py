import pytest
import torch
from helpers import ranked_results
from hypothesis import given, settings

from timm_fan.metrics import bootstrap, compare, evaluate_logits
from timm_fan.metrics.bootstrap import METRICS, _Run


def test_intervals_end_at_0_and_1():
    logits, targets = torch.tensor([[2., -2.], [2., 1.], [-2., -1.]]), torch.tensor([[1., 0.], [0., 1.], [0., 0.]])
    for interval in bootstrap(logits, targets, samples=100).values():
        assert 0 <= interval.low <= interval.high <= 1


def test_bootstrap_weights_are_repeated_images():
    torch.manual_seed(0)
    logits, targets = torch.randn(30, 4).round(decimals=1), torch.randint(-1, 2, (30, 4)).float()
    weights = torch.randint(0, 4, (5, 30), dtype=torch.int32)
    metrics = _Run(logits, targets, 0.5).metrics(weights)
    for row, weight in zip(metrics, weights):
        repeated = torch.arange(30).repeat_interleave(weight)
        scores = evaluate_logits(logits[repeated], targets[repeated])
        assert row.tolist() == pytest.approx([scores.mAP, scores.all.CF1, scores.all.OF1], abs=1e-9)


def test_interval_contains_the_score_and_shrinks_with_more_images():
    torch.manual_seed(0)
    targets = (torch.rand(2000, 5) < 0.3).float()
    logits = targets + torch.randn(2000, 5)
    widths = []
    for n in (200, 2000):
        interval = bootstrap(logits[:n], targets[:n], samples=200)['mAP']
        assert interval.low < evaluate_logits(logits[:n], targets[:n]).mAP < interval.high
        widths.append(interval.high - interval.low)
    assert widths[1] == pytest.approx(widths[0] / 10 ** 0.5, rel=0.5)


@settings(max_examples=60, deadline=None)
@given(ranked_results())
def test_interval_always_contains_the_score(result):
    logits, targets = result
    scores = evaluate_logits(logits, targets)
    intervals = bootstrap(logits, targets, samples=20)
    for name, score in zip(METRICS, (scores.mAP, scores.all.CF1, scores.all.OF1), strict=True):
        assert intervals[name].low - 1e-12 <= score <= intervals[name].high + 1e-12


@pytest.mark.parametrize('labels, found, score', [(1., 1., 1.), (1., -1., 0.), (0., -1., 0.)])
def test_interval_contains_a_score_of_0_or_1(labels, found, score):
    """Only one of three images has the label, so that resamples without it have a score of 0."""
    logits, targets = torch.tensor([[found], [-2.], [-2.]]), torch.tensor([[labels], [0.], [0.]])
    scores, intervals = evaluate_logits(logits, targets), bootstrap(logits, targets, samples=200)
    assert scores.mAP == labels and scores.all.CF1 == scores.all.OF1 == score
    for name, value in zip(METRICS, (scores.mAP, scores.all.CF1, scores.all.OF1), strict=True):
        assert intervals[name].low <= value <= intervals[name].high


def test_bound_on_the_wrong_side_is_moved_to_the_score():
    """Each class has one positive below one negative, and nearly all resamples a higher mAP than 0.5."""
    torch.manual_seed(0)
    logits, targets = torch.full((200, 400), -2.), torch.zeros(200, 400)
    for j in range(400):
        negative, positive = torch.randperm(200)[:2]
        logits[negative, j], logits[positive, j], targets[positive, j] = 2., 1., 1.
    assert evaluate_logits(logits, targets).mAP == 0.5
    interval = bootstrap(logits, targets, samples=50)['mAP']
    assert interval.low < interval.high == 0.5


def test_paired_comparison_tells_a_gain_from_noise():
    torch.manual_seed(0)
    targets = (torch.rand(500, 5) < 0.3).float()
    a = 1.5 * targets + torch.randn(500, 5)
    better, same = a + 0.3 * targets, a + 0.01 * torch.randn(500, 5)
    gain = compare(a, better, targets, samples=200)['mAP']
    assert gain.exceeds_noise and gain.difference == pytest.approx(
        evaluate_logits(better, targets).mAP - evaluate_logits(a, targets).mAP, abs=1e-12)
    assert gain.interval.low < gain.difference < gain.interval.high
    assert not compare(a, same, targets, samples=200)['mAP'].exceeds_noise
    assert compare(a, a, targets, samples=20)['mAP'].difference == 0
    with pytest.raises(ValueError, match='shape'):
        compare(a, a[1:], targets)
