"""What a report draws: the files of a run folder, read once, and its images where they can be had."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sureclr.config import PretrainConfig, from_dict, read_yaml
from sureclr.errors import UserError
from sureclr.training.run_dir import RunDir

if TYPE_CHECKING:
    from sureclr.data.embeddings import Embeddings
    from sureclr.data.image_set import ImageSet


@dataclass(frozen=True, eq=False)
class Numbers:
    """A run as its files tell it.

    Attributes:
        path: the run folder.
        config: as resolved.
        environment: versions and machine; {} where the file is missing.
        lines: of metrics.jsonl.
        results: of results.json.
        table: embeddings.parquet, or None.
        places: the columns of map.parquet by name, or None.
        images: row by row those of the table, or None.
        no_images: why there are none.
        reasons: evaluation -> why it could not be made just now.
    """

    path: Path
    config: PretrainConfig
    environment: dict[str, Any]
    lines: list[dict[str, float]]
    results: dict[str, Any]
    table: "Embeddings | None"
    places: dict[str, Any] | None
    images: "ImageSet | None"
    no_images: str
    reasons: dict[str, str]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """(epochs, values) of a number of metrics.jsonl, where it was written."""
        kept = [(line["epoch"], line[name]) for line in self.lines if name in line]
        return [e for e, _ in kept], [v for _, v in kept]


def read_numbers(
    path: Path,
    *,
    images: "ImageSet | None" = None,
    root: Path | None = None,
    reasons: dict[str, str] | None = None,
) -> Numbers:
    """Read a run folder. images: those of the run's own source where they are at hand; else they
    are read from it.

    Raises:
        UserError: no run folder, or a damaged file in it.
    """
    from sureclr.data.embeddings import Embeddings

    directory = RunDir(path)
    if not directory.is_run():
        raise UserError(
            f"{path} is not a run folder (it has no config.yaml); give the folder that `sureclr"
            " pretrain` wrote."
        )
    config = from_dict(read_yaml(directory.config))
    kept, why = path / "embeddings.parquet", ""
    table = Embeddings.read(kept) if kept.is_file() else None
    if images is None:
        images, why = own_images(directory, config, root)
    if images is not None and table is not None and list(images.paths) != list(table.paths):
        images, why = None, "the images of the source are no longer those of embeddings.parquet"
    return Numbers(
        path,
        config,
        _json(path / "environment.json"),
        directory.lines() if directory.metrics.is_file() else [],
        directory.results_so_far(),
        table,
        _places(path / "map.parquet"),
        images,
        why,
        reasons or {},
    )


def own_images(
    directory: RunDir, config: PretrainConfig, root: Path | None
) -> "tuple[ImageSet | None, str]":
    """The images that a run was trained on, from its source; or None and why they cannot be had."""
    from sureclr.data.sources import is_source, load_images

    source = trained_on(directory, config)
    if not is_source(source):
        return None, f"the run was trained on images given in Python ({source})"
    try:
        return load_images(source, root=root, size=config.size, seed=config.seed), ""
    except UserError as error:
        return None, str(error)


def trained_on(directory: RunDir, config: PretrainConfig) -> str:
    """The source as the newest checkpoint names it (images given in Python have a name of their
    own), else the configuration's.
    """
    for checkpoint in reversed(directory.saved()):
        if source := _json(checkpoint / "state.json").get("source"):
            return str(source)
    return config.source


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _places(path: Path) -> dict[str, Any] | None:
    """The columns of map.parquet, lists of numbers as arrays (n, k)."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    if not path.is_file():
        return None
    try:
        read = parquet.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{path} cannot be read ({error}); delete it and run `sureclr evaluate {path.parent}`."
        ) from error
    return {name: _array(read[name]) for name in read.column_names if len(read)} | {
        "count": np.asarray(len(read))
    }


def _array(column: Any) -> Any:
    import numpy as np

    values: Sequence[Any] = column.to_pylist()
    return np.asarray(values)
