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

from sureclr import files
from sureclr.files import (
    DRAFT,
    DRAFT_START,
    HASHED_BYTES,
    digest_of_bytes,
    digest_of_tensors,
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
    assert synced[0] == (5, False) and len(synced) == 2 and synced[1][1]  # then the folder


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


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder", "pipe"])
def test_nothing_planted_stands_in_the_way_or_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The first two random names are guessed: what lies there stays, and the next one is taken."""
    (tmp_path / "other.txt").write_bytes(b"precious")
    (tmp_path / "a").mkdir()
    planted = [tmp_path / "a" / f"{DRAFT_START}{i:016x}" for i in range(2)]
    for path in planted:
        if kind == "file":
            path.write_bytes(b"mine")
        elif kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(tmp_path / ("other.txt" if kind == "link" else "nowhere"))
    monkeypatch.setattr(files, "_tidy_once", lambda folder: None)
    names = iter([*(path.name for path in planted), f"{DRAFT_START}{7:016x}"])
    monkeypatch.setattr(files, "_draft_name", lambda: next(names))
    write_atomically(tmp_path / "a" / "x", b"new")
    assert (tmp_path / "a" / "x").read_bytes() == b"new"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        *(path.name for path in planted),
        "x",
    ]
    assert (tmp_path / "other.txt").read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


def test_names_of_drafts_do_not_repeat() -> None:
    names = {files._draft_name() for _ in range(1000)}
    assert len(names) == 1000 and all(DRAFT.fullmatch(name) for name in names)


WRITING = """
import sys, time
from pathlib import Path
from sureclr.files import write_synced, writing_atomically, writing_folder_atomically

folder = Path(sys.argv[1])
with writing_atomically(folder / "a") as file, writing_folder_atomically(folder / "b") as draft:
    file.write(b"half")
    file.flush()
    write_synced(draft / "c", b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_drafts_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    """Whatever their age; and an old file of the user's that has no name of ours stays."""
    (tmp_path / ".draft-7").write_bytes(b"of the user, outside of a run")
    words = [sys.executable, "-c", WRITING, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
        drafts = {path for path in tmp_path.iterdir() if path.name.startswith(DRAFT_START)}
        for draft in drafts:
            os.utime(draft, (0, 0))
        for alone in (False, True):
            (tmp_path / ".draft-7").write_bytes(b"")
            files.remove_dead_drafts(tmp_path, alone=alone)
            assert len(drafts) == 2 and drafts <= set(tmp_path.iterdir())
            assert (tmp_path / ".draft-7").exists() is not alone
        writer.kill()
    write_atomically(tmp_path / "x", b"new")  # the first write of this process in this folder
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_drive_without_locks_keeps_young_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_flock", lambda handle: None)
    young, old = (tmp_path / f"{DRAFT_START}{i:016x}" for i in range(2))
    young.touch()
    old.touch()
    os.utime(old, (0, 0))
    files.remove_dead_drafts(tmp_path)
    assert list(tmp_path.iterdir()) == [young]
    write_atomically(tmp_path / "x", b"new")
    files.remove_dead_drafts(tmp_path, alone=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_is_written_whole_or_not_at_all_and_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "step"
    for text in (b"old", b"new"):
        with files.writing_folder_atomically(path) as draft:
            write_synced(draft / "a", text[:1], text[1:])
            assert not path.exists() or (path / "a").read_bytes() == b"old"
        assert (path / "a").read_bytes() == text
        assert [entry.name for entry in tmp_path.iterdir()] == ["step"]
    with pytest.raises(KeyboardInterrupt), files.writing_folder_atomically(path) as draft:
        raise KeyboardInterrupt
    assert (path / "a").read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_take_the_name_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "step", os.rename
    path.mkdir()
    (path / "a").write_bytes(b"old")

    def failing(source: Path, target: Path) -> None:
        if Path(source).name.startswith(DRAFT_START):
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="output"):
        patch.setattr(os, "rename", failing)
        with files.writing_folder_atomically(path) as draft:
            write_synced(draft / "a", b"new")
    assert (path / "a").read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_error_of_another_file_is_not_said_to_be_of_this_one(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, writing_atomically(tmp_path / "a"):
        (tmp_path / "elsewhere" / "b").read_bytes()
    assert not isinstance(caught.value, files.WriteError)
    assert list(tmp_path.iterdir()) == []


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


def test_a_key_that_comes_twice_in_json_is_refused() -> None:
    assert files.parsed_json('{"a": 1, "b": {"a": 2}}') == {"a": 1, "b": {"a": 2}}
    with pytest.raises(ValueError, match="the key 'a' comes twice"):
        files.parsed_json(b'[{"b": {"a": 1, "c": 2, "a": 3}}]')
    with pytest.raises(ValueError, match="more than"):
        files.parsed_json("[" + "[]," * 4_200_000 + "[]]")
    with pytest.raises(ValueError, match="too deep"):
        files.parsed_json("[" * 100_000 + "]" * 100_000)


def test_a_table_is_read_as_pyarrow_reads_it(tmp_path: Path) -> None:
    """Words, repeated words, missing values, lists and numbers, in several groups of rows."""
    n, numbers = 40_000, np.random.default_rng(0).random((40_000, 3))
    columns = {
        "path": [f"{i}.png" for i in range(n)],
        "class": pa.array([None, "a", "b", "a"] * (n // 4)),
        "list": [["a", "b"], [], None, ["c"]] * (n // 4),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), 3),
        "coded": pa.DictionaryArray.from_arrays(pa.array([0, 1] * (n // 2)), ["x", "y"]),
    }
    written = pa.table(columns).replace_schema_metadata({"about": "us"})
    parquet.write_table(written, tmp_path / "a.parquet", row_group_size=15_000)
    table = parquet.read_table(tmp_path / "a.parquet")
    assert files.read_parquet(tmp_path / "a.parquet").equals(table, check_metadata=True)
    some = files.read_parquet(tmp_path / "a.parquet", lambda column: column.name == "class")
    assert some.equals(table.select(["class"]))


def test_a_small_file_that_claims_much_is_no_table(tmp_path: Path) -> None:
    """Two gigabytes of words in a few hundred bytes: a dictionary has one word of 100 kB once."""
    word = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, np.int32)), ["x" * 100_000])
    parquet.write_table(pa.table({"a": word}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 2000
    with pytest.raises(OSError, match="its rows take more than"):
        files.read_parquet(tmp_path / "a.parquet")


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """As root, `--out /dev/null` would break every program of the machine."""
    try:
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except OSError:
        pytest.skip("only root can make a device")
    with pytest.raises(files.WriteError, match="it is a device"):
        files.write_atomically(tmp_path / "null", b"x")
    assert (tmp_path / "null").is_char_device()
    (tmp_path / "link").symlink_to("null")
    files.write_atomically(tmp_path / "link", b"x")
    assert (tmp_path / "link").read_bytes() == b"x" and (tmp_path / "null").is_char_device()
