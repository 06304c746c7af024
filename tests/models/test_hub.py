"""Models of repositories on a small Hub on 127.0.0.1, with the real client, and files that are refused."""
import json
import pickle
from pathlib import Path

import pytest
import timm
from helpers import LABELS, file_contents, save_small_fan
from safetensors.torch import load_file, save_file

from timm_fan import InputError, hub
from timm_fan.models import load_model, save_model


class Trap:
    """Pickled, it creates a file when it is unpickled."""

    def __init__(self, file: str):
        self.file = file

    def __reduce__(self):
        return open, (self.file, 'w')


def corrupt(content: bytes) -> bytes:
    return content[:8] + b'\xff' * 64 + content[72:]


def other_shapes(folder: Path) -> bytes:
    tensors = load_file(folder / 'model.safetensors')
    name = 'frn.frb2.fc1.weight'
    save_file({**tensors, name: tensors[name][:, :3].contiguous()}, folder / 'other.safetensors')
    return (folder / 'other.safetensors').read_bytes()


@pytest.mark.parametrize('damage, message', [
    ('bytes', 'me/model: the file is damaged'),
    ('truncated', 'me/model: the file is damaged'),
    ('shapes', 'me/model: the weights do not fit fan: 1 difference:\n  size mismatch for frn.frb2.fc1.weight'),
    ('config', 'me/model: a file of the model is damaged'),
    ('architecture', 'Unknown model'),
    ('pickle', 'me/model: the file is damaged'),
    ('only_pickle', 'me/model: it lacks a required file.*model.safetensors'),
    ('thresholds', 'must be 3 numbers'),
])
def test_broken_repositories_end_in_one_message_and_run_no_code(server, tmp_path, damage, message):
    files = file_contents(save_small_fan(tmp_path / 'model'))
    weights = files['model.safetensors']
    config = json.loads(files['config.json'])
    trap = pickle.dumps(Trap(str(tmp_path / 'sprung')))
    files.update({
        'bytes': {'model.safetensors': corrupt(weights)},
        'truncated': {'model.safetensors': weights[:-100]},
        'shapes': {'model.safetensors': other_shapes(tmp_path / 'model')},
        'config': {'config.json': b'{"architecture": '},
        'architecture': {'config.json': json.dumps({**config, 'architecture': 'fen'}).encode()},
        'pickle': {'model.safetensors': trap, 'pytorch_model.bin': trap},
        'only_pickle': {'pytorch_model.bin': trap},
        'thresholds': {'config.json': json.dumps({**config, 'thresholds': [0.5, 0.5]}).encode()},
    }[damage])
    if damage == 'only_pickle':
        del files['model.safetensors']
    server.put('me/model', files)
    with pytest.raises(InputError, match=message) as caught:
        load_model('hf-hub:me/model')
    assert str(caught.value).count('\n') < 6
    assert not (tmp_path / 'sprung').exists()
    assert not [path for method, path in server.requests if path.endswith('.bin')]


def test_pickles_are_refused(tmp_path):
    folder = save_small_fan(tmp_path / 'model')
    trap = pickle.dumps(Trap(str(tmp_path / 'sprung')))
    for name in ('pytorch_model.bin', 'model.pth'):
        (folder / name).write_bytes(trap)
    load_model(folder)
    (folder / 'model.safetensors').unlink()
    with pytest.raises(InputError, match='contains no model.safetensors'):
        load_model(folder)
    for name in (f'local-dir:{folder}', 'fan'):
        overlay = dict(pretrained_cfg_overlay=dict(file=str(folder / 'model.pth'))) if name == 'fan' else {}
        with pytest.raises(InputError, match='safetensors only'):
            timm.create_model(name, pretrained=True, **overlay)
    (folder / 'model.safetensors').write_bytes(trap)
    with pytest.raises(InputError, match='damaged, or is not a safetensors file'):
        load_model(folder)
    with pytest.raises(InputError, match='me/model/pytorch_model.bin: not a .safetensors file'):
        timm.create_model('fan', pretrained=True, pretrained_cfg_overlay=dict(
            hf_hub_id='me/model', hf_hub_filename='pytorch_model.bin'))
    with pytest.raises(InputError, match='not a URL'):
        timm.create_model('fan', pretrained=True, pretrained_cfg_overlay=dict(url='http://127.0.0.1/model.pth'))
    assert not (tmp_path / 'sprung').exists()


def test_default_tag_of_another_organization(server, monkeypatch, tmp_path):
    model = timm.create_model('fan_resnet18', backbone='test_resnet', embed_dim=16, num_classes=3)
    save_model(model, tmp_path / 'model', LABELS, dict(input_size=(3, 64, 64)))
    files = file_contents(tmp_path / 'model')
    server.put('mirror/fan_resnet18.coco2014', files)
    server.put('mirror/fan_vgg16.coco2014', files)
    monkeypatch.setattr(hub, 'HUB_ORG', 'mirror')
    args = dict(backbone='test_resnet', embed_dim=16)
    loaded = timm.create_model('fan_resnet18', pretrained=True, **args)
    assert loaded.num_classes == 3 and loaded.pretrained_cfg['label_names'] == LABELS
    assert timm.create_model('fan_resnet18', pretrained=True, num_classes=7, **args).num_classes == 7
    with pytest.raises(InputError, match='the weights do not fit fan_resnet18'):
        timm.create_model('fan_resnet18', pretrained=True)
    with pytest.raises(InputError, match='contains a fan_resnet18, not a fan_vgg16'):
        timm.create_model('fan_vgg16', pretrained=True)
