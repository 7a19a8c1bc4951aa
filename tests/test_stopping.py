"""Signals become a flag: the first asks, the second changes nothing, the third insists, and the
handlers that were there come back.
"""

import os
import signal
import threading

import pytest

from sureclr.stopping import StopFlag, Stopped, stop_on_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_sets_the_flag(number: int, code: int) -> None:
    with stop_on_signals() as stop:
        assert not stop
        stop.check("nothing happens")
        os.kill(os.getpid(), number)
        assert stop
        with pytest.raises(
            Stopped, match=f"stopped by {signal.Signals(number).name}; all is saved"
        ) as stopped:
            stop.check("all is saved")
        assert stopped.value.exit_code == code


def test_the_second_signal_changes_nothing_and_the_third_interrupts() -> None:
    """R10: Ctrl-C twice in a tenth of a second must not interrupt the saving of a checkpoint."""
    with stop_on_signals() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGTERM and stop.count == 2
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_come_back_even_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError), stop_on_signals():
        assert signal.getsignal(signal.SIGTERM) != before[1]
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_block_inside_another_shares_its_flag() -> None:
    """A comparison holds two runs: a signal must stop both."""
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as outer:
        with stop_on_signals() as inner:
            assert not outer
            os.kill(os.getpid(), signal.SIGTERM)
        assert inner and outer
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    with stop_on_signals() as later:
        assert not later


def test_another_thread_gets_a_flag_that_nobody_sets() -> None:
    """Python lets only the main thread take signals; training in a notebook's worker thread must
    still run.
    """
    found: list[StopFlag] = []

    def work() -> None:
        with stop_on_signals() as stop:
            found.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == 1 and not found[0]
