"""SIGINT and SIGTERM ask for a stop; every loop polls the flag, saves what it has, and raises
`Stopped` (exit 128 + signal).
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """Stopped by a signal, with the state saved."""

    def __init__(self, number: int, saved: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {saved}")
        self.exit_code = 128 + number


class StopFlag:
    """Set by a signal, polled by loops."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def check(self, saved: str = "nothing was changed") -> None:
        """Raise `Stopped` if a signal came; `saved` says what is kept and how to go on."""
        if self.signal is not None:
            raise Stopped(self.signal, saved)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Turn the first SIGINT or SIGTERM into a flag inside the block; the second interrupts at once.
    Only the main thread can.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if flag:
            raise KeyboardInterrupt
        flag.signal = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
