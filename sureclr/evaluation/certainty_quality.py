"""Is a model less certain where it should be? Its scores (scores.py) against facts about images.

An AUROC of 1 ranks perfectly, and 1/2 is chance. Only test images are judged, a sample where there
are more than 5,000 (scores.Judged); their neighbours are all training images, found by the cosine
of the features.
"""

from typing import TYPE_CHECKING

import torch

from sureclr.config import ViewConfig
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation import selective_prediction, view_pairs
from sureclr.evaluation.corrupted_images import certainty_follows, measure_corruptions, rank
from sureclr.evaluation.drawn_views import embed_view_pairs
from sureclr.evaluation.results import InformationSummary, UncertaintyResult
from sureclr.evaluation.scores import JUDGED, Embed, Judged, Reference, ScoredImages, score_images
from sureclr.maths.sphere import information

if TYPE_CHECKING:
    from sureclr.evaluation.inputs import EvaluationInputs

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the information
GAPS_OF_TABLES = {
    "corruptions": "a table of features has no pixels to change",
    "calibration on new views": (
        "the maps to calibrated numbers are fitted on the views of training images that the table"
        " has, and the heads were trained on these"
    ),
}
NO_SETS = "prediction sets"
TOO_FEW_FOR_SETS = (
    "one half of the labelled test images calibrates the sets on which the other half is judged,"
    " and has fewer than the 9 that a coverage of .9 needs"
)
VIEWS = 2001  # stream of seeds


def evaluate_uncertainty(inputs: "EvaluationInputs") -> UncertaintyResult:
    """Measure how certain the model is of each image, and whether that is right.

    Raises:
        UserError: there are fewer than two test or two training images.
    """
    return measure_uncertainty(
        inputs.embed,
        inputs.images_or_views,
        inputs.table,
        inputs.run.config.views,
        reference=inputs.reference,
    )


def measure_uncertainty(
    embed: Embed,
    images: ImageSet,
    table: Embeddings,
    views: ViewConfig,
    seed: int = 0,
    levels: slice = slice(None),
    reference: Reference | None = None,
    most: int = JUDGED,
) -> UncertaintyResult:
    """Do what `evaluate_uncertainty` does for anything that embeds images.

    Args:
        embed: images -> their embeddings.
        images: whole images, with or without labels, that fit the model; or a table of features
            with those of views, which has no pixels to corrupt.
        table: their embeddings, row by row.
        views: how two views of an image are drawn.
        seed: of corruptions and views.
        levels: which strengths of each corruption are measured.
        reference: of the table, if it exists already.
        most: test images that are judged at most.

    Raises:
        UserError: there are fewer than two test or two training images.
    """
    check_splits(images)
    of_table = not images.has_pixels
    judged, reference = Judged.among(table.split, most), reference or Reference.of(table)
    rows = judged.rows
    clean = score_images(table.select(rows), reference)
    pairs = embed_view_pairs(embed, images, rows, views, seed, VIEWS)
    calibration = evidence = None
    if pairs.posterior.radius is not None:
        training = view_pairs.training_view_pairs(embed, images, views, seed)
        calibration = view_pairs.calibrate_radius(pairs, training)
        evidence = view_pairs.calibrate_evidence(pairs, training)
    labelled = reference.probe is not None
    sets = selective_prediction.observe_sets(clean.table, reference) if labelled else None
    return UncertaintyResult(
        n_test=len(rows),
        n_train=len(reference.train),
        scores=tuple(clean.scores),
        clean=rank(clean),
        corruptions={}
        if of_table
        else measure_corruptions(embed, images, rows, clean, reference, seed, levels),
        partner=view_pairs.find_partners(pairs, reference),
        information=summarise_information(clean.table),
        calibration=calibration,
        evidence=evidence,
        selective=(
            selective_prediction.predict_selectively(clean, reference) if labelled else None
        ),
        probe_calibration=(
            selective_prediction.calibrate_probes(table, reference) if labelled else None
        ),
        skipped=reasons_for_gaps(clean, reference)
        | ({NO_SETS: TOO_FEW_FOR_SETS} if labelled and sets is None else {})
        | (GAPS_OF_TABLES if of_table else {}),
        sample=judged.sample,
        follows={} if of_table else certainty_follows(images, clean, rows),
        sets=sets,
    )


def check_splits(images: ImageSet) -> None:
    """Raise a UserError unless there are two test images and two others."""
    test, training = len(images.rows("test")), len(images.rows("train", "unlabelled"))
    if min(test, training) < 2:
        raise UserError(
            "uncertainty compares test images with training images and needs at least two of each,"
            f" and {images.name} has {test} test images and {training} training images; add images."
        )


def reasons_for_gaps(clean: ScoredImages, reference: Reference) -> dict[str, str]:
    """Return what could not be measured, with the reason."""
    reasons = {}
    if reference.probe is None:
        reasons["r_auroc, selective, negative_entropy, probe_calibration, sets"] = (
            "these need labelled images of two classes"
        )
    if clean.table.certainty is None:
        reasons["certainty"] = "this loss has no certainty, so there are only the baselines"
    if clean.table.radius is None:
        reasons["information, calibration, evidence"] = "this loss has no radius"
    return reasons


def summarise_information(table: Embeddings) -> InformationSummary | None:
    """Summarise what the posteriors say of their latents, in nats (theory 6).

    It is None without a radius. A radius that float32 rounds to 1 has no finite information, so
    radii count as at most 1 - 1e-6, up to which `information` is exact.
    """
    if table.radius is None:
        return None
    dimension = table.direction.shape[1]
    presence = None if table.presence is None else table.presence.double()
    nats = information(table.radius.double().clamp(max=1 - 1e-6), dimension, presence=presence)
    quantiles = nats.quantile(torch.tensor(QUANTILES, dtype=nats.dtype))
    return InformationSummary(dimension, float(nats.mean()), tuple(quantiles.tolist()))
