"""A run whose folder of images was deleted or moved (case F14), and classes of one split (F10).

Witnesses: the numbers that were made while the images were there, and the files of the run.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import train

import sureclr
from sureclr.cli import main
from sureclr.errors import UserError
from sureclr.evaluation.session import Session
from sureclr.progress import SILENT, SilentProgress
from sureclr.reporting.page import report

QUIET: dict[str, Any] = {"device": "cpu", "progress": SILENT}
IMAGES = {
    "train": {"bright": 12, "dark": 10, "grey": 6},
    "test": {"bright": 6, "dark": 5, "odd": 3},
}
LEVELS = {"bright": 170, "dark": 0, "grey": 85, "odd": 120}


class Messages(SilentProgress):
    """Remembers its messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def write_images(folder: Path, images: dict[str, dict[str, int]], seed: int = 0) -> Path:
    """Noise about the level of each class, as split/class/NN.png."""
    random = np.random.default_rng(seed)
    for split, classes in images.items():
        for name, count in classes.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                level = LEVELS.get(name, 100)
                pixels = random.integers(level, level + 80, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its table and the results of knn and linear; its images beside it."""
    place = tmp_path_factory.mktemp("absent")
    write_images(place / "photos", IMAGES)
    source = f"folder:{place / 'photos'}"
    run = train(place / "run", None, source=source, size=8, batch_size=8, epochs=1)
    sureclr.evaluate(run, ["knn", "linear"], **QUIET)
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the run whose images are gone; they are back after the test."""
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.move(trained / "photos", trained / "moved")
    yield tmp_path
    shutil.move(trained / "moved", trained / "photos")


# --- A class that only the test images have (F10) -------------------------------------


@pytest.mark.parametrize("name", ["knn", "linear"])
def test_a_class_that_only_the_test_images_have_is_named_and_counted_as_wrong(
    trained: Path, name: str
) -> None:
    result = sureclr.read_results(trained / "run")[name]
    numbers = result.by_class
    assert (numbers.only_test, numbers.only_train) == (("odd",), ("grey",))
    assert result.n_test == 14 == sum(each.n_test for each in numbers.classes)
    right = sum(row[i] for i, row in enumerate(numbers.confusion))
    assert result.accuracy == right / 14 <= 11 / 14
    odd = next(each for each in numbers.classes if each.name == "odd")
    assert (odd.accuracy, odd.n_test, odd.mistaken > 0) == (0.0, 3, True)


def test_blocks_and_scores_are_measured_with_such_a_class(trained: Path) -> None:
    result = sureclr.read_results(trained / "run")["linear"]
    assert len(result.blocks) == 3 and all(block.accuracy <= 11 / 14 for block in result.blocks)
    found = sureclr.evaluate(trained / "run", "uncertainty", **QUIET)["uncertainty"]
    assert found.selective["linear"].error == pytest.approx(1 - result.accuracy)


def test_the_commands_name_such_classes(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("knn", "linear"):
        assert main([name, str(trained / "run"), "--device", "cpu"]) in (None, 0)
        out = capsys.readouterr().out
        assert "Without a training image, and so counted as wrong: odd (3 test images)" in out
        assert "Without a test image, and so not tested: grey" in out
        worst = out[out.index("lowest accuracy") :].splitlines()[1:4]
        assert "odd" in worst[0] and "taken for" in worst[0] and "3 test images" in worst[0]


# --- Nothing but the commonest class (F5) ---------------------------------------------


def test_an_accuracy_that_is_that_of_one_class_is_called_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    images = {
        "train": {"ok": 320, "scratch": 10, "dent": 3, "stain": 1},
        "test": {"ok": 80, "scratch": 2, "dent": 1},
    }
    source = f"folder:{write_images(tmp_path / 'parts', images)}"
    train(tmp_path / "run", None, source=source, size=8, batch_size=64, epochs=1)
    main(["knn", str(tmp_path / "run"), "--device", "cpu"])
    out = capsys.readouterr().out
    assert (
        "accuracy 0.9639" in out and "always naming the commonest class (ok) reaches 0.9639" in out
    )
    assert "is not clearly better than always naming that one class" in out
    assert "balanced accuracy 0.3333" in out and "not tested: stain" in out
    content = json.loads((tmp_path / "run" / "results.json").read_text())["knn"]["by_class"]
    assert content["majority_baseline"] == content["classes"][1]["accuracy"] * 80 / 83
    assert [each["name"] for each in content["classes"]] == ["dent", "ok", "scratch", "stain"]


# --- Images that are gone (F14) -------------------------------------------------------


def test_knn_and_linear_work_from_the_table(place: Path) -> None:
    before = sureclr.read_results(place / "run")
    (place / "run" / "results.json").unlink()
    progress = Messages()
    found = sureclr.evaluate(place / "run", ["knn", "linear"], device="cpu", progress=progress)
    for name in ("knn", "linear"):
        assert found[name].accuracy == before[name].accuracy
        assert found[name].by_class == before[name].by_class
        assert found[name].baselines is None and "not a folder" in found[name].no_pixels
        made, was = found.provenance[name], before.provenance[name]
        assert (made.images, made.labels, made.checkpoint) == (
            was.images,
            was.labels,
            was.checkpoint,
        )
    assert found["linear"].blocks == () and before["linear"].blocks
    told = [message for message in progress.messages if "cannot be read" in message]
    assert len(told) == 1 and "embeddings.parquet" in told[0] and "data=folder:PATH" in told[0]
    content = json.loads((place / "run" / "results.json").read_text())
    assert content["knn"]["baselines"] is None and content["linear"]["baseline_intervals"] is None


def test_what_needs_pixels_is_skipped_or_refused_in_a_sentence(place: Path) -> None:
    (place / "run" / "results.json").unlink()
    found = sureclr.evaluate(place / "run", **QUIET)
    assert {"knn", "linear", "geometry"} <= set(found)
    assert set(found.skipped) >= {"uncertainty", "ood", "sensitivity", "explanation"}
    assert all("data=folder:PATH" in why for why in found.skipped.values() if "pixels" in why)
    with pytest.raises(UserError, match="pixels of the images"):
        sureclr.evaluate(place / "run", "uncertainty", **QUIET)
    with pytest.raises(UserError, match=r"not a folder.*data=folder:PATH"):
        sureclr.finetune(place / "run", labels=6, **QUIET)


def test_a_result_with_pixels_is_kept_and_one_without_is_made_anew(
    trained: Path, place: Path
) -> None:
    before = sureclr.read_results(place / "run")["linear"]
    again = sureclr.evaluate(place / "run", "linear", again=True, **QUIET)["linear"]
    assert again == before and again.baselines is not None
    (place / "run" / "results.json").unlink()
    assert sureclr.evaluate(place / "run", "linear", **QUIET)["linear"].baselines is None
    shutil.copytree(trained / "moved", trained / "photos")
    found = sureclr.evaluate(place / "run", "linear", **QUIET)["linear"]
    shutil.rmtree(trained / "photos")
    assert found == before


def test_the_new_place_of_the_images_is_the_same_images(trained: Path, place: Path) -> None:
    before = sureclr.read_results(place / "run")
    (place / "run" / "results.json").unlink()
    data = f"folder:{trained / 'moved'}"
    found = sureclr.evaluate(place / "run", ["knn", "geometry"], data, **QUIET)
    assert found["knn"] == before["knn"] and "geometry" in found
    assert set(sureclr.read_results(place / "run")) == {"knn", "geometry"}
    other = write_images(place / "other", IMAGES, seed=5)
    sureclr.evaluate(place / "run", "knn", f"folder:{other}", **QUIET)
    names = set(sureclr.read_results(place / "run"))
    assert {name.split(":")[0] for name in names - {"knn", "geometry"}} == {"knn"}


def test_a_table_of_other_weights_does_not_stand_in(trained: Path, place: Path) -> None:
    shutil.copytree(trained / "moved", trained / "photos")
    source = f"folder:{trained / 'photos'}"
    options = {"size": 8, "batch_size": 8, "epochs": 1, "seed": 5}
    other = train(place / "other", None, source=source, **options)
    shutil.rmtree(trained / "photos")
    shutil.copy(place / "run" / "embeddings.parquet", other.path)
    with pytest.raises(UserError, match="not a folder"):
        sureclr.evaluate(other, "knn", **QUIET)
    (place / "run" / "embeddings.parquet").unlink()
    with pytest.raises(UserError, match=r"not a folder .* no table .* data=folder:PATH"):
        sureclr.evaluate(place / "run", "knn", **QUIET)


def test_a_damaged_table_of_absent_images_is_a_sentence(trained: Path, place: Path) -> None:
    table = place / "run" / "embeddings.parquet"
    table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"neither the images .* nor their stored table .* data="):
        sureclr.evaluate(place / "run", "knn", **QUIET)
    data = f"folder:{trained / 'moved'}"
    assert sureclr.evaluate(place / "run", "knn", data, **QUIET)["knn"].baselines is not None


def test_pixels_that_are_not_there_are_an_error_and_no_number(place: Path) -> None:
    with Session(place / "run", **QUIET) as session:
        assert session.catalogue.paths == session.inputs.table.paths
        with pytest.raises(RuntimeError, match="meta"):
            session.catalogue.images.float().mean().item()
        with pytest.raises(UserError, match="pixels"):
            session.inputs.images  # noqa: B018


def test_the_geometry_is_described_from_the_table(place: Path) -> None:
    progress = Messages()
    found = sureclr.evaluate(place / "run", "geometry", device="cpu", progress=progress)
    assert found["geometry"].n == 42 and (place / "run" / "map.parquet").exists()
    assert any("data=folder:PATH" in text for text in progress.messages)


def test_label_next_and_the_report_work_from_the_table(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "next.csv"
    main(["label-next", str(place / "run"), "--budget", "4", "--out", str(out), "--device", "cpu"])
    assert len(out.read_text().splitlines()) == 5
    assert "--data folder:PATH" in capsys.readouterr().err
    (place / "run" / "results.json").unlink()
    page = report(place / "run", **QUIET).read_text()
    assert "because the images could not be read" in page and "Linear probe: each class" in page


def test_two_runs_are_compared_by_their_tables(trained: Path, place: Path) -> None:
    shutil.copytree(place / "run", place / "twin")
    found = sureclr.compare(place / "run", place / "twin", **QUIET)
    assert found.cka_features == pytest.approx(1) and found.cka_blocks is None
