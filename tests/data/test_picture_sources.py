"""Lists of files, tar shards, Parquet, Arrow and saved data sets give the images that a folder of
the same files gives. The witnesses that write them are tarfile, pyarrow and datasets.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from listening import Listening
from PIL import Image
from pyarrow import ipc, parquet

from sureclr.data.image_set import ImageSet
from sureclr.data.picture_sources import list_parquet, list_shards
from sureclr.data.sources import SOURCES, findable, is_source, load_images
from sureclr.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))


def png(seed: int, height: int = 8, width: int = 12) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


PICTURES = [png(seed) for seed in range(30)]
CLASSES = ["cat" if i % 3 else "dog" for i in range(30)]


@pytest.fixture
def folder(tmp_path: Path) -> ImageSet:
    """The witness: the same pictures as files, in the order of their numbers."""
    root = tmp_path / "folder"
    for i, data in enumerate(PICTURES):
        (root / CLASSES[i]).mkdir(parents=True, exist_ok=True)
        (root / CLASSES[i] / f"{i:02d}.png").write_bytes(data)
    images = load_images(f"folder:{root}", size=8)
    return images.select(sorted(range(30), key=lambda row: images.paths[row][4:]))


def assert_same(images: ImageSet, folder: ImageSet) -> None:
    assert np.array_equal(images.images.numpy(), folder.images.numpy())
    assert images.pictures is not None and folder.pictures is not None
    for row in range(len(images)):
        assert np.array_equal(images.pictures[row].numpy(), folder.pictures[row].numpy())
    names = [images.classes[label] for label in images.labels]
    assert names == [folder.classes[label] for label in folder.labels] == CLASSES
    assert images.split.tolist() == folder.split.tolist() and "test" in images.split
    assert images.contents == folder.contents


# --- lists of files


@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
def test_a_list_of_files(tmp_path: Path, folder: ImageSet, end: str) -> None:
    names = [f"folder/{path}" for path in folder.paths]
    names[3] = str(tmp_path / names[3])
    lines = ["\ufeff" + names[0], *names[1:], names[5], ""]
    (tmp_path / "list.txt").write_bytes(end.join(lines).encode())
    images = load_images(f"list:{tmp_path}/list.txt", size=8)
    order = [images.paths.index(name) for name in names]  # type: ignore[attr-defined]
    assert len(images) == 30
    assert_same(images.select(order), folder)


def test_names_of_any_bytes_and_missing_files_in_a_list(tmp_path: Path) -> None:
    odd = os.fsdecode(b"line\nbreak \xff.png")
    for i, name in enumerate([odd, *(f"{i}.png" for i in range(12))]):
        with open(os.fsencode(tmp_path / name), "wb") as file:
            file.write(PICTURES[i])
    names = [odd, *(f"{i}.png" for i in range(12)), "gone.png"]
    (tmp_path / "list").write_bytes(b"\0".join(os.fsencode(name) for name in names))
    progress = Listening()
    images = load_images(f"list:{tmp_path}/list", size=8, progress=progress)
    assert len(images) == 13 and "line\\nbreak \\udcff.png" in images.paths
    assert any(
        "1 of 14 image files could not be read: gone.png (No such" in t for t in progress.said
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read .No such file"), (b"\n \n", "names no image file")],
)
def test_a_list_that_names_nothing(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "list").write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_images(f"list:{tmp_path}/list")


# --- tar shards


def shard(file: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def cls(i: int) -> dict[str, bytes]:
    return {f"{i:04d}.cls": CLASSES[i].encode()}


def js(i: int) -> dict[str, bytes]:
    return {f"{i:04d}.json": json.dumps({"label": CLASSES[i], "w": 3}).encode()}


def txt(i: int) -> dict[str, bytes]:
    return {f"{i:04d}.txt": CLASSES[i].encode() + b"\n"}


@pytest.mark.parametrize("label", [cls, js, txt])
@pytest.mark.parametrize("pattern", ["shards", "shards/*.tar", "shards/data-{000..002}.tar"])
def test_shards_give_the_images_of_a_folder(
    tmp_path: Path, folder: ImageSet, label: Callable[[int], dict[str, bytes]], pattern: str
) -> None:
    for number in range(3):
        rows = range(number * 10, number * 10 + 10)
        members = {k: v for i in rows for k, v in {f"{i:04d}.png": PICTURES[i], **label(i)}.items()}
        shard(tmp_path / "shards" / f"data-{number:03d}.tar", members)
    before = set(tmp_path.rglob("*"))
    images = load_images(f"tar:{tmp_path}/{pattern}", size=8)
    assert_same(images, folder)
    assert images.paths[11] == "data-001.tar/0011.png"
    new = set(tmp_path.rglob("*")) - before
    assert all("cache" in path.parts for path in new)  # nothing is unpacked


def test_numbers_are_classes_in_their_order_and_shards_name_splits(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 12)):
        members = {}
        for i in range(first, first + 12):
            members |= {f"{i}.png": PICTURES[i], f"{i}.cls": str(i % 12).encode()}
        shard(tmp_path / f"{split}-000.tar", members)
    images = load_images(f"tar:{tmp_path}", size=8)
    assert images.classes == tuple(str(i) for i in range(12))
    assert images.labels.tolist() == [*range(12), *range(12)][:24]
    assert images.split.tolist() == ["test"] * 12 + ["train"] * 12
    assert "names of the shards" in images.note


def test_captions_are_no_labels(tmp_path: Path) -> None:
    members = {}
    for i in range(10):
        members |= {f"{i}.png": PICTURES[i], f"{i}.txt": f"a picture of number {i}".encode()}
    progress = Listening()
    images = load_images(f"tar:{shard(tmp_path / 'a.tar', members)}", size=8, progress=progress)
    assert not images.labelled and any("captions" in text for text in progress.said)


def test_a_shard_that_is_packed_or_damaged_is_one_sentence(tmp_path: Path) -> None:
    packed = shard(tmp_path / "a.tar", {"1.png": PICTURES[0]}, "w:gz")
    with pytest.raises(UserError, match="unpack it to a plain .tar"):
        load_images(f"tar:{packed}")
    (tmp_path / "b.tar").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match=r"b.tar cannot be read as a tar file"):
        list_shards(str(tmp_path / "b.tar"))
    with pytest.raises(UserError, match="names no file that ends in .tar"):
        list_shards(str(tmp_path / "none-*.tar"))
    with pytest.raises(UserError, match="no files that end as images do"):
        list_shards(str(shard(tmp_path / "c.tar", {"a.txt": b"x"})))


def test_a_changed_shard_is_read_again(tmp_path: Path) -> None:
    file = shard(tmp_path / "a.tar", {f"{i}.png": PICTURES[i] for i in range(5)})
    first = load_images(f"tar:{file}", size=8)
    shard(file, {f"{i}.png": PICTURES[i + 5] for i in range(5)})
    second = load_images(f"tar:{file}", size=8)
    assert not np.array_equal(first.images.numpy(), second.images.numpy())


# --- tables


def table(rows: range, form: str, labels: str) -> pa.Table:
    data = [PICTURES[i] for i in rows]
    image = (
        data if form == "bytes" else [{"bytes": d, "path": f"{i}.png"} for i, d in enumerate(data)]
    )
    kinds = ["cat", "dog"]
    number = [kinds.index(CLASSES[i]) for i in rows]
    columns = {"id": list(rows), "image": image}
    label = {"words": [CLASSES[i] for i in rows], "numbers": number, "features": number}[labels]
    made = pa.table({**columns, "label": label})
    if labels == "features":
        features = {"info": {"features": {"label": {"names": kinds, "_type": "ClassLabel"}}}}
        made = made.replace_schema_metadata({"huggingface": json.dumps(features)})
    return made


@pytest.mark.parametrize("form", ["bytes", "struct"])
@pytest.mark.parametrize("labels", ["words", "features"])
def test_parquet_gives_the_images_of_a_folder(
    tmp_path: Path, folder: ImageSet, form: str, labels: str
) -> None:
    for number in range(2):
        rows = range(number * 15, number * 15 + 15)
        file = tmp_path / "tables" / f"part-{number}.parquet"
        file.parent.mkdir(exist_ok=True)
        parquet.write_table(table(rows, form, labels), file, row_group_size=4)
    assert_same(load_images(f"parquet:{tmp_path}/tables", size=8), folder)


@pytest.mark.parametrize("new", [ipc.new_file, ipc.new_stream])
def test_arrow_files_and_streams(tmp_path: Path, folder: ImageSet, new: Any) -> None:
    made = table(range(30), "struct", "words")
    odd = tmp_path / os.fsdecode(b"\xff.arrow")
    with odd.open("wb") as stream, new(stream, made.schema) as writer:
        writer.write_table(made, max_chunksize=7)
    assert_same(load_images(f"parquet:{odd}", size=8), folder)


def test_files_named_like_splits_and_plain_numbers(tmp_path: Path) -> None:
    for split, rows in (
        ("train", range(20)),
        ("test", range(20, 26)),
        ("validation", range(26, 30)),
    ):
        file = tmp_path / f"{split}-00000-of-00001.parquet"
        parquet.write_table(table(rows, "bytes", "numbers"), file)
    images = load_images(f"parquet:{tmp_path}", size=8)
    assert images.classes == ("0", "1") and len(images.train) == 20 and len(images.test) == 6
    assert images.report is not None and sum(images.report.left_out_pictures.values()) == 4
    assert sorted(images.train.labels.tolist()) == sorted(
        ["cat", "dog"].index(name) for name in CLASSES[:20]
    )


def test_only_some_rows_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sureclr.data import picture_sources

    monkeypatch.setattr(picture_sources, "ROWS_AT_ONCE", 8)
    parquet.write_table(
        table(range(30), "bytes", "words"), tmp_path / "a.parquet", row_group_size=7
    )
    files = list_parquet(str(tmp_path / "a.parquet")).listing.files
    assert [file.data for file in files] == PICTURES and len(files) == 30
    assert [file.data for file in files[3:12]] == PICTURES[3:12]  # slices, as workers get them
    assert files[29].data == PICTURES[29] and files[0].data == PICTURES[0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda file: file.write_bytes(b"x" * 100), "cannot be read"),
        (lambda file: parquet.write_table(pa.table({"a": [1]}), file), "no column of images"),
        (lambda file: None, "names no file"),
    ],
)
def test_a_table_without_images_is_one_sentence(
    tmp_path: Path, make: Callable[[Path], Any], words: str
) -> None:
    make(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=words) as caught:
        load_images(f"parquet:{tmp_path}/a.parquet")
    assert "\n" not in str(caught.value)


# --- Hugging Face


@pytest.mark.parametrize("splits", [False, True])
def test_a_saved_data_set(tmp_path: Path, folder: ImageSet, splits: bool) -> None:
    datasets = pytest.importorskip("datasets")
    names = ["cat", "dog"]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )

    def made(rows: range) -> Any:
        images = [{"bytes": PICTURES[i], "path": None} for i in rows]
        columns = {"image": images, "label": [names.index(CLASSES[i]) for i in rows]}
        return datasets.Dataset.from_dict(columns, features=features)

    if splits:
        parts = {"train": made(range(24)), "test": made(range(24, 30))}
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    else:
        made(range(30)).save_to_disk(str(tmp_path / "saved"))
    images = load_images(f"hf:{tmp_path}/saved", size=8)
    if splits:
        assert images.split.tolist() == ["train"] * 24 + ["test"] * 6
        assert np.array_equal(images.images.numpy(), folder.images.numpy())
        assert images.classes == ("cat", "dog")
    else:
        assert_same(images, folder)


def test_no_saved_data_set_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(UserError, match="is no data set that save_to_disk wrote"):
        load_images(f"hf:{tmp_path}")
    with pytest.raises(UserError, match="is not a folder"):
        load_images(f"hf:{tmp_path}/none")


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"install sureclr\[datasets\]"):
        load_images(f"hf:{tmp_path}")


# --- names


def test_all_forms_are_listed_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = {"folder:PATH", "list:FILE", "tar:PATTERN", "parquet:PATH", "hf:PATH"}
    assert forms <= set(SOURCES) and not any(is_source(form) for form in forms)
    monkeypatch.chdir(tmp_path)
    shard(tmp_path / "a.tar", {f"{i}.png": PICTURES[i] for i in range(3)})
    images = load_images("tar:a.tar", size=8)
    assert images.name == findable("tar:a.tar") == f"tar:{tmp_path}/a.tar" and is_source(
        images.name
    )


@pytest.mark.parametrize("kind", ["folder", "list", "tar", "parquet", "hf"])
def test_an_empty_path_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As in "folder:$PHOTOS" where the variable is not set."""
    (tmp_path / "a").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "a" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert findable(f"{kind}:") == f"{kind}:"
    with pytest.raises(UserError, match=f"'{kind}:' names no path; .* {kind}:PATH"):
        load_images(f"{kind}:")
    with pytest.raises(UserError, match="a, is not a folder"):
        load_images("folder:a,")
    assert len(load_images("folder:.")) == len(load_images("folder:a")) == 1


MUTANTS = """
import random, sys
from pathlib import Path
from sureclr.data.sources import load_images
from sureclr.errors import UserError

for name in sys.argv[1:]:
    path = Path(name)
    good = path.read_bytes()
    for seed in range(30):
        random.seed(seed)
        data = bytearray(good)
        tail = len(data) // 3 if seed % 2 else 0  # the offsets and the labels are at the end
        for _ in range(20):
            data[random.randrange(tail, len(data))] = random.randrange(256)
        mutant = path.with_name(f"{seed}{path.suffix}")
        mutant.write_bytes(data)
        try:
            load_images(f"parquet:{mutant}")
        except UserError as error:
            print(error)
"""


def test_damaged_tables_end_in_one_sentence_and_not_the_process(tmp_path: Path) -> None:
    """Wrong offsets in Arrow files ended it; wrong pages and labels ended in a traceback."""
    pictures = []
    for i in range(30):
        stream = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(stream, "png")
        pictures.append(stream.getvalue())
    table = pa.table({"image": pictures, "label": [f"class {i % 3}" for i in range(30)]})
    parquet.write_table(table, tmp_path / "t.parquet")
    with ipc.new_file(tmp_path / "t.arrow", table.schema) as writer:
        writer.write_table(table)
    done = subprocess.run(
        [sys.executable, "-c", MUTANTS, str(tmp_path / "t.parquet"), str(tmp_path / "t.arrow")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SURECLR_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert done.stdout.count(" cannot be read (") > 10
