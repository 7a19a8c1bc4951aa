"""The table of embeddings: what it writes is what it reads, and its digest is of its rows."""

import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sureclr.data import embeddings
from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError
from sureclr.files import read_parquet_batches


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


def large_table(n: int = 5000) -> Embeddings:
    """More rows than are written together."""
    generator = torch.Generator().manual_seed(0)
    features, direction = (torch.randn(n, k, generator=generator) for k in (6, 3))
    radius, certainty = torch.rand(2, n, generator=generator)
    split = np.array(["train", "test", "unlabelled"] * n)[:n]
    labels = torch.arange(n) % 4 - 1
    names = [f"é/{i}.png" for i in range(n)]
    return Embeddings(
        features, direction, radius, certainty, labels, ("a", "b", "c"), split, names, None, "x"
    )


def test_a_table_of_several_groups_of_rows(tmp_path: Path) -> None:
    """Read back, and column by column by pyarrow; information is that of all rows together."""
    from pyarrow import parquet

    table, path = large_table(), tmp_path / "t.parquet"
    table.save(path)
    assert parquet.ParquetFile(path).num_row_groups == 3
    again = Embeddings.read(path)
    assert again.digest == table.digest and torch.equal(again.certainty, table.certainty)
    plain = parquet.read_table(path)
    assert plain["path"].to_pylist() == table.paths
    assert plain["split"].to_pylist() == table.split.tolist()
    assert plain["label"].to_pylist() == table.labels.tolist()
    assert np.array_equal(np.stack(plain["features"].to_numpy()), table.features.numpy())
    assert np.array_equal(plain["information"].to_numpy(), table.information.numpy())


def test_features_in_half_the_space(tmp_path: Path) -> None:
    """Witness: numpy's rounding. A file of float16 is smaller, and read as float32."""
    from pyarrow import parquet

    table = large_table()
    table.save(tmp_path / "whole.parquet")
    table.save(tmp_path / "half.parquet", half=True)
    again = Embeddings.read(tmp_path / "half.parquet")
    assert again.features.dtype == torch.float32
    assert np.array_equal(
        again.features.numpy(), table.features.numpy().astype(np.float16).astype(np.float32)
    )
    normal = table.features.abs() > 6.2e-5
    error = (again.features / table.features - 1)[normal].abs().max()
    assert 2**-12 < error <= 2**-11
    assert torch.equal(again.direction, table.direction) and torch.equal(again.radius, table.radius)
    assert str(parquet.read_schema(tmp_path / "half.parquet").field("features").type) == (
        "fixed_size_list<element: halffloat>[6]"
    )
    sizes = [(tmp_path / f"{name}.parquet").stat().st_size for name in ("whole", "half")]
    assert sizes[0] - sizes[1] == pytest.approx(5000 * 6 * 2, rel=0.02)


@pytest.mark.parametrize("value", [65_520.0, -1e30, float("inf")])
def test_features_too_large_for_float16_are_refused(tmp_path: Path, value: float) -> None:
    features = T.features.clone()
    features[2, 3] = value
    with pytest.raises(UserError, match="do not fit into float16") as caught:
        replace(T, features=features).save(tmp_path / "t.parquet", half=True)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("groups", ["ours", "one"])
def test_reading_takes_little_more_than_the_table(
    tmp_path: Path, groups: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 MB of features; it was 4.8 times. One group of all rows is what older versions wrote."""
    import pyarrow as pa
    from pyarrow import parquet

    n, f, path = 20_000, 512, tmp_path / "t.parquet"
    replace(large_table(n), features=torch.randn(1000, f).repeat(n // 1000, 1)).save(path)
    if groups == "one":
        parquet.write_table(parquet.read_table(path), path, use_dictionary=["split"])
    held, before = [], pa.total_allocated_bytes()

    def watched(file, rows):
        schema, count, batches = read_parquet_batches(file, rows)

        def each():
            for batch in batches:
                held.append(pa.total_allocated_bytes() - before)
                yield batch

        return schema, count, each()

    monkeypatch.setattr(embeddings, "read_parquet_batches", watched)
    tracemalloc.start()
    try:
        Embeddings.read(path)
        peak = tracemalloc.get_traced_memory()[1]  # of Python and numpy
    finally:
        tracemalloc.stop()
    assert len(held) >= n / 2048 and max(held) < 30e6  # of pyarrow, whatever n is
    assert 4 * n * f < peak < 1.15 * 4 * n * f


def test_rows_that_are_neighbours_are_a_view(tmp_path: Path) -> None:
    some = T.select(np.array([1, 2, 3]))
    assert some.features.data_ptr() == T.features[1:].data_ptr() and len(some.paths) == 3
    assert T.select(np.ones(5, dtype=bool)).direction.data_ptr() == T.direction.data_ptr()
    for rows in ([1, 3], [1, 3, 2], [2, 2], [-2, -1]):
        some = T.select(np.array(rows))
        assert (
            some.digest
            == replace(
                T,
                features=T.features[rows],
                direction=T.direction[rows],
                radius=T.radius[rows],
                labels=T.labels[rows],
                split=T.split[rows],
                paths=[T.paths[i] for i in rows],
            ).digest
        )
    assert len(T.select(np.array([], dtype=np.int64))) == 0
    with pytest.raises(IndexError):
        T.select(np.array([4, 5]))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("features", [[1.0], [2.0, 3.0], [1.0], [2.0], [3.0]]),
        ("features", [[1.0], [None], [1.0], [2.0], [3.0]]),
        ("direction", ["a", "b", "c", "d", "e"]),
        ("label", [0, 1, None, 0, 1]),
        ("split", ["train", None, "test", "test", "test"]),
        ("path", [1, 2, 3, 4, 5]),
    ],
)
def test_a_column_of_another_kind_is_refused(tmp_path: Path, column: str, values: list) -> None:
    """In a table without a checksum, as an older version or another program writes it."""
    import pyarrow as pa
    from pyarrow import parquet

    a_table().save(tmp_path / "t.parquet")
    table = parquet.read_table(tmp_path / "t.parquet")
    about = {k: v for k, v in table.schema.metadata.items() if k != b"sha256"}
    place = table.column_names.index(column)
    changed = table.set_column(place, column, pa.array(values)).replace_schema_metadata(about)
    parquet.write_table(changed, tmp_path / "t.parquet")
    with pytest.raises(UserError, match="cannot be read"):
        Embeddings.read(tmp_path / "t.parquet")


def test_rows_of_another_length_further_down_are_refused(tmp_path: Path) -> None:
    """One number would be taken for two equal ones."""
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    large_table(3000).save(path)
    table = parquet.read_table(path)
    about = {k: v for k, v in table.schema.metadata.items() if k != b"sha256"}
    lists = pa.array([[1.0, 2.0]] * 2048 + [[1.0]] * 952)
    changed = table.set_column(table.column_names.index("features"), "features", lists)
    parquet.write_table(changed.replace_schema_metadata(about), path)
    with pytest.raises(UserError, match="its rows differ in length"):
        Embeddings.read(path)


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
