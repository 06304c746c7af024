"""Batch norm folded into the convolutions before it, for inference."""
from typing import Dict, List, Sequence, Tuple

import torch
import torch.nn as nn
from timm.layers import BatchNormAct2d, Conv2dSame
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ['fold_batch_norm']

_CONVS = (nn.Conv2d, Conv2dSame)  # not their subclasses: some change the weight as they run
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)


def _pairs(model: nn.Module, image: torch.Tensor) -> List[Tuple[str, str]]:
    """Names of convolutions and of the batch norms that take what they give, as they ran."""
    outputs, pairs, calls = {}, [], {}
    hooks = []

    def after_conv(name):
        def hook(module, args, output):
            calls[name] = calls.get(name, 0) + 1
            outputs[id(output)] = (name, output)  # held, so that no other tensor gets its id
        return hook

    def before_norm(name):
        def hook(module, args):
            calls[name] = calls.get(name, 0) + 1
            conv, _ = outputs.get(id(args[0]), (None, None))
            if conv is not None:
                pairs.append((conv, name))
        return hook

    for name, module in model.named_modules():
        if type(module) in _CONVS:
            hooks.append(module.register_forward_hook(after_conv(name)))
        elif type(module) in _NORMS:
            hooks.append(module.register_forward_pre_hook(before_norm(name)))
    try:
        model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if all(calls[name] == 1 for name in pair)]


def _fold(model: nn.Module, modules: Dict[str, nn.Module], pairs: Sequence[Tuple[str, str]]) -> None:
    for conv, norm in pairs:
        old = modules[norm]
        model.set_submodule(conv, fuse_conv_bn_eval(modules[conv], old))
        model.set_submodule(
            norm, nn.Sequential(old.drop, old.act) if isinstance(old, BatchNormAct2d) else nn.Identity())


def _unfold(model: nn.Module, modules: Dict[str, nn.Module], pairs: Sequence[Tuple[str, str]]) -> None:
    for name in (name for pair in pairs for name in pair):
        model.set_submodule(name, modules[name])


@torch.no_grad()
def fold_batch_norm(model: nn.Module, input_size: Sequence[int]) -> int:
    """Fold each batch norm into the convolution whose output it takes; the model then serves inference only.

    Which belong together is found by running the model on noise. A pair whose folding moves a logit by more than a
    thousandth of the largest, because the convolution's output is used in another place too, stays as it was.

    Args:
        model: In evaluation mode, changed in place.
        input_size: (C, H, W) of an image.

    Returns:
        How many were folded.

    Raises:
        ValueError: The model is in training mode.
    """
    if model.training:
        raise ValueError('fold_batch_norm takes a model in evaluation mode: call eval() first.')
    parameter = next(model.parameters())
    image = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0)).to(parameter)
    expected = model(image)
    tolerance = 1e-3 * expected.abs().max().clamp_min(1e-3)
    modules = dict(model.named_modules())
    pairs = [(c, n) for c, n in _pairs(model, image) if modules[n].track_running_stats]

    def agrees() -> bool:
        return bool((model(image) - expected).abs().max() <= tolerance)

    _fold(model, modules, pairs)
    if agrees():
        return len(pairs)
    _unfold(model, modules, pairs)
    kept = 0
    for pair in pairs:
        _fold(model, modules, [pair])
        if agrees():
            kept += 1
        else:
            _unfold(model, modules, [pair])
    return kept
