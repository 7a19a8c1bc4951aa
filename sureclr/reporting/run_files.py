"""What a report draws: the files of a run folder, and its images where they can be read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sureclr.config import PretrainConfig, differing, from_dict, read_yaml
from sureclr.errors import UserError
from sureclr.evaluation.results import Results, precision_text, read_results
from sureclr.files import read_json, refuse_if_lost, unsealed
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
        problems: a sentence for each file that is left out, or that is not as the run wrote it.
        step: of the checkpoint that is shown, if it is not the last one; else None.
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
    problems: tuple[str, ...] = ()
    step: int | None = None

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
    problems: list[str] = []
    numbers = directory.checkpoint_numbers(checkpoint) or {}
    config = _configuration(directory, numbers, problems)
    folder = directory.results_folder(checkpoint)

    def place(name: str) -> Path:
        found = out is not None and os.path.lexists(out / name)
        return out / name if out is not None and found else folder / name

    table_path = place("embeddings.parquet")
    table = Embeddings.read(table_path) if os.path.lexists(table_path) else None
    digest = directory.checkpoint_digest(checkpoint)
    if table is not None and not _is_of(table.origin, digest):
        problems.append(captions.STALE_TABLE.format(run=path))
        table = None
    origin = "" if table is None else table.origin
    places = _places(path, place("map.parquet"), table, digest, problems)
    images, no_images = own_images(directory, config, numbers, root)
    if images is not None and table is not None and list(images.paths) != list(table.paths):
        images, no_images = None, "the images of the source are not those of embeddings.parquet."
    if images is not None and results is None and not _made_of(origin, images):
        images, no_images = None, captions.OTHER_PIXELS
    stored, no_results = (results, "") if results is not None else _read_results(folder, out)
    stored = _of_these_weights(stored, digest)
    if mixed := precision_text(stored):
        problems.append(mixed)
    lines = directory.lines()
    if lacking := _lacking_steps(lines, numbers.get("step")):
        problems.append(captions.LACKING_LINES.format(n=lacking))
    if (step := directory.foreign_step(lines)) is not None:
        problems.append(captions.FOREIGN_LINES.format(step=step))
    if _sealed_json(path / "images.json") is None:
        problems.append(captions.CHANGED_FILE.format(file="images.json"))
    environment = _sealed_json(path / "environment.json")
    if environment is None or (environment and "python" not in environment):  # another file
        environment = {}
        problems.append(captions.CHANGED_FILE.format(file="environment.json"))
    return RunFiles(
        path,
        config,
        environment,
        lines,
        stored,
        table,
        places,
        images,
        no_images,
        no_results,
        not_evaluated,
        tuple(problems),
        None if folder == path else int(folder.name[5:]),
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
    directory: RunDir, config: PretrainConfig, numbers: dict[str, Any], root: Path | None
) -> "tuple[ImageSet | None, str]":
    """Return the images that a run was trained on and "", or None and why they cannot be read.

    They are as the run takes them. Where they are no longer at their recorded place, they are
    looked for at the same place relative to the run folder, as an evaluation does.

    Args:
        directory: the run folder.
        config: how the images are read.
        numbers: of the checkpoint, or {}. Images from a Python session have a name that only these
            know.
        root: the folder of downloaded data sets.
    """
    from sureclr.data.sources import is_source, load_images, where_now

    source = str(numbers.get("source", config.source))
    if config.of_table:
        return None, f"{source} is a table of features, which has no pixels."
    if not is_source(source):
        return None, f"the run was trained on images from a Python session ({source})."
    try:
        images = load_images(
            where_now(source, directory.path, directory.image_paths()),
            root=root,
            size=numbers.get("size"),
            channels=numbers.get("channels"),
            seed=config.seed,
            options=config.read_options,
        )
    except UserError as error:
        return None, str(error)
    return replace(images, name=source), ""


def _configuration(
    directory: RunDir, numbers: dict[str, Any], problems: list[str]
) -> PretrainConfig:
    """The configuration that the checkpoint recorded; a config.yaml that differs is a problem."""
    config = from_dict(read_yaml(directory.config))
    if not isinstance(numbers.get("configuration"), dict):
        return config
    recorded = from_dict(numbers["configuration"])
    later = directory.accepted_after(numbers)
    expected = recorded if later is None else from_dict(later)
    if not config.extends(expected):
        names = differing(expected, config)
        problems.append(captions.CHANGED_CONFIGURATION.format(names=", ".join(names)))
    return recorded


def _is_of(origin: str, digest: str | None) -> bool:
    """Whether a table is of these weights; one of older versions may not say."""
    return not origin or digest is None or origin.startswith(f"checkpoint {digest} ")


def _places(
    run: Path, file: Path, table: "Embeddings | None", digest: str | None, problems: list[str]
) -> dict[str, Any] | None:
    """The columns of a map, if it is of these weights and of the images of the table."""
    from sureclr.data.map_file import read_map

    if not os.path.lexists(file):
        return None
    try:
        columns, origin = read_map(file)
    except UserError as error:
        problems.append(captions.NO_MAP_FILE.format(why=error))
        return None
    if _is_of(origin.table, digest) and (table is None or origin.table == table.origin):
        return columns
    problems.append(captions.STALE_MAP.format(run=run))
    return None


def _lacking_steps(lines: Sequence[dict[str, Any]], step: Any) -> int:
    """How many steps up to that of the checkpoint have no line."""
    return (
        0
        if type(step) is not int
        else step - len({line["step"] for line in lines if 0 < line["step"] <= step})
    )


def _made_of(origin: str, images: "ImageSet") -> bool:
    """Return whether the run's own images, as it takes them, are those of a table.

    An evaluation looks at that before it uses the table; without one, nobody has.
    """
    from sureclr.data.image_set import digest_of_pixels

    digest = origin.partition(" images ")[2]
    return not digest or digest_of_pixels(images, [digest]) == digest


def _of_these_weights(results: Results, checkpoint: str | None) -> Results:
    """Leave out results of other weights than those of a checkpoint; say so as the reason."""
    stale = {
        name
        for name, provenance in results.provenance.items()
        if checkpoint is not None and provenance.checkpoint != checkpoint
    }
    if not stale and not results.damaged:
        return results
    fresh = {name: result for name, result in results.entries.items() if name not in stale}
    reasons = dict.fromkeys(sorted(stale), captions.STALE_RESULT)
    for name, why in results.damaged.items():
        reasons[name] = captions.DAMAGED_RESULT.format(why=why)
    provenance = {name: results.provenance[name] for name in fresh}
    return Results(results.run, fresh, provenance, {**results.skipped, **reasons})


def _read_results(folder: Path, out: Path | None) -> tuple[Results, str]:
    """The stored results, or none and why: a page without them is better than no page."""
    try:
        inside = read_results(folder)
        new = inside if out is None else read_results(out)
    except UserError as error:
        return Results(folder), str(error)
    return new.over(inside, folder), ""


def _sealed_json(path: Path) -> dict[str, Any] | None:
    """An object that has a checksum, {} if there is no file; None where it is damaged."""
    if not os.path.lexists(path):
        return {}
    try:
        return unsealed(read_json(path), path.name, required=False)
    except OSError as error:
        refuse_if_lost(error, path)
    except ValueError:
        pass
    return None
