import pytest
import timm
import torch
import torch.nn as nn

from timm_fan.models import fold_batch_norm


def with_statistics(model: nn.Module) -> nn.Module:
    """Fresh running statistics are 0 and 1, and the last convolutions of a block 0: a wrong folding could pass."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.any():
            module.weight.data.copy_(0.05 * torch.randn(module.weight.shape, generator=generator))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
            module.running_var.mul_(1 + torch.rand(module.running_var.shape, generator=generator))
    return model.eval()


def num_norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize('backbone', ['test_resnet', 'test_efficientnet', 'tf_efficientnet_lite0', 'vgg11_bn'])
def test_logits_stay(backbone):
    model = with_statistics(timm.create_model('fan', backbone=backbone, num_classes=5, embed_dim=16))
    x = torch.randn(2, 3, 96, 64)
    expected, norms = model(x), num_norms(model)
    assert norms and fold_batch_norm(model, (3, 64, 64)) == norms and num_norms(model) == 0
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-3)


def test_norms_of_concatenations_stay():
    model = with_statistics(timm.create_model('fan', backbone='densenet121', num_classes=5, embed_dim=16))
    x = torch.randn(1, 3, 64, 64)
    expected, norms = model(x), num_norms(model)
    assert 0 < fold_batch_norm(model, (3, 64, 64)) < norms
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('share', [1., 0.01])
def test_a_convolution_with_two_readers_is_left(share):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm0 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.conv, self.norm1 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(self.norm0(self.stem(x)))
            return (share * x + self.norm1(x)).mean((2, 3))

    model, x = with_statistics(Net()), torch.randn(1, 3, 8, 8)
    expected = model(x)
    assert fold_batch_norm(model, (3, 8, 8)) == 1
    assert isinstance(model.norm0, nn.Identity) and isinstance(model.norm1, nn.BatchNorm2d)
    torch.testing.assert_close(model(x), expected)


def test_a_model_in_training_is_refused():
    with pytest.raises(ValueError, match='eval'):
        fold_batch_norm(timm.create_model('fan', backbone='test_resnet'), (3, 64, 64))
