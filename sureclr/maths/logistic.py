"""Multinomial logistic regression with an L2 penalty, for many strengths in one batch.

The objective, in nats, over n rows x of mean 0 a column, is

    J(W, b) = (1/n) sum_i -log softmax(W'x_i + b)[y_i] + (strength / 2) |W|^2,

and b is not penalised. This is scikit-learn's LogisticRegression with C = 1 / (n * strength), for
three classes or more. (For two, scikit-learn has one weight vector, the difference of our two
columns: C = 2 / (n * strength) gives the same model.)

The solver is L-BFGS (Nocedal & Wright 2006, algorithm 7.4) with an exact test of convergence. Three
things make it fast for this objective:

* The inverse Hessian starts from the Cholesky factor of (spread * feature covariance +
  strength I), its own form at W = 0.
* Along a direction the logits are linear in the step, so a line search costs no matrix product: an
  iteration has two, XD and X'R.
* All strengths of a call are one batch, which they leave as they converge: the two products serve
  all of them. A path from strong to weak (`minimise` with a start) is cheaper where it can stop.

Products with the features run in the features' precision (float32 or float64), all else in float64.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths.inputs import (
    above,
    check_classes,
    check_columns,
    check_floating,
    check_table,
    checked_count,
)
from sureclr.maths.sphere import at_least_float32, scale_for_squares

MEMORY = 20  # L-BFGS pairs kept; each is as small as the weights
# Rows x strengths x classes in one batch: 256 MiB in float32. More strengths are solved in turn
LOGITS_AT_ONCE = 1 << 26
LARGEST_FEATURE = 1e9  # a standardised one is at most the root of the number of rows
DOUBLES_AT_ONCE = 1 << 22  # numbers that are turned into float64 together: 32 MiB
COVARIANCE_ROWS = 4  # rows per feature that the preconditioner uses
# The preconditioner is factored again when the spread has changed by this factor. Digits, strength
# 1e-6: 120 iterations, and more than 1,500 without following the spread; 2 or 4 is the same
DRIFT = 4.0


@dataclass(frozen=True)
class Solution:
    """The minimum of J for each of S strengths.

    Attributes:
        weight: (S, f, K) float64, for standardised features.
        bias: (S, K) float64.
        objective: (S,), J at the solution, nats.
        gradient: (S,), |grad J| divided by its value at W = 0, b = 0.
        iterations: of the whole batch.
        converged: (S,), whether gradient <= tolerance.
    """

    weight: Tensor
    bias: Tensor
    objective: Tensor
    gradient: Tensor
    iterations: int
    converged: Tensor


def blocks_of_rows(x: Tensor) -> Sequence[Tensor]:
    """Return views of some rows of x (n, f) each, few enough to be turned into float64."""
    blocks: Sequence[Tensor] = x.split(max(1, DOUBLES_AT_ONCE // x.shape[1]))
    return blocks


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (f,) of the rows (n, f), float32 or wider.

    The deviation is over n, not n - 1, and 1 for a constant column. A column is constant if its
    deviation is below the rounding of its mean: dividing by that would turn rounding into a
    feature. Columns of 1e30 and of 1e-30 come out right, though their squares do not fit.

    Raises:
        UserError: the features are not finite, or there are none.
    """
    check_table("features", features)
    features = at_least_float32(features)
    ends = torch.stack(features.aminmax(dim=0))  # whose largest absolute value is the column's
    scale = scale_for_squares(ends, 0)
    scaled = features if (scale == 1).all() else features / scale  # a copy only where it is needed
    variance, mean = torch.var_mean(scaled, dim=0, correction=0)
    deviation, mean = variance.sqrt() * scale[0], mean * scale[0]
    constant = deviation <= 10 * torch.finfo(deviation.dtype).eps * mean.abs()
    return mean, torch.where(constant, torch.ones_like(deviation), deviation)


def logistic_regression(
    x: Tensor,
    target: Tensor,
    strengths: Sequence[float],
    tolerance: float = 1e-6,
    max_iterations: int = 500,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Solution:
    """Minimise J for every strength at once; the module's docstring has objective and method.

    Args:
        x: (n, f), standardised features, float32 or float64; the preconditioner counts on columns
            of mean 0.
        target: (n,) int64 in [0, K), each class present.
        strengths: S numbers above 0.
        tolerance: stop when |grad J| <= tolerance * |grad J at 0|, for every strength.
        max_iterations: after which the solver stops without having converged.
        logits_at_once: rows x strengths x classes in one batch. It changes memory, not the result.

    Raises:
        UserError: features are not finite, or a number or a class does not fit.
    """
    _check(x, target, strengths, tolerance, max_iterations)
    at_once = max(1, logits_at_once // (len(x) * int(target.max() + 1)))
    groups = [strengths[i : i + at_once] for i in range(0, len(strengths), at_once)]
    parts = [
        minimise(LogisticObjective(x, target, group), tolerance, max_iterations) for group in groups
    ]
    names = ("weight", "bias", "objective", "gradient", "converged")
    return Solution(
        **{n: torch.cat([getattr(p, n) for p in parts]) for n in names},
        iterations=max(p.iterations for p in parts),
    )


def _check(
    x: Tensor,
    target: Tensor,
    strengths: Sequence[float],
    tolerance: float,
    max_iterations: int,
) -> None:
    """Raise a `UserError` that names the rule which an argument of the regression breaks."""
    check_floating("x", x)
    check_table("x", x)
    if (largest := max(map(abs, map(float, x.aminmax())))) > LARGEST_FEATURE:
        raise UserError(
            f"x must be standardised, and has numbers up to {largest:g}; subtract the mean and"
            " divide by the deviation that `standardisation` returns."
        )
    check_columns(target=target)
    if len(target) != len(x) or len(target.unique()) < 2:
        raise UserError(
            f"the regression needs a class for each row, and two classes or more; there are"
            f" {len(x)} rows and {len(target)} labels of {len(target.unique())} classes."
        )
    check_classes("target", target, len(target.unique()))
    check_penalty(strengths)
    above("tolerance", tolerance, 0)
    checked_count("max_iterations", max_iterations)


def check_penalty(strengths: Sequence[float]) -> None:
    """Raise a `UserError` unless there are strengths, all of them numbers that can be used."""
    if not strengths or isinstance(strengths, str):
        raise UserError(
            "logistic regression needs one or more strengths of its penalty, each above 0, not"
            f" {strengths!r}; try [0.01]."
        )
    for strength in strengths:
        above("strengths", strength, 0)


class LogisticObjective:
    """The objective J of the module's docstring, for S strengths.

    Parameters theta are (S, K, f + 1), float64, with the bias in the last column; logits z are
    (S, K, n), in x's type. Rows of x come last in z: at S K = 10 the two products run 2 and 6 times
    faster than their transposes, and a softmax over the second dimension 9 times faster than one
    over the last (measured, one core).
    """

    def __init__(self, x: Tensor, target: Tensor, strengths: Sequence[float]) -> None:
        """Compute the features' covariance and factor the first estimate of the Hessian.

        Args:
            x: (n, f), standardised features.
            target: (n,) int64 in [0, K), each class present.
            strengths: S numbers above 0.
        """
        self.x, self.target, self.classes = x, target, int(target.max()) + 1
        # Evenly spaced rows; a poor choice costs time, not exactness
        rows = x[:: max(1, len(x) // (COVARIANCE_ROWS * x.shape[1]))]
        self.covariance = (rows.T @ rows).double() / len(rows)
        self._set_strengths(strengths)

    def _set_strengths(self, strengths: Sequence[float]) -> None:
        numbers = torch.tensor(strengths, dtype=torch.float64, device=self.x.device)
        self.strength = numbers[:, None, None]
        self.spread = torch.full_like(self.strength, torch.inf)
        self.aim(self.x.new_zeros(len(strengths), self.classes, 1))

    def with_strengths(self, strengths: Sequence[float]) -> "LogisticObjective":
        """Return the objective for other strengths, without the work for the covariance."""
        other = copy(self)
        other._set_strengths(strengths)
        return other

    def aim(self, z: Tensor) -> None:
        """Factor the Hessian's estimate where the spread has changed by a factor of DRIFT.

        The estimate is spread * covariance + strength I. The spread of p = softmax(z) is the mean
        over rows of sum_k p_k (1 - p_k) / (K - 1). At z = 0 it is 1 / K and the estimate is exact
        (on weights that sum to 0 over the classes); as the model becomes sure it falls by orders of
        magnitude.
        """
        unsure = (1 - z.softmax(1).square().sum(1)).mean(1, dtype=torch.float64)[:, None, None]
        spread = (unsure / (self.classes - 1)).clamp_min(1e-12)
        if ((spread / self.spread).log().abs() > log(DRIFT)).any():
            self.spread, self.factor = spread, self._factored(spread)

    def _factored(self, spread: Tensor) -> Tensor:
        """The Cholesky factor of the estimate, lifted where rounding has made it indefinite.

        Where rows are fewer than columns, or columns repeat each other, the rounding of the
        covariance's product can outweigh a weak penalty. Lifting costs time, not exactness.
        """
        estimate = spread * self.covariance
        estimate.diagonal(dim1=1, dim2=2).add_(self.strength[:, :, 0])
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(estimate)
        if failed.any():
            # The trace is above the largest eigenvalue
            rounding = 4 * torch.finfo(self.x.dtype).eps * self.covariance.trace()
            estimate.diagonal(dim1=1, dim2=2).add_((rounding * spread)[:, :, 0])
            factor = torch.linalg.cholesky(estimate)
        return factor

    def only(self, keep: Tensor) -> "LogisticObjective":
        """Return the objective for some of the strengths; keep: (S,) bool."""
        part = copy(self)
        part.strength, part.spread, part.factor = (
            self.strength[keep],
            self.spread[keep],
            self.factor[keep],
        )
        return part

    def precondition(self, gradient: Tensor) -> Tensor:
        """Return the inverse of the Hessian's estimate times (S, K, f + 1).

        The bias meets no other column, since those of x have mean 0.
        """
        weight = torch.cholesky_solve(gradient[:, :, :-1].mT, self.factor).mT
        return torch.cat([weight, gradient[:, :, -1:] / self.spread], 2)

    def logits(self, theta: Tensor) -> Tensor:
        """Return the logits by products in x's type, (S, K, n)."""
        theta = theta.to(self.x.dtype)
        product: Tensor = theta[:, :, :-1].flatten(0, 1) @ self.x.T
        return product.unflatten(0, theta.shape[:2]) + theta[:, :, -1:]  # type: ignore[no-any-return]

    def exact_logits(self, theta: Tensor) -> Tensor:
        """Return the logits by float64 products, rounded once, (S, K, n)."""
        blocks = [
            (theta[:, :, :-1].flatten(0, 1) @ rows.double().T).to(rows.dtype)
            for rows in blocks_of_rows(self.x)
        ]
        product = torch.cat(blocks, 1).unflatten(0, theta.shape[:2])
        return product + theta[:, :, -1:].to(self.x.dtype)  # type: ignore[no-any-return]

    def gradient(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return (softmax(z) - Y) X / n + strength W, (S, K, f + 1)."""
        residual = z.softmax(1)
        residual[:, self.target, self._rows] -= 1
        product = (residual.flatten(0, 1) @ self.x).unflatten(0, z.shape[:2])
        of_weight = product.double() / len(self.x)
        of_bias = residual.mean(2, keepdim=True, dtype=torch.float64)
        return torch.cat([of_weight + self.strength * theta[:, :, :-1], of_bias], 2)

    def value(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return J in nats, (S,)."""
        loss = z.logsumexp(1) - z[:, self.target, self._rows]
        weight = theta[:, :, :-1]
        penalty = self.strength.flatten() / 2 * _dot(weight, weight)
        return loss.mean(1, dtype=torch.float64) + penalty

    def along(
        self, theta: Tensor, direction: Tensor, z: Tensor, dz: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the first and second derivative of J(theta + step direction) in step, (S,) each.

        They need no product with x: the logits are z + step dz.
        """
        p = (z + step[:, None, None].to(z.dtype) * dz).softmax(1)
        mean = (p * dz).sum(1)  # (S, n), of dz under p
        slope = (mean - dz[:, self.target, self._rows]).mean(1, dtype=torch.float64)
        curvature = ((p * dz.square()).sum(1) - mean.square()).mean(1, dtype=torch.float64)
        w, d, strength = theta[:, :, :-1], direction[:, :, :-1], self.strength.flatten()
        length = _dot(d, d)
        return slope + strength * (_dot(w, d) + step * length), curvature + strength * length

    @property
    def _rows(self) -> Tensor:
        return torch.arange(len(self.x), device=self.x.device)


@dataclass
class _Descent:
    """The state of L-BFGS for the strengths that have not converged.

    `pairs` has the last MEMORY (step, change of gradient), (S, K, f + 1) each. The logits are
    carried along as z + step dz, and their rounding with them, so exact logits decide on
    convergence.
    """

    objective: LogisticObjective
    theta: Tensor
    z: Tensor
    gradient: Tensor
    pairs: list[tuple[Tensor, Tensor]]

    def step(self) -> None:
        """Move along the L-BFGS direction by one line search."""
        direction, before = (
            -lbfgs_direction(self.objective, self.gradient, self.pairs),
            self.gradient,
        )
        dz = self.objective.logits(direction)
        length = line_search(
            self.objective, self.theta, direction, self.z, dz, _dot(before, direction)
        )[:, None, None]
        self.theta = self.theta + length * direction
        self.z = self.z + length.to(dz.dtype) * dz
        self.gradient = self.objective.gradient(self.theta, self.z)
        self.objective.aim(self.z)
        self.pairs = [*self.pairs[1 - MEMORY :], (length * direction, self.gradient - before)]

    def refresh(self) -> None:
        """Replace the carried logits by exact ones, and the gradient by theirs."""
        self.z = self.objective.exact_logits(self.theta)
        self.gradient = self.objective.gradient(self.theta, self.z)

    def only(self, keep: Tensor) -> "_Descent":
        """The same for some of the strengths; keep: (S,) bool."""
        pairs = [(s[keep], y[keep]) for s, y in self.pairs]
        return _Descent(
            self.objective.only(keep), self.theta[keep], self.z[keep], self.gradient[keep], pairs
        )


def minimise(
    objective: LogisticObjective,
    tolerance: float,
    max_iterations: int,
    start: tuple[Tensor, Tensor] | None = None,
) -> Solution:
    """Minimise J by batched L-BFGS; a strength that has converged leaves the batch.

    Args:
        objective: J.
        tolerance: as in `logistic_regression`; relative to the gradient at 0 from any start.
        max_iterations: as in `logistic_regression`.
        start: weight (f, K) and bias (K,) from which every strength starts, such as the solution
            of a stronger penalty; None: 0.
    """
    theta = objective.x.new_zeros(
        len(objective.strength), objective.classes, objective.x.shape[1] + 1, dtype=torch.float64
    )
    run, iterations = _Descent(objective, theta.clone(), theta, theta, []), 0
    left = torch.arange(len(theta), device=theta.device)
    run.refresh()
    enough = tolerance * _norm(run.gradient)
    if start is not None:
        run.theta = torch.cat([start[0].T, start[1][:, None]], 1).expand_as(theta).clone()
        run.refresh()
        run.objective.aim(run.z)
    while len(left) and iterations < max_iterations:
        if (_norm(run.gradient) <= enough[left]).any():
            run.refresh()
            keep = _norm(run.gradient) > enough[left]
            theta[left[~keep]] = run.theta[~keep]
            run, left = run.only(keep), left[keep]
        if len(left):
            run.step()
            iterations += 1
    theta[left] = run.theta
    z = objective.exact_logits(theta)
    norm, value = _norm(objective.gradient(theta, z)), objective.value(theta, z)
    return Solution(
        theta[:, :, :-1].mT,
        theta[:, :, -1],
        value,
        norm * tolerance / enough,
        iterations,
        norm <= enough,
    )


def lbfgs_direction(
    objective: LogisticObjective, gradient: Tensor, pairs: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Return the inverse Hessian's estimate times the gradient, (S, K, f + 1).

    These are the two loops of Nocedal & Wright, algorithm 7.4, for each strength.

    Args:
        objective: whose preconditioner starts the estimate.
        gradient: (S, K, f + 1).
        pairs: the last steps and changes of the gradient, (S, K, f + 1) each. A pair without
            positive curvature is left out.
    """
    weights = []
    for s, y in reversed(pairs):
        rho = _inverse(_dot(s, y))
        alpha = rho * _dot(s, gradient)
        weights.append((s, y, rho, alpha))
        gradient = gradient - alpha[:, None, None] * y
    result = objective.precondition(gradient)
    for s, y, rho, alpha in reversed(weights):
        result = result + (alpha - rho * _dot(y, result))[:, None, None] * s
    return result


def line_search(
    objective: LogisticObjective,
    theta: Tensor,
    direction: Tensor,
    z: Tensor,
    dz: Tensor,
    slope_at_0: Tensor,
) -> Tensor:
    """Return steps with |slope| <= |slope at 0| / 10, (S,), by Newton in a bracket.

    J is convex, so the slope's sign says on which side the minimum is. Slopes alone decide (the
    approximate Wolfe conditions of Hager & Zhang 2005): near the minimum, differences of J are
    rounding.

    Args:
        objective: J.
        theta: (S, K, f + 1), where the search starts.
        direction: (S, K, f + 1).
        z: (S, K, n), the logits at theta.
        dz: (S, K, n), the change of the logits along the direction.
        slope_at_0: (S,), the slope of J along the direction at theta, below 0.
    """
    step, low = torch.ones_like(slope_at_0), torch.zeros_like(slope_at_0)
    high = torch.full_like(slope_at_0, torch.inf)
    for _ in range(30):
        slope, curvature = objective.along(theta, direction, z, dz, step)
        open_ = slope.abs() > 0.1 * slope_at_0.abs()
        if not open_.any():
            break
        low, high = torch.where(slope < 0, step, low), torch.where(slope < 0, high, step)
        newton = step - slope * _inverse(curvature)
        halfway = torch.where(high.isfinite(), (low + high) / 2, 2 * step)
        inside = torch.where((newton > low) & (newton < high), newton, halfway)
        step = torch.where(open_, inside, step)
    return step


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2))


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()


def _inverse(a: Tensor) -> Tensor:
    """1 / a, and 0 where rounding has made a curvature of the convex J not positive.

    So such a pair is left out.
    """
    return torch.where(a > 0, 1 / a, 0)
