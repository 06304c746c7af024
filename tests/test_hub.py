"""Publishing and loading through a small Hub on 127.0.0.1, with the real client."""
import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from hub_server import GOOD_TOKEN, running_hub
from huggingface_hub import HfApi, ModelCard, RepoCard, constants, file_download
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.torch import load_file, save_file
from test_programs import ROOT, SCRIPTS, run_here
from test_sources import write_table

from timm_fan import InputError, hub
from timm_fan.card import card_of_run, published_files
from timm_fan.models import create_model, load_model, model_thresholds, save_model, save_thresholds

CARDS = ROOT / 'hub_cards'
NAMES = ['cat', 'dog', 'person']


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A Hub that the client of this process talks to, logged in, with an empty cache."""
    with running_hub() as running:
        monkeypatch.setattr(constants, 'ENDPOINT', running.url)
        for module in (constants, file_download):
            template = running.url + '/{repo_id}/resolve/{revision}/{filename}'
            monkeypatch.setattr(module, 'HUGGINGFACE_CO_URL_TEMPLATE', template, raising=False)
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
        # old clients validate at huggingface.co whatever HF_ENDPOINT says
        if 'ENDPOINT' not in inspect.getsource(RepoCard.validate):
            monkeypatch.setattr(RepoCard, 'validate', lambda card: HfApi()._validate_yaml(str(card)))
        monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True, raising=False)
        monkeypatch.setenv('HF_TOKEN', GOOD_TOKEN)
        yield running


def tiny(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('fan', backbone='test_resnet', embed_dim=16, num_classes=3, **kwargs).eval()


def model_files(folder: Path, model=None) -> dict:
    save_model(model or tiny(), folder, NAMES, dict(input_size=(3, 64, 64)))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def elsewhere(server, home: Path, code: str, **env: str) -> str:
    """Output of Python code in a new process, with an empty cache in `home`."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'HF_ENDPOINT': server.url, **env,
           'HF_HOME': str(home), 'HF_HUB_DISABLE_XET': '1'}
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope='module')
def run_folder(coco_folder, tmp_path_factory) -> Path:
    """A finished run over another backbone's weights than a fresh model's."""
    folder = tmp_path_factory.mktemp('runs') / 'run'
    patch = pytest.MonkeyPatch()
    code = run_here(
        patch, 'train', '--data', 'coco2014', '--data-dir', coco_folder, '--model', 'fan_resnet18', '--model-kwargs',
        'backbone=test_resnet', 'embed_dim=16', '--img-size', '64', '--epochs', '2', '--batch-size', '8', '--workers',
        '0', '--log-with', 'none', '--output', folder)
    patch.undo()
    assert code == 0
    return folder


def test_the_whole_circle(server, monkeypatch, capsys, run_folder, coco_folder, tmp_path):
    """Push a trained model; load it by hf-hub: and by its default tag in new processes with empty caches."""
    assert run_here(monkeypatch, 'push_to_hub', run_folder, 'timm-fan/fan_resnet18.coco2014') == 0
    assert 'new' in capsys.readouterr().out
    model = load_model(run_folder)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model(x)
    save_file(dict(x=x, wanted=wanted), tmp_path / 'sample.safetensors')
    names = {
        "'hf-hub:timm-fan/fan_resnet18.coco2014'": {}, "'hf-hub:timm-fan/fan_resnet18.coco2014@main'": {},
        # the entrypoint's own arguments stand against those of the run, which was no default one
        "'fan_resnet18', backbone='test_resnet', embed_dim=16": {},
    }
    for i, name in enumerate(names):
        server.requests.clear()
        out = elsewhere(server, tmp_path / f'home{i}', f"""
import timm, timm_fan, torch
from safetensors.torch import load_file
model = timm.create_model({name}, pretrained=True).eval()
sample = load_file({str(tmp_path / 'sample.safetensors')!r})
with torch.inference_mode():
    print(torch.equal(model(sample['x']), sample['wanted']))
print(model.pretrained_cfg['label_names'], model.pretrained_cfg['input_size'])
""")
        assert out.splitlines() == ['True', f"{model.pretrained_cfg['label_names']} (3, 64, 64)"]
        # nothing but this repository was asked for: no backbone's weights
        files = [path for method, path in server.requests if '/resolve/' in path]
        assert files and all(path.startswith('/timm-fan/fan_resnet18.coco2014/resolve/main/') for path in files)


def test_transformers_pipeline_has_sigmoid_scores_and_names(server, run_folder, coco_folder, monkeypatch, tmp_path):
    pytest.importorskip('transformers')
    assert run_here(monkeypatch, 'push_to_hub', run_folder, 'me/photos') == 0
    photo = next((coco_folder / 'val2014').iterdir())
    out = elsewhere(server, tmp_path / 'home', f"""
import json
import timm_fan
from transformers import pipeline
print(json.dumps(pipeline('image-classification', model='me/photos')({str(photo)!r}, top_k=10)))
""")
    found = {x['label']: x['score'] for x in json.loads(out.splitlines()[-1])}
    result = subprocess.run(
        [sys.executable, SCRIPTS / 'predict.py', run_folder, photo, '--topk', '10', '--format', 'json'],
        capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)}, check=True)
    ours = {x['label']: x['probability'] for x in json.loads(result.stdout)[0]['labels']}
    assert found.keys() == ours.keys() and len(ours) == 6
    assert all(found[k] == pytest.approx(ours[k], abs=1e-4) for k in ours)


def test_dry_run_repeated_push_branch_and_pull_request(server, monkeypatch, capsys, run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / 'run')

    def push(*options):
        assert run_here(monkeypatch, 'push_to_hub', run, 'me/model', *options) == 0
        return capsys.readouterr().out

    assert 'Nothing was sent' in push('--dry-run')
    assert not server.repos
    monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
    assert '? ' in push('--dry-run')
    monkeypatch.setenv('HF_TOKEN', GOOD_TOKEN)
    push('--private')
    repo = server.repos['me/model']
    assert repo.private and not server.blobs.keys() - {f.oid for f in repo.commits[repo.refs['main']].values()}
    held = repo.commits[repo.refs['main']]
    assert not [name for name in held if name.endswith(('.bin', '.pth', '.pkl', '.pt'))]
    assert str(tmp_path) not in ''.join(f.content.decode('latin-1') for f in held.values())

    commits, uploads = len(repo.commits), len([r for r in server.requests if r[0] == 'PUT'])
    assert 'holds all of it already' in push()
    assert len(repo.commits) == commits

    save_thresholds(run, [0.3] * 6, 'global-f1')
    out = push()
    states = {line.split()[-1]: line.split()[0] for line in out.splitlines()}
    assert [states[k] for k in ('config.json', 'README.md', 'model.safetensors')] == ['changed', 'changed', 'same']
    assert len([r for r in server.requests if r[0] == 'PUT']) == uploads
    assert model_thresholds(load_model('hf-hub:me/model')) == [0.3] * 6

    (run / 'report' / 'metrics.json').unlink()
    main = repo.refs['main']
    assert '/discussions/1' in push('--pr') and repo.refs['main'] == main
    push('--revision', 'unmeasured')
    held = repo.commits[repo.refs['unmeasured']]
    assert repo.refs['main'] == main
    assert not [name for name in held if name.startswith('evaluation/')]
    assert 'Nothing has been measured' in held['README.md'].content.decode()
    assert load_model('hf-hub:me/model@unmeasured').num_classes == 6


@pytest.mark.parametrize('stall', ['/lfs/', '/commit/'])
def test_killed_push_leaves_the_old_model(server, run_folder, tmp_path, stall):
    files = model_files(tmp_path / 'old')
    server.put('me/model', files)
    server.stall = stall
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'HF_ENDPOINT': server.url, 'HF_HUB_DISABLE_XET': '1',
           'HF_HOME': str(tmp_path / 'home')}
    process = subprocess.Popen([sys.executable, SCRIPTS / 'push_to_hub.py', run_folder, 'me/model'], env=env,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert server.stalled.wait(100)
    process.kill()
    process.wait()
    server.release.set()
    server.stall = ''
    assert load_model('hf-hub:me/model').num_classes == 3
    subprocess.run([sys.executable, SCRIPTS / 'push_to_hub.py', run_folder, 'me/model'], env=env, check=True)
    assert load_model('hf-hub:me/model').num_classes == 6


def test_push_refused(server, monkeypatch, capsys, run_folder, tmp_path):
    def refused(*args):
        assert run_here(monkeypatch, 'push_to_hub', *args) == 2
        return capsys.readouterr().err

    assert 'No model' in refused(tmp_path / 'none', 'me/model') or 'config.json' in refused(tmp_path, 'me/model')
    assert 'no/such/repo' in refused(run_folder, 'no/such/repo')
    monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
    assert 'does not know your token. Log in again' in refused(run_folder, 'me/model')
    monkeypatch.delenv('HF_TOKEN')
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'no_token'))
    assert 'does not know you. Log in' in refused(run_folder, 'me/model')
    assert not server.repos


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
    ('shapes', 'me/model: the weights do not fit this fan: 1 difference:\n  size mismatch for frn.frb2.fc1.weight'),
    ('config', 'me/model cannot be read'),
    ('architecture', 'Unknown model'),
    ('pickle', 'me/model: the file is damaged'),
    ('only_pickle', 'me/model: it lacks a file.*model.safetensors'),
    ('thresholds', 'must be 3 numbers'),
])
def test_broken_repositories(server, tmp_path, damage, message):
    """One clear error each; and what would run on unpickling does not run."""
    files = model_files(tmp_path / 'model')
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


class Trap:
    def __init__(self, file: str):
        self.file = file

    def __reduce__(self):
        return open, (self.file, 'w')


def test_pickles_are_refused_from_disk(tmp_path):
    folder = tmp_path / 'model'
    model_files(folder)
    trap = pickle.dumps(Trap(str(tmp_path / 'sprung')))
    for name in ('pytorch_model.bin', 'model.pth'):
        (folder / name).write_bytes(trap)
    load_model(folder)
    (folder / 'model.safetensors').unlink()
    with pytest.raises(InputError, match='holds no model.safetensors'):
        load_model(folder)
    for name in (f'local-dir:{folder}', 'fan'):
        overlay = dict(pretrained_cfg_overlay=dict(file=str(folder / 'model.pth'))) if name == 'fan' else {}
        with pytest.raises(InputError, match='safetensors only'):
            timm.create_model(name, pretrained=True, **overlay)
    (folder / 'model.safetensors').write_bytes(trap)
    with pytest.raises(InputError, match='damaged, or no safetensors file'):
        load_model(folder)
    with pytest.raises(InputError, match='hf_hub_filename|not a .safetensors'):
        timm.create_model('fan', pretrained=True, pretrained_cfg_overlay=dict(
            hf_hub_id='me/model', hf_hub_filename='pytorch_model.bin'))
    with pytest.raises(InputError, match='not a URL'):
        timm.create_model('fan', pretrained=True, pretrained_cfg_overlay=dict(url='http://127.0.0.1/model.pth'))
    assert not (tmp_path / 'sprung').exists()


def test_missing_private_and_offline(server, monkeypatch, tmp_path):
    server.put('me/secret', model_files(tmp_path / 'model'), private=True)
    with pytest.raises(InputError, match='hf-hub:me/none: no such repository'):
        load_model('hf-hub:me/none')
    with pytest.raises(InputError, match='me/secret@v9: it has no such revision'):
        load_model('hf-hub:me/secret@v9')
    with pytest.raises(InputError, match="fan_vgg16: timm-fan/fan_vgg16.coco2014: no such repository.*train.py"):
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
    assert elsewhere(server, tmp_path / 'home', load).splitlines()[0] == '3'
    server.requests.clear()
    cached, missing = elsewhere(server, tmp_path / 'home', load, HF_HUB_OFFLINE='1').splitlines()
    assert cached == '3' and 'not in the cache, and HF_HUB_OFFLINE is set' in missing
    assert not server.requests


def test_default_tag_of_another_organisation(server, monkeypatch, tmp_path):
    model = timm.create_model('fan_resnet18', backbone='test_resnet', embed_dim=16, num_classes=3)
    files = model_files(tmp_path / 'model', model)
    server.put('mirror/fan_resnet18.coco2014', files)
    server.put('mirror/fan_vgg16.coco2014', files)
    monkeypatch.setattr(hub, 'HUB_ORG', 'mirror')
    args = dict(backbone='test_resnet', embed_dim=16)
    loaded = timm.create_model('fan_resnet18', pretrained=True, **args)
    assert loaded.num_classes == 3 and loaded.pretrained_cfg['label_names'] == NAMES
    assert timm.create_model('fan_resnet18', pretrained=True, num_classes=7, **args).num_classes == 7
    with pytest.raises(InputError, match='the weights do not fit this fan_resnet18'):
        timm.create_model('fan_resnet18', pretrained=True)
    with pytest.raises(InputError, match='holds a fan_resnet18, not a fan_vgg16'):
        timm.create_model('fan_vgg16', pretrained=True)


def test_card_of_a_run(server, run_folder):
    card = card_of_run(run_folder, 'me/model', CARDS / 'template.md')
    card.validate()
    metrics = json.loads((run_folder / 'report' / 'metrics.json').read_text())
    index = card.data.to_dict()['model-index']
    name, results = model_index_to_eval_results(index)
    assert name == 'model' and len(results) == 13
    found = {r.metric_name: r.metric_value for r in results}
    assert found['mAP'] == round(100 * metrics['mAP'], 2)
    assert found['CF1 (Top-3)'] == round(100 * metrics['top3']['CF1'], 2)
    assert results[0].dataset_name == 'COCO 2014, 13 images'
    assert card.data.library_name == 'timm_fan' and card.data.license == 'apache-2.0'
    text = card.text
    run = json.loads((run_folder / 'run.json').read_text())
    versions = f'torch {run["versions"]["torch"]}'
    for part in (run['hardware'], versions, 'a part of its 40504', f'| {found["mAP"]:.2f} |'):
        assert part in text, part
    assert str(run_folder) not in text


def test_card_names_the_start_and_no_folder_of_this_machine(server, monkeypatch, coco_folder, run_folder, tmp_path):
    data = write_table(coco_folder, tmp_path, 'csv').replace('table:', f'table:{tmp_path}/')
    code = run_here(
        monkeypatch, 'train', '--data', data, '--data-dir', tmp_path, '--model', f'local-dir:{run_folder / "best"}',
        '--img-size', '64', '--epochs', '1', '--batch-size', '8', '--workers', '0', '--log-with', 'none', '--output',
        tmp_path / 'tuned')
    assert code == 0
    files = published_files(tmp_path / 'tuned')
    card = str(card_of_run(tmp_path / 'tuned', 'me/x', CARDS / 'template.md'))
    texts = [content for name, content in files.items() if name.endswith(('.json', '.yaml', '.csv'))]
    for content in (card.encode(), *(text if isinstance(text, bytes) else text.read_bytes() for text in texts)):
        assert str(tmp_path).encode() not in content and str(coco_folder).encode() not in content
    assert '| start | the weights of `local-dir:best` |' in card and 'license_name: unknown' in card
    assert f'table:{{split}}.csv?images={coco_folder.name}&classes=classes.txt' in card


def test_card_of_a_rivals_head(server, tmp_path):
    save_model(tiny(head='csra'), tmp_path / 'model', NAMES, dict(input_size=(3, 64, 64)))
    assert 'the head of CSRA' in str(card_of_run(tmp_path / 'model', 'me/x', CARDS / 'template.md'))
    file = tmp_path / 'model' / 'config.json'
    config = json.loads(file.read_text())
    for key in ('label_names', 'pretrained_cfg'):
        del config[key]
        file.write_text(json.dumps(config))
        if key == 'label_names':
            assert 'holds no record' in str(card_of_run(tmp_path / 'model', 'me/x', CARDS / 'template.md'))
    with pytest.raises(InputError, match='has no pretrained_cfg'):
        card_of_run(tmp_path / 'model', 'me/x', CARDS / 'template.md')


def test_card_takes_figures_of_its_own_weights_only(run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / 'run')
    tensors = load_file(run / 'best' / 'model.safetensors')
    save_file({k: v + 1 if k == 'head.fc.bias' else v for k, v in tensors.items()}, run / 'best' / 'model.safetensors')
    card = card_of_run(run, 'me/model', CARDS / 'template.md')
    assert 'Nothing has been measured of these weights' in card.text
    assert 'model-index' not in card.data.to_dict()
    assert not [name for name in published_files(run) if name.startswith('evaluation')]


def test_cards_of_the_entrypoints_are_up_to_date(server):
    from timm_fan.card import card_of_variant
    names = timm.list_models('fan*', module='fan')
    tags = {name: timm.get_pretrained_cfg(name).tag for name in names}
    files = {name: CARDS / (f'{name}.{tag}.md' if tag else f'{name}.md') for name, tag in tags.items()}
    assert {f.name for f in CARDS.glob('*.md')} == {f.name for f in files.values()} | {'template.md'}
    for name, file in files.items():
        card = ModelCard(file.read_text())
        card.validate()
        assert card.data.base_model.startswith('timm/') and card.data.pipeline_tag == 'image-classification'
        # a card of a trained model stays; the others say that nothing was measured, in today's words
        if 'Nothing has been measured' in card.text:
            assert file.read_text() == str(card_of_variant(name, CARDS / 'template.md')), 'run --update-cards'


def test_wrong_metadata_is_refused(server):
    with pytest.raises(ValueError):
        ModelCard('---\nlibrary_name: timm_fan\n---\n').validate()


def test_model_of_plain_timm_is_published_too(server, monkeypatch, tmp_path):
    model = create_model('test_resnet', num_classes=3).eval()
    save_model(model, tmp_path / 'plain', NAMES, dict(input_size=(3, 64, 64)))
    assert run_here(monkeypatch, 'push_to_hub', tmp_path / 'plain', 'me/plain') == 0
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(load_model('hf-hub:me/plain')(x), model(x))
    card = server.repos['me/plain'].commits[server.repos['me/plain'].refs['main']]['README.md'].content.decode()
    assert 'library_name: timm\n' in card and 'no record of the training' in card
    assert huggingface_hub.ModelCard(card).data.license == 'apache-2.0'
