"""Errors of a small Hub on 127.0.0.1, in plain words."""
import pytest
import timm
from helpers import file_contents, run_with_hub, save_small_fan
from hub_server import GOOD_TOKEN

from timm_fan import InputError
from timm_fan.models import load_model


def test_missing_private_and_offline(server, monkeypatch, tmp_path):
    server.put('me/secret', file_contents(save_small_fan(tmp_path / 'model')), private=True)
    with pytest.raises(InputError, match='hf-hub:me/none: no such repository'):
        load_model('hf-hub:me/none')
    with pytest.raises(InputError, match='me/secret@v9: it has no such revision'):
        load_model('hf-hub:me/secret@v9')
    with pytest.raises(InputError, match='fan_vgg16: timm-fan/fan_vgg16.coco2014: no such repository.*Train the model'):
        timm.create_model('fan_vgg16', pretrained=True)
    assert load_model('hf-hub:me/secret', cache_dir=tmp_path / 'other_cache').num_classes == 3
    assert (tmp_path / 'other_cache').is_dir() and not (tmp_path / 'cache').exists()

    monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
    with pytest.raises(InputError, match='does not know your token'):
        load_model('hf-hub:me/secret')
    monkeypatch.setenv('HF_TOKEN', GOOD_TOKEN)
    load = """
from timm_fan import InputError
from timm_fan.models import load_model
for name in ('me/secret', 'me/elsewhere'):
    try:
        print(load_model(f'hf-hub:{name}').num_classes)
    except InputError as error:
        print(error)
"""
    assert run_with_hub(server.url, tmp_path / 'home', load).splitlines()[0] == '3'
    server.requests.clear()
    cached, missing = run_with_hub(server.url, tmp_path / 'home', load, HF_HUB_OFFLINE='1').splitlines()
    assert cached == '3' and 'not in the cache, and HF_HUB_OFFLINE is set' in missing
    assert not server.requests
