"""Median times of contenders that run in turn, so that whatever slows the machine down affects all of them."""
import statistics
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List, Optional

import torch
from tqdm import tqdm


def seconds(run: Callable[[], Any], device: str = 'cpu') -> float:
    """Time of one call, including what it has queued on a GPU."""
    if device.startswith('cuda'):
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.startswith('cuda'):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def beside_busy_process(run: Callable[[], Any]) -> Callable[[], None]:
    """The same call next to another program that uses all of a core."""
    def run_beside() -> None:
        busy = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
        try:
            run()
        finally:
            busy.kill()
            busy.wait()
    return run_beside


def median_seconds(
        contenders: Dict[Any, Callable], repeats: int, before: Optional[Dict[Any, Callable]] = None,
        device: str = 'cpu', description: str = 'rounds') -> Dict[Any, float]:
    """Median time of each contender over some rounds. `before` is called ahead of each call, untimed."""
    times: Dict[Any, List[float]] = {name: [] for name in contenders}
    for _ in tqdm(range(repeats), desc=description, leave=False):
        for name, run in contenders.items():
            if before:
                before[name]()
            times[name].append(seconds(run, device))
    return {name: statistics.median(values) for name, values in times.items()}
