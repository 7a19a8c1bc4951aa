"""The table of embeddings: what it writes is what it reads, and its digest is of its rows."""

import os
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


def test_a_changed_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """R5: a bit of every eleventh byte in turn. What is not refused reads as the whole table."""
    table, path, refused = a_table(), tmp_path / "t.parquet", 0
    table.save(path)
    data = path.read_bytes()
    for place in range(0, len(data), 11):
        flipped = data[place] ^ (1 << place % 8)
        path.write_bytes(data[:place] + bytes([flipped]) + data[place + 1 :])
        try:
            again = Embeddings.read(path)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        assert again.digest == table.digest, place
        assert torch.equal(again.certainty, table.certainty), place
        assert vars(again)["classes"] == table.classes and again.kernel_dimension == 12.5, place
    assert refused > 0.5 * len(data) / 11


def test_a_table_of_an_older_version_is_read(tmp_path: Path) -> None:
    """It has no checksums."""
    from pyarrow import parquet

    a_table().save(tmp_path / "t.parquet")
    table = parquet.read_table(tmp_path / "t.parquet")
    about = {k: v for k, v in table.schema.metadata.items() if k != b"sha256"}
    parquet.write_table(table.replace_schema_metadata(about), tmp_path / "t.parquet")
    assert Embeddings.read(tmp_path / "t.parquet").digest == a_table().digest


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """R7."""
    os.mkfifo(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="a pipe or a device"):
        Embeddings.read(tmp_path / "t.parquet")


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
