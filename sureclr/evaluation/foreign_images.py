"""Is a model less certain of images from elsewhere? The AUROC of each score separates them.

    digits, fashion-mnist    another data set (never the run's own), resized and recoloured to fit
    uniform-noise            every pixel and channel uniform on 0..255
    inverted, flipped        the test images themselves, as negatives and upside down

At most 5,000 test images of each set are compared (scores.Judged).

Resizing is a confound: digits enlarged from 8 to 28 pixels are blurry, and blur alone may be what
makes them less certain. The result's note says so.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sureclr.data.counter_rng import hashed, sample_rows
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.data.label_matching import labels_in_file
from sureclr.data.label_request import LabelFile
from sureclr.errors import UserError
from sureclr.evaluation.results import ForeignImages, HumanAgreement, OodResult
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
from sureclr.evaluation.tables import finite_by_score
from sureclr.files import LARGEST_TEXT, read_file
from sureclr.maths import metrics

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

    def uniform_noise(part: ImageSet, places: Tensor) -> Tensor:
        numbers = hashed(seeds[places], 0, part.images[0].numel()) >> 56 & 255
        return numbers.to(torch.uint8).view(part.images.shape).to(part.images.device)

    return {
        "uniform-noise": ("every pixel and channel uniform on 0..255", uniform_noise),
        "inverted": ("255 minus the pixel", lambda part, places: 255 - part.images),
        "flipped": ("upside down", lambda part, places: part.images.flip(2)),
    }


# --- People ---------------------------------------------------------------------------


def read_human_shares(path: Path, images: ImageSet) -> Tensor:
    """Return the share of each class in what people said of the test images.

    Args:
        path: a .npy file with a row for each test image, in their order, and a column for each
            class: counts or probabilities, as CIFAR-10H has them (Peterson et al. 2019; a pickle
            inside it is not read). Or a file of labels, see `label_matching.labels_in_file`.
        images: whose test images these are.

    Returns:
        (test images, classes) float64; each row adds up to 1, or is 0 where nothing is known.

    Raises:
        UserError: the file is another one.
    """
    if path.suffix.lower() != ".npy":
        found = labels_in_file(LabelFile(path), images)
        one_hot = functional.one_hot(found.target, max(1, len(found.classes)))
        shares = torch.zeros(len(images), one_hot.shape[1], dtype=torch.float64)
        shares[found.rows] = (one_hot if found.shares is None else found.shares).double()
        return shares[torch.from_numpy(images.rows("test"))]
    try:
        data = read_file(path, LARGEST_TEXT)
        if not data.startswith(b"\x93NUMPY"):  # numpy would advise to load it as a pickle
            raise ValueError("it does not begin as .npy files do")
        votes = np.load(io.BytesIO(data), allow_pickle=False).astype(np.float64)
    except (OSError, ValueError, TypeError, EOFError, MemoryError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} cannot be read as an array of numbers ({reason}); name a .npy file or a"
            " file of labels with human=."
        ) from error
    tests = len(images.rows("test"))
    if votes.ndim != 2 or len(votes) != tests or votes.shape[1] < 2:
        raise UserError(
            f"{path} has the shape {votes.shape}; it must have a row for each of the {tests:,} test"
            f" images of {images.name} and a column for each class."
        )
    if not np.isfinite(votes).all() or votes.min() < 0:
        raise UserError(
            f"{path} must hold counts or probabilities, which are finite and 0 or more."
        )
    shares = torch.from_numpy(votes)
    return shares / shares.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def correlate_with_humans(
    images: ImageSet,
    table: Embeddings,
    shares: Tensor,
    reference: Reference | None = None,
    most: int = JUDGED,
) -> HumanAgreement:
    """Correlate each score with minus the human entropy: is it low where people disagree?

    Args:
        images: any images with test images.
        table: their embeddings.
        shares: (test images, classes) shares of each class in what people said; images whose row is
            0 do not count.
        reference: of the table, if it exists already.
        most: test images that are judged at most.

    Raises:
        UserError: people labelled fewer than two test images.
    """
    known = shares.sum(1) > 0
    if int(known.sum()) < 2:
        raise UserError(
            f"people labelled {int(known.sum())} test images of {images.name}, and a correlation"
            " needs at least two; add labels of test images, or leave out human=."
        )
    chosen = sample_rows(known.nonzero()[:, 0], most, SAMPLED)
    test = table.select(np.flatnonzero(table.split == "test")[chosen.numpy()])
    share = shares[chosen].double()
    agreement = torch.special.xlogy(share, share).sum(1)
    scores = score_images(test, reference or Reference.of(table)).scores
    correlation = {name: metrics.spearman(score, agreement) for name, score in scores.items()}
    return HumanAgreement(len(test), finite_by_score(correlation))
