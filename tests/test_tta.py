"""Test-time augmentation."""
import pytest
import torch
from helpers import photo, save_small_fan, small_fan
from PIL import ImageOps

from timm_fan import InputError, predict
from timm_fan.models import load_model
from timm_fan.prediction import Predictor
from timm_fan.tta import with_tta


def test_the_logits_are_the_mean_of_an_image_and_its_mirror():
    model, images = small_fan().eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = (model(images) + model(images.flip(3))) / 2
        assert torch.equal(with_tta(model, 'flip')(images), expected)
        assert torch.equal(with_tta(model, 'flip')(images.flip(3)), expected)
        assert not torch.equal(model(images), expected)
    assert with_tta(model) is model


def test_predictions_are_the_same_for_a_mirrored_photo(tmp_path):
    image, folder = photo(64, 64), save_small_fan(tmp_path / 'model')
    labels = predict([image, ImageOps.mirror(image)], folder, topk=3, tta='flip')
    assert [name for name, _ in labels[0]] == [name for name, _ in labels[1]]
    predictor = Predictor(with_tta(load_model(folder), 'flip'))
    probabilities = predictor.probabilities([image])[0]
    assert predictor.names == ['cat', 'dog', 'person']
    assert [p for _, p in labels[0]] == probabilities.sort(descending=True).values.tolist()


def test_an_unknown_augmentation():
    with pytest.raises(InputError, match='`tta=crops` is not one of none, flip'):
        with_tta(small_fan(), 'crops')
