import inspect
import os
from pathlib import Path
from typing import Iterator

import pytest
import torch
from helpers import ROOT, SCRIPTS, TINY, launch, write_small_coco
from hub_server import GOOD_TOKEN, Hub, running_hub
from huggingface_hub import HfApi, RepoCard, constants, file_download

import timm_fan  # noqa: F401  registers the models before tests are collected
from timm_fan.data import create_dataset
from timm_fan.evaluation import Evaluation

SHARED = ROOT.parent / 'shared'
# models are tiny, and tests may share two cores: spinning threads would wait for each other
torch.set_num_threads(1)
os.environ.setdefault('OMP_NUM_THREADS', '1')


@pytest.fixture(scope='session')
def coco_folder(tmp_path_factory) -> Path:
    return write_small_coco(tmp_path_factory.mktemp('data') / 'coco', num_train=34, num_val=13)


@pytest.fixture(scope='session')
def evaluation(coco_folder) -> Evaluation:
    """Noisy logits for the validation images of `coco_folder`, of which the fourth has no known label."""
    dataset = create_dataset('coco2014', coco_folder, 'val')
    torch.manual_seed(0)
    targets = dataset.targets()
    targets[3] = -1
    logits = 2 * targets - 1 + torch.randn_like(targets)
    return Evaluation.of(dataset, logits, targets)


@pytest.fixture(scope='session')
def run_folder(coco_folder, tmp_path_factory) -> Path:
    """A finished run of train.py. Tests must not change it."""
    folder = tmp_path_factory.mktemp('runs') / 'one'
    launch(SCRIPTS / 'train.py', *TINY, '--data-dir', coco_folder, '--output', folder)
    return folder


@pytest.fixture(scope='session')
def coco_mini() -> Path:
    folder = SHARED / 'coco_mini'
    if not folder.is_dir():
        pytest.skip('requires the photographs of coco_mini, which are not distributed')
    return folder


@pytest.fixture(scope='session')
def lite0_weights() -> Path:
    file = SHARED / 'weights' / 'tf_efficientnet_lite0.in1k.safetensors'
    if not file.is_file():
        pytest.skip('requires ImageNet weights of tf_efficientnet_lite0')
    return file


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[Hub]:
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
