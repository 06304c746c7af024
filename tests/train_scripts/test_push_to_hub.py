"""Publishing on a small Hub on 127.0.0.1, with the real client."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import LABELS, ROOT, SCRIPTS, file_contents, launch, run_here, run_with_hub, save_small_fan
from hub_server import GOOD_TOKEN
from huggingface_hub import ModelCard, constants
from safetensors.torch import save_file

from timm_fan.models import create_model, load_model, model_thresholds, save_model, save_thresholds


@pytest.fixture(scope='module')
def resnet18_run(coco_folder, tmp_path_factory) -> Path:
    """A finished run of a named model, over another backbone than its default. Tests must not change it."""
    folder = tmp_path_factory.mktemp('runs') / 'run'
    launch(
        SCRIPTS / 'train.py', '--config', 'scenes', '--data', 'coco2014', '--data-dir', coco_folder,
        '--model', 'fan_resnet18', '--model-kwargs', 'backbone=test_resnet', 'embed_dim=16', '--img-size', '64',
        '--epochs', '2', '--batch-size', '8', '--workers', '0', '--log-with', 'none', '--output', folder)
    return folder


def files_of(repo, ref: str = 'main'):
    return repo.commits[repo.refs[ref]]


def test_pushed_models_load_elsewhere(server, monkeypatch, capsys, resnet18_run, tmp_path):
    """By hf-hub: and by the default tag, in new processes with empty caches."""
    assert run_here(monkeypatch, 'push_to_hub', resnet18_run, 'timm-fan/fan_resnet18.coco2014') == 0
    assert 'new' in capsys.readouterr().out
    model = load_model(resnet18_run)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(x)
    save_file(dict(x=x, expected=expected), tmp_path / 'sample.safetensors')
    names = (
        "'hf-hub:timm-fan/fan_resnet18.coco2014'", "'hf-hub:timm-fan/fan_resnet18.coco2014@main'",
        # arguments of the call replace those that are published
        "'fan_resnet18', backbone='test_resnet', embed_dim=16")
    for i, name in enumerate(names):
        server.requests.clear()
        out = run_with_hub(server.url, tmp_path / f'home{i}', f"""
import timm, timm_fan, torch
from safetensors.torch import load_file
model = timm.create_model({name}, pretrained=True).eval()
sample = load_file({str(tmp_path / 'sample.safetensors')!r})
with torch.inference_mode():
    print(torch.equal(model(sample['x']), sample['expected']))
print(model.pretrained_cfg['label_names'], model.pretrained_cfg['input_size'])
""")
        assert out.splitlines() == ['True', f"{model.pretrained_cfg['label_names']} (3, 64, 64)"]
        # nothing else was downloaded, such as weights of a backbone
        files = [path for method, path in server.requests if '/resolve/' in path]
        assert files and all(path.startswith('/timm-fan/fan_resnet18.coco2014/resolve/main/') for path in files)


def test_transformers_pipeline_has_sigmoid_scores_and_names(server, resnet18_run, coco_folder, monkeypatch, tmp_path):
    pytest.importorskip('transformers')
    assert run_here(monkeypatch, 'push_to_hub', resnet18_run, 'me/photos') == 0
    photo = next((coco_folder / 'val2014').iterdir())
    out = run_with_hub(server.url, tmp_path / 'home', f"""
import json
import timm_fan
from transformers import pipeline
print(json.dumps(pipeline('image-classification', model='me/photos')({str(photo)!r}, top_k=10)))
""")
    found = {x['label']: x['score'] for x in json.loads(out.splitlines()[-1])}
    result = launch(SCRIPTS / 'predict.py', resnet18_run, photo, '--topk', '10', '--format', 'jsonl')
    ours = {x['label']: x['probability'] for x in json.loads(result.stdout)['labels']}
    assert found.keys() == ours.keys() and len(ours) == 6
    assert all(found[k] == pytest.approx(ours[k], abs=1e-4) for k in ours)


def test_dry_run_repeated_push_branch_and_pull_request(server, monkeypatch, capsys, resnet18_run, tmp_path):
    run = shutil.copytree(resnet18_run, tmp_path / 'run')

    def push(*options):
        assert run_here(monkeypatch, 'push_to_hub', run, 'me/model', *options) == 0
        return capsys.readouterr()

    assert 'Nothing was sent to me/model.' in push('--dry-run').out
    assert not server.repos
    monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
    output = push('--dry-run')
    assert '? ' in output.out
    assert 'The content of the repository is unknown: me/model: the Hub does not know your token.' in output.err
    monkeypatch.setenv('HF_TOKEN', GOOD_TOKEN)
    push('--private')
    repo = server.repos['me/model']
    assert repo.private and not server.blobs.keys() - {f.oid for f in files_of(repo).values()}
    assert not [name for name in files_of(repo) if name.endswith(('.bin', '.pth', '.pkl', '.pt'))]
    assert str(tmp_path) not in ''.join(f.content.decode('latin-1') for f in files_of(repo).values())

    commits, uploads = len(repo.commits), len([r for r in server.requests if r[0] == 'PUT'])
    assert 'me/model is up to date.' in push().out
    assert len(repo.commits) == commits

    save_thresholds(run, [0.3] * 6, 'global-f1')
    states = {line.split()[-1]: line.split()[0] for line in push().out.splitlines()}
    assert [states[k] for k in ('config.json', 'README.md', 'model.safetensors')] == ['changed', 'changed', 'same']
    assert len([r for r in server.requests if r[0] == 'PUT']) == uploads
    assert model_thresholds(load_model('hf-hub:me/model')) == [0.3] * 6

    (run / 'report' / 'metrics.json').unlink()
    main = repo.refs['main']
    assert '/discussions/1' in push('--pr').out and repo.refs['main'] == main
    push('--revision', 'unmeasured')
    assert repo.refs['main'] == main
    files = files_of(repo, 'unmeasured')
    assert not [name for name in files if name.startswith('evaluation/')]
    assert 'Nothing has been measured for these weights.' in files['README.md'].content.decode()
    assert load_model('hf-hub:me/model@unmeasured').num_classes == 6


@pytest.mark.parametrize('stall', ['/lfs/', '/commit/'])
def test_killed_push_leaves_the_old_model(server, resnet18_run, tmp_path, stall):
    server.put('me/model', file_contents(save_small_fan(tmp_path / 'old')))
    server.stall = stall
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'HF_ENDPOINT': server.url, 'HF_HUB_DISABLE_XET': '1',
           'HF_HOME': str(tmp_path / 'home')}
    command = [sys.executable, SCRIPTS / 'push_to_hub.py', resnet18_run, 'me/model']
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert server.stalled.wait(100)
    process.kill()
    process.wait()
    server.release.set()
    server.stall = ''
    assert load_model('hf-hub:me/model').num_classes == 3
    subprocess.run(command, env=env, check=True)
    assert load_model('hf-hub:me/model').num_classes == 6


def test_refused_pushes_end_in_one_message(server, monkeypatch, capsys, resnet18_run, tmp_path):
    def refused(*args):
        assert run_here(monkeypatch, 'push_to_hub', *args) == 2
        return capsys.readouterr().err

    for folder in (tmp_path / 'none', tmp_path):
        assert f'{folder} contains no config.json. Pass a run folder' in refused(folder, 'me/model')
    assert 'no/such/repo' in refused(resnet18_run, 'no/such/repo')
    assert 'a b/c' in refused(resnet18_run, 'a b/c', '--dry-run')
    monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
    assert 'does not know your token. Log in again (hf auth login, or HF_TOKEN).' in refused(resnet18_run, 'me/model')
    monkeypatch.delenv('HF_TOKEN')
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'no_token'))
    assert 'does not know you. Log in (hf auth login, or HF_TOKEN).' in refused(resnet18_run, 'me/model')
    assert not server.repos


def test_model_of_plain_timm_is_published_too(server, monkeypatch, tmp_path):
    model = create_model('test_resnet', num_classes=3).eval()
    save_model(model, tmp_path / 'plain', LABELS, dict(input_size=(3, 64, 64)))
    assert run_here(monkeypatch, 'push_to_hub', tmp_path / 'plain', 'me/plain') == 0
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(load_model('hf-hub:me/plain')(x), model(x))
    card = files_of(server.repos['me/plain'])['README.md'].content.decode()
    assert 'library_name: timm\n' in card and 'no record of the training' in card
    assert ModelCard(card).data.license == 'apache-2.0'


@pytest.mark.parametrize('options', [['--update-cards', '--dry-run'], ['some/folder', '--update-cards']])
def test_update_cards_stands_alone(monkeypatch, capsys, options):
    assert run_here(monkeypatch, 'push_to_hub', *options) == 2
    assert capsys.readouterr().err == 'error: Pass FOLDER and REPO, or --update-cards alone.\n'


def test_cards_are_only_updated_in_a_clone(monkeypatch, capsys, tmp_path):
    def elsewhere(module):
        module.CARDS = tmp_path / 'hub_cards'

    assert run_here(monkeypatch, 'push_to_hub', '--update-cards', prepare=elsewhere) == 2
    assert capsys.readouterr().err.startswith(f'error: --update-cards: no folder {tmp_path / "hub_cards"}.')
