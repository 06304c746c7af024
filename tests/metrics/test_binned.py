import pytest
import torch
from helpers import ranked_results
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_fan.metrics import BinnedEvaluator, evaluate_logits


@settings(max_examples=60, deadline=None)
@given(ranked_results(), st.integers(1, 9))
def test_bounds_contain_the_exact_score(result, num_bins):
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


def test_exact_if_each_score_has_its_bin():
    torch.manual_seed(0)
    logits, targets = torch.randint(-5, 6, (300, 4)).float(), torch.randint(-1, 2, (300, 4)).float()
    evaluator = BinnedEvaluator(4, num_bins=11, limits=(-5.5, 5.5))
    evaluator.update(logits, targets)
    assert evaluator.compute().mAP == pytest.approx(evaluate_logits(logits, targets).mAP, abs=1e-12)
