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


def declare(folder: Path, value: str) -> None:
    """Pretend that a distribution is installed which declares the loss "mine"."""
    metadata = folder / "mine-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[sureclr.losses]\nmine = {value}\n")


# Runs each program in a process of its own that has loaded torch alone, which takes 3 CPU seconds,
# with a folder on the import path. What one prints stays in its folder.
FORKED = """
import os, sys, torch
codes = []
for folder, program in zip(sys.argv[1::2], sys.argv[2::2]):
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        sys.path.insert(0, folder)
        sys.stdout = open("printed.txt", "w")
        exec(compile(program, folder, "exec"), {"__name__": "__main__"})
        sys.stdout.close()
        os._exit(0)
    codes.append(os.waitpid(child, 0)[1])
sys.exit(any(codes))
"""
UNDECORATED = MODULE.replace('@register_loss("mine")\n', "")
REFUSED = """
from sureclr import objective
from sureclr.errors import UserError
print(objective("sure").temperature)
try:
    objective("mine")
except UserError as error:
    print(error)
"""
# A module outside the package, the entry point that declares it, and the program that is run
CASES: dict[str, tuple[str, str | None, str]] = {
    "imported": (MODULE, None, "import my_losses\n" + USE),
    "entry of a module": (MODULE, "my_losses", USE),
    "entry of a class that registers itself": (MODULE, "my_losses:Mine", USE),
    "entry of a class": (UNDECORATED, "my_losses:Mine", USE),
    "broken": ("import no_such_module\n", "my_losses:Mine", REFUSED),
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the program of each case prints."""
    folders = {name: tmp_path_factory.mktemp("case") for name in CASES}
    words = []
    for name, (module, value, program) in CASES.items():
        (folders[name] / "my_losses.py").write_text(module)
        if value is not None:
            declare(folders[name], value)
        words += [str(folders[name]), program]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, *words],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(sureclr.registry.__file__).parents[1]),
        },
    )
    assert run.returncode == 0, run.stderr
    return {name: (folder / "printed.txt").read_text() for name, folder in folders.items()}


def test_a_loss_registered_by_decorator(printed: dict[str, str]) -> None:
    assert printed["imported"] == PRINTED


@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("entry")])
def test_a_loss_of_an_installed_package(printed: dict[str, str], case: str) -> None:
    """By entry point: nobody imports the module. It may register itself, or be the entry."""
    assert printed[case] == PRINTED


def test_a_package_that_cannot_be_imported_is_named(printed: dict[str, str]) -> None:
    said = printed["broken"]
    assert said.startswith("0.2\nthe loss 'mine' of another package cannot be imported")
    assert "no_such_module" in said


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
