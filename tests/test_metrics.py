import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from timm.task import MultiLabelClassificationEvaluator

from timm_fan.metrics import average_precision, evaluate_logits


@st.composite
def results(draw):
    """Logits with ties and targets of 1, 0, -1; at least one label is known."""
    n, c = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1)))
    logits = rng.integers(-3, 4, (n, c)) / draw(st.sampled_from([1., 2.]))
    targets = rng.choice([1, 0, -1], (n, c), p=draw(st.sampled_from([(.4, .4, .2), (.1, .8, .1), (.3, .7, 0.)])))
    targets[0, 0] = abs(targets[0, 0])
    return torch.tensor(logits), torch.tensor(targets, dtype=torch.float32)


def plain_ap(scores, targets):
    """Mean over the positives of the share of positives among all that score at least as high."""
    known = [(s, t) for s, t in zip(scores, targets) if t >= 0]
    precisions = []
    for score, target in known:
        if target == 1:
            above = [t for s, t in known if s >= score]
            precisions.append(sum(above) / len(above))
    return sum(precisions) / len(precisions) if precisions else None


def plain_figures(predicted, targets):
    """Eq. 10 to 12, label by label."""
    n, c = len(targets), len(targets[0])
    precisions, recalls, all_tp, all_predicted, all_present = [], [], 0, 0, 0
    for j in range(c):
        tp = sum(predicted[i][j] and targets[i][j] == 1 for i in range(n))
        fp = sum(predicted[i][j] and targets[i][j] == 0 for i in range(n))
        fn = sum(not predicted[i][j] and targets[i][j] == 1 for i in range(n))
        all_tp, all_predicted, all_present = all_tp + tp, all_predicted + tp + fp, all_present + tp + fn
        if tp + fn:
            precisions.append(tp / (tp + fp) if tp + fp else 0)
            recalls.append(tp / (tp + fn))

    def mean(values):
        return sum(values) / len(values) if values else 0

    def f1(p, r):
        return 2 * p * r / (p + r) if p + r else 0

    cp, cr = mean(precisions), mean(recalls)
    op, or_ = all_tp / all_predicted if all_predicted else 0, all_tp / all_present if all_present else 0
    return dict(CP=cp, CR=cr, CF1=f1(cp, cr), OP=op, OR=or_, OF1=f1(op, or_))


@settings(max_examples=150, deadline=None)
@given(results())
def test_all_figures_against_plain_loops(result):
    logits, targets = result
    rows, truth = logits.tolist(), targets.tolist()
    n, c = logits.shape
    scores = evaluate_logits(logits, targets)
    aps = [plain_ap([row[j] for row in rows], [row[j] for row in truth]) for j in range(c)]
    for found, expected in zip(scores.per_class, aps):
        assert found.AP == (None if expected is None else pytest.approx(expected, abs=1e-9))
    rated = [ap for ap in aps if ap is not None]
    assert scores.mAP == pytest.approx(sum(rated) / len(rated) if rated else 0, abs=1e-9)
    assert scores.classes_without_positives == [str(j) for j, ap in enumerate(aps) if ap is None]
    assert scores.num_images == sum(any(t >= 0 for t in row) for row in truth)
    assert scores.num_images + scores.num_unlabelled == n

    passed = [[v > 0 for v in row] for row in rows]
    highest = [[j in sorted(range(c), key=lambda k: (-row[k], k))[:3] for j in range(c)] for row in rows]
    both = [[a and b for a, b in zip(*pair)] for pair in zip(passed, highest)]
    assert vars(scores.all) == pytest.approx(plain_figures(passed, truth), abs=1e-9)
    assert vars(scores.top3) == pytest.approx(plain_figures(both, truth), abs=1e-9)
    older = evaluate_logits(logits, targets, top3_above_threshold=False)
    assert vars(older.top3) == pytest.approx(plain_figures(highest, truth), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(results())
def test_ap_is_scikit_learns_in_any_order(result):
    logits, targets = result
    ap = average_precision(logits, targets)
    order = torch.randperm(len(logits))
    torch.testing.assert_close(average_precision(logits[order], targets[order]), ap, equal_nan=True)
    for j in range(logits.shape[1]):
        known = targets[:, j] >= 0
        if (targets[known, j] == 1).any():
            expected = average_precision_score(targets[known, j].numpy(), logits[known, j].numpy())
            assert ap[j].item() == pytest.approx(expected, abs=1e-9)


def timm_scores(logits, targets):
    evaluator = MultiLabelClassificationEvaluator()
    evaluator.update(logits, targets)
    return evaluator.compute()


def test_map_and_of1_are_timms_where_every_class_has_a_positive():
    torch.manual_seed(0)
    logits, targets = torch.randn(200, 9), (torch.rand(200, 9) < 0.2).float()
    scores, timms = evaluate_logits(logits, targets), timm_scores(logits, targets)
    assert 100 * scores.mAP == pytest.approx(timms['map'], abs=1e-9)
    assert 100 * scores.all.OF1 == pytest.approx(timms['micro_f1'], abs=1e-9)


def test_class_without_a_positive_is_listed_where_timm_counts_zero():
    logits = torch.tensor([[2., 1.], [1., -1.], [-1., 0.5]])
    targets = torch.tensor([[1., 0.], [1., 0.], [0., 0.]])
    scores = evaluate_logits(logits, targets, ['cat', 'dog'])
    assert scores.mAP == 1. and scores.classes_without_positives == ['dog']
    assert scores.all.CP == 1. and scores.all.CR == 1.
    assert scores.all.OP == 0.5  # the dogs seen where there are none are still errors
    assert timm_scores(logits, targets)['map'] == 50


def test_example_by_hand():
    #                       a    b    c    d
    logits = torch.tensor([[3., 2., 1., 0.5], [-1., 4., -2., 1.], [0., -3., 2., -1.]])
    targets = torch.tensor([[1, 0, 1, 1], [1, 1, 0, -1], [0, 0, 1, 0]])
    scores = evaluate_logits(logits, targets)
    assert [c.AP for c in scores.per_class] == pytest.approx([(1 + 2 / 3) / 2, 1, 1, 1])
    # predicted: abcd, bd, c (a logit of 0 is not); the second d is unknown
    assert vars(scores.all) == pytest.approx(dict(
        CP=(1 + 1 / 2 + 1 + 1) / 4, CR=(1 / 2 + 1 + 1 + 1) / 4, CF1=0.875, OP=5 / 6, OR=5 / 6, OF1=5 / 6))
    # Top-3 leaves d out of the first image
    assert vars(scores.top3) == pytest.approx(dict(
        CP=(1 + 1 / 2 + 1 + 0) / 4, CR=(1 / 2 + 1 + 1 + 0) / 4, CF1=0.625, OP=4 / 5, OR=4 / 6, OF1=8 / 11))


def test_unlabelled_image_changes_no_figure():
    torch.manual_seed(0)
    logits, targets = torch.randn(20, 4), (torch.rand(20, 4) < 0.4).float()
    scores = evaluate_logits(logits, targets)
    more = evaluate_logits(
        torch.cat([logits, torch.full((3, 4), 9.)]), torch.cat([targets, torch.full((3, 4), -1.)]))
    assert (more.mAP, more.all, more.top3) == (scores.mAP, scores.all, scores.top3)
    assert (more.num_images, more.num_unlabelled) == (20, 3)
    assert 'NaN' not in json.dumps(more.to_dict())


def test_threshold_moves_the_decision():
    logits = torch.logit(torch.tensor([[0.7], [0.8], [0.9]]))
    targets = torch.ones(3, 1)
    assert [evaluate_logits(logits, targets, threshold=t).all.OR for t in (0.5, 0.75, 0.95)] == [1., 2 / 3, 0.]


@pytest.mark.parametrize('logits, targets, options, word', [
    (torch.tensor([[float('nan')]]), torch.ones(1, 1), {}, 'NaN'),
    (torch.ones(2, 3), torch.ones(3, 2), {}, 'shape|must both'),
    (torch.ones(1, 1), torch.ones(1, 1), dict(threshold=1.), 'threshold'),
    (torch.ones(1, 1), -torch.ones(1, 1), {}, 'known'),
    (torch.ones(1, 1), torch.ones(1, 1), dict(class_names=['a', 'b']), '2 class names'),
])
def test_bad_input_is_named(logits, targets, options, word):
    with pytest.raises(ValueError, match=word):
        evaluate_logits(logits, targets, **options)
