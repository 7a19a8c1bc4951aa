"""A run folder that cannot be written, and results that go elsewhere with --out.

A folder is made read-only for the process by the system's own answer (`os.access`, `os.open`),
because tests may run as root; one test mounts it read-only where that is allowed.
Witnesses: the bytes of the run folder before and after, and the numbers of a run that is writable.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import Messages

import sureclr
from sureclr.cli import main
from sureclr.errors import UserError
from sureclr.evaluation.evaluations import EVALUATIONS
from sureclr.evaluation.session import Session
from sureclr.finetuning.config import FinetuneConfig
from sureclr.progress import SILENT
from sureclr.training.run_dir import RunDir

QUIET: dict[str, Any] = {"device": "cpu", "progress": SILENT}


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may change."""
    monkeypatch.setenv("SURECLR_CACHE", str(trained / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def readonly(run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The run, in a folder where the system refuses every write; it must stay as it is."""
    access, open_, mkdir = os.access, os.open, os.mkdir

    def inside(path: Any) -> bool:
        place = Path(os.fsdecode(path)).absolute() if not isinstance(path, int) else Path("/")
        return place == run or run in place.parents

    def asked(path: Any, mode: int, **more: Any) -> bool:
        return access(path, mode, **more) and not (mode & os.W_OK and inside(path))

    def opened(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if inside(path) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_(path, flags, *more, **others)

    def made(path: Any, *more: Any, **others: Any) -> None:
        if inside(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        mkdir(path, *more, **others)

    before = content(run)
    monkeypatch.setattr(os, "access", asked)
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "mkdir", made)
    yield run
    assert content(run) == before


def failed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that exits with 2 says in one line."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    shown = capsys.readouterr()
    assert ended.value.code == 2 and not shown.out and shown.err.count("\n") == 1
    return shown.err


# --- A folder that cannot be written --------------------------------------------------


def test_new_results_are_made_and_one_sentence_says_that_they_are_not_kept(
    readonly: Path, trained: Path
) -> None:
    progress = Messages()
    found = sureclr.evaluate(readonly, ["knn", "geometry"], device="cpu", progress=progress)
    (sentence,) = [text for text in progress.messages if "not kept" in text]
    assert "Permission denied" in sentence and "out=DIR" in sentence and str(readonly) in sentence
    shutil.copytree(trained / "run", "usual")
    usual = sureclr.evaluate("usual", ["knn", "geometry"], **QUIET)
    assert dict(found) == dict(usual) and found.file is None and not found.kept
    assert usual.file == Path("usual/results.json")
    assert found.provenance["knn"].checkpoint == usual.provenance["knn"].checkpoint


def test_what_is_stored_is_used(run: Path, request: pytest.FixtureRequest) -> None:
    first = sureclr.evaluate(run, "knn", **QUIET)
    request.getfixturevalue("readonly")
    run_again = sureclr.evaluate(run, "knn", **QUIET)
    assert run_again.provenance == first.provenance  # the time of the first, so it is that one
    with Session(run, **QUIET) as session:
        table = session.inputs.table
        assert table.origin.startswith(f"checkpoint {session.run.checkpoint} ")


def test_the_commands_work_with_it(readonly: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = ["--device", "cpu"]
    main(["knn", str(readonly), *device])
    shown = capsys.readouterr()
    assert "accuracy" in shown.out and "--out DIR keeps them" in shown.err
    main(["label-next", str(readonly), "--budget", "2", *device])
    main(["predict", str(readonly), "--out", "answers.csv", *device])
    assert Path("next.csv").exists() and Path("answers.csv").exists()
    later = capsys.readouterr().err
    assert shown.err.count("not kept") == later.count("not kept") / 2 == 1
    assert "could not be kept" not in later  # of the classifier: one sentence is enough


def test_a_report_asks_for_a_place_before_it_computes(
    readonly: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("sureclr.evaluation.session.evaluate", None)  # calling it would fail
        sentence = failed(["report", str(readonly), "--device", "cpu"], capsys)
        assert "report.html" in sentence and "Permission denied" in sentence
        assert "--out" in sentence
    few = {name: EVALUATIONS[name] for name in ("linear", "geometry")}  # all take seconds
    monkeypatch.setattr("sureclr.evaluation.session.EVALUATIONS", few)
    progress = Messages()
    page = sureclr.report(readonly, out="page.html", device="cpu", progress=progress)
    assert sum("not kept" in text for text in progress.messages) == 1
    text = page.read_text()
    assert "linear.accuracy" in text and "There is no map" not in text


def test_finetuning_and_training_refuse_at_once(
    readonly: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sureclr.evaluation.session.read_or_stored_images", None)
    sentence = failed(["finetune", str(readonly), "--labels", "6", "--device", "cpu"], capsys)
    assert "cannot be written (Permission denied)" in sentence and "--out DIR" in sentence
    monkeypatch.setattr("sureclr.training.pretraining.training_images", None)
    sentence = failed(["pretrain", "--resume", str(readonly), "--device", "cpu"], capsys)
    assert "cannot be written (Permission denied)" in sentence


def test_damaged_results_in_it_are_no_obstacle(run: Path, request: pytest.FixtureRequest) -> None:
    (run / "results.json").write_text("{")
    request.getfixturevalue("readonly")
    progress = Messages()
    assert sureclr.evaluate(run, "knn", device="cpu", progress=progress)["knn"].accuracy
    assert any("results.json is damaged" in text for text in progress.messages)


def test_a_lock_of_another_user_is_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "lock").touch()
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != run / "lock" and access(path, mode)
    )
    assert not sureclr.evaluate(run, "knn", **QUIET).kept


@pytest.mark.slow
def test_a_disk_that_is_mounted_read_only(run: Path) -> None:
    words = ["unshare", "-m", "sh", "-c"]
    mount = f"mount --bind {run} {run} && mount -o remount,ro,bind {run}"
    if (
        not shutil.which("unshare")
        or subprocess.run([*words, mount], capture_output=True).returncode
    ):
        pytest.skip("this system lets nobody mount a folder read-only")
    before = content(run)
    command = f"{sys.executable} -m sureclr.cli knn {run} --device cpu --json"
    done = subprocess.run([*words, f"{mount} && {command}"], capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["n_test"] > 0
    assert "cannot be written (Read-only file system)" in done.stderr
    assert "Traceback" not in done.stderr and content(run) == before


# --- Results elsewhere ----------------------------------------------------------------


def test_results_go_to_the_chosen_folder_and_the_run_stays_as_it_is(readonly: Path) -> None:
    found = sureclr.evaluate(readonly, ["knn", "geometry"], out="elsewhere/results", **QUIET)
    folder = Path("elsewhere/results")
    assert {"results.json", "embeddings.parquet", "map.parquet"} <= set(os.listdir(folder))
    assert found.file == folder / "results.json" and found.kept
    again = sureclr.evaluate(readonly, ["knn"], out=folder, **QUIET)
    assert again.provenance["knn"] == found.provenance["knn"]
    assert dict(sureclr.read_results(folder)) == dict(found)
    page = sureclr.report(found, evaluate=False, progress=SILENT)
    assert page == folder / "report.html"
    assert "There is no map" not in page.read_text()


def test_what_the_run_holds_is_used_and_not_copied(run: Path) -> None:
    first = sureclr.evaluate(run, "knn", **QUIET)
    before = content(run)
    again = sureclr.evaluate(run, ["knn", "linear"], out="other", **QUIET)
    assert again.provenance["knn"] == first.provenance["knn"]
    assert list(sureclr.read_results(Path("other"))) == ["linear"]
    assert not Path("other/embeddings.parquet").exists() and content(run) == before


def test_the_report_finds_results_beside_its_page(run: Path) -> None:
    sureclr.evaluate(run, "knn", out="other", **QUIET)
    before = content(run)
    page = sureclr.report(run, out="other/page.html", evaluate=False, progress=SILENT)
    assert "knn.accuracy" in page.read_text() and content(run) == before
    page = sureclr.report(run, out="page.html", evaluate=False, progress=SILENT)
    assert "knn.accuracy" not in page.read_text()


def test_a_run_that_is_being_written_can_be_evaluated_elsewhere(run: Path) -> None:
    with RunDir(run).lock():
        with pytest.raises(UserError, match="another process"):
            sureclr.evaluate(run, "knn", **QUIET)
        assert sureclr.evaluate(run, "knn", out="other", **QUIET).kept
    with RunDir(Path("other")).lock(), pytest.raises(UserError, match="another process"):
        sureclr.evaluate(run, "knn", out="other", **QUIET)


def test_a_fine_tuning_goes_there_too(readonly: Path) -> None:
    config = FinetuneConfig(labels="6", epochs=1, seeds=1, learning_rates=(0.03,))
    result = sureclr.finetune(readonly, config=config, out="tuned", **QUIET)
    loaded = sureclr.load_finetuned("tuned", "6", "cpu")
    assert result.weights is not None and loaded.record.weights_sha256 == result.weights.sha256


def test_a_folder_of_something_else_is_refused_and_stays(
    run: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = shutil.copytree(trained / "photos", "photos")
    sureclr.evaluate(run, "knn", checkpoint="best", out="of-best", **QUIET)
    Path("file").write_text("mine")
    Path("link").symlink_to("nowhere")
    damaged = shutil.copytree("of-best", "damaged")
    (Path(damaged) / "run.json").write_text("{}")
    before = content(Path("."))
    for folder, why in (
        (run, "run folder"),
        (run / "inside", "run folder"),
        (trained / "run", "run folder"),
        (photos, "files that are no results"),
        ("file", "not a folder"),
        ("link", "not a folder"),
        ("of-best", "another checkpoint"),
        (damaged, "another checkpoint"),
    ):
        words = ["knn", str(run), "--device", "cpu", "--out", str(folder)]
        assert why in failed(words, capsys), folder
    assert content(Path(".")) == before
