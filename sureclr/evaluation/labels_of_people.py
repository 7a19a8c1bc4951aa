"""Is a model less certain of images on which people disagree? The labels of several people."""

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sureclr.data.counter_rng import sample_rows
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.data.label_matching import labels_in_file
from sureclr.data.label_request import LabelFile
from sureclr.errors import UserError
from sureclr.evaluation.results import HumanAgreement
from sureclr.evaluation.scores import JUDGED, SAMPLED, Reference, score_images
from sureclr.evaluation.tables import finite_by_score
from sureclr.files import LARGEST_TEXT, read_file
from sureclr.maths import metrics


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
