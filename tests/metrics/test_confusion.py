import torch

from timm_fan.metrics import Confusion, confused_labels

NAMES = ['cup', 'mug', 'table', 'cat']


def test_a_missed_label_is_paired_with_the_wrong_ones_of_its_image():
    logits = torch.tensor([
        [-1., 2., 3., -2.],    # cup missed, mug wrong
        [-1., 2., 3., -2.],    # the same, table absent
        [-1., 2., 3., -2.],    # the mug is unknown
        [-1., -2., 3., -2.],   # cup missed, nothing wrong
        [1., 2., 3., -2.]])    # nothing missed
    targets = torch.tensor([
        [1., 0., 1., 0.],
        [1., 0., 0., 0.],
        [1., -1., 1., 0.],
        [1., 0., 1., 0.],
        [1., 0., 1., 0.]])
    assert confused_labels(logits, targets, NAMES) == [Confusion('cup', 'mug', 2, 4), Confusion('cup', 'table', 1, 4)]
    assert confused_labels(logits, targets, NAMES, max_pairs=1) == [Confusion('cup', 'mug', 2, 4)]
    assert confused_labels(logits, targets, NAMES, threshold=[0.1, 0.5, 0.5, 0.5]) == []


def test_pairs_of_many_classes():
    """More classes than are counted at once."""
    logits, targets = torch.full((2, 2500), -3.), torch.zeros(2, 2500)
    targets[:, 2100] = targets[0, 3] = 1
    logits[:, 7] = 3
    names = [str(i) for i in range(2500)]
    assert confused_labels(logits, targets, names) == [Confusion('2100', '7', 2, 2), Confusion('3', '7', 1, 1)]
