"""Numbers that say how good directions and certainties are: tensors in, numbers out.

Means are over all rows unless a docstring says otherwise. Directions are unit vectors (n, d). A
certainty is any increasing scale: only its order counts, and equal values are treated as equal
(mean ranks), so no number here depends on the order of the rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths.inputs import (
    above,
    check_classes,
    check_columns,
    check_shares,
    check_table,
    check_values,
    checked_count,
)
from sureclr.maths.neighbours import top_k

BLOCK = 2048  # rows of a block of pairs: 32 MiB in float64


def alignment(first: Tensor, second: Tensor) -> float:
    """Return the mean of |mu_i - mu'_i|^2 over the pairs of views (n, d) of one image, in [0, 4].

    Wang & Isola 2020, eq. 3, alpha = 2.

    Raises:
        UserError: there are no pairs, the shapes differ, or a number is not finite.
    """
    _check_pairs(first, second)
    return float((first.double() - second.double()).square().sum(1).mean())


def uniformity(directions: Tensor, t: float = 2.0, block: int = BLOCK) -> float:
    """Return the log of the mean of exp(-t |mu_i - mu_j|^2) over pairs i != j, in [-4 t, 0].

    Wang & Isola 2020, eq. 4, in nats. Uniform directions in high dimension give about
    -2 t + 2 t^2 / d; 0 is a collapse to a point.

    Args:
        directions: (n, d), unit vectors only.
        t: the sharpness of the Gaussian potential.
        block: rows of a block of pairs. It changes memory, not the result.

    Raises:
        UserError: there are fewer than two directions, or they are not unit vectors.
    """
    check_table("directions", directions, 0)
    n, total = len(directions), 0.0
    if n < 2:
        raise UserError(
            f"uniformity is a mean over pairs, so it needs two directions or more, not {n}; add"
            " images."
        )
    above("t", t, 0)
    check_values({"directions": directions.double()})
    for start in range(0, n, block):
        rows = directions[start : start + block].double()
        for other in range(start, n, block):
            pairs = torch.exp(2 * t * (rows @ directions[other : other + block].double().T - 1))
            total += float(
                2 * pairs.sum() if other > start else pairs.sum() - pairs.diagonal().sum()
            )
    return math.log(total / (n * (n - 1)))


def effective_rank(features: Tensor, block: int = BLOCK) -> float:
    """Return exp of the entropy of the singular values' shares, in [1, min(n, f)].

    RankMe (Garrido et al. 2023, eq. 1), not centred. It is computed from the eigenvalues of the
    smaller Gram matrix in float64, summed by blocks, without a float64 copy of the features.

    Args:
        features: (n, f).
        block: rows of a block. It changes memory, not the result.

    Raises:
        UserError: there are no features, or one is NaN or infinite.
    """
    check_table("features", features)
    largest = max(abs(float(end)) for end in features.aminmax())
    scale = 1.0 if 1e-100 < largest < 1e100 or largest == 0 else largest  # for the squares
    tall = features if len(features) >= features.shape[1] else features.T
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=features.device)
    for rows in tall.split(block):
        gram.addmm_((rows.double() / scale).T, rows.double() / scale)
    share = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = share / share.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))


def instance_match(first: Tensor, second: Tensor) -> float:
    """Return how often the nearest view of the other side is a view's own partner, in [0, 1].

    The mean is over the 2n views, (n, d) and (n, d).

    Raises:
        UserError: there are no pairs, the shapes differ, or a number is not finite.
    """
    _check_pairs(first, second)
    own = torch.arange(len(first), device=first.device)
    hits = [
        (top_k(a, b, 1)[1][:, 0] == own).double().mean()
        for a, b in ((first, second), (second, first))
    ]
    return float(sum(hits) / 2)


def nearest_has_class(
    queries: Tensor, labels: Tensor, keys: Tensor | None = None, key_labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return whether the nearest neighbour has the right class, and how similar it is.

    Args:
        queries: (q, d), of any length.
        labels: (q,), the classes of the queries.
        keys: (n, d), among which the neighbour is sought. Default: the other queries.
        key_labels: (n,), the classes of the keys.

    Returns:
        `correct` (q,) bool, and the cosine (q,), the baseline for any learned certainty.

    Raises:
        UserError: a row has no label, or `top_k` refuses the rows.
    """
    for name, x, of in (("labels", labels, queries), ("key_labels", key_labels, keys)):
        if x is not None and of is not None and len(x) != len(of):
            raise UserError(
                f"{name} must have one label for each row, and there are {len(of)} rows and"
                f" {len(x)} labels; add the missing ones."
            )
    if keys is None or key_labels is None:
        similarity, index = top_k(queries, queries, 1, exclude_self=True)
        return labels[index[:, 0]] == labels, similarity[:, 0]
    similarity, index = top_k(queries, keys, 1)
    return key_labels[index[:, 0]] == labels, similarity[:, 0]


def r_auroc(
    certainty: Tensor,
    queries: Tensor,
    labels: Tensor,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
) -> float:
    """Return the AUROC of a certainty for "the nearest neighbour has the right class".

    URL benchmark, Kirchhof et al. 2023, which seeks the neighbour among the queries.

    Args:
        certainty: (q,), of the queries.
        queries: (q, d), and all further arguments, as for `nearest_has_class`.
        labels: (q,).
        keys: (n, d).
        key_labels: (n,).
    """
    return auroc(certainty, nearest_has_class(queries, labels, keys, key_labels)[0])


def auroc(score: Tensor, positive: Tensor) -> float:
    """Return P(a positive has a higher score than a negative) + P(equal) / 2.

    This is Mann and Whitney's U over the number of pairs. NaN if one of the two kinds is absent.

    Args:
        score: (n,), finite.
        positive: (n,) bool.

    Raises:
        UserError: a score is not finite, or there is not one truth value for each score.
    """
    check_columns(score=score, positive=positive)
    check_shares("positive", positive)
    positive = positive.bool()
    p, n = int(positive.sum()), int((~positive).sum())
    if p * n == 0:
        return math.nan
    return (float(ranks(score)[positive].sum()) - p * (p + 1) / 2) / (p * n)


def auroc_interval(
    score: Tensor, positive: Tensor, z: float = 1.959963984540054
) -> tuple[float, float]:
    """Return DeLong's (1988) interval of `auroc`, 95 % by default, cut to [0, 1].

    The variance of the area is that of the positives' mean share of negatives below them over p,
    and that of the negatives' mean share of positives above them over n, where equal scores count
    half. NaN if there are fewer than two of one of the two kinds.

    Args:
        score: (n,), finite.
        positive: (n,) bool.
        z: the normal quantile of the confidence.

    Raises:
        UserError: as `auroc`, or z is not above 0.
    """
    area, positive = auroc(score, positive), positive.bool()
    above("z", z, 0)
    p, n = int(positive.sum()), int((~positive).sum())
    if min(p, n) < 2:
        return math.nan, math.nan
    among_all = ranks(score)
    below = (among_all[positive] - ranks(score[positive])) / n  # (p,) share of the negatives
    over = (among_all[~positive] - ranks(score[~positive])) / p  # (n,) share of positives below
    half = z * math.sqrt(float(below.var()) / p + float(over.var()) / n)
    return max(0.0, area - half), min(1.0, area + half)


def risk_coverage(certainty: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coverages k / n and the error rates among the k surest rows, k = 1..n, (n,) each.

    El-Yaniv & Wiener 2010. Rows of equal certainty are taken in random order, in expectation: each
    counts with the mean error of its group.

    Raises:
        UserError: a certainty is not finite, or there is not one truth value for each.
    """
    check_columns(certainty=certainty, correct=correct)
    check_shares("correct", correct)
    _, group = certainty.unique(return_inverse=True)
    error = 1 - correct.to(torch.float64)
    mean = error.new_zeros(int(group.max()) + 1).scatter_add_(0, group, error) / group.bincount()
    k = torch.arange(1, len(error) + 1, dtype=torch.float64, device=error.device)
    return k / len(error), mean[group.sort(descending=True).values].cumsum(0) / k


def aurc(certainty: Tensor, correct: Tensor) -> float:
    """Return the area under the risk-coverage curve, in [0, 1]; lower is better.

    It is the mean of the curve's n risks (Geifman et al. 2019).
    """
    return float(risk_coverage(certainty, correct)[1].mean())


def spearman(first: Tensor, second: Tensor) -> float:
    """Return Spearman's rank correlation of (n,) and (n,), with mean ranks for equal values.

    NaN if one of them is constant.

    Raises:
        UserError: a value is not finite, or the lengths differ.
    """
    check_columns(first=first, second=second)
    a, b = (r - r.mean() for r in (ranks(first), ranks(second)))
    scale = float((a.square().sum() * b.square().sum()).sqrt())
    return float((a * b).sum()) / scale if scale > 0 else math.nan


def ranks(values: Tensor) -> Tensor:
    """Return the ranks from 1 of (n,) values, float64; equal values share their mean rank.

    Raises:
        UserError: a value is not finite, or there is none.
    """
    check_columns(values=values)
    _, group, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    mean: Tensor = last - (count.double() - 1) / 2
    return mean[group]


@dataclass(frozen=True)
class Calibration:
    """Predicted against observed values, by bins of the prediction; empty bins are left out.

    Attributes:
        count: (b,), rows in the bin.
        predicted: (b,), means of the predictions in the bin.
        observed: (b,), means of the observations in the bin.
        error: mean over rows of |predicted - observed| of their bin, so a bin weighs its count.
    """

    count: Tensor
    predicted: Tensor
    observed: Tensor
    error: float


def calibration_by_bins(
    predicted: Tensor,
    observed: Tensor,
    bins: int = 10,
    binning: Literal["count", "width"] = "count",
) -> Calibration:
    """Compare predictions with observations in bins of the prediction.

    Used for the model's own test: E[cosine of two views | r] = r (theory 2).

    Args:
        predicted: (n,), for example r.
        observed: (n,), for example the cosine.
        bins: how many.
        binning: "count", the default: bins of equal count, since radii crowd together and bins of
            equal width would be empty or huge; equal predictions share a bin. "width": bins of
            equal width between the smallest and the largest prediction.

    Raises:
        UserError: a value is not finite, the lengths differ, or there is no such binning.
    """
    check_columns(predicted=predicted, observed=observed)
    checked_count("bins", bins)
    if binning not in ("count", "width"):
        raise UserError(f"binning must be count or width, and is {binning!r}; choose one of them.")
    if binning == "count":
        position = (ranks(predicted) - 0.5) / len(predicted)
    else:
        low, high = predicted.double().aminmax()
        width = (high - low).clamp_min(torch.finfo(torch.float64).tiny)
        position = (predicted.double() - low) / width
    return _table(position, predicted, observed, bins)


def ece(probabilities: Tensor, target: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error of the most likely class (Guo et al. 2017), in [0, 1].

    Args:
        probabilities: (n, K), rows sum to 1.
        target: (n,) int64, the right column; -1 where there is none, and every answer is wrong.
        bins: of equal width in [0, 1].

    Raises:
        UserError: a row is no distribution, or a target no column.
    """
    check_table("probabilities", probabilities)
    check_shares("probabilities", probabilities)
    if ((probabilities.double().sum(1) - 1).abs() > 0.01).any():
        raise UserError("each row of probabilities must sum to 1; apply a softmax first.")
    check_columns(target=target, rows_of_probabilities=probabilities[:, 0])
    check_classes("target", target.where(target != -1, 0), probabilities.shape[1])
    checked_count("bins", bins)
    confidence, guess = probabilities.double().max(1)
    return _table(confidence, confidence, guess == target, bins).error


def monotone_map(score: Tensor, outcome: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit the increasing map score -> E[outcome] by least squares (isotonic regression).

    Fit it on held-out rows and apply it to others: a score on an arbitrary scale becomes a
    calibrated probability or cosine. Beyond the fitted scores the map is constant.

    Args:
        score: (n,).
        outcome: (n,).

    Returns:
        a function of (m,) scores.

    Raises:
        UserError: a value is not finite, or the lengths differ.
    """
    check_columns(score=score, outcome=outcome)
    from sklearn.isotonic import IsotonicRegression  # imported late: it takes 1.4 s

    model = IsotonicRegression(out_of_bounds="clip").fit(
        score.cpu().double().numpy(), outcome.cpu().double().numpy()
    )
    return lambda new: torch.from_numpy(model.predict(new.cpu().double().numpy())).to(new.device)


@dataclass(frozen=True)
class ClassCounts:
    """How a classifier did on the rows of each of K classes. A share without rows is NaN.

    Attributes:
        rows: (K,) int64, rows of the class.
        named: (K,) int64, rows that are given the class.
        right: (K,) int64, rows of the class that are given it.
        mistakes: (p, 2) int64, the pairs of a true and another, predicted class that occur, the
            commonest first.
        mistaken: (p,) int64, how many rows each pair has.
    """

    rows: Tensor
    named: Tensor
    right: Tensor
    mistakes: Tensor
    mistaken: Tensor

    @property
    def recall(self) -> Tensor:
        """(K,) float64, the share of a class's rows that are given it: its accuracy."""
        return self.right.double() / self.rows

    @property
    def precision(self) -> Tensor:
        """(K,) float64, the share of the rows given a class that are of it."""
        return self.right.double() / self.named

    @property
    def f1(self) -> Tensor:
        """(K,) float64, the harmonic mean of recall and precision; 0 where one of them is NaN."""
        return 2 * self.right.double() / (self.rows + self.named)

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have rows."""
        return float(self.recall[self.rows > 0].mean())

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have rows or are given to one."""
        return float(self.f1[(self.rows + self.named) > 0].mean())


def count_classes(truth: Tensor, predicted: Tensor, classes: int) -> ClassCounts:
    """Count how often rows of each class are given each class.

    Args:
        truth: (n,) int64 in 0..classes - 1.
        predicted: (n,) int64 in 0..classes - 1.
        classes: K. No K x K table is made, so there may be many.

    Raises:
        UserError: there are no rows, the lengths differ, or a class lies outside 0..classes - 1.
    """
    check_columns(truth=truth, predicted=predicted)
    for name, labels in (("truth", truth), ("predicted", predicted)):
        check_classes(name, labels, classes)
    truth, predicted = truth.cpu().long(), predicted.cpu().long()
    pairs, count = (classes * truth + predicted).unique(return_counts=True)
    pairs = torch.stack([pairs // classes, pairs % classes], 1)
    wrong = pairs[:, 0] != pairs[:, 1]
    order = count[wrong].argsort(descending=True, stable=True)
    return ClassCounts(
        rows=truth.bincount(minlength=classes),
        named=predicted.bincount(minlength=classes),
        right=truth[truth == predicted].bincount(minlength=classes),
        mistakes=pairs[wrong][order],
        mistaken=count[wrong][order],
    )


Verdict = Literal["better", "worse", "no difference found"]


def verdict(interval: tuple[float, float], other: tuple[float, float]) -> Verdict:
    """Say whether what has the first interval is better or worse than what has the other.

    A difference counts as found where the intervals do not overlap, which asks for more than a test
    of the difference at the same level.

    >>> verdict((0.284, 0.392), (0.515, 0.627))
    'worse'
    """
    if interval[0] > other[1]:
        return "better"
    return "worse" if interval[1] < other[0] else "no difference found"


def wilson_interval(
    successes: int, trials: int, z: float = 1.959963984540054
) -> tuple[float, float]:
    """Return Wilson's (1927) interval of a rate, 95 % by default.

    It lies inside [0, 1], and is useful at rates of 0 and 1 too.

    Args:
        successes: how many trials succeeded.
        trials: how many there were, at least 1.
        z: the normal quantile of the confidence.

    Raises:
        UserError: there are no trials, successes lie outside [0, trials], or z is not above 0.
    """
    if not 1 <= trials < math.inf or not 0 <= successes <= trials:
        raise UserError(
            f"a rate needs 0 <= successes <= trials and a trial, not {successes} of {trials}; count"
            " them again."
        )
    above("z", z, 0)
    rate, shrink = successes / trials, 1 + z * z / trials
    middle = (rate + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, middle - half)  # exactly, whatever the rounding
    return low, 1.0 if successes == trials else min(1.0, middle + half)


def _check_pairs(first: Tensor, second: Tensor) -> None:
    """Raise a `UserError` unless both are finite tables of one shape, with a row or more."""
    check_table("first", first)
    check_table("second", second)
    if first.shape != second.shape:
        raise UserError(
            f"first and second must have one shape, and have {tuple(first.shape)} and"
            f" {tuple(second.shape)}; row i of both must show the same image."
        )


def _table(position: Tensor, predicted: Tensor, observed: Tensor, bins: int) -> Calibration:
    """Rows with position in [i / bins, (i + 1) / bins) make bin i; the last includes 1."""
    index = (position * bins).long().clamp(0, bins - 1)
    sums = torch.zeros(3, bins, dtype=torch.float64, device=index.device)
    rows = torch.stack([torch.ones_like(position), predicted.double(), observed.double()])
    sums.index_add_(1, index, rows.double())
    count, p, o = sums[:, sums[0] > 0]
    return Calibration(count.long(), p / count, o / count, float((p - o).abs().sum() / count.sum()))
