"""map.parquet, the map of the images: written, and read only whole and with what it was made of."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sureclr.data.image_set import ImageSet, digest_of_labels
from sureclr.errors import UserError
from sureclr.files import digest_of_bytes, read_parquet, writing_atomically

if TYPE_CHECKING:
    from pyarrow import Table

Columns = dict[str, NDArray[Any]]  # a row for each image of the map


@dataclass(frozen=True)
class MapOrigin:
    """What a map was made of.

    Attributes:
        table: `Embeddings.origin`, the weights and images.
        labels: digest of labels and class names.
    """

    table: str
    labels: str

    @staticmethod
    def of(table: str, images: ImageSet) -> "MapOrigin":
        """Return the origin of a map of these images, whose table has this origin."""
        return MapOrigin(table, digest_of_labels(images))


def save_map(path: Path, columns: Columns, origin: MapOrigin) -> None:
    """Write map.parquet; matrices become lists, and the metadata say what the map was made of.

    The metadata hold a sha256 of all that `read_map` returns.
    """
    import pyarrow as pa
    from pyarrow import parquet

    arrays = {
        name: (
            pa.array(list(column))
            if column.ndim == 2
            else pa.array(column, pa.bool_() if name == "correct" else None)
        )
        for name, column in columns.items()
    }
    table = pa.table(arrays)
    about = {"origin": origin.table, "labels": origin.labels}
    about["sha256"] = _digest(_columns(table), origin)
    with writing_atomically(path) as file:
        parquet.write_table(table.replace_schema_metadata(about), file, write_page_checksum=True)


def read_map(path: Path) -> tuple[Columns, MapOrigin]:
    """Read map.parquet: its columns, and what it was made of.

    Raises:
        UserError: the file is missing or damaged, or an older version wrote it, without a checksum.
    """
    import pyarrow as pa

    try:
        table = read_parquet(path)
        about = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        columns = _columns(table)
        origin = MapOrigin(about["origin"], about["labels"])
        if about["sha256"] != _digest(columns, origin):
            raise ValueError("it does not match its sha256")
    except (OSError, pa.ArrowException, ValueError, LookupError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read ({reason}); delete it and evaluate the run again."
        ) from error
    return columns, origin


def _columns(table: "Table") -> Columns:
    """The columns of a table of pyarrow; lists of numbers become matrices (n, k)."""
    return {name: np.asarray(table[name].to_pylist()) for name in table.column_names}


def _digest(columns: Columns, origin: MapOrigin) -> str:
    """The sha256 of the columns and of what the map was made of."""
    parts = [json.dumps([origin.table, origin.labels]).encode()]
    for name, values in columns.items():
        parts.append(f"{name} {values.dtype} {values.shape}".encode())
        # Columns with None are arrays of objects, whose bytes are addresses
        parts.append(repr(values.tolist()).encode() if values.dtype == object else values.tobytes())
    return digest_of_bytes(*parts)
