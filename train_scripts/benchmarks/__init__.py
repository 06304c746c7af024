import torch

from timm_fan import InputError


def check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device '{name}' is none of PyTorch's, give cpu or cuda.") from error
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise InputError(f'--device {name}: PyTorch sees no GPU here.')
