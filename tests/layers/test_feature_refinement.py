"""The FRN and its blocks against the equations of the paper, computed by hand with loops on small tensors."""
import math
from typing import List

import numpy as np
import pytest
import torch
from helpers import convolve, random_map, randomize

from timm_fan import InputError
from timm_fan.layers import (
    FeatureRefinementBlock,
    FeatureRefinementNetwork,
    FeatureTransform,
    FeatureTransformBlock,
    GridPooling,
    halve,
)
from timm_fan.layers.feature_refinement import halvings_to_last


def feature_info(channels, reductions):
    return [dict(num_chs=c, reduction=r) for c, r in zip(channels, reductions, strict=True)]


def batch_norm(x, norm):
    y = np.empty_like(x)
    for c in range(len(x)):
        y[c] = (x[c] - norm.running_mean[c].item()) / math.sqrt(norm.running_var[c].item() + norm.eps)
        y[c] = y[c] * norm.weight[c].item() + norm.bias[c].item()
    return y


def test_light_transform_is_one_block_on_the_pooled_map():
    transform = randomize(FeatureTransform(5, 8, halvings=2, lite=True))
    x = random_map(2, 5, 9, 12)
    assert len(transform.blocks) == 1 and transform.blocks[0].conv1.out_channels == 2
    torch.testing.assert_close(transform(x), transform.blocks[0](halve(halve(x))))
    assert transform(x).shape == (2, 8, 3, 3)


def test_ftb_is_a_projection_and_a_residual_block():
    block = randomize(FeatureTransformBlock(3, 4))
    x = random_map(1, 3, 4, 5)
    projected = batch_norm(convolve(x[0].numpy(), block.proj), block.norm0)
    y = batch_norm(convolve(projected, block.conv1), block.norm1)
    expected = np.maximum(projected + convolve(np.maximum(y, 0), block.conv2), 0)
    np.testing.assert_allclose(block(x)[0].detach().numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('context_pool', ['max', 'avg'])
def test_frb_weighs_each_low_channel(context_pool):
    """Eq. 1, 2, 3: sigmoid of two layers of the pooled concatenation, high before low."""
    dim = 3
    block = randomize(FeatureRefinementBlock(dim, context_pool))
    low, high = random_map(2, dim, 3, 4), random_map(2, dim, 5, 2)
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
    with pytest.raises(InputError, match="`context_pool` must be 'max' or 'avg', got 'median'"):
        FeatureRefinementBlock(4, 'median')


def test_halve_averages_only_pixels_inside_the_map():
    x = torch.arange(15.).reshape(1, 1, 3, 5)
    out = halve(x)[0, 0]
    assert out.shape == (2, 3)
    assert out[0, 0] == (0 + 1 + 5 + 6) / 4
    assert out[0, 2] == (4 + 9) / 2
    assert out[1, 2] == 14


@pytest.mark.parametrize('reduction, target, expected', [(8, 32, 2), (16, 32, 1), (32, 32, 0), (4, 32, 3), (16, 14, 0)])
def test_halvings_to_last(reduction, target, expected):
    assert halvings_to_last([reduction, target]) == ([expected, 0], [reduction * 2 ** expected == target, True])


@pytest.mark.parametrize('sizes', [
    [(8, 8), (4, 4), (2, 2)],
    [(29, 13), (15, 7), (8, 4)],  # strided convolutions with padding round up
    [(30, 13), (15, 6), (7, 3)],  # poolings round down
])
def test_frn_refines_from_the_top_down_on_the_coarsest_grid(sizes):
    frn = randomize(FeatureRefinementNetwork(feature_info((3, 4, 5), (8, 16, 32)), 6))
    x2, x3, x4 = (random_map(2, c, *size) for c, size in zip((3, 4, 5), sizes))
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
    frn = FeatureRefinementNetwork(feature_info((3, 3, 3), (16, 16, 16)), 4)
    assert [len(t.blocks) for t in (frn.ftb2, frn.ftb3, frn.ftb4)] == [1, 1, 1]
    assert all(p.shape == (1, 4, 7, 5) for p in frn([torch.randn(1, 3, 7, 5)] * 3))


def average(x: np.ndarray, rows: List[slice], columns: List[slice]) -> np.ndarray:
    """(B, C, H, W) -> (B, C, len(rows), len(columns)), the mean of each cell."""
    return np.stack([np.stack([x[..., r, c].mean((2, 3)) for c in columns], axis=-1) for r in rows], axis=-2)


def pairs(length: int) -> List[slice]:
    """Cells of two pixels, the last of one if the length is odd."""
    return [slice(i, min(i + 2, length)) for i in range(0, length, 2)]


def shares(length: int, count: int) -> List[slice]:
    """Cells of all pixels that overlap with an equal share of the length."""
    return [slice(math.floor(i * length / count), math.ceil((i + 1) * length / count)) for i in range(count)]


# strides, sizes, and for each map the halvings and whether they end on the stride of x4
GRIDS = [
    ((8, 16, 32), [(8, 12), (4, 6), (2, 3)], [(2, True), (1, True), (0, True)]),
    ((8, 16, 32), [(29, 13), (15, 7), (8, 4)], [(2, True), (1, True), (0, True)]),  # odd sizes rounded up
    ((8, 16, 32), [(30, 13), (15, 6), (7, 3)], [(2, True), (1, True), (0, True)]),  # odd sizes rounded down
    ((16, 16, 16), [(7, 5), (7, 5), (7, 5)], [(0, True), (0, True), (0, True)]),
    ((2, 6, 12), [(36, 42), (12, 14), (6, 7)], [(2, False), (1, True), (0, True)]),
    ((4, 8, 24), [(25, 33), (13, 17), (5, 6)], [(2, False), (1, False), (0, True)]),
    ((3, 9, 27), [(28, 44), (10, 15), (4, 5)], [(3, False), (1, False), (0, True)]),
]


@pytest.mark.parametrize('reductions, sizes, steps', GRIDS, ids=[
    'exact', 'odd, rounded up', 'odd, rounded down', 'one stride', 'x2 inexact', 'even, inexact', 'odd, inexact'])
def test_grid_pooling_averages_onto_the_grid_of_x4(reductions, sizes, steps):
    channels = (3, 4, 5)
    maps = [random_map(2, c, *size) for c, size in zip(channels, sizes)]
    pooling = GridPooling(feature_info(channels, reductions))
    height, width = sizes[-1]
    results = pooling(maps)
    for x, result, (halvings, exact) in zip(maps, results, steps, strict=True):
        expected = x.numpy()
        for _ in range(halvings):
            expected = average(expected, pairs(expected.shape[2]), pairs(expected.shape[3]))
        if exact:
            expected = expected[:, :, :height, :width]
        else:
            expected = average(expected, shares(expected.shape[2], height), shares(expected.shape[3], width))
        assert result.shape == (2, x.shape[1], height, width)
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(results[-1], maps[-1])
    for scripted, result in zip(torch.jit.script(pooling)(maps), results, strict=True):
        assert torch.equal(scripted, result)


def test_grid_pooling_of_full_blocks_is_their_mean():
    x2, x3, x4 = random_map(2, 3, 8, 12), random_map(2, 4, 4, 6), random_map(2, 5, 2, 3)
    p2, p3, p4 = GridPooling(feature_info((3, 4, 5), (8, 16, 32)))([x2, x3, x4])
    torch.testing.assert_close(p2, x2.reshape(2, 3, 2, 4, 3, 4).mean((3, 5)))
    torch.testing.assert_close(p3, x3.reshape(2, 4, 2, 2, 3, 2).mean((3, 5)))
    assert torch.equal(p4, x4)


def test_grid_pooling_has_no_parameters():
    assert not GridPooling(feature_info((3, 4, 5), (8, 16, 32))).state_dict()
