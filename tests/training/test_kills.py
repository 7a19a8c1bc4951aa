"""A kill at any file operation or instant loses nothing, and the end is bit for bit the same.

What a kill leaves is what lies on the disk before the next operation. So the work runs once, and
before each operation its folders are remembered as they are; each of these states is then a killed
run that must go on. That it is what a real SIGKILL leaves is tested too.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from short_work import outcome, pretraining, work
from tiny import write_photos

from sureclr import files
from sureclr.training import run_dir

State = dict[str, bytes | None]  # path below the folder -> content; None: a folder
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
listeners: list["States"] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if listeners and event in OPERATIONS:
        listener = listeners[0]
        if any(listener.name in str(argument) for argument in arguments):
            listeners.clear()  # what it does itself is not heard
            listener.look()
            listeners.append(listener)


sys.addaudithook(_hear)  # it cannot be removed, and does nothing while nobody listens


class States:
    """The states of a folder, one before each operation that finds it changed.

    Where a file has grown, half of the growth is a state too: a kill within a write.
    """

    def __init__(self, top: Path) -> None:
        self.top, self.name, self.found = top, str(top), list[State]()
        self._signature: Any = None
        self._contents: dict[tuple[int, ...], bytes] = {}

    def look(self) -> None:
        """Remember the state, and before it that in the middle of what was written since."""
        signature, state, fresh = [], State(), list[str]()
        for path in sorted(self.top.rglob("*")):
            name, status = str(path.relative_to(self.top)), path.lstat()
            if path.is_dir():
                state[name] = None
                signature.append((name,))
                continue
            key = (status.st_ino, status.st_mtime_ns, status.st_size)
            if key not in self._contents:
                self._contents[key] = path.read_bytes()
                fresh.append(name)
            state[name] = self._contents[key]
            signature.append((name, *key))
        if signature == self._signature:
            return
        self._signature = signature
        before = self.found[-1] if self.found else state  # what was there first was not written
        for name in fresh if self.found else ():
            old, new = before.get(name) or b"", state[name] or b""
            if len(new) > len(old) + 1:
                torn = new[: (len(old) + len(new)) // 2]
                self.found.append({**before, **_folders(name, state), name: torn})
        self.found.append(state)


def _folders(name: str, state: State) -> State:
    return {folder: None for folder in map(str, Path(name).parents) if folder in state}


@contextmanager
def recorded(top: Path) -> Iterator[list[State]]:
    """Remember the states of a folder before each file operation in the block, and after it."""
    states, real = States(top), {name: getattr(os, name) for name in ("fsync", "write", "pwrite")}

    def looking(call: Callable[..., Any]) -> Callable[..., Any]:
        def looks(*arguments: Any) -> Any:
            _hear("open", (top,))
            return call(*arguments)

        return looks

    with pytest.MonkeyPatch.context() as patch:
        for name, call in real.items():  # they have no event
            patch.setattr(os, name, looking(call))
        states.look()
        listeners.append(states)
        try:
            yield states.found
        finally:
            listeners.clear()
        states.look()


def written(state: State, top: Path) -> Path:
    """Make a folder of a state."""
    shutil.rmtree(top, ignore_errors=True)
    top.mkdir()
    for name, content in state.items():
        path = top / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return top


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("kills") / "images")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURECLR_CACHE", "set by the work")


def lost(states: list[State], top: Path, go_on: Callable[[], None], expected: Any) -> list[str]:
    """Go on from each state, and say for each that cannot, or ends otherwise, how it failed."""
    failures = []
    for number, state in enumerate(states):
        written(state, top)
        files._tidied.clear()  # as in a new process
        try:
            go_on()
            if outcome(top) != expected:
                failures.append(f"{number}: another end")
        except (Exception, AssertionError) as error:
            failures.append(f"{number}: {error!r}")
    return failures


# --- At every file operation ----------------------------------------------------------


@pytest.mark.parametrize("every", [80, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_file_operation_loses_nothing(
    images: Path, tmp_path: Path, every: int
) -> None:
    """R14: decoding into the cache, pretraining, kNN, linear, fine-tuning and predicting."""
    with recorded(tmp_path / "whole") as states:
        work(images, tmp_path / "whole")
    expected, top = outcome(tmp_path / "whole"), tmp_path / "again"
    assert len(states) > 120
    tried = states[3::every]
    assert lost(tried, top, lambda: work(images, top), expected) == []
    print(f"kills: {len(tried)} of {len(states)} states at file operations, 0 lost")


@pytest.mark.parametrize("every", [100, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_while_resuming_or_overwriting_loses_nothing(
    images: Path, tmp_path: Path, every: int
) -> None:
    """A run that was killed early is resumed and killed again; and one is overwritten."""
    top, again = tmp_path / "top", tmp_path / "again"
    top.mkdir()
    with recorded(top) as states:
        pretraining(images, top)
    expected = outcome(top)
    early = next(s for s in states if "run/checkpoints/step-000000002" in s)
    written(early, top)
    with recorded(top) as resuming:
        pretraining(images, top)
    assert outcome(top) == expected and len(resuming) > 50
    assert lost(resuming[2::every], again, lambda: pretraining(images, again), expected) == []

    with recorded(top) as overwriting:
        pretraining(images, top, overwrite=True, resume=False, seed=7)
    other = outcome(top)
    assert other["weights"] != expected["weights"]

    def overwrite() -> None:
        pretraining(images, again, overwrite=True, resume=False, seed=7)

    assert lost(overwriting[2::every], again, overwrite, other) == []
    count = len(resuming[2::every]) + len(overwriting[2::every])
    print(f"kills: {count} at file operations of resuming and overwriting, 0 lost")


@contextmanager
def writing_in_place(path: Path) -> Iterator[IO[bytes]]:
    """What a naive program does."""
    with path.open("wb") as file:
        yield file


@contextmanager
def folder_in_place(path: Path) -> Iterator[Path]:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    yield path


def test_a_naive_saver_fails_this_test(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: files are written in their places, and one checkpoint is kept."""
    monkeypatch.setattr(files, "writing_atomically", writing_in_place)
    monkeypatch.setattr(run_dir, "writing_folder_atomically", folder_in_place)
    top, again = tmp_path / "top", tmp_path / "again"
    top.mkdir()
    with recorded(top) as states:
        pretraining(images, top)
    expected = outcome(top)
    changing = [s for s in states if "run/config.yaml" in s][:4]
    assert len(lost(changing, again, lambda: pretraining(images, again), expected)) > 0


KILLING = """
import os, signal, sys
from pathlib import Path
import test_kills
from short_work import work

class Killing(test_kills.States):
    def look(self):
        super().look()
        if len(self.found) >= int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

test_kills.States = Killing
with test_kills.recorded(Path(sys.argv[2])):
    work(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_remembered_state_is_what_sigkill_leaves(images: Path, tmp_path: Path) -> None:
    """But for the random names of drafts, a file that is half written, and the speed of training.

    It also takes its place in the test above: what it leaves goes on.
    """
    with recorded(tmp_path / "whole") as states:
        work(images, tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    here = Path(__file__).parent
    search = os.pathsep.join([str(here), str(here.parent), *sys.path])
    for number in range(5, len(states), len(states) // 8):
        top = tmp_path / f"killed{number}"
        words = [sys.executable, "-c", KILLING, str(images), str(top), str(number)]
        done = subprocess.run(words, env={**os.environ, "PYTHONPATH": search}, check=False)
        assert done.returncode == -signal.SIGKILL
        left = {_plain(str(path.relative_to(top))) for path in top.rglob("*")}
        near = [{_plain(name) for name in state} for state in states[number - 4 : number + 4]]
        assert left in near, number
        work(images, top)
        assert outcome(top) == expected, number


def _plain(name: str) -> str:
    return re.sub(r"\.sureclr-draft-\w+", "draft", name)


# --- At random instants ---------------------------------------------------------------


@pytest.mark.slow
def test_200_kills_at_random_instants_lose_nothing(images: Path, tmp_path: Path) -> None:
    """Real processes and SIGKILL; the work goes on each time, until it is whole."""
    program = Path(__file__).with_name("short_work.py")
    search = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, str(program), str(images), str(tmp_path), "200"],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    print(f"kills: {counts['kills']} at random instants, {counts['lost']} lost: {counts}")
    assert counts["kills"] == 200 and counts["lost"] == 0 and counts["finished"] > 5
