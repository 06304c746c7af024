import os
import signal

import pytest

from timm_fan.processes import StopRequest, ignore_signals


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
