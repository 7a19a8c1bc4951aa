"""A folder as people have them, from its pictures to `predict`, by the commands of README.

`dirty_folder` makes the folder and knows what is in it; the witness of every count is the maker.
2,000 pictures are the slow case, 200 the quick one.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from dirty_folder import WORDS, DirtyFolder, make_dirty_folder, needs_pictures

from sureclr.cli import main

pytestmark = needs_pictures
TINY = ["--encoder", "small-10", "--batch-size", "16", "--epochs", "1", "--device", "cpu"]
TINY += ["--allow-unreadable", "--snapshot-every", "0"]  # of 200 files more than a tenth is bad
SIZES = [pytest.param(200), pytest.param(2000, marks=pytest.mark.slow)]


@pytest.fixture(params=SIZES)
def images(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return int(request.param)


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """Stdout and stderr of a command that succeeds."""
    capsys.readouterr()
    main(list(words))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out, captured.err


def line(text: str, word: str) -> str:
    """The only line with this word."""
    lines = [line for line in text.splitlines() if word in line]
    assert len(set(lines)) == 1, (word, text)
    return lines[0]


def table(file: str) -> list[dict[str, str]]:
    with Path(file).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def report(run: str) -> dict:
    return json.loads(Path(run, "images.json").read_text())


def extras(dirty: DirtyFolder) -> int:
    """The pictures that are read because the extras are installed; they lie in train."""
    return sum(dirty.optional.values())


def test_a_folder_with_splits_and_classes(
    images: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dirty = make_dirty_folder(tmp_path, images, 0, "classes")
    pytest.importorskip("pillow_heif")
    pytest.importorskip("pydicom")
    _, said = command(capsys, "pretrain", "folder:photos", *TINY, "--out", "run")
    train = dirty.splits["train"] + extras(dirty)
    test = dirty.splits["test"] - len(dirty.copies_in_test)
    refused = len(dirty.refused) + len(dirty.other_compression)
    everything = train + dirty.splits["test"] + refused
    assert line(said, "classes:").startswith(
        f"folder:{tmp_path}/photos: {train + test:,} images ({train:,} train, {test:,} test),"
        f" {len({kind for kind in dirty.kind.values()})} classes: "
    )
    assert line(said, "Splits:") == "Splits: the folders Train/, TEST/."
    assert line(said, "could not be read").startswith(f"{refused} of {everything:,} image files")
    assert f"{len(dirty.copies_in_test)} test images were taken out" in said
    within = dirty.copies_within
    assert f"{within['train']} exact duplicates within train" in said
    assert f"{len(dirty.pages)} files have several pages or frames" in said
    assert f"and {dirty.pages_skipped} are skipped" in said
    left_out = line(said, "Left out:")
    for ending, count in dirty.left_out.items():
        assert f"{count} {ending or '(no ending)'}" in left_out
    stored = report("run")
    assert set(stored["refused"]) == {*dirty.refused, *dirty.other_compression}
    kinds = {
        kind.rstrip(): sum(
            k == kind and path not in dirty.copies_in_test for path, k in dirty.kind.items()
        )
        for kind in set(dirty.kind.values())
    }
    kinds["airplane"] += extras(dirty)
    assert {name.rstrip(): number for name, number in stored["classes"].items()} == kinds

    answer, _ = command(capsys, "knn", "run", "--json")
    knn = json.loads(answer)
    assert knn["n_test"] == test and knn["n_train"] == train
    shown = {score["name"]: score["n_test"] for score in knn["by_class"]["classes"]}
    assert sum(shown.values()) == test


def test_a_flat_folder_with_a_file_of_labels(
    images: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dirty = make_dirty_folder(tmp_path, images, 1, "flat")
    pytest.importorskip("pillow_heif")
    pytest.importorskip("pydicom")
    read = dirty.images + extras(dirty)
    _, said = command(capsys, "pretrain", "folder:photos", *TINY, "--out", "run")
    counts = report("run")["splits"]
    assert counts["train"] + counts["test"] == read == report("run")["images"]
    assert counts["test"] == pytest.approx(0.2 * read, abs=4 * np.sqrt(0.16 * read))
    assert f"{read:,} images" in said and "no labels" in said
    pairs = sum(
        int(number.split()[0]) for number in line(said, "exact duplicates within").split("; ")
    )
    assert pairs == len(dirty.copy_of)  # each lies on the side of its original

    _, said = command(capsys, "knn", "run", "--labels", "labels.csv")
    labelled = len(dirty.label_of) + len(dirty.conflicting)
    assert f"{len(dirty.blank)} of " in line(said, "have no label")
    assert f"{len(dirty.unknown)} names in it are not among the images" in said
    assert f"{len(dirty.conflicting)} of the {labelled:,} labelled images have more than" in said
    assert "Windows-1252" in said

    command(capsys, "label-next", "run", "--known", "labels.csv", "--budget", "30")
    chosen = [row["path"] for row in table("next.csv")]
    known = {*dirty.label_of, *dirty.conflicting}
    assert len(set(chosen)) == 30 and not known & set(chosen)

    command(
        capsys,
        *("finetune", "run", "--labels", "labels.csv", "--seeds", "1", "--epochs", "1"),
        *("--learning-rates", "0.03", "--device", "cpu"),
    )
    for classifier in ("linear", "knn", "finetuned"):
        command(
            capsys,
            *("predict", "run", "folder:photos", "--labels", "labels.csv"),
            *("--classifier", classifier, "--out", f"{classifier}.csv"),
        )
        rows = table(f"{classifier}.csv")
        bad = {row["path"] for row in rows if row["error"]}
        assert bad == {*dirty.refused, *dirty.other_compression}
        good = [row for row in rows if not row["error"]]
        assert len(good) == read and {row["label"] for row in good} <= set(WORDS)
        assert all(0 < float(row["probability"]) <= 1 for row in good)


def test_labels_that_say_nothing_give_the_accuracy_of_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that a classifier learned from is tested on: random labels cannot be right."""
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    dirty = make_dirty_folder(tmp_path, 200, 2, "flat")
    command(capsys, "pretrain", "folder:photos", *TINY, "--out", "run")
    random = np.random.default_rng(0)
    names = sorted(path for path in dirty.split if path.isascii() and path.isprintable())
    copies = {*dirty.copy_of, *dirty.copy_of.values()}
    with Path("random.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            (name, "ab"[random.integers(2)]) for name in names if name not in copies
        )
    for evaluation in ("knn", "linear"):
        answer, _ = command(capsys, evaluation, "run", "--labels", "random.csv", "--json")
        assert json.loads(answer)["interval"][0] <= 0.5
