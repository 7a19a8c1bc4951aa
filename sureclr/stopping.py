"""How SIGINT and SIGTERM stop a computation without losing it.

The first signal only sets a flag. Every long loop checks the flag, saves what it has, and raises
`Stopped`, which becomes the exit code 128 + signal.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
        signal: the number of the signal, or None.
    """

    def __init__(self) -> None:
        """Start without a signal."""
        self.signal: int | None = None

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


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Turn the first SIGINT or SIGTERM inside the block into a flag.

    A block inside another one shares its flag, so that a signal stops both. A second signal raises
    KeyboardInterrupt at once. The handlers from before return at the end of the outer block. Python
    lets only the main thread handle signals: in another thread nothing sets the flag.
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
        if flag:
            raise KeyboardInterrupt
        flag.signal = number

    before = {number: signal.signal(number, set_flag) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        _active.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
