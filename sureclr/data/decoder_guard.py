"""What surrounds every decoding: no damaged picture is tolerated, and decoders do not print.

Decoders complain in four ways: Python's warnings, Python's loggers, and lines that libraries in C
write to the file descriptor of stderr. All are caught and counted while one file is decoded.
This module imports neither torch nor the rest of the package.
"""

import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from PIL import Image, ImageFile

STDERR = 2
LOGGERS = ("tifffile", "pydicom", "pillow_heif", "PIL")
_lock = threading.RLock()  # what is set below belongs to the whole process


class Complaints(logging.Handler):
    """The lines that decoders wrote about one file.

    Attributes:
        count: how many.
        last: the last that a library in C wrote; empty: none did.
    """

    def __init__(self) -> None:
        """Start with none."""
        super().__init__(logging.WARNING)
        self.count, self.last = 0, ""

    def emit(self, record: logging.LogRecord) -> None:
        """Count a line of a logger; Pillow's only say what it does not know, and others may."""
        self.count += not record.name.startswith("PIL.")


@contextmanager
def guarded(catch_stderr: bool, complaints: Complaints | None = None) -> Iterator[None]:
    """Decode inside this block: damaged pictures raise, and nothing is printed.

    What the user's program has set in Pillow does not matter inside, and returns afterwards. Only
    one thread at a time is inside.

    Args:
        catch_stderr: whether to catch what is written to the file descriptor of stderr. What
            another thread writes there meanwhile is passed on where it draws on the terminal, and
            counted as a complaint otherwise, so ask for it only with decoders that do write.
        complaints: what to add the complaints to, at the end of the block.
    """
    complaints = Complaints() if complaints is None else complaints
    with _lock:
        # Pillow types the limit as int, but documents None as "no limit". The decoders' memory is
        # limited in `decoding`
        settings: Any = Image
        before = ImageFile.LOAD_TRUNCATED_IMAGES, settings.MAX_IMAGE_PIXELS
        loggers = [logging.getLogger(name) for name in LOGGERS]
        propagated = [logger.propagate for logger in loggers]
        ImageFile.LOAD_TRUNCATED_IMAGES, settings.MAX_IMAGE_PIXELS = False, None
        for logger in loggers:
            logger.addHandler(complaints)
            logger.propagate = False
        try:
            with warnings.catch_warnings(record=True) as caught, _stderr(complaints, catch_stderr):
                warnings.simplefilter("always")
                yield
            complaints.count += len(caught)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES, settings.MAX_IMAGE_PIXELS = before
            for logger, propagate in zip(loggers, propagated, strict=True):
                logger.removeHandler(complaints)
                logger.propagate = propagate


def _paper() -> IO[bytes]:
    if hasattr(os, "memfd_create"):  # needs no disk that may be full
        return os.fdopen(os.memfd_create("stderr"), "w+b")
    return tempfile.TemporaryFile()


@contextmanager
def _stderr(complaints: Complaints, catch: bool) -> Iterator[None]:
    """Count the lines that are written to the descriptor of stderr, and do not show them."""
    try:
        original = os.dup(STDERR) if catch else None
    except OSError:  # there is no stderr
        original = None
    if original is None:
        yield
        return
    try:
        with _paper() as paper:
            try:
                os.dup2(paper.fileno(), STDERR)
                yield
            finally:
                os.dup2(original, STDERR)
                paper.seek(0)
                for line in paper.read().splitlines(keepends=True):
                    if b"\x1b" in line or b"\r" in line.rstrip(b"\r\n"):  # a progress bar
                        os.write(STDERR, line)
                    else:
                        complaints.count += 1
                        complaints.last = line.decode(errors="replace").strip() or complaints.last
    finally:
        os.dup2(original, STDERR)  # again: a signal may have interrupted the first time
        os.close(original)
