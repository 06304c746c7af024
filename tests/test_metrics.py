import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from timm.task import MultiLabelClassificationEvaluator
from torchmetrics.functional.classification import multilabel_f1_score, multilabel_precision, multilabel_recall

from timm_fan import InputError
from timm_fan.metrics import average_precision, evaluate_logits
from timm_fan.streaming import BinnedEvaluator
from timm_fan.thresholds import choose_thresholds
from timm_fan.uncertainty import _Run, bootstrap, compare


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


def plain_points(scores, targets):
    """(recall, precision) at each distinct score, by counting."""
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
@given(results())
def test_each_definition_against_exact_fractions(result):
    logits, targets = result
    plain = {'non-interpolated': plain_ap, 'interpolated': plain_interpolated, 'voc07': plain_voc07}
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
    with pytest.raises(ValueError, match='voc12'):
        average_precision(logits, targets, 'voc12')


@settings(max_examples=60, deadline=None)
@given(results())
def test_precision_recall_f1_are_torchmetrics(result):
    logits, targets = (torch.cat([t, t], dim=1) for t in result)  # torchmetrics wants two classes or more
    logits, num_labels = logits + 0.25, logits.shape[1]  # it counts a probability of 0.5, the field does not
    scores = evaluate_logits(logits, targets)
    options = dict(num_labels=num_labels, ignore_index=-1)
    targets = targets.long()
    probabilities = logits.sigmoid()
    for name, function in (
            ('precision', multilabel_precision), ('recall', multilabel_recall), ('F1', multilabel_f1_score)):
        theirs = function(probabilities, targets, average='none', **options)
        assert [getattr(c, name) for c in scores.per_class] == pytest.approx(theirs.tolist(), abs=1e-6)
    assert scores.all.OF1 == pytest.approx(
        multilabel_f1_score(probabilities, targets, average='micro', **options).item(), abs=1e-6)


def test_sample_f1_and_exact_match():
    logits = torch.tensor([[1., -1., 1.], [1., 1., -1.], [-1., -1., -1.], [1., -1., -1.]])
    targets = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 0, 0], [1, -1, 0]])
    scores = evaluate_logits(logits, targets)
    assert scores.sample_f1 == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)  # an image without any label: 0
    assert scores.exact_match == 3 / 4
    known = targets.clone()
    known[3, 1] = 0
    timms = timm_scores(logits, known.float())['sample_f1']
    assert 100 * evaluate_logits(logits, known).sample_f1 == pytest.approx(timms)


def test_a_threshold_for_each_class():
    logits = torch.logit(torch.tensor([[0.3, 0.3], [0.6, 0.6], [0.9, 0.9]]))
    targets = torch.ones(3, 2)
    scores = evaluate_logits(logits, targets, threshold=[0.2, 0.7])
    assert [c.recall for c in scores.per_class] == [1., pytest.approx(1 / 3)]
    assert "the class's threshold" in scores.protocol
    with pytest.raises(ValueError, match='3 thresholds for 2'):
        evaluate_logits(logits, targets, threshold=[0.1, 0.2, 0.3])


@settings(max_examples=60, deadline=None)
@given(results(), st.sampled_from(['class-f1', 'precision=0.6', 'recall=0.7', 'global-f1']))
def test_chosen_thresholds_reach_their_goal(result, policy):
    logits, targets = result
    thresholds = choose_thresholds(logits, targets, policy, min_positives=1)
    cuts = [*sorted(set(logits.flatten().tolist()), reverse=True), logits.min().item() - 1]

    def at(column, truth, cut):
        known = truth >= 0
        predicted, present = (column > cut) & known, truth == 1
        tp = (predicted & present).sum().item()
        return tp, predicted.sum().item(), present.sum().item()

    def f1(tp, predicted, present):
        return 2 * tp / max(predicted + present, 1)

    if policy == 'global-f1':
        assert len(set(thresholds)) == 1
        if (targets == 1).any():
            cut = torch.logit(torch.tensor(thresholds[0], dtype=torch.float64)).item()
            assert f1(*at(logits, targets, cut)) == pytest.approx(max(f1(*at(logits, targets, c)) for c in cuts))
        return
    for j, threshold in enumerate(thresholds):
        column, truth = logits[:, j], targets[:, j]
        if not (truth == 1).any():
            continue
        cut = torch.logit(torch.tensor(threshold, dtype=torch.float64)).item()
        tp, predicted, present = at(column, truth, cut)
        candidates = [at(column, truth, c) for c in cuts]
        if policy == 'class-f1':
            assert f1(tp, predicted, present) == pytest.approx(max(f1(*c) for c in candidates))
        elif policy == 'recall=0.7':
            assert tp / present >= 0.7
            assert predicted == min(p for t, p, n in candidates if t / n >= 0.7)
        else:
            reached = [t for t, p, n in candidates if p and t / p >= 0.6]
            if reached:
                assert tp == max(reached) and tp / predicted >= 0.6


def test_rare_classes_take_the_pooled_threshold():
    torch.manual_seed(0)
    logits, targets = torch.randn(100, 3), (torch.rand(100, 3) < torch.tensor([0.5, 0.03, 0.])).float()
    one = choose_thresholds(logits, targets, 'global-f1')[0]
    first, *rare = choose_thresholds(logits, targets, 'class-f1')
    assert first != one and rare == [one, one]
    with pytest.raises(InputError, match='precision=2'):
        choose_thresholds(logits, targets, 'precision=2')


def test_intervals_end_at_the_figures_bounds():
    logits, targets = torch.tensor([[2., -2.], [2., 1.], [-2., -1.]]), torch.tensor([[1., 0.], [0., 1.], [0., 0.]])
    for interval in bootstrap(logits, targets, samples=100).values():
        assert 0 <= interval.low <= interval.high <= 1


def test_bootstrap_weights_are_repeated_images():
    torch.manual_seed(0)
    logits, targets = torch.randn(30, 4).round(decimals=1), torch.randint(-1, 2, (30, 4)).float()
    weights = torch.randint(0, 4, (5, 30), dtype=torch.int32)
    figures = _Run(logits, targets, 0.5).figures(weights)
    for row, weight in zip(figures, weights):
        repeated = torch.arange(30).repeat_interleave(weight)
        scores = evaluate_logits(logits[repeated], targets[repeated])
        assert row.tolist() == pytest.approx([scores.mAP, scores.all.CF1, scores.all.OF1], abs=1e-9)


def test_interval_holds_the_figure_and_shrinks_with_images():
    torch.manual_seed(0)
    targets = (torch.rand(2000, 5) < 0.3).float()
    logits = targets + torch.randn(2000, 5)
    widths = []
    for n in (200, 2000):
        interval = bootstrap(logits[:n], targets[:n], samples=200)['mAP']
        assert interval.low < evaluate_logits(logits[:n], targets[:n]).mAP < interval.high
        widths.append(interval.high - interval.low)
    assert widths[1] == pytest.approx(widths[0] / 10 ** 0.5, rel=0.5)


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


@settings(max_examples=60, deadline=None)
@given(results(), st.integers(1, 9))
def test_binned_bounds_hold_the_exact_figure(result, num_bins):
    logits, targets = result
    evaluator = BinnedEvaluator(logits.shape[1], num_bins=num_bins, limits=(-2., 2.))
    for i in range(0, len(logits), 3):
        evaluator.update(logits[i:i + 3], targets[i:i + 3])
    binned, exact = evaluator.compute(), evaluate_logits(logits.float(), targets)
    assert binned.mAP_low - 1e-9 <= exact.mAP <= binned.mAP_high + 1e-9
    assert binned.mAP_low - 1e-9 <= binned.mAP <= binned.mAP_high + 1e-9
    assert vars(binned.all) == pytest.approx(vars(exact.all))
    assert vars(binned.top3) == pytest.approx(vars(exact.top3))
    assert binned.num_images == exact.num_images


def test_binned_is_exact_where_each_score_has_its_bin():
    torch.manual_seed(0)
    logits, targets = torch.randint(-5, 6, (300, 4)).float(), torch.randint(-1, 2, (300, 4)).float()
    evaluator = BinnedEvaluator(4, num_bins=11, limits=(-5.5, 5.5))
    evaluator.update(logits, targets)
    assert evaluator.compute().mAP == pytest.approx(evaluate_logits(logits, targets).mAP, abs=1e-12)
