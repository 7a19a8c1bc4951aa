"""Features of several views of each image that were made elsewhere, as a table on the disk.

A table `table:X.parquet` or `table:X.npz` takes the place of images: its rows are n images, and of
each it has the features of K views by any network (DINOv3, CLIP, a microscope's own). Only the
projection and certainty heads are trained on them. Nothing of a file is executed, and what it
claims to hold is compared with its size before memory is taken.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.config import MOST_VIEWS, TABLE
from sureclr.data.counter_rng import two_of
from sureclr.data.folder_cache import array_on_disk
from sureclr.data.image_report import counted, inert
from sureclr.data.image_set import ImageSet, Indices, as_rows
from sureclr.data.picture_list import short_report
from sureclr.data.splits import SPLIT_WORDS, held_out_by_content, split_of_name, split_words
from sureclr.data.user_labels import encode_labels
from sureclr.errors import UserError
from sureclr.files import open_file, parsed_json, read_parquet_batches, table_bytes, too_large, why
from sureclr.files import writing_atomically as writing
from sureclr.progress import SILENT, Progress

if TYPE_CHECKING:
    from pyarrow import Array, Field, Schema

VIEW = re.compile(r"view_(\d+)")  # a column with the features of one view
CLEAN = "features"  # the column of the features of the whole image
OURS = (CLEAN, "direction")  # lists of numbers in our own tables that are no views
ROWS_AT_ONCE = 1 << 11
IN_MEMORY = 1 << 28  # bytes; larger tables lie in a file that the system can drop from memory
PAIRS = 0x7AB1E  # stream of the random numbers that choose among the views of an image
MOST_FEATURES = 65_536
ARRAYS = "an array `features` (k, n, f): k views of n images, f numbers each"
COLUMNS = "columns view_0, view_1, ... with a list of numbers for each image"


@dataclass(frozen=True, eq=False)
class FeatureSet(ImageSet):
    """n images of which only features are known, in place of pixels.

    `images` are (n, f, 1, 1) float32, the features of the whole images, so that f takes the place
    of the channels and an encoder that flattens them returns them; `contents` are digests of all
    that the table says of an image.

    Attributes:
        views: (m, k, f) float16 or float32, the features of k views of each of m >= n images, in
            memory or in a file; (m, 0, f) where the table has no views.
        view_rows: (n,) int64, the row in `views` of each image.
    """

    views: Tensor = field(default_factory=lambda: torch.empty(0, 0, 1))
    view_rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def check_pixels(self) -> None:
        """Raise a UserError unless the features are (n, f, 1, 1) float32."""
        kind, shape = self.images.dtype, tuple(self.images.shape)
        if kind != torch.float32 or len(shape) != 4 or shape[2:] != (1, 1):
            raise UserError(
                f"{self.name}: features must be float32 (n, f, 1, 1), not {kind} {shape}."
            )

    @property
    def has_pixels(self) -> bool:
        """Whether there are pixels: never."""
        return False

    @property
    def view_count(self) -> int:
        """The number k of views of each image; 0 where the table has none."""
        return self.views.shape[1]

    def select(self, indices: Indices) -> "FeatureSet":
        """Return some of the images, as `ImageSet.select`; the views are not copied."""
        chosen = super().select(indices)
        assert isinstance(chosen, FeatureSet)
        if not self.view_count:
            return chosen
        rows = torch.from_numpy(as_rows(indices, len(self)))
        return replace(chosen, view_rows=self.view_rows[rows])

    def stored_pairs(self, rows: NDArray[np.int64], seeds: Tensor) -> ImageSet:
        """Return two different stored views of each of some images, see `ImageSet`."""
        twice = np.tile(rows, 2)
        views = torch.cat(two_of(seeds, PAIRS, self.view_count))
        found = self.view_features(torch.from_numpy(twice), views)
        return self.select(twice).with_pixels(found[:, :, None, None])

    def for_views(self, rows: Indices) -> Tensor:
        """Raise a UserError: no views can be cropped from features."""
        raise UserError(
            f"{self.name} is a table of features, which has no pixels to draw views of."
        )

    def view_features(self, rows: Tensor, views: Tensor) -> Tensor:
        """Return the features of one view of each of some images, (m, f) float32.

        Args:
            rows: (m,) int64 rows of this set.
            views: (m,) int64 numbers of the views.
        """
        return self.views[self.view_rows[rows], views].float()


class Refused(Exception):
    """Why a table cannot be used: the rule and the value, without a full stop."""


@dataclass
class _Columns:
    """What a file holds, before it is checked as a whole.

    Attributes:
        views: (n, k, f) float16 or float32.
        clean: (n, f) the whole image's own features; None: there are none.
        labels: n class numbers or names, or None.
        classes: the names that class numbers are indices into; None: not known.
        split: n names, or None.
        paths: n names, or None.
        of: where the features come from, in words.
    """

    views: NDArray[Any]
    clean: NDArray[Any] | None
    labels: Any
    classes: Sequence[str] | None
    split: Sequence[Any] | None
    paths: Sequence[Any] | None
    of: str


def read_feature_table(
    place: str, *, seed: int = 0, to_train: bool = True, progress: Progress = SILENT
) -> FeatureSet:
    """Read features that were made elsewhere.

    Args:
        place: the path of the file.

            A Parquet file has a column of lists of numbers for each view: those called view_0,
            view_1, ..., or else every such column but `features` and `direction`. The column
            `features`, if there is one, has the features of the whole image; else they are the
            mean over the views. `path`, `label` and `split` are read where they are there.

            An .npz file has an array `features` (k, n, f), and may have `clean` (n, f), `labels`,
            `classes`, `paths` and `split`; or `features` (n, f) alone to be embedded.
        seed: of the test split, which a hash of the features makes where there is no `split`.
        to_train: whether views are needed; else the features of whole images are enough.
        progress: gets the sentences of the report.

    Raises:
        UserError: the file cannot be read, or is no such table.
    """
    path = Path(place).expanduser()
    reader = {".parquet": _read_parquet, ".pq": _read_parquet, ".npz": _read_npz}.get(
        path.suffix.lower()
    )
    if reader is None:
        raise UserError(
            f"the table {path} must be a .parquet or an .npz file, which its ending says."
        )
    with _one_sentence(path):
        with open_file(path) as file:
            columns = reader(file)
        found = _as_set(columns, f"{TABLE}:{place}", seed, to_train)
    for sentence in () if found.report is None else found.report.sentences():
        progress.message(sentence)
    return found


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Turn whatever is wrong with a file into one sentence."""
    import pyarrow as pa

    try:
        yield
    except Refused as error:
        raise UserError(f"the table {path} cannot be used: {inert(error)}.") from error
    except UserError as error:
        raise UserError(f"the table {path} cannot be used: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"there is no table {path}; check its name.") from error
    except (OSError, EOFError, ValueError, LookupError, TypeError, MemoryError, RuntimeError,
            NotImplementedError, pa.ArrowException, zipfile.BadZipFile) as error:  # fmt: skip
        reason = why(error) if isinstance(error, OSError) else str(error)
        reason = inert(" ".join(reason.split()))[:200] or type(error).__name__
        raise UserError(
            f"the table {path} cannot be read ({reason}); give a whole .parquet or .npz file."
        ) from error


def features_given(
    features: Any,
    *,
    clean: Any = None,
    labels: Sequence[Any] | None = None,
    paths: Sequence[str] | None = None,
    split: Sequence[str] | None = None,
    name: str = "features",
    seed: int = 0,
    to_train: bool = True,
) -> FeatureSet:
    """Return features that a program holds as a `FeatureSet`.

    Args:
        features: (k, n, f) floats of k views of n images, an array or a tensor; not to train, also
            (n, f).
        clean: (n, f) features of the whole images; None: the mean over the views.
        labels: one an image, see `encode_labels`.
        paths: n names.
        split: n of "train", "test" and "unlabelled".
        name: of the set.
        seed: of the test split where none is given.
        to_train: whether views are needed.

    Raises:
        UserError: the features cannot be used.
    """
    try:
        given = _as_array(features, "features")
        if given.ndim == 2 and not to_train:
            given, clean = given[None][:0], given if clean is None else clean
        if given.ndim != 3:
            raise Refused(
                f"features must be (k, n, f), k views of n images with f numbers each, not"
                f" {given.shape}"
            )
        views = _stored(given.shape[1], given.shape[0], given.shape[2], given.dtype)
        for k, part in enumerate(given):
            _fill(views[:, k], 0, part, f"view {k}")
        whole = None if clean is None else _as_array(clean, "clean")
        columns = _Columns(views, whole, labels, None, split, paths, "given in Python")
        return _as_set(columns, name, seed, to_train)
    except Refused as error:
        raise UserError(f"these features cannot be used: {error}.") from error


def features_of(
    images: Any, count: int, *, seed: int = 0, progress: Progress = SILENT
) -> FeatureSet:
    """Return what a run on a table of features can embed.

    Args:
        images: table:PATH, features (m, f) or (k, m, f), or a `FeatureSet`.
        count: f, the number of features that the run was trained on.
        seed: of the test split where none is given.
        progress: gets the sentences about a file.

    Raises:
        UserError: they are no features, or not as many.
    """
    if isinstance(images, str) and images.startswith(f"{TABLE}:"):
        place = images.removeprefix(f"{TABLE}:")
        found = read_feature_table(place, seed=seed, to_train=False, progress=progress)
    elif isinstance(images, np.ndarray | Tensor):
        found = features_given(images, seed=seed, to_train=False)
    elif isinstance(images, FeatureSet):
        found = images
    else:
        raise UserError(
            "this run was trained on a table of features and takes no pictures, so"
            f" {inert(images) if isinstance(images, str) else type(images).__name__} cannot be"
            " embedded; give table:PATH with features of the same network, or in Python an array"
            " (m, f)."
        )
    if found.images.shape[1] != count:
        raise UserError(
            f"{found.name} has {found.images.shape[1]:,} features of an image, and this run was"
            f" trained on {count:,}; give features of the same network."
        )
    return found


def save_features(images: FeatureSet, path: Path) -> None:
    """Write a `FeatureSet` as an .npz file that `read_feature_table` reads as the same set.

    Raises:
        WriteError: the file cannot be written.
    """
    at = images.view_rows
    arrays: dict[str, Any] = {
        "clean": images.images.flatten(1).numpy(),
        "labels": images.labels.numpy(),
        "classes": np.array(images.classes, np.str_),
        "paths": np.array(list(images.paths), np.str_),
        "split": np.array(images.split, np.str_),
    }
    with writing(path) as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as member:
            shape = (images.view_count, len(images), images.images.shape[1])
            kind = images.views[:0].numpy().dtype
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False}
            np.lib.format.write_array_header_2_0(member, {**header, "shape": shape})
            for k in range(images.view_count):
                for some in at.split(ROWS_AT_ONCE):
                    member.write(images.views[some, k].numpy().tobytes())
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


# --- What both kinds of file become --------------------------------------------------


def _as_set(columns: _Columns, name: str, seed: int, to_train: bool) -> FeatureSet:
    """Check the columns as a whole."""
    views = columns.views
    n, k, f = views.shape
    if n == 0 or f == 0:
        raise Refused(f"it has {n} rows with {f} features each; features of some images are needed")
    if to_train and k < 2:
        raise Refused(
            f"it has features of {counted(k, 'view') if k else 'the whole images only'}, and the"
            " certainty is learned from how the views of an image differ; add the features of at"
            f" least 2 augmented views of each image ({COLUMNS}, or {ARRAYS})"
        )
    if k > MOST_VIEWS or f > MOST_FEATURES:
        raise Refused(
            f"it has {k:,} views of {f:,} features, and at most {MOST_VIEWS:,} views and"
            f" {MOST_FEATURES:,} features are read"
        )
    clean = _mean_over_views(views) if columns.clean is None else columns.clean
    if clean.shape != (n, f):
        raise Refused(
            f"the features of the whole images are {clean.shape}, and those of the views"
            f" {(n, f)}; both must come from one network"
        )
    whole = torch.empty(n, f)
    _fill(whole.numpy(), 0, clean, "the features of the whole images")
    paths = _paths(columns.paths, n)
    targets, classes = encode_labels(_plain(columns.labels), columns.classes or None, n)
    split, words, warning = _splits(columns.split, n)
    if split is None:
        digests = [hashlib.sha256(row.tobytes()).hexdigest() for row in whole.numpy()]
        split = np.where(held_out_by_content(digests, seed), "test", "train")
        words = split_words([None], "", seed).replace("image's content", "row's features")
    kept = split != ""  # of validation images beside test images
    found = FeatureSet(
        name=name,
        images=whole[:, :, None, None],
        labels=targets,
        classes=classes,
        split=np.where(kept, split, "train"),
        paths=paths,
        contents=_contents(views, whole.numpy()),
        views=torch.from_numpy(views),
        view_rows=torch.arange(n),
    )
    if not kept.all():
        found = found.select(kept)
    source = "the mean over the views" if columns.clean is None else "those of its own column"
    about = (
        f"Each image has {f:,} features of {counted(k, 'view')} ({views.dtype}; {columns.of}); the"
        f" features of the whole image are {source}."
    )
    report = replace(
        short_report(found),
        size=None,
        channels=None,
        splits_from=words,
        warnings=tuple(filter(None, [about, warning])),
    )
    return replace(found, report=report, note=report.note())


def _splits(names: Sequence[Any] | None, n: int) -> tuple[NDArray[np.str_] | None, str, str]:
    """Return the split of each row ("": left out), where they come from, and a warning or ""."""
    if names is None:
        return None, "", ""
    if len(names) != n:
        raise Refused(f"it has {n} rows and {len(names)} splits; each row needs one")
    known = {name: split_of_name(str(name)) for name in set(names)}
    strange = sorted((str(name) for name, split in known.items() if split is None), key=str)
    if strange:
        raise Refused(
            f"a split is one of {', '.join(SPLIT_WORDS)}, not {strange[0]!r}; rename it, or leave"
            " the column `split` out"
        )
    validation = "" if "test" in known.values() else "test"
    used = {name: validation if split == "validation" else split for name, split in known.items()}
    split = np.array([used[name] for name in names], dtype=np.str_)
    left_out = int((split == "").sum())
    warning = (
        f"{counted(left_out, 'validation row')} of the table are left out, because it has test rows"
        " as well."
        if left_out
        else ""
    )
    return split, "the column `split`", warning


def _paths(given: Sequence[Any] | None, n: int) -> list[str]:
    if given is None:
        return [f"row/{i:07d}" for i in range(n)]
    paths = [str(path) for path in given]
    if len(paths) != n:
        raise Refused(f"it has {n} rows and {len(paths)} paths; each row needs one")
    first: dict[str, int] = {}
    for row, path in enumerate(paths):
        if first.setdefault(path, row) != row:
            raise Refused(
                f"the path {path!r} stands in row {first[path]} and in row {row}; each image may"
                " have one row only"
            )
    return paths


def _plain(labels: Any) -> list[Any] | None:
    """Labels as `encode_labels` takes them: an empty name means that there is none."""
    if labels is None:
        return None
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    whole = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    return [None if v is None or v == "" or v != v else v for v in whole]


def _contents(views: NDArray[Any], clean: NDArray[Any]) -> list[str]:
    """Return a digest of all numbers of each row."""
    kind = str(views.shape[1:]).encode() + views.dtype.str.encode()
    return [
        hashlib.sha256(kind + of_views.tobytes() + whole.tobytes()).hexdigest()
        for of_views, whole in zip(views, clean, strict=True)
    ]


def _mean_over_views(views: NDArray[Any]) -> NDArray[np.float32]:
    mean = np.empty((len(views), views.shape[2]), np.float32)
    for start in range(0, len(views), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        mean[rows] = views[rows].mean(axis=1, dtype=np.float64)
    return mean


def _stored(n: int, k: int, f: int, kind: "np.dtype[Any]") -> NDArray[Any]:
    """Return room for features (n, k, f), as float16 if they are float16, else as float32.

    Many lie in a file without a name in the folder of the caches, which ends with the process.
    """
    half = np.dtype(np.float16 if kind == np.float16 else np.float32)
    if n * k * f * half.itemsize <= IN_MEMORY:
        return np.empty((n, k, f), half)
    return array_on_disk((n, k, f), half, "the features of the table")


def _fill(target: NDArray[Any], start: int, values: NDArray[Any], what: str) -> None:
    """Copy rows of features, which must be finite, also after rounding.

    Args:
        target: (n, f).
        start: the first row that is filled.
        values: (m, f).
        what: they are, in words.
    """
    part = target[start : start + len(values)]
    with np.errstate(over="ignore", invalid="ignore"):
        part[:] = values
    finite = np.isfinite(part).all(axis=1)
    if not finite.all():
        row = start + int(np.argmin(finite))
        raise Refused(
            f"row {row} of {what} has a number that is NaN, infinite, or too large for"
            f" {target.dtype}; leave the image out, or make its features anew"
        )


def _as_array(values: Any, what: str) -> NDArray[Any]:
    """Return floats as an array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    array = np.asarray(values)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise Refused(f"{what} must be floats of 16, 32 or 64 bits, not {array.dtype}")
    return array


# --- Parquet -------------------------------------------------------------------------


def _read_parquet(file: IO[bytes]) -> _Columns:
    """Read a Parquet file, some rows at a time."""
    schema, n, batches = read_parquet_batches(file, ROWS_AT_ONCE, _is_wanted)
    names, own = _view_columns(schema)
    wanted = [*names, *([CLEAN] if own else [])]
    if not wanted:
        raise Refused(f"it has no column of features; {COLUMNS} are needed")
    words: dict[str, list[Any]] = {name: [] for name in ("path", "label", "split")
                                   if name in schema.names}  # fmt: skip
    targets: dict[str, NDArray[Any]] = {}
    views = np.empty((0, 0, 0), np.float32)
    done = 0
    for batch in batches:
        for name in wanted:
            rows = _rows_of_lists(batch.column(name), name, done)
            if not targets:
                views = _stored(n, len(names), rows.shape[1], _kind_of(schema, names or wanted))
                targets = {each: views[:, i] for i, each in enumerate(names)}
                if own:
                    targets[CLEAN] = np.empty((n, rows.shape[1]), np.float32)
            if rows.shape[1] != views.shape[2]:
                raise Refused(
                    f"the column {name} has {rows.shape[1]} features and the column {wanted[0]} has"
                    f" {views.shape[2]}; all views need features of one network"
                )
            _fill(targets[name], done, rows, f"the column {name}")
        for name, values in words.items():
            values += _words_of(batch.column(name), name, done)
        done += len(batch)
    if done != n or not n:
        raise Refused(f"it has {done} rows; features of some images are needed")
    classes = _classes_in(schema) if "label" in words else None
    return _Columns(
        views,
        targets.get(CLEAN),
        words.get("label"),
        classes,
        words.get("split"),
        words.get("path"),
        f"columns {inert(', '.join(wanted[:3]))}{', ...' if len(wanted) > 3 else ''}",
    )


def _is_wanted(column: "Field") -> bool:
    return column.name in ("path", "label", "split") or _is_list(column)


def _is_list(column: "Field") -> bool:
    """Whether a column has a list of floats for each row."""
    from pyarrow import types

    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(test(column.type) for test in tests) and types.is_floating(column.type.value_type)


def _view_columns(schema: "Schema") -> tuple[list[str], bool]:
    """Return the names of the columns of views in order, and whether there is one of the image."""
    lists = [column.name for column in schema if _is_list(column)]
    if len(set(schema.names)) < len(schema.names):
        raise Refused("two of its columns have the same name; rename one")
    return _in_order(lists) or [name for name in lists if name not in OURS], CLEAN in lists


def _in_order(names: Iterable[str]) -> list[str]:
    """Return the names `view_0`, `view_1`, ... among these, by their numbers."""
    matches = [(int(found[1]), name) for name in names if (found := VIEW.fullmatch(name))]
    numbered = dict(matches)
    for number, name in matches:
        if numbered[number] != name:
            raise Refused(
                f"its columns {name} and {numbered[number]} have the same number; rename one"
            )
    return [numbered[i] for i in sorted(numbered)]


def _kind_of(schema: "Schema", names: Sequence[str]) -> "np.dtype[Any]":
    """Return float16 if all columns have it, else float32."""
    from pyarrow import types

    half = all(types.is_float16(schema.field(name).type.value_type) for name in names)
    return np.dtype(np.float16 if half else np.float32)


def _rows_of_lists(column: "Array", name: str, start: int) -> NDArray[Any]:
    """Return a column of lists as an array (m, f)."""
    from pyarrow import compute

    values = column.flatten()
    if column.null_count or values.null_count:
        raise Refused(f"the column {name} lacks some numbers from row {start} on; fill them in")
    lengths = compute.list_value_length(column)
    if len(counts := lengths.unique()) > 1:
        raise Refused(
            f"the lists in the column {name} have {counts[0]} and {counts[1]} numbers; each image"
            " needs as many features as the others"
        )
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array.reshape(len(column), -1)


def _words_of(column: "Array", name: str, start: int) -> list[Any]:
    """Return a column of names or class numbers as Python values; None where there is none."""
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    text = types.is_string(kind) or types.is_large_string(kind)
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind)
    if not text and not (number and name == "label"):
        raise Refused(f"the column {name} has values of the type {kind}, and names are needed")
    if column.null_count and name != "label":
        raise Refused(f"the column {name} lacks some names from row {start} on; fill them in")
    return list(column.to_pylist())


def _classes_in(schema: "Schema") -> list[str] | None:
    """Return the class names in the metadata of a table that SureCLR wrote, or None."""
    found = (schema.metadata or {}).get(b"classes")
    names = None if found is None else parsed_json(found)
    plain = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if plain and names else None


# --- .npz ----------------------------------------------------------------------------


def _read_npz(file: IO[bytes]) -> _Columns:
    """Read an .npz file, some rows at a time."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if not zipfile.is_zipfile(file):
        raise Refused("it is no .npz file, or it is truncated; numpy.savez writes such files")
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if sum(info.file_size for info in members.values()) > table_bytes(size):
            raise too_large(size)
        numbered = _in_order(members)
        if CLEAN not in members and not numbered:
            raise Refused(
                f"it has no array `features` (it has {', '.join(sorted(members)[:5]) or 'none'});"
                f" {ARRAYS} is needed"
            )

        def words(*names: str) -> NDArray[Any] | None:
            name = next((one for one in names if one in members), None)
            if name is None:
                return None
            array = _array_of(archive, members[name], name)
            if array.ndim != 1 or array.dtype.kind not in "Uiu":
                raise Refused(
                    f"its array {name} is {array.dtype} {array.shape}, and a name or a class number"
                    " for each image is needed"
                )
            return array

        whole = CLEAN if numbered else "clean"
        clean = _array_of(archive, members[whole], whole) if whole in members else None
        if clean is not None and (clean.ndim != 2 or clean.dtype.kind != "f"):
            raise Refused(f"its array {whole} is {clean.dtype} {clean.shape}, not (n, f) floats")
        if numbered:  # the names of a Parquet table's columns
            views = _views_in(
                [(name, _array_of(archive, members[name], name)) for name in numbered]
            )
            alone = None
        else:
            views, alone = _views_of(archive, members[CLEAN])
        paths, split = words("paths", "path"), words("split")
        return _Columns(
            views,
            clean if alone is None else alone,
            words("labels", "label"),
            None if (names := words("classes")) is None else names.tolist(),
            None if split is None else split.tolist(),
            None if paths is None else paths.tolist(),
            f"arrays {', '.join(numbered)}" if numbered else "array features",
        )


def _views_in(arrays: list[tuple[str, NDArray[Any]]]) -> NDArray[Any]:
    """Return the features (n, k, f) of views of which each has an array (n, f)."""
    first = arrays[0][1]
    for name, array in arrays:
        if array.ndim != 2 or array.dtype.kind != "f" or array.shape != first.shape:
            raise Refused(
                f"its array {name} is {array.dtype} {array.shape}, and {arrays[0][0]} is"
                f" {first.dtype} {first.shape}; each view needs (n, f) floats"
            )
    views = _stored(len(first), len(arrays), first.shape[1], first.dtype)
    for i, (name, array) in enumerate(arrays):
        _fill(views[:, i], 0, array, name)
    return views


def _header(stream: IO[bytes], info: zipfile.ZipInfo, name: str) -> tuple[Any, bool, Any]:
    """Return shape, whether the order is Fortran's, and type of an array, checked by its size."""
    version = np.lib.format.read_magic(stream)
    readers: Mapping[int, Callable[[IO[bytes]], Any]] = {
        1: np.lib.format.read_array_header_1_0,
        2: np.lib.format.read_array_header_2_0,
    }
    if version[0] not in readers:
        raise Refused(
            f"its array {name} is in version {version[0]} of the format, which is unknown"
        )
    shape, fortran, kind = readers[version[0]](stream)
    if kind.hasobject:
        raise Refused(
            f"its array {name} holds Python objects, which are not read from strangers' files; make"
            f" it one of numbers or text, such as numpy.array({name}, dtype=str)"
        )
    needed = int(np.prod(shape, dtype=np.float64)) * kind.itemsize
    if needed != info.file_size - stream.tell():
        raise Refused(
            f"its array {name} claims {kind} {shape}, which takes {needed:,} bytes, and it has"
            f" {info.file_size - stream.tell():,}; write the file anew"
        )
    return shape, fortran, kind


def _array_of(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> NDArray[Any]:
    """Return a small array as a whole."""
    with archive.open(info) as stream:
        shape, fortran, kind = _header(stream, info, name)
        values = np.frombuffer(stream.read(), kind)
    return values.reshape(shape, order="F" if fortran else "C")


def _views_of(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the features of views (n, k, f), and those of whole images (n, f) in place of them."""
    with archive.open(info) as stream:
        shape, fortran, kind = _header(stream, info, CLEAN)
    if kind.kind != "f" or kind.itemsize > 8 or len(shape) not in (2, 3):
        raise Refused(f"its array features is {kind} {shape}; {ARRAYS} is needed")
    if len(shape) == 2:
        n, f = shape
        return np.empty((n, 0, f), np.float32), _array_of(archive, info, CLEAN)
    k, n, f = shape
    views = _stored(n, k, f, kind)
    if fortran:
        for i, part in enumerate(_array_of(archive, info, CLEAN)):
            _fill(views[:, i], 0, part, f"view {i}")
        return views, None
    with archive.open(info) as stream:
        _header(stream, info, CLEAN)
        for i in range(k):
            for start in range(0, n, ROWS_AT_ONCE):
                count = min(ROWS_AT_ONCE, n - start)
                data = stream.read(count * f * kind.itemsize)
                rows = np.frombuffer(data, kind).reshape(count, f)
                _fill(views[:, i], start, rows, f"view {i}")
        stream.read(1)  # the end, where zipfile compares the checksum
    return views, None
