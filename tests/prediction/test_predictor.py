import pytest
import timm
import torch
from helpers import LABELS, photo, save_small_fan
from PIL import Image, ImageOps
from timm.data import create_transform

import timm_fan
from timm_fan import InputError
from timm_fan.data import find_images
from timm_fan.models import is_model, load_model, save_model, save_thresholds
from timm_fan.prediction import Predictor


@pytest.fixture
def model_folder(tmp_path):
    return save_small_fan(tmp_path / 'model')


@pytest.mark.parametrize('mode', ['center', 'squash', 'border'])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'nearest'])
def test_probabilities_are_those_of_timm(model_folder, mode, interpolation):
    """The transform of timm resizes PIL images, ours resizes tensors."""
    model = load_model(model_folder)
    with torch.no_grad():
        model.head.fc.weight.mul_(50)
    model.pretrained_cfg.update(crop_mode=mode, interpolation=interpolation)
    predictor = Predictor(model)
    photos = [photo(320, 240), ImageOps.mirror(photo(320, 240)), photo(97, 150), photo(64, 64)]
    transform = create_transform(**predictor.data_config)
    with torch.inference_mode():
        expected = model(torch.stack([transform(p) for p in photos])).sigmoid()
    assert (expected.amax(dim=0) - expected.amin(dim=0)).max() > 0.1  # the pixels matter
    found = predictor.probabilities(photos)
    assert found.dtype == torch.float32 and found.shape == (4, 3)
    assert (found - expected).abs().max() < 0.02
    for p, row in zip(photos, found):
        torch.testing.assert_close(predictor.probabilities([p])[0], row, atol=1e-4, rtol=0)


def test_labels_are_above_the_threshold_of_their_class(model_folder):
    save_thresholds(model_folder, [0.3, 0.5, 0.7], 'class-f1')
    predictor = Predictor.load(model_folder)
    assert predictor.names == LABELS and predictor.thresholds.tolist() == pytest.approx([0.3, 0.5, 0.7])
    probabilities = torch.tensor([0.4, 0.6, 0.65])
    assert [name for name, _ in predictor.labels(probabilities)] == ['dog', 'cat']
    assert predictor.labels(torch.tensor([0.2, 0.5, 0.7])) == []
    (label,) = predictor.labels(torch.tensor([0.2, 0.5, 0.75]))
    assert label.name == 'person' and label.probability == 0.75


def test_without_saved_thresholds_labels_are_above_a_half(model_folder):
    predictor = Predictor.load(model_folder)
    assert predictor.thresholds.tolist() == [0.5, 0.5, 0.5]
    assert [name for name, _ in predictor.labels(torch.tensor([0.4, 0.6, 0.65]))] == ['person', 'dog']


def test_threshold_and_topk_replace_those_of_the_model(model_folder):
    save_thresholds(model_folder, [0.3, 0.5, 0.7], 'class-f1')
    predictor = Predictor.load(model_folder)
    probabilities = torch.tensor([0.4, 0.6, 0.65])
    assert [name for name, _ in predictor.labels(probabilities, threshold=0.62)] == ['person']
    assert [name for name, _ in predictor.labels(probabilities, topk=2)] == ['person', 'dog']
    assert [name for name, _ in predictor.labels(torch.zeros(3), topk=5)] == LABELS
    assert [name for name, _ in predictor.labels(probabilities, threshold=0.9, topk=1)] == ['person']


def test_class_indices_are_the_names_of_a_model_without_names():
    predictor = Predictor(timm.create_model('test_resnet', num_classes=3).eval())
    assert predictor.names == ['0', '1', '2']


def test_nan_is_an_input_error(model_folder):
    model = load_model(model_folder)
    with torch.no_grad():
        model.head.fc.weight[1] = float('nan')
    save_model(model, model_folder, LABELS, dict(input_size=(3, 64, 64)))
    with pytest.raises(InputError, match='The model gives NaN. Its weights are damaged.'):
        Predictor.load(model_folder).probabilities([photo()])


def test_predict_names_the_labels_of_files_and_images(model_folder, tmp_path):
    photos = [photo(320, 240), ImageOps.mirror(photo(320, 240)), photo(97, 150)]
    files = []
    for i, image in enumerate(photos):
        files.append(tmp_path / f'{i}.png')
        image.save(files[-1])
    predictor = Predictor.load(model_folder)
    expected = [predictor.labels(row, threshold=0.01) for row in predictor.probabilities(photos)]
    for images in (files, list(map(str, files)), photos, photos[:1] + files[1:]):
        found = timm_fan.predict(images, model_folder, threshold=0.01, batch_size=2)
        for labels, wanted in zip(found, expected, strict=True):
            assert [name for name, _ in labels] == [name for name, _ in wanted]
            assert [p for _, p in labels] == pytest.approx([p for _, p in wanted], abs=1e-5)
    assert timm_fan.predict(photos[0], predictor.model, threshold=0.01) == timm_fan.predict(
        files[0], model_folder, threshold=0.01)
    assert timm_fan.predict([], model_folder) == []


def test_predict_decodes_pil_images_as_files(model_folder, tmp_path):
    """Rotated by EXIF, transparent pixels on white, and the image itself is left as it is."""
    exif = Image.Exif()
    exif[274] = 6
    photo(120, 80).save(tmp_path / 'rotated.jpg', exif=exif)
    transparent = photo(90, 70).convert('RGBA')
    transparent.putalpha(Image.new('L', transparent.size, 100))
    transparent.save(tmp_path / 'transparent.png')
    for name in ('rotated.jpg', 'transparent.png'):
        with Image.open(tmp_path / name) as image:
            size = image.size
            assert timm_fan.predict(image, model_folder, topk=3) == timm_fan.predict(
                tmp_path / name, model_folder, topk=3)
            assert image.size == size


def test_predict_evaluates_a_model_that_is_in_training_mode(model_folder):
    model = load_model(model_folder)
    expected = timm_fan.predict(photo(), model, topk=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert timm_fan.predict(photo(), model.train(), topk=3) == expected
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('name, expected', [
    ('hf-hub:me/model', True), ('local-dir:runs/a/best', True), ('fan_resnet101', True), ('resnet50.a1_in1k', True),
    ('resnet50.jpg', False), ('C:\\photos\\a.jpg', False), ('none.jpg', False), ('runs/none', False)])
def test_names_of_models_and_of_images(name, expected):
    assert is_model(name) is expected


def test_folders_of_models_and_of_images(model_folder, tmp_path):
    (tmp_path / 'photos' / 'a').mkdir(parents=True)
    photo().save(tmp_path / 'photos' / 'a' / 'b.jpg')
    photo().save(tmp_path / 'photos' / 'config.png')
    (tmp_path / 'stopped').mkdir()
    (tmp_path / 'stopped' / 'config.yaml').write_text('epochs: 1')
    assert is_model(model_folder) and is_model(model_folder.parent) and is_model(tmp_path / 'stopped')
    assert not is_model(tmp_path / 'photos') and not is_model(tmp_path / 'photos' / 'a' / 'b.jpg')


def test_predict_names_a_file_that_it_cannot_read(model_folder, tmp_path):
    (tmp_path / 'a.jpg').write_bytes(b'no image')
    with pytest.raises(InputError, match='unreadable image .*a.jpg'):
        timm_fan.predict([photo(), tmp_path / 'a.jpg'], model_folder)


def test_predict_says_how_to_list_the_images_of_a_folder(model_folder, tmp_path):
    (tmp_path / 'photos').mkdir()
    photo().save(tmp_path / 'photos' / 'a.png')
    with pytest.raises(InputError, match=r"photos is a folder. timm_fan.data.find_images\(\['.*photos'\]\) lists its"):
        timm_fan.predict(tmp_path / 'photos', model_folder)
    assert len(timm_fan.predict(find_images([tmp_path / 'photos']), model_folder)) == 1
