"""A compiled step against the plain one, and what is said where nothing can be compiled."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from tiny import CONFIG, IMAGES, Messages, equal, train

from sureclr.config import PretrainConfig
from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError
from sureclr.training import compiling
from sureclr.training.compiling import compile_step
from sureclr.training.setup import new_trainer
from sureclr.training.trainer import Trainer

CPU, REAL = torch.device("cpu"), torch.compile
Compile = Callable[..., Any]


def trainer(**changes: Any) -> Trainer:
    config: PretrainConfig = replace(CONFIG, encoder="small-4", compile="on", **changes)
    return new_trainer(config, as_image_set(IMAGES), CPU)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch traces the network, and runs the graph that it found without making code of it."""
    monkeypatch.setattr(torch, "compile", partial(REAL, backend="eager", fullgraph=True))


def failing(function: Any, **options: Any) -> Compile:
    def network(*given: Any) -> Any:
        raise RuntimeError("no compiler\nwas found")

    return network


@pytest.mark.parametrize("nulls", [0.0, 0.2], ids=["", "null views"])
def test_a_traced_step_is_the_step_bit_by_bit(traced: None, nulls: float) -> None:
    """Also where statistics are frozen in a first pass, and where micro-batches differ in length,
    as with 3 null views in two of them; the trial leaves no trace.
    """
    ours, plain = (trainer(micro_batch=8, null_fraction=nulls) for _ in range(2))
    compile_step(ours, Messages())
    assert ours.network is not None and plain.network is None
    for step in range(3):
        for mine, other in zip(ours.state()[0].values(), plain.state()[0].values(), strict=True):
            assert mine.keys() == other.keys()
            assert all(torch.equal(mine[name], other[name]) for name in mine), step
        assert float(ours.step()[0]) == float(plain.step()[0])


def test_a_compiled_run_saves_what_a_plain_one_does(traced: None, tmp_path: Any) -> None:
    """Checkpoints, snapshots and lines; their origins are two configurations, so none is taken."""
    options = {"epochs": 1, "snapshot_every": 0, "encoder": "small-4"}
    for name, wanted in (("on", "on"), ("off", "off")):
        run = train(tmp_path / name, compile=wanted, **options)
        assert not any("_orig_mod" in key for key in run.model.state_dict())
        assert run.embed(IMAGES[:2]).features.shape == (2, 32)
    assert equal(tmp_path / "on", tmp_path / "off")


def test_auto_goes_on_without_a_compiler_and_on_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", failing)
    made, plain = trainer(), trainer()
    with pytest.raises(
        UserError, match=r"compiled here \(no compiler was found\); use compile=off"
    ):
        compile_step(made, Messages())
    made.config, told = replace(made.config, compile="auto"), Messages()
    compile_step(made, told)
    assert not told.messages and made.network is None  # on a CPU it is not tried
    monkeypatch.setattr(compiling, "COMPILED_ON", ("cpu",))
    compile_step(made, told)
    (sentence,) = told.messages
    assert sentence.startswith("The network cannot be compiled here (no compiler was found), so")
    assert made.network is made.views_of is None
    assert float(made.step()[0]) == float(plain.step()[0])


def test_what_is_wrong_without_a_compiler_is_said_as_ever(traced: None) -> None:
    """A loss that refuses its input is no fault of the compiler."""
    made = trainer()

    def refuse(*given: Any) -> None:
        raise UserError("the loss refuses")

    made.objective.register_forward_pre_hook(refuse)
    with pytest.raises(UserError, match=r"^the loss refuses$"):
        compile_step(made, Messages())


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [None, 8])
def test_twenty_steps_of_inductor_have_the_plain_losses(micro_batch: int | None) -> None:
    """It needs a C++ compiler, and about a CPU minute."""
    ours, plain = (trainer(micro_batch=micro_batch, epochs=7) for _ in range(2))
    compile_step(ours, Messages())
    for _ in range(20):
        mine, other = float(ours.step()[0]), float(plain.step()[0])
        # Rounding grows from step to step: 5e-6 was seen in a whole batch, 1.4e-4 accumulated
        assert mine == pytest.approx(other, rel=1e-3)
