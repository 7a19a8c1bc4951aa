"""The registry beside packages that bring entries: what they can and cannot change."""

import sys
from pathlib import Path

import pytest

from sureclr.errors import UserError
from sureclr.registry import Registry


@pytest.fixture
def shapes() -> Registry[int]:
    registry: Registry[int] = Registry("shape", "test.shapes")
    registry.register("triangle")(3)
    registry.register("square")(4)
    return registry


def install(folder: Path, name: str, points: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package with entry points where Python looks for packages."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[test.shapes]\n{points}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_it_is_a_mapping_in_the_order_of_registration(shapes: Registry[int]) -> None:
    assert dict(shapes) == {"triangle": 3, "square": 4} and list(shapes) == ["triangle", "square"]
    assert len(shapes) == 2 and "square" in shapes and "circle" not in shapes
    assert shapes.get("square") == 4 and shapes.get("circle") is None and shapes.get("x", 1) == 1
    with pytest.raises(UserError, match="unknown shape 'triangl': did you mean triangle"):
        shapes["triangl"]


def test_a_name_has_one_entry(shapes: Registry[int]) -> None:
    with pytest.raises(UserError, match="there is already a shape named 'square'"):
        shapes.register("square")(5)
    shapes.register("square")(4)  # the same entry again, as a module that is imported twice
    assert shapes["square"] == 4


def test_a_cell_that_is_run_twice_replaces_its_own_definition() -> None:
    registry: Registry[type] = Registry("thing", "test.things")

    def cell(number: int) -> type:
        @registry.register("mine")
        class Mine:
            value = number

        return Mine

    assert cell(1) is not cell(2) and registry["mine"].value == 2
    with pytest.raises(UserError, match="there is already a thing named 'mine'"):
        registry.register("mine")(dict)


def test_a_removed_name_is_free_again(shapes: Registry[int]) -> None:
    shapes.remove("square")
    assert list(shapes) == ["triangle"]
    shapes.register("square")(5)
    assert shapes["square"] == 5
    with pytest.raises(UserError, match="unknown shape"):
        shapes.remove("circle")


def test_entry_points_are_imported_when_needed_and_once(
    shapes: Registry[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "five_corners.py").write_text("corners = 5\n")
    install(tmp_path, "five", "pentagon = five_corners:corners", monkeypatch)
    assert shapes["triangle"] == 3 and "triangle" in shapes
    assert "five_corners" not in sys.modules  # names that are here import nothing
    assert shapes["pentagon"] == 5 and list(shapes) == ["triangle", "square", "pentagon"]
    assert len(shapes) == 3


@pytest.mark.parametrize(
    "first_use",
    [
        list,
        len,
        lambda shapes: "pentagon" in shapes,
        lambda shapes: shapes.get("pentagon"),
        lambda shapes: shapes["pentagon"],
    ],
)
def test_listing_counting_and_asking_import_entry_points(
    shapes: Registry[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_use: object
) -> None:
    (tmp_path / "five_more.py").write_text("corners = 5\n")
    install(tmp_path, "fivemore", "pentagon = five_more:corners", monkeypatch)
    first_use(shapes)
    assert "five_more" in sys.modules
    del sys.modules["five_more"]


def test_an_entry_of_this_package_is_not_replaced(
    shapes: Registry[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other_square.py").write_text("corners = 40\n")
    install(tmp_path, "other", "square = other_square:corners", monkeypatch)
    assert dict(shapes)["square"] == 4


def test_a_package_that_cannot_be_imported_is_named(
    shapes: Registry[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "broken", "hexagon = no_such_module:corners", monkeypatch)
    with pytest.raises(UserError, match="shape 'hexagon'.*no_such_module:corners.*uninstall it"):
        shapes["hexagon"]
    assert shapes["triangle"] == 3  # other names still work


@pytest.mark.parametrize("code", ["import no_such_module", "raise SystemExit(0)", "1 / 0"])
def test_a_broken_package_does_not_stop_the_others(
    shapes: Registry[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    (tmp_path / "broken_corners.py").write_text(f"{code}\n")
    (tmp_path / "six_corners.py").write_text("corners = 6\n")
    points = "broken = broken_corners:corners\nhexagon = six_corners:corners"
    install(tmp_path, "both", points, monkeypatch)
    monkeypatch.delitem(sys.modules, "broken_corners", raising=False)
    with pytest.warns(RuntimeWarning, match="the shape 'broken' of another package cannot be"):
        assert list(shapes) == ["triangle", "square", "hexagon"]
    assert shapes["hexagon"] == 6
    with pytest.raises(UserError, match="repair or uninstall it"):
        shapes["broken"]
    with pytest.raises(UserError, match="unknown shape 'circle'"):
        shapes["circle"]
