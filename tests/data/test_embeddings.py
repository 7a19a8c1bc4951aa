"""The table of embeddings: what it writes is what it reads, and its digest is of its rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError


def a_table(radius: bool = True) -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    features, direction = (torch.randn(5, k, generator=generator) for k in (7, 3))
    return Embeddings(
        features,
        torch.nn.functional.normalize(direction, dim=1),
        torch.rand(5, generator=generator) if radius else None,
        torch.rand(5, generator=generator),
        torch.tensor([0, 1, -1, 1, 0]),
        ("a", "b"),
        np.array(["train", "train", "unlabelled", "test", "test"]),
        [f"é{i}.png" for i in range(5)],
        12.5,
    )


@pytest.mark.parametrize("radius", [True, False])
def test_a_saved_table_is_read_back(tmp_path: Path, radius: bool) -> None:
    table = a_table(radius)
    table.save(tmp_path / "t.parquet")
    again = Embeddings.read(tmp_path / "t.parquet")
    assert again.digest == table.digest
    assert torch.equal(again.features, table.features)
    assert torch.equal(again.direction, table.direction)
    assert (again.radius is None) is not radius
    assert again.certainty is not None and table.certainty is not None
    assert torch.equal(again.certainty, table.certainty)
    assert (again.classes, again.kernel_dimension) == (("a", "b"), 12.5)
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]


def test_saving_replaces_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / "t.parquet").symlink_to(tmp_path / "other")
    a_table().save(tmp_path / "t.parquet")
    assert (tmp_path / "other").read_bytes() == b"precious"
    assert len(Embeddings.read(tmp_path / "t.parquet")) == 5


@pytest.mark.parametrize("data", [b"", b"PAR1 nonsense"])
def test_a_damaged_table_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"t\.parquet cannot be read .* delete it") as caught:
        Embeddings.read(tmp_path / "t.parquet")
    assert "\n" not in str(caught.value)


T = a_table()


@pytest.mark.parametrize(
    "changed",
    [
        replace(T, features=T.features + 1e-6),
        replace(T, direction=-T.direction),
        replace(T, radius=None),
        replace(T, radius=T.certainty),
        replace(T, labels=T.labels.flip(0)[[1, 0, 2, 3, 4]]),
        replace(T, split=np.full(5, "train")),
        replace(T, paths=list("abcde")),
        T.select(np.array([1, 0, 2, 3, 4])),
        T.select(np.array([0, 1, 2, 3])),
    ],
    ids=["features", "direction", "no radius", "radius", "labels", "split", "paths", "order", "n"],
)
def test_the_digest_changes_with_every_column(changed: Embeddings) -> None:
    assert changed.digest != T.digest


def test_equal_tables_have_the_same_digest() -> None:
    assert a_table().digest == T.digest
    assert T.select(np.ones(5, dtype=bool)).digest == T.digest


def test_labelled_rows_of_a_split() -> None:
    assert list(T.labelled("train").paths) == ["é0.png", "é1.png"]
    assert len(T.labelled("unlabelled")) == 0
