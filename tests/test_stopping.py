"""Signals become a flag, or stop at once: the first asks, the second changes nothing, the third
insists, and the handlers that were there come back.
"""

import os
import signal
import threading

import pytest

from sureclr.stopping import StopFlag, Stopped, signals_held, stop_on_signals


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


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_block_with_nothing_to_save_is_left_at_once() -> None:
    """Also by code that takes every `Exception` for a failure and goes on."""
    before, reached = signal.getsignal(signal.SIGINT), []
    with (
        pytest.raises(Stopped, match="stopped by SIGINT; all is saved") as stopped,
        stop_on_signals("all is saved"),
    ):
        try:
            interrupt()
            reached.append("after the signal")
        except Exception:
            reached.append("taken for a failure")
        finally:
            interrupt()  # an impatient person: what cleans up is not interrupted again
            reached.append("cleaned up")
    assert reached == ["cleaned up"] and stopped.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_a_held_signal_stops_at_the_end_of_the_block() -> None:
    reached = []
    with pytest.raises(Stopped, match="all is saved"), stop_on_signals("all is saved"):
        with signals_held():
            interrupt()
            with signals_held():
                reached.append("inside")
            reached.append("still inside")
        reached.append("after the block")
    assert reached == ["inside", "still inside"]


def test_the_innermost_block_decides_how_a_signal_stops() -> None:
    reached = []
    with pytest.raises(Stopped, match="the outer one"), stop_on_signals("the outer one"):
        with stop_on_signals() as saves:
            interrupt()
            reached.append("saved" if saves else "no flag")
        reached.append("after the inner block")
    assert reached == ["saved"]
    with pytest.raises(Stopped, match="the inner one"), stop_on_signals():
        interrupt()
        with stop_on_signals("the inner one"):
            reached.append("inside")
    assert reached == ["saved"]
