"""What several evaluations compute from a table of embeddings alone, without a model."""

import math
from collections.abc import Mapping

from torch import Tensor

from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError
from sureclr.evaluation.results import Number
from sureclr.maths.losses import measured_dimension


def labelled_split(
    table: Embeddings, evaluation: str, source: str
) -> tuple[Embeddings, Embeddings]:
    """Return the labelled training rows and the labelled test rows of a table.

    Args:
        table: the embeddings.
        evaluation: the name of the evaluation that needs them, for the error message.
        source: the name of the images, for the error message.

    Raises:
        UserError: one of the two parts has no labelled image.
    """
    train, test = table.labelled("train"), table.labelled("test")
    if len(train) == 0 or len(test) == 0:
        part = "training" if len(train) == 0 else "test"
        raise UserError(
            f"{evaluation} needs labels, and {source} has no labelled {part} images; put the"
            " images into one sub-folder per class (with train/ and test/ above them, or they are"
            " split at random), give a file of labels with labels=, or name labelled images with"
            " data=."
        )
    return train, test


def evidence_dimension(table: Embeddings, views: int = 1) -> float:
    """Return the dimension m of the kernel with which evidence is computed.

    It is that of the run's loss. A loss without a kernel has none; then m is measured from the
    table's directions (theory 3).

    Args:
        table: the embeddings.
        views: rows of each image: 1, or 2 if rows i and i + n are two views of image i.
    """
    if table.kernel_dimension:
        return table.kernel_dimension
    return float(measured_dimension(table.direction, views))


def mean_cosine_of_different_images(first: Tensor, second: Tensor) -> float:
    """Return the mean of first_i . second_j over i != j, from the sums of the rows, in O(n).

    Args:
        first: (n, d) unit vectors, one for each image.
        second: (n, d) unit vectors of the same images, for example of their second views, or
            `first` again.
    """
    n, a, b = len(first), first.double(), second.double()
    return float((a.sum(0) @ b.sum(0) - (a * b).sum()) / (n * (n - 1)))


def finite_or_none(value: float | Tensor | None) -> Number:
    """Return the number, or None where there is none: JSON has neither NaN nor infinity.

    >>> finite_or_none(0.5), finite_or_none(float("nan")), finite_or_none(None)
    (0.5, None, None)
    """
    return None if value is None or not math.isfinite(value) else float(value)


def finite_by_score(values: Mapping[str, float]) -> dict[str, Number]:
    """Return the numbers of all scores, None where one is not finite."""
    return {name: finite_or_none(value) for name, value in values.items()}


def finite_numbers(values: Tensor) -> tuple[Number, ...]:
    """Return the entries of a vector, None where one is not finite."""
    return tuple(finite_or_none(value) for value in values.tolist())
