"""Where a result comes from: hardware, versions, revision, and the hash of the weights."""
import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, Optional, Union

import torch

from .version import __version__

_PACKAGES = ('torch', 'torchvision', 'timm', 'accelerate', 'numpy', 'pillow')


def file_sha256(file: Union[str, Path]) -> str:
    """SHA-256 of a file in hexadecimal, by which the Hub identifies a weights file."""
    with open(file, 'rb') as opened:
        return hashlib.file_digest(opened, 'sha256').hexdigest()


def _cpu_name() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        return next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git_revision() -> Optional[str]:
    """Commit of the checkout that contains this package, with `+` after it if files differ; None outside a checkout."""
    git = ['git', '-C', str(Path(__file__).parent)]
    options = dict(capture_output=True, encoding='utf-8', errors='replace', check=True)
    try:
        # an installed package may be inside another project's checkout
        subprocess.run([*git, 'ls-files', '--error-unmatch', Path(__file__).name], **options)
        head = subprocess.run([*git, 'rev-parse', 'HEAD'], **options).stdout.strip()
        changed = subprocess.run([*git, 'status', '--porcelain', '--untracked-files=no'], **options).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ('+' if changed.strip() else '')


def environment(device: Union[str, torch.device] = 'cpu', num_processes: int = 1) -> Dict[str, Any]:
    """Hardware, versions and git revision of this process.

    Args:
        device: Device of the computation.
        num_processes: Number of processes that share it.

    Returns:
        `hardware`, one line of text; `versions`, package -> version; `git_revision`, None outside a checkout.
    """
    if torch.device(device).type == 'cuda':
        hardware = f'{num_processes} x {torch.cuda.get_device_name(device)}'
    else:
        processes = f'{num_processes} process{"es" if num_processes > 1 else ""}'
        hardware = f'{os.cpu_count()} cores of {_cpu_name()}, {processes}'
    versions = dict(python=platform.python_version(), timm_fan=__version__)
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return dict(hardware=hardware, versions=versions, git_revision=_git_revision())
