"""kNN accuracy: the class that the k most similar training images vote for (Wu et al. 2018).

No training is needed.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError
from sureclr.evaluation.neighbour_space import choose_space
from sureclr.evaluation.results import (
    BaselineIntervals,
    Baselines,
    Interval,
    KnnResult,
    WhitenedBaselines,
    WhitenedVote,
)
from sureclr.evaluation.tables import class_numbers, labelled_split
from sureclr.maths.clustered_search import EXACT, find_neighbours
from sureclr.maths.inputs import check_tensor, is_whole, rows_not_finite
from sureclr.maths.metrics import wilson_interval
from sureclr.maths.neighbours import PLAIN, Unit, vote

if TYPE_CHECKING:
    from sureclr.evaluation.inputs import EvaluationInputs

VOTERS = 20  # training images that vote on each test image, or all if there are fewer


@dataclass(frozen=True)
class NeighbourVote:
    """The votes on some test images.

    Attributes:
        accuracy: share of the test images whose class wins the vote.
        interval: its 95 % interval, Wilson's.
        predictions: (m,) int64, the winning classes.
        k: number of training images that vote on each test image.
        temperature: of their weights.
        n_train: number of training images.
        search: how the nearest were found, as in `clustered_search.Neighbours`.
    """

    accuracy: float
    interval: Interval
    predictions: Tensor
    k: int
    temperature: float
    n_train: int
    search: str = EXACT


def evaluate_knn(inputs: "EvaluationInputs") -> KnnResult:
    """Measure kNN accuracy of the features, the raw pixels and the first encoder's features.

    Each has two accuracies: by the plain cosine, which published numbers are of, and by the cosine
    of partially whitened features (`choose_space`). The raw pixels and the first encoder are
    absent where the images cannot be read. The first encoder is the untrained one, or a pretrained
    backbone as it came.

    Raises:
        UserError: there are no labelled training or no labelled test images.
    """
    table, name, device = inputs.table, inputs.catalogue.name, inputs.run.model.device
    first = inputs.run.config.first_encoder
    features = vote_on_table(table, name, device=device)
    if features.search != EXACT:
        inputs.progress.message(
            f"knn: there are {features.n_train:,} training images, and each test image is compared"
            f" with {features.search}."
        )
    whitened = vote_whitened(table, name, device)
    train, test = (table.labels[table.labelled_rows(part)] for part in ("train", "test"))
    result = KnnResult(
        accuracy=features.accuracy,
        interval=features.interval,
        k=features.k,
        n_train=features.n_train,
        n_test=len(features.predictions),
        baselines=None,
        baseline_intervals=None,
        by_class=class_numbers(train, test, features.predictions, table.classes),
        no_pixels=inputs.no_pixels,
        first_encoder=first,
        whitened=whitened,
    )
    if inputs.no_pixels:
        return result
    raw = vote_on_table(inputs.raw, name, device=device)
    frozen = first == "frozen"  # so that its features are those above
    untrained = features if frozen else vote_on_table(inputs.untrained, name, device=device)
    return replace(
        result,
        baselines=Baselines(raw.accuracy, untrained.accuracy),
        baseline_intervals=BaselineIntervals(raw.interval, untrained.interval),
        whitened_baselines=WhitenedBaselines(
            vote_whitened(inputs.raw, name, device),
            whitened if frozen else vote_whitened(inputs.untrained, name, device),
        ),
    )


def vote_whitened(
    table: Embeddings, source: str = "the table", device: torch.device | None = None
) -> WhitenedVote:
    """Do what `vote_on_table` does by the cosine of partially whitened features.

    Args:
        table: the embeddings.
        source: the name of the images, for error messages.
        device: as in `knn_accuracy`.

    Raises:
        UserError: there are no labelled training or no labelled test images.
    """
    labelled_split(table, "knn", source)
    space = choose_space(table, device=device)
    found = vote_on_table(table, source, device=device, unit=space.unit)
    return WhitenedVote(found.accuracy, found.interval, space.exponent, space.n_chosen_on)


def vote_on_table(
    table: Embeddings,
    source: str = "the table",
    k: int = VOTERS,
    device: torch.device | None = None,
    unit: Unit = PLAIN,
) -> NeighbourVote:
    """Let the labelled training images of a table vote on its labelled test images.

    Args:
        table: the embeddings.
        source: the name of the images, for error messages.
        k: voters for each test image; all training images if there are fewer.
        device: as in `knn_accuracy`.
        unit: as in `knn_accuracy`.

    Raises:
        UserError: there are no labelled training or no labelled test images.
    """
    train, test = labelled_split(table, "knn", source)
    tensors = (train.features, train.labels, test.features, test.labels)
    return knn_accuracy(*tensors, k=min(k, len(train)), device=device, unit=unit)


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = VOTERS,
    temperature: float = 0.1,
    device: torch.device | None = None,
    unit: Unit = PLAIN,
) -> NeighbourVote:
    """Let the k nearest training rows by cosine vote, each with weight exp(cosine / temperature).

    All tensors lie on one device. Beyond 300,000 training rows and with the extra `index`,
    `clustered_search` may leave out some of the nearest, and says so.

    Args:
        train_features: (n, f).
        train_labels: (n,) int64, 0 or more.
        test_features: (m, f).
        test_labels: (m,) int64, 0 or more.
        k: number of voters, at most n.
        temperature: above 0. k = 20 and 0.1 suit small data sets; Wu et al. use 200 and 0.07.
        device: which compares the rows, block by block; None: that of the tensors.
        unit: what brings rows to length 1 before they are compared, as in `neighbours.top_k`.

    Raises:
        UserError: a row has no label or features that are not finite, or k or temperature are out
            of range.
    """
    tensors = {"train_features": train_features, "train_labels": train_labels}
    tensors |= {"test_features": test_features, "test_labels": test_labels}
    for name, x in tensors.items():
        check_tensor(name, x)
    _check(train_features, train_labels, k, len(train_features), temperature)
    _check(test_features, test_labels, k, len(train_features), temperature)
    found = find_neighbours(test_features, train_features, k, device, unit)
    names, named = train_labels.unique(return_inverse=True)  # a label may be any whole number
    predictions = names[vote(found.similarity, named[found.index], len(names), temperature)]
    correct, total = int((predictions == test_labels).sum()), len(test_labels)
    return NeighbourVote(
        accuracy=correct / total,
        interval=wilson_interval(correct, total),
        predictions=predictions,
        k=k,
        temperature=temperature,
        n_train=len(train_features),
        search=found.search,
    )


def _check(features: Tensor, labels: Tensor, k: int, available: int, temperature: float) -> None:
    if len(features) != len(labels) or len(labels) == 0:
        raise UserError(
            f"kNN needs a label for each row, and there are {len(features)} rows and"
            f" {len(labels)} labels; add the missing ones."
        )
    if (labels < 0).any():
        raise UserError(
            f"kNN needs labels, and {int((labels < 0).sum())} of {len(labels)} rows have none; drop"
            " those rows."
        )
    if features.ndim != 2 or labels.is_floating_point():
        raise UserError(
            "kNN needs features (n, f) and whole numbers as labels (n,), not"
            f" {tuple(features.shape)} and {labels.dtype}; reshape or convert them."
        )
    if bad := rows_not_finite(features):
        raise UserError(
            f"features must be finite, and those of {bad} of {len(features)} rows are not; check"
            " whether the encoder has diverged."
        )
    if not is_whole(k) or not 1 <= k <= available:
        raise UserError(
            f"k is {k}, and there are {available} training rows; choose 1 <= k <= {available}."
        )
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise UserError(
            f"the vote's temperature must be a finite number above 0, not {temperature}; try 0.1."
        )
