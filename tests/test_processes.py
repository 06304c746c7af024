import os
import signal

import pytest
import torch

from timm_fan.processes import StopRequest, ignore_signals, prediction_cores, share_cores


@pytest.fixture(autouse=True)
def handlers():
    """Restore the handlers of this process."""
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
    previous = {number: signal.getsignal(number) for number in numbers}
    yield previous
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_request_to_stop(number, handlers):
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_a_second_interrupt_is_not_a_request():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_workers_leave_signals_to_their_parent():
    ignore_signals()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize('cores, processes, wanted, workers, threads', [
    (2, 1, 0, 0, 2), (2, 1, 1, 1, 1), (2, 1, 8, 1, 1), (1, 1, 2, 0, 1), (16, 1, 4, 4, 12),
    (16, 4, 8, 3, 1), (2, 4, 2, 0, 1)])
def test_threads_and_workers_do_not_exceed_the_cores(monkeypatch, cores, processes, wanted, workers, threads):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(cores)))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', str(processes))
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    before = torch.get_num_threads()
    try:
        assert share_cores(wanted) == workers
        assert torch.get_num_threads() == threads
        monkeypatch.setenv('OMP_NUM_THREADS', '5')
        torch.set_num_threads(5)
        assert share_cores(wanted) == workers
        assert torch.get_num_threads() == 5
        monkeypatch.setenv('OMP_NUM_THREADS', '1')  # as launchers do
        share_cores(wanted)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize('cores, processes, wanted, device, expected', [
    (2, 1, None, 'cpu', (2, 2)), (16, 4, None, 'cpu', (4, 4)), (16, 1, 3, 'cpu', (3, 16)),
    (16, 1, None, 'cuda', (16, 2)), (1, 2, 5, 'cpu', (1, 1))])
def test_predictions_decode_and_compute_on_all_cores(monkeypatch, cores, processes, wanted, device, expected):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(cores)))
    monkeypatch.setenv('LOCAL_WORLD_SIZE', str(processes))
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert prediction_cores(wanted, device) == expected
        assert torch.get_num_threads() == (1 if device == 'cpu' else 3)
        torch.set_num_threads(3)
        monkeypatch.setenv('OMP_NUM_THREADS', '3')
        assert prediction_cores(wanted, device)[1] == (3 if device == 'cpu' else 2)
        monkeypatch.setenv('OMP_NUM_THREADS', '1')  # as launchers do
        assert prediction_cores(wanted, device) == expected
    finally:
        torch.set_num_threads(before)
