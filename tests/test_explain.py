import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

from timm_fan import InputError
from timm_fan.explain import class_activation_map, crop_box, overlay


def test_is_cam_where_the_head_is_average_pooling_and_linear():
    torch.manual_seed(0)
    model = timm.create_model('fan', backbone='test_resnet', embed_dim=16, num_classes=4).eval()
    image = torch.rand(3, 96, 96)
    with torch.inference_mode():
        features = model.forward_features(image[None])[0]
        wanted = torch.einsum('chw,c->hw', features, model.head.fc.weight[2]).relu()
        logits = model(image[None])[0]
    cam, found = class_activation_map(model, image, 2)
    assert cam.shape == (96, 96) and torch.allclose(found, logits, atol=1e-6)
    assert cam.max() == 1 and cam.min() >= 0
    wanted = torch.nn.functional.interpolate(wanted[None, None], (96, 96), mode='bilinear')[0, 0]
    assert torch.allclose(cam, wanted / wanted.max(), atol=1e-4)


def test_nothing_speaks_for_the_class():
    model = timm.create_model('fan', backbone='test_resnet', embed_dim=16, num_classes=4).eval()
    torch.nn.init.zeros_(model.head.fc.weight)
    cam, _ = class_activation_map(model, torch.rand(3, 64, 64), 0)
    assert torch.equal(cam, torch.zeros(64, 64))


def test_token_models_are_refused():
    with pytest.raises(InputError, match='no feature map'):
        class_activation_map(timm.create_model('test_vit', num_classes=3).eval(), torch.rand(3, 160, 160), 0)


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
