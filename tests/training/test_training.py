"""Optimizer, loss and schedule of a run."""
import json
import shutil

from helpers import TINY, run_here


def test_a_class_without_positives_is_named(monkeypatch, coco_folder, tmp_path):
    data = shutil.copytree(coco_folder, tmp_path / 'coco')
    file = data / 'annotations' / 'instances_train2014.json'
    content = json.loads(file.read_text())
    category = content['categories'][2]
    content['annotations'] = [a for a in content['annotations'] if a['category_id'] != category['id']]
    file.write_text(json.dumps(content))
    run = tmp_path / 'run'
    options = ['--epochs', '1', '--data-dir', data, '--output', run, '--no-report']
    assert run_here(monkeypatch, 'train', *TINY, *options) == 0
    assert f'classes without a positive training image: {category["name"]}' in (run / 'train.log').read_text()
