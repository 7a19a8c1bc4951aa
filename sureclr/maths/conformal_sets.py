"""Prediction sets that contain the right class as often as asked: split conformal prediction.

    rule = calibrate_sets(probabilities, target, coverage=0.9)  # of images that nobody learned from
    rule.contains(new_probabilities)                            # (m, K) bool: the sets of others

A class is in an image's set if its probability p is high enough, compared with the probabilities
that the right classes of n calibration images have (Vovk, Gammerman and Shafer 2005; Sadinle, Lei
and Wasserman 2019). If the image and the calibration images are exchangeable (in any order they are
equally likely, as images drawn alike are), the set contains the right class with a probability of
at least the coverage, and of at most coverage + 1 / (n + 1) where no two scores are equal, however
wrong the probabilities are. No model needs to be true.

The score is -log p, which orders classes as 1 - p does. Of all rules with a given coverage it gives
the smallest sets if the probabilities are right (Sadinle et al., theorem 1), it draws nothing at
random, and its sets may be empty, which says that no class is probable enough. Adaptive sets (APS,
Romano, Sesia and Candes 2020) spread the mistakes more evenly over easy and hard images, but either
draw a random number for each image or cover more than was asked; here a threshold for each class
evens out the classes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths.inputs import check_classes, check_columns, check_shares, check_table

# -log p is rounded to so many decimals: equal probabilities may differ by the rounding of another
# order of summation, which must not decide. Any function of the images keeps the guarantee
DECIMALS = 6
# A class has a threshold of its own from this number of calibration images over 1 - coverage. The
# excess of its coverage is then at most a tenth of 1 - coverage, and at .9 the coverage of one
# calibration has the standard deviation sqrt(.9 .1 / 102) = .03 (Vovk 2012)
EXCESS = 10


@dataclass(frozen=True, eq=False)
class SetRule:
    """Which classes are in the set of an image.

    Attributes:
        coverage: what was asked for.
        thresholds: (K,) float64 nats; a class is in the set if -log p is at most its threshold.
            Infinite where too few images were there, and the class is then in every set.
        images: (K,) int64, calibration images that a class's threshold rests on.
        alone: (K,) bool, whether these are all of the class itself, so that the coverage holds for
            the images of this class alone.
    """

    coverage: float
    thresholds: Tensor
    images: Tensor
    alone: Tensor

    def contains(self, probabilities: Tensor) -> Tensor:
        """Return which classes are in the set of each image, (m, K) bool.

        Args:
            probabilities: (m, K), rows sum to 1.

        Raises:
            UserError: a row is no distribution over these K classes.
        """
        _check_distributions(probabilities)
        if probabilities.shape[1] != len(self.thresholds):
            raise UserError(
                f"probabilities must have {len(self.thresholds)} columns, one for each class of"
                f" the calibration, and have {probabilities.shape[1]}; use the same classifier."
            )
        return _score(probabilities) <= self.thresholds


def least_images(coverage: float) -> int:
    """Return the fewest calibration images with which a coverage can be had: ceil(c / (1 - c)).

    With fewer, only the set of all classes has the coverage.

    >>> least_images(0.9), least_images(0.95), least_images(0.5)
    (9, 19, 1)
    """
    check_coverage(coverage)
    return max(1, math.ceil(round(coverage / (1 - coverage), 9)))


def enough_for_a_class(coverage: float) -> int:
    """Return from how many calibration images on a class has a threshold of its own.

    >>> enough_for_a_class(0.9), enough_for_a_class(0.99)
    (100, 1000)
    """
    check_coverage(coverage)
    return math.ceil(round(EXCESS / (1 - coverage), 9))


def check_coverage(coverage: float) -> None:
    """Raise a `UserError` unless the coverage lies between 0 and 1."""
    if isinstance(coverage, bool) or not 0 < coverage < 1:
        raise UserError(
            f"coverage must be a share above 0 and below 1, and is {coverage}; try 0.9."
        )


def calibrate_sets(
    probabilities: Tensor, target: Tensor, coverage: float, enough: int | None = None
) -> SetRule:
    """Return the rule whose sets contain the right class with this probability.

    Classes with enough calibration images have a threshold of their own (Mondrian conformal
    prediction, Vovk et al. 2005, section 4.5): the coverage then holds for the images of each of
    them alone. All other classes share a threshold from the images of them all; if these are not
    enough either, the classes with the fewest images join them. For a candidate class the counts
    are those with the new image among them, as if it were of that class, so that calibration images
    and new image are treated alike, which the guarantee needs.

    Args:
        probabilities: (n, K), rows sum to 1, of images that neither the encoder nor the classifier
            learned from.
        target: (n,) int64, the right column of each.
        coverage: between 0 and 1.
        enough: images from which a class has its own threshold. Default: `enough_for_a_class`.

    Raises:
        UserError: the coverage or a number does not fit, or there are fewer than `least_images`.
    """
    check_coverage(coverage)
    _check_distributions(probabilities)
    if len(target) != len(probabilities):
        raise UserError(
            f"there must be a target for each row of probabilities, and there are {len(target)} and"
            f" {len(probabilities)}; add the missing ones."
        )
    if len(target) < (least := least_images(coverage)):
        raise UserError(
            f"a coverage of {coverage:g} needs {least:,} calibration images or more, and there"
            f" {'is' if len(target) == 1 else 'are'} {len(target):,}; label more images, or ask for"
            " a lower coverage."
        )
    check_columns(target=target)
    check_classes("target", target, probabilities.shape[1])
    scores = _score(probabilities).gather(1, target[:, None])[:, 0]
    counts = target.bincount(minlength=probabilities.shape[1])
    enough = enough_for_a_class(coverage) if enough is None else enough
    found: dict[tuple[bool, ...], float] = {}
    thresholds, images, alone = [], [], []
    for k in range(len(counts)):
        group = _group_of(k, counts, enough)
        key = tuple(group.tolist())
        if key not in found:
            found[key] = _quantile(scores[group[target]], coverage)
        thresholds.append(found[key])
        images.append(int(counts[group].sum()))
        alone.append(int(group.sum()) == 1)
    return SetRule(
        coverage,
        torch.tensor(thresholds, dtype=torch.float64),
        torch.tensor(images),
        torch.tensor(alone),
    )


def _group_of(k: int, counts: Tensor, enough: int) -> Tensor:
    """Return which classes share the threshold of class k, (K,) bool.

    The partition of the classes depends on the counts with the new image among those of class k,
    and on nothing else that distinguishes it.
    """
    counts = counts.clone()
    counts[k] += 1
    by_count = counts.argsort(stable=True)
    shared = int((counts < enough).sum())  # the first of these have too few
    if shared == 0:
        return torch.arange(len(counts)) == k
    together = counts[by_count].cumsum(0)
    reached = (together >= enough).nonzero()[:, 0]
    shared = max(shared, int(reached[0]) + 1) if len(reached) else len(counts)
    pool = torch.zeros(len(counts), dtype=torch.bool)
    pool[by_count[:shared]] = True
    return pool if pool[k] else torch.arange(len(counts)) == k


def _quantile(scores: Tensor, coverage: float) -> float:
    """Return the ceil((n + 1) coverage)-th smallest score; infinity where there is none."""
    n = len(scores)
    place = math.ceil(round((n + 1) * coverage, 9))
    return float(scores.sort().values[place - 1]) if place <= n else math.inf


def _score(probabilities: Tensor) -> Tensor:
    """Return -log p in nats, (n, K) float64, rounded; infinite where p is 0."""
    return -probabilities.double().log().round(decimals=DECIMALS)


def _check_distributions(probabilities: Tensor) -> None:
    check_table("probabilities", probabilities, 0)
    check_shares("probabilities", probabilities)
    if ((probabilities.double().sum(1) - 1).abs() > 0.01).any():
        raise UserError("each row of probabilities must sum to 1; apply a softmax first.")
