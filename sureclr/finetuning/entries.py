"""The entry of a fine-tuning in results.json: its key, its provenance, reading and writing it."""

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime

from sureclr.data.image_set import ImageSet, digest_of_labels, digest_of_pixels
from sureclr.data.labels import Labelled
from sureclr.evaluation.results import Provenance, read_results, save_result
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.draws import Draw
from sureclr.finetuning.results import FinetuningResult, SeedResult
from sureclr.schema import to_json
from sureclr.training.run import Run
from sureclr.version import __version__


def result_key(config: FinetuneConfig, data: str | None = None) -> str:
    """Return the key of a result: of which labels, which fold and which data it is.

    >>> result_key(FinetuneConfig(labels="1%", fold=3), "stl10")
    'finetune:1%:fold-3:stl10'
    """
    parts = ["finetune", config.label_request.replace(" ", "")]
    if config.fold is not None:
        parts.append(f"fold-{config.fold}")
    if data is not None:
        parts.append(data)
    return ":".join(parts)


def provenance_of(run: Run, images: ImageSet, config: FinetuneConfig) -> Provenance:
    """Return what a fine-tuning that begins now is made of; its time is not known yet.

    The number of seeds is no option here, because more seeds continue a result.
    """
    default = FinetuneConfig()
    stored = read_results(run.results_folder, quiet=True).provenance.values()
    options = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name != "seeds" and getattr(config, field.name) != getattr(default, field.name)
    }
    return Provenance(
        checkpoint=run.checkpoint,
        images=digest_of_pixels(images, {one.images for one in stored}),
        labels=digest_of_labels(images),
        other_checkpoint="",
        version=__version__,
        time="",
        seconds=0.0,
        options=to_json(options),
        precision=run.precision_name,
    )


def read_entry(run: Run, key: str) -> tuple[FinetuningResult, Provenance] | None:
    """Return a saved result and what it was made of; None where there is none.

    Raises:
        UserError: results.json is damaged, or was written with another schema.
    """
    results = read_results(run.results_folder, quiet=True)  # the session named damaged ones
    return (results.entries[key], results.provenance[key]) if key in results.entries else None


def finished_seeds(
    saved: FinetuningResult,
    provenance: Provenance,
    origin: Provenance,
    draws: Sequence[Draw],
    test: Labelled,
) -> list[SeedResult]:
    """Return the leading seeds of a saved result that need not be trained again.

    A seed counts if it was made from the same checkpoint, images, labels and settings, the number
    of seeds aside.

    Args:
        saved: the result.
        provenance: what it was made of.
        origin: what the new result is made of.
        draws: the labels of every repetition.
        test: the test images.
    """
    finished: list[SeedResult] = []
    if not provenance.same_origin(origin):
        return finished
    for seed, draw in zip(saved.per_seed, draws, strict=False):
        if (seed.seed, seed.labels_sha256, seed.test_sha256) != (
            draw.seed,
            draw.labelled.digest,
            test.digest,
        ):
            break
        finished.append(seed)
    return finished


def save_entry(
    run: Run, key: str, result: FinetuningResult, origin: Provenance, seconds: float
) -> None:
    """Save a result in results.json, whose other entries stay as they are.

    Args:
        run: whose folder it is; the caller holds its lock.
        key: of the result.
        result: to be saved.
        origin: what it was made of.
        seconds: wall-clock time that all its seeds took.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    provenance = replace(origin, time=now, seconds=round(seconds, 3))
    save_result(run.results_folder, key, result, provenance)
