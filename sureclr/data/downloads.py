"""Around torchvision's downloads, which check each md5: no long waits, nothing on stdout, one
sentence where it fails.
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
STALL_SECONDS = 30  # a download that sends nothing for so long is given up


@contextlib.contextmanager
def downloading(
    title: str, files: str, folder: Path, url: str, md5: str | None = None
) -> Iterator[None]:
    """A block in which torchvision may download `files` from `url` into `folder`.

    Args:
        title: what a person calls it.
        files: the file, or several with commas, as the message names them.
        md5: of the one file; if that lies in the folder and is whole, the network is not asked
            (torchvision only unpacks it).

    Raises:
        UserError: the server does not answer, the download fails or is not what was published, the
            folder cannot be written.
    """
    before = socket.getdefaulttimeout()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if md5 is None or not _is_whole(folder / files, md5):
            reach(url)
            print(f"{title}: downloading from {url} to {folder}", file=sys.stderr)
        socket.setdefaulttimeout(STALL_SECONDS)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (OSError, RuntimeError, EOFError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{title} is not whole in {folder} and could not be downloaded ({reason}); put {files}"
            f" from {url} into {folder}, or set SURECLR_DATA to the folder that has your data sets."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def reach(url: str) -> None:
    """Return if the server answers within REACH_SECONDS, else OSError. In a thread: no timeout
    covers looking up a name.
    """
    answers: queue.Queue[OSError | None] = queue.Queue()

    def ask() -> None:
        try:
            urllib.request.urlopen(
                urllib.request.Request(url, method="HEAD"), timeout=REACH_SECONDS
            ).close()
            answers.put(None)
        except Exception as error:
            answers.put(error if isinstance(error, OSError) else OSError(str(error)))

    threading.Thread(target=ask, daemon=True).start()
    try:
        failure = answers.get(timeout=REACH_SECONDS)
    except queue.Empty:
        failure = TimeoutError(f"no answer within {REACH_SECONDS} s")
    if failure is not None:
        raise failure


def _is_whole(file: Path, md5: str) -> bool:
    from torchvision.datasets.utils import check_integrity

    return bool(check_integrity(str(file), md5))
