"""The heads of other methods, on shapes and on cases computed by hand."""
import math

import numpy as np
import pytest
import timm
import torch
from timm.layers.ml_decoder import TransformerDecoderLayerOptimal

from timm_fan import InputError
from timm_fan.layers import CSRA, HEADS, ClassMax, MLDecoder, Query2Label, set_classifier_bias
from timm_fan.layers.query2label import sine_position


def bare(head, **kwargs):
    """A head on the plain backbone."""
    return timm.create_model('fan', backbone='test_resnet', num_classes=7, frn=False, cln=False, head=head, **kwargs)


@pytest.mark.parametrize('head', HEADS)
def test_shapes_gradients_and_reset(head):
    model = bare(head).train()
    x = torch.randn(2, 3, 97, 131)
    assert model.forward_features(x).shape == (2, model.num_features, 4, 5)
    logits = model(x)
    assert logits.shape == (2, 7) and logits.isfinite().all()
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.reset_classifier(0, 'max')
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.get_classifier() is model.head.fc
    assert timm.create_model('fan', backbone='test_resnet', num_classes=5, head=head)(x).shape == (2, 5)


@pytest.mark.parametrize('name', ['test_vit', 'vgg11', 'levit_128s', 'deit_tiny_distilled_patch16_224'])
def test_every_kind_of_classifier_can_start_at_a_prior(name):
    """A linear layer, one in a larger head, one after a norm, and two of them."""
    model = timm.create_model(name, num_classes=3)
    prior = torch.tensor([0.1, 0.5, 0.01])
    classifier = model.get_classifier()
    set_classifier_bias(classifier, prior.logit())
    for module in classifier if isinstance(classifier, (tuple, list)) else [classifier]:
        bias = next(p for n, p in module.named_parameters() if n in ('bias', 'linear.bias'))
        assert torch.allclose(bias.sigmoid(), prior)


def test_a_classifier_without_bias_is_unchanged():
    model = bare('csra')
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_classifier(torch.full((7,), 0.1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('prior', [torch.tensor(0.1), torch.full((6,), 0.1), torch.tensor([0.1] * 6 + [1.])])
def test_a_prior_of_another_size_or_range_is_refused(prior):
    with pytest.raises(InputError, match='`prior` must be 7 probabilities strictly between 0 and 1'):
        bare('class_max').init_classifier(prior)


def test_wrong_names_and_arguments_are_refused():
    known = "'linear', 'class_max', 'csra', 'ml_decoder', 'query2label'"
    with pytest.raises(InputError, match=f"`head` must be {known}, got 'mlp'"):
        bare('mlp')
    with pytest.raises(InputError, match='`num_heads` of CSRA must be one of 1, 2, 4, 6, 8, got 3'):
        bare('csra', head_args=dict(num_heads=3))
    with pytest.raises(TypeError, match='no_such'):
        bare('csra', head_args=dict(no_such=1))


def test_class_max_by_hand():
    """Two positions and two classes, with the scores 3 and 1, 0 and -4."""
    head = ClassMax(2, 2, lam=0.5)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1., 0.], [0., 2.]]))
        head.bias.copy_(torch.tensor([0.5, -1.]))
    x = torch.tensor([[[[3., 1.]], [[0., -2.]]]])  # (1, 2, 1, 2)
    torch.testing.assert_close(head(x), torch.tensor([[2. + 1.5 + 0.5, -2. + 0. - 1.]]))


def test_class_max_without_the_maximum_is_average_pooling_and_a_linear_layer():
    head, x = ClassMax(5, 3, lam=0.), torch.randn(2, 5, 4, 6)
    torch.testing.assert_close(head(x), torch.nn.functional.linear(x.mean(dim=(2, 3)), head.weight, head.bias))


def test_csra_by_hand():
    """Two positions and one class, with the scores 3 and 1 in the first head, 7 and -2 in the second."""
    head = CSRA(2, 1, num_heads=2, lam=0.5)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[[10., 0.]], [[0., 0.1]]]))  # divided by their norms: (1, 0) and (0, 1)
    x = torch.tensor([[[[3., 1.]], [[7., -2.]]]])  # (1, 2, 1, 2)
    share = math.exp(3) / (math.exp(3) + math.exp(1))
    attended = share * 3 + (1 - share) * 1
    assert head(x).item() == pytest.approx((2 + 0.5 * attended) + (2.5 + 0.5 * 7), rel=1e-6)


def test_ml_decoder_is_timms_layer_and_a_loop_over_groups():
    torch.manual_seed(0)
    head = MLDecoder(6, 7, dim=16, num_groups=3).eval()
    layer = TransformerDecoderLayerOptimal(16, nhead=8, dim_feedforward=2048).eval()
    pairs = dict(
        norm1=head.norm1, norm2=head.norm2, norm3=head.norm3, linear1=head.mlp[0], linear2=head.mlp[3],
        multihead_attn=head.attn)
    for name, module in pairs.items():
        getattr(layer, name).load_state_dict(module.state_dict())
    x = torch.randn(2, 6, 3, 4)
    memory = head.proj(x.flatten(2).transpose(1, 2)).relu()
    h = layer(head.query[:, None].expand(-1, 2, -1), memory.transpose(0, 1)).transpose(0, 1)
    expected = torch.cat([h[:, g] @ head.weight[g] for g in range(3)], dim=1)[:, :7] + head.bias
    torch.testing.assert_close(head(x), expected)
    assert head.weight.shape == (3, 16, 3)


def test_query2label_of_uniform_attention_by_hand():
    """With keys of zero, every query attends to the mean, and feed-forward layers of zero leave only the norms."""
    torch.manual_seed(0)
    head = Query2Label(8, 3, num_heads=2).eval()
    with torch.no_grad():
        for layer in (head.encoder, *head.decoder):
            layer.attn.in_proj_weight[:16] = 0
            layer.mlp[3].weight.zero_()
            layer.mlp[3].bias.zero_()
    x = torch.randn(1, 8, 2, 3)

    def norm(v):
        return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)

    def attend(layer, memory):
        weight, bias = layer.attn.in_proj_weight[16:].detach().numpy(), layer.attn.out_proj
        value = memory.mean(0) @ weight.T
        return value @ bias.weight.detach().numpy().T + bias.bias.detach().numpy()

    memory = head.proj(x).flatten(2)[0].T.detach().numpy()
    memory = norm(norm(memory + attend(head.encoder, memory)))
    h = np.zeros(8)
    for layer in head.decoder:
        h = norm(norm(h + attend(layer, memory)))
    expected = head.weight.detach().numpy() @ h + head.bias.detach().numpy()
    np.testing.assert_allclose(head(x)[0].detach().numpy(), expected, atol=1e-4)


def test_positions_differ():
    position = sine_position(3, 5, 16)
    assert position.shape == (15, 16)
    assert torch.pdist(position).min() > 0.1
    # the first half depends on the row only
    assert torch.equal(position[5:10, :8], position[5, :8].expand(5, -1))


def test_sizes_of_the_papers():
    """The code of the authors has 43.2, 49.7 and 198.1 M parameters, over ResNet-101 with 80 classes."""
    millions = []
    for head in ('csra', 'ml_decoder', 'query2label'):
        model = timm.create_model(
            'fan', backbone='resnet101', num_classes=80, frn=False, cln=False, head=head, device='meta')
        millions.append(sum(p.numel() for p in model.parameters()) / 1e6)
    assert millions == pytest.approx([43.2, 49.7, 198.1], abs=0.1)
