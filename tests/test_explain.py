import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from test_programs import run_here
from timm.data import create_transform, resolve_model_data_config

from timm_fan import InputError
from timm_fan.data import MultiLabelDataset, Sample, read_coco
from timm_fan.explain import activation_maps, attention_maps, box_mask, crop_box, localization, overlay
from timm_fan.models import save_model


def test_is_cam_where_the_head_is_average_pooling_and_linear():
    torch.manual_seed(0)
    model = timm.create_model('fan', backbone='test_resnet', embed_dim=16, num_classes=4, global_pool='avg').eval()
    image = torch.rand(3, 96, 96)
    with torch.inference_mode():
        features = model.forward_features(image[None])[0]
        cams = torch.einsum('chw,kc->khw', features, model.head.fc.weight).relu()
        index = cams.amax((1, 2)).argmax().item()
        wanted = cams[index]
        logits = model(image[None])[0]
    (cam,), found = activation_maps(model, image, [index])
    assert cam.shape == (96, 96) and torch.allclose(found, logits, atol=1e-6)
    assert cam.max() == 1 and cam.min() >= 0
    wanted = torch.nn.functional.interpolate(wanted[None, None], (96, 96), mode='bilinear')[0, 0]
    assert torch.allclose(cam, wanted / wanted.max(), atol=1e-4)


def test_nothing_speaks_for_the_class():
    model = timm.create_model('fan', backbone='test_resnet', embed_dim=16, num_classes=4).eval()
    torch.nn.init.zeros_(model.head.fc.weight)
    cams, _ = activation_maps(model, torch.rand(3, 64, 64), [0, 1])
    assert torch.equal(cams, torch.zeros(2, 64, 64))


def test_token_models_are_refused():
    with pytest.raises(InputError, match='no feature map'):
        activation_maps(timm.create_model('test_vit', num_classes=3).eval(), torch.rand(3, 160, 160), [0])


def test_maps_with_channels_last():
    """Swin's; with its average pooling and linear layer, Grad-CAM is CAM."""
    torch.manual_seed(0)
    model = timm.create_model(
        'swin_tiny_patch4_window7_224', depths=(1, 1, 1, 1), embed_dim=24, num_classes=3).eval()
    image = torch.rand(3, 224, 224)
    with torch.inference_mode():
        cams = torch.einsum('hwc,kc->khw', model.forward_features(image[None])[0], model.head.fc.weight).relu()
    index = cams.amax((1, 2)).argmax().item()
    (cam,), _ = activation_maps(model, image, [index])
    wanted = torch.nn.functional.interpolate(cams[index][None, None], (224, 224), mode='bilinear')[0, 0]
    assert torch.allclose(cam, wanted / wanted.max(), atol=1e-4)


def test_pictures_of_files_with_one_name(monkeypatch, tmp_path):
    model = timm.create_model('fan', backbone='test_resnet', embed_dim=16, num_classes=3)
    save_model(model, tmp_path / 'model', ['a', 'b', 'c'], dict(input_size=(3, 64, 64)))
    files = [tmp_path / name for name in ('one/photo.png', 'two/photo.png', 'two/photo-2.png')]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        Image.new('RGB', (70, 64)).save(file)
    assert run_here(monkeypatch, 'explain', tmp_path / 'model', *files, '--output', tmp_path / 'maps') == 0
    assert {p.name for p in (tmp_path / 'maps').iterdir()} == {'photo.png', 'photo-2.png', 'photo-2-2.png'}


def test_attention_is_that_of_the_layer():
    """Without the residual, attention times g(p4) is the CLN's output."""
    torch.manual_seed(0)
    model = timm.create_model(
        'fan', backbone='test_resnet', embed_dim=16, num_classes=4, cln_residual=False, joint=False,
        global_pool='avg').eval()
    torch.nn.init.normal_(model.cln.phi.weight)
    torch.nn.init.normal_(model.cln.theta.weight)
    image = torch.rand(3, 96, 64)
    with torch.inference_mode():
        p2, p3, p4 = model.frn(model.forward_maps(image[None]))
        attention = model.cln.attention(p2, p3)
        attended = (attention @ model.cln.g(p4).flatten(2).transpose(1, 2)).transpose(1, 2).view_as(p4)
        torch.testing.assert_close(attended, model.cln(p2, p3, p4))
        cam = (attended[0] * model.head.fc.weight[1][:, None, None]).sum(0).relu()
        wanted = ((cam / cam.sum()).flatten() @ attention[0]).view(cam.shape)
    (found,), logits = attention_maps(model, image, [1])
    assert found.shape == (96, 64) and found.max() == 1 and logits.shape == (4,)
    wanted = torch.nn.functional.interpolate(wanted[None, None], (96, 64), mode='bilinear')[0, 0]
    torch.testing.assert_close(found, wanted / wanted.max())
    with pytest.raises(InputError, match='no attention|none'):
        attention_maps(timm.create_model('fan', backbone='test_resnet', cln=False).eval(), image, [1])


def test_box_mask_counts_pixel_centres():
    mask = box_mask(np.array([[10., 0., 20., 30.], [90., 90., 50., 50.]]), (0, 0, 100, 100), (10, 10))
    wanted = torch.zeros(10, 10, dtype=torch.bool)
    wanted[:3, 1:3] = True
    wanted[9:, 9:] = True
    assert torch.equal(mask, wanted)
    # of a photograph of 120 x 100 the middle was seen, at half the size
    mask = box_mask(np.array([[0., 0., 30., 100.]]), (10, 0, 110, 100), (50, 50))
    assert mask[:, :10].all() and not mask[:, 10:].any()


class Bright(torch.nn.Module):
    """Its features are the image's red and green, one for each class."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward_features(self, x):
        return x[:, :2] * self.scale

    def forward_head(self, x):
        return x.mean((2, 3))


def test_pointing_game_by_hand(tmp_path):
    """Red is where class a's box is; green is not where class b's is; c has no box that can be seen."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[5:15, 15:25, 0] = 200
    pixels[25:35, 20:40, 1] = 200
    for i in range(2):
        Image.fromarray(pixels).save(tmp_path / f'{i}.png')
    boxes = [(15, 5, 10, 10), (20, 15, 11, 20), (0, 0, 5, 40)]
    samples = [
        Sample('0.png', (0, 1, 2), boxes, (0, 1, 2), size=(60, 40)),
        Sample('1.png', (0,), [(40, 30, 10, 10)], (0,), size=(60, 40))]
    config = dict(
        input_size=(3, 40, 40), crop_pct=1., crop_mode='center', interpolation='nearest', mean=(0.,) * 3, std=(1.,) * 3)
    dataset = MultiLabelDataset.from_samples(tmp_path, samples, ['a', 'b', 'c'])
    found = localization(Bright().eval(), dataset, config)
    assert found.labels == 3
    # class a: found on the first image, not on the second
    assert found.per_class['a'] == pytest.approx((0.5, 0.5))
    assert found.per_class['b'] == pytest.approx((1., 0.55))
    assert found.pointing == pytest.approx(0.75) and found.energy == pytest.approx(0.525)
    assert found.centre == pytest.approx((0 + 1) / 2) and found.area == pytest.approx((100 + 220) / 2 / 1600)
    assert localization(Bright().eval(), dataset, config, [1]).pointing == 0
    with pytest.raises(InputError, match='No label'):
        localization(Bright().eval(), MultiLabelDataset.from_samples(
            tmp_path, [Sample('0.png', (2,), [(0, 0, 5, 40)], (2,), size=(60, 40))], ['a', 'b', 'c'],
            create_transform(**config)), config)
    with pytest.raises(InputError, match='needs boxes'):
        localization(Bright().eval(), MultiLabelDataset.from_samples(
            tmp_path, [Sample('0.png', (0,))], ['a'], create_transform(**config)), config)


@pytest.fixture(scope='module')
def saved(coco_folder, tmp_path_factory):
    """A FAN and its bare backbone, untrained."""
    names = read_coco(coco_folder, 'val2014').class_names
    folders = []
    for kwargs in (dict(embed_dim=16), dict(frn=False, cln=False)):
        model = timm.create_model('fan', backbone='test_resnet', num_classes=len(names), **kwargs)
        folders.append(tmp_path_factory.mktemp('models') / 'model')
        config = resolve_model_data_config(model, args=dict(img_size=64))
        save_model(model, folders[-1], names, config)
    return folders


def test_program_draws_and_measures(monkeypatch, capsys, saved, coco_folder, tmp_path):
    options = ['--beside', saved[1], '--data', 'coco2014', '--data-dir', coco_folder, '--num-images', '2']
    assert run_here(monkeypatch, 'explain', saved[0], *options, '--output', tmp_path / 'maps') == 0
    assert sorted(p.name for p in (tmp_path / 'maps').iterdir()) == ['000000.png', '000012.png', 'localization.json']
    records = json.loads((tmp_path / 'maps' / 'localization.json').read_text())
    assert [r['model'] for r in records] == [str(folder) for folder in saved]
    assert all(0 <= r['pointing'] <= 1 and 0 < r['labels'] for r in records)
    assert records[0]['area'] == records[1]['area']
    assert capsys.readouterr().out.count('pointing game') == 2

    photo = coco_folder / 'val2014' / '3.jpg'
    options = ['--labels', 'tree', '--maps', 'attention', '--output', tmp_path / 'one']
    assert run_here(monkeypatch, 'explain', saved[0], photo, *options) == 0
    assert Image.open(tmp_path / 'one' / '3.png').width > 300


def test_unreadable_images_are_left_out(monkeypatch, capsys, saved, coco_folder, tmp_path):
    data = shutil.copytree(coco_folder, tmp_path / 'coco')
    (data / 'val2014' / '0.jpg').write_bytes(b'')
    options = ['--data', 'coco2014', '--data-dir', data, '--num-images', '2', '--output', tmp_path / 'maps']
    assert run_here(monkeypatch, 'explain', saved[0], *options) == 0
    assert sorted(p.name for p in (tmp_path / 'maps').iterdir()) == ['000012.png', 'localization.json']
    assert '0.jpg' in capsys.readouterr().out


def test_without_boxes_there_are_pictures_only(monkeypatch, capsys, saved, coco_folder, tmp_path):
    name = read_coco(coco_folder, 'val2014').class_names[0]
    (coco_folder / 'labels_val.csv').write_text(f'image,labels\nval2014/3.jpg,{name}\n')
    options = ['--data', 'table:labels_{split}.csv', '--data-dir', coco_folder, '--output', tmp_path / 'maps']
    assert run_here(monkeypatch, 'explain', saved[0], *options) == 0
    assert [p.name for p in (tmp_path / 'maps').iterdir()] == ['000000.png']
    assert 'no boxes in table:' in capsys.readouterr().out


def test_mistakes_of_the_program(monkeypatch, capsys, saved, coco_folder, tmp_path):
    photo = coco_folder / 'val2014' / '3.jpg'
    (tmp_path / 'broken.jpg').write_bytes(b'')
    for options, words in (
            ([saved[0]], 'image files or --data'), ([saved[0], photo, '--labels', 'cat'], "no label 'cat'"),
            ([saved[1], photo, '--maps', 'attention'], 'no attention|Only a FAN'),
            ([saved[0], tmp_path / 'none.jpg'], 'none.jpg'), ([saved[0], tmp_path / 'broken.jpg'], 'broken.jpg'),
            ([tmp_path, photo], 'config.json'), ([saved[0], photo, '--device', 'nothing'], "--device 'nothing'")):
        assert run_here(monkeypatch, 'explain', *options, '--output', tmp_path / 'maps') == 2
        error = capsys.readouterr().err
        assert any(word in error for word in words.split('|')) and 'Traceback' not in error


@pytest.mark.parametrize('size', [(200, 120), (120, 200), (97, 97)])
@pytest.mark.parametrize('mode, pct', [('center', 0.8), ('center', 1.), ('squash', 1.)])
def test_crop_box_is_what_the_transform_shows(size, mode, pct):
    """A photograph whose colours are its coordinates tells where the transform looked."""
    width, height = size
    photo = Image.new('RGB', size)
    photo.putdata([(x, y, 0) for y in range(height) for x in range(width)])
    config = dict(
        input_size=(3, 64, 64), crop_pct=pct, crop_mode=mode, interpolation='bilinear', mean=(0.,) * 3, std=(1.,) * 3)
    seen = 255 * create_transform(**config)(photo)
    left, top, right, bottom = crop_box(size, config)
    step = (right - left) / 64
    assert seen[0, 32, 0] == pytest.approx(left + step / 2 - 0.5, abs=1 + step / 2)
    assert seen[0, 32, -1] == pytest.approx(right - step / 2 - 0.5, abs=1 + step / 2)
    assert seen[1, 0, 32] == pytest.approx(top, abs=1.5 + step)
    assert seen[1, -1, 32] == pytest.approx(bottom, abs=1.5 + step)


def test_overlay_dims_what_was_not_seen_and_colours_the_class():
    photo = Image.new('RGB', (100, 60), (100, 100, 100))
    cam = torch.zeros(64, 64)
    cam[:, 40:] = 1
    picture = overlay(photo, cam, (20, 0, 80, 60))
    assert picture.size == photo.size
    assert picture.getpixel((5, 30)) == (45, 45, 45)
    assert picture.getpixel((25, 30)) == (100, 100, 100)
    red, green, blue = picture.getpixel((75, 30))
    assert red > 180 and red > green + 60 and red > blue + 60
