"""Principal axes of features, and distances that weigh them (theory 9, 10).

Cosines of raw features are ruled by the few axes of largest variance. Partially whitened rows,

    w = V lambda^-a V^T (x - mean),    scaled to length 1,

lie between the cosine of centred features (a = 0) and the Mahalanobis cosine (a = 1/2). How far a
row is from all training rows is told by the Mahalanobis distance, the length of w at a = 1/2. Both
raise small eigenvalues lambda to a share of the largest one: with fewer rows than columns, most
of them are zero up to rounding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths.inputs import check_table
from sureclr.maths.neighbours import Unit
from sureclr.maths.sphere import at_least_float32, unit_rows

LEAST_SHARE = 1e-4  # of the largest eigenvalue, to which smaller ones are raised
# Variance along an axis that is rounding: numbers of unit rows have an error of 1e-7 in float32
ROUNDING = 1e-14
ROWS_AT_ONCE = 1024  # whose features exist in float64 at the same time


@dataclass(frozen=True, eq=False)
class PrincipalAxes:
    """Mean and covariance of rows (n, f), decomposed.

    Attributes:
        mean: (f,) float64.
        variance: (f,) float64 along each axis, divided by n, the largest first.
        axes: (f, f) float64, unit axes as rows. The largest entry of each is positive.
        of_unit_rows: whether rows are scaled to length 1 before anything else.
    """

    mean: Tensor
    variance: Tensor
    axes: Tensor
    of_unit_rows: bool = False

    def whitening(self, exponent: float) -> Unit:
        """Return the function from features (m, f) to partially whitened rows (m, f) of length 1.

        The rows are computed in float32 (float64 for float64), on the device of the features. A
        row that equals the mean becomes zeros, whose cosine with everything is 0. The function
        takes finite rows.

        Args:
            exponent: a, from 0 (the cosine of centred features) to 1/2 (the Mahalanobis cosine).

        Raises:
            UserError: the exponent is out of range.
        """
        if not isinstance(exponent, int | float) or not 0 <= exponent <= 0.5:
            raise UserError(
                f"the exponent of partial whitening must lie between 0 and 0.5, not {exponent};"
                " try 0.25."
            )
        # Relative to the largest, so that the scale of the features changes nothing
        weight = self._raised(relative=True) ** -float(exponent)
        # Turned back: axes of equal variance are chosen at will, and rows must not depend on them
        across = (self.axes.T * weight) @ self.axes  # (f, f)

        def unit(features: Tensor) -> Tensor:
            x = unit_rows(features) if self.of_unit_rows else at_least_float32(features)
            return unit_rows((x - self.mean.to(x)) @ across.to(x))

        return unit

    def whitened(self, features: Tensor, exponent: float) -> Tensor:
        """Return the partially whitened rows of length 1, (m, f); see `whitening`.

        Args:
            features: (m, f).
            exponent: a in [0, 1/2].

        Raises:
            UserError: a number is not finite, there are other columns, or the exponent is out of
                range.
        """
        self._check(features)
        unit = self.whitening(exponent)
        return torch.cat([unit(rows) for rows in features.split(ROWS_AT_ONCE)])

    def distances(self, features: Tensor, block: int | None = None) -> Tensor:
        """Return the Mahalanobis distance of each row from the mean, (m,) float64, no unit.

        Args:
            features: (m, f).
            block: rows whose features exist in float64 together; None: 1,024.

        Raises:
            UserError: a number is not finite, or there are other columns.
        """
        self._check(features)
        across = (self.axes * self._raised()[:, None].rsqrt()).T  # (f, f)
        found = [
            torch.linalg.vector_norm((self._double(rows) - self.mean) @ across, dim=1)
            for rows in features.split(block or ROWS_AT_ONCE)
        ]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)

    def _raised(self, *, relative: bool = False) -> Tensor:
        """The variances (f,), small ones raised; relative: divided by the largest, none is 0."""
        largest = self.variance[0]
        if not relative:
            return self.variance.clamp_min(max(LEAST_SHARE * float(largest), ROUNDING))
        return (self.variance / torch.where(largest > 0, largest, 1)).clamp_min(LEAST_SHARE)

    def _double(self, features: Tensor) -> Tensor:
        rows = features.cpu().double()
        return unit_rows(rows) if self.of_unit_rows else rows

    def _check(self, features: Tensor) -> None:
        check_table("features", features, 0)
        if features.shape[1] != len(self.mean):
            raise UserError(
                f"features must have {len(self.mean)} columns, as those of which mean and"
                f" covariance are known, and have {features.shape[1]} columns; take both from the"
                " same encoder."
            )


def principal_axes(
    features: Tensor,
    *,
    of_unit_rows: bool = False,
    rows: Tensor | None = None,
    block: int | None = None,
) -> PrincipalAxes:
    """Return mean and covariance of features, decomposed, in float64 and in two passes.

    Args:
        features: (n, f), n at least 1.
        of_unit_rows: scale each row to length 1 first.
        rows: (m,) int64, those that count, m at least 1; None: all.
        block: rows that exist in float64 together; None: 1,024.

    Raises:
        UserError: there is no row, or a number is not finite.
    """
    check_table("features", features)
    chosen = torch.arange(len(features)) if rows is None else rows
    if len(chosen) == 0:
        raise UserError("mean and covariance need a row or more, and none is chosen.")
    mean = torch.zeros(features.shape[1], dtype=torch.float64)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    empty = PrincipalAxes(mean, mean, covariance, of_unit_rows)
    for some in chosen.split(block or ROWS_AT_ONCE):
        mean += empty._double(features[some]).sum(0)
    mean /= len(chosen)
    for some in chosen.split(block or ROWS_AT_ONCE):
        centred = empty._double(features[some]) - mean
        covariance.addmm_(centred.T, centred)
    variance, axes = torch.linalg.eigh(covariance / len(chosen))
    variance, axes = variance.flip(0).clamp_min(0), axes.T.flip(0).contiguous()
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return PrincipalAxes(mean, variance, axes * largest.sign(), of_unit_rows)
