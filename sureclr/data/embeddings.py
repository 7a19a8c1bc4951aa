"""The table of embeddings, one row an image, which every analysis reads.

No model is needed to read, write or use it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.errors import UserError
from sureclr.files import (
    digest_of_bytes,
    digest_of_tensors,
    open_file,
    parsed_json,
    read_parquet_batches,
    writing_atomically,
)
from sureclr.maths import sphere
from sureclr.maths.sphere import Posterior

if TYPE_CHECKING:
    from pyarrow import Array, FixedSizeListArray, RecordBatch, Schema

# Of a radius from 1, where float32 has rounded it to 1: up to there `sphere.information` is exact,
# and nearer to 1 information and evidence grow without bound
SMALLEST_GAP = 1e-6
ROWS_AT_ONCE = 1 << 14  # whose information is computed together: 12 MiB for each of its integrals
ROWS_IN_GROUP = 1 << 11  # of the file, which are written and read together
# Columns of numbers
NUMBERS = frozenset({"label", "features", "direction", "radius", "certainty", "presence"})
LARGEST_HALF = 65_504  # the largest float16


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What a model says about n images (whole, without augmentation). All tensors are on the CPU.

    Attributes:
        features: (n, f) float32, the output of the encoder.
        direction: (n, d) float32 unit vectors: what an image shows.
        radius: (n,) float32 in [0, 1]: how precisely it shows that; None for a loss without one.
            See `Posterior`.
        certainty: (n,) float32, larger is more certain, on no fixed scale; or None.
        labels: (n,) int64, an index into `classes`, or -1 where the class is not known.
        classes: names of the classes.
        split: (n,) of "train", "test" and "unlabelled".
        paths: n names of the images.
        kernel_dimension: m of the run's loss, which evidence needs; or None.
        origin: the weights and images that the table was made of; "" if not recorded.
        presence: (n,) float32 in [0, 1], the probability that an image shows anything of the kind
            of the training images; None for a loss without one.
    """

    features: Tensor
    direction: Tensor
    radius: Tensor | None
    certainty: Tensor | None
    labels: Tensor
    classes: tuple[str, ...]
    split: NDArray[np.str_]
    paths: Sequence[str]
    kernel_dimension: float | None = None
    origin: str = ""
    presence: Tensor | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.features)

    @property
    def digest(self) -> str:
        """The sha256 of all columns but the certainty, which follows from them: what the rows are.

        It identifies the table that a result was computed from. It reads every number, so keep it
        rather than ask again.
        """
        optional = [column for column in (self.radius, self.presence) if column is not None]
        tensors = digest_of_tensors(self.features, self.direction, *optional, self.labels)
        words = json.dumps([self.split.tolist(), list(self.paths)])
        return digest_of_bytes(tensors.encode(), words.encode())

    @property
    def information(self) -> Tensor | None:
        """(n,) float32 nats: how much an image's posterior says of its latent (theory 6), or None.

        It is the mean over the posterior of the log density, so it compares across dimensions.
        """
        if self.radius is None:
            return None
        radii = self.radius.double().clamp(max=1 - SMALLEST_GAP)
        pi = self.presence
        rows = torch.arange(len(radii)).split(ROWS_AT_ONCE)
        parts = [
            sphere.information(
                radii[at], self.direction.shape[1], presence=None if pi is None else pi[at].double()
            )
            for at in rows
        ]
        return torch.cat(parts).float()

    @property
    def posterior(self) -> Posterior:
        """What a loss says of the images as one value; a gap is at least `SMALLEST_GAP`."""
        gap = None if self.radius is None else (1 - self.radius).clamp(min=SMALLEST_GAP)
        return Posterior(self.direction, self.radius, gap, self.certainty, presence=self.presence)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> "Embeddings":
        """Return some rows of the table: a view if they are neighbours in order, else a copy.

        Args:
            rows: row numbers in the wanted order, or a boolean mask over all rows.
        """
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        first = int(index[0]) if len(index) else 0
        stop = first + len(index)
        if first >= 0 and stop <= len(self) and np.array_equal(index, np.arange(first, stop)):
            at: slice | Tensor = slice(first, stop)
            paths, split = self.paths[first:stop], self.split[first:stop]
        else:
            at = torch.from_numpy(index)
            paths, split = [self.paths[i] for i in index], self.split[index]
        return replace(
            self,
            features=self.features[at],
            direction=self.direction[at],
            labels=self.labels[at],
            split=split,
            radius=None if self.radius is None else self.radius[at],
            certainty=None if self.certainty is None else self.certainty[at],
            presence=None if self.presence is None else self.presence[at],
            paths=paths,
        )

    def labelled(self, split: str) -> "Embeddings":
        """Return the images of a split whose class is known.

        Args:
            split: "train", "test" or "unlabelled".
        """
        return self.select(self.labelled_rows(split))

    def labelled_rows(self, split: str) -> NDArray[np.int64]:
        """Return which rows those of `labelled` are, ascending."""
        return np.flatnonzero((self.split == split) & (self.labels.numpy() >= 0))

    def save(
        self, path: Path, *, half: bool = False, more: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write the table as Parquet, one row an image, some rows at a time.

        Features and direction are fixed-size lists; classes and kernel dimension are metadata. The
        file is replaced atomically. The values have Parquet's own checksums, and the number of
        rows, the names of the columns and the metadata have a sha256, so that `read` refuses a file
        with a changed byte.

        Args:
            path: the file to write.
            half: write the features as float16, in half the space. Each is rounded to the nearest
                float16, so its relative error is at most 2^-11 (absolute 2^-25 below 6e-5); `read`
                gives them back as float32. The other columns stay exact.
            more: name -> (n,) numbers of further columns, which `read` passes over.

        Raises:
            UserError: a feature is too large for float16.
            OSError: the file cannot be written.
        """
        import pyarrow as pa
        from pyarrow import parquet

        columns: dict[str, Tensor | None] = {"information": self.information, **(more or {})}
        about = {
            "classes": json.dumps(self.classes),
            "kernel_dimension": json.dumps(self.kernel_dimension),
            "origin": json.dumps(self.origin),
        }
        first = pa.record_batch(self._columns(slice(0, ROWS_IN_GROUP), columns, half))
        about["sha256"] = _digest_of_description(len(self), first.schema.names, about)
        with (
            writing_atomically(path) as file,
            parquet.ParquetWriter(
                file,
                first.schema.with_metadata(about),
                write_page_checksum=True,
                # Floats become no smaller, and a dictionary of them is built in vain
                use_dictionary=["split"],
                compression={f"{name}.list.element": "NONE" for name in ("features", "direction")},
            ) as writer,
        ):
            for start in range(0, max(1, len(self)), ROWS_IN_GROUP):
                rows = slice(start, start + ROWS_IN_GROUP)
                arrays = self._columns(rows, columns, half)
                writer.write_batch(pa.record_batch(arrays), ROWS_IN_GROUP)

    def _columns(
        self, rows: slice, more: Mapping[str, Tensor | None], half: bool
    ) -> "dict[str, Array]":
        """Some rows as the columns of the file; their numbers are not copied."""
        import pyarrow as pa

        features = self.features[rows]
        columns = {
            "path": pa.array(self.paths[rows], pa.string()),
            "split": pa.array(self.split[rows].tolist(), pa.string()),
            "label": pa.array(self.labels[rows].numpy()),
            "features": _lists(_as_half(features) if half else features),
            "direction": _lists(self.direction[rows]),
        }
        optional = {
            "radius": self.radius,
            "certainty": self.certainty,
            "presence": self.presence,
            **more,
        }
        for name, value in optional.items():
            if value is not None:
                columns[name] = pa.array(value[rows].numpy())
        return columns

    @staticmethod
    def read(path: Path) -> "Embeddings":
        """Read a table that `save` wrote, some rows at a time.

        Raises:
            UserError: the file is missing, damaged, or not such a table.
        """
        try:
            with open_file(path) as file:
                return _from_batches(*read_parquet_batches(file, ROWS_IN_GROUP))
        except _unreadable() as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the embedding table {path} cannot be read ({reason}); delete it and evaluate"
                " again."
            ) from error

    @staticmethod
    def origin_of(path: Path) -> str:
        """Return the origin of the table in a file without reading its rows; "" if that fails."""
        try:
            with open_file(path) as file:
                schema, rows, _ = read_parquet_batches(file, ROWS_IN_GROUP)
                return str(_description(schema, rows)["origin"])
        except _unreadable():
            return ""


def _unreadable() -> tuple[type[Exception], ...]:
    """The errors of a file that is no table of embeddings."""
    import pyarrow as pa

    of_content = (ValueError, LookupError, TypeError, AttributeError, MemoryError)
    return OSError, pa.ArrowException, *of_content


def _description(schema: "Schema", rows: int) -> dict[str, Any]:
    """Classes, kernel dimension and origin; ValueError or KeyError if they are not there."""
    metadata = schema.metadata or {}
    words = {name.decode(): value.decode() for name, value in metadata.items()}
    expected = words.pop("sha256", None)  # tables of older versions have none
    if expected not in (None, _digest_of_description(rows, schema.names, words)):
        raise ValueError("its description does not match its checksum")
    return {name: parsed_json(words[name]) for name in ("classes", "kernel_dimension", "origin")}


def _from_batches(schema: "Schema", rows: int, batches: "Iterator[RecordBatch]") -> Embeddings:
    """The embeddings in the rows of a file; ValueError or KeyError if it holds something else."""
    about = _description(schema, rows)
    numbers: dict[str, NDArray[Any]] = {}
    paths: list[str] = []
    split: list[NDArray[np.str_]] = []
    for batch in batches:
        start = len(paths)
        paths += _text(batch.column("path"))
        split.append(np.asarray(_text(batch.column("split")), dtype=np.str_))
        for name in NUMBERS.intersection(schema.names):
            values = _numbers(batch.column(name))
            if start == 0:
                kind = np.float32 if values.dtype == np.float16 else values.dtype
                numbers[name] = np.empty((rows, *values.shape[1:]), kind)
            part = numbers[name][start : len(paths)]
            if part.shape != values.shape:
                raise ValueError("its rows differ in length")
            part[:] = values
    if len(paths) != rows or not rows:
        raise ValueError(f"it has {len(paths):,} rows and should have {max(1, rows):,}")
    tensors = {name: torch.from_numpy(values) for name, values in numbers.items()}
    return Embeddings(
        tensors["features"],
        tensors["direction"],
        tensors.get("radius"),
        tensors.get("certainty"),
        tensors["label"],
        tuple(about["classes"]),
        np.concatenate(split),
        paths,
        about["kernel_dimension"],
        about["origin"],
        tensors.get("presence"),
    )


def _digest_of_description(rows: int, columns: Iterable[str], about: Mapping[str, str]) -> str:
    """The sha256 of what the checksums of the values leave out."""
    return digest_of_bytes(json.dumps([rows, list(columns), sorted(about.items())]).encode())


def _lists(rows: Tensor) -> "FixedSizeListArray":
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(rows.numpy().reshape(-1)), rows.shape[1])


def _as_half(features: Tensor) -> Tensor:
    low, high = torch.aminmax(features) if features.numel() else (torch.zeros(()),) * 2
    if max(-low, high) > LARGEST_HALF:
        raise UserError(
            f"features from {float(low):g} to {float(high):g} do not fit into float16, which ends"
            f" at {LARGEST_HALF:,}; save the table without half."
        )
    return features.half()


def _text(column: "Array") -> list[str]:
    """The words of a column, which may be in a dictionary."""
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count or not (
        types.is_string(column.type) or types.is_large_string(column.type)
    ):
        raise ValueError("its paths and splits are not text")
    return list(column.to_pylist())


def _numbers(column: "Array") -> NDArray[Any]:
    """A column of numbers (n,), or of lists of equal length (n, width)."""
    from pyarrow import types

    plain = types.is_primitive(column.type)
    values = column if plain else column.flatten()
    if column.null_count or values.null_count:
        raise ValueError("some of its numbers are missing")
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array if plain else array.reshape(len(column), -1)
