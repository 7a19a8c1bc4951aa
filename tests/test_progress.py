"""Progress reports: what a log file and a terminal show, and how a signal stops the work."""

import contextlib
import io
import os
import pty
import signal

import pytest

from sureclr.progress import SILENT, ConsoleProgress, Stoppable, numbers_text, report_progress
from sureclr.stopping import StopFlag, Stopped


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Recorder:
    """Remembers every report."""

    def __init__(self) -> None:
        self.reports: list[tuple] = []

    def begin(self, task: str, total: int, done: int = 0) -> None:
        self.reports.append(("begin", task, total, done))

    def update(self, done: int, numbers: dict[str, float] | None = None) -> None:
        self.reports.append(("update", done, numbers))

    def message(self, text: str) -> None:
        self.reports.append(("message", text))

    def finish(self) -> None:
        self.reports.append(("finish",))


NUMBERS = {"epoch": 2.0, "loss": -10.6, "images_per_second": 1234.5, "step": 3.0}


def counted(progress: ConsoleProgress, numbers: dict[str, float] | None) -> None:
    progress.begin("Counting", total=3)
    for done in (1, 2, 3):
        progress.update(done, numbers)
    progress.finish()


def test_a_log_gets_a_line_an_interval() -> None:
    stream = io.StringIO()
    counted(ConsoleProgress(stream, seconds=0), None)
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[:2] for line in lines] == [["Counting", f"{n}/3"] for n in (1, 2, 3)]
    assert all(line.endswith(" s left") for line in lines) and lines[-1].endswith("  0 s left")


def test_within_the_interval_only_the_last_step_of_a_training_is_printed() -> None:
    stream = io.StringIO()
    counted(ConsoleProgress(stream, seconds=1000), NUMBERS)
    (line,) = stream.getvalue().splitlines()
    assert line == "Counting  epoch 2  loss -10.600  1,234 images/s  3/3  0 s left"
    counted(ConsoleProgress(stream, seconds=1000), None)  # a short task prints nothing at all
    assert len(stream.getvalue().splitlines()) == 1


def test_the_time_left_counts_the_parts_of_this_process_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A resumed task: 10 of 40 parts were done before, 5 took 20 s, so the other 25 take 100 s."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress = ConsoleProgress(stream := io.StringIO())
    progress.begin("Training", total=40, done=10)
    clock[0] = 109.9
    progress.update(12)
    assert stream.getvalue() == ""
    clock[0] = 120.0
    progress.update(15)
    assert stream.getvalue() == "Training  15/40  100 s left\n"
    clock[0] = 129.0
    progress.update(20)  # nine seconds after the last line
    assert len(stream.getvalue().splitlines()) == 1


def test_a_task_inside_another_one_is_not_drawn_and_messages_are() -> None:
    progress = ConsoleProgress(stream := io.StringIO(), seconds=0)
    progress.begin("Evaluating", total=2)
    progress.begin("Embedding", total=5)
    progress.update(4)
    progress.message("half-way")
    progress.finish()
    progress.update(1)
    progress.finish()
    progress.begin("Drawing", total=1)  # and the next task is drawn again
    progress.update(1)
    progress.finish()
    words = [line.split("  ")[0] for line in stream.getvalue().splitlines()]
    assert words == ["half-way", "Evaluating", "Drawing"]


def test_a_terminal_shows_a_bar_that_goes_away() -> None:
    progress = ConsoleProgress(stream := Terminal())
    progress.begin("Training", total=40, done=10)
    progress.begin("Embedding", total=5)
    progress.finish()
    progress.update(15, NUMBERS)
    progress.message("[1/2] is no markup")
    progress.finish()
    shown = stream.getvalue()
    assert "Training" in shown and "15/40" in shown and "loss -10.600" in shown
    assert "Embedding" not in shown and "[1/2] is no markup" in shown
    assert shown.endswith("\x1b[2K")  # the last thing written erases the line
    progress.message("after the bar")
    assert stream.getvalue().endswith("after the bar\n")


def test_a_pseudo_terminal_gets_the_bar() -> None:
    main, child = pty.openpty()
    with open(child, "w") as stream:
        counted(ConsoleProgress(stream), NUMBERS)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: everything was read, and the other end is closed
        while part := os.read(main, 1 << 16):
            shown += part
    assert b"3/3" in shown
    os.close(main)


def test_stderr_is_the_one_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleProgress().message("a sentence")
    captured = capsys.readouterr()
    assert captured.err == "a sentence\n" and captured.out == ""


def test_stoppable_passes_everything_on_until_a_signal_comes() -> None:
    recorder, flag = Recorder(), StopFlag()
    progress = Stoppable(recorder, flag, "continue with resume=True")
    progress.begin("Training", 3, 1)
    progress.update(2, NUMBERS)
    progress.message("text")
    progress.finish()
    expected = [("begin", "Training", 3, 1), ("update", 2, NUMBERS), ("message", "text")]
    assert recorder.reports == [*expected, ("finish",)]
    flag.signal = signal.SIGTERM
    for report in (
        lambda: progress.begin("x", 1),
        lambda: progress.update(3),
        lambda: progress.message("y"),
    ):
        with pytest.raises(Stopped, match="SIGTERM.*continue with resume=True"):
            report()
    progress.finish()  # the bar must go away all the same
    assert recorder.reports == [*expected, ("finish",), ("finish",)]


def test_reporting_finishes_the_task_whatever_happens() -> None:
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError), report_progress(recorder, "Counting", 2) as update:
        update(1)
        raise ZeroDivisionError
    assert recorder.reports == [("begin", "Counting", 2, 0), ("update", 1, None), ("finish",)]


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    SILENT.begin("x", 1)
    SILENT.update(1, NUMBERS)
    SILENT.message("y")
    SILENT.finish()
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_numbers_without_words_are_left_out() -> None:
    assert numbers_text({"radius": 0.5}) == ""
    assert numbers_text({"loss": 1.0, "radius": 0.5}) == "loss 1.000"
