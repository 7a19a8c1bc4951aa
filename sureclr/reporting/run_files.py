"""What a report draws: the files of a run folder, and its images where they can be read."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sureclr.config import PretrainConfig, from_dict, read_yaml
from sureclr.errors import UserError
from sureclr.evaluation.results import Results, read_results
from sureclr.files import LARGEST_JSON, read_file, read_parquet
from sureclr.reporting import captions
from sureclr.training.run_dir import RunDir

if TYPE_CHECKING:
    from sureclr.data.embeddings import Embeddings
    from sureclr.data.image_set import ImageSet


@dataclass(frozen=True, eq=False)
class RunFiles:
    """The content of a run folder.

    Attributes:
        path: the run folder.
        config: the configuration as resolved.
        environment: versions and machine; {} if the file is missing.
        lines: of metrics.jsonl.
        results: of results.json; `.skipped` says why a result could not be made just now.
        table: embeddings.parquet, or None.
        places: the columns of map.parquet by name, or None.
        images: row by row those of the table, or None.
        no_images: why there are no images, or "".
        no_results: why results.json could not be read, or "".
        not_evaluated: why missing evaluations could not be made, or "".
    """

    path: Path
    config: PretrainConfig
    environment: dict[str, Any]
    lines: list[dict[str, float]]
    results: Results
    table: "Embeddings | None" = None
    places: dict[str, Any] | None = None
    images: "ImageSet | None" = None
    no_images: str = ""
    no_results: str = ""
    not_evaluated: str = ""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """Return (epochs, values) of a number of metrics.jsonl, from the lines that have it."""
        pairs = [
            (line["epoch"], line[name]) for line in self.lines if name in line and "epoch" in line
        ]
        return [epoch for epoch, _ in pairs], [value for _, value in pairs]


def read_run_files(
    path: Path, results: Results | None = None, *, not_evaluated: str = "", root: Path | None = None
) -> RunFiles:
    """Read a run folder.

    Args:
        path: the run folder.
        results: those just made; None means what results.json holds.
        not_evaluated: why missing evaluations could not be made, or "".
        root: the folder of downloaded data sets.

    Raises:
        UserError: `path` is not a run folder, or its configuration or one of its tables is damaged.
    """
    from sureclr.data.embeddings import Embeddings

    directory = run_directory(path)
    config = from_dict(read_yaml(directory.config))
    table_path = path / "embeddings.parquet"
    table = Embeddings.read(table_path) if os.path.lexists(table_path) else None
    images, no_images = own_images(directory, config, root)
    if images is not None and table is not None and list(images.paths) != list(table.paths):
        images, no_images = None, "the images of the source are not those of embeddings.parquet."
    stored, no_results = (results, "") if results is not None else _read_results(path)
    stored = _of_these_weights(stored, directory)
    return RunFiles(
        path,
        config,
        _read_json(path / "environment.json"),
        directory.lines(),
        stored,
        table,
        _read_places(path / "map.parquet"),
        images,
        no_images,
        no_results,
        not_evaluated,
    )


def run_directory(path: Path) -> RunDir:
    """Return the run folder at this path.

    Raises:
        UserError: there is none.
    """
    directory = RunDir(path)
    if not directory.is_run():
        raise UserError(
            f"{path} is not a run folder (it has no config.yaml); pass the folder that `sureclr"
            " pretrain` wrote."
        )
    return directory


def own_images(
    directory: RunDir, config: PretrainConfig, root: Path | None
) -> "tuple[ImageSet | None, str]":
    """Return the images that a run was trained on and "", or None and why they cannot be read."""
    from sureclr.data.sources import is_source, load_images

    source = trained_on(directory, config)
    if not is_source(source):
        return None, f"the run was trained on images from a Python session ({source})."
    try:
        options = config.read_options
        return load_images(source, root=root, seed=config.seed, options=options), ""
    except UserError as error:
        return None, str(error)


def trained_on(directory: RunDir, config: PretrainConfig) -> str:
    """Return the source that the newest checkpoint names, else that of the configuration.

    Images from a Python session have a name of their own, which only the checkpoint knows.
    """
    for checkpoint in reversed(directory.saved()):
        if source := _read_json(checkpoint / "state.json").get("source"):
            return str(source)
    return config.source


def _of_these_weights(results: Results, directory: RunDir) -> Results:
    """Leave out results of other weights than those that the folder holds; say so as the reason."""
    newest = directory.checkpoint_digest()
    stale = {
        name
        for name, provenance in results.provenance.items()
        if newest is not None and provenance.checkpoint != newest
    }
    if not stale:
        return results
    fresh = {name: result for name, result in results.entries.items() if name not in stale}
    reasons = dict.fromkeys(sorted(stale), captions.STALE_RESULT)
    return Results(results.run, fresh, results.provenance, {**results.skipped, **reasons})


def _read_results(path: Path) -> tuple[Results, str]:
    """The stored results, or none and why: a page without them is better than no page."""
    try:
        return read_results(path), ""
    except UserError as error:
        return Results(path), str(error)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(read_file(path, LARGEST_JSON)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _read_places(path: Path) -> dict[str, Any] | None:
    """The columns of map.parquet, lists of numbers as arrays (n, k)."""
    import numpy as np
    import pyarrow as pa

    if not os.path.lexists(path):
        return None
    try:
        table = read_parquet(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read ({error}); delete it and evaluate the run again."
        ) from error
    columns = {name: _array(table[name]) for name in table.column_names if len(table)}
    return columns | {"count": np.asarray(len(table))}


def _array(column: Any) -> Any:
    import numpy as np

    values: Sequence[Any] = column.to_pylist()
    return np.asarray(values)
