"""A run opens from any working directory, and after it was moved together with its images."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import equal, train, write_photos

from sureclr.config import read_yaml
from sureclr.data.sources import paths_from, where_now
from sureclr.errors import UserError
from sureclr.evaluation.session import Session, evaluate
from sureclr.progress import SILENT, SilentProgress

OPTIONS: dict[str, Any] = {"size": 8, "epochs": 2, "batch_size": 8, "monitor_every": 0}


class PowerCut(Exception):
    pass


class Cutting(SilentProgress):
    """A progress that fails once there is a checkpoint and one more step."""

    def update(self, done: int, numbers: Any = None) -> None:
        if done == 3 and any(Path("runs").glob("one/checkpoints/step-*")):
            raise PowerCut


class Told(SilentProgress):
    def __init__(self) -> None:
        self.told = list[str]()

    def message(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images and a run that was stopped, both named by relative paths."""
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    project = tmp_path / "project"
    write_photos(project / "my images")
    monkeypatch.chdir(project)
    with pytest.raises(PowerCut):
        train(
            Path("runs/one"),
            None,
            source="folder:my images",
            progress=Cutting(),
            **OPTIONS,
        )
    return project


def test_the_recorded_place_is_absolute_and_the_relative_one_stands_beside_it(
    project: Path,
) -> None:
    run = project / "runs/one"
    source = f"folder:{project}/my images"
    numbers = json.loads(next(run.glob("checkpoints/step-*/state.json")).read_text())
    assert read_yaml(run / "config.yaml")["source"] == source
    assert numbers["source"] == numbers["configuration"]["source"] == source
    report = json.loads((run / "images.json").read_text())
    assert report["source"] == source and report["from_run"] == ["../../my images"]
    assert str(project) not in json.dumps(report["from_run"])


def test_a_run_goes_on_from_another_working_directory(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere" / "my images").mkdir(parents=True)  # what a relative path would find
    monkeypatch.chdir(tmp_path / "elsewhere")
    source = f"folder:{project}/my images"
    train(project / "runs/one", None, resume=True, source=source, **OPTIONS)
    train(tmp_path / "unbroken", None, source=source, **OPTIONS)
    assert equal(project / "runs/one", tmp_path / "unbroken")
    assert evaluate(project / "runs/one", "knn", progress=SILENT)["knn"].accuracy > 0


def test_run_and_images_that_were_moved_together_go_on_exactly(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training is resumed and evaluated as if nothing had happened, and one line says it."""
    source, unbroken = f"folder:{project}/my images", tmp_path / "unbroken"
    train(unbroken, None, source=source, **OPTIONS)
    expected = evaluate(unbroken, "knn", progress=SILENT)["knn"]
    moved, told = tmp_path / "moved", Told()
    project.rename(moved)
    monkeypatch.chdir(tmp_path)
    train(moved / "runs/one", None, resume=True, source=source, progress=told, **OPTIONS)
    line = f"{source} is gone; its images are read from folder:{moved}/my images."
    assert told.told.count(line) == 1
    assert equal(moved / "runs/one", unbroken)
    assert read_yaml(moved / "runs/one/config.yaml")["source"] == source
    told = Told()
    with Session(Path("moved/runs/one"), progress=told) as session:
        found = session.evaluate("knn")
        assert session.own and session.images.name == source
    assert found == expected and told.told.count(line) == 1
    (tmp_path / "moved").rename(tmp_path / "again")  # the relative place was kept
    assert evaluate(tmp_path / "again/runs/one", "knn", progress=SILENT)["knn"] == expected


def test_images_that_stayed_have_precedence(project: Path, tmp_path: Path) -> None:
    """The run alone was moved, and other images lie where its relative path leads."""
    source = f"folder:{project}/my images"
    other = write_photos(tmp_path / "other" / "my images", seed=9)
    shutil.move(project / "runs", tmp_path / "other" / "runs")
    told = Told()
    run = tmp_path / "other/runs/one"
    train(run, None, resume=True, source=source, progress=told, **OPTIONS)
    assert not [text for text in told.told if "is gone" in text] and other.is_dir()


def test_images_that_are_nowhere_are_named_by_their_recorded_place(
    project: Path, tmp_path: Path
) -> None:
    source = f"folder:{project}/my images"
    shutil.move(project / "my images", tmp_path / "hidden")
    with pytest.raises(UserError, match="project/my images"):
        train(project / "runs/one", None, resume=True, source=source, **OPTIONS)


def test_other_images_at_the_relative_place_are_refused(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"folder:{project}/my images"
    moved = project.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    write_photos(moved / "my images", seed=9)
    with pytest.raises(UserError, match="has changed"):
        train(moved / "runs/one", None, resume=True, source=source, **OPTIONS)


@pytest.mark.parametrize(
    ("source", "paths", "now"),
    [
        (
            "folder:{0}/old/a,{0}/old/b",
            ["../old/a", "../old/b"],
            "folder:{0}/new/old/a,{0}/new/old/b",
        ),
        ("list:{0}/old/list.txt", ["../old/list.txt"], "list:{0}/new/old/list.txt"),
        ("tar:{0}/old/*.tar", ["../old/*.tar"], "tar:{0}/new/old/*.tar"),
        ("digits", [], "digits"),
    ],
)
def test_every_kind_of_source_moves(
    tmp_path: Path, source: str, paths: list[str], now: str
) -> None:
    for name in ("a", "b"):
        (tmp_path / "old" / name).mkdir(parents=True)
    (tmp_path / "old" / "list.txt").touch()
    (tmp_path / "run").mkdir()
    source, now = source.format(tmp_path), now.format(tmp_path)
    assert paths_from(tmp_path / "run", source) == paths
    assert where_now(source, tmp_path / "run", paths) == source
    (tmp_path / "new").mkdir()
    for name in ("old", "run"):
        os.rename(tmp_path / name, tmp_path / "new" / name)
    assert where_now(source, tmp_path / "new" / "run", paths) == now
