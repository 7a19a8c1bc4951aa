"""kNN accuracy: the class that the k most similar training images vote for (Wu et al. 2018), no
training needed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths.metrics import wilson_interval
from sureclr.maths.neighbours import top_k, vote


@dataclass(frozen=True)
class KnnResult:
    """accuracy over the test rows, its 95 % interval (Wilson), the predictions (m,) int64, and the
    k and temperature used.
    """

    accuracy: float
    interval: tuple[float, float]
    predictions: Tensor
    k: int
    temperature: float


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.1,
) -> KnnResult:
    """Accuracy of the vote of the k nearest training rows by cosine, each with the weight
    exp(cosine / temperature).

    Args:
        train_features: (n, f), train_labels: (n,) int64 >= 0; test_features: (m, f), test_labels:
            (m,). All on one device, which does the work.
        k: at most n. temperature: > 0; 0.1 and k = 20 suit small data sets, Wu et al. take 0.07 and
            200.

    Raises:
        UserError: unlabelled rows, features that are not finite, k or temperature out of range.
    """
    _check(train_features, train_labels, k, len(train_features), temperature)
    _check(test_features, test_labels, k, len(train_features), temperature)
    similarity, index = top_k(test_features, train_features, k)
    return _count(similarity, train_labels[index], test_labels, temperature)


def knn_leave_one_out(
    features: Tensor, labels: Tensor, k: int = 20, temperature: float = 0.1
) -> KnnResult:
    """The same on one set, each row voted on by the others: for training images, where there is no
    test set to look at.
    """
    _check(features, labels, k, len(features) - 1, temperature)
    similarity, index = top_k(features, features, k, exclude_self=True)
    return _count(similarity, labels[index], labels, temperature)


def _count(
    similarity: Tensor, neighbour_labels: Tensor, truth: Tensor, temperature: float
) -> KnnResult:
    guess = vote(similarity, neighbour_labels, int(neighbour_labels.max()) + 1, temperature)
    right = int((guess == truth).sum())
    return KnnResult(
        right / len(truth),
        wilson_interval(right, len(truth)),
        guess,
        similarity.shape[1],
        temperature,
    )


def _check(features: Tensor, labels: Tensor, k: int, available: int, temperature: float) -> None:
    if len(features) != len(labels) or len(labels) == 0:
        raise UserError(
            f"kNN needs a label for each row, got {len(features)} rows and {len(labels)} labels."
        )
    if (labels < 0).any():
        raise UserError(
            f"kNN needs labels: {int((labels < 0).sum())} of {len(labels)} rows have none; drop"
            " those."
        )
    if not torch.isfinite(features).all():
        bad = int((~features.isfinite().all(1)).sum())
        raise UserError(
            f"features must be finite, {bad} of {len(features)} rows are not; look for a diverged"
            " encoder."
        )
    if not 1 <= k <= available:
        raise UserError(
            f"k = {k} neighbours of {available} training rows to choose from; take 1 <= k <="
            f" {available}."
        )
    if temperature <= 0:
        raise UserError(f"the vote's temperature is {temperature}, it must be above 0; try 0.1.")
