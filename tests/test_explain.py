import numpy as np
import pytest
import timm
import torch
from PIL import Image

from timm_fan import InputError
from timm_fan.data import MultiLabelDataset, Sample
from timm_fan.explain import activation_maps, attention_maps, box_mask, localization, overlay
from timm_fan.prediction import Predictor


def test_map_is_cam_if_the_head_is_average_pooling_and_linear():
    torch.manual_seed(0)
    model = timm.create_model('fan', backbone='test_resnet', embed_dim=16, num_classes=4, head='linear').eval()
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


def test_map_is_zero_without_evidence():
    model = timm.create_model('fan', backbone='test_resnet', embed_dim=16, num_classes=4).eval()
    torch.nn.init.zeros_(model.head.fc.weight)
    cams, _ = activation_maps(model, torch.rand(3, 64, 64), [0, 1])
    assert torch.equal(cams, torch.zeros(2, 64, 64))


def test_models_without_a_feature_map_are_refused():
    with pytest.raises(InputError, match='VisionTransformer has no feature map to explain, but features of shape'):
        activation_maps(timm.create_model('test_vit', num_classes=3).eval(), torch.rand(3, 160, 160), [0])


def test_maps_with_channels_last():
    """Swin has such maps. With its average pooling and linear layer, Grad-CAM is CAM."""
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


@pytest.fixture
def cln_model():
    """A FAN whose logits depend on the output of its CLN alone, and whose attention is not uniform."""
    torch.manual_seed(0)
    model = timm.create_model(
        'fan', backbone='test_resnet', embed_dim=16, num_classes=4, cln=True, cln_residual=False, joint=False,
        head='linear').eval()
    for layer in (model.cln.phi, model.cln.theta, model.cln.g, model.head.fc):
        torch.nn.init.normal_(layer.weight)
    return model


def test_attention_is_weighed_by_the_gradient_of_the_label(cln_model):
    """The gradient of the attention by autograd, in the CLN as Eq. 5 has it."""
    image = torch.rand(3, 96, 64)
    image[:, 32:] = 0
    with torch.no_grad():
        p2, p3, p4 = cln_model.frn(cln_model.forward_maps(image[None]))
        attention, values = cln_model.cln.attention(p2, p3), cln_model.cln.g(p4).flatten(2).transpose(1, 2)
    attention.requires_grad_()
    attended = (attention @ values).transpose(1, 2).view_as(p4)
    torch.testing.assert_close(attended, cln_model.cln(p2, p3, p4))
    logits = cln_model.forward_head(attended)[0]
    found, found_logits = attention_maps(cln_model, image, [1, 3])
    torch.testing.assert_close(found_logits, logits.detach())
    assert found.amax((1, 2)).tolist() == [1, 1]
    for index, cam in zip((1, 3), found):
        gradient, = torch.autograd.grad(logits[index], attention, retain_graph=True)
        wanted = (gradient * attention).relu().sum(1).view(1, 1, *p4.shape[2:]).detach()
        wanted = torch.nn.functional.interpolate(wanted, (96, 64), mode='bilinear')[0, 0]
        torch.testing.assert_close(cam, wanted / wanted.max())


def test_labels_have_different_attention(cln_model):
    """Also where each position attends to all others alike."""
    torch.nn.init.zeros_(cln_model.cln.theta.weight)
    image = torch.rand(3, 96, 64)
    image[:, 32:] = 0
    first, second = attention_maps(cln_model, image, [1, 3])[0]
    assert first.max() == second.max() == 1 and (first - second).abs().max() > 0.5


def test_attention_requires_a_cln():
    model = timm.create_model('fan', backbone='test_resnet', cln=False).eval()
    with pytest.raises(InputError, match='Only a FAN with a CLN has attention to show, this model has none'):
        attention_maps(model, torch.rand(3, 96, 64), [1])


def test_box_mask_counts_pixel_centres():
    mask = box_mask(np.array([[10., 0., 20., 30.], [90., 90., 50., 50.]]), (0, 0, 100, 100), (10, 10))
    wanted = torch.zeros(10, 10, dtype=torch.bool)
    wanted[:3, 1:3] = True
    wanted[9:, 9:] = True
    assert torch.equal(mask, wanted)
    # the network saw the middle of a photograph of 120 x 100 pixels, at half the size
    mask = box_mask(np.array([[0., 0., 30., 100.]]), (10, 0, 110, 100), (50, 50))
    assert mask[:, :10].all() and not mask[:, 10:].any()


class RedAndGreen(torch.nn.Module):
    """The red and the green of the image are its features, one for each of the first two classes."""
    num_classes = 3
    pretrained_cfg = dict(
        input_size=(3, 40, 40), crop_pct=1., crop_mode='center', interpolation='nearest', mean=(0.,) * 3, std=(1.,) * 3)

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward_features(self, x):
        return x[:, :2] * self.scale

    def forward_head(self, x):
        return x.mean((2, 3))


def test_pointing_game_by_hand(tmp_path):
    """Red is where the box of class a is, green is not where that of b is, and no box of c is visible."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[5:15, 15:25, 0] = 200
    pixels[25:35, 20:40, 1] = 200
    for i in range(2):
        Image.fromarray(pixels).save(tmp_path / f'{i}.png')
    boxes = [(15, 5, 10, 10), (20, 15, 11, 20), (0, 0, 5, 40)]
    samples = [
        Sample('0.png', (0, 1, 2), boxes, (0, 1, 2), size=(60, 40)),
        Sample('1.png', (0,), [(40, 30, 10, 10)], (0,), size=(60, 40))]
    predictor = Predictor(RedAndGreen().eval())
    dataset = MultiLabelDataset.from_samples(tmp_path, samples, ['a', 'b', 'c'])
    found = localization(predictor, dataset)
    assert found.labels == 3
    # class a: found on the first image, not on the second
    assert found.per_class['a'] == pytest.approx((0.5, 0.5))
    assert found.per_class['b'] == pytest.approx((1., 0.55))
    assert found.pointing == pytest.approx(0.75) and found.energy == pytest.approx(0.525)
    assert found.centre == pytest.approx((0 + 1) / 2) and found.area == pytest.approx((100 + 220) / 2 / 1600)
    assert localization(predictor, dataset, [1]).pointing == 0
    hidden = [Sample('0.png', (2,), [(0, 0, 5, 40)], (2,), size=(60, 40))]
    with pytest.raises(InputError, match='No box of a label is in the part of these images that the model sees'):
        localization(predictor, MultiLabelDataset.from_samples(tmp_path, hidden, ['a', 'b', 'c']))
    without_boxes = [Sample('0.png', (0,))]
    with pytest.raises(InputError, match='The pointing game requires boxes, and this data set has none'):
        localization(predictor, MultiLabelDataset.from_samples(tmp_path, without_boxes, ['a']))


def test_overlay_dims_what_the_network_did_not_see_and_colours_the_class():
    photo = Image.new('RGB', (100, 60), (100, 100, 100))
    cam = torch.zeros(64, 64)
    cam[:, 40:] = 1
    picture = overlay(photo, cam, (20, 0, 80, 60))
    assert picture.size == photo.size
    assert picture.getpixel((5, 30)) == (45, 45, 45)
    assert picture.getpixel((25, 30)) == (100, 100, 100)
    red, green, blue = picture.getpixel((75, 30))
    assert red > 180 and red > green + 60 and red > blue + 60
