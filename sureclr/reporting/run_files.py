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
        step: of the checkpoint that is shown, if it is not the last one; else None.
        other_table: whether embeddings.parquet was left out because other weights made it.
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
    step: int | None = None
    other_table: bool = False

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
    path: Path,
    results: Results | None = None,
    *,
    not_evaluated: str = "",
    root: Path | None = None,
    checkpoint: str = "last",
    out: Path | None = None,
) -> RunFiles:
    """Read a run folder.

    Args:
        path: the run folder.
        results: those just made; None means what results.json holds.
        not_evaluated: why missing evaluations could not be made, or "".
        root: the folder of downloaded data sets.
        checkpoint: "last", "best" or a number of steps.
        out: a folder of results of this checkpoint that are not in the run folder.

    Raises:
        UserError: `path` is not a run folder, or its configuration or one of its tables is damaged.
    """
    from sureclr.data.embeddings import Embeddings

    directory = run_directory(path)
    config = from_dict(read_yaml(directory.config))
    folder = directory.results_folder(checkpoint)

    def place(name: str) -> Path:
        found = out is not None and os.path.lexists(out / name)
        return out / name if out is not None and found else folder / name

    table_path = place("embeddings.parquet")
    table = Embeddings.read(table_path) if os.path.lexists(table_path) else None
    digest = directory.checkpoint_digest(checkpoint)
    origin = "" if table is None else table.origin
    made = origin.partition("checkpoint ")[2].partition(" ")[0]
    other = bool(digest and made and made != digest)
    if other:
        table = None
    images, no_images = own_images(directory, config, root)
    if images is not None and table is not None and list(images.paths) != list(table.paths):
        images, no_images = None, "the images of the source are not those of embeddings.parquet."
    if images is not None and results is None and not _made_of(origin, directory, checkpoint, root):
        images, no_images = None, captions.OTHER_PIXELS
    stored, no_results = (results, "") if results is not None else _read_results(folder, out)
    stored = _of_these_weights(stored, digest)
    return RunFiles(
        path,
        config,
        _read_json(path / "environment.json"),
        directory.lines(),
        stored,
        table,
        None if other else _read_places(place("map.parquet")),
        images,
        no_images,
        no_results,
        not_evaluated,
        None if folder == path else int(folder.name[5:]),
        other,
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


def _made_of(origin: str, directory: RunDir, checkpoint: str, root: Path | None) -> bool:
    """Return whether the run's own images, as it takes them, are those of a table.

    An evaluation looks at that before it uses the table; without one, nobody has.
    """
    from sureclr.data.image_set import digest_of_pixels
    from sureclr.data.sources import load_images

    numbers = directory.checkpoint_numbers(checkpoint)
    digest = origin.partition(" images ")[2]
    if numbers is None or not digest:
        return True
    config = from_dict(numbers["configuration"])
    images = load_images(
        numbers["source"],
        root=root,
        size=numbers["size"],
        channels=numbers["channels"],
        seed=config.seed,
        options=config.read_options,
    )
    return digest_of_pixels(images) == digest


def trained_on(directory: RunDir, config: PretrainConfig) -> str:
    """Return the source that the newest checkpoint names, else that of the configuration.

    Images from a Python session have a name of their own, which only the checkpoint knows.
    """
    for checkpoint in reversed(directory.saved()):
        if source := _read_json(checkpoint / "state.json").get("source"):
            return str(source)
    return config.source


def _of_these_weights(results: Results, checkpoint: str | None) -> Results:
    """Leave out results of other weights than those of a checkpoint; say so as the reason."""
    stale = {
        name
        for name, provenance in results.provenance.items()
        if checkpoint is not None and provenance.checkpoint != checkpoint
    }
    if not stale:
        return results
    fresh = {name: result for name, result in results.entries.items() if name not in stale}
    reasons = dict.fromkeys(sorted(stale), captions.STALE_RESULT)
    return Results(results.run, fresh, results.provenance, {**results.skipped, **reasons})


def _read_results(folder: Path, out: Path | None) -> tuple[Results, str]:
    """The stored results, or none and why: a page without them is better than no page."""
    try:
        inside = read_results(folder)
        new = inside if out is None else read_results(out)
    except UserError as error:
        return Results(folder), str(error)
    entries, provenance = inside.entries | new.entries, inside.provenance | new.provenance
    return Results(folder, entries, provenance), ""


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
