"""The numbered claims of docs/theory.md, with one test for each.

(1.1) The kernel is a density: it integrates to 1 over the sphere.
(1.2) The posterior's mean is u.
(1.3) The posterior expectation of a harmonic function f is f(u).
(1.4) The k-th zonal coefficient of the kernel is rho^k.
(1.5) Noise on top of noise multiplies the radii.
(1.6) The cosine c between two independent uniform directions has density proportional to
      (1 - c^2)^((d-3)/2), and E[c^2] = 1/d.
(1.7) At rho = 0 the posterior is uniform, and as rho goes to 1 all its mass gathers at mu.
(2.1) The density ratio of two views is the integral of the product of their posteriors, and s is
      its logarithm.
(2.2) Evidence is symmetric, and a view of radius 0 has evidence 0 with every other view.
(2.3) The mean of exp(s) is 1 when the partner's direction is uniform.
(2.4) If radii do not depend on z, the partner's direction has the density P_r(mu.mu').
(2.5) The mean cosine of two views of one image, given their radii, is r.
(3.1) L_what is NT-Xent as the SimCLR paper defines it.
(3.2) The loss is L_what plus lambda times the negative mean log-likelihood of the partners'
      directions.
(3.3) L_sure is a strictly proper score: its expectation under P_t is lowest at r = t and only
      there.
(3.4) When both views are drawn alike, single radii are identified, and not only their products.
(3.5) L_sure has no gradient to the directions, and L_what has none to the radii.
(3.6) The inverse of the mean squared cosine, 1/E[c^2], counts the dimensions that uniform
      directions fill.
(3.7) With anchors, view i has the temperature tau / a_i, where a_i = q_i / mean(q) and
      q = r / (1 + r^2) at r = rho_i times the mean radius.
(3.8) With means, L_what compares the posterior means: its logits are u_i.u_j, divided by tau and
      by the squared mean radius.
(3.9) With equal radii, every softening is NT-Xent at temperature tau.
(3.10) At beta = 1 the likelihood becomes a contrastive one: the mean of the log-ratio between the
      kernel at the partner and its mean over other images.
(4.1) As d grows with tau fixed, InfoNCE over evidence converges to NT-Xent with an error of order
      1/d.
(4.2) The logits s and c/tau differ, up to a constant, by at most 1 / (tau^2 d (1 - a)).
(4.3) A radius that belongs to the temperature exists if and only if tau > 2/d.
(4.4) Setting s(c = 1) to log n gives the temperatures 0.097, 0.076 and 0.056 at d = 128 for n =
      50 thousand, 1.3 million and 400 million.
(5.1) In float32, at rho = 0.999 and d = 128, the evidence of close pairs is exact to 2e-4 nats,
      where the plain formula is wrong by more than 1 nat.
(5.2) The radius is sigmoid(k / sqrt(1 + (k/K)^2)) with K = log 999, so that 1 - rho > 1e-3 for
      every k.
(5.3) The slope of the log-likelihood in r is m (c - r) / (1 - 2 r c + r^2) - 2 r / (1 - r^2), and
      its slope in logit(rho) is below m in absolute value.
(5.4) If the model is true, log E[exp s] over different images is 0 within its standard error.
(5.5) The second moment of exp(s) is (1 + r^2) / (1 - r^2)^(d-1).
(6.1) The information is the mean log-density of the posterior and equals this series.
(6.2) The Fisher information of a radius in one direction is
      d / (1 - r^2)^2 * (1 - (d-2)(d-4) r^2 / (d (d+2))).
(6.3) The posterior mean given two independent views is
      ((1 - rho'^2) u + (1 - rho^2) u') / (1 - rho^2 rho'^2), in any dimension.
(6.4) The fixed point of s = sum_k u_k / (1 + rho_k^2 - 2 u_k.m),
      m = 2 s / (1 + sqrt(1 + 4 |s|^2)) is the posterior mean for K = 1 and K = 2.
(6.5) The average of the u_k is the mean of the mixture of the posteriors, and it is never longer
      than the longest u_k.
(6.6) For d = 3 the cosine is c = (1 + rho^2 - ((1 - rho^2) / (1 - rho + 2 rho U))^2) / (2 rho)
      with U uniform on [0, 1].
(6.7) In any dimension v = 2 artanh(c) has the log-concave density exp(h(v) + const), where
      h(v) = ((d-1)/2) v - ((d-2)/2) softplus(v) - (d/2) softplus(v - delta) and
      delta = 4 artanh(rho).
(6.8) The hat min(M, M exp(1 - M |v - v0|)), where M is the density at the mode, lies above the
      density and has area 4.
(6.9) Samples of the posterior have the distribution of P, and their part perpendicular to mu is a
      uniform direction.
(7.1) If z is uniform and mu comes from P_rho about z, then z given mu comes from P_rho about mu.
(9.1) The mean of the mixture is pi u, since the uniform distribution has mean 0.
(9.2) The density ratio of two such views is 1 + pi pi' (P_r(mu.mu') - 1).
(9.3) Under uniform directions the mean of log P_r is -KL(uniform || P_r), which is highest at r = 0
      and only there.
(9.4) The mean of exp(s_pi) is 1 when the partner's direction is uniform
(9.5) The law of the cosine of a pair identifies p = pi pi' and r = rho rho' wherever p r is above
      0.
(9.6) Under uniform directions the mean of s_pi is below 0 unless p r = 0
(9.7) The posterior mean given two independent views with presences is
      (pi pi' P_r m + pi (1 - pi') u + pi' (1 - pi) u') / (1 + pi pi' (P_r - 1)), where m is the
      mean of (6.3).
(9.8) The information E_q[log q] of the mixture is 0 at pi = 0, that of the kernel at pi = 1, and
      convex in pi between them.
(9.9) A conformal p-value of an image that is exchangeable with the n calibration images has
      P(p <= a) <= a for every a.
(9.10) The set of the labels whose score is at most the k-th smallest calibration score, with
      k = ceil((n + 1)(1 - a)), contains the true label with probability at least 1 - a.
(9.11) To first order in r the evidence of two mixtures is m pi pi' rho rho' c.
(9.12) The mean of exp(s) over a gallery is the mean of the gallery's density under the view's
      posterior

The last tests read both documents: they list the same claims, and every section of the theory that
the code cites exists.
"""

import ast
import math
import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats
from torch import Tensor

from sureclr.maths import losses, tiles
from sureclr.maths.objectives import SureLoss
from sureclr.maths.sampling import sample, uniform_directions
from sureclr.maths.sphere import (
    Posterior,
    density,
    evidence,
    evidence_matrix,
    information,
    log_density,
)

# Witnesses: quadrature rules, the kernel by hand, worlds of views


def f64(x: object) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def angles(m: float, panels: int = 40, finest: float = 1e-4) -> tuple[np.ndarray, np.ndarray]:
    """Return angles to a pole and weights for the mean over uniform directions in m dimensions.

    Gauss-Legendre on panels that shrink towards the pole. The density of the angle is
    sin(angle)^(m-2), normalised by the beta function.
    """
    nodes, weights = np.polynomial.legendre.leggauss(16)
    edges = np.unique(
        np.r_[0, np.geomspace(finest, math.pi, panels), np.linspace(0.1, 3.14, panels)]
    )
    theta = np.concatenate([a + (b - a) * (nodes + 1) / 2 for a, b in pairwise(edges)])
    weight = np.concatenate([(b - a) * weights / 2 for a, b in pairwise(edges)])
    return theta, weight * np.exp(
        (m - 2) * np.log(np.sin(theta)) - special.betaln((m - 1) / 2, 0.5)
    )


def in_plane(angle: object, d: int = 2) -> Tensor:
    """Return unit vectors (..., d) at these angles to the first axis, towards the second."""
    angle = f64(angle)
    rest = angle.new_zeros(*angle.shape, d - 2)
    return torch.cat([torch.stack([angle.cos(), angle.sin()], -1), rest], -1)


def pair_log_kernel(angle: object, r: object, m: float) -> Tensor:
    """Return the library's log P_r(cos(angle)) in m dimensions, as the evidence of two views."""
    r, mu = f64(r), in_plane(angle)
    one, other = (
        Posterior(x, r.sqrt().expand(mu.shape[:-1])) for x in (in_plane(0.0).expand_as(mu), mu)
    )
    return evidence(one, other, dimension=m)


def under_uniform(function: Callable[[np.ndarray], np.ndarray], m: float) -> float:
    """Return the mean of a function of the angle over uniform directions in m dimensions."""
    theta, weight = angles(m)
    return float((weight * function(theta)).sum())


@cache
def sphere(d: int) -> tuple[Tensor, Tensor]:
    """Return points (n, d) and weights for means over S^{d-1} of functions of z_0 and z_1."""
    (theta, weight), (phi, other) = angles(d, 12, 0.02), angles(d - 1, 12, 0.02)
    z = np.zeros((len(theta), len(phi), d))
    z[..., 0] = np.cos(theta)[:, None]
    z[..., 1] = np.sin(theta)[:, None] * np.cos(phi)
    z[..., 2] = np.sin(theta)[:, None] * np.sin(phi)
    return f64(z.reshape(-1, d)), f64(np.outer(weight, other).ravel())


def point(d: int, first: float, second: float) -> Posterior:
    """Return the posterior u = (first, second, 0, ...)."""
    u = f64([first, second] + [0.0] * (d - 2))
    return Posterior(u / u.norm(), u.norm())


def kernel_by_hand(c: float | np.ndarray, r: float, d: float) -> float | np.ndarray:
    """Return P_r(c) by the formula of section 1."""
    return (1 - r**2) / (1 - 2 * r * c + r**2) ** (d / 2)


def distribution_of_cosine(r: float, d: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return P(c <= x) under the kernel by hand, by the trapezoidal rule in the angle."""
    theta = np.linspace(0, math.pi, 100_001)
    f = kernel_by_hand(np.cos(theta), r, d) * np.sin(theta) ** (d - 2)
    below = np.r_[0, np.cumsum((f[1:] + f[:-1]) / 2)]
    return lambda x: 1 - np.interp(np.arccos(np.clip(x, -1, 1)), theta, below / below[-1])


def fits(samples: Tensor, distribution: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Return whether the Kolmogorov-Smirnov test has a p-value above 1e-3."""
    return bool(stats.kstest(samples.numpy(), distribution).pvalue > 1e-3)


def about(direction: Tensor, radius: float, seed: int) -> Tensor:
    """Draw one sample of P_radius about each direction (n, d)."""
    return sample(Posterior(direction, f64(radius).expand(len(direction))), seeded(seed))


def views(n: int = 5, d: int = 4) -> tuple[Tensor, Tensor]:
    """Return directions (2n, d) and radii (2n,) from .2 to .9 of n pairs."""
    mu = uniform_directions(2 * n, d, seeded(0), f64(0))
    return mu, 0.2 + 0.7 * torch.rand(2 * n, generator=seeded(1), dtype=torch.float64)


def info_nce_by_loops(logit: Callable[[int, int], float], n: int) -> float:
    """Return SimCLR's loss over 2n views; rows i and i + n show one image."""
    total = 0.0
    for i in range(2 * n):
        others = sum(math.exp(logit(i, j)) for j in range(2 * n) if j != i)
        total -= math.log(math.exp(logit(i, (i + n) % (2 * n))) / others)
    return total / (2 * n)


TAU = 0.5

# 1. The model


@pytest.mark.parametrize(
    ("m", "tolerance"), [(2, 1e-9), (3, 1e-9), (16.4, 1e-9), (128, 1e-9), (1.8, 1e-3)]
)
def test_1_1_the_kernel_integrates_to_one(m: float, tolerance: float) -> None:
    """Below two dimensions the density of the cosine is singular, and the rule coarser."""
    for r in (0.0, 0.3, 0.9, 0.99):
        mass = under_uniform(lambda t, r=r: pair_log_kernel(t, r, m).exp().numpy(), m)
        assert mass == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("d", [3, 8])
def test_1_2_the_mean_is_u(d: int) -> None:
    z, weight = sphere(d)
    u = point(d, 0.5, -0.6)
    assert u.mean[:2].tolist() == pytest.approx([0.5, -0.6])
    mean = ((weight * density(u, z))[:, None] * z).sum(0)
    torch.testing.assert_close(mean[:2], f64([0.5, -0.6]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("d", [3, 8])
def test_1_3_harmonic_functions(d: int) -> None:
    z, weight = sphere(d)
    u = point(d, 0.5, -0.6)
    mass = weight * density(u, z)
    harmonic = (
        lambda x: 2 + 3 * x[..., 0] - x[..., 1],
        lambda x: x[..., 0] * x[..., 1],
        lambda x: x[..., 0] ** 2 - x[..., 1] ** 2,
        lambda x: x[..., 0] ** 3 - 3 * x[..., 0] * x[..., 1] ** 2,
    )
    for f in harmonic:
        assert (mass * f(z)).sum().item() == pytest.approx(f(u.mean).item(), abs=1e-5)
    squared = (mass * z[:, 0] ** 2).sum().item()  # not harmonic, but z_0^2 - |z|^2 / d is
    assert squared == pytest.approx(0.5**2 + (1 - 0.61) / d, abs=1e-5)


@pytest.mark.parametrize("d", [3, 8, 128])
def test_1_4_zonal_coefficients(d: int) -> None:
    axis = Posterior(in_plane(0.0, d), f64(0.8))
    for k in (1, 2, 5):

        def weighted(t: np.ndarray, k: int = k) -> np.ndarray:
            zonal = special.eval_gegenbauer(k, d / 2 - 1, np.cos(t))
            return density(axis, in_plane(t, d)).numpy() * zonal

        value = under_uniform(weighted, d) / special.eval_gegenbauer(k, d / 2 - 1, 1.0)
        assert value == pytest.approx(0.8**k, abs=1e-9)


@pytest.mark.parametrize(("d", "a", "b"), [(2, 0.9, 0.8), (3, 0.5, 0.95), (16, 0.8, 0.7)])
def test_1_5_noise_on_noise_multiplies_radii(d: int, a: float, b: float) -> None:
    x = in_plane(torch.zeros(8000), d)
    y = about(about(x, a, seed=2), b, seed=3)
    assert fits((x * y).sum(1), distribution_of_cosine(a * b, d))


@pytest.mark.parametrize("d", [3, 8, 64])
def test_1_6_cosines_of_uniform_directions(d: int) -> None:
    """(1 + c) / 2 has the beta distribution of parameters (d-1)/2."""
    x, y = (uniform_directions(4000, d, seeded(seed), f64(0)) for seed in (4, 5))
    law = stats.beta((d - 1) / 2, (d - 1) / 2).cdf
    assert fits((1 + (x * y).sum(1)) / 2, law)
    assert fits((1 + torch.cat([x, y])[:, 0]) / 2, law)  # the cosine with a fixed direction
    diagonal = torch.cat([x, y])[:, :2].sum(1) / math.sqrt(2)
    assert fits((1 + diagonal) / 2, law)
    mean = losses.mean_squared_cosine(torch.cat([x, y])).item()
    assert mean * d == pytest.approx(1, abs=0.01)  # standard error about sqrt(2) / 8,000
    six = x[:6]  # three images, two views of each
    by_loops = [float(six[i] @ six[j]) ** 2 for i, j in product(range(6), repeat=2) if (i - j) % 3]
    assert losses.mean_squared_cosine(six).item() == pytest.approx(np.mean(by_loops), abs=1e-12)


@pytest.mark.parametrize("d", [2, 8, 64])
def test_1_7_radius_zero_and_radius_one(d: int) -> None:
    z = uniform_directions(100, d, seeded(6), f64(0))
    nothing = Posterior(in_plane(0.0, d), f64(0.0))
    torch.testing.assert_close(density(nothing, z), torch.ones(100, dtype=torch.float64))
    far = []
    for gap in (1e-1, 1e-2, 1e-3):
        axis = Posterior(in_plane(0.0, d), f64(1 - gap))

        def mass_away(t: np.ndarray, axis: Posterior = axis) -> np.ndarray:
            return density(axis, in_plane(t, d)).numpy() * (t > 0.3)

        far.append(under_uniform(mass_away, d))
    assert far[0] > 5 * far[1] > 25 * far[2] and far[2] < 0.03


# 2. Two views of one image


@pytest.mark.parametrize("d", [3, 8])
def test_2_1_evidence_is_the_integral_of_two_posteriors(d: int) -> None:
    z, weight = sphere(d)
    for first, second in (
        ((0.6, 0.2), (0.1, 0.7)),
        ((0.3, 0.0), (-0.5, 0.5)),
        ((0.6, 0.3), (0.6, 0.3)),
    ):
        x, y = point(d, *first), point(d, *second)
        integral = (weight * density(x, z) * density(y, z)).sum().item()
        assert evidence(x, y, dimension=d).exp().item() == pytest.approx(integral, rel=1e-5)
        u, v = np.array(first), np.array(second)
        r2 = (u @ u) * (v @ v)
        formula = math.log(1 - r2) - d / 2 * math.log(1 - 2 * u @ v + r2)
        assert evidence(x, y, dimension=d).item() == pytest.approx(formula, abs=1e-12)


def test_2_2_evidence_is_symmetric_and_zero_without_certainty() -> None:
    (mu, rho), d = views(6, 5), 5
    rho[3] = 0.0
    a = Posterior(mu, rho)
    matrix = evidence_matrix(a, a, dimension=d)
    for i, j in product(range(12), repeat=2):
        r, c = float(rho[i] * rho[j]), float(mu[i] @ mu[j])
        assert matrix[i, j].item() == pytest.approx(math.log(kernel_by_hand(c, r, d)), abs=1e-9)
    pairs = [Posterior(mu[rows], rho[rows]) for rows in (slice(0, 6), slice(6, 12))]
    forwards, backwards = evidence(*pairs, dimension=d), evidence(*pairs[::-1], dimension=d)
    torch.testing.assert_close(forwards, backwards, rtol=0, atol=0)
    torch.testing.assert_close(forwards, matrix.diagonal(6))
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-12)
    assert matrix[3].abs().max() < 1e-14 and forwards[3].abs() < 1e-14


@pytest.mark.parametrize("d", [2, 8, 128])
def test_2_3_mean_exp_evidence_is_one(d: int) -> None:
    view = Posterior(in_plane(0.0, d), f64(0.7))
    for other in (0.2, 0.9):

        def ratio(t: np.ndarray, other: float = other) -> np.ndarray:
            return (
                evidence(view, Posterior(in_plane(t, d), f64(other).expand(len(t))), dimension=d)
                .exp()
                .numpy()
            )

        assert under_uniform(ratio, d) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("d", "rho", "other"), [(3, 0.8, 0.9), (10, 0.6, 0.95)])
def test_2_4_density_of_the_partner(d: int, rho: float, other: float) -> None:
    """Two views are drawn of each latent. They fit the distribution under the evidence."""
    z = uniform_directions(8000, d, seeded(7), f64(0))
    mu, partner = about(z, rho, seed=8), about(z, other, seed=9)
    theta = np.linspace(0, math.pi, 20_001)
    f = pair_log_kernel(theta, rho * other, d).exp().numpy() * np.sin(theta) ** (d - 2)
    below = np.cumsum(f) / f.sum()
    cosine = (mu * partner).sum(1)
    assert fits(cosine, lambda c: 1 - np.interp(np.arccos(np.clip(c, -1, 1)), theta, below))
    away = partner - cosine[:, None] * mu  # about mu every side is alike: no part along any axis
    assert away.mean(0).abs().max() < 5 / math.sqrt(8000 * d)


@pytest.mark.parametrize("d", [2, 8, 128])
def test_2_5_mean_cosine_is_the_product_of_radii(d: int) -> None:
    for r in (0.1, 0.5, 0.95):
        mean = under_uniform(lambda t, r=r: pair_log_kernel(t, r, d).exp().numpy() * np.cos(t), d)
        assert mean == pytest.approx(r, abs=1e-9)
    z = uniform_directions(8000, d, seeded(10), f64(0))
    c = (about(z, 0.6, seed=11) * about(z, 0.9, seed=12)).sum(1)
    assert abs(c.mean() - 0.54) < 4 * c.std() / math.sqrt(8000)


# 3. The loss


def test_3_1_l_what_is_nt_xent() -> None:
    mu, _ = views()
    by_loops = info_nce_by_loops(lambda i, j: float(mu[i] @ mu[j]) / TAU, 5)
    assert losses.nt_xent(mu, TAU).item() == pytest.approx(by_loops, abs=1e-12)
    assert tiles.nt_xent(mu, TAU).item() == pytest.approx(by_loops, abs=1e-12)
    many = uniform_directions(1200, 8, seeded(29), f64(0))  # more than one tile
    assert tiles.nt_xent(many, TAU).item() == pytest.approx(
        losses.nt_xent(many, TAU).item(), abs=1e-12
    )


def log_likelihood_by_loops(mu: Tensor, rho: Tensor, m: float) -> float:
    """Return the mean over views of log P_r(c) of the view and its partner."""
    n = len(mu) // 2
    pairs = [(i, (i + n) % (2 * n)) for i in range(2 * n)]
    return float(
        np.mean(
            [
                math.log(kernel_by_hand(float(mu[i] @ mu[p]), float(rho[i] * rho[p]), m))
                for i, p in pairs
            ]
        )
    )


def test_3_2_the_loss_by_loops() -> None:
    (mu, rho), m = views(), 3.5
    what = info_nce_by_loops(lambda i, j: float(mu[i] @ mu[j]) / TAU, 5)
    how_sure = -log_likelihood_by_loops(mu, rho, m)
    assert losses.radius_likelihood(mu, rho, dimension=m).item() == pytest.approx(
        how_sure, abs=1e-12
    )
    for weight in (0.0, 0.7, 8.0):
        options = {"temperature": TAU, "weight": weight, "dimension": m, "softening": "off"}
        value = losses.sure(mu, rho, empirical_prior=0.0, **options)
        assert value.item() == pytest.approx(what + weight * how_sure, abs=1e-12)
        module = SureLoss(empirical_prior=0.0, **options)
        assert module(Posterior(mu, rho)).item() == pytest.approx(
            what + weight * how_sure, abs=1e-12
        )


@pytest.mark.parametrize(("d", "t"), [(4, 0.3), (4, 0.8), (16, 0.5)])
def test_3_3_the_likelihood_is_strictly_proper(d: int, t: float) -> None:
    """4,000 quantiles of the cosine under P_t (by hand) stand for the expectation."""
    theta = np.linspace(0, math.pi, 400_001)
    f = kernel_by_hand(np.cos(theta), t, d) * np.sin(theta) ** (d - 2)
    angle = np.interp((np.arange(4000) + 0.5) / 4000, np.cumsum(f) / f.sum(), theta)
    mu = torch.cat([in_plane(np.zeros(4000)), in_plane(angle)])

    def expected(r: float) -> float:
        return losses.radius_likelihood(mu, f64(math.sqrt(r)).expand(8000), dimension=d).item()

    best = optimize.minimize_scalar(
        expected, bounds=(1e-6, 0.999), method="bounded", options={"xatol": 1e-6}
    )
    assert best.x == pytest.approx(t, abs=1e-3)
    values = [
        expected(r) for r in np.linspace(0.02, 0.98, 25)
    ]  # falls to the best radius, then rises
    turns = np.sign(np.diff(values))
    assert turns[0] == -1 and turns[-1] == 1 and (np.diff(turns) != 0).sum() == 1


def test_3_4_single_radii_are_identified() -> None:
    truth, d, n = f64([0.35, 0.6, 0.9]), 8, 20_000
    kind = torch.randint(3, (2 * n,), generator=seeded(13))
    z = uniform_directions(n, d, seeded(14), f64(0)).repeat(2, 1)
    mu = sample(Posterior(z, truth[kind]), seeded(15))

    def loss(log_radius: np.ndarray) -> tuple[float, np.ndarray]:
        x = f64(log_radius).requires_grad_()
        value = losses.radius_likelihood(mu, x.exp()[kind], dimension=d)
        value.backward()
        return value.item(), x.grad.numpy()

    bounds = [(-5, -1e-3)] * 3
    best = optimize.minimize(
        loss, np.log([0.5] * 3), jac=True, bounds=bounds, options={"ftol": 1e-13}
    ).x
    assert np.abs(np.exp(best) - truth.numpy()).max() < 0.012  # sampling error about 0.004
    # Two branches that differ: all first views of one kind, all second views of another.
    first, second = f64([0.4]).expand(n), f64([0.6]).expand(n)
    radii = [torch.cat([a * first, second / a]) for a in (1.0, 1.2)]
    values = [losses.radius_likelihood(mu, r, dimension=d).item() for r in radii]
    assert values[0] == pytest.approx(values[1], abs=1e-12)


@pytest.mark.parametrize("softening", ["off", "anchors", "means"])
def test_3_5_each_term_trains_its_own_output(softening: losses.Softening) -> None:
    mu, rho = (x.requires_grad_() for x in views())
    options = {"temperature": TAU, "dimension": 4, "empirical_prior": 0.5, "softening": softening}

    def gradients(weight: float) -> tuple[Tensor | None, ...]:
        loss = losses.sure(mu, rho, weight=weight, **options)
        return torch.autograd.grad(loss, (mu, rho), materialize_grads=True)

    of_mu, of_rho = gradients(weight=0.0)
    assert of_rho.abs().max() == 0 < of_mu.abs().min()  # L_what alone
    both_mu, both_rho = gradients(weight=9.0)
    assert torch.equal(of_mu, both_mu) and both_rho.abs().min() > 0
    assert not losses.radius_likelihood(mu, rho.detach(), dimension=4).requires_grad


@pytest.mark.parametrize(("d", "k"), [(3, 3), (32, 32), (32, 5)])
def test_3_6_inverse_mean_squared_cosine_counts_dimensions(d: int, k: int) -> None:
    inside = uniform_directions(4000, k, seeded(16), f64(0))
    turn = torch.linalg.qr(torch.randn(d, d, generator=seeded(17), dtype=torch.float64))[0]
    mu = inside @ turn[:k]
    assert 1 / losses.mean_squared_cosine(mu).item() == pytest.approx(k, rel=0.01)
    loss = SureLoss(
        temperature=TAU, weight=1.0, dimension="measured", softening="off", empirical_prior=0.0
    )
    loss.update(mu)
    assert loss.kernel_dimension == pytest.approx(k, rel=0.01)


def test_3_7_softening_of_anchors() -> None:
    mu, rho = views()
    mean = float(rho.mean())
    q = [r * mean / (1 + (r * mean) ** 2) for r in rho.tolist()]
    a = [x / np.mean(q) for x in q]
    assert losses.sharpness(rho).tolist() == pytest.approx(a, abs=1e-12)
    by_loops = info_nce_by_loops(lambda i, j: float(mu[i] @ mu[j]) * a[i] / TAU, 5)
    for module in (losses, tiles):
        value = module.sure(mu, rho, temperature=TAU, weight=0.0, softening="anchors")
        assert value.item() == pytest.approx(by_loops, abs=1e-12)


def test_3_8_softening_by_posterior_means() -> None:
    mu, rho = views()  # the surest view has less than twice the mean radius
    u, mean = rho[:, None] * mu, float(rho.mean())
    by_loops = info_nce_by_loops(lambda i, j: float(u[i] @ u[j]) / (TAU * mean**2), 5)
    value = losses.sure(mu, rho, temperature=TAU, weight=0.0, softening="means")
    assert value.item() == pytest.approx(by_loops, abs=1e-12)
    one_sure = torch.full((10,), 0.05, dtype=torch.float64)
    one_sure[3] = 0.9  # 6.7 times the mean of 0.135
    lengths = losses.posterior_means(mu, one_sure).norm(dim=1)
    ratio = (lengths / lengths[0]).tolist()
    assert ratio == pytest.approx([2 / (0.05 / 0.135) if i == 3 else 1 for i in range(10)])
    z, other = about(mu[:1].expand(20_000, -1), 0.7, 18), about(mu[1:2].expand(20_000, -1), 0.8, 19)
    cosine = (z * other).sum(1)  # latents of two independent views
    expected = 0.7 * 0.8 * float(mu[0] @ mu[1])
    assert abs(cosine.mean() - expected) < 4 * cosine.std() / math.sqrt(20_000)


@pytest.mark.parametrize("softening", ["off", "anchors", "means"])
def test_3_9_equal_radii_soften_nothing(softening: losses.Softening) -> None:
    mu, rho = views()
    equal = torch.full_like(rho, 0.37)
    by_loops = info_nce_by_loops(lambda i, j: float(mu[i] @ mu[j]) / TAU, 5)
    value, other = (
        losses.sure(mu, r, temperature=TAU, weight=0.0, softening=softening) for r in (equal, rho)
    )
    assert value.item() == pytest.approx(by_loops, abs=1e-12)
    assert (abs(other.item() - by_loops) < 1e-12) == (softening == "off")


def test_3_10_the_empirical_prior() -> None:
    (mu, rho), m, n = views(), 3.5, 5
    ratios, base_rate = [], []
    for i in range(2 * n):
        kernel = [
            kernel_by_hand(float(mu[i] @ mu[j]), float(rho[i] * rho[j]), m) for j in range(2 * n)
        ]
        others = np.mean([kernel[j] for j in range(2 * n) if j % n != i % n])
        ratios.append(math.log(kernel[(i + n) % (2 * n)] / others))
        base_rate.append(math.log(others))
    rate = losses.log_base_rate(mu, rho, dimension=m).item()
    assert rate == pytest.approx(np.mean(base_rate), abs=1e-12)
    options = {"temperature": TAU, "weight": 1.0, "dimension": m, "softening": "off"}
    value = losses.sure(mu, rho, empirical_prior=1.0, **options) - losses.nt_xent(mu, TAU)
    assert value.item() == pytest.approx(-np.mean(ratios), abs=1e-12)
    uniform = uniform_directions(1280, 4, seeded(20), f64(0))
    radii = 0.3 + 0.3 * torch.rand(1280, generator=seeded(21), dtype=torch.float64)
    assert abs(losses.log_base_rate(uniform, radii, dimension=4).item()) < 0.01


# 4. NT-Xent is the case of equal certainty


def radius_of_temperature(tau: float, d: int) -> float:
    """Return r with 1/tau = d r / (1 + r^2), or raise ValueError where there is none."""
    a = 2 / (tau * d)
    return (1 - math.sqrt(1 - a**2)) / a


def test_4_1_infonce_over_evidence_becomes_nt_xent() -> None:
    """Doubling d halves the difference."""
    (mu, _), errors = views(12, 8), []
    for d in (256, 512, 1024, 2048):
        radii = f64(math.sqrt(radius_of_temperature(TAU, d))).expand(24)
        s = evidence_matrix(Posterior(mu, radii), Posterior(mu, radii), dimension=d).tolist()
        loss = info_nce_by_loops(lambda i, j, s=s: s[i][j], 12)
        errors.append(abs(loss - losses.nt_xent(mu, TAU).item()))
    assert [a / b for a, b in pairwise(errors)] == pytest.approx([2, 2, 2], rel=0.05)
    assert errors[-1] < 1 / (TAU**2 * 2048)


@pytest.mark.parametrize(("tau", "d"), [(0.1, 128), (0.5, 128), (0.2, 16), (0.05, 4096)])
def test_4_2_bound_on_the_difference_of_logits(tau: float, d: int) -> None:
    r, a = radius_of_temperature(tau, d), 2 / (tau * d)
    theta = np.linspace(0, math.pi, 1001)
    s = pair_log_kernel(theta, r, d).numpy()
    constant = math.log(1 - r**2) - d / 2 * math.log(1 + r**2)
    difference = np.abs(s - constant - np.cos(theta) / tau).max()
    bound = 1 / (tau**2 * d * (1 - a))
    assert 0.3 * bound < difference < bound  # the bound is not idle


def test_4_3_a_radius_exists_above_two_over_d() -> None:
    """The inverse temperature is the slope of s in c at c = 0, here by finite differences."""
    for d in (8, 128):

        def inverse_temperature(r: float, d: int = d) -> float:
            step = 1e-5  # the angle falls as the cosine grows
            s = pair_log_kernel([math.pi / 2 - step, math.pi / 2 + step], r, d)
            return float(s[0] - s[1]) / (2 * step)

        slopes = [inverse_temperature(r) for r in np.linspace(0, 0.9999, 200)]
        assert (np.diff(slopes) > 0).all()  # so one radius for each temperature
        assert slopes[-1] == pytest.approx(d / 2, rel=1e-4) and slopes[-1] < d / 2
        r = radius_of_temperature(0.4, d)
        assert inverse_temperature(r) == pytest.approx(1 / 0.4, rel=1e-6)
    with pytest.raises(ValueError, match="math domain error|nonnegative"):
        radius_of_temperature(0.2, 8)
    r = radius_of_temperature(0.1, 128)
    assert (r, math.sqrt(r)) == (pytest.approx(0.079, abs=5e-4), pytest.approx(0.28, abs=5e-3))


def test_4_4_temperatures_from_the_number_of_images() -> None:
    def temperature(n: float, d: int) -> float:
        r = optimize.brentq(
            lambda r: pair_log_kernel(0.0, r, d).item() - math.log(n), 1e-12, 1 - 1e-9
        )
        return (1 + r**2) / (d * r)

    n = (5e4, 1.3e6, 4e8)
    assert [temperature(x, 128) for x in n] == pytest.approx([0.097, 0.076, 0.056], abs=5e-4)
    assert [temperature(x, 16) for x in n] == pytest.approx([0.156, 0.142, 0.132], abs=5e-4)
    assert 1 / temperature(5e4, 10**7) == pytest.approx(math.log(5e4), rel=1e-5)


# 5. Numerics and parameterisation


def test_5_1_float32_evidence_of_close_pairs() -> None:
    """The witness is float64, from the same float32 numbers."""
    mu = uniform_directions(200, 128, seeded(22), f64(0))
    near = mu + 1e-3 * uniform_directions(200, 128, seeded(23), f64(0))
    mu, near = mu.float(), (near / near.norm(dim=1, keepdim=True)).float()
    gap = torch.full((200,), 1e-3)
    a, b = (Posterior(x, 1 - gap, gap) for x in (mu, near))
    wide_gap = gap.double()
    exact_gap = 2 * wide_gap - wide_gap**2  # 1 - r
    squared = (mu.double() - near.double()).square().sum(1)
    lengths = exact_gap**2 + (1 - exact_gap) * squared
    exact = torch.log(exact_gap * (2 - exact_gap)) - 64 * torch.log(lengths)
    assert (evidence(a, b, dimension=128) - exact).abs().max() < 2e-4
    assert (evidence_matrix(a, b, dimension=128).diagonal() - exact).abs().max() < 1e-3
    r = a.radius * b.radius
    plain = torch.log(1 - r**2) - 64 * torch.log(1 - 2 * (a.mean * b.mean).sum(1) + r**2)
    assert (plain - exact).abs().max() > 1


def test_5_2_the_radius_is_bounded_smoothly() -> None:
    loss = SureLoss(temperature=TAU, weight=1.0, dimension=4, softening="off", empirical_prior=0.0)
    k = f64(np.r_[-np.logspace(6, -3, 50), 0.0, np.logspace(-3, 6, 50)]).requires_grad_()
    posterior = loss.read(f64(np.ones((101, 4))), k)
    limit = math.log(999)
    by_hand = 1 / (1 + np.exp(-k.detach().numpy() / np.sqrt(1 + (k.detach().numpy() / limit) ** 2)))
    assert posterior.radius.tolist() == pytest.approx(by_hand.tolist(), abs=1e-12)
    assert (posterior.radius + posterior.gap).tolist() == pytest.approx([1.0] * 101)
    assert posterior.radius[50] == 0.5 and posterior.gap.min() > 1e-3 * (1 - 1e-9)
    (slope,) = torch.autograd.grad(posterior.radius.sum(), k)
    assert (slope > 0).all()
    power = torch.log(slope[-1] / slope[-10]) / torch.log(k[-1] / k[-10])
    assert power.item() == pytest.approx(-3, abs=0.01)


@pytest.mark.parametrize("m", [1.5, 4.0, 128.0])
def test_5_3_the_slope_is_bounded_by_the_dimension(m: float) -> None:
    """Finite differences of the evidence give the slope in r, autograd that in the logit."""
    theta, r = np.meshgrid(np.linspace(0, math.pi, 61), special.expit(np.linspace(-7, 6, 53)))
    c, step = np.cos(theta), 1e-6 * (1 - r)
    slope = (pair_log_kernel(theta, r + step, m) - pair_log_kernel(theta, r - step, m)).numpy() / (
        2 * step
    )
    formula = m * (c - r) / (1 - 2 * r * c + r**2) - 2 * r / (1 - r**2)
    np.testing.assert_allclose(slope, formula, rtol=1e-4, atol=1e-4 * m)
    mu = torch.cat([in_plane(0 * theta.ravel()), in_plane(theta.ravel())])
    rho = f64(np.r_[r.ravel(), np.full(r.size, 1 - 1e-9)]).requires_grad_()  # the partner's is 1
    (gradient,) = torch.autograd.grad(losses.radius_likelihood(mu, rho, dimension=m), rho)
    by_logit = -gradient[: r.size].numpy() * r.size * r.ravel() * (1 - r.ravel())
    np.testing.assert_allclose(by_logit, (formula * r * (1 - r)).ravel(), rtol=1e-5, atol=1e-5 * m)
    assert np.abs(by_logit).max() < m
    if m > 2:
        assert np.abs(by_logit).max() > 0.7 * m  # the bound is not idle


def test_5_4_the_diagnostic_of_the_model() -> None:
    """In 40 worlds of 200 images the estimate is unbiased in E, and its error is the spread."""
    ratios, errors = [], []
    for seed in range(40):
        mu = uniform_directions(200, 4, seeded(seed), f64(0))
        radii = 0.3 + 0.3 * torch.rand(200, generator=seeded(100 + seed), dtype=torch.float64)
        value, error = losses.log_mean_exp_evidence(Posterior(mu, radii), dimension=4, views=1)
        ratios.append(math.exp(value))
        errors.append(error)
    assert abs(np.mean(ratios) - 1) < 4 * np.std(ratios) / math.sqrt(40)
    assert 0.5 < np.std(ratios) / np.mean(errors) < 1.5
    crowded = torch.nn.functional.normalize(mu + f64([1.0, 0, 0, 0]), dim=1)
    value, error = losses.log_mean_exp_evidence(Posterior(crowded, radii), dimension=4, views=1)
    assert value > 5 * error


@pytest.mark.parametrize(("d", "r"), [(2, 0.9), (3, 0.9), (8, 0.8), (128, 0.3)])
def test_5_5_second_moment_of_the_density_ratio(d: int, r: float) -> None:
    moment = under_uniform(lambda t: (2 * pair_log_kernel(t, r, d)).exp().numpy(), d)
    assert moment == pytest.approx((1 + r**2) / (1 - r**2) ** (d - 1), rel=1e-8)


# 6. What to read off


@pytest.mark.parametrize("d", [2, 3, 16, 128])
def test_6_1_information(d: int) -> None:
    nu, k = d / 2 - 1, np.arange(1, 40_000)
    for rho in (0.1, 0.6, 0.95):
        value = information(f64(rho), d).item()
        series = -nu * math.log(1 - rho**2) + d / 2 * math.fsum(rho ** (2 * k) / (k + nu))
        assert value == pytest.approx(series, rel=1e-11)
        axis = Posterior(in_plane(0.0, d), f64(rho))

        def entropy_density(t: np.ndarray, axis: Posterior = axis) -> np.ndarray:
            log_p = log_density(axis, in_plane(t, d)).numpy()
            return np.exp(log_p) * log_p

        assert value == pytest.approx(under_uniform(entropy_density, d), rel=1e-8)
    assert information(f64(1e-3), d).item() == pytest.approx(d / 2 * 1e-6, rel=1e-5)
    rest = 1 - 0.999999**2
    sure = -(d - 1) * math.log(rest) - d / 2 * (special.digamma(d / 2) + np.euler_gamma)
    assert information(f64(0.999999), d).item() == pytest.approx(sure, rel=2e-5 * d)


@pytest.mark.parametrize("d", [2, 3, 8, 128])
@pytest.mark.parametrize("r", [0.05, 0.5, 0.9])
def test_6_2_fisher_information_of_a_radius(d: int, r: float) -> None:
    """The mean squared slope of log P in r, by finite differences of the evidence."""
    step = 1e-5

    def squared_score(t: np.ndarray) -> np.ndarray:
        score = (pair_log_kernel(t, r + step, d) - pair_log_kernel(t, r - step, d)) / (2 * step)
        return (pair_log_kernel(t, r, d).exp() * score**2).numpy()

    formula = d / (1 - r**2) ** 2 * (1 - (d - 2) * (d - 4) * r**2 / (d * (d + 2)))
    assert under_uniform(squared_score, d) == pytest.approx(formula, rel=1e-5)


VIEWS = np.array([[0.7, 0.2], [-0.3, 0.85], [0.1, 0.6]])  # they conflict; radii .73, .90, .61


@cache
def mean_of_product(d: int, count: int) -> np.ndarray:
    """Return the mean of the normalised product of the first posteriors of VIEWS, by quadrature."""
    z, weight = sphere(d)
    log_product = sum(log_density(point(d, *u), z) for u in VIEWS[:count])
    mass = weight * (log_product - log_product.max()).exp()
    return ((mass[:, None] * z).sum(0) / mass.sum())[:2].numpy()


@pytest.mark.parametrize("d", [3, 8, 32])
def test_6_3_mean_of_two_fused_views(d: int) -> None:
    (u, v), (a, b) = VIEWS[:2], (VIEWS[:2] ** 2).sum(1)
    formula = ((1 - b) * u + (1 - a) * v) / (1 - a * b)
    np.testing.assert_allclose(mean_of_product(d, 2), formula, atol=1e-5)


def fixed_point(u: np.ndarray) -> np.ndarray:
    """Return m of (6.4) for points u (K, 2), after 2,000 rounds."""
    m = np.zeros(u.shape[1])
    for _ in range(2000):
        s = (u / (1 + (u**2).sum(1) - 2 * u @ m)[:, None]).sum(0)
        m = 2 * s / (1 + math.sqrt(1 + 4 * s @ s))
    return m


def test_6_4_fixed_point_for_many_views() -> None:
    for d in (3, 32):
        for count in (1, 2):
            np.testing.assert_allclose(
                mean_of_product(d, count), fixed_point(VIEWS[:count]), atol=1e-5
            )
    errors = [np.linalg.norm(mean_of_product(d, 3) - fixed_point(VIEWS)) for d in (4, 32, 128)]
    assert errors == pytest.approx([0.019, 0.0097, 0.0035], rel=0.05)


def test_6_5_the_average_is_the_mean_of_the_mixture() -> None:
    z, weight = sphere(8)
    mixture = sum(density(point(8, *u), z) for u in VIEWS) / 3
    average = VIEWS.mean(0)
    np.testing.assert_allclose(((weight * mixture)[:, None] * z).sum(0)[:2], average, atol=1e-5)
    assert np.linalg.norm(average) < np.linalg.norm(VIEWS, axis=1).max()


@pytest.mark.parametrize("rho", [0.2, 0.7, 0.99])
def test_6_6_closed_form_of_the_cosine_in_three_dimensions(rho: float) -> None:
    """The library's samples of c, put into the formula solved for U, are uniform."""
    c = about(in_plane(torch.zeros(8000), 3), rho, seed=24)[:, 0]
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    formula = (1 + rho**2 - ((1 - rho**2) / (1 - rho + 2 * rho * u)) ** 2) / (2 * rho)

    def solved(c: Tensor) -> Tensor:
        return ((1 - rho**2) / (1 + rho**2 - 2 * rho * c).sqrt() - 1 + rho) / (2 * rho)

    torch.testing.assert_close(solved(formula), u)
    assert fits(solved(c), stats.uniform.cdf)


def rapidity(d: int, rho: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return v, the log-density of v by the library's density, h(v), and the printed mode v0."""
    v = np.linspace(-30, 50, 80_001)
    half = v / 2
    angle = 2 * np.arctan(np.exp(-half))  # cos(angle) = tanh(v / 2)
    log_p = log_density(Posterior(in_plane(0.0, d), f64(rho)), in_plane(angle, d)).numpy()
    log_f = (
        log_p + (d - 1) * -np.log(np.cosh(half)) - math.log(2) - special.betaln((d - 1) / 2, 0.5)
    )
    delta = 4 * math.atanh(rho)
    h = (d - 1) / 2 * v - (d - 2) / 2 * np.logaddexp(0, v) - d / 2 * np.logaddexp(0, v - delta)
    return v, log_f, h, delta / 2 + math.asinh(math.sinh(delta / 2) / (d - 1))


RAPIDITIES = [(d, rho) for d in (2, 3, 8, 128) for rho in (0.0, 0.5, 0.99)]


@pytest.mark.parametrize(("d", "rho"), RAPIDITIES)
def test_6_7_the_density_of_the_rapidity(d: int, rho: float) -> None:
    v, log_f, h, mode = rapidity(d, rho)
    inside = np.abs(v) < 20  # further out the library's 1 - c has lost its digits
    constant = (log_f - h)[inside]
    assert np.ptp(constant) < 1e-5
    f = np.exp(h + constant.mean())
    assert f.sum() * (v[1] - v[0]) == pytest.approx(1, abs=1e-4)
    coarse = h[::100]
    assert (np.diff(coarse, 2) <= 1e-9).all()  # concave
    assert v[log_f.argmax()] == pytest.approx(mode, abs=2e-3)
    q, x = math.exp(-4 * math.atanh(rho)), math.exp(mode)
    assert q * x**2 - x * (1 - q) / (d - 1) - 1 == pytest.approx(0, abs=1e-9 * x)


@pytest.mark.parametrize(("d", "rho"), RAPIDITIES)
def test_6_8_the_hat_accepts_one_in_four(d: int, rho: float) -> None:
    v, log_f, _, mode = rapidity(d, rho)
    height = math.exp(np.interp(mode, v, log_f))
    hat = height * np.minimum(1, np.exp(1 - height * np.abs(v - mode)))
    assert (np.exp(log_f) <= hat * (1 + 1e-4)).all()
    wide = np.linspace(mode - 60 / height, mode + 60 / height, 400_001)
    area = (height * np.minimum(1, np.exp(1 - height * np.abs(wide - mode)))).sum() * (
        wide[1] - wide[0]
    )
    assert area == pytest.approx(4, abs=1e-3)
    assert np.exp(log_f).sum() * (v[1] - v[0]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("d", "rho"), [(2, 0.5), (3, 0.95), (16, 0.7), (128, 0.4), (128, 0.98)])
def test_6_9_samples_have_the_density(d: int, rho: float) -> None:
    n = 8000
    mu = uniform_directions(1, d, seeded(25), f64(0))
    z = about(mu.expand(n, d), rho, seed=26)
    c = z @ mu[0]
    assert fits(c, distribution_of_cosine(rho, d))
    across = z - c[:, None] * mu
    across = across / across.norm(dim=1, keepdim=True)
    assert (across @ mu[0]).abs().max() < 1e-8
    along = torch.linalg.svd(mu)[2][1]  # a direction perpendicular to mu
    if d == 2:
        assert abs(((across @ along) > 0).double().mean() - 0.5) < 4 * 0.5 / math.sqrt(n)
    else:
        uniform = stats.beta((d - 2) / 2, (d - 2) / 2).cdf
        assert fits((1 + across @ along) / 2, uniform)


# 7. How we know


@pytest.mark.parametrize(("d", "rho"), [(3, 0.8), (10, 0.6)])
def test_7_1_the_recovery_world_is_the_model(d: int, rho: float) -> None:
    """Where mu lies must not matter: the half of the sphere about the first axis, and the other."""
    z = uniform_directions(16_000, d, seeded(27), f64(0))
    mu = about(z, rho, seed=28)
    for side in (mu[:, 0] > 0, mu[:, 0] <= 0):
        cosine = (z * mu)[side].sum(1)
        assert fits(cosine, distribution_of_cosine(rho, d))
        rest = (z - rho * mu)[side]  # mean 0 given mu
        assert (rest.mean(0).abs() < 4.5 * rest.std(0) / math.sqrt(len(rest))).all()


# 9. Three questions


def test_9_1_mean_of_the_mixture() -> None:
    (z, weight), pi = sphere(8), 0.7
    u = point(8, 0.5, -0.6)
    mean = ((weight * (pi * density(u, z) + 1 - pi))[:, None] * z).sum(0)[:2]
    torch.testing.assert_close(mean, pi * u.mean[:2], rtol=0, atol=1e-6)

    def joint(t: np.ndarray) -> np.ndarray:  # of two views of one image, pi' = 0.5, r = 0.6
        return 1 + pi * 0.5 * (pair_log_kernel(t, 0.6, 8).exp().numpy() - 1)

    cosine = under_uniform(lambda t: joint(t) * np.cos(t), 8)
    assert cosine == pytest.approx(pi * 0.5 * 0.6, abs=1e-9)


def test_9_2_density_ratio_of_two_mixtures() -> None:
    (z, weight), pi, other = sphere(8), 0.7, 0.4
    for angle in (0.0, 1.0, math.pi):
        x = Posterior(in_plane(0.3, 8), f64(0.75))
        y = Posterior(in_plane(0.3 + angle, 8), f64(0.6))
        mixtures = (pi * density(x, z) + 1 - pi) * (other * density(y, z) + 1 - other)
        ratio = 1 + pi * other * (evidence(x, y, dimension=8).exp().item() - 1)
        assert (weight * mixtures).sum().item() == pytest.approx(ratio, rel=1e-5)
        assert math.log(ratio) >= math.log(1 - pi * other)


@pytest.mark.parametrize("d", [2, 8, 128])
def test_9_3_null_views_want_radius_zero(d: int) -> None:
    radii = np.linspace(0, 0.95, 20)
    means = [under_uniform(lambda t, r=r: pair_log_kernel(t, r, d).numpy(), d) for r in radii]
    assert means[0] == pytest.approx(0, abs=1e-12) and (np.diff(means) < 0).all()
    c = np.linspace(-0.9, 0.9, 7)
    slope = pair_log_kernel(np.arccos(c), 1e-6, d).numpy() / 1e-6
    np.testing.assert_allclose(slope, d * c, atol=1e-3 * d)


def pair_of_mixtures(angle: object, r: float, p: float, m: float, d: int = 2) -> Tensor:
    """Return the library's s_pi of two views at these angles with pi pi' = p and rho rho' = r."""
    mu = in_plane(angle, d)
    numbers = [f64(x).sqrt().expand(mu.shape[:-1]) for x in (r, p)]
    one, other = (
        Posterior(x, numbers[0], presence=numbers[1]) for x in (in_plane(0.0, d).expand_as(mu), mu)
    )
    return evidence(one, other, dimension=m)


@pytest.mark.parametrize("d", [2, 3, 10])
def test_9_4_mean_exp_evidence_of_mixtures_is_one(d: int) -> None:
    for p, r in ((0.3, 0.5), (0.9, 0.7)):
        mean = under_uniform(lambda t, p=p, r=r: pair_of_mixtures(t, r, p, d).exp().numpy(), d)
        assert mean == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("d", [2, 3, 10])
def test_9_5_presence_and_radius_are_identified(d: int) -> None:
    pi, rho = (0.9, 0.6, 0.7), (0.8, 0.7, 0.9)
    found = {}
    for i, j in ((0, 1), (0, 2), (1, 2)):
        p, r = pi[i] * pi[j], rho[i] * rho[j]

        def moment(k: int, p: float = p, r: float = r) -> float:
            def zonal(t: np.ndarray) -> np.ndarray:
                c = np.cos(t)
                return c if k == 1 else (d * c**2 - 1) / (d - 1)

            return under_uniform(lambda t: pair_of_mixtures(t, r, p, d).exp().numpy() * zonal(t), d)

        first, second = moment(1), moment(2)
        found[i, j] = first**2 / second, second / first
        assert found[i, j] == pytest.approx((p, r), abs=1e-6)
    for number, truth in enumerate((pi[0], rho[0])):
        single = found[0, 1][number] * found[0, 2][number] / found[1, 2][number]
        assert math.sqrt(single) == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("d", [2, 8])
def test_9_6_null_views_want_no_presence_or_no_radius(d: int) -> None:
    def score(p: float, r: float) -> float:
        return under_uniform(lambda t: pair_of_mixtures(t, r, p, d).numpy(), d)

    for x in (0.1, 0.5, 0.9):
        assert abs(score(0.0, x)) < 1e-12 and abs(score(x, 0.0)) < 1e-12
        falling = [score(x, r) for r in (0.1, 0.4, 0.8)], [score(p, x) for p in (0.1, 0.5, 1.0)]
        assert all(values[0] < 0 and (np.diff(values) < 0).all() for values in falling)


def test_9_7_mean_of_two_fused_mixtures() -> None:
    (z, weight), pi, other, d = sphere(8), 0.7, 0.4, 8
    x, y = point(d, 0.5, -0.4), point(d, -0.2, 0.6)
    product_of_both = (pi * density(x, z) + 1 - pi) * (other * density(y, z) + 1 - other) * weight
    mean = (product_of_both[:, None] * z).sum(0) / product_of_both.sum()
    u, v, a, b = x.mean, y.mean, x.radius**2, y.radius**2
    fused = ((1 - b) * u + (1 - a) * v) / (1 - a * b)
    ratio = evidence(x, y).exp()
    cases = pi * other * ratio * fused + pi * (1 - other) * u + other * (1 - pi) * v
    formula = cases / (1 + pi * other * (ratio - 1))
    torch.testing.assert_close(mean[:2], formula[:2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("d", [2, 10])
def test_9_8_information_of_the_mixture(d: int) -> None:
    rho, steps = 0.6, np.linspace(0, 1, 11)
    values = information(f64(rho).expand(11), d, presence=f64(steps)).numpy()
    assert values[0] == 0 and values[-1] == information(f64(rho), d).item()
    assert (np.diff(values, 2) > 0).all() and (values[1:-1] < steps[1:-1] * values[-1]).all()

    def integrand(t: np.ndarray) -> np.ndarray:
        q = 1 + 0.3 * (kernel_by_hand(np.cos(t), rho, d) - 1)
        return q * np.log(q)

    assert values[3] == pytest.approx(under_uniform(integrand, d), abs=1e-9)


def test_9_9_conformal_p_values_are_valid() -> None:
    draws = np.random.default_rng(0).normal(size=(20_000, 20))
    for scores in (draws, np.round(draws)):  # without and with ties
        p = (1 + (scores[:, 1:] >= scores[:, :1]).sum(1)) / 20
        for a in (0.05, 0.1, 0.33, 0.5):
            share = (p <= a).mean()
            exact = math.floor(20 * a + 1e-9) / 20
            assert share <= exact + 4.5 * math.sqrt(exact * (1 - exact) / len(p)) and exact <= a
            if scores is draws:
                assert share == pytest.approx(exact, abs=0.015)


def test_9_10_prediction_sets_cover() -> None:
    rng, n, classes = np.random.default_rng(0), 19, 4
    labels = rng.integers(classes, size=(8_000, n + 1))
    score = rng.gumbel(size=(8_000, n + 1, classes))  # a model that knows little
    score[labels[..., None] == np.arange(classes)] -= 0.5
    own = np.take_along_axis(score, labels[..., None], 2)[..., 0]
    for a in (0.1, 0.2, 0.01):
        k = math.ceil((n + 1) * (1 - a) - 1e-9)
        limit = np.sort(own[:, :n], 1)[:, k - 1] if k <= n else np.full(len(own), np.inf)
        sets = score[:, n] <= limit[:, None]
        covered = sets[np.arange(len(sets)), labels[:, n]].mean()
        assert covered >= 1 - a - 4.5 * math.sqrt(a * (1 - a) / len(sets))
        assert covered == pytest.approx(k / (n + 1), abs=0.02)


def test_9_11_lengths_soften_to_first_order() -> None:
    angle, m, p, r = np.linspace(0.1, 3, 6), 8, 0.35, 1e-6
    slope = pair_of_mixtures(angle, r, p, m, 8).numpy() / r
    np.testing.assert_allclose(slope, m * p * np.cos(angle), atol=1e-3)
    views = [Posterior(in_plane(t, 8), f64(1e-3), presence=f64(0.6)) for t in (0.0, 1.0)]
    means = (views[0].mean * views[1].mean).sum().item()
    assert evidence(*views).item() == pytest.approx(8 * means, rel=1e-4)


def test_9_12_evidence_against_a_gallery() -> None:
    z, weight = sphere(8)
    gallery = [
        Posterior(in_plane(angle, 8), f64(rho), presence=f64(pi))
        for angle, rho, pi in ((0.2, 0.7, 0.9), (1.5, 0.4, 0.5), (2.5, 0.6, 1.0))
    ]
    view = Posterior(in_plane(0.5, 8), f64(0.65), presence=f64(0.8))
    law = torch.stack([density(item, z) for item in gallery]).mean(0)
    expected = (weight * density(view, z) * law).sum().item()
    found = np.mean([evidence(view, item).exp().item() for item in gallery])
    assert found == pytest.approx(expected, rel=1e-5)


# Both documents

ROOT = Path(__file__).parents[1]
THEORY = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
CITED = sorted(
    [
        *ROOT.glob("sureclr/**/*.py"),
        *ROOT.glob("tests/**/*.py"),
        *ROOT.glob("benchmarks/**/*.py"),
        ROOT / "README.md",
    ]
)
NUMBER = r"\d+(?:\.\d+)?"
CITATION = re.compile(
    rf"(?<![A-Za-z])theory(?:\.md)?,?[\s_#]+(?:sections?\s+)?\(?({NUMBER}(?:(?:,\s*|\s+and\s+|\s*-\s*){NUMBER})*)",
    re.IGNORECASE,
)


def plain(text: str) -> str:
    """Return the text on one line and without code marks."""
    return " ".join(text.replace("`", "").split())


def claims_of_the_theory() -> dict[str, str]:
    """Return number -> text, from a claim's number to the name of its test."""
    matches = re.findall(r"\*\*\((\d+\.\d+)\)\*\*(.*?\*Test:\s+`\w+`\.\*)", THEORY, re.DOTALL)
    return {number: plain(text) for number, text in matches}


def claims_of_this_module() -> dict[str, str]:
    """Return number -> sentence, from the docstring above."""
    matches = re.findall(r"^\((\d+\.\d+)\) (.*?)(?=^\(|^$)", __doc__, re.DOTALL | re.MULTILINE)
    return {number: plain(sentence) for number, sentence in matches}


def cited_sections(text: str) -> set[str]:
    """Return the sections and claims that a text cites; a range counts as its two ends."""
    return {number for listed in CITATION.findall(text) for number in re.findall(NUMBER, listed)}


def headings() -> list[str]:
    """Return the numbers of the sections of the theory."""
    return re.findall(r"^## (\d+)\. ", THEORY, re.MULTILINE)


def test_both_documents_have_the_same_claims_in_order() -> None:
    numbers = re.findall(r"\*\*\((\d+\.\d+)\)\*\*", THEORY)
    assert numbers == list(claims_of_the_theory()) == list(claims_of_this_module())
    by_section: dict[str, list[int]] = {}
    for section, claim in (number.split(".") for number in numbers):
        by_section.setdefault(section, []).append(int(claim))
    assert all(claims == list(range(1, len(claims) + 1)) for claims in by_section.values())


@pytest.mark.parametrize("number", claims_of_this_module())
def test_a_claim_opens_with_the_sentence_of_the_docstring(number: str) -> None:
    assert claims_of_the_theory()[number].startswith(claims_of_this_module()[number])


@pytest.mark.parametrize("number", claims_of_this_module())
def test_a_claim_stands_in_its_section_and_names_its_test(number: str) -> None:
    before = THEORY[: THEORY.index(f"**({number})**")]
    assert re.findall(r"^## (\d+)\. ", before, re.MULTILINE)[-1] == number.split(".")[0]
    (name,) = re.findall(r"\*Test: (\w+)\.\*", claims_of_the_theory()[number])
    assert name.startswith(f"test_{number.replace('.', '_')}_") and callable(globals()[name])


def test_every_numbered_test_belongs_to_one_claim() -> None:
    named = re.findall(r"Test:\s+`(test_\w+)`", THEORY)
    tests = [name for name in globals() if re.match(r"test_\d+_\d+_", name)]
    assert sorted(named) == sorted(tests) and len(set(named)) == len(named)


def test_the_theory_has_sections_one_to_ten() -> None:
    assert headings() == [str(number) for number in range(1, 11)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("as in theory 2", "2"),
        ("(theory 1, 2, 5)", "1 2 5"),
        ("(theory.md, sections 1, 2, 5 and 6)", "1 2 5 6"),
        ("Theory 7's experiment, 3 seeds", "7"),
        ("theory.md, section 5)", "5"),
        ("docs/theory.md, sections 2-4", "2 4"),
        ("theory\n    # 6 has it", "6"),
        ("test_slope_of_theory_5_is_bounded", "5"),
        ("theory (6.4), theory 3.10", "6.4 3.10"),
        ("Song et al. 2012, theorem 3; in theory all 3 hold", ""),
    ],
)
def test_citations_are_read(text: str, expected: str) -> None:
    assert cited_sections(text) == set(expected.split())


@pytest.mark.parametrize("file", CITED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_cited_section_exists(file: Path) -> None:
    known = {*headings(), *claims_of_the_theory()}
    assert cited_sections(file.read_text(encoding="utf-8")) <= known


def test_the_code_cites_the_theory() -> None:
    """So the test above reads the right files: the model, the evidence and the loss are cited."""
    cited = set().union(
        *(
            cited_sections(file.read_text(encoding="utf-8"))
            for file in CITED
            if "sureclr" in file.parts
        )
    )
    assert {"1", "2", "3", "5", "6"} <= cited


def test_every_claim_test_asserts_something() -> None:
    """A body that checks nothing would leave a statement unproven."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and re.match(r"test_\d+_\d+_", node.name):
            calls = [ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)]
            checks = any(isinstance(n, ast.Assert) for n in ast.walk(node)) or any(
                "assert" in call or "gradcheck" in call or "raises" in call for call in calls
            )
            assert checks, node.name
