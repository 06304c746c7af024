"""`timm_fan.evaluate`, which takes a model or its source, and a data set or its address."""
import pytest
import torch

import timm_fan
from timm_fan import InputError
from timm_fan.data import read_coco
from timm_fan.metrics import evaluate_logits, format_scores
from timm_fan.models import save_thresholds
from timm_fan.prediction import Predictor


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')


def test_models_and_sources_data_sets_and_addresses(run_folder, coco_folder):
    dataset = timm_fan.create_dataset('coco2014', coco_folder, 'val')
    model = timm_fan.load_model(run_folder)
    found = timm_fan.evaluate(model, dataset, batch_size=5)
    assert dataset.transform is None and found.dataset.class_names == dataset.class_names
    probabilities = Predictor(model).probabilities([dataset.load(i) for i in range(len(dataset))])
    torch.testing.assert_close(found.logits.sigmoid(), probabilities, atol=1e-4, rtol=0)
    assert found.scores == evaluate_logits(found.logits, dataset.targets(), dataset.class_names)
    assert timm_fan.evaluate(str(run_folder / 'best'), 'coco2014', coco_folder).scores.mAP == found.scores.mAP
    train = timm_fan.evaluate(run_folder, 'coco2014', coco_folder, split='train', threshold=0.3)
    assert train.scores.num_images == 34 and train.scores.per_class[0].threshold == 0.3


def test_thresholds_are_those_of_the_model(run_folder, coco_folder, tmp_path):
    for file in (run_folder / 'best').iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_thresholds(tmp_path, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 'class-f1')
    found = timm_fan.evaluate(tmp_path, 'coco2014', coco_folder)
    assert [c.threshold for c in found.scores.per_class] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


def test_a_data_set_of_other_classes_is_refused(run_folder, coco_folder):
    dataset = read_coco(coco_folder, 'val2014')
    dataset.class_names = dataset.class_names[::-1]
    with pytest.raises(InputError, match="Class 0 is '.*' in the model, but '.*' in the data"):
        timm_fan.evaluate(run_folder, dataset)


def test_an_evaluation_is_readable(evaluation):
    scores = evaluation.scores
    assert str(evaluation) == format_scores(scores)
    assert repr(evaluation) == (
        f'<Evaluation: mAP {100 * scores.mAP:.2f}, CF1 {100 * scores.all.CF1:.2f}, OF1 {100 * scores.all.OF1:.2f} on 12'
        ' images, 6 classes>')
