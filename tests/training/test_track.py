"""Trackers: what TensorBoard's own reader reads back, what wandb is told, and what is said where
one is missing.
"""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import CONFIG, lines, train

from sureclr.errors import UserError
from sureclr.training import track
from sureclr.training.track import check_tracker, open_tracker


def test_tensorboard_reads_back_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path / "run", epochs=2, track="tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "track"))
    events.Reload()
    record = lines(tmp_path / "run")
    for name in ("loss", "learning_rate", "alignment"):
        expected = [(line["step"], line[name]) for line in record if name in line]
        assert [step for step, _ in expected] == [event.step for event in events.Scalars(name)]
        assert [value for _, value in expected] == pytest.approx(
            [event.value for event in events.Scalars(name)], rel=1e-6
        )


def test_wandb_is_told_the_configuration_and_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    run = SimpleNamespace(
        log=lambda numbers, step: told.append((step, numbers)),
        finish=lambda: told.append("finished"),
    )
    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(init=lambda **options: (told.append(options), run)[1])
    )
    with (
        pytest.raises(ZeroDivisionError),
        open_tracker("wandb", tmp_path / "track", CONFIG) as write,
    ):
        write({"step": 3, "loss": 1.5})
        raise ZeroDivisionError
    assert (
        told[0]["config"]["encoder"] == CONFIG.encoder
        and told[0]["dir"] == str(tmp_path / "track")
        and (tmp_path / "track").is_dir()
    )
    assert told[1:] == [(3, {"step": 3, "loss": 1.5}), "finished"]  # closed in spite of the error


def test_without_a_tracker_nothing_is_written(tmp_path: Path) -> None:
    with open_tracker(None, tmp_path / "track", CONFIG) as write:
        write({"step": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_told_in_one_sentence(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(track, "find_spec", lambda wanted: None if wanted == name else find(wanted))
    with pytest.raises(
        UserError, match=rf"track='{name}' needs the package {name}.*pip install 'sureclr\[track\]'"
    ) as caught:
        check_tracker(name)
    assert "\n" not in str(caught.value)


def test_unknown_tracker() -> None:
    with pytest.raises(UserError, match="unknown tracker 'wanb': did you mean wandb"):
        check_tracker("wanb")
    check_tracker(None)
