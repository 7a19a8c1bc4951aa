"""The laws of theory 7 that concern the sphere. Witness: quadrature over the sphere, built here."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import eval_gegenbauer, gammaln, psi

from sureclr.errors import UserError
from sureclr.maths import sphere
from sureclr.maths.sphere import (
    GAP_MIN,
    Posterior,
    at_least_float32,
    cosine_gap,
    cosine_gaps,
    evidence,
    evidence_matrix,
    kernel_dimension_of,
    log_kernel,
    unit_rows,
    wide,
)

DIMENSIONS, RADII = (2, 3, 8, 128, 512), (0.0, 0.3, 0.9, 0.999)
every_kernel = pytest.mark.parametrize(
    ("d", "rho"), [(d, rho) for d in DIMENSIONS for rho in RADII]
)


def f64(x) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def zonal_rule(d: float, panels: int = 60, smallest: float = 1e-5) -> tuple[np.ndarray, np.ndarray]:
    """Angles and log weights of E[f(theta)], theta that of a uniform direction to the pole; panels
    shrink towards the pole.
    """
    x, w = np.polynomial.legendre.leggauss(16)
    edges = np.unique(
        np.concatenate(
            [[0], np.geomspace(smallest, math.pi, panels), np.linspace(0.1, math.pi, panels)]
        )
    )
    theta = np.concatenate([a + (b - a) * (x + 1) / 2 for a, b in pairwise(edges)])
    weight = np.concatenate([(b - a) * w / 2 for a, b in pairwise(edges)])
    log_area = gammaln(d / 2) - gammaln((d - 1) / 2) - math.log(math.pi) / 2
    return theta, np.log(weight) + log_area + (d - 2) * np.log(np.sin(theta))


def under_kernel(function, d: float, rho: float, power: int = 1) -> float:
    """E_uniform[P_rho(c)^power function(log P_rho(c), c)]."""
    theta, log_weight = zonal_rule(d)
    log_p = log_kernel(f64(2 * np.sin(theta / 2) ** 2), f64(rho), f64(1 - rho), d).numpy()
    return float((np.exp(power * log_p + log_weight) * function(log_p, np.cos(theta))).sum())


def sphere_rule(d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions (n, 3) and weights for uniform z on S^{d-1}: z_0, z_1 and the length of the rest,
    for functions of those.
    """
    (theta, log_weight), (phi, log_other) = zonal_rule(d, 10, 0.02), zonal_rule(d - 1, 10, 0.02)
    z = [
        np.cos(theta)[:, None] + 0 * phi,
        np.sin(theta)[:, None] * np.cos(phi),
        np.sin(theta)[:, None] * np.sin(phi),
    ]
    return f64(np.stack(z, -1).reshape(-1, 3)), f64(
        np.exp(np.add.outer(log_weight, log_other)).ravel()
    )


def log_posterior(u: torch.Tensor, z: torch.Tensor, d: int) -> torch.Tensor:
    """log P(u, z) on S^{d-1} for u in the plane of z_0 and z_1, from the three numbers of
    sphere_rule.
    """
    return log_kernel(cosine_gap(u / u.norm(), z), u.norm(), 1 - u.norm(), d)


def at_angle(gamma: float, d: int) -> torch.Tensor:
    return f64([math.cos(gamma), math.sin(gamma)] + [0.0] * (d - 2))


def views(
    n: int, d: int, seed: int = 0, radius: float | None = None, spread: float | None = None
) -> Posterior:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    if spread is not None:
        x = spread * x / math.sqrt(d) + torch.eye(d, dtype=torch.float64)[0]
    rho = (
        torch.rand(n, generator=g, dtype=torch.float64) * 0.98
        if radius is None
        else f64([radius] * n)
    )
    return Posterior(x / x.norm(dim=1, keepdim=True), rho)


# --- Precision and length of rows -----------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.uint8, torch.float32),
    ],
)
def test_at_least_float32_keeps_the_numbers(dtype, expected):
    x = torch.arange(5).to(dtype)
    assert at_least_float32(x).dtype == expected
    assert at_least_float32(x).tolist() == [0, 1, 2, 3, 4]
    assert wide(x).dtype == torch.float64
    assert dtype not in (torch.float32, torch.float64) or at_least_float32(x) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_rows_are_torchs_own_bit_for_bit(dtype):
    x = torch.randn(100, 16, generator=torch.Generator().manual_seed(0), dtype=dtype)
    scaled = x * torch.logspace(-9, 9, 100, dtype=dtype)[:, None]
    assert torch.equal(unit_rows(scaled), torch.nn.functional.normalize(scaled, dim=-1))
    a, b = (scaled.clone().requires_grad_() for _ in range(2))
    unit_rows(a)[:, 0].sum().backward()
    torch.nn.functional.normalize(b, dim=-1)[:, 0].sum().backward()
    assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("exponent", [-44, -38, -30, -16, -15, 15, 16, 30, 38])
def test_unit_rows_of_any_size(exponent):
    """float32 against float64, which neither overflows nor underflows; 1e-44 is subnormal."""
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    x = (x.double() * 10.0**exponent).float()
    exact = torch.nn.functional.normalize(x.double(), dim=-1, eps=0)
    torch.testing.assert_close(unit_rows(x).double(), exact, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_gradient_of_unit_rows_of_any_size(scale):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
    single, exact = ((x.to(t) * scale).requires_grad_() for t in (torch.float32, torch.float64))
    for inputs in (single, exact):
        (unit_rows(inputs) * weight).sum().backward()
    relative = (single.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert relative < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_row_of_zeros_stays_zero_and_its_gradient_is_finite(dtype):
    x = torch.zeros(2, 3, dtype=dtype)
    x[1] = 2
    unit_rows(x.requires_grad_())[:, 0].sum().backward()
    assert unit_rows(x)[0].tolist() == [0, 0, 0]
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_not_hidden(bad):
    rows = unit_rows(torch.tensor([[1.0, bad], [3.0, 4.0]]))
    assert rows[0].isnan().any() and rows[1].tolist() == pytest.approx([0.6, 0.8])


def test_the_smallest_gap_of_training():
    assert GAP_MIN == 1e-3  # theory 5


# --- The posterior --------------------------------------------------------------------


@every_kernel
def test_kernel_integrates_to_one_and_its_mean_is_the_radius(d, rho):
    assert under_kernel(lambda log_p, c: 1, d, rho, power=0) == pytest.approx(
        1, abs=1e-9
    )  # the witness itself
    assert under_kernel(lambda log_p, c: 1, d, rho) == pytest.approx(1, abs=1e-9)
    assert under_kernel(lambda log_p, c: c, d, rho) == pytest.approx(rho, abs=1e-9)


@pytest.mark.parametrize("m", [1.8, 2.5, 16.4])
def test_kernel_of_a_real_dimension_is_normalised(m):
    assert under_kernel(lambda log_p, c: 1, m, 0.7) == pytest.approx(
        1, abs=2e-4
    )  # the weight is singular where c = -1 for m < 2


@pytest.mark.parametrize("d", [2, 3, 8, 128])
def test_second_moment_of_the_kernel(d):
    r = 0.4 if d == 128 else 0.9
    assert under_kernel(lambda log_p, c: 1, d, r, power=2) == pytest.approx(
        (1 + r**2) / (1 - r**2) ** (d - 1), rel=1e-9
    )


@pytest.mark.parametrize("d", [3, 8, 128])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_zonal_coefficients_are_powers_of_the_radius(d, k):
    coefficient = under_kernel(lambda log_p, c: eval_gegenbauer(k, d / 2 - 1, c), d, 0.8)
    assert coefficient / eval_gegenbauer(k, d / 2 - 1, 1.0) == pytest.approx(0.8**k, abs=1e-9)


def test_posterior_on_vectors_integrates_to_one_and_its_mean_is_u():
    z, weight = sphere_rule(3)
    u = Posterior(at_angle(0.4, 3), f64(0.8))
    mass = weight * sphere.density(u, z)
    assert mass.sum() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close((mass[:, None] * z).sum(0)[:2], u.mean[:2], atol=1e-6, rtol=0)


def test_direct_formula_of_the_paper():
    u, z = views(50, 6), views(50, 6, seed=1).direction
    expected = (1 - u.mean.square().sum(1)) / (u.mean - z).norm(dim=1) ** 6
    torch.testing.assert_close(sphere.density(u, z), expected)


# --- Evidence -------------------------------------------------------------------------


@pytest.mark.parametrize("d", [3, 8, 32])
@pytest.mark.parametrize(("a", "b", "gamma"), [(0.7, 0.6, 0.5), (0.3, 0.8, 2.5), (0.75, 0.75, 0.0)])
def test_evidence_is_the_integral_of_the_two_posteriors(d, a, b, gamma):
    """The semigroup: Int P_a(x.z) P_b(z.y) dz = P_ab(x.y)."""
    z, weight = sphere_rule(d)
    x, y = Posterior(at_angle(0, d), f64(a)), Posterior(at_angle(gamma, d), f64(b))
    log_product = log_posterior(x.mean[:3], z, d) + log_posterior(y.mean[:3], z, d)
    integral = (weight * log_product.exp()).sum()
    assert evidence(x, y).exp().item() == pytest.approx(integral.item(), rel=1e-5)


def test_evidence_is_symmetric_zero_without_certainty_and_the_matrix_agrees_with_the_pairs():
    a, b = views(20, 5), views(30, 5, seed=1)
    matrix = evidence_matrix(a, b)
    assert matrix.shape == (20, 30)
    torch.testing.assert_close(matrix, evidence_matrix(b, a).T)
    rows = Posterior(a.direction[:, None].expand(-1, 30, -1), a.radius[:, None].expand(-1, 30))
    torch.testing.assert_close(matrix, evidence(rows, b))
    assert torch.equal(evidence(rows, b), evidence(b, rows))
    assert evidence_matrix(views(4, 5, radius=0.0), b).abs().max() < 1e-14
    torch.testing.assert_close(evidence_matrix(a, b, 3.5), evidence_matrix(a, b, f64(3.5)))
    assert not torch.allclose(evidence_matrix(a, b, 3.5), matrix)


@pytest.mark.parametrize("r", [0.1, 0.5, 0.95])
def test_expected_exp_evidence_is_one_and_the_expected_cosine_of_a_pair_is_r(r):
    theta, log_weight = zonal_rule(8)
    partners = Posterior(
        torch.stack([at_angle(t, 8) for t in theta]), f64([math.sqrt(r)] * len(theta))
    )
    view = Posterior(at_angle(0, 8), f64(math.sqrt(r)))
    joint = (f64(log_weight) + evidence(view, partners)).exp()
    assert joint.sum().item() == pytest.approx(1, abs=1e-9)
    assert (joint * f64(np.cos(theta))).sum().item() == pytest.approx(r, abs=1e-9)


def test_slope_in_the_radius_is_that_of_theory_5_and_bounded_in_its_logit():
    m = 16.0
    logit = torch.linspace(-7, 7, 57, dtype=torch.float64).repeat(41, 1).requires_grad_()
    c = torch.linspace(-1, 1, 41, dtype=torch.float64)[:, None]
    r, gap = torch.sigmoid(logit), torch.sigmoid(-logit)
    (slope,) = torch.autograd.grad(log_kernel(1 - c, r, gap, m).sum(), logit)
    r = r.detach()
    expected = m * (c - r) / (1 - 2 * r * c + r**2) - 2 * r / (1 - r**2)
    torch.testing.assert_close(slope, expected * r * (1 - r), rtol=1e-6, atol=1e-9)
    assert slope.abs().max() < m


# --- Numbers --------------------------------------------------------------------------


def single(posterior: Posterior) -> Posterior:
    return Posterior(posterior.direction.float(), posterior.radius.float(), posterior.gap.float())


def exactly(posterior: Posterior) -> Posterior:
    """The same float32 numbers, read in float64."""
    direction, gap = posterior.direction.double(), posterior.gap.double()
    return Posterior(direction / direction.norm(dim=1, keepdim=True), 1 - gap, gap)


@pytest.mark.parametrize("spread", [1e-4, 1e-3, 0.01, 0.05, 0.1, 0.3, None])
@pytest.mark.parametrize("rho", [0.5, 0.99, 0.999])
def test_float32_evidence(rho, spread):
    a, b = (single(views(100, 128, seed, rho, spread)) for seed in (0, 1))
    pairs = evidence(a, b) - evidence(exactly(a), exactly(b))
    matrix = evidence_matrix(a, b) - evidence_matrix(exactly(a), exactly(b))
    assert pairs.dtype == matrix.dtype == torch.float64  # float32 minus float64
    assert pairs.abs().max() < 1.5e-4
    assert matrix.abs().max() < 1e-3
    itself = evidence_matrix(a, a).diagonal() - evidence(exactly(a), exactly(a))
    assert itself.abs().max() < 1.5e-4


def test_naive_float32_would_fail():
    """What the two tests above guard against (theory 5: 0.24 nats)."""
    a, b = single(views(100, 128, 0, 0.999, 1e-3)), single(views(100, 128, 1, 0.999, 1e-3))
    r = a.radius * b.radius
    naive = torch.log(1 - r**2) - 64 * torch.log(1 - 2 * (a.mean * b.mean).sum(1) + r**2)
    assert (naive - evidence(exactly(a), exactly(b))).abs().max() > 0.2


def test_gradient_of_the_matrix_is_that_of_the_pairs_in_float32_too():
    a, b = single(views(20, 32, 0, 0.98, 0.1)), single(views(20, 32, 1, 0.98, 0.1))
    first, second = (a.direction.clone().requires_grad_() for _ in range(2))
    evidence_matrix(Posterior(first, a.radius, a.gap), b).sum().backward()
    rows = Posterior(second[:, None], a.radius[:, None], a.gap[:, None])
    evidence(rows, b).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-1)


def test_close_pairs_are_measured_from_the_difference():
    """In float64 a product's error of 1e-16 at a gap of 1e-9 would be 0.01 nats at d = 6."""
    a = views(30, 6, 0, 1 - 1e-9)
    rows = Posterior(a.direction[:, None], a.radius[:, None], a.gap[:, None])
    torch.testing.assert_close(evidence_matrix(a, a), evidence(rows, a), rtol=1e-12, atol=1e-9)
    assert (evidence_matrix(a, a) - evidence_matrix(a, a).T).abs().max() < 1e-9


def test_all_pairs_from_their_differences_as_on_a_gpu() -> None:
    """Witness: `cosine_gap` of each pair, also of equal rows, in value and gradient."""
    g = torch.Generator().manual_seed(0)
    mu = unit_rows(torch.randn(5, 7, generator=g)).requires_grad_()
    other = torch.cat((mu.detach()[:2], -mu.detach()[:1], mu.detach() + 1e-5)).requires_grad_()
    weights = torch.randn(5, 8, generator=g)
    results = []
    for gaps in (cosine_gaps(mu, other), cosine_gap(mu[:, None], other)):
        results.append((gaps, *torch.autograd.grad((weights * gaps).sum(), (mu, other))))
    (ours, *slopes), (expected, *expected_slopes) = results
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(slopes, expected_slopes, rtol=1e-5, atol=1e-6)


def test_evidence_matrix_ignores_autocast():
    a, b = single(views(10, 64, 0, 0.9)), single(views(10, 64, 1, 0.9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = evidence_matrix(a, b)
    assert torch.equal(inside, evidence_matrix(a, b))


@pytest.mark.parametrize("function", [evidence, evidence_matrix])
def test_gradcheck_of_evidence(function):
    a, b = views(3, 4), views(3, 4, seed=1)
    inputs = [x.clone().requires_grad_() for x in (a.direction, a.radius, b.direction, b.radius)]
    assert torch.autograd.gradcheck(
        lambda m, r, n, s: function(Posterior(m, r), Posterior(n, s)), inputs
    )


def test_gradcheck_of_density_and_information():
    a, b = views(3, 4), views(3, 4, seed=1)
    inputs = [x.clone().requires_grad_() for x in (a.direction, a.radius, b.direction)]
    assert torch.autograd.gradcheck(
        lambda m, r, z: sphere.log_density(Posterior(m, r), z), [*inputs[:2], inputs[2]]
    )
    radius = f64([0.05, 0.5, 0.99]).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: sphere.information(r, 7), radius)


# --- Information ----------------------------------------------------------------------


def series(rho: float, d: float, terms: int = 40_000) -> float:
    """Theory 6, as printed; the tail is below rho^(2 terms) / (terms (1 - rho^2)) * d/2."""
    k, nu = np.arange(1, terms), d / 2 - 1
    return -nu * math.log1p(-(rho**2)) + d / 2 * math.fsum(rho ** (2 * k) / (k + nu))


@every_kernel
def test_information_is_the_expected_log_density(d, rho):
    expected = under_kernel(lambda log_p, c: log_p, d, rho)
    assert sphere.information(f64(rho), d).item() == pytest.approx(expected, abs=1e-8, rel=1e-10)


@pytest.mark.parametrize("d", [2, 3, 7, 128, 512, 4096])
def test_information_is_the_series_of_theory_6(d):
    radii = (1e-3, 0.1, 0.5, 0.9, 0.99, 0.999)
    got = sphere.information(f64(radii), d)
    torch.testing.assert_close(got, f64([series(r, d) for r in radii]), rtol=1e-12, atol=1e-12)
    assert sphere.information(f64(0.0), d).item() == 0


@pytest.mark.parametrize("d", [2, 9, 128])
def test_information_limits(d):
    assert sphere.information(f64(1e-3), d).item() == pytest.approx(d / 2 * 1e-6, rel=1e-5)
    sure = -(d - 1) * math.log(1 - 0.999999**2) - d / 2 * (psi(d / 2) + np.euler_gamma)
    assert sphere.information(f64(0.999999), d).item() == pytest.approx(sure, rel=d * 2e-5)


@pytest.mark.parametrize("d", [2, 3, 128, 4096])
@pytest.mark.parametrize("gap", [1e-6, 1e-4, 1e-2, 0.5])
def test_information_is_exact_to_12_digits(d, gap):
    """The series of theory 6 as a hypergeometric function, by mpmath with 40 digits."""
    with mpmath.workdps(40):
        x, nu = (1 - mpmath.mpf(gap)) ** 2, mpmath.mpf(d) / 2 - 1
        total = x / (nu + 1) * mpmath.hyp2f1(1, nu + 1, nu + 2, x)
        exact = float(-nu * mpmath.log(1 - x) + mpmath.mpf(d) / 2 * total)
    value = sphere.information(1 - f64(gap), d, f64(gap)).item()
    assert value == pytest.approx(exact, rel=1e-12, abs=1e-12)


def test_information_on_the_circle():
    assert sphere.information(f64(0.7), 2).item() == pytest.approx(-math.log(1 - 0.49), rel=1e-14)


def test_information_keeps_dtype_and_uses_the_gap():
    gap = torch.tensor(1.00001e-3)
    exact = sphere.information(1 - gap.double(), 128)
    assert sphere.information(1 - gap, 128, gap).dtype == torch.float32
    assert sphere.information(1 - gap, 128, gap).item() == pytest.approx(exact.item(), rel=1e-7)
    assert abs(sphere.information(1 - gap, 128).item() - exact.item()) > 1e-4  # what the gap is for


# --- Bad input ------------------------------------------------------------------------


ONE = torch.ones(3, 1)
TOO_FEW = {
    "posterior": lambda: Posterior(ONE, torch.zeros(3)),
    "information": lambda: sphere.information(torch.zeros(3), 1),
    "information just below": lambda: sphere.information(torch.zeros(3), 1.9),
}


@pytest.mark.parametrize("case", TOO_FEW)
def test_fewer_than_two_coordinates_are_refused(case):
    with pytest.raises(UserError, match="at least 2 coordinates, not 1"):
        TOO_FEW[case]()


def test_two_coordinates_are_enough():
    assert Posterior(torch.eye(2), torch.zeros(2)).mean.abs().max() == 0
    assert sphere.information(f64(0.0), 2) == 0


WITHOUT_RADIUS = Posterior(torch.eye(3))
NO_RADIUS = {
    "mean": lambda: WITHOUT_RADIUS.mean,
    "evidence": lambda: evidence(WITHOUT_RADIUS, views(3, 3)),
    "matrix": lambda: evidence_matrix(views(3, 3), WITHOUT_RADIUS),
}


@pytest.mark.parametrize("case", NO_RADIUS)
def test_a_missing_radius_is_named(case):
    with pytest.raises(UserError, match="no radius") as error:
        NO_RADIUS[case]()
    assert "--" not in str(error.value)  # a library names no flags


@pytest.mark.parametrize("function", [evidence, evidence_matrix])
@pytest.mark.parametrize("dimension", [1, 1.0, 0, -2, math.inf])
def test_a_kernel_dimension_is_above_1(dimension, function):
    with pytest.raises(UserError, match=f"above 1, and is {dimension}; leave it out"):
        function(views(3, 3), views(3, 3), dimension)


def test_the_default_kernel_dimension_is_the_number_of_coordinates():
    mu = views(3, 7).direction
    assert kernel_dimension_of(mu, None) == 7
    assert kernel_dimension_of(mu, 1.01) == 1.01
    assert kernel_dimension_of(mu, f64(0.5)) == 0.5  # a tensor is not read
