"""The table of embeddings, one row an image, which every analysis reads.

No model is needed to read, write or use it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.errors import UserError
from sureclr.files import (
    digest_of_bytes,
    digest_of_tensors,
    parsed_json,
    read_parquet,
    writing_atomically,
)
from sureclr.maths import sphere
from sureclr.maths.sphere import Posterior

if TYPE_CHECKING:
    from pyarrow import ChunkedArray, FixedSizeListArray, Table

# Of a radius from 1, where float32 has rounded it to 1: up to there `sphere.information` is exact,
# and nearer to 1 information and evidence grow without bound
SMALLEST_GAP = 1e-6
ROWS_AT_ONCE = 1 << 14  # whose information is computed together: 12 MiB for each of its integrals


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What a model says about n images (whole, without augmentation). All tensors are on the CPU.

    Attributes:
        features: (n, f) float32, the output of the encoder.
        direction: (n, d) float32 unit vectors: what an image shows.
        radius: (n,) float32 in [0, 1]: how certain that is; None for a loss without one. See
            `Posterior`.
        certainty: (n,) float32, larger is more certain, on no fixed scale; or None.
        labels: (n,) int64, an index into `classes`, or -1 where the class is not known.
        classes: names of the classes.
        split: (n,) of "train", "test" and "unlabelled".
        paths: n names of the images.
        kernel_dimension: m of the run's loss, which evidence needs; or None.
        origin: the weights and images that the table was made of; "" if not recorded.
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

    def __len__(self) -> int:
        """The number of images."""
        return len(self.features)

    @property
    def digest(self) -> str:
        """The sha256 of features, direction, radius, labels, split and paths: what the rows are.

        It identifies the table that a result was computed from. It reads every number, so keep it
        rather than ask again.
        """
        optional = [] if self.radius is None else [self.radius]
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
        parts = [
            sphere.information(radii.double().clamp(max=1 - SMALLEST_GAP), self.direction.shape[1])
            for radii in self.radius.split(ROWS_AT_ONCE)
        ]
        return torch.cat(parts).float()

    @property
    def posterior(self) -> Posterior:
        """Direction, radius and certainty as one value; a gap is at least `SMALLEST_GAP`."""
        gap = None if self.radius is None else (1 - self.radius).clamp(min=SMALLEST_GAP)
        return Posterior(self.direction, self.radius, gap, self.certainty)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> "Embeddings":
        """Return some rows of the table.

        Args:
            rows: row numbers in the wanted order, or a boolean mask over all rows.
        """
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        at = torch.from_numpy(index)
        return replace(
            self,
            features=self.features[at],
            direction=self.direction[at],
            labels=self.labels[at],
            split=self.split[index],
            radius=None if self.radius is None else self.radius[at],
            certainty=None if self.certainty is None else self.certainty[at],
            paths=[self.paths[i] for i in index],
        )

    def labelled(self, split: str) -> "Embeddings":
        """Return the images of a split whose class is known.

        Args:
            split: "train", "test" or "unlabelled".
        """
        return self.select((self.split == split) & (self.labels.numpy() >= 0))

    def save(self, path: Path) -> None:
        """Write the table as Parquet, one row an image.

        Features and direction are fixed-size lists; classes and kernel dimension are metadata. The
        file is replaced atomically. The values have Parquet's own checksums, and the number of
        rows, the names of the columns and the metadata have a sha256, so that `read` refuses a file
        with a changed byte.

        Raises:
            OSError: the file cannot be written.
        """
        import pyarrow as pa
        from pyarrow import parquet

        columns = {
            "path": pa.array(self.paths, pa.string()),
            "split": pa.array(self.split.tolist(), pa.string()),
            "label": pa.array(self.labels.numpy()),
            "features": _lists(self.features),
            "direction": _lists(self.direction),
        }
        optional = {
            "radius": self.radius,
            "certainty": self.certainty,
            "information": self.information,
        }
        columns |= {
            name: pa.array(value.numpy()) for name, value in optional.items() if value is not None
        }
        about = {
            "classes": json.dumps(self.classes),
            "kernel_dimension": json.dumps(self.kernel_dimension),
            "origin": json.dumps(self.origin),
        }
        about["sha256"] = _digest_of_description(len(self), columns, about)
        with writing_atomically(path) as file:
            table = pa.table(columns).replace_schema_metadata(about)
            parquet.write_table(table, file, write_page_checksum=True)

    @staticmethod
    def read(path: Path) -> "Embeddings":
        """Read a table that `save` wrote.

        Raises:
            UserError: the file is missing, damaged, or not such a table.
        """
        import pyarrow as pa

        try:
            return _from_table(read_parquet(path))
        except (
            OSError,
            pa.ArrowException,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the embedding table {path} cannot be read ({reason}); delete it and evaluate"
                " again."
            ) from error


def _from_table(table: "Table") -> Embeddings:
    """The embeddings in a table of pyarrow; ValueError or KeyError if it holds something else."""
    metadata = table.schema.metadata or {}
    words = {name.decode(): value.decode() for name, value in metadata.items()}
    expected = words.pop("sha256", None)  # tables of older versions have none
    if expected not in (None, _digest_of_description(len(table), table.column_names, words)):
        raise ValueError("its description does not match its checksum")
    about = {name: parsed_json(words[name]) for name in ("classes", "kernel_dimension", "origin")}
    text = {name: table[name].to_pylist() for name in ("split", "path")}
    if not all(isinstance(word, str) for column in text.values() for word in column):
        raise ValueError("its paths and splits are not text")
    number = {
        name: torch.from_numpy(table[name].to_numpy().copy())
        for name in ("label", "radius", "certainty")
        if name in table.column_names
    }
    return Embeddings(
        _matrix(table["features"]),
        _matrix(table["direction"]),
        number.get("radius"),
        number.get("certainty"),
        number["label"],
        tuple(about["classes"]),
        np.asarray(text["split"], dtype=np.str_),
        text["path"],
        about["kernel_dimension"],
        about["origin"],
    )


def _digest_of_description(rows: int, columns: Iterable[str], about: Mapping[str, str]) -> str:
    """The sha256 of what the checksums of the values leave out."""
    return digest_of_bytes(json.dumps([rows, list(columns), sorted(about.items())]).encode())


def _lists(rows: Tensor) -> "FixedSizeListArray":
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(rows.numpy().reshape(-1)), rows.shape[1])


def _matrix(column: "ChunkedArray") -> Tensor:
    """A column of fixed-size lists as a tensor (n, width)."""
    chunks = [
        chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), -1)
        for chunk in column.chunks
    ]
    return torch.from_numpy(np.concatenate(chunks).copy())
