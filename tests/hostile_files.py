"""Hostile files: what a stranger may put in the place of a file that a command reads.

`CASES` has a hundred of them. Each plants its file in a copy of a run, of a folder of images or of
both, and names the words of the command that reads it.
"""

import gzip
import hashlib
import io
import json
import os
import re
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

TEBIBYTE = 1 << 40
DEEP = 100_000
CONFIG = "run/config.yaml"
WRITE = ("--out", "drawn.png", "--count", "2")
KNN = ("knn", "run")
REPORT = ("report", "run", "--no-evaluate")
OVERWRITE = (
    *("pretrain", "folder:photos", "--out", "run", "--overwrite"),
    *("--epochs", "1", "--encoder", "small-10", "--batch-size", "8"),
)
RESUME = ("pretrain", "--resume", "run")
LABELS = ("knn", "run", "--labels")
PREDICT = ("predict", "run", "photos/dark", "--out", "answers.csv", "--classifier")
ESCAPE = "\x1b[2J\x1b]0;owned\x07"

Make = Callable[[Path], None]  # writes the hostile file at this path


@dataclass(frozen=True)
class Case:
    """A hostile input.

    Attributes:
        name: what it is.
        words: of the command that reads it, in the folder where it lies.
        plant: gets that folder, which holds `run`, `photos` and, beside it, `victim`.
        codes: exit codes that are right; 0 where the command has a message about it.
    """

    name: str
    words: tuple[str, ...]
    plant: Callable[[Path], None]
    codes: tuple[int, ...] = (2,)


def put(data: bytes | str | Callable[[], bytes | str]) -> Make:
    """A file with this content, which may be made only when it is needed."""

    def make(path: Path) -> None:
        content = data() if callable(data) else data
        _clear(path).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def link(target: str) -> Make:
    """A link to a path, relative to the folder of the case."""

    def make(path: Path) -> None:
        root = next(p for p in path.parents if (p / "photos").exists())
        _clear(path).symlink_to(target if target.startswith("/") else root / target)

    return make


def fifo(path: Path) -> None:
    os.mkfifo(_clear(path))


def folder(path: Path) -> None:
    _clear(path).mkdir()


def loop(path: Path) -> None:
    _clear(path).symlink_to(path.name)


def sparse(path: Path, start: bytes = b"") -> None:
    """A file of 1 TiB that takes no disk."""
    with _clear(path).open("wb") as file:
        file.write(start)
        file.truncate(TEBIBYTE)


def _clear(path: Path) -> Path:
    """The path, where nothing is left; its folder exists."""
    import shutil

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    return path


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
    for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
LONG_LINE = b"x" * 100_000_000
ANY_FILE: dict[str, Make] = {  # in the place of any file
    "a pipe": fifo,
    "a link to /dev/zero": link("/dev/zero"),
    "a link to a terminal or standard input": link("/dev/stdin"),
    "a folder": folder,
    "a link to nothing": link("/nonexistent/x"),
    "a link to itself": loop,
    "nothing at all": put(b""),
    "1 TiB": sparse,
    "a line of 100 MB": put(LONG_LINE),
    "null bytes": put(bytes(1000)),
    "bytes that are not UTF-8": put(b"\xff\xfe\xfa\xd8" * 100),
}
JSON: dict[str, Make] = {
    "deep lists": put("[" * DEEP + "]" * DEEP),
    "deep objects": put('{"a":' * DEEP + "1" + "}" * DEEP),
    "a million lists": put(lambda: "[" + "[]," * 5_000_000 + "[]]"),
    "a number of a million digits": put('{"schema": ' + "9" * 1_000_000 + "}"),
    "an infinite number": put('{"schema": 1e999, "step": Infinity, "a": NaN}'),
    "UTF-16": put('{"schema": 1}'.encode("utf-16")),
    "wrong types": put('{"schema": [], "step": {}, "source": 1, "pid": null, "knn": 7}'),
    "numbers as words": put('{"schema": "4", "step": "1"}'),
    "a doubled key": put('{"schema": 4, "schema": 4, "knn": {}, "knn": []}'),
    "a million keys": put(lambda: json.dumps({str(i): {} for i in range(1_000_000)})),
    "a very long name": put('{"schema": 4, "' + "n" * 10_000_000 + '": {}}'),
    "a list": put("[1, 2]"),
}
YAML: dict[str, Make] = {
    "aliases of aliases": put(ALIASES),
    "an alias of itself": put("source: &a [*a]\n"),
    "a tag of Python": put("source: !!python/object/apply:os.system ['touch ../victim/owned']\n"),
    "deep lists": put("source: " + "[" * 20_000 + "]" * 20_000),
    "a long number": put("source: digits\nepochs: " + "9" * 5000),
    "a number in base 60": put("source: digits\nepochs: " + ":".join(["9"] * 5000)),
    "a merge of many": put("a: &a {x: 1}\nb: {<<: [" + ", ".join(["*a"] * 9000) + "]}\n"),
    "a huge projection": put("source: digits\nprojection_dim: 30000000\n"),
    "not a number": put("source: digits\nlearning_rate: .nan\nepochs: .inf\n"),
    "UTF-16": put("source: digits\n".encode("utf-16")),
    "two documents": put("source: digits\n---\nsource: cifar10\n"),
    "binary": put("source: !!binary aGVsbG8=\nepochs: !!set {a, b}\n"),
    "a doubled key": put("source: digits\nsource: cifar10\n"),
    "a long hexadecimal number": put("source: digits\nbatch_size: 0x" + "f" * 9000),
    "a date": put("source: 2020-01-01\nseed: 0x7fffffffffffffffffff\n"),
}


# --- Checkpoints ------------------------------------------------------------------------


def tensors(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS: dict[str, bytes] = {
    "a header of 2^63 bytes": struct.pack("<Q", 1 << 63) + b"{}",
    "overlapping tensors": tensors({"a": _entry([4], 0, 16), "b": _entry([4], 8, 24)}, bytes(24)),
    "negative offsets": tensors({"a": _entry([4], -16, 0)}, bytes(16)),
    "a shape whose product overflows": tensors({"a": _entry([1 << 40, 1 << 40], 0, 16)}, bytes(16)),
    "an unknown type": tensors({"a": _entry([4], 0, 16, "F31")}, bytes(16)),
    "a million tensors": tensors({str(i): _entry([0], 0, 0) for i in range(150_000)}),
    "a deep header": tensors(b"[" * DEEP + b"]" * DEEP),
    "a header that is no object": tensors([1, 2]),
    "weights of another shape": tensors({"encoder.mean": _entry([9], 0, 36)}, bytes(36)),
    "half a header": tensors({"a": _entry([4], 0, 16)})[:20],
}


def newest(root: Path) -> Path:
    return max((root / "run/checkpoints").glob("step-*"))


def in_checkpoints(name: str, data: bytes, *, resealed: bool = True) -> Callable[[Path], None]:
    """A file in both checkpoints, named in the manifest as if it belonged there."""

    def plant(root: Path) -> None:
        for path in (root / "run/checkpoints").glob("step-*"):
            put(data)(path / name)
            if resealed:
                manifest = json.loads((path / "manifest.json").read_text())
                manifest[name] = hashlib.sha256(data).hexdigest()
                (path / "manifest.json").write_text(json.dumps(manifest))

    return plant


def every_checkpoint(name: str, make: Make) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        for path in (root / "run/checkpoints").glob("step-*"):
            make(path / name)

    return plant


def renamed_in_manifest(name: str) -> Callable[[Path], None]:
    """The manifest names a file elsewhere, with its true digest."""

    def plant(root: Path) -> None:
        victim = (root / "../victim/file").resolve()
        for path in (root / "run/checkpoints").glob("step-*"):
            manifest = json.loads((path / "manifest.json").read_text())
            outside = name.replace("VICTIM", str(victim))
            manifest[outside] = hashlib.sha256(victim.read_bytes()).hexdigest()
            (path / "manifest.json").write_text(json.dumps(manifest))

    return plant


def edited_state(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        state = json.loads((newest(root) / "state.json").read_text())
        change(state)
        in_checkpoints("state.json", json.dumps(state).encode())(root)

    return plant


def wide_model(root: Path) -> None:
    """Configuration and checkpoints agree on a model of 2^32 weights; the weights are not there."""
    words = "projection_dim: 65536\nprojection_hidden: 65536"
    text = re.sub(r"projection_dim: \d+", words, (root / CONFIG).read_text())
    text = text.replace("projection_hidden: null\n", "")
    (root / CONFIG).write_text(text)
    for path in (root / "run/checkpoints").glob("step-*"):
        state = json.loads((path / "state.json").read_text())
        state["configuration"] |= {"projection_dim": 65536, "projection_hidden": 65536}
        in_checkpoints("state.json", json.dumps(state).encode())(root)


# --- Tables -----------------------------------------------------------------------------


def table(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def words_bomb(name: str = "path", rows: int = 20_000) -> bytes:
    """20 GB of words in a few kB: one word of a megabyte that a dictionary has once."""
    zeros = pa.array(np.zeros(rows, np.int32))
    column = pa.DictionaryArray.from_arrays(zeros, pa.array(["x" * 1_000_000]))
    return table({name: column, "label": column}, compression="zstd")


def numbers_bomb() -> bytes:
    """1.6 GB of zeros in some kB."""
    buffer = io.BytesIO()
    part = pa.table({"label": pa.array(np.zeros(20_000_000, np.int64))})
    with parquet.ParquetWriter(buffer, part.schema, compression="zstd") as writer:
        for _ in range(10):
            writer.write_table(part)
    return buffer.getvalue()


def pages_bomb() -> bytes:
    """A gigabyte of zeros that zstd made small, without a dictionary."""
    buffer = io.BytesIO()
    part = pa.table({"image": pa.array([bytes(1 << 28)], pa.binary()), "label": ["a"]})
    options = {"compression": "zstd", "use_dictionary": False}
    with parquet.ParquetWriter(buffer, part.schema, **options) as writer:
        for _ in range(4):
            writer.write_table(part)
    return buffer.getvalue()


def image_bomb() -> bytes:
    """20 GB of "pictures" in a few kB."""
    zeros = pa.array(np.zeros(20_000, np.int32))
    column = pa.DictionaryArray.from_arrays(zeros, pa.array([bytes(1_000_000)]))
    return table({"image": column, "label": ["a"] * 20_000}, compression="zstd")


def wide_table() -> bytes:
    return table({f"c{i}": [1] for i in range(30_000)})


def claims_rows(data: bytes) -> bytes:
    """A table whose footer claims 10^10 rows instead of 77: thrift's zigzag numbers."""

    def varint(value: int) -> bytes:
        value, out = value << 1, b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    length = struct.unpack("<I", data[-8:-4])[0]
    body, footer = data[: -8 - length], data[-8 - length : -8]
    footer = footer.replace(b"\x16" + varint(77), b"\x16" + varint(10**10))
    return body + footer + struct.pack("<I", len(footer)) + b"PAR1"


def seventy_seven(**more: Any) -> bytes:
    rows = {"path": ["dark/00.png"] * 77, "label": ["a"] * 77, **more}
    return table(rows)


# --- Archives ---------------------------------------------------------------------------


def archive(members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, data: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data


def picture(seed: int = 0) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def long_names(count: int) -> bytes:
    """So many headers, each of which says that the name of the next one is long."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2
    one = info.tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")
    return one * count + archive([member("a.png", picture())])


def huge_pax_header(path: Path) -> None:
    """A header that says that its extension has 512 GiB, in a file of 1 TiB."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 39
    sparse(path, info.tobuf(tarfile.GNU_FORMAT))


def pax_words(words: dict[str, str]) -> bytes:
    info, data = member("a.png", picture())
    info.pax_headers = words
    return archive([(info, data), *good_members()])


def good_members() -> list[tuple[tarfile.TarInfo, bytes]]:
    return [member(f"{name}/{i}.png", picture(i)) for name in "ab" for i in range(6)]


def gnu_sparse() -> bytes:
    """A member that claims to be one of 1 TiB with holes."""
    info = tarfile.TarInfo("hole.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386 : 386 + 24] = b"00000000000\0" + b"00000001000\0"
    head[483:495] = b"\x80" + (TEBIBYTE).to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return bytes(head) + bytes(512) + archive(good_members())


EVIL_MEMBERS = [
    member("../victim/file.png", picture(1)),
    member("/tmp/absolute.png", picture(2)),
    member("link.png", type=tarfile.SYMTYPE, linkname="../victim/file"),
    member("hard.png", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    member("device.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    member("pipe.png", type=tarfile.FIFOTYPE),
    member("folder.png/", type=tarfile.DIRTYPE),
]


# --- Arrays and other files -------------------------------------------------------------


def npy(shape: str, descr: str = "'<f8'", data: bytes = b"") -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x02\0" + struct.pack("<I", len(head)) + head + data


class Owned:
    def __reduce__(self) -> Any:
        return os.system, ("touch ../victim/owned",)


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Owned()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def many_columns(path: Path) -> None:
    put("path," + ",".join(f"c{i}" for i in range(1_000_000)) + "\ndark/00.png" + ",1" * 1_000_000)(
        path
    )


def dataset_with_code(root: Path) -> None:
    """A folder as `save_to_disk` writes it, with a script that must not run."""
    code = "import os\nos.system('touch ../victim/owned')\n"
    for name in ("data.py", "dataset.py", "__init__.py"):
        put(code)(root / "data" / name)
    put(json.dumps({"splits": ["train"]}))(root / "data/dataset_dict.json")
    put(json.dumps({"_data_files": [{"filename": "../../victim/file"}], "_format_type": None}))(
        root / "data/train/state.json"
    )
    put(json.dumps({"builder_name": "data", "features": {"image": {"_type": "Image"}}}))(
        root / "data/train/dataset_info.json"
    )


def hostile_names(root: Path) -> None:
    """Pictures, and files that are none, whose names write to the terminal."""
    for i, name in enumerate((ESCAPE, "line\nbreak", "\u202egnp.exe", "\x9b31m", "\x07\x08\x7f")):
        put(picture(i))(root / "photos/dark" / f"{name}.png")
        put(b"rubbish")(root / "photos/dark" / f"bad{name}.png")
        put(b"rubbish")(root / "photos/dark" / f"other.{name}")
        put(picture(9 + i))(root / "photos" / f"class {name}" / "a.png")


def many_empty_files(root: Path) -> None:
    place = root / "photos/dark"
    for i in range(20_000):
        (place / f"{i}.jpg").touch()


def links_out(root: Path) -> None:
    """Links to a file and a folder outside, to devices and to themselves, and a pipe."""
    place = root / "photos/dark"
    link("../victim/file")(place / "out.png")
    link("../victim")(place / "folder")
    link("/dev/zero")(place / "zero.png")
    link("/dev/stdin")(place / "stdin.png")
    link("/")(place / "everything")
    loop(place / "loop.png")
    loop(place / "loop")
    fifo(place / "pipe.jpg")


def used_cache(root: Path) -> Path:
    """The cache as a command leaves it."""
    import subprocess
    import sys

    env = {**os.environ, "SURECLR_CACHE": str(root / "cache")}
    subprocess.run(
        [sys.executable, "-m", "sureclr.cli", "views", "folder:photos", "--out", "first.png"],
        cwd=root,
        env=env,
        check=True,
        capture_output=True,
    )
    return root / "cache"


def linked_cache(root: Path) -> None:
    """Every file that the cache has is a link to the victim."""
    cache = used_cache(root)
    for path in list(cache.iterdir()):
        link("../victim/file")(path)
    for path in (root / "photos/dark").glob("0*.png"):
        path.write_bytes(picture(int(path.stem)))  # the images changed, so old files are deleted


def edited_cache(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        for path in used_cache(root).glob("*.json"):
            content = json.loads(path.read_text())
            if "pixels" in content:
                change(content)
                path.write_text(json.dumps(content))

    return plant


def cache_files(make: Make) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        for path in list(used_cache(root).glob("*.json")):
            make(path)

    return plant


def linked_folder(name: str) -> Callable[[Path], None]:
    """A folder of the run is a link to a folder of the victim's."""
    return lambda root: link("../victim/folder")(root / "run" / name)


def at(path: str, make: Make) -> Callable[[Path], None]:
    return lambda root: make(root / path)


def without_learning(path: str, make: Make) -> Callable[[Path], None]:
    """Of all evaluations only that of the snapshots is still to be made."""

    def plant(root: Path) -> None:
        results = json.loads((root / "run/results.json").read_text())
        del results["learning"]
        (root / "run/results.json").write_text(json.dumps(results))
        make(root / path)

    return plant


def _set(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.__setitem__(key, value)


def _cases() -> list[Case]:
    cases: list[Case] = []

    def add(name: str, words: tuple[str, ...], plant: Callable[[Path], None], *codes: int) -> None:
        cases.append(Case(name, words, plant, codes or (2,)))

    def each(
        title: str, words: tuple[str, ...], path: str, kinds: dict[str, Make], *codes: int
    ) -> None:
        for kind, make in kinds.items():
            add(f"{title}: {kind}", words, at(path, make), *codes)

    def some(kinds: dict[str, Make], *names: str) -> dict[str, Make]:
        return {name: kinds[name] for name in names}

    config = ("pretrain", "-c", "mine.yaml", "--out", "new")
    each("config.yaml", KNN, CONFIG, ANY_FILE)
    each("-c FILE", config, "mine.yaml", YAML)
    each("results.json", KNN, "run/results.json", JSON, 0, 2)
    each(
        "results.json",
        KNN,
        "run/results.json",
        some(ANY_FILE, "a pipe", "a link to /dev/zero", "1 TiB"),
    )
    each("metrics.jsonl", REPORT, "run/metrics.jsonl", ANY_FILE, 0, 2)
    each("lock", KNN, "run/lock", some(ANY_FILE, "a pipe", "a folder", "a link to itself"))
    add("lock: a link out", KNN, at("run/lock", link("../victim/file")))
    add("lock: 1 TiB", KNN, at("run/lock", sparse), 0)
    each("environment.json", RESUME, "run/environment.json", {**ANY_FILE, **JSON}, 0, 2)
    each("images.json", REPORT, "run/images.json", {**ANY_FILE, **JSON}, 0, 2)
    for kind, make in {**ANY_FILE, **JSON}.items():
        add(f"manifest.json: {kind}", KNN, every_checkpoint("manifest.json", make))
        add(f"state.json: {kind}", KNN, every_checkpoint("state.json", make))
    for name in ("../../../../victim/file", "VICTIM", "..", "a/../../x", ".", ""):
        add(f"manifest.json: names {name!r}", KNN, renamed_in_manifest(name))
    for kind, data in SAFETENSORS.items():
        add(f"model.safetensors: {kind}", KNN, in_checkpoints("model.safetensors", data))
    add(
        "optimizer: another shape",
        RESUME,
        in_checkpoints("optimizer.safetensors", SAFETENSORS["weights of another shape"]),
        0,
        2,
    )
    for key, value in {
        "size": 10**9,
        "channels": 10**9,
        "step": 10**30,
        "source": "\0",
        "configuration": {},
        "seed": [],
        "epoch": "x",
    }.items():
        codes = (0, 2)
        add(f"state.json: {key} is {value!r:.20}", RESUME, edited_state(_set(key, value)), *codes)
        add(f"state.json: {key} is {value!r:.20}, knn", KNN, edited_state(_set(key, value)), *codes)
    add("config.yaml: a model of 2^32 weights", KNN, wide_model)
    # tables of a run
    bombs = {
        "words": put(lambda: words_bomb()),
        "numbers": put(lambda: numbers_bomb()),
        "wide": put(lambda: wide_table()),
        "claims rows": put(lambda: claims_rows(seventy_seven())),
        "text": put("PAR1" * 99),
        "pages": put(lambda: pages_bomb()),
    }
    for name, words in {
        "embeddings.parquet": KNN,
        "map.parquet": REPORT,
        "training_images.parquet": RESUME,
    }.items():
        each(name, words, f"run/{name}", {**ANY_FILE, **bombs}, 0, 2)
    # what was made of a run
    for name in (
        "snapshots/epoch-00001.safetensors",
        "snapshots/epoch-00002.safetensors",
        "encoder.safetensors",
    ):
        makers = {
            **some(
                ANY_FILE, "a pipe", "a link to /dev/zero", "a folder", "1 TiB", "a line of 100 MB"
            ),
            **{
                kind: put(SAFETENSORS[kind])
                for kind in ("a header of 2^63 bytes", "a million tensors", "a deep header")
            },
        }
        for kind, make in makers.items():
            add(f"{name}: {kind}", ("evaluate", "run"), without_learning(f"run/{name}", make), 0, 2)

    def all_classifiers(make: Make, ending: str) -> Callable[[Path], None]:
        def plant(root: Path) -> None:
            for path in (root / "run/classifiers").glob("*" + ending):
                make(path)

        return plant

    for kind, make in {
        **ANY_FILE,
        **some(JSON, "deep lists", "wrong types", "a million lists"),
    }.items():
        add(
            f"classifiers/*.json: {kind}",
            (*PREDICT, "linear"),
            all_classifiers(make, ".json"),
            0,
            2,
        )
        add(
            f"classifiers/*.safetensors: {kind}",
            (*PREDICT, "linear"),
            all_classifiers(make, ".safetensors"),
            0,
            2,
        )
        add(
            f"finetuned/tune.json: {kind}",
            (*PREDICT, "finetuned"),
            at("run/finetuned/100%.json", make),
        )

        def weights(root: Path, make: Make = make) -> None:
            for path in (root / "run/finetuned").glob("*.safetensors"):
                make(path)

        add(f"finetuned/*.safetensors: {kind}", (*PREDICT, "finetuned"), weights)
    # links where files are written or deleted
    for name in ("checkpoints", "snapshots", "finetuned", "classifiers"):
        add(
            f"a linked {name}: overwrite",
            OVERWRITE,
            linked_folder(name),
            0,
            2,
        )
        add(
            f"a linked {name}: resume",
            RESUME,
            linked_folder(name),
            0,
            2,
        )
        add(f"a linked {name}: knn", KNN, linked_folder(name), 0, 2)
        add(f"a linked {name}: predict", (*PREDICT, "linear"), linked_folder(name), 0, 2)
        add(
            f"a linked {name}: finetune",
            ("finetune", "run", "--labels", "100%", "--epochs", "1"),
            linked_folder(name),
            0,
            2,
        )
    for name in (
        "results.json",
        "embeddings.parquet",
        "report.html",
        "metrics.jsonl",
        "config.yaml",
        "images.json",
        "encoder.safetensors",
        "environment.json",
    ):
        for words in (
            KNN,
            REPORT,
            RESUME,
            OVERWRITE,
        ):
            add(
                f"a linked {name}: {words[0]} {words[1]}",
                words,
                at(f"run/{name}", link("../victim/file")),
                0,
                2,
            )
    add(
        "--out is a link: predict",
        ("predict", "run", "photos/dark", "--out", "out.csv"),
        at("out.csv", link("../victim/file")),
    )
    add(
        "--out is a link: predict, overwrite",
        ("predict", "run", "photos/dark", "--out", "out.csv", "--overwrite"),
        at("out.csv", link("../victim/file")),
        0,
        2,
    )
    add(
        "--out is a link: views",
        ("views", "folder:photos", "--out", "out.png"),
        at("out.png", link("../victim/file")),
        0,
        2,
    )
    add(
        "--out is a pipe: views",
        ("views", "folder:photos", "--out", "out.png"),
        at("out.png", fifo),
        0,
        2,
    )
    add(
        "--out is a link: label-next",
        ("label-next", "run", "--budget", "2", "--out", "out.csv"),
        at("out.csv", link("../victim/new")),
        0,
        2,
    )
    add(
        "--out is a link: report",
        (*REPORT, "--out", "out.html"),
        at("out.html", link("../victim/file")),
        0,
        2,
    )
    add(
        "--out is a link: pretrain",
        (
            "pretrain",
            "folder:photos",
            "--out",
            "new",
            "--epochs",
            "1",
            "--encoder",
            "small-10",
            "--batch-size",
            "8",
        ),
        at("new", link("../victim/folder")),
        0,
        2,
    )
    add(
        "--out is a link, overwrite: pretrain",
        (
            "pretrain",
            "folder:photos",
            "--out",
            "new",
            "--overwrite",
            "--epochs",
            "1",
            "--encoder",
            "small-10",
            "--batch-size",
            "8",
        ),
        at("new", link("../victim/folder")),
        0,
        2,
    )
    # label files
    for ending in ("csv", "tsv", "json", "jsonl", "txt", "parquet", "npy"):
        kinds = (
            ANY_FILE
            if ending in ("csv", "json", "parquet")
            else some(ANY_FILE, "a pipe", "1 TiB", "a line of 100 MB", "a link to /dev/zero")
        )
        each(f"labels .{ending}", (*LABELS, f"l.{ending}"), f"l.{ending}", kinds)
    each("labels .json", (*LABELS, "l.json"), "l.json", JSON)
    each(
        "labels .jsonl",
        (*LABELS, "l.jsonl"),
        "l.jsonl",
        {
            "deep lines": put(lambda: ("[" * 5000 + "]" * 5000 + "\n") * 100),
            "a million lists": put(lambda: "[]\n" * 5_000_000),
            "many keys": put(
                lambda: "".join(
                    json.dumps({"path": "dark/00.png", f"k{i}": 1}) + "\n" for i in range(20_000)
                )
            ),
        },
    )
    each(
        "labels .csv",
        (*LABELS, "l.csv"),
        "l.csv",
        {
            "a million columns": many_columns,
            "commas": put(lambda: "," * 60_000_000),
            "short rows": put(lambda: "a,b\n" * 15_000_000),
            "quotes": put('"' * 1_000_001),
            "line breaks": put(lambda: "\n" * 50_000_000),
            "UTF-16 damaged": put("path,label\ndark/00.png,a\n".encode("utf-16")[:-1]),
            "one quote": put(lambda: 'path,label\n"dark/00.png,a\n' + "x,y\n" * 3_000_000),
            "escapes": put(f"path,label\n{ESCAPE},{ESCAPE}\ndark/00.png,{ESCAPE}\n"),
            "nan weights": put("path,bright,dark\ndark/00.png,nan,inf\n" * 3),
            "a long cell": put("path,label\ndark/00.png," + "x" * 50_000_000 + "\n"),
            "sep": put("sep=(\npath(label\n"),
            "a huge number": put("path,label\ndark/00.png," + "9" * 10_000 + "\n"),
            "blank columns": put(lambda: "path label\n" + " " * 50_000_000 + "x\n"),
        },
    )
    each("labels .parquet", (*LABELS, "l.parquet"), "l.parquet", bombs)
    each(
        "labels .npy",
        (*LABELS, "l.npy"),
        "l.npy",
        {"a pickle": put(lambda: pickled()), "a huge shape": put(npy("(10**9,)"))},
    )

    # sources
    def source(kind: str, path: str, kinds: dict[str, Make], *codes: int) -> None:
        each(kind, ("views", f"{kind}:{path}", *WRITE), path, kinds, *codes)

    source("list", "l.txt", ANY_FILE)
    source(
        "list",
        "l.txt",
        {
            "a million names": put(lambda: "x.png\n" * 1_000_000),
            "many different names": put(lambda: "".join(f"{i}.png\n" for i in range(100_000))),
            "devices": put("/dev/zero\n/dev/stdin\n/dev/random\n/proc/self/mem\n/proc/kmsg\n"),
            "long names": put(lambda: ("x" * 10_000_000 + "\n") * 3),
            "folders": put("/\n.\n..\n\n~/\n~root\n"),
            "UTF-16": put("dark/00.png\n".encode("utf-16")),
            "null bytes in between": put("a\0b\nc\0"),
        },
    )
    source("tar", "t.tar", ANY_FILE)
    source(
        "tar",
        "t.tar",
        {
            "evil members": put(lambda: archive(EVIL_MEMBERS + good_members())),
            "escapes": put(
                lambda: archive(
                    [
                        member(f"a/{ESCAPE}.png", picture()),
                        member(f"b/x{ESCAPE}.png", b"x"),
                        *good_members(),
                    ]
                )
            ),
        },
        0,
    )
    source(
        "tar",
        "t.tar",
        {
            "empty members": put(lambda: archive([member(f"{i}.png") for i in range(20_000)])),
            "gzip bomb": put(lambda: gzip.compress(bytes(100_000_000), 1)),
            "long names": put(lambda: long_names(5000)),
            "huge pax header": huge_pax_header,
            "huge member": lambda path: sparse(
                path, member("a.png", size=1 << 39)[0].tobuf(tarfile.GNU_FORMAT)
            ),
            "negative size": put(
                tarfile.TarInfo("a.png").tobuf()[:124]
                + b"\xff" * 12
                + tarfile.TarInfo("a.png").tobuf()[136:]
            ),
            "pax size": put(lambda: pax_words({"size": "999999999999999999999999"})),
            "pax size word": put(lambda: pax_words({"size": "-5"})),
            "pax sparse map": put(
                lambda: pax_words({"GNU.sparse.map": "x,y", "GNU.sparse.size": "z"})
            ),
            "pax sparse 1.0": put(
                lambda: pax_words({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
            ),
            "gnu sparse": put(lambda: gnu_sparse()),
        },
        0,
        2,
    )
    source("parquet", "p.parquet", ANY_FILE)
    source(
        "parquet",
        "p.parquet",
        {
            "images bomb": put(lambda: image_bomb()),
            "pages": put(lambda: pages_bomb()),
            "claims rows": put(lambda: claims_rows(seventy_seven(image=[picture()] * 77))),
            "wide": put(lambda: wide_table()),
            "numbers": put(lambda: numbers_bomb()),
            "outside": put(
                lambda: table(
                    {
                        "image": [
                            {"bytes": None, "path": "../victim/file"},
                            {"bytes": None, "path": "/dev/zero"},
                            {"bytes": None, "path": "/dev/stdin"},
                        ],
                        "label": [1, 2, 3],
                    }
                )
            ),
            "labels bomb": put(
                lambda: table(
                    {
                        "image": [picture(i) for i in range(30)],
                        "label": pa.DictionaryArray.from_arrays(
                            pa.array([0] * 30, pa.int32()), pa.array(["x" * 20_000_000])
                        ),
                    }
                )
            ),
            "huggingface": put(
                lambda: table({"image": [picture()], "label": [7]}).replace(b"a", b"a")
            ),
        },
        0,
        2,
    )
    source(
        "parquet",
        "p.arrow",
        {
            **ANY_FILE,
            "text": put(b"ARROW1" + bytes(100)),
            "stream": put(struct.pack("<II", 0xFFFFFFFF, 0x7FFFFFF0) + bytes(100)),
        },
    )
    add("hf: code", ("views", "hf:data", *WRITE), dataset_with_code)
    for kind in (
        "a pipe",
        "a link to /dev/zero",
        "1 TiB",
        "a line of 100 MB",
        "a link to a terminal or standard input",
    ):

        def hf(root: Path, kind: str = kind) -> None:
            dataset_with_code(root)
            ANY_FILE[kind](root / "data/dataset_dict.json")

        def hf2(root: Path, kind: str = kind) -> None:
            dataset_with_code(root)
            ANY_FILE[kind](root / "data/train/state.json")

        add(f"hf dict: {kind}", ("views", "hf:data", *WRITE), hf)
        add(f"hf state: {kind}", ("views", "hf:data", *WRITE), hf2)
    # human shares
    each(
        "human shares",
        ("uncertainty", "run", "--human", "h.npy"),
        "h.npy",
        {
            **ANY_FILE,
            "a pickle": put(lambda: pickled()),
            "a huge shape": put(npy("(1000000, 1000000)")),
            "a shape that overflows": put(npy("(9223372036854775807, 9223372036854775807)")),
            "sparse huge shape": lambda path: sparse(path, npy("(3, 10000000000)")),
            "a deep header": put(npy("(" * 9000 + ")" * 9000)),
            "an odd type": put(npy("(3, 2)", "[('a', '<f8')]", bytes(48))),
        },
    )
    # image folders
    views = ("views", "folder:photos", *WRITE)
    add("names that write to the terminal", views, hostile_names, 0, 2)
    add("links, devices and pipes", views, links_out, 0)
    add("empty files", views, many_empty_files, 2)
    add(
        "npy claims",
        views,
        at("photos/dark/a.npy", lambda p: sparse(p, npy("(100000, 100000, 3)", "'|u1'"))),
        0,
    )
    add("sparse jpeg", views, at("photos/dark/a.jpg", lambda p: sparse(p, b"\xff\xd8\xff\xe0")), 0)
    add("sparse png", views, at("photos/dark/a.png", lambda p: sparse(p, picture()[:60])), 0)
    add("sparse tif", views, at("photos/dark/a.tif", lambda p: sparse(p, b"II*\0\x08\0\0\0")), 0)
    add("sparse bmp", views, at("photos/dark/a.bmp", lambda p: sparse(p, b"BM")), 0)
    add(
        "sparse webp",
        views,
        at("photos/dark/a.webp", lambda p: sparse(p, b"RIFF\xff\xff\xff\x7fWEBPVP8 ")),
        0,
    )
    add(
        "sparse gif",
        views,
        at("photos/dark/a.gif", lambda p: sparse(p, b"GIF89a\x08\0\x08\0\0\0\0")),
        0,
    )
    add("sparse zero", views, at("photos/dark/a.tga", sparse), 0)
    add(
        "sparse heic",
        views,
        at("photos/dark/a.heic", lambda p: sparse(p, b"\0\0\0\x18ftypheic")),
        0,
    )
    add("sparse dcm", views, at("photos/dark/a.dcm", lambda p: sparse(p, bytes(128) + b"DICM")), 0)
    # cache
    add("cache of links", views, linked_cache, 0, 2)
    for key, value in {
        "pixels": "../../victim/file",
        "shape": [10**6, 3, 10**6, 10**6],
        "whole": "/etc/passwd",
        "names": [1],
        "heights": ["x"],
        "bad": [],
        "shape ": 1,
    }.items():
        add(f"cache manifest: {key}", views, edited_cache(_set(key, value)), 0, 2)
    for kind, make in {**ANY_FILE, **JSON}.items():
        add(f"cache: {kind}", views, cache_files(make), 0, 2)
    return cases


CASES = _cases()
