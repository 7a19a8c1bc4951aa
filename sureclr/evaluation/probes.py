"""The linear probe: logistic regression on frozen features, the strength of its penalty chosen
without the test set.

Features are standardised with the training rows' mean and deviation; objective and solver are those
of maths/logistic.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths.logistic import ROWS_AT_ONCE, logistic_regression, standardisation
from sureclr.maths.metrics import wilson_interval
from sureclr.maths.sphere import at_least_float32

STRENGTHS = tuple(10.0**p for p in range(-6, 2))


@dataclass(frozen=True)
class ProbeResult:
    """A linear probe and its one look at the test set.

    Attributes:
        accuracy: on the test rows. interval: Wilson's, 95 %.
        strength: chosen on a split of the training rows. strengths: all tried, with their
            validation accuracy (NaN if no class
            had two rows to split: then the middle strength is taken).
        iterations, converged, gradient, objective: of the last fit, on all training rows (see
        Solution).
        classes: (K,) int64, the label of each column. logits: (m, K) of the test rows, float64.
        weight: (f, K), bias: (K,): for raw features, logits = features @ weight + bias.
    """

    accuracy: float
    interval: tuple[float, float]
    strength: float
    strengths: tuple[tuple[float, float], ...]
    iterations: int
    converged: bool
    gradient: float
    objective: float
    classes: Tensor
    logits: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def probabilities(self) -> Tensor:
        """(m, K), softmax of the test logits."""
        return self.logits.softmax(1)

    @property
    def predictions(self) -> Tensor:
        """(m,) int64 labels."""
        return self.classes[self.logits.argmax(1)]


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    validation: float = 0.2,
    tolerance: float = 1e-4,
    max_iterations: int = 500,
    allow_missing: bool = False,
) -> ProbeResult:
    """Choose the strength on a stratified split of the training rows, refit on all of them,
    evaluate once on the test rows.

    Args:
        train_x: (n, f), test_x: (m, f), any float type, both on the device that shall do the work.
        train_y: (n,), test_y: (m,) int64 labels >= 0.
        strengths: penalties to choose from; of equally accurate ones the strongest. One alone is
            used as it is.
        seed: of the split. validation: the share of each class held out (0 < share < 1).
        tolerance: on the norm of the gradient, relative to its start. max_iterations: of L-BFGS,
            each fit.
        allow_missing: test rows of classes without a training row count as wrong, instead of being
            an error.

    Raises:
        UserError: unlabelled rows, a single class, a test class without training rows, features
            that are not finite, a strength that is not above 0.
    """
    train_x, test_x = _on_wide_device(train_x), _on_wide_device(test_x)
    train_y, test_y = train_y.to(train_x.device), test_y.to(test_x.device)
    check_rows(train_x, train_y, test_x, test_y, allow_missing)
    if not strengths or min(strengths) <= 0:
        raise UserError(
            f"strengths of the penalty must be above 0 and at least one, got {list(strengths)}; try"
            " 0.01."
        )
    classes, target = train_y.unique(return_inverse=True)
    grid = tuple(sorted(strengths))
    scores = _validate(train_x, target, grid, seed, validation, tolerance, max_iterations)
    strength = _choose(grid, scores)
    mean, scale = standardisation(train_x)
    fit = logistic_regression(
        _standardise(train_x, mean, scale), target, [strength], tolerance, max_iterations
    )
    weight = fit.weight[0] / scale.double()[:, None]
    bias = fit.bias[0] - mean.double() @ weight
    logits = _logits(test_x, weight, bias)
    right = int((classes[logits.argmax(1)] == test_y).sum())
    return ProbeResult(
        accuracy=right / len(test_y),
        interval=wilson_interval(right, len(test_y)),
        strength=strength,
        strengths=tuple(zip(grid, scores, strict=True)),
        iterations=fit.iterations,
        converged=bool(fit.converged[0]),
        gradient=float(fit.gradient[0]),
        objective=float(fit.objective[0]),
        classes=classes,
        logits=logits,
        weight=weight,
        bias=bias,
    )


def stratified_split(target: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(n,) bool, True for held-out rows: of each class the rounded share, at least one, never all
    (a class of one: none).
    """
    held_out = torch.zeros(len(target), dtype=torch.bool)
    for label in target.cpu().unique():
        rows = (target.cpu() == label).nonzero().squeeze(1)
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held_out[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return held_out.to(target.device)


def _on_wide_device(features: Tensor) -> Tensor:
    return at_least_float32(
        features.cpu() if features.device.type == "mps" else features
    )  # Apple's GPU has no float64


def _standardise(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (features - mean).div_(scale)  # one copy of the features, not two


def _logits(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([rows.double() @ weight + bias for rows in features.split(ROWS_AT_ONCE)])


def _validate(
    x: Tensor,
    target: Tensor,
    grid: tuple[float, ...],
    seed: int,
    share: float,
    tolerance: float,
    max_iterations: int,
) -> tuple[float, ...]:
    """Accuracy of each strength on held-out training rows; NaN where there is nothing to choose or
    to hold out.
    """
    held_out = stratified_split(target, share, torch.Generator().manual_seed(seed))
    if len(grid) == 1 or not held_out.any():
        return (float("nan"),) * len(grid)
    mean, scale = standardisation(x[~held_out])
    fit = logistic_regression(
        _standardise(x[~held_out], mean, scale), target[~held_out], grid, tolerance, max_iterations
    )
    rows, truth = _standardise(x[held_out], mean, scale).double(), target[held_out]
    return tuple(
        float(((rows @ w + b).argmax(1) == truth).double().mean())
        for w, b in zip(fit.weight, fit.bias, strict=True)
    )


def _choose(grid: tuple[float, ...], scores: tuple[float, ...]) -> float:
    if scores[0] != scores[0]:  # NaN: nothing was held out
        return grid[len(grid) // 2]
    return max(zip(scores, grid, strict=True))[1]  # of equal scores the strongest penalty


def check_rows(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, allow_missing: bool
) -> None:
    """Every rule that a user's data can break, in one sentence each."""
    for name, x, y in (("training", train_x, train_y), ("test", test_x, test_y)):
        if len(x) != len(y) or len(y) == 0:
            raise UserError(
                f"a linear probe needs one label for each of its {name} rows, got {len(x)} rows and"
                f" {len(y)} labels."
            )
        if (y < 0).any():
            raise UserError(
                f"a linear probe needs labels: {int((y < 0).sum())} of {len(y)} {name} rows have"
                " none; drop those."
            )
        if not x.isfinite().all():
            bad = int((~x.isfinite().all(1)).sum())
            raise UserError(
                f"features must be finite, {bad} of {len(x)} {name} rows are not; look for a"
                " diverged encoder."
            )
    if len(train_y.unique()) < 2:
        raise UserError(
            "a linear probe needs two classes or more; every training row has label"
            f" {int(train_y[0])}."
        )
    missing = sorted(set(test_y.tolist()) - set(train_y.tolist()))
    if missing and not allow_missing:
        raise UserError(
            f"the test rows have classes without a training row: {missing}; add labelled rows or"
            " drop these classes."
        )
