"""Drives that are full, read-only, over quota or lost, at every writer and reader: one sentence.

An audit hook raises the system's errors where a file of the drive is opened, renamed or deleted; on
a real tmpfs, disks with too little room are tried at 20 sizes for every command.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from short_work import outcome, pretraining
from tiny import write_photos

from sureclr.cli import main
from sureclr.errors import UserError
from sureclr.files import DRAFT
from sureclr.progress import SilentProgress

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
failing: list[tuple[str, int, bool]] = []  # the drive, the error, whether reading fails too
left: list[int] = []  # operations that work before it fails


def _fail(event: str, arguments: tuple[Any, ...]) -> None:
    if not failing or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir"):
        return
    drive, number, reading = failing[0]
    places = [os.fspath(a) for a in arguments[:2] if isinstance(a, str | os.PathLike)]
    if not any(str(place).startswith(drive) for place in places):
        return
    if event == "open" and not (reading or (arguments[2] or 0) & WRITING):
        return
    if event == "os.listdir" and not reading:
        return
    if left and left[0] > 0:
        left[0] -= 1
        return
    raise OSError(number, os.strerror(number), places[0])


sys.addaudithook(_fail)  # it cannot be removed, and does nothing while no drive fails


@contextmanager
def lost(drive: Path, number: int, *, reading: bool = False) -> Iterator[None]:
    failing.append((str(drive), number, reading))
    try:
        yield
    finally:
        failing.clear()


class AfterSteps(SilentProgress):
    """Does something after so many steps of training."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.step, self.act, self.training = step, act, False

    def begin(self, task: str, total: int, done: int = 0) -> None:
        self.training = task == "Training"

    def update(self, done: int, numbers: Any = None) -> None:
        if self.training and done == self.step:
            self.act()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("lost") / "images")


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("finished") / "top"
    top.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURECLR_CACHE", "set by the work")
        pretraining(images, top)
    return top


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURECLR_CACHE", "set by the work")


def said_by(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which a command ends, after a check that it is one."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(words)
    said = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in said, said
    return said.strip().splitlines()[-1]


COMMANDS = {
    "resume": ["pretrain", "--resume", "RUN"],
    "knn": ["knn", "RUN"],
    "finetune": ["finetune", "RUN", "--labels", "12", "--seeds", "1", "--epochs", "1"],
    "predict": ["predict", "RUN", "IMAGES", "--out", "RUN/p.csv"],
    "report": ["report", "RUN", "--out", "RUN/r.html"],
}
SLOW_STEP = pytest.param(1, marks=pytest.mark.slow)
REASONS = ("EROFS", "EACCES", "EDQUOT", "EIO", "ESTALE", "ENOTCONN")


@pytest.mark.parametrize("reading", [False, True], ids=["writing", "reading"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_drive_that_fails_is_one_sentence_with_path_and_reason(
    images: Path,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    reading: bool,
) -> None:
    """One reason for each command here; all of them are of one kind for Python."""
    shutil.copytree(finished, tmp_path / "top")
    os.environ["SURECLR_CACHE"] = str(tmp_path / "top" / "cache")
    run = tmp_path / "top" / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words = [w.replace("RUN", str(run)).replace("IMAGES", str(images)) for w in COMMANDS[command]]
    for name in REASONS if command == "knn" else REASONS[len(command) % 3 :: 3]:
        number = getattr(errno, name)
        with lost(run, number, reading=reading):
            said = said_by(words, capsys)
        assert str(run) in said and os.strerror(number) in said, (name, said)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    after.pop(run / "lock", None), before.pop(run / "lock", None)
    assert after == before


@pytest.mark.parametrize("every", [80, SLOW_STEP])
def test_a_drive_that_fails_at_any_operation_is_one_sentence(
    images: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], every: int
) -> None:
    """EIO at the first, second, ... operation on the drive and from then on, for each command.

    A command that does not need the file may end well; none ends with a traceback.
    """
    tried = refused = 0
    wrong = []
    for command, template in COMMANDS.items():
        for first in range(3, 400, every):
            top = tmp_path / "top"
            shutil.rmtree(top, ignore_errors=True)
            shutil.copytree(finished, top)
            os.environ["SURECLR_CACHE"] = str(top / "cache")
            run = str(top / "run")
            words = [w.replace("RUN", run).replace("IMAGES", str(images)) for w in template]
            capsys.readouterr()
            left[:] = [first]
            try:
                with lost(top, errno.EIO, reading=True):
                    main(words)
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            except Exception as error:
                wrong.append(f"{command} at operation {first}: {error!r}")
                code = 1
            tried += 1
            refused += code == 2
            said = capsys.readouterr().err
            ending = said.strip().splitlines()[-1] if said.strip() else ""
            if code == 2 and not (os.strerror(errno.EIO) in ending and str(top) in ending):
                wrong.append(f"{command} at operation {first}: {ending}")
            worked, left[:] = left[0] > 0, []
            if worked:
                break
    print(f"lost drives: {tried} operations, {refused} refused, 0 tracebacks")
    assert wrong == [] and refused > 0


@pytest.mark.parametrize(
    "name", ["EROFS", *(pytest.param(name, marks=pytest.mark.slow) for name in REASONS[1:])]
)
def test_training_that_loses_its_drive_says_which_step_is_kept(
    images: Path, finished: Path, tmp_path: Path, name: str
) -> None:
    """After step 3; when the drive is back, the run goes on to the same end."""
    number, top = getattr(errno, name), tmp_path / "top"
    top.mkdir()
    run = top / "run"

    def lose() -> None:
        failing.append((str(run), number, True))

    with pytest.raises(UserError) as caught:
        try:
            pretraining(images, top, progress=AfterSteps(3, lose))
        finally:
            failing.clear()
    said = str(caught.value)
    assert os.strerror(number) in said and str(run) in said
    assert "step 2 is saved" in said and "resume=True" in said, said
    assert not [path for path in top.rglob("*") if DRAFT.fullmatch(path.name)]
    pretraining(images, top)
    assert outcome(top) == outcome(finished)


# --- A real disk with too little room -------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a namespace that may mount")
def test_every_command_on_a_full_disk_at_20_sizes(images: Path, tmp_path: Path) -> None:
    """Exit code 2 and one sentence; no draft; with room again, the command ends as it should."""
    program = Path(__file__).with_name("full_disk.py")
    search = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    if subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this system lets users make no namespace")
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, str(program), str(images), str(tmp_path / "base"), "20"],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == [] and found["commands"] == 8
    print(
        f"full disks: {found['commands']} commands at 20 sizes, {found['refused']} refused,"
        f" {found['tried'] - found['refused']} with enough room, 0 tracebacks, 0 drafts, 0 lost"
    )
