"""The house: which package may import which, how many imports a module has, and names.

The witness is the source itself, parsed; the rule is the diagram in README, which a reader sees.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sureclr"
MOST_IMPORTS = 12  # "about ten": more means that a module does several things
MODULES = sorted(PACKAGE.rglob("*.py"))


def identifier(path: Path) -> str:
    """`sureclr.maths.sphere` for sureclr/maths/sphere.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    """The package of a module, or its own name where it lies at the top."""
    return [*module.split("."), "__init__"][1]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """The modules of ours that a module imports, anywhere in it."""
    known = {identifier(module) for module in MODULES}
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inside & known or {str(node.module)}
    return names


def diagram() -> list[list[str]]:
    """The lines of README's diagram, each a list of rooms, from the ground up."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- house -->\n```\n(.*?)```", readme, re.DOTALL)
    assert block, "README has no diagram between <!-- house --> and the end of its block"
    lines = [line for line in block[1].splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 15
    return [[name.strip("/,") for name in line.split("  ")[0].split()] for line in lines]


def floor() -> dict[str, int]:
    return {name: number for number, names in enumerate(diagram()) for name in names}


def test_the_diagram_has_every_room_once() -> None:
    rooms = {room(identifier(path)) for path in MODULES} - {"__init__"}
    drawn = [name for names in diagram() for name in names]
    assert sorted(drawn) == sorted(rooms)


@pytest.mark.parametrize("path", MODULES, ids=identifier)
def test_a_module_imports_only_what_stands_before_it_in_the_diagram(path: Path) -> None:
    """Within a room modules may import each other; `sureclr` itself only forwards names."""
    module = identifier(path)
    if module == "sureclr":
        return
    floors, own = floor(), room(module)
    wrong = [
        other
        for other in imported(path)
        if room(other) != own and floors[room(other)] >= floors[own]
    ]
    assert not wrong


@pytest.mark.parametrize("path", MODULES, ids=identifier)
def test_a_module_has_about_ten_imports_of_ours(path: Path) -> None:
    if identifier(path) != "sureclr":
        assert len(imported(path)) <= MOST_IMPORTS


def defined(kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> Iterator[tuple[str, str]]:
    for path in MODULES:
        for node in tree(path).body:
            if isinstance(node, kind):
                yield node.name, identifier(path)  # type: ignore[attr-defined]


def test_a_module_a_class_and_a_function_never_share_a_name() -> None:
    modules = {part for path in MODULES for part in identifier(path).split(".")} - {"__main__"}
    classes = dict(defined(ast.ClassDef))
    functions = dict(defined((ast.FunctionDef, ast.AsyncFunctionDef)))
    shared = {
        f"{name} ({where})"
        for name, where in [*classes.items(), *functions.items()]
        if name in modules or (name in classes and name in functions)
    }
    assert not shared


def test_imports_inside_functions_are_seen() -> None:
    """The check itself: the command line imports late, and that counts."""
    assert "sureclr.evaluation.session" in imported(PACKAGE / "cli" / "evaluation_commands.py")
