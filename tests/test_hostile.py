"""Nothing gets in: a hundred hostile files, each given to the command that reads it.

The slow test runs the commands as a stranger's victim would, and looks at what a victim sees: the
exit code, a sentence or a traceback, seconds, memory, and whether a file elsewhere has changed. The
ordinary tests give the same kinds of files to the readers themselves.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import hostile_files as hostile
import pytest
from hostile_files import Case
from tiny import write_photos

from sureclr.config import read_yaml
from sureclr.data.decoding import FileRef, decode
from sureclr.data.embeddings import Embeddings
from sureclr.data.label_file import read_label_rows
from sureclr.data.label_request import LabelFile
from sureclr.data.map_file import read_map
from sureclr.data.sources import load_images
from sureclr.errors import UserError
from sureclr.evaluation.foreign_images import read_human_shares as read_shares
from sureclr.evaluation.results import read_results
from sureclr.training.image_record import ImageRecord
from sureclr.training.run_dir import verified

TRIED = int(os.environ.get("HOSTILE_INPUTS", "100"))  # more are tried by hand: there are hundreds
SECONDS, MEGABYTES = 5, 500  # beyond the imports of a command, and those of torch alone
PATIENCE = 120  # seconds of the clock, after which a command counts as hung
FLAGS = ("--encoder", "small-10", "--projection-dim", "8", "--device", "cpu", "--size", "8")
PRETRAIN = ("pretrain", "folder:photos", "--out", "run", *FLAGS, "--batch-size", "8")
ON_TERMINAL = (b"\x1b[2J", b"\x07", "\x9b".encode(), "\u202e".encode())

# Runs a command and writes down what the process took at most; the peak of a child that `wait4`
# gives includes that of the parent it was forked from.
RUNNER = """
import resource, sys
place, words = sys.argv[1], sys.argv[2:]
try:
    if not words:
        import torch
    elif words == ["imports"]:
        import sureclr.compat, timm, sklearn.linear_model, matplotlib.pyplot, pyarrow.parquet
        import sureclr.evaluation.session, sureclr.reporting.page
    else:
        from sureclr.cli import main
        main(words)
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1]
    open(place, "w").write(f"{peak} {used.ru_utime + used.ru_stime}")
"""


@dataclass(frozen=True)
class Outcome:
    """What became of a command: megabytes and seconds of the processor are its own."""

    code: int
    text: bytes
    megabytes: float
    seconds: float
    hung: bool = False


def run(words: tuple[str, ...], folder: Path, cache: Path) -> Outcome:
    place = cache.with_name("peak")
    place.unlink(missing_ok=True)
    env = {**os.environ, "SURECLR_CACHE": str(cache), "HOME": str(cache.with_name("home"))}
    env["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-c", RUNNER, str(place), *words]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdin=subprocess.PIPE,  # which nobody closes: a command that reads it waits
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdin and process.stdout
    timer_stopped = []

    def stop() -> None:
        timer_stopped.append(True)
        process.kill()

    import threading

    timer = threading.Timer(PATIENCE, stop)
    timer.start()
    text = process.stdout.read()
    process.wait()
    timer.cancel()
    process.stdin.close()
    process.stdout.close()
    if not place.exists():
        return Outcome(process.returncode, text, 0, 0, bool(timer_stopped))
    peak, seconds = map(float, place.read_text().split())
    return Outcome(process.returncode, text, peak / 1024, seconds, bool(timer_stopped))


def write_victim(folder: Path) -> None:
    """Files outside, with names such that a command which follows links would change them."""
    for name in ("folder/step-000000001", "folder/.draft-1"):
        (folder / name).mkdir(parents=True)
    for name in (
        "file",
        "folder/keep",
        "folder/step-000000001/manifest.json",
        "folder/epoch-00001.safetensors",
        "folder/linear-0.json",
        "folder/linear-0.safetensors",
        "folder/100%-000000000000.safetensors",
        "folder/.draft-1/file",
    ):
        (folder / name).write_text("precious")


def state_of(folder: Path) -> str:
    """A digest of all names, kinds and contents below a folder."""
    total = sha256()
    for path in sorted(folder.rglob("*")):
        kind = path.lstat().st_mode
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        total.update(f"{path.relative_to(folder)} {kind} ".encode() + content)
    return total.hexdigest()


def chosen(cases: list[Case], count: int) -> list[Case]:
    """Some of the cases: one of each file in turn, and of its kinds first those least used yet."""
    by_file: dict[str, list[Case]] = {}
    for case in random.Random(0).sample(cases, len(cases)):
        by_file.setdefault(case.name.partition(":")[0], []).append(case)
    found: list[Case] = []
    used: dict[str, int] = {}
    while len(found) < min(count, len(cases)):
        for group in [group for group in by_file.values() if group]:
            case = min(group, key=lambda case: used.get(case.name.partition(":")[2], 0))
            group.remove(case)
            used[case.name.partition(":")[2]] = used.get(case.name.partition(":")[2], 0) + 1
            found.append(case)
    return found[:count]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything in it, and its photos."""
    folder = tmp_path_factory.mktemp("base")
    write_photos(folder / "photos")
    cache = tmp_path_factory.mktemp("first") / "cache"
    snapshots = ("--epochs", "2", "--snapshot-every", "1", "--checkpoint-every", "1")
    for words in (
        (*PRETRAIN, *snapshots),
        ("evaluate", "run"),
        ("predict", "run", "photos/dark", "--out", "first.csv"),
        ("finetune", "run", "--labels", "100%", "--epochs", "1"),
    ):
        outcome = run(words, folder, cache)
        assert outcome.code == 0, outcome.text.decode()
    return folder


def try_case(case: Case, base: Path, work: Path) -> tuple[Outcome, bool]:
    """Run the command of a case in a copy; the second value: whether a file outside changed."""
    shutil.copytree(base, work / "in", symlinks=True)
    write_victim(work / "victim")
    (work / "home").mkdir()
    case.plant(work / "in")
    before = state_of(work / "victim")
    outcome = run(case.words, work / "in", work / "in" / "cache")
    changed = state_of(work / "victim") != before
    shutil.rmtree(work)
    return outcome, changed


@pytest.mark.slow
def test_a_hundred_hostile_inputs_end_in_a_sentence(base: Path, tmp_path: Path) -> None:
    idle = run((), tmp_path, tmp_path / "cache")
    imports = run(("imports",), tmp_path, tmp_path / "cache")
    assert idle.code == imports.code == 0
    cases = chosen(hostile.CASES, TRIED)
    folders = [tmp_path / str(number) for number in range(len(cases))]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda c, f: try_case(c, base, f), cases, folders))
    wrong = []
    for case, (outcome, changed) in zip(cases, found, strict=True):
        slow = outcome.seconds - imports.seconds
        more = outcome.megabytes - idle.megabytes
        faults = {
            f"exit code {outcome.code}": outcome.code not in case.codes,
            "no words": not outcome.text.strip(),
            "a traceback": b"Traceback" in outcome.text,
            "it hangs": outcome.hung,
            "a file outside changed": changed,
            f"{more:.0f} MB": more > MEGABYTES,
            f"{slow:.1f} s": slow > SECONDS,
            "writes to the terminal": any(word in outcome.text for word in ON_TERMINAL),
        }
        if any(faults.values()):
            words = [word for word, wrong in faults.items() if wrong]
            wrong.append((case.name, words, outcome.text.decode(errors="replace")[-300:]))
    print(
        f"hostile inputs: {len(cases)} tried,"
        f" {sum(b'Traceback' in o.text for o, _ in found)} tracebacks,"
        f" {sum(o.hung for o, _ in found)} hangs,"
        f" {sum(changed for _, changed in found)} files outside changed,"
        f" highest memory {max(o.megabytes for o, _ in found) - idle.megabytes:.0f} MB,"
        f" longest {max(o.seconds for o, _ in found) - imports.seconds:.1f} s"
    )
    assert not wrong
    assert len(cases) == TRIED


# --- The readers themselves -----------------------------------------------------------


def read_labels(path: Path) -> Any:
    return read_label_rows(LabelFile(path), lambda name: name == "dark/00.png", ("dark", "bright"))


def read_source(kind: str, path: Path) -> Any:
    return load_images(f"{kind}:{path}")


def read_checkpoint(path: Path) -> Any:
    if verified(path.parent) is None:
        raise UserError("damaged")


def read_picture(path: Path) -> Any:
    if isinstance(reason := decode(FileRef(str(path))), str):
        raise UserError(reason)


def read_human_shares(path: Path) -> Any:
    return read_shares(path, DIGITS)


def read_record(path: Path) -> Any:
    if ImageRecord.read(path) is None:
        raise UserError("damaged")


DIGITS = load_images("digits")
READERS: dict[str, Callable[[Path], Any]] = {
    "config.yaml": read_yaml,
    "results.json": lambda path: read_results(path.parent),
    "step-000000001/manifest.json": read_checkpoint,
    "embeddings.parquet": Embeddings.read,
    "map.parquet": read_map,
    "training_images.parquet": read_record,
    "l.csv": read_labels,
    "l.json": read_labels,
    "l.parquet": read_labels,
    "l.txt": partial(read_source, "list"),
    "t.tar": partial(read_source, "tar"),
    "p.parquet": partial(read_source, "parquet"),
    "p.arrow": partial(read_source, "parquet"),
    "a.png": read_picture,
    "a.npy": read_picture,
    "h.npy": read_human_shares,
}
SLOW_TO_MAKE = ("a line of 100 MB", "a million keys", "a very long name", "a million lists")
QUICK = {k: v for k, v in {**hostile.ANY_FILE, **hostile.JSON}.items() if k not in SLOW_TO_MAKE}


@pytest.fixture
def in_time() -> Iterator[None]:
    """End a test that waits for a pipe or reads a device for ever."""

    def fail(*_: Any) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a case expects it, and beside it the victim's."""
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "in/photos")
    write_victim(tmp_path / "victim")
    monkeypatch.chdir(tmp_path / "in")
    return tmp_path / "in"


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_every_kind(name: str, room: Path, in_time: None) -> None:
    path = room / name
    before, refused = state_of(room.parent / "victim"), 0
    for kind, make in QUICK.items():
        make(path)
        start = time.process_time()
        try:
            READERS[name](path)
        except UserError as error:
            refused += 1
            assert str(error).strip()
        assert time.process_time() - start < SECONDS, kind
    assert refused >= len(QUICK) / 2
    assert state_of(room.parent / "victim") == before
