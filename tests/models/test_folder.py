"""Saving a model to a folder, loading it, and what is refused."""
import json

import pytest
import safetensors.torch
import timm
import torch
from helpers import launch, small_fan
from timm.data import resolve_model_data_config

from timm_fan import InputError
from timm_fan.layers import HEADS, GridPooling
from timm_fan.models import create_model, folder, label_names, load_model, save_model

DATA_CONFIG = dict(
    input_size=(3, 96, 96), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), interpolation='bilinear', crop_pct=1.0,
    crop_mode='center')


def test_a_saved_model_is_complete(tmp_path):
    plain = tmp_path / 'plain.safetensors'
    safetensors.torch.save_file(timm.create_model('test_resnet').state_dict(), plain)
    model = create_model(
        'fan', backbone='test_resnet', num_classes=3, frn=False, global_pool='max', backbone_weights=str(plain)).eval()
    save_model(model, tmp_path / 'saved', ['a', 'b', 'c'], DATA_CONFIG)
    plain.unlink()
    assert sorted(p.name for p in (tmp_path / 'saved').iterdir()) == ['config.json', 'model.safetensors']
    assert 'plain' not in (tmp_path / 'saved' / 'config.json').read_text()
    assert json.loads((tmp_path / 'saved' / 'config.json').read_text())['label_names'] == ['a', 'b', 'c']

    x = torch.randn(2, 3, 96, 96)
    loaded = timm.create_model(f'local-dir:{tmp_path / "saved"}', pretrained=True).eval()
    assert torch.equal(loaded(x), model(x))
    assert isinstance(loaded.frn, GridPooling) and label_names(loaded) == ['a', 'b', 'c']
    config = resolve_model_data_config(loaded)
    assert config['mean'] == [0.1, 0.2, 0.3] and tuple(config['input_size']) == (3, 96, 96)
    assert timm.create_model(f'local-dir:{tmp_path / "saved"}', pretrained=True, num_classes=5)(x).shape == (2, 5)


@pytest.mark.parametrize('head', HEADS)
def test_every_head_is_saved_and_loaded(head, tmp_path):
    model = timm.create_model(
        'fan', backbone='test_resnet', num_classes=7, frn=False, cln=False, head=head).eval()
    save_model(model, tmp_path / 'saved', list('abcdefg'), resolve_model_data_config(model))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(load_model(tmp_path / 'saved')(x), model(x))


@pytest.mark.parametrize('head', ['linear', *HEADS])
def test_the_classifier_is_new_for_other_classes(tmp_path, head):
    model = small_fan(head=head)
    save_model(model, tmp_path / 'model', list('abcdefg'), DATA_CONFIG)
    other = create_model(f'local-dir:{tmp_path / "model"}', pretrained=True, num_classes=5)
    assert other(torch.rand(2, 3, 64, 64)).shape == (2, 5)
    assert torch.equal(other.backbone.net.conv1[0].weight, model.backbone.net.conv1[0].weight)


def test_tensors_shared_between_blocks_are_saved(tmp_path):
    model = small_fan('coat_tiny', img_size=64).eval()
    state = model.state_dict()
    assert len({t.data_ptr() for t in state.values()}) < len(state), 'without shared tensors this tests nothing'
    torch.nn.init.normal_(model.head.fc.weight)
    save_model(model, tmp_path / 'saved', list('abcdefg'), dict(input_size=(3, 64, 64)))
    loaded = load_model(tmp_path / 'saved')
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(x), model(x))
    assert loaded.state_dict().keys() == state.keys()


def test_unshared_keeps_values_and_shares_no_memory():
    base, row = torch.randn(4, 6), torch.randn(6)
    tensors = dict(
        base=base, same=base, view=base[1:3], transposed=base.T, columns=base[:, 2:4],
        map=torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), expanded=row.expand(3, 6), row=row,
        number=torch.tensor(3), empty=torch.zeros(0, 2), parameter=torch.nn.Parameter(base))
    result = folder.unshared(tensors)
    assert list(result) == list(tensors)
    for name, tensor in result.items():
        assert torch.equal(tensor, tensors[name]) and tensor.dtype == tensors[name].dtype, name
        assert tensor.is_contiguous() and not tensor.requires_grad, name
    places = [t.untyped_storage().data_ptr() for t in result.values() if t.numel()]
    assert len(set(places)) == len(places)


def test_saving_leaves_the_model_alone(tmp_path):
    model = small_fan().to(memory_format=torch.channels_last)
    save_model(model, tmp_path / 'saved', list('abcdefg'), DATA_CONFIG)
    weight = model.backbone.net.conv1[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and weight.requires_grad
    assert torch.equal(load_model(tmp_path / 'saved').backbone.net.conv1[0].weight, weight)


# among them a name that is not UTF-8, as Python reads it from the name of a folder
NAMES = ['café', '犬', 'кот', 'naïve 🐈', b'caf\xe9'.decode('utf-8', 'surrogateescape'), 'plain', '"quoted"\\']
SAVE = '''
import locale, sys
from timm_fan.models import create_model, label_names, load_model, save_model, save_thresholds
assert locale.getpreferredencoding(False) in ('ANSI_X3.4-1968', 'US-ASCII'), locale.getpreferredencoding(False)
names, folder = {names!a}, sys.argv[1]
model = create_model('fan', backbone='test_resnet', embed_dim=16, num_classes=len(names))
save_model(model, folder, names, dict(input_size=(3, 64, 64)))
save_thresholds(folder, [0.25] * len(names), 'best-f1')
assert label_names(load_model(folder)) == names
'''


@pytest.fixture
def c_locale(monkeypatch):
    """New processes run in the C locale, for which Python otherwise substitutes UTF-8."""
    for name, value in dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0').items():
        monkeypatch.setenv(name, value)


def test_class_names_do_not_depend_on_the_locale(c_locale, tmp_path):
    launch('-c', SAVE.format(names=NAMES), tmp_path / 'saved')
    model = load_model(tmp_path / 'saved')
    assert label_names(model) == NAMES and model.thresholds == [0.25] * len(NAMES)


def test_a_config_in_utf_8_is_read_in_every_locale(c_locale, tmp_path):
    save_model(small_fan(), tmp_path / 'saved', NAMES, DATA_CONFIG)
    file = tmp_path / 'saved' / 'config.json'
    names = [name for name in NAMES if name.isprintable()]  # surrogate escapes are not text
    config = {**json.loads(file.read_text()), 'label_names': ['x', *names]}
    file.write_text(json.dumps(config, ensure_ascii=False), encoding='utf-8')
    code = ('import sys; from timm_fan.models import label_names, load_model; '
            'print(ascii(label_names(load_model(sys.argv[1]))))')
    assert launch('-c', code, tmp_path / 'saved').stdout.strip() == ascii(['x', *names])


def test_pickles_and_damaged_folders_are_refused(tmp_path):
    saved = tmp_path / 'saved'
    save_model(small_fan(num_classes=2), saved, ['a', 'b'], DATA_CONFIG)
    weights = saved / 'model.safetensors'
    content = weights.read_bytes()
    weights.write_bytes(content[:1000])
    with pytest.raises(InputError, match='saved/model.safetensors: the file is damaged, or is not a safetensors file'):
        load_model(saved)
    weights.unlink()
    torch.save({}, saved / 'pytorch_model.bin')
    with pytest.raises(InputError, match='saved contains no model.safetensors. Pass a run folder, or the folder of a'):
        load_model(saved)
    weights.write_bytes(content)
    (saved / 'config.json').write_text('{')
    with pytest.raises(InputError, match='saved: a file of the model is damaged .Expecting property name'):
        load_model(saved)
    with pytest.raises(InputError, match='No model or run folder .*nowhere'):
        load_model(tmp_path / 'nowhere')


@pytest.mark.parametrize('entries, words', [
    (dict(label_names=['a', 'b']), 'names 2 labels for 7 classes'),
    (dict(thresholds=0.4), 'must be 7 numbers'), (dict(thresholds=[0.5] * 6), 'must be 7 numbers'),
    (dict(thresholds=[0.5] * 6 + [1.0]), 'must be 7 numbers'),
    (dict(thresholds=[0.5] * 6 + ['a']), 'must be 7 numbers'),
])
def test_wrong_entries_of_a_config_are_named(tmp_path, entries, words):
    save_model(small_fan(), tmp_path / 'model', list('abcdefg'), DATA_CONFIG)
    file = tmp_path / 'model' / 'config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    with pytest.raises(InputError, match=words):
        load_model(tmp_path / 'model')


def test_a_folder_of_other_files_is_not_replaced(tmp_path):
    (tmp_path / 'thesis.txt').write_text('precious')
    with pytest.raises(InputError, match='contains other files, and no model to replace. Choose a new folder'):
        save_model(small_fan(num_classes=2), tmp_path, ['a', 'b'], DATA_CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.txt']


def test_an_interrupted_save_leaves_the_old_model(tmp_path, monkeypatch):
    saved = tmp_path / 'saved'
    save_model(small_fan(num_classes=2), saved, ['a', 'b'], DATA_CONFIG)
    before = (saved / 'model.safetensors').read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError('No space left on device')

    monkeypatch.setattr(folder, 'save_config_for_hf', full_disk)
    with pytest.raises(OSError, match='space'):
        save_model(small_fan(num_classes=3), saved, ['a', 'b', 'c'], DATA_CONFIG)
    assert (saved / 'model.safetensors').read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['saved']
