"""Damaged annotation files end in a data set that can be read, or in one clear error."""
import csv
import io
import json
import random

import pytest
from helpers import mutate, mutate_json

from timm_fan import InputError
from timm_fan.data import create_dataset


def can_be_read(data, folder):
    try:
        dataset = create_dataset(data, folder, 'val')
    except InputError as error:
        assert str(folder) in str(error), error
        return False
    for i in range(len(dataset)):
        _, target = dataset[i]
        assert set(target.tolist()) <= {0., 1., -1.}
    return True


@pytest.mark.filterwarnings('ignore')
def test_200_mutated_annotation_files(coco_folder, tmp_path):
    """COCO's JSON, changed as JSON or as bytes, and tables."""
    chance = random.Random(0)
    original = (coco_folder / 'annotations' / 'instances_val2014.json').read_text()
    data = tmp_path / 'coco'
    (data / 'annotations').mkdir(parents=True)
    (data / 'val2014').symlink_to(coco_folder / 'val2014')
    file = data / 'annotations' / 'instances_val2014.json'
    outcomes = [0, 0]
    for i in range(140):
        if i % 3:
            file.write_text(json.dumps(mutate_json(json.loads(original), chance)))
        else:
            file.write_bytes(mutate(original.encode(), chance))
        outcomes[can_be_read('coco2014', data)] += 1
    rows = [['image', 'labels']] + [[f'val2014/{i:06d}.jpg', 'cat;dog' if i % 2 else 'dog'] for i in range(13)]
    table = data / 'val.csv'
    for _ in range(60):
        stream = io.StringIO()
        csv.writer(stream).writerows(rows)
        table.write_bytes(mutate(stream.getvalue().encode(), chance))
        outcomes[can_be_read('table', data)] += 1
    assert min(outcomes) > 5  # both happen
