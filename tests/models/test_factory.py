"""`create_model` names what is wrong, in an InputError."""
import pytest

from timm_fan import InputError
from timm_fan.models import create_model


def test_a_wrong_name_gets_similar_ones():
    with pytest.raises(InputError, match="'fan_resnet1O1' is not known to timm. Similar names: fan_resnet101"):
        create_model('fan_resnet1O1')


def test_a_wrong_argument_is_named():
    with pytest.raises(InputError, match="fan cannot be created with .*unexpected keyword argument 'no_such'"):
        create_model('fan', backbone='test_resnet', no_such=1)


def test_the_generic_model_has_no_pretrained_weights(monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(InputError, match='No pretrained weights for fan: '):
        create_model('fan', backbone='test_resnet', pretrained=True)
