"""The blocks against the paper's equations, computed by hand with loops on small tensors."""
import math

import numpy as np
import pytest
import torch
import torch.nn as nn

from timm_fan import InputError
from timm_fan.layers import (
    CorrelationLearningNetwork,
    FeatureRefinementBlock,
    FeatureRefinementNetwork,
    FeatureTransform,
    FeatureTransformBlock,
    halve,
    num_halvings,
)


def randomize(module: nn.Module) -> nn.Module:
    """Fresh layers hold zeros, with which a wrong wiring could pass."""
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.5
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean = torch.randn(m.running_mean.shape, generator=generator)
            m.running_var = torch.rand(m.running_var.shape, generator=generator) + 0.5
    return module.double().eval()


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape))).double()


def conv(x, layer):
    """2-D convolution of one image (C, H, W), zero padded, by its definition."""
    weight = layer.weight.detach().numpy()
    pad = weight.shape[-1] // 2
    _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((len(weight), height, width))
    for o in range(len(weight)):
        for i in range(height):
            for j in range(width):
                out[o, i, j] = (weight[o] * padded[:, i:i + 2 * pad + 1, j:j + 2 * pad + 1]).sum()
    if layer.bias is not None:
        out += layer.bias.detach().numpy()[:, None, None]
    return out


def batch_norm(x, norm):
    y = np.empty_like(x)
    for c in range(len(x)):
        y[c] = (x[c] - norm.running_mean[c].item()) / math.sqrt(norm.running_var[c].item() + norm.eps)
        y[c] = y[c] * norm.weight[c].item() + norm.bias[c].item()
    return y


def test_light_transform_is_one_block_on_the_pooled_map():
    transform = randomize(FeatureTransform(5, 8, halvings=2, lite=True))
    x = randn(2, 5, 9, 12)
    assert len(transform.blocks) == 1 and transform.blocks[0].conv1.out_channels == 2
    torch.testing.assert_close(transform(x), transform.blocks[0](halve(halve(x))))
    assert transform(x).shape == (2, 8, 3, 3)


def test_ftb_is_a_projection_and_a_residual_block():
    block = randomize(FeatureTransformBlock(3, 4))
    x = randn(1, 3, 4, 5)
    projected = batch_norm(conv(x[0].numpy(), block.proj), block.norm0)
    y = batch_norm(conv(projected, block.conv1), block.norm1)
    expected = np.maximum(projected + conv(np.maximum(y, 0), block.conv2), 0)
    np.testing.assert_allclose(block(x)[0].detach().numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('context_pool', ['max', 'avg'])
def test_frb_weighs_each_low_channel(context_pool):
    """Eq. 1, 2, 3: sigmoid of two layers of the pooled concatenation, high before low."""
    dim = 3
    block = randomize(FeatureRefinementBlock(dim, context_pool))
    low, high = randn(2, dim, 3, 4), randn(2, dim, 5, 2)
    out = block(low, high).detach()
    w1, b1 = block.fc1.weight[:, :, 0, 0].tolist(), block.fc1.bias.tolist()
    w2, b2 = block.fc2.weight[:, :, 0, 0].tolist(), block.fc2.bias.tolist()
    for b in range(2):
        z = []
        for source in (high, low):
            for c in range(dim):
                values = source[b, c].flatten().tolist()
                z.append(max(values) if context_pool == 'max' else sum(values) / len(values))
        hidden = [max(0., sum(w * v for w, v in zip(w1[k], z)) + b1[k]) for k in range(dim)]
        for c in range(dim):
            weight = 1 / (1 + math.exp(-(sum(w * h for w, h in zip(w2[c], hidden)) + b2[c])))
            torch.testing.assert_close(out[b, c], weight * low[b, c])


def test_frb_refuses_other_poolings():
    with pytest.raises(InputError, match='median'):
        FeatureRefinementBlock(4, 'median')


@pytest.mark.parametrize('residual', [True, False])
def test_cln_is_a_softmax_weighted_sum_over_positions(residual):
    """Eq. 4, 5 with theta on p3, phi on p2, g on p4."""
    dim = 4
    cln = randomize(CorrelationLearningNetwork((2, 3, 5), dim, residual))
    p2, p3, p4 = randn(1, 2, 2, 3), randn(1, 3, 2, 3), randn(1, 5, 2, 3)
    out = cln(p2, p3, p4).detach()[0].reshape(5, 6)
    phi = conv(p2[0].numpy(), cln.phi).reshape(dim, 6)
    theta = conv(p3[0].numpy(), cln.theta).reshape(dim, 6)
    g = conv(p4[0].numpy(), cln.g).reshape(5, 6)
    for i in range(6):
        scores = [math.exp(sum(theta[k, i] * phi[k, j] for k in range(dim)) / math.sqrt(dim)) for j in range(6)]
        for c in range(5):
            expected = sum(s / sum(scores) * g[c, j] for j, s in enumerate(scores))
            if residual:
                expected += p4[0, c].flatten()[i].item()
            assert out[c, i].item() == pytest.approx(expected, abs=1e-9)


def test_fresh_cln_with_residual_is_the_identity():
    cln = CorrelationLearningNetwork((4, 4, 4), 4, residual=True)
    p4 = torch.randn(2, 4, 3, 3)
    assert torch.equal(cln(torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3), p4), p4)


def test_halve_averages_the_pixels_that_are_there():
    x = torch.arange(15.).reshape(1, 1, 3, 5)
    out = halve(x)[0, 0]
    assert out.shape == (2, 3)
    assert out[0, 0] == (0 + 1 + 5 + 6) / 4
    assert out[0, 2] == (4 + 9) / 2
    assert out[1, 2] == 14


@pytest.mark.parametrize('reduction, target, expected', [(8, 32, 2), (16, 32, 1), (32, 32, 0), (4, 32, 3), (16, 14, 0)])
def test_num_halvings(reduction, target, expected):
    assert num_halvings(reduction, target) == expected


@pytest.mark.parametrize('sizes', [
    [(8, 8), (4, 4), (2, 2)],
    [(29, 13), (15, 7), (8, 4)],  # strided convolutions with padding round up
    [(30, 13), (15, 6), (7, 3)],  # poolings round down
])
def test_frn_refines_from_the_top_down_on_the_coarsest_grid(sizes):
    frn = randomize(FeatureRefinementNetwork((3, 4, 5), (8, 16, 32), 6))
    x2, x3, x4 = (randn(2, c, *size) for c, size in zip((3, 4, 5), sizes))
    p2, p3, p4 = frn([x2, x3, x4])
    h, w = sizes[2]
    [ftb4], [ftb3], [ftb2a, ftb2b] = frn.ftb4.blocks, frn.ftb3.blocks, frn.ftb2.blocks
    expected4 = ftb4(x4)
    expected3 = frn.frb3(halve(ftb3(x3))[..., :h, :w], expected4)
    expected2 = frn.frb2(halve(ftb2b(halve(ftb2a(x2))))[..., :h, :w], expected3)
    for p, expected in ((p4, expected4), (p3, expected3), (p2, expected2)):
        assert p.shape == (2, 6, h, w)
        torch.testing.assert_close(p, expected)


def test_maps_of_one_stride_are_not_pooled():
    frn = FeatureRefinementNetwork((3, 3, 3), (16, 16, 16), 4)
    assert [len(t.blocks) for t in (frn.ftb2, frn.ftb3, frn.ftb4)] == [1, 1, 1]
    assert all(p.shape == (1, 4, 7, 5) for p in frn([torch.randn(1, 3, 7, 5)] * 3))
