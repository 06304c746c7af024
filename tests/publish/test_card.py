import json
import shutil
from pathlib import Path
from typing import Dict

import pytest
import timm
from helpers import LABELS, run_here, save_small_fan, write_table
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.torch import load_file, save_file

from timm_fan import InputError
from timm_fan.models import save_model
from timm_fan.publish import card_of_run, write_publication


def published(folder: Path, card: ModelCard, target: Path) -> Dict[str, Path]:
    target.mkdir()
    write_publication(folder, card, target)
    return {file.relative_to(target).as_posix(): file for file in target.rglob('*') if file.is_file()}


def test_card_of_a_run(server, run_folder):
    card = card_of_run(run_folder, 'me/model')
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
    for part in (run['hardware'], versions, 'only part of its 40504 images', f'| {found["mAP"]:.2f} |'):
        assert part in text, part
    assert str(run_folder) not in text


def test_publication_names_the_start_and_no_folder_of_this_machine(
        server, monkeypatch, coco_folder, run_folder, tmp_path):
    data = write_table(coco_folder, tmp_path, 'csv').replace('table:', f'table:{tmp_path}/')
    code = run_here(
        monkeypatch, 'train', '--data', data, '--data-dir', tmp_path, '--model', f'local-dir:{run_folder / "best"}',
        '--img-size', '64', '--epochs', '1', '--batch-size', '8', '--workers', '0', '--log-with', 'none', '--output',
        tmp_path / 'tuned')
    assert code == 0
    card = card_of_run(tmp_path / 'tuned', 'me/x')
    files = published(tmp_path / 'tuned', card, tmp_path / 'publication')
    assert {'README.md', 'config.json', 'model.safetensors', 'training/config.yaml', 'training/run.json',
            'training/history.csv', 'evaluation/metrics.json'} <= files.keys()
    for name, file in files.items():
        if name.endswith(('.md', '.json', '.yaml', '.csv')):
            content = file.read_bytes()
            assert str(tmp_path).encode() not in content and str(coco_folder).encode() not in content, name
    text = str(card)
    assert '| start | weights of `local-dir:best` |' in text and 'license_name: unknown' in text
    assert f'table:{{split}}.csv?images={coco_folder.name}&classes=classes.txt' in text


def test_card_of_another_head(tmp_path):
    model = timm.create_model('fan', backbone='test_resnet', embed_dim=16, num_classes=3, head='csra').eval()
    save_model(model, tmp_path / 'model', LABELS, dict(input_size=(3, 64, 64)))
    assert 'it has the head of CSRA' in str(card_of_run(tmp_path / 'model', 'me/x'))


def test_card_of_an_incomplete_config(tmp_path):
    file = save_small_fan(tmp_path / 'model') / 'config.json'
    config = json.loads(file.read_text())
    del config['label_names']
    file.write_text(json.dumps(config))
    assert 'has no record of the training' in str(card_of_run(tmp_path / 'model', 'me/x'))
    del config['pretrained_cfg']
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match='config.json has no pretrained_cfg: it does not describe a timm model'):
        card_of_run(tmp_path / 'model', 'me/x')


def test_card_only_takes_scores_of_its_own_weights(run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / 'run')
    tensors = load_file(run / 'best' / 'model.safetensors')
    save_file({k: v + 1 if k == 'head.fc.bias' else v for k, v in tensors.items()}, run / 'best' / 'model.safetensors')
    card = card_of_run(run, 'me/model')
    assert 'Nothing has been measured for these weights.' in card.text
    assert 'model-index' not in card.data.to_dict()
    files = published(run, card, tmp_path / 'publication')
    assert not [name for name in files if name.startswith('evaluation')]


def test_wrong_metadata_is_refused(server):
    with pytest.raises(ValueError):
        ModelCard('---\nlibrary_name: timm_fan\n---\n').validate()


def test_label_names_are_plain_text(tmp_path):
    file = save_small_fan(tmp_path / 'model') / 'config.json'
    config = json.loads(file.read_text())
    config['label_names'] = ['$_$', '<b>x</b> | y', 'line\nbreak']
    file.write_text(json.dumps(config))
    assert r'\$\_\$, \<b\>x\</b\> \| y, line break' in str(card_of_run(tmp_path / 'model', 'me/x'))


def test_label_names_do_not_break_the_tables(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / 'run')
    file = tmp_path / 'run' / 'report' / 'metrics.json'
    metrics = json.loads(file.read_text())
    for c in metrics['per_class']:
        c['name'] = f'{c["name"]} | left\nright'
    for group in ('tail', 'small'):
        metrics['groups'][group]['classes'] = [f'{name} | left\nright' for name in metrics['groups'][group]['classes']]
    file.write_text(json.dumps(metrics))
    text = card_of_run(tmp_path / 'run', 'me/model').text
    tables = [block.splitlines() for block in text.split('\n\n') if block.startswith('|')]
    assert any('left right' in line for table in tables for line in table)
    for table in tables:
        assert all(line.startswith('|') and line.endswith('|') for line in table)
        assert len({line.replace('\\|', '').count('|') for line in table}) == 1, table
