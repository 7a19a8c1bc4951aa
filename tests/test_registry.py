"""The registry: registration, look-up, and losses that other packages bring along."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import sureclr.registry
from sureclr.errors import UserError
from sureclr.registry import Registry

# A module outside the package with a loss, registered by a decorator under the name "mine".
MODULE = '''
import torch
from sureclr import Objective, Posterior, register_loss

@register_loss("mine")
class Mine(Objective):
    """A loss of another package."""

    uses_certainty = False

    def __init__(self, temperature=1.0):
        super().__init__()
        self.temperature = temperature

    def read(self, projections, k=None):
        return Posterior(self.directions(projections))

    def forward(self, posterior, generator=None):
        first, second = posterior.direction.chunk(2)
        return (1 - (first * second).sum(1)).mean() / self.temperature
'''

# Builds the loss by name and prints what a user sees of it.
USE = """
import torch
from sureclr import objective
from sureclr.errors import UserError
from sureclr.maths.objectives import OBJECTIVES

views = torch.eye(4)  # the two views of each image are orthogonal: 1 / temperature
print(type(objective("mine", temperature=0.3)).__name__, "mine" in OBJECTIVES, list(OBJECTIVES)[-1])
print(round(objective("mine", temperature=0.3)(views).item(), 4), objective("mine")(views).item())
try:
    objective("mine", weight=1.0)
except UserError as error:
    print(error)
"""
PRINTED = """Mine True mine
3.3333 1.0
loss mine takes no weight; it takes temperature.
"""


def fresh_process(code: str, folder: Path) -> str:
    """What the code prints in a process of its own, with the folder on the import path."""
    path = os.pathsep.join([str(folder), str(Path(sureclr.registry.__file__).parents[1])])
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def declare(folder: Path, value: str) -> None:
    """Pretend that a distribution is installed which declares the loss "mine"."""
    metadata = folder / "mine-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[sureclr.losses]\nmine = {value}\n")


def test_a_loss_registered_by_decorator(tmp_path: Path) -> None:
    (tmp_path / "my_losses.py").write_text(MODULE)
    assert fresh_process("import my_losses\n" + USE, tmp_path) == PRINTED


@pytest.mark.parametrize(
    ("value", "decorated"),
    [("my_losses", True), ("my_losses:Mine", True), ("my_losses:Mine", False)],
)
def test_a_loss_of_an_installed_package(tmp_path: Path, value: str, decorated: bool) -> None:
    """By entry point: nobody imports the module. It may register itself, or be the entry."""
    module = MODULE if decorated else MODULE.replace('@register_loss("mine")\n', "")
    (tmp_path / "my_losses.py").write_text(module)
    declare(tmp_path, value)
    assert fresh_process(USE, tmp_path) == PRINTED


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "my_losses.py").write_text("import no_such_module\n")
    declare(tmp_path, "my_losses:Mine")
    code = """
from sureclr import objective
from sureclr.errors import UserError
print(objective("sure").temperature)
try:
    objective("mine")
except UserError as error:
    print(error)
"""
    printed = fresh_process(code, tmp_path)
    assert printed.startswith("0.2\nthe loss 'mine' of another package cannot be imported")
    assert "no_such_module" in printed


def shapes() -> Registry[int]:
    registry = Registry[int]("shape", "sureclr.no_such_group")
    registry.register("triangle")(3)
    registry.register("square")(4)
    return registry


def test_a_registry_is_a_mapping_in_the_order_of_registration() -> None:
    registry = shapes()
    assert list(registry.items()) == [("triangle", 3), ("square", 4)]
    assert len(registry) == 2 and "square" in registry and "circle" not in registry


def test_the_decorator_returns_its_argument() -> None:
    def hexagon() -> int:
        return 6

    registry = Registry[object]("shape", "sureclr.no_such_group")
    assert registry.register("hexagon")(hexagon) is hexagon and registry["hexagon"] is hexagon


def test_a_name_is_registered_once() -> None:
    registry = shapes()
    registry.register("square")(registry["square"])  # the same entry again changes nothing
    with pytest.raises(UserError, match="there is already a shape named 'square'"):
        registry.register("square")(5)
    assert registry["square"] == 4 and len(registry) == 2


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown shape 'sqare': did you mean square\?.*triangle"):
        shapes()["sqare"]


def test_entry_points_are_loaded_once_and_only_when_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def entry_points(group: str) -> list[EntryPoint]:
        asked.append(group)
        return [EntryPoint("pi", "math:pi", group)]

    monkeypatch.setattr(sureclr.registry, "entry_points", entry_points)
    registry = Registry[float]("number", "sureclr.numbers")
    registry.register("two")(2.0)
    assert registry["two"] == 2.0 and asked == []
    assert registry["pi"] == pytest.approx(3.14159, abs=1e-5)
    assert list(registry) == ["two", "pi"] and asked == ["sureclr.numbers"]
