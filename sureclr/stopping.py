"""How SIGINT and SIGTERM stop a computation without losing it.

Where state must be saved first (the steps of training), the first signal only sets a flag: the loop
checks it, saves what it has, and raises `Stopped`. Everywhere else the first signal raises
`Stopped` at once. The second signal changes nothing, because people press Ctrl-C twice, and some
schedulers send two signals; the third one stops at once.

A command turns `Stopped` into one sentence and the exit code 128 + signal. Code in C that does not
return, and code that swallows the exception, cannot hold it up: a thread watches, and ends the
process after `DEADLINE` seconds. Outside of a command, Ctrl-C raises KeyboardInterrupt as always.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

PATIENCE = 2  # signals that leave time to save; one more stops at once
DEADLINE = 3.5  # seconds after the first signal until a command is ended that has nothing to save
EXPLAINED = 2.0  # seconds until a command that saves first says so
AGAIN = 0.5  # seconds until `Stopped` is raised again where the code that ran has swallowed it
LOST = " at once, without saving: the third signal came"
UNCHANGED = "no file is half written; run the same command again"
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stopped(KeyboardInterrupt):
    """A signal stopped the computation after its state was saved.

    It is a KeyboardInterrupt, so that `except Exception` does not take it for a failure.

    Attributes:
        exit_code: 128 + the signal's number, as shells count it.
    """

    def __init__(self, number: int, saved: str = UNCHANGED) -> None:
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


@dataclass
class _Reception:
    """What the main thread does with signals now.

    Attributes:
        flag: of the outermost block; None: no block, and the handlers are not ours.
        blocks: for each block, the innermost last, what to say if it is stopped at once; "": it
            saves first.
        held: number of `signals_held` blocks that the main thread is in.
        command: whether a whole command is inside.
        drafts: files and folders to delete if the process ends at once.
        ending: is taken by the one thread that says the last sentence.
        said: whether the main thread has said it.
        stderr: a copy of its descriptor, which nobody redirects; None: there is none.
    """

    flag: StopFlag | None = None
    blocks: list[str] = field(default_factory=list)
    held: int = 0
    command: bool = False
    drafts: set[Path] = field(default_factory=set)
    said: bool = False
    ending: threading.Lock = field(default_factory=threading.Lock)
    stderr: int | None = None


_now = _Reception()
drafts = _now.drafts  # whoever writes a draft adds its path, and removes it at the end


def _receive(number: int, frame: FrameType | None) -> None:
    """Handle a signal."""
    flag = _now.flag
    if flag is None:
        return
    flag.count += 1
    if flag.count > PATIENCE:
        if _now.command:
            _end_at_once(flag.signal or number, LOST)
            return  # its sentence is being said
        raise KeyboardInterrupt
    if flag.signal is None:
        flag.signal = number
        if _now.command and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
        _raise_if_asked()


def _receive_again(number: int, frame: FrameType | None) -> None:
    """Handle the timer of a command: `Stopped` may have been swallowed."""
    _raise_if_asked()


def _raise_if_asked() -> None:
    """Raise `Stopped` if a signal has come, and not while `Stopped` is on its way already."""
    flag = _now.flag
    if not flag or _now.held or not _now.blocks or not _now.blocks[-1] or _now.ending.locked():
        return
    error = sys.exception()
    while error is not None:  # a GeneratorExit has its cause as context
        if isinstance(error, Stopped):
            return
        error = error.__context__
    assert flag.signal is not None
    raise Stopped(flag.signal, _now.blocks[-1])


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def stop_on_signals(saved: str = "") -> Iterator[StopFlag]:
    """Stop the block on SIGINT or SIGTERM.

    A block inside another one shares its flag, so that a signal stops both; the innermost one
    decides how. A second signal does nothing, and a third one raises KeyboardInterrupt at once. The
    handlers from before return at the end of the outer block. Python lets only the main thread
    handle signals: in another thread nothing sets the flag.

    Args:
        saved: what is saved at any moment and how to continue, as the end of a sentence; the signal
            then raises `Stopped` at once. "": it only sets the flag, and the block checks it where
            its state is saved.
    """
    if not _is_main():
        yield StopFlag()
        return
    depth = len(_now.blocks)
    before: dict[int, Any] = {}
    if (flag := _now.flag) is None:
        flag = _now.flag = StopFlag()
        ours = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, _receive) for number in ours}
    try:
        try:
            _now.blocks.append(saved)
            _raise_if_asked()  # after a signal that an outer block has not looked at
            yield flag
        finally:
            _leave(depth, before)
    finally:
        _leave(depth, before)  # again: the signal may have interrupted the first time
    _raise_if_asked()


def _leave(depth: int, before: dict[int, Any]) -> None:
    """Leave the block at this depth, and set the handlers from before the outermost one."""
    del _now.blocks[depth:]
    for number, handler in before.items():
        signal.signal(number, handler)
    if before:
        _now.flag = None


@contextmanager
def signals_held() -> Iterator[None]:
    """Let no signal raise `Stopped` inside the block; one that has come does at its end."""
    if not _is_main():
        yield
        return
    before = _now.held
    try:
        _now.held = before + 1
        yield
    finally:
        _now.held = before
    _raise_if_asked()


def run_as_a_command(work: Callable[[], None], *, ends_process: bool) -> None:
    """Do the work of a command, so that one request to stop ends it with one sentence.

    Whatever the moment, it leaves no process and no draft behind. SIGHUP (a closed terminal) counts
    as SIGTERM. Further signals while the command says that it has stopped, and while Python shuts
    down, change neither the sentence nor the exit code. In another thread than the main one it
    only does the work.

    Args:
        work: the command, which imports what is large only when it is called.
        ends_process: whether the process ends with the command. After a signal it then ends at
            once, without what Python does at its end, which can take long or hang.

    Raises:
        SystemExit: a signal stopped the work; the code is 128 + signal.
    """
    if not _is_main() or _now.flag is not None:
        work()
        return
    before, restore = _listen()
    try:
        try:
            try:
                work()
            except (ImportError, SystemError):  # what modules in C make of `Stopped`
                _raise_if_asked()
                raise
            finally:
                _now.blocks.clear()  # nothing is raised from here on
        except Stopped as stopped:
            say_stopped(str(stopped))
            raise SystemExit(stopped.exit_code) from None
    finally:
        error = sys.exception()
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        if ends_process and _now.flag and isinstance(error, SystemExit):
            _end(error.code)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if ends_process else handler)
        restore()
        _now.flag, _now.command = None, False


def _listen() -> tuple[dict[int, Any], Callable[[], None]]:
    """Install the handlers of a command; return those from before, and what undoes the rest."""
    _now.flag, _now.command, _now.said, _now.ending = StopFlag(), True, False, threading.Lock()
    _now.blocks[:] = [UNCHANGED]
    hook = sys.unraisablehook
    sys.unraisablehook = _quiet_about_stops(hook)
    watcher = _Watcher() if os.name == "posix" else None
    before: dict[int, Any] = {}
    if hasattr(signal, "SIGALRM"):
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _receive_again)
    for number in STOPPING:
        if number != getattr(signal, "SIGHUP", None) or _is_heard(number):
            before[number] = signal.signal(number, _receive)

    def restore() -> None:
        sys.unraisablehook = hook
        if watcher is not None:
            watcher.close()

    return before, restore


def say_stopped(sentence: str) -> None:
    """Print the sentence with which a stopped command ends, unless the watching thread did."""
    if not _now.ending.acquire(blocking=False):
        time.sleep(60)  # the process ends meanwhile
    with suppress(OSError, ValueError):  # the terminal is closed
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h")  # shows the cursor that a progress bar may have hidden
        print(f"sureclr: {sentence}", file=sys.stderr, flush=True)
    _now.said = True


class _Watcher:
    """A thread that sees each signal also while the main thread is in C code.

    It needs Python's global lock, which torch, numpy and scikit-learn release while they compute.
    """

    def __init__(self) -> None:
        """Start the thread, and let Python tell it of each signal."""
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        with suppress(OSError):
            _now.stderr = os.dup(2)
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        signal.set_wakeup_fd(self._before)
        os.write(self._writer, b"\0")
        self._thread.join()
        for handle in (self._reader, self._writer, _now.stderr):
            if handle is not None:
                os.close(handle)
        _now.stderr = None

    def _watch(self) -> None:
        first, count, since, told = 0, 0, 0.0, False
        while True:
            if select.select([self._reader], [], [], 0.1 if first else None)[0]:
                came = os.read(self._reader, 64)
                if b"\0" in came:
                    return
                signals = [number for number in came if number in STOPPING]
                if signals and not first:
                    first, since = signals[0], time.monotonic()
                count += len(signals)
            if count > PATIENCE:
                time.sleep(0.1)  # the main thread does it, if it can
                _end_at_once(first, LOST)
            waited = time.monotonic() - since
            if first and not (_now.blocks and _now.blocks[-1]):  # something is saved first
                if waited > EXPLAINED and not told and _now.blocks:
                    told = True
                    _write(
                        f"{signal.Signals(first).name} has come; what is being computed is finished"
                        " and saved first (a third signal ends the command at once)"
                    )
                since = max(since, time.monotonic() - EXPLAINED)
            elif first and waited > DEADLINE:
                _end_at_once(first, f"; {_now.blocks[-1]}")


def _write(sentence: str) -> None:
    if _now.stderr is not None:
        with suppress(OSError):
            os.write(_now.stderr, f"sureclr: {sentence}\n".encode(errors="backslashreplace"))


def _end_at_once(number: int, saved: str) -> None:
    """End the process from any thread: children, drafts, the sentence, and the exit code."""
    if not _now.ending.acquire(blocking=False):
        if not _now.said and _is_main():
            return  # it is saying its sentence
        time.sleep(0 if _is_main() else 0.5)
        _end(128 + number)
    _write(f"stopped by {signal.Signals(number).name}{saved}")
    _end(128 + number)


def _end(code: Any) -> NoReturn:
    """End the process without Python's own end: kill children, and delete drafts."""
    _kill_children()
    for draft in list(_now.drafts):
        with suppress(OSError):
            _delete(draft)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            if threading.current_thread() is threading.main_thread():
                stream.flush()
    os._exit(code if isinstance(code, int) else 1)


def _kill_children() -> None:
    """Kill what multiprocessing has started, without importing it."""
    module = sys.modules.get("multiprocessing.process")
    for child in list(getattr(module, "_children", ())):
        with suppress(Exception):
            child.kill()
            child.join(1)


def _delete(path: Path) -> None:
    """Delete a draft: a file, or a folder of files."""
    if path.is_dir() and not path.is_symlink():
        for name in os.listdir(path):
            os.unlink(path / name)
        path.rmdir()
    else:
        path.unlink()


def _is_heard(number: int) -> bool:
    """Whether the process was started so that it hears this signal; `nohup` silences SIGHUP."""
    return signal.getsignal(number) is not signal.SIG_IGN


def _quiet_about_stops(before: Any) -> Any:
    """Return a hook that says nothing of a `Stopped` that Python had to swallow."""

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Stopped):
            signal.setitimer(signal.ITIMER_REAL, 0.02, AGAIN)  # raise it again, elsewhere
        else:
            before(unraisable)

    return hook
