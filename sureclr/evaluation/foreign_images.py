"""Is a model less sure of images from elsewhere? AUROC of its certainty, and of plain rivals, test
images against others.

    digits, fashion-mnist    another data set (never the run's own), resized and recoloured to what the run takes
    uniform-noise            every pixel and channel uniform on 0..255
    inverted, flipped        the test images themselves, as negatives and upside down

Resizing is a confound: digits enlarged from 8 to 28 pixels are blurry, and blur alone may be what
    is noticed. The result says so.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sureclr.data.counter_rng import hashed
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet, convert
from sureclr.data.sources import load_images
from sureclr.errors import UserError
from sureclr.evaluation.certainty_quality import (
    Embed,
    Judgement,
    Reference,
    Result,
    auroc_of,
    image_seeds,
    judge,
)
from sureclr.files import json_able
from sureclr.maths import metrics
from sureclr.progress import SILENT, Progress
from sureclr.training.run import Run

OTHERS = ("digits", "fashion-mnist")
PIXELS = 2004  # stream of random numbers
CIFAR10_TEST, CIFAR10_CLASSES = 10_000, 10


def ood(
    run: Run,
    images: ImageSet,
    table: Embeddings,
    *,
    human: Path | None = None,
    root: Path | None = None,
    seed: int = 0,
    reference: Reference | None = None,
    progress: Progress = SILENT,
) -> Result:
    """For each kind of foreign images: {"n", "auroc": {score: value}, "note"}, or {"skipped": why}.
    JSON-able.

    Args:
        images, table: the run's own whole images and their embeddings, row by row.
        human: CIFAR-10H's probabilities, a .npy of 10,000 x 10 numbers in the order of CIFAR-10's
            test images.
        root: where data sets lie.
        reference: of the table, if at hand.
        progress: reports how far the work is; may raise to stop.
    """
    result = measure(
        lambda some: run.embed(some, progress),
        convert(images, run.size, run.channels),
        table,
        root,
        seed,
        reference,
    )
    return (
        result
        if human is None
        else {
            **result,
            "cifar10h": json_able(against_humans(images, table, human_entropies(human), reference)),
        }
    )


def measure(
    embed: Embed,
    images: ImageSet,
    table: Embeddings,
    root: Path | None = None,
    seed: int = 0,
    reference: Reference | None = None,
) -> Result:
    """`ood` for anything that embeds images of the size and channels that these have; reference: of
    the table, if at hand.
    """
    reference = reference or Reference.of(table)
    own = judge(table.select(table.split == "test"), reference)
    result: Result = {}
    for name in (*ALTERATIONS, *OTHERS):
        try:
            foreign = (
                altered(name, images.test, seed)
                if name in ALTERATIONS
                else other_source(name, images, root)
            )
        except UserError as reason:
            result[name] = {"skipped": str(reason)}
        else:
            result[name] = told_apart(own, judge(embed(foreign), reference), foreign.note)
    return dict(json_able(result))


def told_apart(own: Judgement, foreign: Judgement, note: str) -> Result:
    """AUROC of every score for the run's own test images (positive) against foreign ones."""
    is_own = torch.arange(len(own.seen) + len(foreign.seen)) < len(own.seen)
    scores = {name: torch.cat([score, foreign.scores[name]]) for name, score in own.scores.items()}
    return {"n": len(foreign.seen), "auroc": auroc_of(scores, is_own), "note": note}


def altered(name: str, test: ImageSet, seed: int) -> ImageSet:
    """The test images themselves, altered."""
    note, alter = ALTERATIONS[name]
    return replace(test, images=alter(test, seed), note=note)


def uniform_noise(test: ImageSet, seed: int, chunk: int = 512) -> Tensor:
    """As many images of independent uniform bytes."""
    parts = [
        hashed(seeds, 0, test.images[0].numel()) >> 56 & 255
        for seeds in image_seeds(test, seed, PIXELS).split(chunk)
    ]
    return (
        torch.cat([part.to(torch.uint8) for part in parts])
        .view(test.images.shape)
        .to(test.images.device)
    )


ALTERATIONS: dict[str, tuple[str, Callable[[ImageSet, int], Tensor]]] = {
    "uniform-noise": ("every pixel and channel uniform on 0..255", uniform_noise),
    "inverted": ("255 minus the pixel", lambda test, seed: 255 - test.images),
    "flipped": ("upside down", lambda test, seed: test.images.flip(2)),
}


def other_source(name: str, images: ImageSet, root: Path | None) -> ImageSet:
    """The test images of another source, as the run takes them. Raises UserError where it is the
    same, or not to be had.
    """
    if name == images.name:
        raise UserError("this is the data set that the images come from.")
    foreign = load_images(name, root=root).test
    size, channels = images.images.shape[-1], images.images.shape[1]
    before = foreign.images.shape[-1]
    note = (
        ""
        if before == size
        else (
            f"resized from {before} to {size} pixels: the change of sharpness may be what is"
            " noticed"
        )
    )
    return replace(convert(foreign, size, channels), note=note)


def human_entropies(path: Path) -> Tensor:
    """(10000,) nats, of CIFAR-10H's label distributions (Peterson et al. 2019); no pickle is read,
    UserError for another file.
    """
    try:
        p = np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as CIFAR-10H's probabilities ({error}); give"
            " cifar10h-probs.npy."
        ) from error
    if (
        p.shape != (CIFAR10_TEST, CIFAR10_CLASSES)
        or not np.allclose(p.sum(1), 1, atol=1e-3)
        or p.min() < 0
    ):
        raise UserError(
            f"CIFAR-10H is 10000 rows of 10 probabilities, and {path} has shape {p.shape}; give"
            " cifar10h-probs.npy."
        )
    return -torch.special.xlogy(torch.from_numpy(p), torch.from_numpy(p)).sum(1)


def against_humans(
    images: ImageSet, table: Embeddings, entropies: Tensor, reference: Reference | None = None
) -> dict[str, Any]:
    """Spearman of every score with minus the human entropy, over CIFAR-10's test images: are we
    unsure where people disagree?
    """
    test = table.select(table.split == "test")
    if images.name != "cifar10" or len(test) != len(entropies):
        raise UserError(
            f"CIFAR-10H belongs to all 10000 test images of cifar10, not to {len(test)} of"
            f" {images.name}."
        )
    scores = judge(test, reference or Reference.of(table)).scores
    return {
        "n": len(test),
        "spearman": {name: metrics.spearman(score, -entropies) for name, score in scores.items()},
    }
