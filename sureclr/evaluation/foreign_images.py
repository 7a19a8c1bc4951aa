"""Is a model less certain of images from elsewhere? The AUROC of each score separates them.

    digits, fashion-mnist    another data set (never the run's own), resized and recoloured to fit
    uniform-noise            every pixel and channel uniform on 0..255
    inverted, flipped        the test images themselves, as negatives and upside down

Resizing is a confound: digits enlarged from 8 to 28 pixels are blurry, and blur alone may be what
makes them less certain. The result's note says so.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sureclr.data.counter_rng import hashed
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.results import ForeignImages, HumanAgreement, OodResult
from sureclr.evaluation.scores import (
    Embed,
    Reference,
    ScoredImages,
    auroc_by_score,
    image_seeds,
    score_images,
)
from sureclr.evaluation.tables import finite_by_score
from sureclr.maths import metrics

if TYPE_CHECKING:
    from sureclr.evaluation.inputs import EvaluationInputs

OTHERS = ("digits", "fashion-mnist")
PIXELS = 2004  # stream of seeds
CIFAR10_TEST, CIFAR10_CLASSES = 10_000, 10


def evaluate_ood(inputs: "EvaluationInputs") -> OodResult:
    """Compare the scores of the test images with those of each kind of foreign images.

    Kinds that cannot be read are skipped with the reason. `human_agreement` is made where the user
    has CIFAR-10H's probabilities (`inputs.human`).

    Raises:
        UserError: CIFAR-10H's file is not what it should be, or the images are not CIFAR-10's.
    """
    kinds = measure_ood(
        inputs.embed,
        inputs.images,
        inputs.table,
        inputs.other_test_images,
        reference=inputs.reference,
    )
    if inputs.human is None:
        return OodResult(kinds, None)
    entropies = read_human_entropies(inputs.human)
    agreement = correlate_with_humans(inputs.images, inputs.table, entropies, inputs.reference)
    return OodResult(kinds, agreement)


def measure_ood(
    embed: Embed,
    images: ImageSet,
    table: Embeddings,
    other_test_images: Callable[[str], ImageSet],
    seed: int = 0,
    reference: Reference | None = None,
) -> dict[str, ForeignImages]:
    """Do what `evaluate_ood` does for anything that embeds images.

    Args:
        embed: images -> their embeddings.
        images: whole images that fit the model.
        table: their embeddings, row by row.
        other_test_images: name of a data set -> its test images as the model takes them; a
            UserError where there are none.
        seed: of the noise.
        reference: of the table, if it exists already.

    Raises:
        UserError: there are no test images, or no others.
    """
    if not len(images.rows("test")) or len(images.rows("test")) == len(images):
        raise UserError(
            f"foreign images are compared with test images, whose neighbours are training images;"
            f" {images.name} needs both."
        )
    reference = reference or Reference.of(table)
    own = score_images(table.select(table.split == "test"), reference)
    kinds = {}
    for name in (*ALTERATIONS, *OTHERS):
        try:
            foreign = (
                alter(name, images.test, seed) if name in ALTERATIONS else other_test_images(name)
            )
        except UserError as reason:
            kinds[name] = ForeignImages(0, {}, "", str(reason))
        else:
            kinds[name] = separate(own, score_images(embed(foreign), reference), foreign.note)
    return kinds


def separate(own: ScoredImages, foreign: ScoredImages, note: str) -> ForeignImages:
    """Return each score's AUROC for the run's own test images (positive) against foreign ones."""
    is_own = torch.arange(len(own.table) + len(foreign.table)) < len(own.table)
    scores = {name: torch.cat([score, foreign.scores[name]]) for name, score in own.scores.items()}
    return ForeignImages(len(foreign.table), auroc_by_score(scores, is_own), note, "")


def alter(name: str, test: ImageSet, seed: int) -> ImageSet:
    """Return the test images after the alteration of this name."""
    note, change = ALTERATIONS[name]
    return test.with_pixels(change(test, seed), note=note)


def uniform_noise(test: ImageSet, seed: int, chunk: int = 512) -> Tensor:
    """Return as many images of independent uniform bytes, `chunk` of them at a time."""
    parts = [
        hashed(seeds, 0, test.images[0].numel()) >> 56 & 255
        for seeds in image_seeds(test, seed, PIXELS).split(chunk)
    ]
    pixels = torch.cat([part.to(torch.uint8) for part in parts])
    return pixels.view(test.images.shape).to(test.images.device)


ALTERATIONS: dict[str, tuple[str, Callable[[ImageSet, int], Tensor]]] = {
    "uniform-noise": ("every pixel and channel uniform on 0..255", uniform_noise),
    "inverted": ("255 minus the pixel", lambda test, seed: 255 - test.images),
    "flipped": ("upside down", lambda test, seed: test.images.flip(2)),
}


# --- CIFAR-10H ------------------------------------------------------------------------


def read_human_entropies(path: Path) -> Tensor:
    """Return the entropies of CIFAR-10H's label distributions (Peterson et al. 2019).

    Args:
        path: a .npy file of 10,000 x 10 probabilities, in the order of CIFAR-10's test images; a
            pickle inside it is not read.

    Returns:
        (10000,) float64, in nats.

    Raises:
        UserError: the file is another one.
    """
    try:
        p = np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as CIFAR-10H's probabilities ({error}); name the file"
            " cifar10h-probs.npy with human=."
        ) from error
    if (
        p.shape != (CIFAR10_TEST, CIFAR10_CLASSES)
        or not np.allclose(p.sum(1), 1, atol=1e-3)
        or p.min() < 0
    ):
        raise UserError(
            f"CIFAR-10H has 10000 rows of 10 probabilities, and {path} has shape {p.shape} or other"
            " numbers; name the file cifar10h-probs.npy with human=."
        )
    entropies: Tensor = -torch.special.xlogy(torch.from_numpy(p), torch.from_numpy(p)).sum(1)
    return entropies


def correlate_with_humans(
    images: ImageSet, table: Embeddings, entropies: Tensor, reference: Reference | None = None
) -> HumanAgreement:
    """Correlate each score with minus the human entropy: is it low where people disagree?

    Args:
        images: the images of CIFAR-10.
        table: their embeddings.
        entropies: (10000,) of its test images, in their order.
        reference: of the table, if it exists already.

    Raises:
        UserError: these are other images.
    """
    test = table.select(table.split == "test")
    if images.name != "cifar10" or len(test) != len(entropies):
        raise UserError(
            f"CIFAR-10H describes all 10000 test images of cifar10, not {len(test)} of"
            f" {images.name}; leave out human=."
        )
    scores = score_images(test, reference or Reference.of(table)).scores
    correlation = {name: metrics.spearman(score, -entropies) for name, score in scores.items()}
    return HumanAgreement(len(test), finite_by_score(correlation))
