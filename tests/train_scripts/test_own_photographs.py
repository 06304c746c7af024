"""The notebook, as people run it."""
import ast
import importlib
import os
import shlex

import nbformat
import pytest
from helpers import ROOT, SCRIPTS, TINY
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient


@pytest.fixture
def notebook():
    return nbformat.read(SCRIPTS / 'own_photographs.ipynb', nbformat.NO_CONVERT)


def test_cells_are_short_code_without_outputs_that_uses_what_exists(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert all(cell.source.count('\n') < 25 for cell in cells)
    tree = ast.parse(''.join(TransformerManager().transform_cell(cell.source) for cell in cells))
    used = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith('timm_fan'):
            used += [(node.module, name.name) for name in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'timm_fan':
            used.append(('timm_fan', node.attr))
    assert ('timm_fan', 'evaluate') in used and ('timm_fan.data', 'create_splits') in used
    assert [name for module, name in used if not hasattr(importlib.import_module(module), name)] == []


@pytest.mark.slow
def test_it_trains_predicts_and_looks(notebook, coco_folder, tmp_path, monkeypatch):
    config, options, output = TINY[1], shlex.join(TINY[4:]), tmp_path / 'run'
    notebook.cells.insert(2, nbformat.v4.new_code_cell(
        f'data, data_dir, output = {"coco2014"!r}, {str(coco_folder)!r}, {str(output)!r}\n'
        f'config, options = {config!r}, {options!r}'))
    for name, value in dict(PYTHONPATH=ROOT, OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true').items():
        monkeypatch.setenv(name, str(value))
    NotebookClient(notebook, timeout=300, resources=dict(metadata=dict(path=str(tmp_path)))).execute(env=os.environ)
    shown = [one for cell in notebook.cells for one in cell.get('outputs', ())]
    text = ''.join(one.get('text', '') for one in shown)
    assert '34 images, 6 classes' in text and 'on 13 images' in text and 'precision' in text
    assert sum('image/png' in one.get('data', ()) for one in shown) == 4
    assert (output / 'best' / 'model.safetensors').is_file() and (output / 'report' / 'report.html').is_file()
