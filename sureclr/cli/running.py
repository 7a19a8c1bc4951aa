"""How a command runs: its words, and what becomes of its errors."""

import codecs
import errno
import io
import os
import sys
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, NoReturn, TextIO

from cyclopts import CycloptsError, UnknownCommandError, UnusedCliTokensError

from sureclr.cli import (  # noqa: F401  (each module adds its commands to the app)
    demo_command,
    embed_command,
    evaluation_commands,
    labelling_commands,
    prediction_commands,
    report_commands,
    start_commands,
    training_commands,
)
from sureclr.cli.shared import FREEZE_WORDS, app, with_flags
from sureclr.data.image_report import inert
from sureclr.errors import UserError, unknown
from sureclr.stopping import Stopped, say_stopped

NO_MEMORY = (
    "the batch does not fit into the device's memory; try --micro-batch 64 (the gradient stays that"
    " of the whole batch)."
)
STDOUT = "the standard output"
FREEZE, FROZEN = "--freeze", "backbone"
TAKES = {"report": "one run, or two to compare", "list": "no words", "demo": "no words"}


def run_command(words: list[str] | None) -> None:
    """Run a command.

    Args:
        words: as for `sureclr.cli.main`.

    Raises:
        SystemExit: an error, which has been printed.
    """
    if words is None and os.name == "posix":  # the terminal of Windows has streams of its own
        sys.stdout, sys.stderr = _over(sys.stdout, _Answers(1)), _over(sys.stderr, _Words(2))
    _show_any_name()
    try:
        words = with_bare_freeze(sys.argv[1:] if words is None else words)
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # here, where an error gets its sentence
    except UserError as error:
        _fail(inert(with_flags(str(error))), 2)
    except CycloptsError as error:
        _fail("\n".join(map(inert, _usage_error(error).split("\n"))), 2)
    except Stopped as stopped:
        say_stopped(with_flags(str(stopped)))
        raise SystemExit(stopped.exit_code) from None
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except OSError as error:  # such as a network drive that went away
        if error.errno == errno.EPIPE and error.filename == STDOUT:  # as in `sureclr list | head`
            raise SystemExit(0) from None
        if error.filename is None:
            raise
        place = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        reason = error.strerror or str(error)
        _fail(inert(f"{place} cannot be used ({reason}); mend that, and run the command again."), 2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        _fail(NO_MEMORY, 2)


def with_bare_freeze(words: list[str]) -> list[str]:
    """Return the words of a command in which `--freeze` alone is `--freeze backbone`.

    It is alone at the end, before another option, and before a word that is none of its own, such
    as a data source. A word that is nearly one of its own stays, so that the error names those.

    >>> with_bare_freeze(["pretrain", "--freeze", "folder:photos", "--seed", "1"])
    ['pretrain', '--freeze', 'backbone', 'folder:photos', '--seed', '1']
    """
    found = list[str]()
    for place, word in enumerate(words):
        found.append(word)
        following = words[place + 1] if place + 1 < len(words) else ""
        if word == FREEZE and not get_close_matches(following.lower(), FREEZE_WORDS):
            found.append(FROZEN)
    return found


class _Answers(io.FileIO):
    """Stdout. The first time that it cannot be written, an error says so; the rest is lost."""

    def __init__(self, number: int) -> None:
        """Take a stream that is open."""
        super().__init__(number, "w", closefd=False)
        self._failed = False

    def write(self, data: Any) -> int:
        """Write some of the data."""
        if self._failed:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self._failed = True
            raise OSError(error.errno, error.strerror, STDOUT) from None


class _Words(io.FileIO):
    """Stderr. What cannot be written is lost: words never stop the work that they are about."""

    def __init__(self, number: int) -> None:
        """Take a stream that is open."""
        super().__init__(number, "w", closefd=False)

    def write(self, data: Any) -> int:
        """Write or lose the data; None means that a stream that does not wait has no room."""
        with suppress(OSError):
            return super().write(data) or len(data)
        return len(data)


def _over(stream: TextIO | None, raw: io.FileIO) -> TextIO:
    """Return a stream as the given one, which is None where it was closed, over other bytes."""
    like = stream if isinstance(stream, io.TextIOWrapper) else None
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=like.encoding if like else "utf-8",
        line_buffering=like is None or like.line_buffering,
        write_through=like is not None and like.write_through,
    )


def _show_any_name() -> None:
    """Let both streams show names that are not UTF-8 as their bytes, which can be pasted."""
    codecs.register_error("sureclr.show", _bytes_or_escapes)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="sureclr.show")


def _bytes_or_escapes(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def _fail(text: str, code: int) -> NoReturn:
    print(f"sureclr: {text}", file=sys.stderr)
    raise SystemExit(code)


def _usage_error(error: CycloptsError) -> str:
    """Return what is wrong with the words of a command."""
    if isinstance(error, UnknownCommandError) and error.unused_tokens:
        commands = [name for name in app if not name.startswith("-")]
        return str(unknown("command", error.unused_tokens[0], commands))
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        command = (error.command_chain or ("this command",))[-1]
        extra = " ".join(error.unused_tokens)
        count = "is one word" if len(error.unused_tokens) == 1 else "are words"
        return (
            f"`{command}` takes {TAKES.get(command, 'one word before its options')}, and {extra!r}"
            f" {count} too many; `sureclr {command} --help` shows what it takes."
        )
    return str(error)
