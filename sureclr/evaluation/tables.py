"""What several evaluations compute from a table of embeddings alone, without a model."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError
from sureclr.evaluation.results import ClassNumbers, ClassScore, Confusion, Number
from sureclr.maths.losses import measured_dimension
from sureclr.maths.metrics import ClassCounts, count_classes, wilson_interval
from sureclr.maths.sphere import evidence, evidence_matrix

MATRIX = 200  # classes up to which the whole confusion matrix is kept
EVIDENCE_AT_ONCE = 1 << 18  # pairs of images whose evidence exists at once: 2 MiB an array
TOP = 20  # commonest confusions that are kept


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


def class_numbers(
    train_labels: Tensor,
    test_labels: Tensor,
    predictions: Tensor,
    classes: Sequence[str],
    matrix: int = MATRIX,
) -> ClassNumbers:
    """Return what a classifier did class by class.

    Args:
        train_labels: (n,) int64 indices into `classes`, what the classifier learned from.
        test_labels: (m,) int64, m at least 1.
        predictions: (m,) int64, the classes that it named.
        classes: names of all classes; those without a labelled image are left out.
        matrix: classes up to which the confusion matrix is a part of the numbers.
    """
    trained = train_labels.cpu().bincount(minlength=len(classes))
    counts = count_classes(test_labels, predictions, len(classes))
    common = int(trained.argmax())
    only_test, only_train = (trained == 0) & (counts.rows > 0), (trained > 0) & (counts.rows == 0)
    present = ((trained > 0) | (counts.rows > 0)).nonzero()[:, 0].tolist()
    return ClassNumbers(
        balanced_accuracy=counts.balanced_accuracy,
        macro_f1=counts.macro_f1,
        majority_class=classes[common],
        majority_baseline=int(counts.rows[common]) / len(test_labels),
        classes=tuple(_class_score(k, classes, trained, counts) for k in present),
        confusion=_confusion_matrix(counts, present) if len(present) <= matrix else None,
        top_confusions=tuple(
            Confusion(classes[truth], classes[named], count)
            for (truth, named), count in zip(
                counts.mistakes[:TOP].tolist(), counts.mistaken[:TOP].tolist(), strict=True
            )
        ),
        only_test=tuple(classes[k] for k in only_test.nonzero()[:, 0].tolist()),
        only_train=tuple(classes[k] for k in only_train.nonzero()[:, 0].tolist()),
    )


def _class_score(
    k: int, classes: Sequence[str], trained: Tensor, counts: ClassCounts
) -> ClassScore:
    rows = int(counts.rows[k])
    own = (counts.mistakes[:, 0] == k).nonzero()[:, 0][:1].tolist()  # the commonest comes first
    return ClassScore(
        name=classes[k],
        n_train=int(trained[k]),
        n_test=rows,
        accuracy=finite_or_none(counts.recall[k]),
        interval=wilson_interval(int(counts.right[k]), rows) if rows else None,
        precision=finite_or_none(counts.precision[k]),
        f1=finite_or_none(counts.f1[k]),
        taken_for=classes[int(counts.mistakes[own[0], 1])] if own else "",
        mistaken=int(counts.mistaken[own[0]]) if own else 0,
    )


def _confusion_matrix(counts: ClassCounts, present: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Rows are true classes, columns are named ones, of those that are present."""
    place = {k: i for i, k in enumerate(present)}
    cells = [[0] * len(present) for _ in present]
    for k, i in place.items():
        cells[i][i] = int(counts.right[k])
    for (truth, named), count in zip(
        counts.mistakes.tolist(), counts.mistaken.tolist(), strict=True
    ):
        cells[place[truth]][place[named]] = count
    return tuple(map(tuple, cells))


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


def evidence_in(table: Embeddings) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return a function that computes the evidence of pairs of images; None without a radius.

    Its arguments are rows (q,) of the table and, for each, k rows (q, k) of others; it returns
    (q, k) nats.
    """
    if table.radius is None:
        return None
    known, dimension = table.posterior, evidence_dimension(table)

    def nats(rows: Tensor, others: Tensor) -> Tensor:
        first, second = (
            known.part(rows.repeat_interleave(others.shape[1])),
            known.part(others.flatten()),
        )
        return evidence(first, second, dimension).view(others.shape)

    return nats


def evidence_against(queries: Embeddings, gallery: Embeddings, own: Tensor) -> Tensor | None:
    """Return log mean_j exp s(u, u_j), (q,) float32 nats; None without a radius (theory 9).

    It says how much more often than under the uniform law the images of a gallery expect the
    posterior of an image: whether an answer from its neighbours can be right.

    Args:
        queries: q images.
        gallery: n images of the same model.
        own: (q,) int64, the row of the gallery that an image is itself, or -1; it is left out.
    """
    if queries.radius is None or gallery.radius is None:
        return None
    dimension, n, known = evidence_dimension(gallery), len(gallery), gallery.posterior
    found = []
    for rows in torch.arange(len(queries)).split(max(1, EVIDENCE_AT_ONCE // max(n, 1))):
        part = queries.select(rows.numpy())
        nats = evidence_matrix(part.posterior, known, dimension).double()
        hit = own[rows] >= 0
        nats[hit.nonzero()[:, 0], own[rows][hit]] = -math.inf
        found.append(nats.logsumexp(1) - (n - hit.double()).log())
    return torch.cat(found).float()


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
