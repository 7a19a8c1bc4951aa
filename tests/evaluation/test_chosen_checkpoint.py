"""Another checkpoint than the last: its numbers, its files, and that it never mixes with the last.

Witnesses: a run that was stopped at that step, and the files of the run folder.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import train, write_photos

import sureclr
from sureclr.cli import main
from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError
from sureclr.evaluation.results import save_result
from sureclr.evaluation.session import Session
from sureclr.finetuning.config import FinetuneConfig
from sureclr.progress import SILENT
from sureclr.training.run_dir import RunDir

QUIET: dict[str, Any] = {"device": "cpu", "progress": SILENT}
STEPS = 8


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps whose best checkpoint is of step 2, the first that is as good as any."""
    place = tmp_path_factory.mktemp("chosen")
    source = f"folder:{write_photos(place / 'photos')}"
    options: dict[str, Any] = {"size": 8, "batch_size": 8, "warmup_epochs": 0, "monitor_every": 1}
    train(place / "run", None, source=source, epochs=4, **options)
    return place


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may change."""
    monkeypatch.setenv("SURECLR_CACHE", str(trained / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def best_step(run: Path) -> int:
    best = RunDir(run).best()
    assert best is not None and int(best.name[5:]) < STEPS
    return int(best.name[5:])


def test_the_weights_are_those_of_the_checkpoint(run: Path) -> None:
    from safetensors.torch import load_file

    step = best_step(run)
    for which in ("best", step, str(step)):
        opened = sureclr.load(run, "cpu", checkpoint=which)
        file = run / "checkpoints" / f"step-{step:09d}" / "model.safetensors"
        state = opened.model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in load_file(file).items())
        assert opened.results_folder == run / f"step-{step:09d}" and opened.which == str(step)
    assert sureclr.load(run, "cpu").results_folder == run
    last = sureclr.load(run, "cpu", checkpoint=STEPS)  # however it is chosen, it is the last one
    assert last.results_folder == run and last.which == "last"
    for which in ("7", "first", -1, "²"):
        with pytest.raises(UserError, match="it has step"):
            sureclr.load(run, "cpu", checkpoint=which)


def test_its_results_have_a_folder_of_their_own(run: Path) -> None:
    step = best_step(run)
    last = sureclr.evaluate(run, ["knn", "geometry"], **QUIET)
    names = ("results.json", "embeddings.parquet", "map.parquet")
    before = [(run / name).read_bytes() for name in names]
    best = sureclr.evaluate(run, ["knn", "geometry"], checkpoint="best", **QUIET)
    folder = run / f"step-{step:09d}"
    assert [(run / name).read_bytes() for name in names] == before
    assert {path.name for path in folder.iterdir()} == set(names) and best.file == folder / names[0]
    table = Embeddings.read(folder / "embeddings.parquet")
    opened = sureclr.load(run, "cpu", checkpoint="best")
    assert table.origin.startswith(f"checkpoint {opened.checkpoint} ")
    with Session(opened, **QUIET) as session:
        assert torch.equal(table.features, opened.embed(session.images).features)
    assert not torch.equal(table.features, Embeddings.read(run / "embeddings.parquet").features)
    # Each way to name it finds the stored results, and the last ones stay what they are
    for words in ({"run": run, "checkpoint": step}, {"run": opened}, {"run": best}):
        assert (
            sureclr.evaluate(which="knn", **words, **QUIET).provenance["knn"]
            == (best.provenance["knn"])
        )
    assert sureclr.evaluate(run, "knn", **QUIET).provenance["knn"] == last.provenance["knn"]


def test_an_open_run_is_of_one_checkpoint(run: Path) -> None:
    opened = sureclr.load(run, "cpu")
    assert sureclr.evaluate(opened, "knn", checkpoint="last", **QUIET).file == run / "results.json"
    with pytest.raises(UserError, match="open with other weights"):
        sureclr.evaluate(opened, "knn", checkpoint="best", **QUIET)


def test_nothing_is_left_of_a_command_that_makes_nothing(run: Path) -> None:
    with pytest.raises(UserError, match="unknown"):
        sureclr.evaluate(run, "nothing", checkpoint="best", **QUIET)
    assert not list(run.glob("step-*"))


def test_a_link_in_its_place_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (run / f"step-{best_step(run):09d}").symlink_to(tmp_path / "mine")
    for make in (sureclr.evaluate, sureclr.report):
        with pytest.raises(UserError, match="is a link"):
            make(run, checkpoint="best", **QUIET)  # type: ignore[operator]
    assert not list((tmp_path / "mine").iterdir())


def test_the_commands_carry_the_choice_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(run), "--checkpoint", "best", "--device", "cpu"]
    commands = (
        ["knn", *words],
        ["label-next", *words, "--budget", "2"],
        ["predict", *words, "--out", "answers.csv"],
        ["finetune", *words, "--labels", "6", "--epochs", "1", "--seeds", "1", "--lr", "0.03"],
    )
    for command in commands:
        main(command)
        (following,) = [line for line in capsys.readouterr().out.splitlines() if "next: " in line]
        assert "--checkpoint best" in following, command
    folder = run / f"step-{best_step(run):09d}"
    assert {path.name for path in folder.iterdir()} == {
        *("results.json", "embeddings.parquet", "classifiers", "finetuned"),
        "familiarity.safetensors",
    }
    assert not (run / "results.json").exists() and not (run / "finetuned").exists()
    main(["predict", *words, "--out", "tuned.csv", "--classifier", "finetuned"])
    tuned = sureclr.load_finetuned(run, "6", "cpu", checkpoint="best")
    assert tuned.record.n_labels == 6
    with pytest.raises(UserError, match="no fine-tuned classifier"):
        sureclr.load_finetuned(run, "6", "cpu")


def test_the_report_shows_its_own_numbers_and_says_whose(run: Path) -> None:
    step = best_step(run)
    for which in ("last", "best"):
        sureclr.evaluate(run, ["knn", "geometry"], checkpoint=which, **QUIET)
    for folder, accuracy in ((run, 0.111), (run / f"step-{step:09d}", 0.222)):
        stored = sureclr.read_results(folder)  # which gets numbers that can be told apart
        result = replace(stored["knn"], accuracy=accuracy)
        save_result(folder, "knn", result, stored.provenance["knn"])
    pages = [
        sureclr.report(run, checkpoint=which, evaluate=False, progress=SILENT)
        for which in ("last", "best")
    ]
    assert pages == [run / "report.html", run / f"step-{step:09d}" / "report.html"]
    last, best = (page.read_text() for page in pages)
    assert "0.111" in last and "0.222" not in last and "shows the checkpoint of step" not in last
    assert "0.222" in best and "0.111" not in best
    assert f"This page shows the checkpoint of step {step}, which is not the last" in best
    assert "There is no map" not in best


def test_continuing_keeps_the_results_of_other_checkpoints(run: Path, trained: Path) -> None:
    step = best_step(run)
    other = [int(path.name[5:]) for path in RunDir(run).saved()][1]
    assert step < other < STEPS
    for which in ("last", "best", other):
        sureclr.evaluate(run, "knn", checkpoint=which, **QUIET)
    (run / f"step-{other:09d}" / "notes.txt").write_text("mine")
    opened = sureclr.load(run, "cpu", checkpoint=other)
    best = sureclr.load(run, "cpu", checkpoint="best")
    RunDir(run).forget_results()
    assert not (run / "results.json").exists()
    assert all((run / f"step-{each:09d}" / "results.json").exists() for each in (step, other))
    directory, checkpoint = RunDir(run), RunDir(run).load_checkpoint()
    for at in (STEPS + 1, STEPS + 2):
        directory.save_checkpoint(at, checkpoint.parts, checkpoint.numbers | {"step": at})
    assert other not in [int(path.name[5:]) for path in directory.saved()]
    there = {path.name for path in (run / f"step-{other:09d}").iterdir()}
    assert there == {"notes.txt", "results.json", "embeddings.parquet"}  # it may be hours of work
    assert (run / f"step-{step:09d}" / "results.json").exists()  # the best is not pruned
    with pytest.raises(UserError, match="has gone since this run was opened"):
        sureclr.evaluate(opened, "knn", **QUIET)
    assert sureclr.evaluate(best, "knn", **QUIET)["knn"].accuracy


def test_overwriting_removes_them_and_nothing_of_the_users(run: Path) -> None:
    step = best_step(run)
    sureclr.evaluate(run, "knn", checkpoint="best", **QUIET)
    (run / "step-best").mkdir()
    (run / "step-000000077").mkdir()
    (run / "step-000000077" / "mine.txt").write_text("mine")
    RunDir(run).prepare(resume=False, overwrite=True)
    assert sorted(path.name for path in run.glob("step-*")) == ["step-000000077", "step-best"]
    assert (run / "step-000000077" / "mine.txt").exists()
    assert not (run / f"step-{step:09d}").exists()


def test_two_runs_are_compared_at_that_checkpoint(run: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "b")
    sureclr.compare(run, "b", checkpoint="best", **QUIET)
    folder = run / f"step-{best_step(run):09d}"
    made = sureclr.read_results(folder).provenance["comparison:b"]
    best = sureclr.load(run, "cpu", checkpoint="best").checkpoint
    assert made.checkpoint == made.other_checkpoint == best
    assert not (run / "results.json").exists()


def test_a_fine_tuning_of_it_starts_from_its_weights(run: Path) -> None:
    config = FinetuneConfig(labels="6", epochs=1, seeds=1, learning_rates=(0.03,))
    best = sureclr.finetune(run, config=config, checkpoint="best", **QUIET)
    last = sureclr.finetune(run, config=config, **QUIET)
    assert best.weights is not None and last.weights is not None
    assert best.weights.sha256 != last.weights.sha256
    assert (run / f"step-{best_step(run):09d}" / best.weights.file).exists()
