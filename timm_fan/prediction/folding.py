"""A model for predictions alone, in which BatchNorm takes no time."""
import copy
from collections import Counter
from typing import Any, Dict, List, Tuple

import torch
import torch.nn as nn
from timm.layers import BatchNormAct2d, Conv2dSame
from torch.nn.utils import fuse_conv_bn_weights

# others, such as those with standardized weights, compute their weights themselves
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode with each BatchNorm folded into the convolution right before it.

    Its logits are those of the model but for rounding. It is not for training, nor to be saved.

    Args:
        model: A timm model on the CPU.

    Returns:
        The copy. Without such a BatchNorm, or where the result of such a convolution has other uses, the model itself.
    """
    model = model.eval()
    if not any(type(module) in _NORMS for module in model.modules()):
        return model
    # the same in every process and run
    images = torch.randn(1, *model.pretrained_cfg['input_size'], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, pairs = _find_pairs(model, images)
        if not pairs:
            return model
        folded = copy.deepcopy(model)
        for conv, norm in pairs:
            _fold(folded, conv, norm)
        return folded if torch.allclose(folded(images), logits, rtol=1e-3, atol=1e-3) else model


def _find_pairs(model: nn.Module, images: torch.Tensor) -> Tuple[torch.Tensor, List[Tuple[str, str]]]:
    """Logits, and the names of convolutions and of the BatchNorm that their results go to, in one forward pass."""
    names = {module: name for name, module in model.named_modules() if type(module) in _CONVOLUTIONS + _NORMS}
    results: Dict[int, Tuple[nn.Module, torch.Tensor]] = {}  # with the tensor, whose id is taken as long as it lives
    calls: Counter[nn.Module] = Counter()
    pairs: List[Tuple[nn.Module, nn.Module]] = []

    def note(module: nn.Module, inputs: Tuple[Any, ...], output: torch.Tensor) -> None:
        calls[module] += 1
        if type(module) in _CONVOLUTIONS:
            results[id(output)] = module, output
        elif id(inputs[0]) in results:
            pairs.append((results[id(inputs[0])][0], module))

    hooks = [module.register_forward_hook(note) for module in names]
    logits = model(images)
    for hook in hooks:
        hook.remove()
    return logits, [
        (names[conv], names[norm]) for conv, norm in pairs
        if calls[conv] == calls[norm] == 1 and norm.running_mean is not None]


def _fold(model: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    parent, _, child = norm_name.rpartition('.')
    setattr(model.get_submodule(parent), child, rest)
