"""A run goes on only with the configuration and the images of its checkpoint, or says what changed
and records it.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CONFIG, FLAGS, IMAGES, STEPS, equal, lines, train, write_photos

from sureclr.cli import main
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.files import sealed
from sureclr.progress import SilentProgress
from sureclr.reporting.run_files import read_run_files
from sureclr.stopping import Stopped
from sureclr.training import image_record
from sureclr.training.continuing import completed
from sureclr.training.image_record import ImageRecord, check_recorded_images
from sureclr.training.run import load
from sureclr.training.run_dir import RunDir


class Stopping(SilentProgress):
    """Stops after so many steps, as a signal does, and remembers the messages."""

    def __init__(self, steps: int = 0) -> None:
        self.left, self.texts = steps, list[str]()

    def update(self, done: int, numbers: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), 15)

    def message(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 48 images that a signal stopped after step 5 of 12."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Stopped):
        train(out, progress=Stopping(5))
    return out


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(run: Path, old: str, new: str) -> None:
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(text.replace(old, new))


def changed_by(run: Path) -> list[str]:
    """The changes that the newest checkpoint records."""
    newest = max((run / "checkpoints").glob("step-*"))
    found = json.loads((newest / "state.json").read_text()).get("changes", [])
    return [text for entry in found for text in entry["changes"]]


def images(names: list[str], pixels: torch.Tensor) -> ImageSet:
    n = len(names)
    return ImageSet("images", pixels, torch.full((n,), -1), (), np.full(n, "train"), names)


NAMES = [f"{i:02d}.png" for i in range(48)]


# --- The configuration ----------------------------------------------------------------


def test_an_edited_file_is_refused_by_name_and_nothing_changes(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """R2: `learning_rate` edited in config.yaml; the words are the two values."""
    edit(run, "learning_rate: 0.01", "learning_rate: 0.02")
    before = content(run)
    with pytest.raises(UserError, match="learning_rate was 0.01 and is now in config.yaml 0.02"):
        train(run, resume=True)
    with pytest.raises(UserError, match="learning_rate was 0.01 and is now 0.02") as caught:
        train(run, resume=True, learning_rate=0.02)
    assert "accept_changes=True" in str(caught.value) and content(run) == before
    with pytest.raises(SystemExit) as exited:
        main(["pretrain", "--resume", str(run), "--device", "cpu"])
    said = capsys.readouterr().err
    assert exited.value.code == 2 and "was 0.01 and is now 0.02" in said, said
    assert "--accept-changes" in said and content(run) == before


def test_an_accepted_configuration_trains_on_and_is_recorded(run: Path) -> None:
    """R2: the later steps are those of a run that had the new value from that step on."""
    train(run, resume=True, accept_changes=True, learning_rate=0.02, progress=(log := Stopping()))
    assert changed_by(run) == ["learning_rate was 0.01 and is now 0.02"]
    assert any("step 5 with accepted changes: learning_rate" in text for text in log.texts)
    opened = load(run, "cpu").config  # refused unless config.yaml and the checkpoint agree
    assert opened == completed(replace(CONFIG, learning_rate=0.02), opened)
    rates = [line["learning_rate"] for line in RunDir(run).lines()]
    assert max(rates[:5]) <= 0.01 < max(rates[5:]) and len(rates) == STEPS
    train(run, resume=True, learning_rate=0.02)  # from now on this is the configuration
    with pytest.raises(UserError, match="learning_rate was 0.02 and is now 0.01"):
        train(run, resume=True)


def test_a_checkpoint_from_before_accepted_changes_keeps_its_configuration(run: Path) -> None:
    """Such as the best one; config.yaml was not edited, and says what came afterwards."""
    old = RunDir(run).saved()[0]
    shutil.copytree(old, run.parent / "kept")
    train(run, resume=True, accept_changes=True, learning_rate=0.02)
    assert not old.exists()
    shutil.copytree(run.parent / "kept", old)  # from a backup
    step = int(old.name[5:])
    assert load(run, "cpu", checkpoint=step).config.learning_rate == CONFIG.learning_rate
    assert load(run, "cpu").config.learning_rate == 0.02
    assert not read_run_files(run, checkpoint=str(step)).problems
    edit(run, "learning_rate: 0.02", "learning_rate: 0.03")
    for checkpoint in (step, "last"):
        with pytest.raises(UserError, match="another learning_rate than its config.yaml says"):
            load(run, "cpu", checkpoint=checkpoint)


@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_of_another_run_are_told(run: Path, tmp_path: Path, seed: int) -> None:
    """Of the same length and with whole checksums; those of a repetition are the run's own."""
    train(tmp_path / "other", seed=seed)
    shutil.copy(tmp_path / "other" / "metrics.jsonl", run)
    said = [text for text in read_run_files(run).problems if "that of another run" in text]
    assert len(said) == seed and all("loss at step 3" in text for text in said)
    train(run, resume=True, progress=(log := Stopping()))
    assert len([text for text in log.texts if "that of another run" in text]) == seed
    assert len(lines(run)) == STEPS


def test_results_that_training_on_removes_are_named(run: Path) -> None:
    (run / "results.json").write_text("{}")
    (run / "finetuned").mkdir()
    (run / "notes.txt").write_text("mine")
    train(run, resume=True, progress=(log := Stopping()))
    assert not (run / "results.json").exists() and (run / "notes.txt").exists()
    said = [text for text in log.texts if "is removed" in text]
    assert len(said) == 1 and said[0].endswith(
        "step 5 is removed, because training goes on from them: results.json, finetuned."
    )


def test_accepting_without_a_change_records_none(run: Path, tmp_path: Path) -> None:
    train(run, resume=True, accept_changes=True)
    train(tmp_path / "whole")
    assert changed_by(run) == [] and equal(run, tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder": "small-12"}, "encoder was small-10 and is now small-12"),
        ({"projection_dim": 16}, "projection_dim was 8 and is now 16"),
        ({"optimizer": "sgd"}, "optimizer was adam and is now sgd"),
        ({"loss": "nt-xent"}, "loss was sure and is now nt-xent"),
    ],
)
def test_what_decides_the_shapes_cannot_change(run: Path, change: dict, words: str) -> None:
    before = content(run)
    with pytest.raises(UserError, match=words) as caught:
        train(run, resume=True, accept_changes=True, **change)
    assert "another run" in str(caught.value) and content(run) == before


def test_longer_training_is_a_change_like_any_other(run: Path) -> None:
    train(run, resume=True, accept_changes=True, epochs=5)
    assert RunDir(run).lines()[-1]["step"] == 15
    assert changed_by(run) == ["epochs was 4 and is now 5"]


def test_another_machine_is_named_and_no_obstacle(run: Path) -> None:
    environment = json.loads((run / "environment.json").read_text())
    environment["threads"] += 3
    (run / "environment.json").write_text(json.dumps(environment))
    train(run, resume=True, progress=(log := Stopping()))
    assert [text for text in log.texts if "environment.json is damaged" in text]
    (run / "environment.json").write_text(json.dumps(sealed(environment, "environment.json")))
    train(run, resume=True, progress=(log := Stopping()))
    told = [text for text in log.texts if "threads was" in text]
    now = torch.get_num_threads()
    assert len(told) == 1 and f"threads was {now + 3} and is now {now}" in told[0]


# --- The images -----------------------------------------------------------------------


def test_images_that_came_after_the_interrupt_are_refused_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F4, with a folder and the command line: 20 added, then accepted."""
    photos, out = tmp_path / "photos", tmp_path / "run"
    write_photos(photos / "train")
    write_photos(photos / "test", seed=1)
    words = ["pretrain", f"folder:{photos}", *FLAGS, "--size", "8", "--batch-size", "6"]
    main([*words, "--epochs", "1", "--out", str(out)])
    for i in range(20):
        new = photos / "train" / "dark" / f"new{i:02d}.png"
        shutil.copy(photos / "train" / "dark" / f"{i % 12:02d}.png", new)
    before = content(out)
    resume = ["pretrain", "--resume", str(out), "--device", "cpu"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as exited:
        main(resume)
    told = "20 training images were added: train/dark/new00.png, train/dark/new01.png"
    assert exited.value.code == 2 and told in capsys.readouterr().err and content(out) == before
    main([*resume, "--accept-changes", "--epochs", "2"])
    assert changed_by(out)[0] == "epochs was 1 and is now 2"
    assert changed_by(out)[1].startswith(told) and len(changed_by(out)) == 2
    main([*resume, "--epochs", "2"])  # nothing has changed since


@pytest.mark.parametrize(
    ("rows", "pixels", "words"),
    [
        (range(46), IMAGES[:46], "2 training images were removed: 46.png, 47.png"),
        (
            range(48),
            255 - IMAGES,
            "48 training images were replaced by other pixels: 00.png, 01.png, .*45",
        ),
        (range(47, -1, -1), IMAGES.flip(0), "the same training images come in another order"),
    ],
)
def test_every_difference_of_the_images_is_named(
    tmp_path: Path, rows: range, pixels: torch.Tensor, words: str
) -> None:
    """F4: removed, replaced under the same names, and in another order."""
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train(out, images(NAMES, IMAGES), progress=Stopping(5))
    now = images([NAMES[row] for row in rows], pixels)
    before = content(out)
    with pytest.raises(UserError, match=words):
        train(out, now, resume=True)
    assert content(out) == before
    train(out, now, resume=True, accept_changes=True)
    assert len(changed_by(out)) == 1
    train(out, now, resume=True)
    (out / "training_images.parquet").write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"there were {len(rows)} and there are 48"):
        train(out, images(NAMES, IMAGES.roll(1, 0)), resume=True)


def test_a_checkpoint_of_an_older_version_still_resumes(run: Path, tmp_path: Path) -> None:
    """It records no digest of the images."""
    directory = RunDir(run)
    checkpoint = directory.load_checkpoint()
    old = {k: v for k, v in checkpoint.numbers.items() if k not in ("images", "count")}
    shutil.rmtree(directory.checkpoints)
    directory.save_checkpoint(5, checkpoint.parts, old)
    (run / "training_images.parquet").unlink()
    train(run, resume=True)
    train(tmp_path / "whole")
    assert equal(run, tmp_path / "whole")


def test_a_record_names_every_image_that_differs() -> None:
    """Against sets: over random additions, removals and replacements."""
    random = np.random.default_rng(0)
    for _ in range(30):
        old, new = (
            {f"{i}": random.integers(0, 3) for i in range(9) if random.random() < 0.7}
            for _ in range(2)
        )
        records = [
            ImageRecord(list(x), b"".join(bytes([value] * 16) for value in x.values()))
            for x in (old, new)
        ]
        counts = {
            "added": len(new.keys() - old.keys()),
            "removed": len(old.keys() - new.keys()),
            "replaced": sum(new[name] != old[name] for name in new.keys() & old.keys()),
        }
        found = records[0].differences(records[1])
        for word, count in counts.items():
            told = [int(text.split()[0]) for text in found if word in text]
            assert told == ([count] if count else []), (old, new, found)


def test_pictures_of_the_cache_are_recorded_by_content_and_a_run_keeps_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose record is of the pixels, as all were, goes on and is told what changed."""
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    photos, old, new = write_photos(tmp_path / "photos"), tmp_path / "old", tmp_path / "new"
    options: dict[str, Any] = {
        **{"source": f"folder:{photos}", "size": 8, "batch_size": 8, "images": None},
        **{"epochs": 1, "monitor_every": 0, "snapshot_every": 0},
    }
    with monkeypatch.context() as older:
        older.setattr(image_record, "described_pixels", lambda images: None)
        train(old, **options)
    with monkeypatch.context() as reading:
        reading.setattr(image_record, "_hash", None)  # no pixel is hashed
        train(new, **options)
    for run, of_contents in ((old, False), (new, True)):
        train(run, resume=True, **options)
        record = ImageRecord.read(run / "training_images.parquet")
        assert record is not None and record.of_contents is of_contents
        numbers = RunDir(run).checkpoint_numbers()
        assert numbers is not None and numbers["images"] == record.digest
    Image.new("RGB", (8, 8)).save(photos / "dark" / record.paths[-1].split("/")[1])
    for run in (old, new):
        with pytest.raises(UserError, match="1 training image was replaced by other pixels: dark"):
            train(run, resume=True, **options)
    mixed = record.differences(ImageRecord([*record.paths[1:], "z"], bytes(16 * len(record.paths))))
    assert [text.split(" were ")[0].split(" was ")[-1] for text in mixed[:2]] == [
        "added: z",
        f"removed: {record.paths[0]}",
    ]
    assert mixed[2:] == ["the images come in another form, so their pixels cannot be compared"]


def test_a_record_comes_back_and_a_changed_byte_never_misleads(tmp_path: Path) -> None:
    path = tmp_path / "record.parquet"
    record = ImageRecord.of(images([*NAMES[:2], "\udcff é"], IMAGES[:3]))
    record.save(path)
    assert ImageRecord.read(path) == record and ImageRecord.read(tmp_path / "none") is None
    other = ImageRecord.of(images(NAMES[:2], IMAGES[:2]))
    named = record.differences(other)
    assert named == ["1 training image was removed: \udcff é"]
    counted = ["the training images are not those of the checkpoint: there were 3 and there are 2"]
    data, found = path.read_bytes(), list[list[str]]()
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        found.append(check_recorded_images(path, record.digest, 3, other))
    assert all(texts in (named, counted) for texts in found) and counted in found
