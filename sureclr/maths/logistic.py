"""Multinomial logistic regression with an L2 penalty, many strengths in one batch, to an exact test
of convergence.

Objective, in nats, over n rows x of mean 0 a column:

    J(W, b) = (1/n) sum_i -log softmax(W'x_i + b)[y_i] + (strength / 2) |W|^2,     b not penalised

This is scikit-learn's LogisticRegression with C = 1 / (n * strength), for three classes or more.
(For two, scikit-learn keeps one weight vector, the difference of our two columns: C = 2 / (n *
strength) gives the same model.)

Solver: L-BFGS (Nocedal & Wright 2006, algorithm 7.4), with three things that make it fast for this
    objective:

* the inverse Hessian starts from the Cholesky factor of (spread * feature covariance + strength I),
its own form at W = 0;
* along a direction the logits are linear in the step, so a line search costs no matrix product: an
iteration has two, XD and X'R;
* all strengths are one batch, which they leave as they converge: the two products serve all of
them.

Products with the features run in their own precision (float32, or float64 if given), all else in
float64.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

MEMORY = 20  # L-BFGS pairs kept; each is as small as the weights
LOGITS_AT_ONCE = (
    1 << 26
)  # rows x strengths x classes in one batch: 256 MiB in float32; more strengths are solved in turn
ROWS_AT_ONCE = 8192  # turned into float64 at once
COVARIANCE_ROWS = 4  # rows per feature that the preconditioner looks at
# Digits, strength 1e-6: 120 iterations, more than 1,500 without following the spread; 2 or 4 is the
# same
DRIFT = 4.0


@dataclass(frozen=True)
class Solution:
    """The minimum of J for each of S strengths.

    Attributes:
        weight: (S, f, K) float64, for standardised features. bias: (S, K).
        objective: (S,) J at the solution, nats.
        gradient: (S,) |grad J| divided by its value at W = 0, b = 0.
        iterations: of the whole batch. converged: (S,) whether gradient <= tolerance.
    """

    weight: Tensor
    bias: Tensor
    objective: Tensor
    gradient: Tensor
    iterations: int
    converged: Tensor


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (f,) of the rows (over n, not n - 1), float32 or wider; the deviation of a
    constant column is 1.

    A column is constant if its deviation is below the rounding of its mean: dividing by that would
    turn rounding into a feature.
    """
    variance, mean = torch.var_mean(at_least_float32(features), dim=0, correction=0)
    deviation = variance.sqrt()
    constant = deviation <= 10 * torch.finfo(deviation.dtype).eps * mean.abs()
    return mean, torch.where(constant, torch.ones_like(deviation), deviation)


def logistic_regression(
    x: Tensor,
    target: Tensor,
    strengths: Sequence[float],
    tolerance: float = 1e-6,
    max_iterations: int = 500,
) -> Solution:
    """Minimise J for every strength at once (see the module's head for the objective and the
    method).

    Args:
        x: (n, f) standardised features, float32 or float64; the preconditioner counts on columns of
            mean 0.
        target: (n,) int64 in [0, K), each class present. strengths: S numbers > 0.
        tolerance: stop when |grad J| <= tolerance * |grad J at 0|, for every strength.
    """
    at_once = max(1, LOGITS_AT_ONCE // (len(x) * int(target.max() + 1)))
    groups = [strengths[i : i + at_once] for i in range(0, len(strengths), at_once)]
    parts = [_minimise(_Objective(x, target, group), tolerance, max_iterations) for group in groups]
    names = ("weight", "bias", "objective", "gradient", "converged")
    return Solution(
        **{n: torch.cat([getattr(p, n) for p in parts]) for n in names},
        iterations=max(p.iterations for p in parts),
    )


class _Objective:
    """J for S strengths. Parameters theta: (S, K, f + 1), float64, the bias in the last column.
    Logits z: (S, K, n), in x's type.

    Rows of x come last in z: at S K = 10 the two products run 2 and 6 times faster than their
        transposes, and a softmax over the
    second dimension 9 times faster than one over the last (measured, one core).
    """

    def __init__(self, x: Tensor, target: Tensor, strengths: Sequence[float]) -> None:
        self.x, self.target, self.classes = x, target, int(target.max()) + 1
        self.strength = torch.tensor(strengths, dtype=torch.float64, device=x.device)[:, None, None]
        rows = x[
            :: max(1, len(x) // (COVARIANCE_ROWS * x.shape[1]))
        ]  # evenly spaced; costs time, not exactness, if off
        self.covariance = (rows.T @ rows).double() / len(rows)
        self.spread = torch.full_like(self.strength, torch.inf)
        self.aim(x.new_zeros(len(strengths), self.classes, 1))

    def aim(self, z: Tensor) -> None:
        """Factor the Hessian's estimate, spread * covariance + strength I, where the spread has
        moved by a factor of DRIFT.

        The spread of p = softmax(z) is the mean over rows of sum_k p_k (1 - p_k) / (K - 1). At z =
        0 it is 1 / K and the estimate is exact (on weights that sum to 0 over the classes); as the
        model grows sure it falls by orders of magnitude.
        """
        spread = (1 - z.softmax(1).square().sum(1)).mean(1, dtype=torch.float64)[:, None, None] / (
            self.classes - 1
        )
        spread = spread.clamp_min(1e-12)
        if ((spread / self.spread).log().abs() > log(DRIFT)).any():
            self.spread, self.factor = spread, self._factored(spread)

    def _factored(self, spread: Tensor) -> Tensor:
        """Where rows are fewer than columns, or columns repeat each other, the rounding of the
        covariance's product can outweigh a weak
        penalty and make the estimate indefinite: then it is lifted by as much. That costs time, not
            exactness.
        """
        eye = torch.eye(len(self.covariance), dtype=torch.float64, device=self.x.device)
        estimate = spread * self.covariance + self.strength * eye
        factor, failed = torch.linalg.cholesky_ex(estimate)
        if not failed.any():
            return factor
        rounding = (
            4 * torch.finfo(self.x.dtype).eps * self.covariance.trace()
        )  # the trace is above the largest eigenvalue
        return torch.linalg.cholesky(estimate + rounding * spread * eye)

    def only(self, keep: Tensor) -> "_Objective":
        """The same for some of the strengths; keep: (S,) bool."""
        part = copy(self)
        part.strength, part.spread, part.factor = (
            self.strength[keep],
            self.spread[keep],
            self.factor[keep],
        )
        return part

    def precondition(self, gradient: Tensor) -> Tensor:
        """The inverse of the estimate, on (S, K, f + 1). The bias meets no other column: those of x
        have mean 0.
        """
        weight = torch.cholesky_solve(gradient[:, :, :-1].mT, self.factor).mT
        return torch.cat([weight, gradient[:, :, -1:] / self.spread], 2)

    def logits(self, theta: Tensor) -> Tensor:
        theta = theta.to(self.x.dtype)
        return (theta[:, :, :-1].flatten(0, 1) @ self.x.T).unflatten(0, theta.shape[:2]) + theta[
            :, :, -1:
        ]

    def exact_logits(self, theta: Tensor) -> Tensor:
        """The logits by float64 products, rounded once."""
        blocks = [
            (theta[:, :, :-1].flatten(0, 1) @ rows.double().T).to(rows.dtype)
            for rows in self.x.split(ROWS_AT_ONCE)
        ]
        return torch.cat(blocks, 1).unflatten(0, theta.shape[:2]) + theta[:, :, -1:].to(
            self.x.dtype
        )

    def gradient(self, theta: Tensor, z: Tensor) -> Tensor:
        """(S, K, f + 1): (softmax(z) - Y) X / n + strength W."""
        residual = z.softmax(1)
        residual[:, self.target, self._rows] -= 1
        of_weight = (residual.flatten(0, 1) @ self.x).unflatten(0, z.shape[:2]).double() / len(
            self.x
        )
        of_bias = residual.mean(2, keepdim=True, dtype=torch.float64)
        return torch.cat([of_weight + self.strength * theta[:, :, :-1], of_bias], 2)

    def value(self, theta: Tensor, z: Tensor) -> Tensor:
        """(S,) J in nats."""
        loss = z.logsumexp(1) - z[:, self.target, self._rows]
        weight = theta[:, :, :-1]
        return loss.mean(1, dtype=torch.float64) + self.strength.flatten() / 2 * _dot(
            weight, weight
        )

    def along(
        self, theta: Tensor, direction: Tensor, z: Tensor, dz: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor]:
        """First and second derivative (S,) of J(theta + step direction) in step, without a product
        with x.
        """
        p = (z + step[:, None, None].to(z.dtype) * dz).softmax(1)
        mean = (p * dz).sum(1)  # (S, n), of dz under p
        slope = (mean - dz[:, self.target, self._rows]).mean(1, dtype=torch.float64)
        curvature = ((p * dz.square()).sum(1) - mean.square()).mean(1, dtype=torch.float64)
        w, d, strength = theta[:, :, :-1], direction[:, :, :-1], self.strength.flatten()
        return slope + strength * (_dot(w, d) + step * _dot(d, d)), curvature + strength * _dot(
            d, d
        )

    @property
    def _rows(self) -> Tensor:
        return torch.arange(len(self.x), device=self.x.device)


@dataclass
class _Descent:
    """L-BFGS under way, for the strengths still open. pairs: the last MEMORY (step, change of
    gradient), (S, K, f + 1) each.

    The logits are carried along, z + step dz, and their rounding with them; so exact logits have
    the last word on convergence.
    """

    objective: _Objective
    theta: Tensor
    z: Tensor
    gradient: Tensor
    pairs: list[tuple[Tensor, Tensor]]

    def step(self) -> None:
        direction = -_lbfgs(self.objective, self.gradient, self.pairs)
        dz = self.objective.logits(direction)
        length = _line_search(
            self.objective, self.theta, direction, self.z, dz, _dot(self.gradient, direction)
        )[:, None, None]
        self.theta, self.z, before = (
            self.theta + length * direction,
            self.z + length.to(dz.dtype) * dz,
            self.gradient,
        )
        self.gradient = self.objective.gradient(self.theta, self.z)
        self.objective.aim(self.z)
        self.pairs = [*self.pairs[1 - MEMORY :], (length * direction, self.gradient - before)]

    def refresh(self) -> None:
        self.z = self.objective.exact_logits(self.theta)
        self.gradient = self.objective.gradient(self.theta, self.z)

    def only(self, keep: Tensor) -> "_Descent":
        pairs = [(s[keep], y[keep]) for s, y in self.pairs]
        return _Descent(
            self.objective.only(keep), self.theta[keep], self.z[keep], self.gradient[keep], pairs
        )


def _minimise(objective: _Objective, tolerance: float, max_iterations: int) -> Solution:
    """Batched L-BFGS. A strength that has converged leaves the batch, so that the slowest does not
    make all the others work.
    """
    theta = objective.x.new_zeros(
        len(objective.strength), objective.classes, objective.x.shape[1] + 1, dtype=torch.float64
    )
    run, left, iterations = (
        _Descent(objective, theta.clone(), theta, theta, []),
        torch.arange(len(theta), device=theta.device),
        0,
    )
    run.refresh()
    enough = tolerance * _norm(run.gradient)
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


def _lbfgs(objective: _Objective, gradient: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian's estimate times the gradient: the two loops of Nocedal & Wright,
    algorithm 7.4, for each strength.
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


def _line_search(
    objective: _Objective,
    theta: Tensor,
    direction: Tensor,
    z: Tensor,
    dz: Tensor,
    slope_at_0: Tensor,
) -> Tensor:
    """(S,) steps with |slope| <= |slope at 0| / 10, by Newton in a bracket; J is convex, so the
    slope's sign says which side.

    Slopes alone decide (the approximate Wolfe conditions of Hager & Zhang 2005): near the minimum,
    differences of J are rounding.
    """
    step, low, high = (
        torch.ones_like(slope_at_0),
        torch.zeros_like(slope_at_0),
        torch.full_like(slope_at_0, torch.inf),
    )
    for _ in range(30):
        slope, curvature = objective.along(theta, direction, z, dz, step)
        open_ = slope.abs() > 0.1 * slope_at_0.abs()
        if not open_.any():
            break
        low, high = torch.where(slope < 0, step, low), torch.where(slope < 0, high, step)
        newton = step - slope * _inverse(curvature)
        halfway = torch.where(high.isfinite(), (low + high) / 2, 2 * step)
        step = torch.where(
            open_, torch.where((newton > low) & (newton < high), newton, halfway), step
        )
    return step


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2))


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()


def _inverse(a: Tensor) -> Tensor:
    """1 / a, and 0 where rounding has made a curvature of the convex J not positive: such a pair is
    left out.
    """
    return torch.where(a > 0, 1 / a, 0)


def at_least_float32(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()
