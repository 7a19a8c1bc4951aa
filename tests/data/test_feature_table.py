"""Tables of features made elsewhere. Witnesses: the arrays that were written, numpy and pyarrow."""

import io
import struct
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from tiny import Messages
from tiny_table import CLEAN, LABELS, PATHS, SPLIT, VIEWS, F, K, N, lists, write_table

from sureclr import files
from sureclr.data import feature_table, folder_cache
from sureclr.data.feature_table import (
    FeatureSet,
    features_given,
    features_of,
    read_feature_table,
    save_features,
)
from sureclr.data.splits import held_out_by_content
from sureclr.errors import UserError


def views_of(images: FeatureSet) -> Any:
    """(k, n, f), read one number of a row and a view at a time."""
    rows, n = torch.arange(len(images)), len(images)
    return np.stack(
        [images.view_features(rows, torch.full((n,), k)).numpy() for k in range(images.view_count)]
    )


KINDS = {
    "fixed": None,
    "list of float32": pa.list_(pa.float32()),
    "large list of float64": pa.large_list(pa.float64()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_parquet_table_is_read_as_it_was_written(tmp_path: Path, kind: str) -> None:
    columns = {f"view_{k}": lists(view, KINDS[kind]) for k, view in enumerate(VIEWS)}
    file = write_table(tmp_path / "x.parquet", (), **columns)
    found, said = read_feature_table(str(file)), Messages()
    assert np.array_equal(views_of(found), VIEWS)
    assert np.array_equal(found.images.flatten(1).numpy(), CLEAN)
    assert list(found.paths) == PATHS and found.split.tolist() == SPLIT
    assert [found.classes[k] for k in found.labels.tolist()] == LABELS
    read_feature_table(str(file), progress=said)
    text = " ".join(said.messages)
    assert "60 images (48 train, 12 test), 3 classes" in text and "column `split`" in text
    assert "12 features of 3 views (float32" in text and "its own column" in text


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_row_groups_and_blocks_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    file = write_table(tmp_path / "x.parquet")
    parquet.write_table(parquet.read_table(file), tmp_path / "y.parquet", row_group_size=rows)
    whole = read_feature_table(str(file))
    monkeypatch.setattr(feature_table, "ROWS_AT_ONCE", rows)
    monkeypatch.setattr(feature_table, "IN_MEMORY", 0)  # the views lie in a file
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    np.savez(tmp_path / "z.npz", features=VIEWS, clean=CLEAN)
    for name in ("y.parquet", "z.npz"):
        found = read_feature_table(str(tmp_path / name))
        assert np.array_equal(views_of(found), VIEWS) and found.contents == whole.contents
    assert list((tmp_path / "cache").iterdir()) == []  # the file has no name
    monkeypatch.setattr(folder_cache, "SPARE_BYTES", 2**62)
    with pytest.raises(UserError, match="the features of the table need .* SURECLR_CACHE"):
        read_feature_table(str(tmp_path / "y.parquet"))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_an_npz_table_is_what_numpy_reads(
    tmp_path: Path, kind: Any, order: Any, write: Callable[..., None]
) -> None:
    labels = np.arange(N) % 3 - 1
    write(tmp_path / "x.npz", features=np.array(VIEWS, kind, order=order), labels=labels)
    found = read_feature_table(str(tmp_path / "x.npz"))
    expected = np.load(tmp_path / "x.npz")["features"].astype(np.float32)
    assert np.array_equal(views_of(found), expected)
    assert found.views.dtype == (torch.float16 if kind == np.float16 else torch.float32)
    mean = np.load(tmp_path / "x.npz")["features"].astype(np.float64).mean(0)
    assert np.allclose(found.images.flatten(1).numpy(), mean, atol=1e-6)
    assert found.classes == ("0", "1") and found.labels.tolist() == labels.tolist()


def test_without_splits_a_hash_of_the_features_holds_out_images(tmp_path: Path) -> None:
    file = write_table(tmp_path / "x.parquet", split=None)
    held = held_out_by_content([sha256(row.tobytes()).hexdigest() for row in CLEAN], 3)
    assert (read_feature_table(str(file), seed=3).split == "test").tolist() == held.tolist()
    assert 0 < held.sum() < N


def test_validation_rows_are_for_testing_unless_there_are_test_rows(tmp_path: Path) -> None:
    words = ["val" if s == "test" else "Training" for s in SPLIT]
    found = read_feature_table(str(write_table(tmp_path / "x.parquet", split=words)))
    assert found.split.tolist() == SPLIT
    words[1] = "test"
    said = Messages()
    found = read_feature_table(str(write_table(tmp_path / "x.parquet", split=words)), progress=said)
    kept = [i for i, word in enumerate(words) if word != "val"]
    assert list(found.paths) == [PATHS[i] for i in kept]
    assert np.array_equal(views_of(found), VIEWS[:, kept])
    assert any("12 validation rows of the table are left out" in text for text in said.messages)


def test_columns_of_views_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    columns = {f"view_{k}": lists(VIEWS[0] + k) for k in (10, 9, 2)}
    columns |= {"direction": lists(VIEWS[0]), "other": lists(VIEWS[0][:, :5])}
    found = read_feature_table(str(write_table(tmp_path / "x.parquet", (), **columns)))
    assert np.array_equal(views_of(found), np.stack([VIEWS[0] + k for k in (2, 9, 10)]))


def test_without_such_names_every_list_of_numbers_is_a_view(tmp_path: Path) -> None:
    columns = {"dino": lists(VIEWS[1]), "clip": lists(VIEWS[0]), "direction": lists(CLEAN)}
    columns |= {"size": pa.array([[3, 4]] * N)}  # whole numbers
    found = read_feature_table(str(write_table(tmp_path / "x.parquet", (), **columns)))
    assert np.array_equal(views_of(found), VIEWS[[1, 0]])
    assert np.array_equal(found.images.flatten(1).numpy(), CLEAN)


def test_a_set_is_saved_whole(tmp_path: Path) -> None:
    images = read_feature_table(str(write_table(tmp_path / "x.parquet"))).select(
        np.arange(N)[::-2].copy()
    )
    save_features(images, tmp_path / "y.npz")
    found = read_feature_table(str(tmp_path / "y.npz"))
    assert found.contents == images.contents and found.split.tolist() == images.split.tolist()
    assert found.classes == images.classes and torch.equal(found.labels, images.labels)
    assert list(found.paths) == list(images.paths) == PATHS[::-2]
    assert np.array_equal(views_of(found), VIEWS[:, ::-1][:, ::2])


def test_features_given_in_python_are_those_of_a_file(tmp_path: Path) -> None:
    from_file = read_feature_table(str(write_table(tmp_path / "x.parquet")))
    for features in (VIEWS, torch.from_numpy(VIEWS), VIEWS.astype(np.float64)):
        given = features_given(features, clean=CLEAN, labels=LABELS, paths=PATHS, split=SPLIT)
        assert given.contents == from_file.contents
        assert torch.equal(given.labels, from_file.labels) and given.classes == from_file.classes
    half = features_given(torch.from_numpy(VIEWS).bfloat16())
    assert torch.equal(half.views, torch.from_numpy(VIEWS).bfloat16().float().transpose(0, 1))


def test_what_can_be_embedded_needs_no_views(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", features=CLEAN)
    file = write_table(tmp_path / "x.parquet", ())
    for images in (CLEAN, torch.from_numpy(CLEAN), f"table:{tmp_path / 'x.npz'}", f"table:{file}"):
        found = features_of(images, F)
        assert np.array_equal(found.images.flatten(1).numpy(), CLEAN) and found.view_count == 0
    with pytest.raises(UserError, match="has 12 features of an image, and this run was trained on"):
        features_of(CLEAN, 13)
    with pytest.raises(UserError, match="takes no pictures, so digits cannot be embedded"):
        features_of("digits", F)


# --- What is refused, each with one sentence ----------------------------------------


def without(rows: Any, row: int, value: float) -> Any:
    changed = rows.copy()
    changed[..., row, 3] = value
    return changed


def test_an_npz_table_may_have_the_names_of_a_parquet_table(tmp_path: Path) -> None:
    """The witness is the same table with one array of all views."""
    labels = [f"c{i % 2}" for i in range(len(CLEAN))]
    paths = [f"p{i}" for i in range(len(CLEAN))]
    views = {f"view_{i}": view for i, view in reversed(list(enumerate(VIEWS)))}
    np.savez(tmp_path / "x.npz", **views, features=CLEAN, label=labels, path=paths)
    np.savez(tmp_path / "y.npz", features=VIEWS, clean=CLEAN, labels=labels, paths=paths)
    one, other = (read_feature_table(str(tmp_path / name)) for name in ("x.npz", "y.npz"))
    assert torch.equal(one.views, other.views) and torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels) and list(one.paths) == list(other.paths)
    np.savez(tmp_path / "z.npz", view_0=CLEAN, view_1=CLEAN[:, :2])
    with pytest.raises(UserError, match="its array view_1 is .* each view needs"):
        read_feature_table(str(tmp_path / "z.npz"))


def npz_of(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def with_header(path: Path, header: bytes, data: bytes) -> Path:
    """An .npz whose array claims what it likes."""
    buffer = io.BytesIO(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy", buffer.getvalue() + data)
    return path


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (8, 1000000000, 4096), }\n"
NEGATIVE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, -1, 4), }\n"
OBJECTS = b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 1, 1), }\n"
CODE = b"{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': (2,), }\n"
ragged = [row.tolist() for row in VIEWS[0]]
ragged[7] = ragged[7][:5]
missing = [row.tolist() for row in VIEWS[0]]
missing[9] = None  # type: ignore[call-overload]
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "NaN": (lambda p: write_table(p / "x.parquet", without(VIEWS, 17, np.nan)), "row 17 of the"),
    "infinite": (lambda p: npz_of(p / "x.npz", features=without(VIEWS, 4, np.inf)), "row 4 of"),
    "too large": (
        lambda p: npz_of(p / "x.npz", features=without(VIEWS.astype(float), 5, 1e300)),
        "too large for float32",
    ),
    "clean NaN": (
        lambda p: write_table(p / "x.parquet", features=lists(without(CLEAN, 2, np.nan))),
        "row 2 of the column features",
    ),
    "lengths": (
        lambda p: write_table(p / "x.parquet", view_2=lists(VIEWS[2][:, :5])),
        "column view_2 has 5 features and the column view_0 has 12",
    ),
    "ragged": (
        lambda p: write_table(p / "x.parquet", view_1=pa.array(ragged)),
        "lists in the column view_1 have 12 and 5",
    ),
    "one number twice": (
        lambda p: write_table(p / "x.parquet", view_01=lists(VIEWS[1])),
        "columns view_1 and view_01 have the same number",
    ),
    "missing": (
        lambda p: write_table(p / "x.parquet", view_1=pa.array(missing)),
        "column view_1 lacks some numbers",
    ),
    "one view": (lambda p: write_table(p / "x.parquet", VIEWS[:1]), "of 1 view, and the certainty"),
    "no view": (lambda p: write_table(p / "x.parquet", ()), "whole images only, and the certainty"),
    "no features": (
        lambda p: write_table(p / "x.parquet", (), features=None),
        "no column of features",
    ),
    "no rows": (
        lambda p: npz_of(p / "x.npz", features=VIEWS[:, :0]),
        "0 rows with 12 features each",
    ),
    "no rows, Parquet": (
        lambda p: write_table(
            p / "x.parquet",
            [VIEWS[0, :0]] * 2,
            path=pa.array([], pa.string()),
            label=pa.array([], pa.string()),
            split=pa.array([], pa.string()),
            features=lists(CLEAN[:0]),
        ),
        "0 rows",
    ),
    "repeated": (
        lambda p: write_table(p / "x.parquet", path=[*PATHS[:-1], PATHS[4]]),
        "'photos/04.jpg' stands in row 4 and in row 59",
    ),
    "split": (
        lambda p: write_table(p / "x.parquet", split=["fold_1"] * N),
        "a split is one of train, unlabelled, test, validation, not 'fold_1'",
    ),
    "labels": (
        lambda p: npz_of(p / "x.npz", features=VIEWS, labels=np.arange(5)),
        "60 images but 5 labels",
    ),
    "paths": (lambda p: npz_of(p / "x.npz", features=VIEWS, paths=["a"]), "60 rows and 1 paths"),
    "clean": (
        lambda p: npz_of(p / "x.npz", features=VIEWS, clean=CLEAN[:, :3]),
        "from one network",
    ),
    "whole numbers": (
        lambda p: npz_of(p / "x.npz", features=VIEWS.astype(np.int32)),
        "int32",
    ),
    "name": (lambda p: npz_of(p / "x.npz", embeddings=VIEWS), "no array `features` (it has embed"),
    "objects": (
        lambda p: npz_of(p / "x.npz", features=VIEWS, labels=np.array(LABELS, object)),
        "labels holds Python objects",
    ),
    "objects claimed": (lambda p: with_header(p / "x.npz", OBJECTS, bytes(16)), "Python objects"),
    "code": (lambda p: with_header(p / "x.npz", CODE, bytes(16)), "cannot be read"),
    "huge": (lambda p: with_header(p / "x.npz", HUGE, bytes(400)), "claims float32"),
    "negative": (lambda p: with_header(p / "x.npz", NEGATIVE, bytes(400)), "claims float32"),
    "no npz": (lambda p: write_table(p / "x.parquet").rename(p / "x.npz"), "is no .npz file"),
    "no Parquet": (lambda p: npz_of(p / "x.npz", a=1).rename(p / "x.parquet"), "cannot be read"),
    "truncated npz": (lambda p: cut(npz_of(p / "x.npz", features=VIEWS), 0.7), "truncated"),
    "truncated Parquet": (lambda p: cut(write_table(p / "x.parquet"), 0.7), "cannot be read"),
    "empty": (lambda p: cut(write_table(p / "x.parquet"), 0), "cannot be read"),
    "ending": (lambda p: write_table(p / "x.parquet").rename(p / "x.csv"), "its ending says"),
    "gone": (lambda p: p / "x.parquet", "there is no table"),
    "folder": (lambda p: p, "its ending says"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    make, words = BAD[case]
    with pytest.raises(UserError) as caught:
        read_feature_table(str(make(tmp_path)))
    text = str(caught.value)
    assert words in text and "\n" not in text and text.endswith("."), text


def test_a_small_file_of_many_numbers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "x.npz", features=np.zeros((2, 1000, 100), np.float32))
    read_feature_table(str(tmp_path / "x.npz"))
    monkeypatch.setattr(files, "TABLE_ROOM", 1 << 16)
    with pytest.raises(UserError, match="its rows take more than"):
        read_feature_table(str(tmp_path / "x.npz"))


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    data = bytearray(npz_of(tmp_path / "x.npz", features=VIEWS).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(UserError, match="CRC-32"):
        read_feature_table(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("features", [VIEWS[0], VIEWS[:1], VIEWS.astype(np.int32), "x", None])
def test_bad_features_in_python_are_refused(features: Any) -> None:
    with pytest.raises(UserError, match="these features cannot be used"):
        features_given(features)


def test_k_views_are_known(tmp_path: Path) -> None:
    assert read_feature_table(str(write_table(tmp_path / "x.parquet"))).view_count == K
