"""Samplers against the density's distribution function, closed forms and moments.

Seeds are fixed, and each p-value must be above 1e-3.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from sureclr.errors import UserError
from sureclr.maths.sampling import (
    check_finite,
    sample,
    uniform_directions,
)
from sureclr.maths.sphere import Posterior, rapidity_log_shape, rapidity_mode

CASES = [(d, rho) for d in (2, 3, 8, 128) for rho in (0.0, 0.3, 0.9, 0.999)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def poisson_cdf(d: int, rho: float):
    """P(c <= x) by trapezoids in v = 2 artanh(c), straight from the density of theory 1."""
    v = np.linspace(-60, 60, 200_001)
    c_gap, c_rise = 2 / (1 + np.exp(v)), 2 / (1 + np.exp(-v))  # 1 - c and 1 + c
    log_f = (
        (d - 1) / 2 * np.log(c_gap * c_rise)
        + np.log(1 - rho**2)
        - d / 2 * np.log((1 - rho) ** 2 + 2 * rho * c_gap)
    )
    cdf = np.cumsum(np.exp(log_f - log_f.max()))
    return lambda x: np.interp(x, v, cdf / cdf[-1])


def radii(n: int, rho: float) -> torch.Tensor:
    return torch.full((n,), rho, dtype=torch.float64)


def about_first_axis(n: int, d: int, rho: float) -> Posterior:
    return Posterior(torch.eye(d, dtype=torch.float64)[0].expand(n, d), radii(n, rho))


def rapidities(z: torch.Tensor) -> np.ndarray:
    """v = 2 artanh(c) of samples about the first axis, from the angle where c is near 1."""
    sine = z[:, 1:].norm(dim=1)
    return torch.where(z[:, 0] > 0, 2 * torch.log((1 + z[:, 0]) / sine), 2 * torch.atanh(z[:, 0]))


@pytest.mark.parametrize(("d", "rho"), CASES)
def test_cosine_has_the_distribution_of_the_density(d, rho):
    v = rapidities(sample(about_first_axis(4000, d, rho), seeded(d)))
    assert stats.kstest(v.numpy(), poisson_cdf(d, rho)).pvalue > 1e-3


@pytest.mark.parametrize("rho", [0.2, 0.7, 0.99])
def test_closed_form_of_three_dimensions(rho):
    """c = (1 + rho^2 - ((1 - rho^2)/(1 - rho + 2 rho U))^2)/(2 rho), solved for the uniform U."""
    c = sample(about_first_axis(4000, 3, rho), seeded())[:, 0].numpy()
    u = ((1 - rho**2) / np.sqrt(1 + rho**2 - 2 * rho * c) - 1 + rho) / (2 * rho)
    assert stats.kstest(u, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("d", [2, 3, 8, 128, 4096])
def test_hat_touches_the_density_at_its_mode_and_covers_it(d, rho):
    """The density's peak is found by search, its height by trapezoids: neither by the formulas of
    the sampler.
    """
    v = torch.linspace(-40, 60, 400_001, dtype=torch.float64)
    shift = torch.tensor(4 * math.atanh(rho), dtype=torch.float64)
    mode, height = rapidity_mode(shift, d)
    log_f = rapidity_log_shape(v, shift, d)
    log_f -= torch.logsumexp(log_f, 0) + math.log(100 / 400_000)
    assert v[log_f.argmax()].item() == pytest.approx(mode.item(), abs=3e-4)
    assert log_f.max().item() == pytest.approx(height.item(), abs=1e-4)
    hat = height + (1 - height.exp() * (v - mode).abs()).clamp_max(0)
    assert (log_f <= hat + 1e-4).all()


class UniformNumbers(TorchDispatchMode):
    """Counts the uniform numbers drawn."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket is torch.ops.aten.rand:
            self.count += result.numel()
        return result


@pytest.mark.parametrize(("d", "rho"), CASES)
def test_a_quarter_of_the_proposals_is_accepted(d, rho):
    """A proposal and its test take four uniform numbers."""
    with UniformNumbers() as numbers:
        sample(about_first_axis(10_000, d, rho), seeded(1))
    rate = 10_000 / (numbers.count / 4)
    assert abs(rate - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 40_000)


@pytest.mark.parametrize(("d", "rho"), [(2, 0.5), (3, 0.9), (16, 0.7), (128, 0.4)])
def test_samples_are_unit_with_mean_u_and_isotropic_around_it(d, rho):
    z = sample(about_first_axis(20_000, d, rho), seeded(2))
    assert (z.norm(dim=1) - 1).abs().max() < 1e-14
    sem = z.std(0) / math.sqrt(len(z))
    assert ((z.mean(0) - rho * torch.eye(d)[0]).abs() < 4.5 * sem).all()
    across = z[:, 1:].T @ z[:, 1:] / len(z)
    expected = (1 - z[:, 0].square().mean()) / (d - 1) * torch.eye(d - 1)
    assert (across - expected).abs().max() < 6 * across.diagonal().max() / math.sqrt(len(z))


@pytest.mark.parametrize(("d", "a", "b"), [(2, 0.9, 0.8), (3, 0.5, 0.95), (16, 0.8, 0.7)])
def test_noise_on_noise_multiplies_the_radii(d, a, b):
    """The semigroup, by samples: y ~ P_b(z), z ~ P_a(x) gives the cosines x.y of P_ab."""
    x, g = about_first_axis(4000, d, a), seeded(3)
    y = sample(Posterior(sample(x, g), radii(4000, b)), g)
    assert stats.kstest(2 * np.arctanh(y[:, 0].numpy()), poisson_cdf(d, a * b)).pvalue > 1e-3


def test_gap_is_what_counts_near_one_in_float32():
    direction = torch.eye(4)[0].expand(4000, 4)
    z = sample(Posterior(direction, torch.ones(4000), torch.full((4000,), 1e-8)), seeded())
    angle = z[:, 1:].norm(dim=1)
    assert z.dtype == torch.float32 and 1e-9 < angle.median() < 1e-7


def test_uniform_directions_spread_evenly():
    x = uniform_directions(20_000, 5, seeded(), torch.empty(0, dtype=torch.float64))
    assert (x.norm(dim=1) - 1).abs().max() < 1e-14
    assert x.mean(0).abs().max() < 4.5 * math.sqrt(1 / 5 / 20_000)
    assert stats.kstest((1 + x[:, 2].numpy()) / 2, stats.beta(2, 2).cdf).pvalue > 1e-3


def test_only_the_given_generator_is_read_and_no_gradient_is_kept():
    before = torch.get_rng_state()
    posterior = Posterior(
        torch.eye(3)[:1].expand(2, 5, 3).clone().requires_grad_(),
        torch.full((2, 5), 0.5, requires_grad=True),
    )
    first, again, other = (sample(posterior, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (2, 5, 3) and not first.requires_grad
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_uniform_directions_have_the_dtype_of_another_tensor(dtype):
    x = uniform_directions(5, 3, seeded(), torch.empty(0, dtype=dtype))
    assert x.dtype == dtype and (x.double().norm(dim=1) - 1).abs().max() < 1e-3


def test_uniform_directions_are_single_precision_by_default():
    assert uniform_directions(5, 3, seeded()).dtype == torch.float32


def test_one_coordinate_is_refused():
    with pytest.raises(UserError, match="at least 2"):
        uniform_directions(3, 1, seeded())


@pytest.mark.parametrize("radius", [1.0, math.nan])
def test_radii_for_which_rejection_would_run_for_ever_are_refused(radius):
    posterior = Posterior(torch.eye(3)[:2], torch.tensor([0.5, radius]))
    with pytest.raises(UserError, match=r"radii must lie in \[0, 1\).* 1 of 2 break"):
        sample(posterior, seeded())


def test_finite_numbers_pass_the_check():
    check_finite(torch.tensor([0.0, -3e38]), "a rule")
    with pytest.raises(UserError, match="a rule, but 2 of 3 break this rule"):
        check_finite(torch.tensor([0.0, math.inf, math.nan]), "a rule")


def test_a_posterior_without_radius_has_no_samples():
    with pytest.raises(UserError, match="no radius"):
        sample(Posterior(torch.eye(3)), seeded())
