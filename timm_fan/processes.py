"""Devices, cores, signals and worker processes of a long run."""
import ctypes
import multiprocessing
import os
import signal
from typing import Any, Dict, Optional, Tuple

import torch

# from the one to prefer
DEVICES = ('cuda', 'mps', 'cpu')


def best_device() -> str:
    """The first of DEVICES that PyTorch can use."""
    if torch.cuda.is_available():
        return 'cuda'
    return 'mps' if torch.backends.mps.is_available() else 'cpu'


def available_cores() -> int:
    """Cores for this process, if all processes of a run on this machine get the same number."""
    processes = int(os.environ.get('LOCAL_WORLD_SIZE', 1))  # set by torchrun and accelerate launch
    cores = max(1, len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())
    return max(1, cores // processes)


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors. Otherwise it returns large ones to the system and fetches them again.

    As MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_ and MALLOC_ARENA_MAX=1 do, which have to be set before the start.
    Nothing happens with other C libraries.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl; Windows
        return
    # by their numbers in malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX
    for option, value in ((-4, 0), (-1, 2 ** 30), (-8, 1)):
        mallopt(option, value)


def _wanted_threads() -> Optional[int]:
    """OMP_NUM_THREADS, None where the user has not set it: torchrun and accelerate launch set it to 1 then."""
    threads = os.environ.get('OMP_NUM_THREADS')
    launched = not {'LOCAL_WORLD_SIZE', 'ACCELERATE_MIXED_PRECISION'}.isdisjoint(os.environ)
    return None if threads is None or launched and threads == '1' else torch.get_num_threads()


def prediction_cores(workers: Optional[int], device: str) -> Tuple[int, int]:
    """Processes that decode, and batches that are computed at the same time, see `predict_photos`.

    On a CPU, there are as many of both as cores: whichever is slower gets more of the cores. A batch is computed by one
    thread of PyTorch, which has no other to spin and wait for. OMP_NUM_THREADS sets the number of batches instead.

    Args:
        workers: Processes that are wanted, None for one per core.
        device: Type of the device.
    """
    cores = available_cores()
    workers = cores if workers is None else min(workers, cores)
    if device != 'cpu':
        return workers, 2
    threads = _wanted_threads() or cores
    torch.set_num_threads(1)
    keep_freed_memory()
    return workers, threads


def share_cores(workers: int) -> int:
    """Give each data loading process a core, and the other cores to the threads of PyTorch.

    Threads that share a core with another thread spin while they wait for each other, and slow training down several
    times. OMP_NUM_THREADS sets the number of threads instead.

    Args:
        workers: Data loading processes that are wanted for this training process.

    Returns:
        As many of them as there are cores for, where a model on a CPU needs one itself.
    """
    cores = available_cores()
    # the thread that feeds a GPU needs little of a core
    workers = min(workers, cores if torch.cuda.is_available() else cores - 1)
    if _wanted_threads() is None:
        torch.set_num_threads(max(1, cores - workers))
    return workers


def ignore_signals(_worker: int = 0) -> None:
    """Initializer of a worker process: only its parent reacts to signals that reach the whole process group."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def kill_workers() -> None:
    """Kill worker processes at the end. multiprocessing would send SIGTERM, which they ignore, and wait for them."""
    if hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would report a failure
    for worker in multiprocessing.active_children():
        worker.kill()


class StopRequest:
    """True once SIGTERM, SIGUSR1 or Ctrl-C has asked the process to stop. A second Ctrl-C raises KeyboardInterrupt.

    A context manager: previous handlers are restored at its end.
    """

    def __init__(self) -> None:
        self._requested = False
        self._previous: Dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self._requested

    def __enter__(self) -> 'StopRequest':
        for name in ('SIGINT', 'SIGTERM', 'SIGUSR1'):
            if hasattr(signal, name):  # Windows has no SIGUSR1
                number = getattr(signal, name)
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: Any) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True
