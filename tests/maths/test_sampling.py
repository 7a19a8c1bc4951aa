"""Samplers against the density's distribution function, closed forms and moments. Fixed seeds; each
p-value bar is 1e-3.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sureclr.errors import UserError
from sureclr.maths import sampling
from sureclr.maths.sampling import sample, sample_cosine, uniform_directions
from sureclr.maths.sphere import Posterior

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


@pytest.mark.parametrize(("d", "rho"), CASES)
def test_cosine_has_the_distribution_of_the_density(d, rho):
    half = sampling._half_rapidity(radii(4000, rho), 1 - radii(4000, rho), d, seeded(d))
    assert stats.kstest(2 * half.numpy(), poisson_cdf(d, rho)).pvalue > 1e-3
    assert torch.equal(sample_cosine(radii(4000, rho), d, seeded(d)), torch.tanh(half))


@pytest.mark.parametrize("rho", [0.2, 0.7, 0.99])
def test_closed_form_of_three_dimensions(rho):
    """c = (1 + rho^2 - ((1 - rho^2)/(1 - rho + 2 rho U))^2)/(2 rho), solved for the uniform U."""
    c = sample_cosine(radii(4000, rho), 3, seeded()).numpy()
    u = ((1 - rho**2) / np.sqrt(1 + rho**2 - 2 * rho * c) - 1 + rho) / (2 * rho)
    assert stats.kstest(u, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("d", "rho"), CASES)
def test_a_quarter_of_the_proposals_is_accepted(d, rho, monkeypatch):
    proposed, hat = [], sampling._hat
    monkeypatch.setattr(sampling, "_hat", lambda n, *rest: (proposed.append(n), hat(n, *rest))[1])
    sample_cosine(radii(10_000, rho), d, seeded(1))
    rate = 10_000 / sum(proposed)
    assert abs(rate - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 40_000)


@pytest.mark.parametrize("d", [2, 3, 8, 128, 4096])
def test_hat_touches_the_density_at_its_mode_and_covers_it(d):
    """The density's peak is found by search, its height by trapezoids: neither by the formulas of
    the sampler.
    """
    v = torch.linspace(-40, 60, 400_001, dtype=torch.float64)
    for rho in (0.0, 0.5, 0.999):
        shift = torch.tensor(4 * math.atanh(rho), dtype=torch.float64)
        mode, height = sampling._mode(shift, d)
        log_f = sampling._log_shape(v, shift, d)
        log_f -= torch.logsumexp(log_f, 0) + math.log(100 / 400_000)
        assert v[log_f.argmax()].item() == pytest.approx(mode.item(), abs=3e-4)
        assert log_f.max().item() == pytest.approx(height.item(), abs=1e-4)
        hat = height + (1 - height.exp() * (v - mode).abs()).clamp_max(0)
        assert (log_f <= hat + 1e-4).all()


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
    assert not sample_cosine(torch.full((4,), 0.5, requires_grad=True), 3, seeded()).requires_grad
    assert torch.equal(before, torch.get_rng_state())


def test_bad_input_is_told():
    for wrong in (
        lambda: sample_cosine(torch.zeros(1), 1, seeded()),
        lambda: uniform_directions(3, 1, seeded()),
    ):
        with pytest.raises(UserError, match="at least 2"):
            wrong()
    for radius in (1.0, math.nan):  # would wait for ever for an accepted proposal
        with pytest.raises(UserError, match="1 of 2"):
            sample_cosine(torch.tensor([0.5, radius]), 3, seeded())
    with pytest.raises(UserError, match="no radius"):
        sample(Posterior(torch.eye(3)), seeded())
