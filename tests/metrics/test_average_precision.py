from fractions import Fraction

import pytest
import torch
from helpers import plain_average_precision, ranked_results
from hypothesis import given, settings
from sklearn.metrics import average_precision_score

from timm_fan.metrics import average_precision, evaluate_logits


@settings(max_examples=60, deadline=None)
@given(ranked_results())
def test_ap_is_that_of_scikit_learn_in_any_order(result):
    logits, targets = result
    ap = average_precision(logits, targets)
    order = torch.randperm(len(logits))
    torch.testing.assert_close(average_precision(logits[order], targets[order]), ap, equal_nan=True)
    for j in range(logits.shape[1]):
        known = targets[:, j] >= 0
        if (targets[known, j] == 1).any():
            expected = average_precision_score(targets[known, j].numpy(), logits[known, j].numpy())
            assert ap[j].item() == pytest.approx(expected, abs=1e-9)


def plain_points(scores, targets):
    """(recall, precision) at each distinct score, by counting"""
    known = [(s, t) for s, t in zip(scores, targets) if t >= 0]
    total = sum(t == 1 for _, t in known)
    points = []
    for cut in sorted({s for s, _ in known}, reverse=True):
        above = [t for s, t in known if s >= cut]
        points.append((Fraction(int(sum(above)), total), Fraction(int(sum(above)), len(above))))
    return points


def plain_interpolated(scores, targets):
    points = plain_points(scores, targets)
    area, last = Fraction(0), Fraction(0)
    for i, (recall, _) in enumerate(points):
        area += (recall - last) * max(p for _, p in points[i:])
        last = recall
    return float(area)


def plain_voc07(scores, targets):
    points = plain_points(scores, targets)
    return float(sum(max(p for r, p in points if r >= Fraction(k, 10)) for k in range(11)) / 11)


@settings(max_examples=150, deadline=None)
@given(ranked_results())
def test_each_definition_against_exact_fractions(result):
    logits, targets = result
    plain = {
        'non-interpolated': plain_average_precision, 'interpolated': plain_interpolated, 'voc07': plain_voc07}
    scores = evaluate_logits(logits, targets)
    for definition, expected in plain.items():
        ap = average_precision(logits, targets, definition)
        rated = []
        for j in range(logits.shape[1]):
            column, truth = logits[:, j].tolist(), targets[:, j].tolist()
            if 1 in truth:
                rated.append(expected(column, truth))
                assert ap[j].item() == pytest.approx(rated[-1], abs=1e-9), definition
            else:
                assert torch.isnan(ap[j])
        mean = sum(rated) / len(rated) if rated else 0
        assert scores.mAP_by_definition[definition] == pytest.approx(mean, abs=1e-9)


def test_definitions_by_hand():
    # positives at ranks 1, 4, 5: precisions 1, 2/4, 3/5, envelope 1, 3/5, 3/5
    logits, targets = torch.tensor([[5.], [4.], [3.], [2.], [1.]]), torch.tensor([[1.], [0.], [0.], [1.], [1.]])
    assert average_precision(logits, targets).item() == pytest.approx((1 + 0.5 + 0.6) / 3)
    assert average_precision(logits, targets, 'interpolated').item() == pytest.approx((1 + 0.6 + 0.6) / 3)
    assert average_precision(logits, targets, 'voc07').item() == pytest.approx((4 * 1 + 7 * 0.6) / 11)
    with pytest.raises(ValueError, match="No AP definition 'voc12', expected one of non-interpolated, interpolated"):
        average_precision(logits, targets, 'voc12')
