"""Is a model less certain of images the more a corruption harms them?"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.data.corruptions import CORRUPTIONS, Corruption
from sureclr.data.image_set import ImageSet
from sureclr.evaluation.picture_properties import followed_properties
from sureclr.evaluation.results import (
    ByScore,
    CorruptionLevel,
    CorruptionResult,
    HarmedImages,
    RandomStrengths,
    Ranking,
)
from sureclr.evaluation.scores import (
    Embed,
    Reference,
    ScoredImages,
    auroc_by_score,
    embed_changed,
    image_seeds,
    score_images,
)
from sureclr.evaluation.tables import finite_by_score
from sureclr.maths.metrics import spearman

CORRUPTED = 2002  # stream of seeds


def rank(images: ScoredImages) -> Ranking | None:
    """Measure the R-AUROC (URL benchmark, Kirchhof et al. 2023) and recall@1.

    Returns:
        Means over the images whose class is known; None if there is no such image.
    """
    if not images.known.any():
        return None
    correct = images.correct[images.known]
    scores = {name: score[images.known] for name, score in images.scores.items()}
    return Ranking(
        n=len(correct),
        recall_at_1=float(correct.double().mean()),
        r_auroc=auroc_by_score(scores, correct),
    )


def measure_corruptions(
    embed: Embed,
    images: ImageSet,
    rows: NDArray[np.int64],
    clean: ScoredImages,
    reference: Reference,
    seed: int = 0,
    levels: slice = slice(None),
) -> dict[str, CorruptionResult]:
    """Do what `measure_corruption` does for every corruption."""
    return {
        name: measure_corruption(embed, images, rows, corruption, clean, reference, seed, levels)
        for name, corruption in CORRUPTIONS.items()
    }


def certainty_follows(images: ImageSet, clean: ScoredImages, rows: NDArray[np.int64]) -> ByScore:
    """Return the correlations of the certainty of whole images with properties of their pixels.

    Args:
        images: whole images.
        clean: the scores of those in the rows.
        rows: (m,).
    """
    if not images.has_pixels or "certainty" not in clean.scores:
        return {}
    pixels = torch.as_tensor(images.images[torch.from_numpy(rows)])
    return finite_by_score(followed_properties(clean.scores["certainty"], pixels))


def measure_corruption(
    embed: Embed,
    images: ImageSet,
    rows: NDArray[np.int64],
    corruption: Corruption,
    clean: ScoredImages,
    reference: Reference,
    seed: int = 0,
    levels: slice = slice(None),
) -> CorruptionResult:
    """Harm images at fixed strengths and at random ones, and compare them with the whole images.

    Args:
        embed: images -> their embeddings.
        images: whole images.
        rows: (m,) of those that are harmed.
        corruption: what harms them.
        clean: their scores, in the order of the rows.
        reference: what images are compared with.
        seed: of the corruption and of the random strengths, which lie between nothing and the
            strongest level.
        levels: which fixed strengths are measured.
    """
    seeds = image_seeds(rows, seed, CORRUPTED)

    def harmed(strength: float | Tensor) -> ScoredImages:
        each = torch.as_tensor(strength, dtype=torch.float64).expand(len(rows))
        table = embed_changed(
            embed,
            images,
            rows,
            lambda part, places: corruption(part.images, seeds[places], each[places]),
        )
        return score_images(table, reference)

    strengths = corruption.random_strengths(seeds)
    severity, drawn = corruption.severity(strengths), harmed(strengths)
    correlation = {name: spearman(score, -severity) for name, score in drawn.scores.items()}
    at_random = compare_with_clean(drawn, clean)
    return CorruptionResult(
        unit=corruption.unit,
        levels=tuple(
            _level(strength, compare_with_clean(harmed(strength), clean))
            for strength in corruption.strengths[levels]
        ),
        random=RandomStrengths(
            ranking=at_random.ranking,
            less_certain=at_random.less_certain,
            mean=at_random.mean,
            spearman=finite_by_score(correlation),
        ),
    )


def _level(strength: float, harmed: HarmedImages) -> CorruptionLevel:
    return CorruptionLevel(harmed.ranking, harmed.less_certain, harmed.mean, strength)


def compare_with_clean(harmed: ScoredImages, clean: ScoredImages) -> HarmedImages:
    """Rank harmed images, and count those that are strictly less certain than before, by score."""
    less = {
        name: float((score < clean.scores[name]).double().mean())
        for name, score in harmed.scores.items()
    }
    mean = {name: float(score.double().mean()) for name, score in harmed.scores.items()}
    return HarmedImages(rank(harmed), finite_by_score(less), finite_by_score(mean))
