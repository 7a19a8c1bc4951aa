"""Witnesses: scikit-learn's LogisticRegression, autograd, differences, closed forms."""

import math

import numpy as np
import pytest
import torch
from noisy_classes import rows
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from sureclr.maths.logistic import (
    LogisticObjective,
    lbfgs_direction,
    line_search,
    logistic_regression,
    minimise,
    standardisation,
)


def standardised(n: int, f: int = 12, classes: int = 4) -> tuple[Tensor, Tensor]:
    x, y = rows(n, f, classes)
    mean, scale = standardisation(x)
    return (x - mean) / scale, y


def written_out(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, strength: float) -> Tensor:
    return cross_entropy(x @ weight + bias, y) + strength / 2 * weight.square().sum()


@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0])
def test_objective_weights_and_predictions_equal_scikit_learn(strength: float) -> None:
    x, y = standardised(400)
    fit = logistic_regression(x, y, [strength], 1e-9)
    witness = LogisticRegression(C=1 / (400 * strength), tol=1e-10, max_iter=10000).fit(
        x.numpy(), y.numpy()
    )
    weight, bias = torch.from_numpy(witness.coef_.T), torch.from_numpy(witness.intercept_)
    theirs = float(written_out(x, y, weight, bias, strength))
    assert bool(fit.converged[0])
    assert float(fit.objective[0]) == pytest.approx(theirs, rel=1e-6)
    assert float(written_out(x, y, fit.weight[0], fit.bias[0], strength)) == pytest.approx(
        theirs, rel=1e-6
    )
    assert torch.allclose(fit.weight[0], weight, atol=1e-4) and torch.allclose(
        fit.bias[0], bias, atol=1e-4
    )
    new = rows(300, seed=1)[0] / 100
    assert np.array_equal(
        (new @ fit.weight[0] + fit.bias[0]).argmax(1).numpy(), witness.predict(new.numpy())
    )


def test_two_classes_equal_scikit_learn_at_twice_the_c() -> None:
    x, y = standardised(300, classes=2)
    fit = logistic_regression(x, y, [0.01], 1e-9)
    witness = LogisticRegression(C=2 / (300 * 0.01), tol=1e-10, max_iter=10000).fit(
        x.numpy(), y.numpy()
    )
    assert torch.allclose(
        fit.weight[0, :, 1] - fit.weight[0, :, 0], torch.from_numpy(witness.coef_[0]), atol=1e-5
    )


def test_float32_features_reach_the_same_objective_and_know_their_gradient() -> None:
    x, y = standardised(2000)
    fit = logistic_regression(x.float(), y, [1e-3], 1e-6)
    exact = logistic_regression(x, y, [1e-3], 1e-10)
    assert bool(fit.converged[0])
    assert float(written_out(x, y, fit.weight[0], fit.bias[0], 1e-3)) == pytest.approx(
        float(exact.objective[0]), rel=1e-6
    )
    assert float(fit.objective[0]) == pytest.approx(float(exact.objective[0]), rel=1e-6)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_the_gradient_reported_is_autograds_and_below_the_tolerance(tolerance: float) -> None:
    x, y = standardised(300)
    strengths = [1e-5, 1e-1]
    fit = logistic_regression(x, y, strengths, tolerance)

    def norm(w: Tensor, b: Tensor, strength: float) -> float:
        w, b = w.clone().requires_grad_(), b.clone().requires_grad_()
        grads = torch.autograd.grad(written_out(x, y, w, b, strength), [w, b])
        return math.sqrt(sum(float(g.square().sum()) for g in grads))

    for w, b, strength, reported in zip(
        fit.weight, fit.bias, strengths, fit.gradient.tolist(), strict=True
    ):
        relative = norm(w, b, strength) / norm(torch.zeros_like(w), torch.zeros_like(b), strength)
        assert reported == pytest.approx(relative, rel=1e-6)
        assert relative <= tolerance


def test_gradient_slope_and_curvature_equal_finite_differences_of_the_value() -> None:
    x, y = standardised(50, f=5)
    objective = LogisticObjective(x, y, [0.1, 0.01])
    generator = torch.Generator().manual_seed(0)
    theta, d = (torch.randn(2, 4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    z, dz, step, h = (
        objective.logits(theta),
        objective.logits(d),
        torch.tensor([0.7, 1.3]).double(),
        1e-4,
    )

    def value(at: Tensor) -> Tensor:
        moved = theta + at[:, None, None] * d
        return objective.value(moved, objective.exact_logits(moved))

    below, here, above = value(step - h), value(step), value(step + h)
    slope, curvature = objective.along(theta, d, z, dz, step)
    assert torch.allclose(slope, (above - below) / (2 * h), rtol=1e-6)
    assert torch.allclose(curvature, (above - 2 * here + below) / h**2, rtol=1e-5)
    gradient = objective.gradient(theta, z)
    zero = torch.zeros(2).double()
    assert torch.allclose(
        (gradient * d).sum((1, 2)), (value(zero + h) - value(zero - h)) / (2 * h), rtol=1e-6
    )


@pytest.mark.parametrize("stretch", [1e-3, 1.0, 300.0])
def test_the_line_search_nearly_ends_the_slope_whatever_the_length_of_the_direction(
    stretch: float,
) -> None:
    x, y = standardised(50, f=5)
    objective = LogisticObjective(x, y, [0.1, 0.001])
    theta = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = objective.logits(theta)
    gradient = objective.gradient(theta, z)
    direction = -stretch * gradient
    step = line_search(
        objective,
        theta,
        direction,
        z,
        objective.logits(direction),
        (gradient * direction).sum((1, 2)),
    )
    moved = theta + step[:, None, None] * direction
    slope = (objective.gradient(moved, objective.exact_logits(moved)) * direction).sum((1, 2))
    assert bool((step > 0).all()) and bool(
        (slope.abs() <= 0.1 * (gradient * direction).sum((1, 2)).abs()).all()
    )


def test_the_preconditioner_is_the_hessian_at_zero() -> None:
    """With as many rows as it looks at, on weights that sum to 0 over the classes: Newton's step,
    by autograd's Hessian.
    """
    x, y = standardised(48)
    objective = LogisticObjective(x, y, [0.05])
    zero = torch.zeros(1, 4, 13, dtype=torch.float64)
    gradient = objective.gradient(zero, objective.logits(zero))
    flat = torch.autograd.functional.hessian(
        lambda t: written_out(x, y, t.view(4, 13)[:, :-1].T, t.view(4, 13)[:, -1], 0.05),
        zero.flatten(),
    )
    assert torch.allclose(
        flat @ objective.precondition(gradient).flatten(), gradient.flatten(), atol=1e-12
    )


def test_a_pair_without_positive_curvature_is_left_out() -> None:
    """Rounding can give one near the minimum; 1 / 0 would make the direction NaN, a negative one
    would point uphill.
    """
    x, y = standardised(48)
    objective = LogisticObjective(x, y, [0.05])
    gradient = objective.gradient(
        zero := torch.zeros(1, 4, 13, dtype=torch.float64), objective.logits(zero)
    )
    plain = lbfgs_direction(objective, gradient, [])
    for change in (torch.zeros_like(gradient), -gradient):
        assert torch.equal(lbfgs_direction(objective, gradient, [(gradient, change)]), plain)


def test_strengths_in_one_batch_equal_each_alone() -> None:
    x, y = standardised(200)
    strengths = [1.0, 1e-4, 1e-2]  # they leave the batch in another order than they came
    together = logistic_regression(x, y, strengths, 1e-9)
    apart = logistic_regression(x, y, strengths, 1e-9, logits_at_once=1)  # one at a time
    assert together.weight.shape == apart.weight.shape == (3, 12, 4)
    assert torch.allclose(together.weight, apart.weight, atol=1e-5)
    assert torch.allclose(together.objective, apart.objective, rtol=1e-10)
    assert bool(together.converged.all()) and bool(apart.converged.all())


def test_a_converged_strength_leaves_and_the_others_go_on() -> None:
    x, y = standardised(200)
    alone, batch = (
        logistic_regression(x, y, [1.0], 1e-2),
        logistic_regression(x, y, [1.0, 1e-5], 1e-2),
    )
    assert batch.iterations > alone.iterations
    assert torch.allclose(batch.weight[0], alone.weight[0], rtol=0, atol=1e-12)


def test_the_default_tolerance_and_number_of_iterations() -> None:
    x, y = standardised(200)
    default = logistic_regression(x, y, [1e-4])
    explicit = logistic_regression(x, y, [1e-4], 1e-6, 500)
    assert default.iterations == explicit.iterations > 1
    assert 1e-9 < float(default.gradient[0]) <= 1e-6


def test_a_strong_penalty_leaves_the_class_frequencies() -> None:
    """W -> 0 and the unpenalised bias alone fits the frequencies: J = their entropy."""
    x, y = standardised(300)
    fit = logistic_regression(x, y, [1e6], 1e-9)
    p = y.bincount().double() / 300
    assert torch.allclose(fit.bias[0].softmax(0), p, atol=1e-5)
    assert float(fit.objective[0]) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-5)


def test_one_feature_two_balanced_classes_has_a_closed_form() -> None:
    """x = +-1 by class: J = log(1 + exp(-2 w)) + strength w^2 for W = (-w, w), so exp(2 w) + 1 = 1
    / (strength w).
    """
    x, y = (
        torch.tensor([[-1.0], [1.0]], dtype=torch.float64).repeat(5, 1),
        torch.tensor([0, 1]).repeat(5),
    )
    w = float(logistic_regression(x, y, [0.1], 1e-12).weight[0, 0, 1])
    assert math.exp(2 * w) + 1 == pytest.approx(1 / (0.1 * w), rel=1e-9)


def test_separable_classes_at_a_weak_penalty_converge() -> None:
    """Without following the spread of the predictions this needs thousands of iterations."""
    x, y = standardised(40, f=30)
    fit = logistic_regression(x, y, [1e-7], 1e-6, max_iterations=500)
    assert bool(fit.converged[0]) and fit.iterations < 300
    assert bool(((x @ fit.weight[0] + fit.bias[0]).argmax(1) == y).all())


@pytest.mark.parametrize("repeated", [False, True])
def test_fewer_rows_than_columns_and_repeated_columns_converge_in_float32(repeated: bool) -> None:
    """The covariance has no full rank, and its rounding in float32 outweighs a penalty of 1e-6.
    Witness: float64.
    """
    x, y = standardised(400 if repeated else 39, f=32)
    x = (
        torch.cat([x, x, x, x], 1)
        if repeated
        else torch.cat([x, x.square(), x * x.roll(1, 1), x * x.roll(2, 1), x.abs()], 1)
    )
    x = 5 * (x - x.mean(0)) / x.std(0)
    fit, exact = (
        logistic_regression(x.float(), y, [1e-6, 1e-3], 1e-6),
        logistic_regression(x, y, [1e-6, 1e-3], 1e-7),
    )
    assert bool(fit.converged.all()) and torch.allclose(fit.objective, exact.objective, atol=1e-6)


def test_an_estimate_that_rounding_made_indefinite_is_lifted() -> None:
    """Large features, fewer rows than columns: 11 iterations, without lifting 23 to 500."""
    x, y = standardised(39, f=32)
    x = torch.cat([x, x.square(), x * x.roll(1, 1), x * x.roll(2, 1), x.abs()], 1)
    x = 150 * (x - x.mean(0)) / x.std(0)
    fit = logistic_regression(x.float(), y, [1e-8], 1e-6)
    assert bool(fit.converged[0]) and fit.iterations < 20


def test_too_few_iterations_are_admitted_and_what_was_reached_is_kept() -> None:
    x, y = standardised(200)
    fit = logistic_regression(x, y, [1e-4], 1e-9, max_iterations=2)
    assert (
        fit.iterations == 2 and not bool(fit.converged[0]) and 1e-9 < float(fit.gradient[0]) < 0.5
    )
    assert float(fit.objective[0]) < math.log(4)  # where it started


class Rounded(LogisticObjective):
    """Rounds the logits along a direction to bfloat16."""

    def logits(self, theta: Tensor) -> Tensor:
        return super().logits(theta).bfloat16().to(theta.dtype)


def test_rounding_in_the_carried_logits_does_not_pass_for_convergence() -> None:
    """The carried logits are off by 1e-3, the answer is not."""
    x, y = standardised(300)
    fit = minimise(Rounded(x, y, [1e-3]), tolerance=1e-6, max_iterations=500)
    assert bool(fit.converged[0]) and float(fit.gradient[0]) <= 1e-6
    exact = logistic_regression(x, y, [1e-3], 1e-9)
    assert torch.allclose(fit.weight, exact.weight, atol=1e-4)


def test_standardisation_and_constant_columns() -> None:
    x = (
        torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1.0, 1e3])
        + 7
    )
    above = torch.nextafter(
        torch.tensor(1e4), torch.tensor(2e4)
    ).item()  # a column that only rounding moves is constant too
    x = torch.cat(
        [
            x,
            torch.full((500, 1), 0.1),
            torch.zeros(500, 1),
            torch.tensor([[1e4], [above]]).repeat(250, 1),
        ],
        1,
    )
    mean, scale = standardisation(x)
    z = (x - mean) / scale
    assert torch.allclose(
        z[:, :3].double().std(0, correction=0), torch.ones(3).double(), rtol=0, atol=1e-5
    )
    assert z[:, 3:].abs().max() < 2e-3
    assert scale[3:].tolist() == [1, 1, 1]
