"""Strings and labels of many images in a few arrays."""
import numpy as np
import pytest
import torch

from timm_fan.data import PackedStrings, SparseLabels


def test_packed_strings_and_labels():
    strings = ['', 'a', 'größer', 'x/y.jpg']
    assert list(PackedStrings(strings)) == strings
    labels = SparseLabels([((0, 2), (), ()), ((), (1,), (2,)), ((), (), ())], 3)
    assert torch.stack([labels.target(i) for i in range(3)]).tolist() == [[1, 0, 1], [0, 0, -1], [0, 0, 0]]
    assert labels.counts().tolist() == [[1, 0, 1], [2, 3, 1], [0, 0, 1]]
    assert torch.allclose(labels.prior(), torch.tensor([1.5 / 4, 0.5 / 4, 1.5 / 3]))
    assert SparseLabels([((), (), (0,)), ((), (), (0,))], 1).prior().tolist() == pytest.approx([0.01])


def test_labels_of_open_images_stay_small():
    # 9,605 classes, 20 verified labels per image; dense float32 targets would take 38 kB per image
    rng = np.random.default_rng(0)
    rows = (((rng.integers(9605),), rng.integers(9605, size=19).tolist(), ()) for _ in range(2000))
    labels = SparseLabels(rows, 9605, default=-1.)
    assert (labels.ends.nbytes + labels.classes.nbytes + labels.values.nbytes) / 2000 < 120
    assert labels.target(1999).shape == (9605,)
