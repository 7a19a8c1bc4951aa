"""The best checkpoint beside the last, and what is said when a run gets worse.

Witness of the order of steps: the accuracies are given, so that the best one is known.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from tiny import IMAGES, equal, train

from sureclr.data.image_set import ImageSet
from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError
from sureclr.progress import SilentProgress
from sureclr.training.monitor import Monitor
from sureclr.training.run_dir import RunDir

WORSE = (0.40, 0.50, 0.20, 0.10, 0.10, 0.30)  # after each epoch


class Listening(SilentProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def labelled() -> ImageSet:
    return as_image_set(IMAGES, labels=torch.arange(48) % 2)


@pytest.fixture
def accuracies(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the monitor measures: before the first step of a run, and then once an epoch."""
    left: list[float] = []
    monkeypatch.setattr(Monitor, "knn", lambda monitor, model: {"knn": left.pop(0)})
    return left


def run_of(out: Path, measured: list[float], after: tuple[float, ...], **options: Any) -> Listening:
    """Train for an epoch an accuracy, or on for as many, with these measured after them."""
    measured[:] = after if "resume" in options else [0.1, *after]
    heard, epochs = Listening(), options.pop("epochs", len(after))
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
    for which in ("best", "6", "18"):
        with pytest.raises(UserError, match="is damaged .*choose another"):
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
    assert equal(tmp_path / "a", tmp_path / "b")


def test_a_run_that_gets_worse_is_said(tmp_path: Path, accuracies: list[float]) -> None:
    """At its first accuracy below the interval, at each lower one, and at the end."""
    measured = (0.4, 5 / 9, 0.3, 0.2, 0.2, 0.1, 0.15)
    low, high = binomtest(5, 9).proportion_ci(method="wilson")
    assert 0.2 < low < 0.3
    heard = run_of(tmp_path / "a", accuracies, measured).said
    said = [text for text in heard if "got worse" in text]
    assert [text.split("and is ")[1].split(".  ")[0][:9] for text in said] == [
        "0.200 now",
        "0.100 now",
        "0.150 at ",
    ]
    interval = f"0.556 (95 % interval {low:.3f} to {high:.3f}) after epoch 2"
    assert all(interval in text and "checkpoint=best" in text for text in said)


def test_a_run_that_gets_better_is_not_warned(tmp_path: Path, accuracies: list[float]) -> None:
    heard = run_of(tmp_path / "a", accuracies, (0.1, 0.3, 0.6, 0.55, 0.9)).said
    assert heard and not [text for text in heard if "got worse" in text]


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
    accuracies[:] = [0.1, *WORSE[:2]]
    heard = Listening()
    train(tmp_path / "a", labelled(), epochs=2, monitor_every=1, resume=True, progress=heard)
    assert any("had taken 6 steps; it starts again from its first step" in s for s in heard.said)
