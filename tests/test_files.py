"""Files are complete or absent and never written through a link; checksums and JSON against
Python's own.
"""

import errno
import hashlib
import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from sureclr.files import (
    HASHED_BYTES,
    digest_of_bytes,
    digest_of_tensors,
    draft_path,
    json_bytes,
    remove,
    sync_folder,
    write_atomically,
    write_synced,
    writing_atomically,
)
from sureclr.schema import to_json


def test_a_file_is_written_and_nothing_else_stays(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    with path.open("rb") as reader:
        with writing_atomically(path) as file:
            file.write(b"new")
            file.flush()
            assert path.read_bytes() == b"old"
        assert reader.read() == b"old"  # who has the old file open still reads it
    assert path.read_bytes() == b"new"


def test_a_block_that_fails_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    with pytest.raises(KeyboardInterrupt), writing_atomically(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_an_oserror_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", full) if call == "fsync" else (Path, "replace", full)))
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_draft_is_on_the_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, real = tmp_path / "a.bin", list[tuple[int, bool]](), os.fsync

    def recording(handle: int) -> None:
        synced.append((os.fstat(handle).st_size, path.exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", recording)
    write_atomically(path, b"12345")
    assert synced == [(5, False)]


@pytest.mark.parametrize("where", ["missing/a.bin", "file/a.bin"])
def test_a_folder_that_is_missing_is_an_oserror(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        write_atomically(tmp_path / where, b"new")


def test_a_target_that_is_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    other, path = tmp_path / "other.txt", tmp_path / "a.txt"
    other.write_bytes(b"precious")
    path.symlink_to(other)
    write_atomically(path, b"new")
    assert other.read_bytes() == b"precious"
    assert path.read_bytes() == b"new" and not path.is_symlink()


@pytest.mark.parametrize("exists", [True, False])
def test_a_draft_that_is_a_link_is_replaced_and_not_followed(tmp_path: Path, exists: bool) -> None:
    other, path = tmp_path / "other.txt", tmp_path / "a.txt"
    if exists:
        other.write_bytes(b"precious")
    draft_path(path).symlink_to(other)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and not path.is_symlink()
    assert (other.read_bytes() == b"precious") if exists else not other.exists()
    assert not draft_path(path).is_symlink()


def test_a_link_that_appears_at_the_last_moment_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if someone made the link after an older draft was deleted."""
    other, path = tmp_path / "other.txt", tmp_path / "a.txt"
    other.write_bytes(b"precious")
    draft_path(path).symlink_to(other)
    with monkeypatch.context() as patch, pytest.raises(FileExistsError):
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        write_atomically(path, b"new")
    assert other.read_bytes() == b"precious" and not path.exists()


def test_the_draft_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    draft_path(tmp_path / "a.txt").write_bytes(b"a long half of an older file")
    write_atomically(tmp_path / "a.txt", b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_draft_is_hidden_and_beside_its_target(tmp_path: Path) -> None:
    draft = draft_path(tmp_path / "a.txt")
    assert draft.parent == tmp_path and draft.name.startswith(".a.txt.")


def test_others_may_read_the_file_as_far_as_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "a.txt", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


def test_synced_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, real = list[bool](), os.fsync

    def recording(handle: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(handle).st_mode))
        real(handle)

    monkeypatch.setattr(os, "fsync", recording)
    write_synced(tmp_path / "a.txt", b"new")
    sync_folder(tmp_path)
    assert (tmp_path / "a.txt").read_bytes() == b"new" and synced == [False, True]


def test_remove_deletes_files_folders_and_links_but_not_what_links_point_to(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "a.txt").write_text("")
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for name in ("link", "dangling", "folder", "file", "missing"):
        remove(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "target"]


# --- JSON


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        (np.float64("nan"), None),
        (0.5, 0.5),
        (True, True),
        (3, 3),
        ("NaN", "NaN"),
        (None, None),
        ((1, math.nan), [1, None]),
        ({"a": [math.nan, 1.0], "b": {"c": math.inf, "d": [[math.nan]]}}, None),
    ],
)
def test_numbers_that_json_lacks_become_none(value: object, expected: object) -> None:
    if isinstance(value, dict):
        expected = {"a": [None, 1.0], "b": {"c": None, "d": [[None]]}}
    assert to_json(value) == expected and json.loads(json_bytes(value)) == expected


def test_json_bytes_are_indented_ascii() -> None:
    data = json_bytes({"é": [1, float("nan")], "\udcff": (2,)})
    assert data == b'{\n "\\u00e9": [\n  1,\n  null\n ],\n "\\udcff": [\n  2\n ]\n}'


# --- Checksums


@pytest.mark.parametrize("parts", [(), (b"",), (b"abc",), (b"a", b"bc"), (bytes(1000), b"x")])
def test_the_digest_of_bytes_is_their_sha256(parts: tuple[bytes, ...]) -> None:
    assert digest_of_bytes(*parts) == hashlib.sha256(b"".join(parts)).hexdigest()


X = torch.arange(24.0).view(2, 3, 4)


def test_the_digest_of_a_tensor_is_the_sha256_of_type_shape_and_bytes() -> None:
    expected = hashlib.sha256(b"torch.float32 (2, 3, 4)" + X.numpy().tobytes()).hexdigest()
    assert digest_of_tensors(X) == expected


def test_long_tensors_are_hashed_completely() -> None:
    rows = HASHED_BYTES // 1000 + 3  # a block and a bit
    x = torch.arange(rows, dtype=torch.int64).to(torch.uint8)[:, None].repeat(1, 1000)
    data = f"torch.uint8 ({rows}, 1000)".encode() + x.numpy().tobytes()
    assert digest_of_tensors(x) == hashlib.sha256(data).hexdigest()


def test_rows_longer_than_a_block_are_hashed_completely() -> None:
    x = torch.zeros(2, HASHED_BYTES + 1, dtype=torch.uint8)
    x[1, -1] = 7
    data = f"torch.uint8 (2, {HASHED_BYTES + 1})".encode() + x.numpy().tobytes()
    assert digest_of_tensors(x) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        (X.double(),),
        (X.view(3, 2, 4),),
        (X.view(24),),
        (X + torch.eye(3, 4) * 1e-6,),
        (X[:, :, :3],),
        (X[0], X[1]),
        (X, X),
        (-X,),
        (),
    ],
)
def test_other_tensors_have_another_digest(other: tuple[Tensor, ...]) -> None:
    assert digest_of_tensors(*other) != digest_of_tensors(X)


@pytest.mark.parametrize(
    "same",
    [
        X.transpose(0, 2).contiguous().transpose(0, 2),
        X.clone().requires_grad_(),
        torch.cat([X, X])[::1][:2],
        torch.stack([X, X], -1)[..., 0],
    ],
    ids=["transposed", "with gradient", "slice", "strided"],
)
def test_equal_tensors_have_the_same_digest(same: Tensor) -> None:
    assert digest_of_tensors(same) == digest_of_tensors(X)


@pytest.mark.parametrize(
    "x",
    [torch.tensor(3.0), torch.zeros(0, 4), torch.zeros(4, 0), torch.ones(2, dtype=torch.bfloat16)],
    ids=["scalar", "no rows", "no columns", "bfloat16"],
)
def test_unusual_tensors_have_a_digest(x: Tensor) -> None:
    assert len(digest_of_tensors(x)) == 64
    assert digest_of_tensors(x) != digest_of_tensors(x, x)


READING = """
import os, sys
from pathlib import Path
from pyarrow import parquet
from sureclr.files import read_parquet

before = len(os.listdir("/proc/self/task"))
try:
    read_parquet(Path(sys.argv[1]))
except OSError:
    print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_a_damaged_table_is_read_by_one_thread(tmp_path: Path) -> None:
    """Where several read it, pyarrow 26 aborts one process in three at its exit."""
    path = tmp_path / "t.parquet"
    values = np.random.default_rng(0).random(7200)
    columns = {f"c{i}": pa.array(values + i) for i in range(8)}
    parquet.write_table(pa.table(columns), path, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", READING, str(path)], check=True, capture_output=True, text=True
    )
    assert done.stdout == "0\n", "threads that reading has started"
