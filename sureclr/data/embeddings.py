"""The table of embeddings, one row an image: what every analysis reads. No model is needed to use it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths.sphere import Posterior


@dataclass(frozen=True, eq=False)
class Embeddings:
    """n images as a model sees them (whole, not augmented), on the CPU.

    Attributes:
        features: (n, f) float32, h of the encoder.
        direction: (n, d) float32 unit vectors.
        radius: (n,) float32 or None (a loss without one), see ``Posterior``.
        certainty: (n,) float32 or None.
        labels: (n,) int64, -1 where unlabelled.
        classes: names of the classes.
        split: (n,) of "train", "test", "unlabelled".
        paths: n names.
        kernel_dimension: m of the run's loss, for evidence; None where it has none.
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

    def __len__(self) -> int:
        return len(self.features)

    @property
    def posterior(self) -> Posterior:
        return Posterior(self.direction, self.radius, certainty=self.certainty)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> "Embeddings":
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
        """The images of a split whose class is known."""
        return self.select((self.split == split) & (self.labels.numpy() >= 0))

    def save(self, path: Path) -> None:
        """Parquet: a row an image; features and direction as fixed-size lists; classes and kernel
        dimension in the metadata.
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
        optional = {"radius": self.radius, "certainty": self.certainty}
        columns |= {
            name: pa.array(value.numpy()) for name, value in optional.items() if value is not None
        }
        about = {
            "classes": json.dumps(self.classes),
            "kernel_dimension": json.dumps(self.kernel_dimension),
        }
        draft = path.with_name(f".{path.name}")
        parquet.write_table(pa.table(columns).replace_schema_metadata(about), draft)
        draft.replace(path)

    @staticmethod
    def read(path: Path) -> "Embeddings":
        """The table that `save` wrote."""
        import pyarrow as pa
        from pyarrow import parquet

        try:
            return _from_table(parquet.read_table(path))
        except (OSError, pa.ArrowInvalid, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the embedding table {path} cannot be read ({reason}); delete it and evaluate"
                " again."
            ) from error


def _from_table(table: Any) -> Embeddings:
    """What `Embeddings.save` wrote. ValueError or KeyError where it was not that."""
    metadata = table.schema.metadata or {}
    about = {name: json.loads(metadata[name.encode()]) for name in ("classes", "kernel_dimension")}
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
        np.asarray(table["split"].to_pylist(), dtype=np.str_),
        table["path"].to_pylist(),
        about["kernel_dimension"],
    )


def _lists(rows: Tensor) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(rows.numpy().reshape(-1)), rows.shape[1])


def _matrix(column: Any) -> Tensor:
    """A column of fixed-size lists as (n, width)."""
    chunks = [
        chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), -1)
        for chunk in column.chunks
    ]
    return torch.from_numpy(np.concatenate(chunks).copy())
