"""`evaluate` and `compare` from Python: what they take, keep, make anew, and refuse.

Witnesses: the numbers of the evaluation functions called by hand, and the files of the run.
"""

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Messages, train, write_photos

import sureclr
from sureclr.data import image_set
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.evaluations import EVALUATIONS
from sureclr.evaluation.neighbour_vote import knn_accuracy
from sureclr.evaluation.run_images import read_run_images
from sureclr.evaluation.session import Session
from sureclr.files import sealed
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.entries import provenance_of
from sureclr.progress import SILENT, Numbers, SilentProgress
from sureclr.stopping import Stopped

QUIET: dict[str, Any] = {"device": "cpu", "progress": SILENT}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder, and its photographs beside it."""
    place = tmp_path_factory.mktemp("session")
    source = f"folder:{write_photos(place / 'photos')}"
    train(place / "run", None, source=source, size=8, batch_size=8, epochs=1)
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy that a test may change; its photographs have the same path."""
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    shutil.copytree(trained / "run", tmp_path / "run")
    kept = tmp_path / "photos-before"
    shutil.copytree(trained / "photos", kept)
    yield tmp_path
    shutil.rmtree(trained / "photos")
    shutil.copytree(kept, trained / "photos")


# --- What it returns ------------------------------------------------------------------


def test_the_result_is_that_of_the_evaluation_by_hand(place: Path) -> None:
    results = sureclr.evaluate(place / "run", "knn", **QUIET)
    table = Embeddings.read(place / "run" / "embeddings.parquet")
    sides = [table.labelled(split) for split in ("train", "test")]
    (train_x, train_y), (test_x, test_y) = ((side.features, side.labels) for side in sides)
    by_hand = knn_accuracy(train_x, train_y, test_x, test_y, k=min(20, len(train_x)))
    assert list(results) == ["knn"] and results["knn"].accuracy == by_hand.accuracy
    assert sureclr.read_results(place / "run")["knn"] == results["knn"]


def test_a_run_a_path_and_its_results_are_the_same_thing(place: Path) -> None:
    run = sureclr.load(place / "run", "cpu")
    first = sureclr.evaluate(run, "knn", **QUIET)
    assert sureclr.evaluate(str(place / "run"), ["knn"], **QUIET)["knn"] == first["knn"]
    assert sureclr.evaluate(first, "knn", **QUIET)["knn"] == first["knn"]


def test_all_evaluations_by_default_and_why_others_were_skipped(place: Path) -> None:
    shutil.rmtree(place / "run" / "snapshots")
    progress = Messages()
    results = sureclr.evaluate(place / "run", device="cpu", progress=progress)
    assert set(results) | set(results.skipped) == set(EVALUATIONS)
    assert set(results.skipped) == {"learning"} and "snapshot" in results.skipped["learning"]
    assert any("learning is skipped" in message for message in progress.messages)


def test_provenance_names_checkpoint_images_labels_version_and_time(place: Path) -> None:
    results = sureclr.evaluate(place / "run", "knn", **QUIET)
    made = results.provenance["knn"]
    assert made.checkpoint == sureclr.load(place / "run", "cpu").checkpoint != ""
    assert len(made.images.removesuffix("-contents")) == len(made.labels) == 64
    assert made.version == sureclr.__version__ and made.time.endswith("+00:00")
    assert made.seconds > 0 and made.options == {}
    assert Embeddings.read(place / "run" / "embeddings.parquet").origin == (
        f"checkpoint {made.checkpoint} images {made.images}"
    )


# --- What it keeps and makes anew -----------------------------------------------------


def test_a_stored_result_is_used_again_unless_asked_otherwise(place: Path) -> None:
    sureclr.evaluate(place / "run", "knn", **QUIET)
    content = json.loads((place / "run" / "results.json").read_text())
    content["knn"]["accuracy"] = 0.125  # a sign that it was not made anew
    content["knn"] = sealed(content["knn"], "knn")
    (place / "run" / "results.json").write_text(json.dumps(content))
    assert sureclr.evaluate(place / "run", "knn", **QUIET)["knn"].accuracy == 0.125
    assert sureclr.evaluate(place / "run", "knn", again=True, **QUIET)["knn"].accuracy != 0.125


def replace_photos(trained: Path) -> None:
    write_photos(trained / "photos", seed=1)
    for name, other in (("bright", "dark"), ("dark", "bright")):
        for file in sorted((trained / "photos" / name).glob("*.png"))[:6]:
            swapped = trained / "photos" / other / file.name
            one, two = file.read_bytes(), swapped.read_bytes()
            file.write_bytes(two)
            swapped.write_bytes(one)


def test_replaced_images_under_the_same_names_are_noticed(trained: Path, place: Path) -> None:
    """Case F3: the number was that of the old pictures."""
    first = sureclr.evaluate(place / "run", "knn", **QUIET)
    replace_photos(trained)
    progress = Messages()
    second = sureclr.evaluate(place / "run", "knn", device="cpu", progress=progress)
    assert second.provenance["knn"].images != first.provenance["knn"].images
    told = " ".join(progress.messages)
    assert "embedded anew" in told and "made anew" in told
    fresh = sureclr.evaluate(
        shutil.copytree(place / "run", place / "other"), "knn", again=True, **QUIET
    )
    assert second["knn"] == fresh["knn"]


def test_a_changed_label_makes_results_anew_but_not_the_table(trained: Path, place: Path) -> None:
    file = place / "labels.csv"
    paths = sureclr.load_images(f"folder:{trained / 'photos'}", size=8).paths
    lines = [f"{path},{'ab'[i % 2]}" for i, path in enumerate(paths)]
    file.write_text("\n".join(["path,label", *lines]))
    first = sureclr.evaluate(place / "run", "knn", **QUIET)
    table = (place / "run" / "embeddings.parquet").stat().st_mtime_ns
    second = sureclr.evaluate(place / "run", "knn", labels=file, **QUIET)
    assert second.provenance["knn"].labels != first.provenance["knn"].labels
    assert second.provenance["knn"].images == first.provenance["knn"].images
    assert (place / "run" / "embeddings.parquet").stat().st_mtime_ns == table


def test_other_weights_make_results_anew(trained: Path, place: Path) -> None:
    """Case R3's kind: the table of other weights is not used."""
    sureclr.evaluate(place / "run", "knn", **QUIET)
    source = f"folder:{trained / 'photos'}"
    options = {"size": 8, "batch_size": 8, "epochs": 1, "seed": 5}
    train(place / "other", None, source=source, **options)
    for name in ("results.json", "embeddings.parquet"):
        shutil.copy(place / "run" / name, place / "other" / name)
    progress = Messages()
    results = sureclr.evaluate(place / "other", "knn", device="cpu", progress=progress)
    about_runs = [text for text in progress.messages if "folder:" not in text]
    assert sum("weights" in text for text in about_runs) == 2
    assert results.provenance["knn"].checkpoint == sureclr.load(place / "other", "cpu").checkpoint


def test_a_file_of_labels_that_changed_since_is_said(place: Path, tmp_path: Path) -> None:
    """The run has no labels of its own, so that stored results of a file's are used without it."""
    photos = tmp_path / "flat"
    photos.mkdir()
    for path in sorted((place / "photos-before").rglob("*.png")):
        shutil.copy(path, photos / f"{path.parent.name}-{path.name}")
    train(place / "flat-run", None, source=f"folder:{photos}", size=8, batch_size=8, epochs=1)
    file = place / "labels.csv"
    names = [path.name for path in photos.iterdir()]
    file.write_text("\n".join(["path,label", *(f"{name},{name[0]}" for name in names)]))
    sureclr.evaluate(place / "flat-run", "knn", labels=file, **QUIET)
    now = file.stat().st_mtime
    for written, changed in ((now - 60, False), (now + 60, True)):
        os.utime(file, (written, written))
        progress = Messages()
        sureclr.evaluate(place / "flat-run", "knn", device="cpu", progress=progress)
        (told,) = [text for text in progress.messages if "is of the labels in" in text]
        assert ("changed since" in told) is changed


def test_a_damaged_table_is_made_anew_where_the_images_are_at_hand(place: Path) -> None:
    sureclr.evaluate(place / "run", "knn", **QUIET)
    file = place / "run" / "embeddings.parquet"
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # among the features
    for damaged in (whole[:-100], bytes(flipped), b""):
        file.write_bytes(damaged)
        progress = Messages()
        again = sureclr.evaluate(place / "run", "knn", again=True, device="cpu", progress=progress)
        told = [text for text in progress.messages if "embedded anew" in text]
        assert len(told) == 1 and "is damaged" in told[0] and str(file) in told[0]
        assert again["knn"] == sureclr.evaluate(place / "run", "knn", **QUIET)["knn"]
        assert file.read_bytes() == whole


def test_the_report_gets_a_whole_table_although_all_results_are_stored(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored results are used without a look at the table, and the page draws the table."""
    few = {name: EVALUATIONS[name] for name in ("knn", "geometry")}  # all take seconds
    monkeypatch.setattr("sureclr.evaluation.session.EVALUATIONS", few)
    page = sureclr.report(place / "run", **QUIET).read_text()
    file = place / "run" / "embeddings.parquet"
    whole = file.read_bytes()
    train(place / "other", None, source=_source_of(place), size=8, batch_size=8, epochs=1, seed=5)
    sureclr.evaluate(place / "other", "knn", **QUIET)
    shutil.copy(place / "other" / "embeddings.parquet", file)
    told = sureclr.report(place / "run", evaluate=False, progress=SILENT).read_text()
    assert "made of other weights than those shown here" in told
    assert "made of other weights than those shown here" not in page
    assert "There is no table of embeddings yet" in told
    assert "There is no table of embeddings yet" not in page
    for content in ((place / "other" / "embeddings.parquet").read_bytes(), whole[:-50], None):
        file.unlink() if content is None else file.write_bytes(content)
        assert sureclr.report(place / "run", **QUIET).read_text() == page
        assert file.read_bytes() == whole


def test_replaced_images_are_not_shown_beside_old_numbers(trained: Path, place: Path) -> None:
    sureclr.evaluate(place / "run", "knn", **QUIET)
    pages = []
    for seed in (0, 9):
        write_photos(trained / "photos", seed)
        page = sureclr.report(place / "run", evaluate=False, progress=SILENT)
        pages.append("not those that the stored results were made of" in page.read_text())
    assert pages == [False, True]


def _source_of(place: Path) -> str:
    return sureclr.load(place / "run", "cpu").source


def test_a_report_of_results_of_other_images_is_refused(place: Path) -> None:
    others = write_photos(place / "others", seed=7)
    results = sureclr.evaluate(place / "run", "knn", data=others, **QUIET)
    assert results.data and not sureclr.evaluate(place / "run", "knn", **QUIET).data
    with pytest.raises(UserError, match="of other images"):
        sureclr.report(results, **QUIET)


# --- Other images ---------------------------------------------------------------------


class Pairs(torch.utils.data.Dataset):
    """A map-style data set of (PIL image, label)."""

    classes = ("bright", "dark")

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        random = np.random.default_rng(index)
        low = 0 if index % 2 else 128
        return Image.fromarray(
            random.integers(low, low + 128, (9, 11, 3), dtype=np.uint8)
        ), index % 2


def as_forms() -> dict[str, Any]:
    """The same images as a data set, as PIL images with labels, and as an ImageSet."""
    dataset = Pairs()
    pictures, labels = zip(*(dataset[i] for i in range(24)), strict=True)
    image_set = sureclr.as_image_set(dataset, size=8)
    names = [Pairs.classes[label] for label in labels]
    return {
        "dataset": (dataset, None),
        "pictures": (list(pictures), names),
        "set": (image_set, None),
    }


@pytest.mark.parametrize("form", ["dataset", "pictures", "set"])
def test_images_in_hand_are_evaluated_with_a_test_split_of_their_own(
    place: Path, form: str
) -> None:
    data, labels = as_forms()[form]
    results = sureclr.evaluate(place / "run", "knn", data, labels, **QUIET)
    assert (results["knn"].n_train, results["knn"].n_test) == (20, 4)
    reference = sureclr.evaluate(place / "run", "knn", Pairs(), **QUIET)
    assert results["knn"] == reference["knn"]
    digest = reference.provenance["knn"].images[:8]
    assert f"knn:images-{digest}" in sureclr.read_results(place / "run")
    assert not (place / "run" / "embeddings.parquet").exists()


def test_own_test_images_are_kept_as_the_test_split(place: Path) -> None:
    pixels = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8)
    split = np.array(["train"] * 7 + ["test"] * 3)
    images = ImageSet(
        "mine", pixels, torch.arange(10) % 2, ("a", "b"), split, [f"{i}" for i in range(10)]
    )
    result = sureclr.evaluate(place / "run", "knn", images, **QUIET)["knn"]
    assert (result.n_train, result.n_test) == (7, 3)


def test_a_run_on_images_in_hand_asks_for_them(tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    with pytest.raises(UserError, match="data="):
        sureclr.evaluate(run, "knn", **QUIET)


# --- Refusals, stops and locks --------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"which": "kn"}, "unknown evaluation 'kn': did you mean knn"),
        ({"which": ["knn", "lineal"]}, "did you mean linear"),
        ({"data": "digitz"}, "digitz"),
        ({"data": 3}, "images must be"),
        ({"labels": ["a", "b"]}, "labels"),
        ({"labels": Path("none.csv")}, "none.csv"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    place: Path, arguments: dict[str, Any], words: str
) -> None:
    before = sorted(path.name for path in (place / "run").iterdir())
    with pytest.raises(UserError, match=words) as caught:
        sureclr.evaluate(place / "run", **{"which": "knn", **arguments}, **QUIET)
    assert "\n" not in str(caught.value)
    assert sorted({*before, "lock"}) == sorted(
        {*(path.name for path in (place / "run").iterdir()), "lock"}
    )


def test_a_file_of_another_schema_is_refused_and_left_alone(place: Path) -> None:
    (place / "run" / "results.json").write_text('{"knn": {"accuracy": 0.5}}')
    with pytest.raises(UserError, match="another version"):
        sureclr.evaluate(place / "run", "knn", **QUIET)
    assert (place / "run" / "results.json").read_text() == '{"knn": {"accuracy": 0.5}}'


def test_another_writer_is_refused(place: Path) -> None:
    with (place / "run" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            sureclr.evaluate(place / "run", "knn", **QUIET)


class StopsAt(SilentProgress):
    """Sends SIGTERM when a task of this name begins."""

    def __init__(self, task: str) -> None:
        self.task = task

    def begin(self, task: str, total: int, done: int = 0) -> None:
        if task == self.task:
            os.kill(os.getpid(), signal.SIGTERM)

    def update(self, done: int, numbers: Numbers | None = None) -> None:
        pass


def test_a_signal_stops_and_finished_results_are_kept(place: Path) -> None:
    with pytest.raises(Stopped, match=r"results\.json"):
        sureclr.evaluate(
            place / "run",
            ["knn", "uncertainty"],
            device="cpu",
            progress=StopsAt("Evaluating uncertainty"),
        )
    assert list(sureclr.read_results(place / "run")) == ["knn"]
    again = sureclr.evaluate(place / "run", ["knn", "uncertainty"], **QUIET)
    assert list(again) == ["knn", "uncertainty"]


# --- An evaluation of another package -------------------------------------------------


def test_a_registered_evaluation_is_run_and_kept(place: Path) -> None:
    @sureclr.register_evaluation("mean-of-tests")
    def mean_of_tests(inputs: Any) -> dict[str, float]:
        return {"mean": float(inputs.images.images.float().mean())}

    result = sureclr.evaluate(place / "run", "mean-of-tests", **QUIET)["mean-of-tests"]
    assert 100 < result["mean"] < 156
    assert sureclr.read_results(place / "run")["mean-of-tests"] == result
    EVALUATIONS.remove("mean-of-tests")


# --- Comparing ------------------------------------------------------------------------


def test_a_comparison_is_kept_and_made_anew_when_a_run_was_trained_anew(
    trained: Path, place: Path
) -> None:
    """Case R4: the page showed the comparison with a run that no longer existed."""
    a, b = place / "run", place / "other"
    source = f"folder:{trained / 'photos'}"
    options = {"source": source, "size": 8, "batch_size": 8, "epochs": 1}
    train(b, None, seed=5, **options)
    first = sureclr.compare(a, b, **QUIET)
    assert (
        first.runs == ("run", "other") and first.n == 24
    )  # two seeds hold out other images, so all are compared
    assert sureclr.compare(a, b, **QUIET) == first
    train(b, None, seed=6, overwrite=True, **options)
    second = sureclr.compare(a, b, **QUIET)
    assert second != first
    made = sureclr.read_results(a).provenance["comparison:other"]
    assert made.other_checkpoint == sureclr.load(b, "cpu").checkpoint
    assert sureclr.compare(a, b, **QUIET) == second


def test_a_run_is_not_compared_with_itself(place: Path) -> None:
    with pytest.raises(UserError, match="two different runs"):
        sureclr.compare(place / "run", place / "run", **QUIET)


def test_a_result_with_an_option_serves_where_the_option_is_not_asked_for(place: Path) -> None:
    """`evaluate` must not undo what `uncertainty --human` has measured."""
    sureclr.evaluate(place / "run", "knn", human=Path("people.npy"), **QUIET)
    made = sureclr.read_results(place / "run").provenance["knn"]
    assert made.options == {"human": "people.npy"}
    assert sureclr.evaluate(place / "run", "knn", **QUIET).provenance["knn"] == made
    other = sureclr.evaluate(place / "run", "knn", human=Path("others.npy"), **QUIET)
    assert other.provenance["knn"].options == {"human": "others.npy"}


def test_results_of_an_older_version_stay_valid_and_new_ones_need_no_pixels(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older digests were of all pixels; the images are found to be the same by such a digest."""
    copy = shutil.copytree(place / "run", place / "newer")
    with monkeypatch.context() as older:
        older.setattr(image_set, "described_pixels", lambda images: None)
        made = sureclr.evaluate(place / "run", "knn", **QUIET).provenance["knn"]
    options = {**QUIET, "progress": (log := Messages())}
    assert sureclr.evaluate(place / "run", "knn", **options).provenance["knn"] == made
    assert not any("anew" in text for text in log.messages)
    for run, digest in ((place / "run", made.images), (copy, Session(copy, **QUIET).digest)):
        opened = sureclr.load(run, "cpu")
        finetuned = provenance_of(opened, read_run_images(opened), FinetuneConfig())
        assert finetuned.images == digest
    with monkeypatch.context() as reading:
        reading.setattr(image_set, "digest_of_tensors", None)
        for _ in range(2):
            found = Session(copy, verify=True, **options)
            assert found.digest.endswith("-contents") and found.digest != made.images
    assert sum(text.startswith("Every byte of the cache") for text in log.messages) == 2


# --- What two strangers broke ---------------------------------------------------------


def test_a_network_without_a_checkpoint_is_not_evaluated_in_the_runs_name(place: Path) -> None:
    run = sureclr.load(place / "run", "cpu")
    for other in (run.untrained(), run.redrawn(1)):
        with pytest.raises(UserError, match="no checkpoint holds its weights"):
            sureclr.evaluate(other, "knn", **QUIET)
    assert not (place / "run" / "results.json").exists()


def test_an_object_of_a_run_that_was_trained_anew_is_refused(trained: Path, place: Path) -> None:
    options = {"source": f"folder:{trained / 'photos'}", "size": 8, "batch_size": 8, "epochs": 1}
    old = train(place / "other", None, **options)
    train(place / "other", None, seed=7, overwrite=True, **options)
    with pytest.raises(UserError, match="open it again"):
        sureclr.evaluate(old, "knn", **QUIET)


def test_a_lost_map_is_made_again(place: Path) -> None:
    sureclr.evaluate(place / "run", "geometry", **QUIET)
    (place / "run" / "map.parquet").unlink()
    sureclr.evaluate(place / "run", "geometry", **QUIET)
    assert (place / "run" / "map.parquet").is_file()


@pytest.mark.parametrize("which", [3, b"knn", ["knn", None], [["knn"]]])
def test_a_name_must_be_a_word(place: Path, which: Any) -> None:
    with pytest.raises(UserError, match="which must be a name"):
        sureclr.evaluate(place / "run", which, **QUIET)


def test_names_may_come_from_a_generator(place: Path) -> None:
    names = (name for name in ["knn", "linear"])
    assert list(sureclr.evaluate(place / "run", names, **QUIET)) == ["knn", "linear"]


@pytest.mark.parametrize("result", [None, [1], 3.0, torch.zeros(2), {"provenance": 1}, {"a": {1}}])
def test_an_evaluation_that_cannot_be_kept_is_a_sentence(place: Path, result: Any) -> None:
    sureclr.register_evaluation("odd")(lambda inputs: result)
    try:
        with pytest.raises(UserError, match="odd must return"):
            sureclr.evaluate(place / "run", "odd", **QUIET)
    finally:
        EVALUATIONS.remove("odd")
    assert not (place / "run" / "results.json").exists()


@pytest.mark.parametrize("name", ["schema", "comparison", "finetune", "knn:mine"])
def test_names_with_a_meaning_in_the_file_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot be named"):
        sureclr.register_evaluation(name)


def test_learning_of_an_older_checkpoint_is_of_all_snapshots(tmp_path: Path) -> None:
    """The best one stays when a run goes on; the witness are the files of snapshots."""
    run, source = tmp_path / "run", f"folder:{write_photos(tmp_path / 'photos')}"
    options: dict[str, Any] = {"source": source, "size": 8, "batch_size": 8}
    options |= {"snapshot_every": 1, "monitor_every": 1}
    train(run, None, epochs=2, **options)
    step = sureclr.load(run, "cpu", checkpoint="best").which
    assert step != "last"
    before = sureclr.evaluate(run, "learning", checkpoint=step, **QUIET)["learning"]
    assert before.epochs == (1, 2)
    train(run, None, epochs=3, resume=True, accept_changes=True, **options)
    log = Messages()
    found = sureclr.evaluate(run, "learning", checkpoint=step, device="cpu", progress=log)
    saved = sorted((run / "snapshots").glob("*.safetensors"))
    assert found["learning"].epochs == tuple(int(file.stem[6:]) for file in saved) == (1, 2, 3)
    assert any("made anew of all snapshots" in text for text in log.messages)


@pytest.mark.parametrize("changed", [True, False])
def test_images_that_are_not_those_of_the_training_are_told(place: Path, changed: bool) -> None:
    """Also where no table and no cache remember the images: the checkpoint does."""
    photos = Path(sureclr.load(place / "run", "cpu").source.removeprefix("folder:"))
    if changed:
        shutil.rmtree(photos)
        write_photos(photos, seed=1)
    try:
        log = Messages()
        sureclr.evaluate(place / "run", "knn", device="cpu", progress=log)
    finally:
        shutil.rmtree(photos)
        shutil.copytree(place / "photos-before", photos)
    said = [text for text in log.messages if "not those that it was trained on" in text]
    assert len(said) == changed and all("images were replaced by other" in text for text in said)
