"""The best checkpoint beside the last, and what is said when a run gets worse.

Witness of the order of steps: the accuracies are given, so that the best one is known.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from tiny import IMAGES, Messages, lines, train, weights

from sureclr.data.image_set import ImageSet
from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError
from sureclr.training.monitor import Monitor
from sureclr.training.run import load
from sureclr.training.run_dir import RunDir

WORSE = (0.40, 0.50, 0.20, 0.10, 0.10, 0.30)  # after each epoch


def labelled() -> ImageSet:
    return as_image_set(IMAGES, labels=torch.arange(48) % 2)


@pytest.fixture
def accuracies(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the monitor measures: before the first step of a run, and then once an epoch."""
    left: list[float] = []
    monkeypatch.setattr(Monitor, "knn", lambda monitor, model: {"knn": left.pop(0)})
    return left


def run_of(out: Path, measured: list[float], after: tuple[float, ...], **options: Any) -> Messages:
    """Train for an epoch an accuracy, or on for as many, with these measured after them."""
    measured[:] = after if "resume" in options else [0.1, *after]
    heard, epochs = Messages(), options.pop("epochs", len(after))
    train(out, labelled(), epochs=epochs, monitor_every=1, progress=heard, **options)
    assert not measured
    return heard


def steps(out: Path) -> list[int]:
    return [int(path.name[5:]) for path in RunDir(out).saved()]


def test_the_best_is_kept_beside_the_newest_two(tmp_path: Path, accuracies: list[float]) -> None:
    run_of(tmp_path / "a", accuracies, WORSE)
    directory = RunDir(tmp_path / "a")
    assert steps(tmp_path / "a") == [6, 15, 18]  # three steps an epoch, best after the second
    assert directory.best() == directory.checkpoints / "step-000000006"
    for which, step in (("last", 18), ("best", 6), ("15", 15), ("000000006", 6)):
        assert directory.load_checkpoint(which).numbers["step"] == step
        numbers = directory.checkpoint_numbers(which)
        assert numbers is not None and numbers["step"] == step
        assert directory.checkpoint_digest(which) == directory.load_checkpoint(which).digest


def test_a_new_best_is_saved_where_no_checkpoint_is_due(
    tmp_path: Path, accuracies: list[float]
) -> None:
    run_of(tmp_path / "a", accuracies, WORSE, checkpoint_every=100)
    assert steps(tmp_path / "a") == [6, 18]


def test_what_is_not_there_is_named(tmp_path: Path, accuracies: list[float]) -> None:
    run_of(tmp_path / "a", accuracies, WORSE)
    directory = RunDir(tmp_path / "a")
    there = r"it has step 6 \(best\), step 15, step 18 \(last\), so choose one of these"
    for which in ("7", "7.0", "newest", "-6", "\u0666", "step-000000006", ""):
        with pytest.raises(UserError, match=f"has no checkpoint.*{there}"):
            directory.load_checkpoint(which)


def test_only_the_last_one_has_a_stand_in(tmp_path: Path, accuracies: list[float]) -> None:
    run_of(tmp_path / "a", accuracies, WORSE)
    directory = RunDir(tmp_path / "a")
    for step in ("000000006", "000000018"):
        (directory.checkpoints / f"step-{step}" / "model.safetensors").write_bytes(b"")
    assert directory.load_checkpoint().numbers["step"] == 15
    there = r"step 6 \(damaged and best\), step 15 \(last\), step 18 \(damaged\), so choose"
    for which in ("best", "6", "18"):
        with pytest.raises(UserError, match=f"is damaged .*{there}"):
            directory.load_checkpoint(which)


def test_without_labels_there_is_no_best(tmp_path: Path) -> None:
    train(tmp_path / "a", monitor_every=1)
    with pytest.raises(UserError, match="no accuracy was measured.*checkpoint=last"):
        RunDir(tmp_path / "a").load_checkpoint("best")


def test_of_equal_accuracies_the_earliest_is_best(tmp_path: Path, accuracies: list[float]) -> None:
    run_of(tmp_path / "a", accuracies, (0.25, 0.5, 0.5, 0.5))
    assert RunDir(tmp_path / "a").best() == tmp_path / "a" / "checkpoints" / "step-000000006"


def test_an_interrupt_and_more_epochs_lose_no_best(tmp_path: Path, accuracies: list[float]) -> None:
    """A checkpoint that goes on with accepted changes is written anew, with its accuracy."""
    run_of(tmp_path / "a", accuracies, WORSE[:2])
    run_of(tmp_path / "a", accuracies, WORSE[2:4], epochs=4, resume=True, accept_changes=True)
    run_of(tmp_path / "a", accuracies, WORSE[4:], epochs=6, resume=True, accept_changes=True)
    assert steps(tmp_path / "a") == [6, 15, 18]
    assert RunDir(tmp_path / "a").best() == tmp_path / "a" / "checkpoints" / "step-000000006"


def test_saving_the_best_changes_nothing_else(tmp_path: Path, accuracies: list[float]) -> None:
    run_of(tmp_path / "a", accuracies, WORSE, checkpoint_every=1)
    run_of(tmp_path / "b", accuracies, WORSE, checkpoint_every=6)
    assert steps(tmp_path / "a") != steps(tmp_path / "b")
    mine, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert mine.keys() == other.keys() and lines(tmp_path / "a") == lines(tmp_path / "b")
    assert all(torch.equal(value, other[name]) for name, value in mine.items())


def test_a_run_that_gets_worse_is_said(tmp_path: Path, accuracies: list[float]) -> None:
    """At its first accuracy below the interval, at each lower one, and at the end."""
    measured = (0.4, 5 / 9, 0.3, 0.2, 0.2, 0.1, 0.15)
    low, high = binomtest(5, 9).proportion_ci(method="wilson")
    assert 0.2 < low < 0.3
    heard = run_of(tmp_path / "a", accuracies, measured).messages
    said = [text for text in heard if "got worse" in text]
    assert [text.split("and is ")[1].split(".  ")[0][:9] for text in said] == [
        "0.200 now",
        "0.100 now",
        "0.150 at ",
    ]
    interval = f"0.556 (95 % interval {low:.3f} to {high:.3f}) after epoch 2"
    assert all(interval in text and "checkpoint=best" in text for text in said)


def test_a_run_that_gets_better_is_not_warned(tmp_path: Path, accuracies: list[float]) -> None:
    heard = run_of(tmp_path / "a", accuracies, (0.1, 0.3, 0.6, 0.55, 0.9)).messages
    assert heard and not [text for text in heard if "got worse" in text]


def test_what_was_measured_by_other_labels_is_not_compared(
    tmp_path: Path, accuracies: list[float]
) -> None:
    """The accuracies of one run, half of them by labels that are shifted: those start anew."""
    run_of(tmp_path / "a", accuracies, WORSE[:2])
    accuracies[:] = [0.1, 0.2]
    heard, others = Messages(), as_image_set(IMAGES, labels=(torch.arange(48) + 1) % 2)
    options: dict[str, Any] = {"epochs": 4, "monitor_every": 1, "progress": heard}
    train(tmp_path / "a", others, resume=True, accept_changes=True, **options)
    assert RunDir(tmp_path / "a").best() == tmp_path / "a" / "checkpoints" / "step-000000012"
    assert heard.messages and not [text for text in heard.messages if "got worse" in text]


@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
def test_a_damaged_best_gives_way_in_a_run_that_goes_on(
    tmp_path: Path, accuracies: list[float], file: str
) -> None:
    """The newest is the best and is damaged: its step is trained again, and saved as the best."""
    options = {"checkpoint_every": 100, "accept_changes": True}
    run_of(tmp_path / "a", accuracies, (0.4, 0.6), **options)
    checkpoints = tmp_path / "a" / "checkpoints"
    (checkpoints / "step-000000006" / file).write_bytes(b"{}")
    assert RunDir(tmp_path / "a").best() == checkpoints / "step-000000003"
    with pytest.raises(UserError, match=r"damaged.*step 6 \(damaged"):
        RunDir(tmp_path / "a").load_checkpoint("best")
    run_of(tmp_path / "a", accuracies, (0.6, 0.5, 0.1, 0.1), epochs=5, resume=True, **options)
    assert steps(tmp_path / "a") == [6, 15]
    assert RunDir(tmp_path / "a").load_checkpoint("best").numbers["step"] == 6


def test_a_checkpoint_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    """Case M5, in a run of an older version, which saved such a one."""
    train(tmp_path / "a", epochs=2)
    directory = RunDir(tmp_path / "a")
    for part in ("model", "objective", "optimizer"):
        whole = directory.load_checkpoint("3")
        name, values = next((n, v) for n, v in whole.parts[part].items() if v.is_floating_point())
        values.view(-1)[0] = torch.nan
        directory.save_checkpoint(6, whole.parts, {**whole.numbers, "step": 6})
        said = f"not finite \\(in {re.escape(name)} of the {part}\\).*delete its folder"
        with pytest.raises(UserError, match=said):
            directory.load_checkpoint()
    with pytest.raises(UserError, match=said):
        load(tmp_path / "a")
    with pytest.raises(UserError, match=said):
        train(tmp_path / "a", epochs=2, resume=True)


def test_a_checkpoint_of_another_run_is_told(tmp_path: Path) -> None:
    train(tmp_path / "a", epochs=2)
    train(tmp_path / "b", IMAGES.flip(0), epochs=2)
    there = tmp_path / "b" / "checkpoints"
    shutil.copytree(tmp_path / "a" / "checkpoints" / "step-000000003", there / "step-000000005")
    shutil.rmtree(there / "step-000000003")
    for open_it in (
        lambda: load(tmp_path / "b"),
        lambda: train(tmp_path / "b", IMAGES.flip(0), epochs=2, resume=True),
    ):
        with pytest.raises(UserError, match=r"different images \(steps 3 and 6\).*copied"):
            open_it()


def test_a_complete_run_without_its_checkpoints_is_refused(tmp_path: Path) -> None:
    """To begin again would replace its encoder."""
    train(tmp_path / "a", epochs=1)
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    encoder = (tmp_path / "a" / "encoder.safetensors").read_bytes()
    with pytest.raises(UserError, match="is complete and its checkpoints have gone"):
        train(tmp_path / "a", epochs=1, resume=True)
    assert (tmp_path / "a" / "encoder.safetensors").read_bytes() == encoder


def test_a_folder_of_the_users_among_the_checkpoints_stays(
    tmp_path: Path, accuracies: list[float]
) -> None:
    """Also with the name of a checkpoint; it neither is one nor may it be the best one."""
    run_of(tmp_path / "a", accuracies, WORSE[:2])
    for name in ("step-000000001", "step-best"):
        (tmp_path / "a" / "checkpoints" / name).mkdir()
        (tmp_path / "a" / "checkpoints" / name / "notes.txt").write_text("mine")
    run_of(tmp_path / "a", accuracies, WORSE[2:], epochs=6, resume=True, accept_changes=True)
    assert len(list((tmp_path / "a" / "checkpoints").glob("*/notes.txt"))) == 2
    assert RunDir(tmp_path / "a").load_checkpoint("best").numbers["step"] == 6


def test_a_file_in_place_of_the_checkpoints_is_named(tmp_path: Path) -> None:
    train(tmp_path / "a", epochs=1)
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    (tmp_path / "a" / "checkpoints").write_text("mine")
    for which in ("last", "best", "3"):
        with pytest.raises(UserError, match="no (undamaged )?checkpoint"):
            RunDir(tmp_path / "a").load_checkpoint(which)
    with pytest.raises(UserError, match="a/checkpoints .*cannot be made"):
        train(tmp_path / "a", epochs=1, resume=True)


@pytest.mark.parametrize(
    "monitor",
    [
        None,
        1,
        [],
        {},
        {"knn": 1, "queries": 5},
        {"knn": 2.0, "queries": 5},
        {"knn": 0.5},
        {"knn": 0.5, "queries": 0},
        {"knn": 0.5, "queries": 5, "data": 7},
        {"knn": float("nan"), "queries": 5},
    ],
)
def test_a_record_of_another_form_is_no_best(tmp_path: Path, monitor: Any) -> None:
    directory = RunDir(tmp_path / "a")
    directory.prepare(resume=False, overwrite=False)
    directory.save_checkpoint(3, {"model": {}}, {"step": 3, "monitor": monitor})
    assert directory.best() is None


def test_a_run_without_its_checkpoints_says_that_it_starts_again(
    tmp_path: Path, accuracies: list[float]
) -> None:
    run_of(tmp_path / "a", accuracies, WORSE[:2])
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    (tmp_path / "a" / "encoder.safetensors").unlink()  # as if it had been killed before its end
    accuracies[:] = [0.1, *WORSE[:2]]
    heard = Messages()
    train(tmp_path / "a", labelled(), epochs=2, monitor_every=1, resume=True, progress=heard)
    assert any(
        "had taken 6 steps; it starts again from its first step" in s for s in heard.messages
    )
