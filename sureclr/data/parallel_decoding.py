"""How many image files become pixels: in this process, or in as many as there are CPU cores."""

import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from sureclr.data import decoding
from sureclr.data.decoding import DecodedPicture, Decoding, FileRef
from sureclr.errors import UserError
from sureclr.progress import SILENT, Progress, report_progress
from sureclr.stopping import STOPPING, signals_held

POOL_FROM = 256  # fewer images are decoded in this process: starting others would take longer
FILES_AT_ONCE = 16  # handed to a worker at a time
# Handed out for each worker beyond what is yielded: results wait in memory for those before them
BATCHES_AHEAD = 4
IGNORED = STOPPING  # by the workers: their parent decides
POLL = 0.2  # seconds; a signal's handler runs at least this often

Decoded = DecodedPicture | str  # or the reason why a file cannot be read


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Connection


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
    with report_progress(progress, "Decoding images", len(files)) as update:
        done = 0
        if len(files) < pool_from:
            for done, file in enumerate(files, 1):
                yield decoding.decode(file, wanted)
                update(done)
            return
        with closing(_in_processes(files, wanted)) as batches:
            for results in batches:
                if not results:  # nothing is ready yet; the report may stop the work
                    update(done)
                for result in results:
                    yield result
                    done += 1
                    update(done)


def _in_processes(
    files: Sequence[FileRef], wanted: Decoding
) -> Generator[list[Decoded], None, None]:
    """Yield the results of all batches in order, and an empty list at least every `POLL` seconds.

    The workers ignore SIGINT and SIGTERM, which a terminal sends to them too, so that this process
    alone decides when to stop. It then kills them: they write nothing that could stay half done.
    """
    batches = range(0, len(files), FILES_AT_ONCE)  # the first file of each
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = min(cores or 1, 60)  # Windows cannot wait for more
    workers: list[_Worker] = []
    try:
        for _ in range(min(count, len(batches))):
            with signals_held():
                workers.append(_started())
        yield from _in_order(workers, files, wanted)
    except (EOFError, OSError) as error:
        raise UserError(
            "a process that decodes images died: if memory ran out, close other programs; "
            "if this is your own script, put its work under `if __name__ == '__main__':`."
        ) from error
    finally:
        with signals_held():
            for worker in workers:
                worker.process.kill()
            for worker in workers:
                worker.process.join()
                worker.pipe.close()


def _in_order(
    workers: list[_Worker], files: Sequence[FileRef], wanted: Decoding
) -> Iterator[list[Decoded]]:
    """Yield batches in order. Files are taken from the sequence only when a worker needs them."""
    batches = range(0, len(files), FILES_AT_ONCE)  # the first file of each
    ready: dict[int, list[Decoded]] = {}  # by number of the batch
    waiting, idle, first = deque(range(len(batches))), [worker.pipe for worker in workers], 0
    busy: list[Connection] = []
    while first < len(batches):
        while idle and waiting and waiting[0] < first + BATCHES_AHEAD * len(workers):
            pipe, number = idle.pop(), waiting.popleft()
            batch = files[batches[number] : batches[number] + FILES_AT_ONCE]
            pipe.send((number, decoding.decode, batch, wanted))
            busy.append(pipe)
        finished = wait(busy, timeout=POLL)
        for pipe in [pipe for pipe in busy if pipe in finished]:
            number, results = pipe.recv()
            ready[number] = results
            busy.remove(pipe)
            idle.append(pipe)
        if first not in ready:
            yield []
        while first in ready:
            yield ready.pop(first)
            first += 1


def _started() -> _Worker:
    """Start a worker that never sees SIGINT and SIGTERM, not even while it starts."""
    # A new process ("spawn"): a fork of a process with torch's threads can hang
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # which else is started below, and unblocks the signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        try:
            process.start()  # it inherits what is blocked
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:
        process.start()
    theirs.close()
    return _Worker(process, ours)


def _die_with_parent() -> None:
    """End this worker when its parent has gone, also in the middle of a large picture."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(pipe: Connection) -> None:
    """What a worker does until its parent has gone."""
    for ignored in IGNORED:
        signal.signal(ignored, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        while True:
            number, decode, files, wanted = pipe.recv()
            pipe.send((number, [decode(file, wanted) for file in files]))
    except (EOFError, OSError):  # the parent has gone
        return
