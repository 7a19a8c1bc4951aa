"""How SIGINT and SIGTERM stop a computation without losing it.

The first signal only sets a flag. Every long loop checks the flag, saves what it has, and raises
`Stopped`, which becomes the exit code 128 + signal. The second signal changes nothing, because
people press Ctrl-C twice, and some schedulers send two signals; the third one stops at once.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 2  # signals that leave time to save; one more stops at once
ONE_REQUEST = 2.0  # seconds after a signal in which a command takes further ones for the same


class Stopped(Exception):
    """A signal stopped the computation after its state was saved.

    Attributes:
        exit_code: 128 + the signal's number, as shells count it.
    """

    def __init__(self, number: int, saved: str) -> None:
        """Describe the stop.

        Args:
            number: the signal.
            saved: what was saved and how to continue, as the end of the message.
        """
        super().__init__(f"stopped by {signal.Signals(number).name}; {saved}")
        self.exit_code = 128 + number


class StopFlag:
    """A flag that a signal sets and loops check; it is true once a signal has come.

    Attributes:
        signal: the number of the first signal, or None.
        count: how many signals have come.
    """

    def __init__(self) -> None:
        """Start without a signal."""
        self.signal: int | None = None
        self.count = 0

    def __bool__(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def check(self, saved: str = "nothing was changed") -> None:
        """Raise `Stopped` if a signal has come.

        Args:
            saved: what was saved and how to continue, as the end of the message.
        """
        if self.signal is not None:
            raise Stopped(self.signal, saved)


_active: list[StopFlag] = []  # the flag of the block that the main thread is in, if any
_last = [-ONE_REQUEST]  # when the newest signal came, by time.monotonic


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Turn the first SIGINT or SIGTERM inside the block into a flag.

    A block inside another one shares its flag, so that a signal stops both. A second signal does
    nothing, and a third one raises KeyboardInterrupt at once. The handlers from before return at
    the end of the outer block. Python lets only the main thread handle signals: in another thread
    nothing sets the flag.
    """
    if threading.current_thread() is not threading.main_thread():
        yield StopFlag()
        return
    if _active:
        yield _active[0]
        return
    flag = StopFlag()
    _active.append(flag)

    def set_flag(number: int, frame: FrameType | None) -> None:
        _last[0] = time.monotonic()
        flag.count += 1
        if flag.count > PATIENCE:
            raise KeyboardInterrupt
        flag.signal = flag.signal or number

    before = {number: signal.signal(number, set_flag) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        _active.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_of_a_command() -> Iterator[None]:
    """Let one request to stop, however many signals it sends, end a command only once.

    Around a whole command: a further signal while the command says that it has stopped, and while
    Python shuts down, changes neither the sentence nor the exit code. Outside of `stop_on_signals`
    the first SIGINT raises KeyboardInterrupt, as always.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        now, before = time.monotonic(), _last[0]
        _last[0] = now
        if now - before >= ONE_REQUEST:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        stopping = isinstance(sys.exception(), SystemExit) and time.monotonic() - _last[0] < 60
        signal.signal(signal.SIGINT, signal.SIG_IGN if stopping else before)
