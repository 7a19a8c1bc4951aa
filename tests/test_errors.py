"""An unknown name gets the nearest known ones, then all."""

import pytest

from sureclr.errors import unknown


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar-10", "unknown source 'cifar-10': did you mean cifar10 or cifar100? Known: "),
        ("CIFAR10", "unknown source 'CIFAR10': did you mean cifar10 or cifar100? Known: "),
        ("cifar", "unknown source 'cifar': did you mean cifar10 or cifar100? Known: "),
        ("xyz", "unknown source 'xyz': Known: "),
    ],
)
def test_an_unknown_name(name: str, message: str) -> None:
    known = ["digits", "cifar10", "cifar100", "stl10"]
    assert str(unknown("source", name, known)) == f"{message}{', '.join(known)}."


def test_at_most_three_names_are_suggested() -> None:
    text = str(unknown("file", "a1", ["a2", "a3", "a4", "a5"]))
    assert text.split("?")[0].count(" or ") == 2
