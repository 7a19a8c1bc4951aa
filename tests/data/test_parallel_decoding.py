"""Many files in several processes: order, reports, a process that dies, and Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dying import die
from PIL import Image

from sureclr.data import decoding, parallel_decoding
from sureclr.data.decoding import DecodedPicture, Decoding, FileRef
from sureclr.data.parallel_decoding import FILES_AT_ONCE, decode_files
from sureclr.errors import UserError


class Recorder:
    """Remembers what was reported, and raises at a given report."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.tasks: list[tuple[str, int]] = []
        self.done: list[int] = []
        self.open, self.stop_at = 0, stop_at

    def begin(self, task: str, total: int, done: int = 0) -> None:
        self.tasks.append((task, total))
        self.open += 1

    def update(self, done: int, numbers: Any = None) -> None:
        self.done.append(done)
        if self.stop_at is not None and done >= self.stop_at:
            raise KeyboardInterrupt

    def message(self, text: str) -> None: ...

    def finish(self) -> None:
        self.open -= 1


@pytest.fixture
def files(tmp_path: Path) -> list[FileRef]:
    """More batches than are handed out at first; each picture is of its own grey."""
    for number in range(90):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "bad.png").write_bytes(b"x")
    return [FileRef(str(file)) for file in sorted(tmp_path.iterdir())]


def test_processes_give_what_one_gives_in_order_and_report(
    files: list[FileRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel_decoding, "FILES_AT_ONCE", 4)
    monkeypatch.setattr(parallel_decoding, "BATCHES_AHEAD", 2)
    wanted, recorder = Decoding(6, 3, 7), Recorder()
    here = list(decode_files(files, wanted, pool_from=92))
    there = list(decode_files(files, wanted, recorder, pool_from=91))
    assert isinstance(here[-1], str) and here[-1] == there[-1]
    for number, (mine, other) in enumerate(zip(here[:-1], there[:-1], strict=True)):
        assert isinstance(mine, DecodedPicture) and isinstance(other, DecodedPicture)
        assert (mine.square == number).all() and np.array_equal(mine.square, other.square)
        assert np.array_equal(mine.whole, other.whole)  # type: ignore[arg-type]
        assert mine.content == other.content
    assert recorder.tasks == [("Decoding images", 91)] and recorder.open == 0
    assert sorted(set(recorder.done) | {0}) == list(range(92))
    assert recorder.done == sorted(recorder.done)


def test_a_process_that_dies_is_one_sentence_and_leaves_no_other(
    files: list[FileRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "decode", die)
    with pytest.raises(UserError, match="a process that decodes images died"):
        list(decode_files(files, Decoding(8), pool_from=1))
    assert children() == []


def test_a_stop_ends_the_processes(files: list[FileRef]) -> None:
    recorder = Recorder(stop_at=FILES_AT_ONCE + 1)
    with pytest.raises(KeyboardInterrupt):
        list(decode_files(files, Decoding(8), recorder, pool_from=1))
    assert recorder.open == 0 and children() == []


def test_a_reader_that_stops_early_ends_the_processes(files: list[FileRef]) -> None:
    results = decode_files(files, Decoding(8), pool_from=1)
    next(results)
    assert children()
    results.close()  # type: ignore[attr-defined]
    assert children() == []


def children() -> list[int]:
    """The decoding processes that this process has started and that still live."""
    import multiprocessing

    return [child.pid for child in multiprocessing.active_children() if child.pid]


SCRIPT = """
import sys
from sureclr.data.decoding import Decoding, FileRef
from sureclr.data.parallel_decoding import decode_files
from sureclr.progress import SILENT, Stoppable
from sureclr.stopping import Stopped, stop_on_signals

if __name__ == "__main__":
    with stop_on_signals() as flag:
        print("ready", flush=True)
        progress = Stoppable(SILENT, flag, "nothing was saved")
        try:
            files = [FileRef(sys.argv[1])] * 4000
            for _ in decode_files(files, Decoding(8), progress):
                print("decoded", flush=True)
        except Stopped as stopped:
            sys.exit(stopped.exit_code)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a process group")
@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGINT, "while they start"), (signal.SIGTERM, "while they decode")],
)
def test_ctrl_c_to_the_whole_group_ends_within_seconds(
    tmp_path: Path, number: signal.Signals, moment: str
) -> None:
    """As a terminal sends it: every process of the group gets the signal."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png", compress_level=1)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "a.png")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        assert process.stdout.readline() == "ready\n"
        if moment == "while they decode":
            assert process.stdout.readline() == "decoded\n"
        else:
            time.sleep(0.15)
        sent = time.monotonic()
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 128 + number, errors
        while time.monotonic() - sent < 5 and group_lives(process.pid):
            time.sleep(0.02)
        assert time.monotonic() - sent < 5 and not group_lives(process.pid)
        assert errors == ""
    finally:
        if group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


ENDLESS = """
import sys
from dying import sleep
from sureclr.data import decoding
from sureclr.data.decoding import Decoding, FileRef
from sureclr.data.parallel_decoding import decode_files

if __name__ == "__main__":
    decoding.decode = sleep
    list(decode_files([FileRef(sys.argv[1])] * 4000, Decoding(8)))
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_processes_die_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Also in the middle of a picture, and also where that one is killed by SIGKILL."""
    (tmp_path / "script.py").write_text(ENDLESS)
    tests = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "a.png")],
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tests}:{os.environ.get('PYTHONPATH', '.')}"},
    )
    try:
        while process.poll() is None and not (tmp_path / "a.png.begun").exists():
            time.sleep(0.01)
        process.kill()
        killed = time.monotonic()
        _, errors = process.communicate(timeout=20)
        while time.monotonic() - killed < 3 and group_lives(process.pid):
            time.sleep(0.01)
        assert not group_lives(process.pid) and errors == ""
    finally:
        if group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
