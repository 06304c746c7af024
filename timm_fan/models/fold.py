"""Batch norm folded into the convolutions before it, for inference."""
from typing import List, Sequence, Tuple

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


@torch.no_grad()
def fold_batch_norm(model: nn.Module, input_size: Sequence[int]) -> int:
    """Fold each batch norm into the convolution whose output it takes; the model then serves inference only.

    Which belong together is found by running the model once on noise, and the logits are compared: a network that uses
    a convolution's output in another place too is left as it was.

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
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *input_size, generator=generator).to(parameter)
    expected = model(image)
    modules = dict(model.named_modules())
    pairs = [(c, n) for c, n in _pairs(model, image) if modules[n].track_running_stats]
    for conv, norm in pairs:
        old = modules[norm]
        rest = nn.Sequential(old.drop, old.act) if isinstance(old, BatchNormAct2d) else nn.Identity()
        model.set_submodule(conv, fuse_conv_bn_eval(modules[conv], old))
        model.set_submodule(norm, rest)
    scale = expected.abs().max().clamp_min(1e-6)
    if (model(image) - expected).abs().max() > 1e-2 * scale:
        for pair in pairs:
            for name in pair:
                model.set_submodule(name, modules[name])
        return 0
    return len(pairs)
