"""Is a model less certain of images from elsewhere? The AUROC of each score separates them.

    digits, fashion-mnist    another data set (never the run's own), resized and recoloured to fit
    uniform-noise            every pixel and channel uniform on 0..255
    constant                 one uniform colour
    smooth-noise             noise whose amplitude falls as 1 / frequency, as in photographs
    tiles                    the test images with their 16 (4 x 4) tiles shuffled
    inverted, flipped        the test images themselves, as negatives and upside down

A run with null views has seen noise and the shuffling of smaller tiles while it trained.

At most 5,000 test images of each set are compared (scores.Judged).

Resizing is a confound: digits enlarged from 8 to 28 pixels are blurry, and blur alone may be what
makes them less certain. The result's note says so.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.data.counter_rng import hashed, sample_rows
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.data.null_views import coloured_noise
from sureclr.errors import UserError
from sureclr.evaluation.labels_of_people import correlate_with_humans, read_human_shares
from sureclr.evaluation.results import ForeignImages, OodResult
from sureclr.evaluation.scores import (
    JUDGED,
    SAMPLED,
    Change,
    Embed,
    Judged,
    Reference,
    ScoredImages,
    auroc_by_score,
    embed_changed,
    image_seeds,
    score_images,
)

if TYPE_CHECKING:
    from sureclr.evaluation.inputs import EvaluationInputs

OTHERS = ("digits", "fashion-mnist")
PIXELS = 2004  # stream of seeds


def evaluate_ood(inputs: "EvaluationInputs") -> OodResult:
    """Compare the scores of the test images with those of each kind of foreign images.

    Kinds that cannot be read are skipped with the reason. `human_agreement` is made where test
    images have labels of several people: in `inputs.human`, else in the labels themselves.

    Raises:
        UserError: the file of what people said is not what it should be.
    """
    images, table = inputs.images, inputs.table
    kinds = measure_ood(
        inputs.embed, images, table, inputs.other_test_images, reference=inputs.reference
    )
    sample = Judged.among(table.split).sample
    if inputs.human is not None:
        shares = read_human_shares(inputs.human, images)
    elif images.shares is not None:
        shares = images.shares[torch.from_numpy(images.rows("test"))]
        if int((shares.sum(1) > 0).sum()) < 2:
            return OodResult(kinds, None, sample)
    else:
        return OodResult(kinds, None, sample)
    agreement = correlate_with_humans(images, table, shares, inputs.reference)
    return OodResult(kinds, agreement, sample)


def measure_ood(
    embed: Embed,
    images: ImageSet,
    table: Embeddings,
    other_test_images: Callable[[str], ImageSet],
    seed: int = 0,
    reference: Reference | None = None,
    most: int = JUDGED,
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
        most: test images of each set that are compared at most.

    Raises:
        UserError: there are no test images, or no others.
    """
    if not len(images.rows("test")) or len(images.rows("test")) == len(images):
        raise UserError(
            f"foreign images are compared with test images, whose neighbours are training images;"
            f" {images.name} needs both."
        )
    reference = reference or Reference.of(table)
    rows = Judged.among(table.split, most).rows
    own = score_images(table.select(rows), reference)
    kinds = {
        name: separate(
            own, score_images(embed_changed(embed, images, rows, change), reference), note
        )
        for name, (note, change) in alterations(rows, seed).items()
    }
    for name in OTHERS:
        try:
            foreign = other_test_images(name)
        except UserError as reason:
            kinds[name] = ForeignImages(0, {}, "", str(reason))
        else:
            some = foreign.select(sample_rows(torch.arange(len(foreign)), most, SAMPLED))
            kinds[name] = separate(own, score_images(embed(some), reference), foreign.note)
    return kinds


def separate(own: ScoredImages, foreign: ScoredImages, note: str) -> ForeignImages:
    """Return each score's AUROC for the run's own test images (positive) against foreign ones."""
    is_own = torch.arange(len(own.table) + len(foreign.table)) < len(own.table)
    scores = {name: torch.cat([score, foreign.scores[name]]) for name, score in own.scores.items()}
    return ForeignImages(len(foreign.table), auroc_by_score(scores, is_own), note, "")


def alterations(rows: NDArray[np.int64], seed: int) -> dict[str, tuple[str, Change]]:
    """Return how test images are made foreign: name -> (note, see `scores.embed_changed`).

    Args:
        rows: (m,) of the images.
        seed: of the noise.
    """
    seeds = image_seeds(rows, seed, PIXELS)

    def constant(part: ImageSet, places: Tensor) -> Tensor:
        colour = hashed(seeds[places], 1, part.images.shape[1]) >> 56 & 255
        pixels = colour.to(torch.uint8).to(part.images.device)[:, :, None, None]
        return pixels.expand(-1, -1, *part.images.shape[2:]).contiguous()

    def smooth_noise(part: ImageSet, places: Tensor) -> Tensor:
        _, channels, _, size = part.images.shape
        noise = coloured_noise(seeds[places], channels, size, slope=1.0, contrast=0.2)
        return (255 * noise).round().byte().to(part.images.device)

    def tiles(part: ImageSet, places: Tensor) -> Tensor:
        return large_tiles(part.images[:], seeds[places])

    def uniform_noise(part: ImageSet, places: Tensor) -> Tensor:
        numbers = hashed(seeds[places], 0, part.images[0].numel()) >> 56 & 255
        return numbers.to(torch.uint8).view(part.images.shape).to(part.images.device)

    return {
        "uniform-noise": ("every pixel and channel uniform on 0..255", uniform_noise),
        "constant": ("one uniform colour", constant),
        "smooth-noise": ("noise whose amplitude falls as 1 / frequency", smooth_noise),
        "tiles": ("16 tiles of the image, shuffled", tiles),
        "inverted": ("255 minus the pixel", lambda part, places: 255 - part.images),
        "flipped": ("upside down", lambda part, places: part.images.flip(2)),
    }


def large_tiles(images: Tensor, seeds: Tensor) -> Tensor:
    """Return images (n, c, s, s) whose 4 x 4 tiles are shuffled; a remainder of s / 4 stays."""
    side = images.shape[-1] // 4
    found, order = images.clone(), hashed(seeds, 2, 16).argsort(1).to(images.device)
    inner = images[..., : 4 * side, : 4 * side]
    tiles = inner.unflatten(3, (4, side)).unflatten(2, (4, side)).permute(0, 2, 4, 1, 3, 5)
    tiles = tiles.flatten(1, 2)  # (n, 16, c, side, side)
    taken = tiles.gather(1, order[:, :, None, None, None].expand_as(tiles))
    grid = taken.unflatten(1, (4, 4)).permute(0, 3, 1, 4, 2, 5)
    found[..., : 4 * side, : 4 * side] = grid.reshape(inner.shape)
    return found
