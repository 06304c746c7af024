"""The CLN against the equations of the paper, computed by hand with loops on small tensors."""
import math

import pytest
import torch
from helpers import convolve, random_map, randomize

from timm_fan.layers import CorrelationLearningNetwork


@pytest.mark.parametrize('residual', [True, False])
def test_cln_is_a_softmax_weighted_sum_over_positions(residual):
    """Eq. 4, 5 with theta on p3, phi on p2, g on p4."""
    dim = 4
    cln = randomize(CorrelationLearningNetwork((2, 3, 5), dim, residual))
    p2, p3, p4 = random_map(1, 2, 2, 3), random_map(1, 3, 2, 3), random_map(1, 5, 2, 3)
    out = cln(p2, p3, p4).detach()[0].reshape(5, 6)
    phi = convolve(p2[0].numpy(), cln.phi).reshape(dim, 6)
    theta = convolve(p3[0].numpy(), cln.theta).reshape(dim, 6)
    g = convolve(p4[0].numpy(), cln.g).reshape(5, 6)
    for i in range(6):
        scores = [math.exp(sum(theta[k, i] * phi[k, j] for k in range(dim)) / math.sqrt(dim)) for j in range(6)]
        for c in range(5):
            expected = sum(s / sum(scores) * g[c, j] for j, s in enumerate(scores))
            if residual:
                expected += p4[0, c].flatten()[i].item()
            assert out[c, i].item() == pytest.approx(expected, abs=1e-9)


def test_new_cln_with_residual_is_the_identity():
    cln = CorrelationLearningNetwork((4, 4, 4), 4, residual=True)
    p4 = torch.randn(2, 4, 3, 3)
    assert torch.equal(cln(torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3), p4), p4)
