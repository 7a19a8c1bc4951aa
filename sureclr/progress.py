"""How long work reports its progress: a protocol, a console that draws it, and a silent one.

Every function that may take long has an argument `progress`. Any of its methods may raise an
exception, which stops the work: `Stoppable` raises `Stopped` after a signal.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from sureclr.stopping import StopFlag

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

PLAIN_SECONDS = 10.0  # between two plain lines, where the stream is no terminal

Numbers = Mapping[str, float]
Update = Callable[[int], None]


class Progress(Protocol):
    """What long work reports to. A task may begin inside another one, as a part of it."""

    def begin(self, task: str, total: int, done: int = 0) -> None:
        """Report that a task of `total` parts begins, of which `done` are finished already."""

    def update(self, done: int, numbers: Numbers | None = None) -> None:
        """Report how many parts of the task are done; `numbers` describe the last one."""

    def message(self, text: str) -> None:
        """Show one sentence to the user."""

    def finish(self) -> None:
        """Report that the task has ended, complete or not."""


class SilentProgress:
    """Reports nothing."""

    def begin(self, task: str, total: int, done: int = 0) -> None:
        """Do nothing."""

    def update(self, done: int, numbers: Numbers | None = None) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


SILENT = SilentProgress()


class ConsoleProgress:
    """Reports on stderr: one live line on a terminal, elsewhere a plain line every ten seconds.

    A task that begins inside another one is a part of it and is not drawn.

    Args:
        stream: where to write; None: stderr, as it is when something is written.
        seconds: shortest time between two plain lines.
    """

    def __init__(self, stream: TextIO | None = None, seconds: float = PLAIN_SECONDS) -> None:
        """Draw nothing before the first task begins."""
        self._chosen_stream, self._seconds = stream, seconds
        self._bar: Bar | None = None
        self._depth = 0  # number of tasks that have begun and not finished
        self._task, self._total, self._first = "", 0, 0
        self._began = self._printed = time.monotonic()

    def begin(self, task: str, total: int, done: int = 0) -> None:
        """Draw the task's bar, if the stream is a terminal."""
        self._depth += 1
        if self._depth > 1:
            return
        self._task, self._total, self._first = task, total, done
        self._began = self._printed = time.monotonic()
        if self._stream.isatty():
            self._bar = _new_bar(self._stream)
            self._bar.add_task(task, total=total, completed=done)
            self._bar.start()

    def update(self, done: int, numbers: Numbers | None = None) -> None:
        """Move the bar, or print a line if the last one is ten seconds old or the task is done."""
        if self._depth > 1:
            return
        text = "  ".join([self._task, *([] if numbers is None else [numbers_text(numbers)])])
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, description=text)
            return
        now = time.monotonic()
        if now - self._printed >= self._seconds or (done == self._total and numbers is not None):
            self._printed = now
            left = (now - self._began) / max(1, done - self._first) * (self._total - done)
            self._print(f"{text}  {done}/{self._total}  {left:,.0f} s left")

    def message(self, text: str) -> None:
        """Print the sentence, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, soft_wrap=True)
        else:
            self._print(text)

    def finish(self) -> None:
        """Remove the bar."""
        self._depth -= 1
        if self._depth == 0 and self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def _stream(self) -> TextIO:
        return sys.stderr if self._chosen_stream is None else self._chosen_stream

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class Stoppable:
    """Passes reports on to another progress, and raises `Stopped` at the first one after a signal.

    Args:
        progress: what to report to.
        flag: is set by the signal.
        saved: what has been saved and how to continue, as the end of a sentence.
    """

    def __init__(self, progress: Progress, flag: StopFlag, saved: str) -> None:
        """Wrap another progress."""
        self._progress, self._flag, self._saved = progress, flag, saved

    def begin(self, task: str, total: int, done: int = 0) -> None:
        """Pass the report on, unless a signal has come."""
        self._flag.check(self._saved)
        self._progress.begin(task, total, done)

    def update(self, done: int, numbers: Numbers | None = None) -> None:
        """Pass the report on, unless a signal has come."""
        self._flag.check(self._saved)
        self._progress.update(done, numbers)

    def message(self, text: str) -> None:
        """Pass the report on, unless a signal has come."""
        self._flag.check(self._saved)
        self._progress.message(text)

    def finish(self) -> None:
        """Pass the end of the task on, also after a signal."""
        self._progress.finish()


@contextmanager
def report_progress(progress: Progress, task: str, total: int) -> Iterator[Update]:
    """Begin a task, and finish it at the end of the block.

    The yielded function takes the number of parts that are done.

    >>> with report_progress(SILENT, "Counting", total=2) as update:
    ...     update(1)
    ...     update(2)
    """
    progress.begin(task, total)
    try:
        yield progress.update
    finally:
        progress.finish()


def numbers_text(numbers: Numbers) -> str:
    """Describe a training step in a few words; numbers without a wording are left out.

    >>> numbers_text({"epoch": 2.0, "loss": 1.5, "images_per_second": 1234.0, "step": 7})
    'epoch 2  loss 1.500  1,234 images/s'
    """
    words = {
        "epoch": "epoch {:.0f}",
        "loss": "loss {:.3f}",
        "images_per_second": "{:,.0f} images/s",
    }
    return "  ".join(form.format(numbers[name]) for name, form in words.items() if name in numbers)


def _new_bar(stream: TextIO) -> "Bar":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as NewBar

    return NewBar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(file=stream, highlight=False),
        transient=True,
    )
