import json
from dataclasses import asdict

import pytest
import torch
from helpers import plain_average_precision, ranked_results
from hypothesis import given, settings
from timm.task import MultiLabelClassificationEvaluator
from torchmetrics.functional.classification import multilabel_f1_score, multilabel_precision, multilabel_recall

from timm_fan.metrics import evaluate_logits


def plain_precision_recall(predicted, targets):
    """Eq. 10 to 12, label by label"""
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
@given(ranked_results())
def test_all_scores_against_plain_loops(result):
    logits, targets = result
    rows, truth = logits.tolist(), targets.tolist()
    n, c = logits.shape
    scores = evaluate_logits(logits, targets)
    aps = [plain_average_precision([row[j] for row in rows], [row[j] for row in truth]) for j in range(c)]
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
    assert vars(scores.all) == pytest.approx(plain_precision_recall(passed, truth), abs=1e-9)
    assert vars(scores.top3) == pytest.approx(plain_precision_recall(both, truth), abs=1e-9)
    older = evaluate_logits(logits, targets, top3_above_threshold=False)
    assert vars(older.top3) == pytest.approx(plain_precision_recall(highest, truth), abs=1e-9)


def timm_scores(logits, targets):
    evaluator = MultiLabelClassificationEvaluator()
    evaluator.update(logits, targets)
    return evaluator.compute()


def test_map_and_of1_are_those_of_timm_if_every_class_has_a_positive():
    torch.manual_seed(0)
    logits, targets = torch.randn(200, 9), (torch.rand(200, 9) < 0.2).float()
    scores, expected = evaluate_logits(logits, targets), timm_scores(logits, targets)
    assert 100 * scores.mAP == pytest.approx(expected['map'], abs=1e-9)
    assert 100 * scores.all.OF1 == pytest.approx(expected['micro_f1'], abs=1e-9)


def test_class_without_a_positive_is_left_out_and_listed():
    logits = torch.tensor([[2., 1.], [1., -1.], [-1., 0.5]])
    targets = torch.tensor([[1., 0.], [1., 0.], [0., 0.]])
    scores = evaluate_logits(logits, targets, ['cat', 'dog'])
    assert scores.mAP == 1. and scores.classes_without_positives == ['dog']
    assert scores.all.CP == 1. and scores.all.CR == 1.
    assert scores.all.OP == 0.5  # dogs predicted where there are none are still errors
    assert timm_scores(logits, targets)['map'] == 50  # timm counts such a class as 0


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


def test_unlabelled_images_change_no_score():
    torch.manual_seed(0)
    logits, targets = torch.randn(20, 4), (torch.rand(20, 4) < 0.4).float()
    scores = evaluate_logits(logits, targets)
    more = evaluate_logits(
        torch.cat([logits, torch.full((3, 4), 9.)]), torch.cat([targets, torch.full((3, 4), -1.)]))
    assert (more.mAP, more.all, more.top3) == (scores.mAP, scores.all, scores.top3)
    assert (more.num_images, more.num_unlabelled) == (20, 3)
    assert 'NaN' not in json.dumps(asdict(more))


def test_threshold_moves_the_decision():
    logits = torch.logit(torch.tensor([[0.7], [0.8], [0.9]]))
    targets = torch.ones(3, 1)
    assert [evaluate_logits(logits, targets, threshold=t).all.OR for t in (0.5, 0.75, 0.95)] == [1., 2 / 3, 0.]


def test_each_class_may_have_its_threshold():
    logits = torch.logit(torch.tensor([[0.3, 0.3], [0.6, 0.6], [0.9, 0.9]]))
    targets = torch.ones(3, 2)
    scores = evaluate_logits(logits, targets, threshold=[0.2, 0.7])
    assert [c.recall for c in scores.per_class] == [1., pytest.approx(1 / 3)]
    assert "the class's threshold" in scores.protocol
    with pytest.raises(ValueError, match='3 thresholds for 2'):
        evaluate_logits(logits, targets, threshold=[0.1, 0.2, 0.3])


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


@settings(max_examples=60, deadline=None)
@given(ranked_results())
def test_precision_recall_and_f1_are_those_of_torchmetrics(result):
    logits, targets = (torch.cat([t, t], dim=1) for t in result)  # torchmetrics requires at least two classes
    logits, num_labels = logits + 0.25, logits.shape[1]  # it predicts a label with a probability of 0.5, we do not
    scores = evaluate_logits(logits, targets)
    options = dict(num_labels=num_labels, ignore_index=-1)
    targets = targets.long()
    probabilities = logits.sigmoid()
    for name, function in (
            ('precision', multilabel_precision), ('recall', multilabel_recall), ('F1', multilabel_f1_score)):
        expected = function(probabilities, targets, average='none', **options)
        assert [getattr(c, name) for c in scores.per_class] == pytest.approx(expected.tolist(), abs=1e-6)
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
    expected = timm_scores(logits, known.float())['sample_f1']
    assert 100 * evaluate_logits(logits, known).sample_f1 == pytest.approx(expected)
