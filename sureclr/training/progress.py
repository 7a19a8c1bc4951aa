"""What a person sees while a run trains: a rich progress line on a terminal, plain lines when
piped. Always on stderr.
"""

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

PLAIN_SECONDS = 10.0  # between plain lines


class Reporter(Protocol):
    """Who is told of a run's progress."""

    def start(self, steps: int, done: int) -> None: ...
    def step(self, numbers: dict[str, float]) -> None: ...
    def say(self, text: str) -> None: ...
    def end(self) -> None: ...


class Silent:
    """Tells nobody."""

    def start(self, steps: int, done: int) -> None: ...
    def step(self, numbers: dict[str, float]) -> None: ...
    def say(self, text: str) -> None: ...
    def end(self) -> None: ...


class Lines:
    """Loss, images/s and time left: one live line on a terminal, else a plain line every ten
    seconds.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.live: Progress | None = None
        self.task: TaskID | None = None
        self.steps = self.done = self.first = 0
        self.began = self.last = time.monotonic()

    def start(self, steps: int, done: int) -> None:
        self.steps, self.done, self.first = steps, done, done
        self.began = self.last = time.monotonic()
        if self.console.is_terminal:
            self.live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.live.add_task("training", total=steps, completed=done)
            self.live.start()

    def step(self, numbers: dict[str, float]) -> None:
        self.done += 1
        text = (
            f"epoch {numbers['epoch']:.0f}  loss {numbers['loss']:.3f} "
            f" {numbers['images_per_second']:,.0f} images/s"
        )
        if self.live is not None and self.task is not None:
            self.live.update(self.task, completed=self.done, description=text)
        elif time.monotonic() - self.last >= PLAIN_SECONDS or self.done == self.steps:
            self.last = time.monotonic()
            left = (self.last - self.began) / (self.done - self.first) * (self.steps - self.done)
            print(
                f"step {self.done}/{self.steps}  {text}  {left:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def end(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None
