"""A frame around torchvision's downloads, which check the md5 of each file.

It adds time limits, sends all output to stderr, and turns failures into one sentence.
"""

import contextlib
import queue
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from sureclr.errors import UserError

REACH_SECONDS = 6  # a server that does not answer by then counts as not there
STALL_SECONDS = 30  # a download that sends nothing for so long has failed


@contextlib.contextmanager
def downloading(
    title: str, files: str, folder: Path, url: str, md5: str | None = None
) -> Iterator[None]:
    """Let torchvision download files inside the block.

    Args:
        title: name of the data set in messages.
        files: the file to download, or several with commas between them.
        folder: where the files go; it is made if it is missing.
        url: where the files come from.
        md5: of the one file, as published. If the folder holds that file, the network is not used:
            torchvision only has to unpack it.

    Raises:
        UserError: the server does not answer, the download fails, the file is not the published
            one, or the folder cannot be written.
    """
    before = socket.getdefaulttimeout()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if md5 is None or not _has_md5(folder / files, md5):
            check_server(url)
            print(f"{title}: downloading from {url} to {folder}", file=sys.stderr)
        socket.setdefaulttimeout(STALL_SECONDS)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (OSError, RuntimeError, EOFError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{title} is not complete in {folder} and cannot be downloaded ({reason}); put {files}"
            f" from {url} into {folder}, or set SURECLR_DATA to the folder that has your data sets."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def check_server(url: str, seconds: float = REACH_SECONDS) -> None:
    """Return if the server answers in time.

    The request runs in a thread, because no timeout covers the look-up of the server's name.

    Args:
        url: what to ask for.
        seconds: the time limit.

    Raises:
        OSError: the server does not answer in time, or answers with an error.
    """
    answers: queue.Queue[OSError | None] = queue.Queue()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=seconds).close()
            answers.put(None)
        except Exception as error:
            answers.put(error if isinstance(error, OSError) else OSError(str(error)))

    threading.Thread(target=ask, daemon=True).start()
    try:
        failure = answers.get(timeout=seconds)
    except queue.Empty:
        failure = TimeoutError(f"no answer within {seconds} s")
    if failure is not None:
        raise failure


def _has_md5(file: Path, md5: str) -> bool:
    from torchvision.datasets.utils import check_integrity

    return bool(check_integrity(str(file), md5))
