"""Ctrl-C, SIGTERM and a closed terminal, at any moment of any command, once and more often.

Each is a real process in a group of its own. Whatever the moment: one sentence, the exit code 128 +
signal, nobody of the group left within five seconds, no draft, and the next command goes on to the
same result.
"""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import equal

from sureclr.files import DRAFT

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc, and sends signals to groups"
)
FLAGS = [  # of a run of seconds, with whatever a run can have
    *("--encoder", "small-10", "--projection-dim", "8", "--warmup-epochs", "0", "--device", "cpu"),
    *("--checkpoint-every", "2", "--snapshot-every", "4", "--monitor-every", "2", "--size", "12"),
]
WITHIN = 5.0  # seconds from the first signal until the whole group has gone
# Of the processor, for Python's own end where a command has finished: 0.8 s, here measured
AT_END = 2.0


@dataclass
class Ended:
    """How a command ended."""

    code: int
    errors: str
    seconds: float
    left: bool  # whether a process of its group still lived after so long
    computed: float  # seconds of the processor after the signal

    def refused(self) -> list[str]:
        """What is wrong with it, if anything."""
        said = [line for line in self.errors.splitlines() if "stopped by SIG" in line]
        wrong = []
        if self.code not in (0, 129, 130, 143):
            wrong.append(f"exit code {self.code}")
        if self.code and len(said) != 1:
            wrong.append(f"{len(said)} sentences")
        if "Traceback" in self.errors or "Exception ignored" in self.errors:
            wrong.append("a traceback")
        if self.left:
            wrong.append("a process is left")
        if self.code and self.seconds > WITHIN:
            wrong.append(f"{self.seconds:.1f} s")
        if not self.code and self.computed > AT_END:
            wrong.append(f"it went on for {self.computed:.1f} s")
        return [f"{each}: {self.errors[-1500:]}" for each in wrong]


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "SURECLR_CACHE": str(cache)}


def start(words: list[str], cache: Path) -> subprocess.Popen[str]:
    """Start a command, and wait until it listens to signals: Python itself takes that long."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sureclr.cli", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(cache),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also under `nohup`
    )
    while process.poll() is None and not listens(process.pid):
        time.sleep(0.002)
    return process


def listens(pid: int) -> bool:
    """Whether the process handles SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)  # type: ignore[index]
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def interrupt(
    process: subprocess.Popen[str], signals: list[signal.Signals], *, group: bool, gap: float = 0.05
) -> Ended:
    """Send signals to a command or its whole group, and wait until the group has gone."""
    sent, before = time.monotonic(), processor_seconds(process.pid)
    after = before
    for number in signals:
        try:
            (os.killpg if group else os.kill)(process.pid, number)
        except ProcessLookupError:
            break
        time.sleep(gap if len(signals) > 1 else 0)
    while (alive := lives(process.pid)) and time.monotonic() - sent < 2 * WITHIN:
        if process.poll() is None:  # and else it is no longer a zombie of the group
            after = max(after, processor_seconds(process.pid))
        time.sleep(0.005)
    seconds = time.monotonic() - sent
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    return Ended(process.returncode, errors, seconds, alive, after - before)


def lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def draft_files(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob(".*") if DRAFT.fullmatch(path.name)]


def write_images(folder: Path, count: int, size: int = 24) -> Path:
    """Two classes, dark and bright; enough of them for decoding in several processes."""
    generator = np.random.default_rng(0)
    for number in range(count):
        low = 100 * (number % 2)
        place = folder / ("bright" if low else "dark") / f"{number:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(low, low + 120, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place)
    return folder


def pretraining(photos: Path, out: Path, *more: str) -> list[str]:
    source = f"folder:{photos}"
    return ["pretrain", source, *FLAGS, "--out", str(out), *more]


# --- The ordinary form ----------------------------------------------------------------


def test_a_signal_while_a_command_is_imported_is_one_sentence(tmp_path: Path) -> None:
    """Before, SIGTERM said nothing, and Ctrl-C ended in the middle of a traceback."""
    process = start(["knn", str(tmp_path)], tmp_path)
    ended = interrupt(process, [signal.SIGTERM, signal.SIGINT], group=False)
    assert not ended.refused() and ended.code == 143
    assert ended.errors.startswith("sureclr: stopped by SIGTERM; no file is half written")


def test_a_signal_while_images_are_decoded_leaves_neither_process_nor_draft(tmp_path: Path) -> None:
    """Case R9. A closed terminal sends SIGHUP to the whole group."""
    photos, cache = write_images(tmp_path / "photos", 300), tmp_path / "cache"
    big = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
    Image.fromarray(big).save(photos / "dark" / "zz.png", compress_level=1)
    for name in range(40):
        os.link(photos / "dark" / "zz.png", photos / "dark" / f"zz{name}.png")
    process = start(pretraining(photos, tmp_path / "run"), cache)
    while process.poll() is None and not draft_files(cache):
        time.sleep(0.01)
    ended = interrupt(process, [signal.SIGHUP, signal.SIGINT], group=True)
    assert not ended.refused() and ended.code == 129
    assert not draft_files(cache) and not (tmp_path / "run").exists()


LONG_CALL = """
import hashlib, sys
from pathlib import Path
from sureclr.stopping import drafts, run_as_a_command

def work():
    drafts.add(Path(sys.argv[1]))
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)  # half a minute without Python

run_as_a_command(work, ends_process=True)
"""
SWALLOWED = """
import time
from sureclr.stopping import run_as_a_command

class Careless:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(0.6)  # Python has to ignore what is raised here

def work():
    while True:
        Careless()
        time.sleep(0.6)

run_as_a_command(work, ends_process=True)
"""


def test_python_that_swallows_the_stop_gets_it_again(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SWALLOWED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    ended = interrupt(process, [signal.SIGINT], group=False)
    assert not ended.refused() and ended.code == 130 and ended.seconds < 2


@pytest.mark.parametrize(("count", "within"), [(1, 4.5), (3, 1.5)])
def test_code_that_does_not_return_cannot_hold_a_signal_up(
    tmp_path: Path, count: int, within: float
) -> None:
    (tmp_path / "draft").write_bytes(b"")
    process = subprocess.Popen(
        [sys.executable, "-c", LONG_CALL, str(tmp_path / "draft")],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not listens(process.pid):
        time.sleep(0.01)
    time.sleep(0.1)
    ended = interrupt(process, [signal.SIGTERM] * count, group=False)
    assert not ended.refused() and ended.code == 143 and ended.seconds < within
    assert ("at once" in ended.errors) == (count == 3)
    assert not (tmp_path / "draft").exists()


# --- Fifty of them --------------------------------------------------------------------


@dataclass
class Scene:
    """A command that is interrupted again and again, and then finished.

    Attributes:
        name: of the command.
        words: of the first try.
        again: of the later ones, once there is something to go on with.
        folder: what it writes into.
        prepare: makes the folder as it is before the first try.
        result: what must be the same as after a command that nobody interrupted.
        expected: what it was then.
        seconds: of the processor that it took; the clock depends on what else the machine does.
    """

    name: str
    words: list[str]
    folder: Path
    cache: Path
    prepare: Callable[[], Any]
    result: Callable[[], Any]
    again: list[str] = field(default_factory=list)
    expected: Any = None
    seconds: float = 0.0

    def next_words(self) -> list[str]:
        return self.again if self.again and (self.folder / "config.yaml").exists() else self.words

    def finish(self) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "sureclr.cli", *self.next_words()],
            capture_output=True,
            text=True,
            env=environment(self.cache),
        )
        assert done.returncode == 0, f"{self.name}: {done.stderr}"
        return self.result()


def without_clock(value: Any) -> Any:
    """JSON without what depends on the time and the clock."""
    if isinstance(value, dict):
        left_out = ("time", "seconds", "sha256")
        return {k: without_clock(v) for k, v in value.items() if k not in left_out}
    return [without_clock(v) for v in value] if isinstance(value, list) else value


def json_in(folder: Path) -> Any:
    """All JSON files of a folder, without the clock."""
    files = sorted(folder.rglob("*.json"))
    names = [str(file.relative_to(folder)) for file in files]
    return [names, *(without_clock(json.loads(file.read_bytes())) for file in files)]


def scenes(place: Path) -> list[Scene]:
    photos = write_images(place / "photos", 300)
    cache, run, unbroken = place / "cache", place / "trained", place / "unbroken"
    train = ("--epochs", "8", "--batch-size", "80")
    subprocess.run(
        [sys.executable, "-m", "sureclr.cli", *pretraining(photos, run, *train)],
        check=True,
        capture_output=True,
        env=environment(cache),
    )

    def scene(name: str, words: list[str], result: Callable[[Path], Any], fresh: bool) -> Scene:
        """A command on a copy of the trained run, or one that makes a run."""
        home = place / name
        folder, own = home / "run", home / "cache"

        def prepare() -> None:
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            if not fresh:
                shutil.copytree(run, folder)
                shutil.copytree(cache, own)

        words = [word.replace("RUN", str(folder)).replace("HOME", str(home)) for word in words]
        again = ["pretrain", "--resume", str(folder), "--device", "cpu"] if fresh else []
        return Scene(name, words, folder, own, prepare, lambda: result(folder), again)

    def rows(folder: Path) -> Any:
        return [list(csv.reader(path.open())) for path in sorted(folder.parent.glob("*.csv"))]

    shutil.copytree(run, unbroken)
    on = ["RUN", "--device", "cpu"]
    return [
        scene(
            "pretrain",
            pretraining(photos, Path("RUN"), *train),
            lambda folder: equal(folder, unbroken),
            True,
        ),
        scene("evaluate", ["evaluate", *on], json_in, False),
        scene("uncertainty", ["uncertainty", *on], json_in, False),
        scene(
            "finetune",
            ["finetune", *on, "--labels", "40", "--seeds", "2", "--epochs", "2", "--lr", "0.03"],
            lambda folder: json_in(folder / "finetuned"),
            False,
        ),
        scene("predict", ["predict", "RUN", str(photos), "--out", "HOME/p.csv"], rows, False),
        scene(
            "label-next", ["label-next", *on, "--budget", "9", "--out", "HOME/n.csv"], rows, False
        ),
        scene("report", ["report", *on], lambda folder: (folder / "report.html").exists(), False),
    ]


@pytest.mark.slow
def test_fifty_interrupts_in_every_command(tmp_path: Path) -> None:
    """Each command is interrupted seven times in one folder, and pretraining eight times."""
    found = scenes(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda i: interrupted(found[i], 8 if i == 0 else 7, i), range(7)))
    ended = [each for part in parts for each in part]
    wrong = [f"{how}: {text}" for how, each in ended for text in each.refused()]
    tracebacks = sum("Traceback" in each.errors for _, each in ended)
    left = sum(each.left for _, each in ended)
    slowest = max(each.seconds for _, each in ended if each.code)
    stopped = sum(each.code != 0 for _, each in ended)
    print(
        f"\ninterrupts: {len(ended)} sent, {stopped} stopped, {len(ended) - stopped} had finished,"
        f" slowest {slowest:.1f} s, {tracebacks} tracebacks, {left} children left"
    )
    assert not wrong, "\n".join(wrong)
    assert stopped == 50


def interrupted(scene: Scene, count: int, seed: int) -> list[tuple[str, Ended]]:
    """Interrupt a command, then finish it, and compare with one that nobody interrupted."""
    draw = random.Random(seed)
    scene.prepare()
    process = start(scene.next_words(), scene.cache)
    while process.poll() is None:
        scene.seconds = max(scene.seconds, processor_seconds(process.pid))
        time.sleep(0.01)
    assert process.returncode == 0, process.communicate()
    scene.expected = scene.result()
    scene.prepare()
    ended: list[tuple[str, Ended]] = []
    shorter = 1.0  # what is done already is not done again
    while (stopped := sum(each.code != 0 for _, each in ended)) < count:
        first = draw.choice([signal.SIGINT, signal.SIGTERM])
        second = draw.choice([first, signal.SIGINT])
        signals = [first, second, first][: draw.choice([1, 1, 2, 2, 3])]
        moment = (stopped + draw.random()) / count * scene.seconds * shorter
        process = start(scene.next_words(), scene.cache)
        while process.poll() is None and processor_seconds(process.pid) < moment:
            time.sleep(0.005)
        if process.poll() is not None:  # too late; finished
            assert process.returncode == 0, process.communicate()
            scene.prepare()
            shorter *= 0.9
            continue
        group = draw.random() < 0.5
        each = interrupt(process, signals, group=group, gap=draw.choice([0.005, 0.05]))
        names = " ".join(each.name for each in signals)
        how = f"{scene.name} after {moment:.2f} of {scene.seconds:.2f} s, {names}, {group=}"
        ended.append((how, each))
        left = draft_files(scene.folder.parent)
        assert not left, f"{how}: {left}"
        if each.code == 0:  # it had finished, and was about to end
            scene.prepare()
            shorter *= 0.9
    assert scene.finish() == scene.expected, scene.name
    return ended


def processor_seconds(pid: int) -> float:
    """Return what a process of ours has computed, until somebody has waited for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
