"""How many image files become pixels: in this process, or in as many as there are CPU cores."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat
from multiprocessing import get_context

from sureclr.data import decoding
from sureclr.data.decoding import DecodedPicture, Decoding, FileRef
from sureclr.errors import UserError
from sureclr.progress import SILENT, Progress, report_progress

POOL_FROM = 256  # fewer images are decoded in this process: starting others would take longer
FILES_AT_ONCE = 16  # handed to a worker at a time

Decoded = DecodedPicture | str  # or the reason why a file cannot be read


def decode_files(
    files: Sequence[FileRef],
    wanted: Decoding,
    progress: Progress = SILENT,
    pool_from: int = POOL_FROM,
) -> Iterator[Decoded]:
    """Yield the result of `decoding.decode` for each file, in order.

    Args:
        files: where the pictures are.
        wanted: what to make of each.
        progress: what to report each file to.
        pool_from: the number of files from which on other processes help.

    Raises:
        UserError: one of these processes died.
    """
    results = (
        _in_processes(files, wanted)
        if len(files) >= pool_from
        else (decoding.decode(file, wanted) for file in files)
    )
    with report_progress(progress, "Decoding images", len(files)) as update:
        for done, result in enumerate(results, 1):
            yield result
            update(done)


def _in_processes(files: Sequence[FileRef], wanted: Decoding) -> Iterator[Decoded]:
    # New processes ("spawn"): a fork of a process with torch's threads can hang
    pool = ProcessPoolExecutor(mp_context=get_context("spawn"))
    try:
        yield from pool.map(decoding.decode, files, repeat(wanted), chunksize=FILES_AT_ONCE)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that decodes images died: if memory ran out, close other programs; "
            "if this is your own script, put its work under `if __name__ == '__main__':`."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
