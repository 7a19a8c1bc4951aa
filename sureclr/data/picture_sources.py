"""Picture files that do not lie in a folder: lists of files, tar shards, Parquet, saved data sets.

Each function lists the pictures of one kind of source; `picture_list.read_pictures` reads them all.
"""

import glob
import mmap
import os
import re
import struct
import tarfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, cast, overload

from sureclr.data.cache_manifest import file_stamp
from sureclr.data.decoding import FileRef, readable_endings
from sureclr.data.folder import NO_ENDING, absolute
from sureclr.data.folder_cache import ChosenFiles, Listing
from sureclr.data.image_report import inert
from sureclr.data.picture_list import PictureList
from sureclr.data.splits import arranged, split_of_name
from sureclr.errors import UserError, listed
from sureclr.files import (
    LARGEST_JSON,
    LARGEST_TEXT,
    MOST_ROWS,
    open_file,
    open_parquet,
    parsed_json,
    read_file,
    read_json,
    read_parquet,
    table_bytes,
    too_large,
)

MOST_TEXTS = 0.5  # distinct texts an image, above which texts are captions and no labels
TAR_LABELS = (".cls", ".json", ".txt")  # the first of them that a picture has names its class
JSON_KEYS = ("label", "class", "cls", "category", "target")
IMAGE_COLUMNS = ("image", "img", "picture", "photo", "image_bytes", "jpg", "png", "bytes")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label", "cls", "y")
NAME_COLUMNS = ("path", "file_name", "filename", "name", "id", "__key__")
# Rows of a table whose pictures are in memory together, and their bytes, as far as can be known
ROWS_AT_ONCE, BYTES_AT_ONCE = 256, 1 << 26
DICTIONARY_BATCH = 2  # a type of message in Arrow's Message.fbs
LARGEST_HEADER = 1 << 20  # of a tar file, and the longest label in one


def list_of_files(place: str) -> PictureList:
    """Return the pictures that a text file names, one path a line.

    Paths are absolute, or relative to the folder of the text file. Empty lines are skipped. Where
    the file holds null bytes, they end the paths and not the line breaks (`find -print0`). Folders
    in the paths name classes and splits, as in a folder of images.

    Raises:
        UserError: the file cannot be read, or names nothing.
    """
    file = absolute(Path(place))
    data = _bytes_of(file).removeprefix(b"\xef\xbb\xbf")
    ends = b"\0" if b"\0" in data else b"\n"
    lines = [line.removesuffix(b"\r") if ends == b"\n" else line for line in data.split(ends)]
    names = [os.fsdecode(line) for line in lines if line.strip()]
    if len(names) > MOST_ROWS:
        raise UserError(
            f"{inert(file)} names {len(names):,} files, and at most {MOST_ROWS:,} are read; divide"
            " the list."
        )
    if not names:
        raise UserError(f"{inert(file)} names no image file; write one path a line into it.")
    return list_paths(f"list:{file}", names, file.parent)


def _bytes_of(file: Path) -> bytes:
    try:
        return read_file(file, LARGEST_TEXT)
    except OSError as error:
        raise UserError(
            f"the list of files {inert(file)} cannot be read ({error.strerror}); use a text file"
            " with one path a line."
        ) from error


def list_paths(source: str, paths: Sequence[str], folder: Path) -> PictureList:
    """Return pictures by their paths; a path that comes twice counts once.

    Args:
        source: the name of the source.
        paths: absolute, or relative to `folder`.
        folder: where relative paths start.
    """
    names = list(dict.fromkeys(paths))
    places = [
        os.path.join(folder, os.path.expanduser(name) if name.startswith("~/") else name)
        for name in names
    ]
    absolutes = [os.path.abspath(place) for place in places]
    above = os.path.commonpath({os.path.dirname(place) for place in absolutes})
    order = arranged([os.path.relpath(place, above) for place in absolutes])
    chosen = [places[row] for row in order.rows]
    return PictureList(
        source,
        Listing(
            source,
            [names[row] for row in order.rows],
            [FileRef(place) for place in chosen],
            [file_stamp(place) for place in chosen],
        ),
        order.groups,
        order.splits,
        order.words,
        left_out_pictures=order.left_out,
        warnings=order.warnings,
    )


# --- tar shards -----------------------------------------------------------------------


def list_shards(place: str) -> PictureList:
    """Return the pictures in tar files, as WebDataset writes them; nothing is unpacked.

    Files of one sample have the same name up to the first dot: 000/17.jpg and 000/17.cls. The
    label is the content of .cls, "label" (or "class", ...) in .json, or the text of .txt, unless
    most texts differ (captions). A shard or a folder in it that is named like a split decides the
    split: train-000.tar, or test/17.jpg.

    Args:
        place: a tar file, a folder of them, or a pattern: shards/{000..009}.tar, shards/*.tar.

    Raises:
        UserError: there is no such file, it is compressed or damaged, or has no pictures.
    """
    shards = _matching(place, ".tar")
    names: list[str] = []
    files: list[FileRef] = []
    stamps: list[tuple[int | str, ...]] = []
    splits: list[str | None] = []
    labels: list[tuple[str, str]] = []
    left_out = Counter[str]()
    heads = _short_names(shards)
    for shard, head in zip(shards, heads, strict=True):
        pictures, label_of, others = _in_shard(shard)
        left_out.update(others)
        stamp = file_stamp(shard)
        for name, start, size in pictures:
            names.append(f"{head}/{name}")
            files.append(FileRef(str(shard), start, size))
            stamps.append((*stamp, start, size))
            labels.append(label_of.get(_key(name), ("", "")))
            folder = name.split("/")[0] if "/" in name else ""
            splits.append(split_of_name(folder) or split_of_name(_word(shard.stem)))
    source = f"tar:{absolute(Path(place))}"
    if not names:
        raise UserError(f"{inert(source)} has no files that end as images do; use other shards.")
    texts = {label for kind, label in labels if kind == ".txt"}
    captions = len(texts) > max(1, MOST_TEXTS * sum(kind == ".txt" for kind, _ in labels))
    groups = ["" if captions and kind == ".txt" else label for kind, label in labels]
    warning = (
        f"There are {len(texts):,} different texts, so they are taken for captions and not for"
        " labels."
    )
    return replace(
        _with_splits(
            PictureList(source, Listing(source, names, files, stamps), groups, splits),
            "the names of the shards and their folders",
        ),
        classes=_in_order(groups),
        left_out=left_out,
        warnings=(warning,) if captions else (),
    )


class _Headers:
    """A tar file of which headers and labels are read, and nothing longer than `LARGEST_HEADER`.

    tarfile takes as much memory for a header as it claims to need.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.seek, self.tell, self._read = stream.seek, stream.tell, stream.read

    def read(self, count: int) -> bytes:
        if not 0 <= count <= LARGEST_HEADER:
            raise tarfile.ReadError(f"a header claims to have {count:,} bytes")
        return self._read(count)


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members; tarfile itself would keep all of them in memory."""
    while (member := archive.next()) is not None:
        kept: list[tarfile.TarInfo] = cast(Any, archive).members
        kept.clear()
        yield member


def _in_shard(
    shard: Path,
) -> tuple[list[tuple[str, int, int]], dict[str, tuple[str, str]], Counter[str]]:
    """What is in a shard.

    Returns:
        Name, first byte and length of each picture; key -> (ending of the label's file, label);
        other endings.
    """
    pictures: list[tuple[str, int, int]] = []
    label_of: dict[str, tuple[str, str]] = {}
    others, endings = Counter[str](), readable_endings()
    try:
        with (
            open_file(shard) as file,
            tarfile.open(mode="r:", fileobj=cast(Any, _Headers(file))) as archive,
        ):
            for member in _members(archive):
                ending = os.path.splitext(member.name)[1].lower()
                if not member.isfile() or os.path.basename(member.name).startswith("."):
                    continue
                if member.issparse():  # its bytes do not lie one after the other
                    others[f"{ending} with holes"] += 1
                elif ending in endings:
                    pictures.append((member.name, member.offset_data, member.size))
                elif ending in TAR_LABELS and (stream := archive.extractfile(member)):
                    label, before = (
                        _label(ending, stream.read(1 << 20)),
                        label_of.get(_key(member.name)),
                    )
                    first = before is None or _rank(ending) < _rank(before[0])
                    if label and first:
                        label_of[_key(member.name)] = (ending, label)
                else:
                    others[ending or NO_ENDING] += 1
    except (
        OSError,
        tarfile.TarError,
        EOFError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:
        packed = shard.suffix != ".tar" or _is_packed(shard)
        remedy = "unpack it to a plain .tar" if packed else "replace it by a complete one"
        raise UserError(
            f"{inert(shard)} cannot be read as a tar file ({inert(error):.200}); {remedy}."
        ) from error
    return pictures, label_of, others


def _is_packed(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(4)[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")
    except OSError:
        return False


def _key(name: str) -> str:
    """The name of a sample: the path up to the first dot of the file's name."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.')[0]}"


def _rank(ending: str) -> int:
    return TAR_LABELS.index(ending)


def _label(ending: str, data: bytes) -> str:
    """The label in a file of a sample; "" where there is none."""
    text = data.decode("utf-8", "surrogateescape").strip()
    if ending != ".json":
        return text
    try:
        value = parsed_json(text)
    except ValueError:
        return ""
    if isinstance(value, dict):
        value = next((value[key] for key in JSON_KEYS if key in value), None)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _word(stem: str) -> str:
    """The first word of a shard's name: "train" of train-000017."""
    return re.split(r"[-_.\d]", stem)[0]


# --- tables ---------------------------------------------------------------------------


class _RowsOfTables(Sequence[FileRef]):
    """Pictures in the rows of tables, of which only some are in memory at a time.

    Args:
        counts: the number of rows of each table.
        read: (number of the table, first row, end) -> the value of the image column in each row;
            in fewer of them where those take much memory.
        places: the path of each table.
    """

    def __init__(
        self,
        counts: Sequence[int],
        read: Callable[[int, int, int], Sequence[Any]],
        places: Sequence[str],
    ) -> None:
        self._ends = list(accumulate(counts))
        self._counts, self._read, self._places = counts, read, places
        self._first, self._rows = 0, list[Any]()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, row: int) -> FileRef: ...

    @overload
    def __getitem__(self, row: slice) -> list[FileRef]: ...

    def __getitem__(self, row: int | slice) -> FileRef | list[FileRef]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} lies outside {len(self)} pictures")
        table = bisect_right(self._ends, row)
        if not self._first <= row < self._first + len(self._rows):
            start = row - (self._ends[table] - self._counts[table])
            end = min(start + ROWS_AT_ONCE, self._counts[table])
            self._first, self._rows = row, list(self._read(table, start, end))
        value = self._rows[row - self._first]
        place = self._places[table]
        if isinstance(value, dict):
            if value.get("bytes") is not None:
                return FileRef(value.get("path") or place, data=bytes(value["bytes"]))
            path = value.get("path")
            return FileRef(os.path.join(os.path.dirname(place), path) if path else place, data=None)
        return FileRef(place, data=b"" if value is None else bytes(value))

    def __iter__(self) -> Iterator[FileRef]:
        return (self[row] for row in range(len(self)))


def list_parquet(place: str) -> PictureList:
    """Return the pictures in an image column of Parquet or Arrow files.

    The column holds the bytes of picture files, or structs {"bytes", "path"} as Hugging Face
    writes them. A column named label, class, category, ... holds the labels, as numbers or words;
    names of classes that Hugging Face stored in the file are used. A file named like a split
    (train-00000-of-00002.parquet) decides the split.

    Args:
        place: a file, a folder of files, or a pattern.

    Raises:
        UserError: there is no such file, it is damaged, or it has no image column.
    """
    files = _matching(place, ".parquet", ".arrow")
    tables = [_Table(file) for file in files]
    image = _image_column(tables[0])
    for table in tables[1:]:
        if image not in table.schema.names:
            raise UserError(
                f"{inert(table.file)} has no column {image!r}, which {inert(tables[0].file)} has;"
                " read them one by one."
            )
    label = _named_column(tables[0].schema.names, LABEL_COLUMNS)
    name = _named_column(tables[0].schema.names, NAME_COLUMNS)
    known = _class_names(tables[0].schema, label)
    names: list[str] = []
    groups: list[str] = []
    splits: list[str | None] = []
    stamps: list[tuple[int | str, ...]] = []
    heads = _short_names(files)
    for table, head in zip(tables, heads, strict=True):
        stamp = file_stamp(table.file)
        given = table.column(name) if name else [None] * len(table)
        names += [
            f"{head}/{row:06d}" if value is None else f"{head}/{value}"
            for row, value in enumerate(given)
        ]
        values = table.column(label) if label else [None] * len(table)
        groups += [_class_name(value, known) for value in values]
        split = split_of_name(_word(table.file.stem)) or split_of_name(table.file.parent.name)
        splits += [split] * len(table)
        stamps += [(*stamp, row) for row in range(len(table))]
    if not names:
        raise UserError(f"parquet:{inert(place)} has no rows; use a file with images.")
    if len(set(names)) < len(names):
        names = [
            f"{head}/{row:06d}"
            for t, head in zip(tables, heads, strict=True)
            for row in range(len(t))
        ]
    source = f"parquet:{absolute(Path(place))}"
    rows = _RowsOfTables(
        [len(table) for table in tables],
        lambda number, start, end: tables[number].values(image, start, end),
        [str(table.file) for table in tables],
    )
    return replace(
        _with_splits(
            PictureList(source, Listing(source, names, rows, stamps), groups, splits),
            "the names of the files",
        ),
        classes=tuple(known) if known else _in_order(groups),
    )


class _Table:
    """A Parquet file, or an Arrow file in the file or the stream format."""

    def __init__(self, file: Path) -> None:
        import pyarrow as pa
        from pyarrow import ipc

        self.file = file
        try:
            if file.suffix == ".parquet":
                size = file.stat().st_size
                self._parquet: Any = open_parquet(_opened(file), size)
                self.schema = self._parquet.schema_arrow
                about = self._parquet.metadata
                self._length = about.num_rows
                if self._length > size:
                    raise self._unreadable(
                        ValueError(f"it claims {self._length:,} rows and has {size:,} bytes")
                    )
                counts = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
                self._ends = list(accumulate(counts))
                self._batches: Iterator[Any] = iter(())
                self._next, self._group = 0, -1
                return
            check_arrow(file)
            try:
                self._arrow: Any = ipc.open_file(_opened(file)).read_all()
            except pa.ArrowInvalid:
                self._arrow = ipc.open_stream(_opened(file)).read_all()
            self._arrow.validate(full=True)  # wrong offsets would end the process later
            self._parquet, self.schema = None, self._arrow.schema
            self._length = self._arrow.num_rows
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UserError:
        words = " ".join(str(getattr(error, "strerror", None) or error).split())
        return UserError(
            f"{inert(self.file)} cannot be read ({inert(words)}); use a complete Parquet or Arrow"
            " file."
        )

    def __len__(self) -> int:
        return int(self._length)

    def column(self, name: str) -> list[Any]:
        """Return all values of a column of small values."""
        import pyarrow as pa

        try:
            table = (
                self._arrow
                if self._parquet is None
                else read_parquet(self.file, lambda column: column.name == name)
            )
            table.validate(full=True)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error
        return list(table.column(name).to_pylist())

    def values(self, name: str, start: int, end: int) -> list[Any]:
        """Return the values of a column in some rows, or in the first of them if those are large.

        The rows of a group are read in their order, so that few of them are in memory.
        """
        import pyarrow as pa

        if self._parquet is None:
            return list(self._arrow.column(name).slice(start, end - start).to_pylist())
        try:
            if start < self._next or bisect_right(self._ends, start) != self._group:
                self._begin(name, bisect_right(self._ends, start))
            while True:
                batch = next(self._batches)
                first, self._next = self._next, self._next + len(batch)
                if start < self._next:
                    batch.validate(full=True)
                    return list(batch.column(0).slice(start - first, end - start).to_pylist())
        except (OSError, pa.ArrowException, StopIteration) as error:
            raise self._unreadable(error) from error

    def _begin(self, name: str, group: int) -> None:
        """Start to read a column of a group of rows."""
        about = self._parquet.metadata.row_group(group)
        # None of its values is larger than all of them, but many rows may have the same value
        rows = max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE // max(1, about.total_byte_size)))
        self._batches = self._parquet.iter_batches(
            rows, row_groups=[group], columns=[name], use_threads=False
        )
        self._next, self._group = self._ends[group] - about.num_rows, group


def check_arrow(file: Path) -> None:
    """Look at how large an Arrow file says that its compressed parts are.

    Raises:
        OSError: it is no regular file, or they are much larger than a file of this size needs.
        pyarrow.ArrowException: it is damaged.
    """
    from pyarrow import BufferReader, ipc, py_buffer

    with open_file(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        if not size:
            return
        mapped = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ)
    # The format of files is a stream after eight bytes
    parts = BufferReader(py_buffer(mapped)[8 if mapped[:6] == b"ARROW1" else 0 :])
    left = table_bytes(size)
    for message in ipc.MessageReader.open_stream(parts):
        if message.type in ("record batch", "dictionary"):
            left -= _unpacked_bytes(bytes(message.metadata), message.body)
        if left < 0:
            raise too_large(size)


def _unpacked_bytes(header: bytes, body: Any) -> int:
    """The bytes that compressed buffers of an Arrow message say that they have.

    The header is a flatbuffer (Arrow's Message.fbs); pyarrow has checked that its offsets are right
    and tells nothing of it. Each compressed buffer begins with its length, in 64 bits.
    """

    def number(kind: str, place: int) -> int:
        return int(struct.unpack_from(f"<{kind}", header, place)[0])

    def field(table: int, index: int) -> int:
        """Where a field of a table lies; 0 where the table lacks it."""
        places = table - number("i", table)
        known = 4 + 2 * index < number("H", places)
        offset = number("H", places + 4 + 2 * index) if known else 0
        return table + offset if offset else 0

    def behind(place: int) -> int:
        return place + number("I", place)

    message = behind(0)
    batch = behind(field(message, 2))
    if header[field(message, 1)] == DICTIONARY_BATCH:
        batch = behind(field(batch, 1))
    if not field(batch, 3):
        return 0  # nothing is compressed
    buffers, total = behind(field(batch, 2)), 0
    for i in range(number("I", buffers)):
        start, length = struct.unpack_from("<qq", header, buffers + 4 + 16 * i)
        if length >= 8:
            total += max(0, int.from_bytes(bytes(body[start : start + 8]), "little", signed=True))
    return total


def _opened(file: Path) -> Any:
    """A mapped file; an open one where its name is not UTF-8, which pyarrow cannot write."""
    import pyarrow as pa

    try:
        return pa.memory_map(str(file))
    except UnicodeEncodeError:
        return file.open("rb")


def _image_column(table: "_Table") -> str:
    """The name of the column that holds pictures; UserError if there is none."""
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    candidates = [field.name for field in table.schema if holds_bytes(field.type)]
    if not candidates:
        raise UserError(
            f"{inert(table.file)} has no column of images (bytes, or structs of bytes and path);"
            f" its columns are {listed([*map(inert, table.schema.names)])}."
        )
    return _named_column(candidates, IMAGE_COLUMNS) or candidates[0]


def _named_column(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[word] for word in wanted if word in lower), None)


def _class_names(schema: Any, label: str | None) -> list[str]:
    """The names of classes that Hugging Face stored in the file; [] where there are none."""
    try:
        features = parsed_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (KeyError, ValueError, TypeError):
        return []


def _class_name(value: Any, known: Sequence[str]) -> str:
    if value is None or value == "" or (isinstance(value, int) and value < 0):
        return ""
    if known and isinstance(value, int) and value < len(known):
        return known[value]
    return str(value)


# --- Hugging Face ---------------------------------------------------------------------


def list_saved_dataset(place: str) -> PictureList:
    """Return the pictures of a Hugging Face data set that `save_to_disk` wrote.

    Raises:
        UserError: the extra is not installed, the folder is no such data set, or it has no image
            column.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("hf:PATH needs the package datasets; install sureclr[datasets].") from error
    folder = absolute(Path(place))
    if not folder.is_dir():
        raise UserError(f"{inert(folder)} is not a folder; use the folder that save_to_disk wrote.")
    _check_saved(folder)
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # of another package, which raises anything
        raise UserError(
            f"{inert(folder)} is no data set that save_to_disk wrote"
            f" ({inert(' '.join(str(error).split()))}); use such a folder, or"
            " parquet:PATH for single files."
        ) from error
    parts = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    first = next(iter(parts.values()))
    images = [n for n, kind in first.features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise UserError(
            f"{inert(folder)} has no column of images; its columns are"
            f" {listed([*map(inert, first.column_names)])}."
        )
    image = _named_column(images, IMAGE_COLUMNS) or images[0]
    label = _named_column(first.column_names, LABEL_COLUMNS)
    known = list(getattr(first.features.get(label), "names", None) or [])
    raw = [data.cast_column(image, datasets.Image(decode=False)) for data in parts.values()]
    names: list[str] = []
    groups: list[str] = []
    splits: list[str | None] = []
    stamps: list[tuple[int | str, ...]] = []
    for split, data in parts.items():
        names += [f"{split or 'images'}/{row:06d}" for row in range(len(data))]
        groups += [_class_name(v, known) for v in data[label]] if label else [""] * len(data)
        splits += [split_of_name(split)] * len(data)
        files = sorted(Path(entry["filename"]) for entry in data.cache_files)
        stamp = tuple(number for file in files for number in file_stamp(file))
        stamps += [(str(data._fingerprint), *stamp, row) for row in range(len(data))]
    source = f"hf:{folder}"
    rows = _RowsOfTables(
        [len(data) for data in raw],
        lambda number, start, end: raw[number][start:end][image],
        [str(folder / split) for split in parts],
    )
    return replace(
        _with_splits(
            PictureList(source, Listing(source, names, rows, stamps), groups, splits),
            "those of the data set",
        ),
        classes=tuple(known) if known else _in_order(groups),
    )


def _check_saved(folder: Path) -> None:
    """Look at the small files of a saved data set before the package `datasets` reads them.

    Raises:
        UserError: one of them is no file, is too large or damaged, or names a file elsewhere.
    """
    import pyarrow as pa

    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        for file in sorted(place.glob("*.json")):
            try:
                content = read_json(file, LARGEST_JSON)
                parts = content.get("_data_files") or [] if isinstance(content, dict) else []
                for name in [part["filename"] for part in parts]:
                    if os.path.basename(name) != name:
                        raise ValueError(f"it names the file {name!r:.80}, which lies elsewhere")
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise _damaged_part(file, error) from error
        for file in sorted(place.glob("*.arrow")):
            try:
                check_arrow(file)
            except (OSError, pa.ArrowException) as error:
                raise _damaged_part(file, error) from error


def _damaged_part(file: Path, error: Exception) -> UserError:
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    return UserError(
        f"{inert(file)} cannot be read ({inert(reason):.200}); save the data set again with"
        " save_to_disk."
    )


# --- shared ---------------------------------------------------------------------------


def _with_splits(pictures: PictureList, words: str) -> PictureList:
    """The list with splits by name, in which "validation" is the test split where there is none.

    Beside a test split, validation images are left out. Without any training images, or with
    nothing else, there are no splits: the content of the images decides.

    Args:
        pictures: whose splits are names as `split_of_name` returns them.
        words: where the splits come from.
    """
    found = set(pictures.splits)
    if "train" not in found or len(found) == 1:
        return replace(pictures, splits=[None] * len(pictures.splits))
    validation = None if "test" in found else "test"
    splits = [
        {None: "train", "validation": validation}.get(split, split) for split in pictures.splits
    ]
    rows = [row for row, split in enumerate(splits) if split is not None]
    left_out = len(splits) - len(rows)
    old = pictures.listing
    return replace(
        pictures,
        listing=Listing(
            old.where,
            [old.names[row] for row in rows],
            ChosenFiles(old.files, [(row, 0) for row in rows]) if left_out else old.files,
            [old.stamps[row] for row in rows],
        ),
        groups=[pictures.groups[row] for row in rows],
        splits=[splits[row] for row in rows],
        splits_from=words,
        left_out_pictures={"of the validation split": left_out} if left_out else {},
    )


def _in_order(groups: Sequence[str]) -> tuple[str, ...] | None:
    """Names of classes in the order of numbers, where all of them are numbers; else None."""
    names = set(groups) - {""}
    if len(names) < 2 or not all(re.fullmatch(r"\d{1,9}", name) for name in names):
        return None
    return tuple(sorted(names, key=int))


def _short_names(files: Sequence[Path]) -> list[str]:
    """The names of files, or their whole paths where two have the same name."""
    names = [file.name for file in files]
    return names if len(set(names)) == len(names) else [str(file) for file in files]


def _matching(place: str, *endings: str) -> list[Path]:
    """The files that a path, a folder or a pattern names, sorted; UserError if there are none."""
    path = absolute(Path(place))
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in endings)
    else:
        patterns = _expanded(str(path))
        found = sorted({Path(file) for p in patterns for file in glob.glob(p, recursive=True)})
    files = [file for file in found if file.is_file()]
    if not files:
        raise UserError(
            f"{inert(place)} names no file that ends in {' or '.join(endings)}; use a file, a"
            " folder of such files, or a pattern such as shards/*.tar."
        )
    return files


def _expanded(pattern: str) -> list[str]:
    """A pattern with each {000..009} and {a,b} written out, as a shell does.

    >>> _expanded("s-{08..10}.tar")
    ['s-08.tar', 's-09.tar', 's-10.tar']
    """
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if not match:
        return [pattern]
    if match[3] is not None:
        words = match[3].split(",")
    else:
        width = len(match[1])
        words = [f"{number:0{width}d}" for number in range(int(match[1]), int(match[2]) + 1)]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [text for word in words for text in _expanded(f"{head}{word}{tail}")]
