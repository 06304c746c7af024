from dataclasses import asdict

import pytest
import torch
from helpers import ranked_results
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_fan import InputError
from timm_fan.metrics import choose_thresholds, precision_recall, predict_labels, rates_over_thresholds


@settings(max_examples=60, deadline=None)
@given(ranked_results(), st.sampled_from(['class-f1', 'precision=0.6', 'recall=0.7', 'global-f1']))
def test_chosen_thresholds_reach_their_goal(result, policy):
    logits, targets = result
    thresholds = choose_thresholds(logits, targets, policy, min_positives=1)
    cuts = [*sorted(set(logits.flatten().tolist()), reverse=True), logits.min().item() - 1]

    def counts_at(column, truth, cut):
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
            best = max(f1(*counts_at(logits, targets, c)) for c in cuts)
            assert f1(*counts_at(logits, targets, cut)) == pytest.approx(best)
        return
    for j, threshold in enumerate(thresholds):
        column, truth = logits[:, j], targets[:, j]
        if not (truth == 1).any():
            continue
        cut = torch.logit(torch.tensor(threshold, dtype=torch.float64)).item()
        tp, predicted, present = counts_at(column, truth, cut)
        candidates = [counts_at(column, truth, c) for c in cuts]
        if policy == 'class-f1':
            assert f1(tp, predicted, present) == pytest.approx(max(f1(*c) for c in candidates))
        elif policy == 'recall=0.7':
            assert tp / present >= 0.7
            assert predicted == min(p for t, p, n in candidates if t / n >= 0.7)
        else:
            reached = [t for t, p, n in candidates if p and t / p >= 0.6]
            if reached:
                assert tp == max(reached) and tp / predicted >= 0.6


def test_rare_classes_have_the_pooled_threshold():
    torch.manual_seed(0)
    logits, targets = torch.randn(100, 3), (torch.rand(100, 3) < torch.tensor([0.5, 0.03, 0.])).float()
    pooled = choose_thresholds(logits, targets, 'global-f1')[0]
    first, *rare = choose_thresholds(logits, targets, 'class-f1')
    assert first != pooled and rare == [pooled, pooled]


def test_unknown_policy_is_refused():
    with pytest.raises(InputError, match="No threshold policy 'precision=2': expected global-f1, class-f1"):
        choose_thresholds(torch.zeros(1, 1), torch.ones(1, 1), 'precision=2')


@settings(max_examples=30, deadline=None)
@given(ranked_results())
def test_rates_over_thresholds_are_those_at_each(result):
    logits, targets = result
    thresholds = [0.1, 0.5, 0.62, 0.9]
    rates = rates_over_thresholds(logits, targets, thresholds)
    for i, threshold in enumerate(thresholds):
        expected = precision_recall(predict_labels(logits, threshold), targets)
        assert {name: values[i] for name, values in rates.items()} == pytest.approx(asdict(expected))
