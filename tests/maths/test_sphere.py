"""The laws of theory.md, section 7, that concern the sphere. Witness: quadrature over the sphere,
built here.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import eval_gegenbauer, gammaln, psi

from sureclr.errors import UserError
from sureclr.maths import sphere
from sureclr.maths.sphere import (
    InformationTable,
    Posterior,
    cosine_gap,
    evidence,
    evidence_matrix,
    fuse_average,
    fuse_product,
    log_kernel,
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
def test_zonal_coefficients_are_powers_of_the_radius(d):
    for k in (1, 2, 5):
        coefficient = under_kernel(lambda log_p, c, k=k: eval_gegenbauer(k, d / 2 - 1, c), d, 0.8)
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
def test_evidence_is_the_integral_of_the_two_posteriors(d):
    """The semigroup: Int P_a(x.z) P_b(z.y) dz = P_ab(x.y)."""
    z, weight = sphere_rule(d)
    for a, b, gamma in ((0.7, 0.6, 0.5), (0.3, 0.8, 2.5), (0.75, 0.75, 0.0)):
        x, y = Posterior(at_angle(0, d), f64(a)), Posterior(at_angle(gamma, d), f64(b))
        integral = (
            weight * (log_posterior(x.mean[:3], z, d) + log_posterior(y.mean[:3], z, d)).exp()
        ).sum()
        assert evidence(x, y).exp().item() == pytest.approx(integral.item(), rel=1e-5)


def test_evidence_is_symmetric_zero_without_certainty_and_the_matrix_agrees_with_the_pairs():
    a, b = views(20, 5), views(30, 5, seed=1)
    matrix = evidence_matrix(a, b)
    assert matrix.shape == (20, 30)
    torch.testing.assert_close(matrix, evidence_matrix(b, a).T)
    for i in range(20):
        row = Posterior(a.direction[i].expand(30, -1), a.radius[i].expand(30))
        torch.testing.assert_close(matrix[i], evidence(row, b))
        assert torch.equal(evidence(row, b), evidence(b, row))
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
    gradients = []
    for matrix in (
        evidence_matrix,
        lambda x, y: evidence(sphere._column(x), Posterior(y.direction, y.radius, y.gap)),
    ):
        mu = a.direction.clone().requires_grad_()
        left = Posterior(mu, a.radius, a.gap)
        left = left if matrix is evidence_matrix else Posterior(mu[:, None], a.radius, a.gap)
        gradients.append(torch.autograd.grad(matrix(left, b).sum(), mu)[0])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-1)


def test_pairs_measured_again_agree_with_the_product(monkeypatch):
    a, b = views(15, 6), views(25, 6, seed=1)
    by_product = evidence_matrix(a, b)
    monkeypatch.setattr(sphere, "NEAR", 1e20)
    torch.testing.assert_close(evidence_matrix(a, b), by_product)
    assert (evidence_matrix(a, a) - evidence_matrix(a, a).T).abs().max() == 0


def test_evidence_matrix_ignores_autocast():
    a, b = single(views(10, 64, 0, 0.9)), single(views(10, 64, 1, 0.9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = evidence_matrix(a, b)
    assert torch.equal(inside, evidence_matrix(a, b))


def test_gradcheck():
    a, b = views(3, 4), views(3, 4, seed=1)
    inputs = [x.clone().requires_grad_() for x in (a.direction, a.radius, b.direction, b.radius)]
    for function in (evidence, evidence_matrix):
        assert torch.autograd.gradcheck(
            lambda m, r, n, s, f=function: f(Posterior(m, r), Posterior(n, s)), inputs
        )
    assert torch.autograd.gradcheck(
        lambda m, r, z: sphere.log_density(Posterior(m, r), z), [*inputs[:2], inputs[2]]
    )
    radius = f64([0.05, 0.5, 0.99]).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: sphere.information(r, 7), radius)
    assert torch.autograd.gradcheck(InformationTable(7), radius)
    means = torch.stack([a.mean, b.mean, 0.3 * a.mean]).requires_grad_()
    for fuse in (fuse_average, lambda u: fuse_product(u[:2]), fuse_product):
        assert torch.autograd.gradcheck(lambda u, f=fuse: f(u).mean, means)


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


def test_information_limits():
    assert sphere.information(f64(0.7), 2).item() == pytest.approx(-math.log(1 - 0.49), rel=1e-14)
    for d in (2, 9, 128):
        assert sphere.information(f64(1e-3), d).item() == pytest.approx(d / 2 * 1e-6, rel=1e-5)
        sure = -(d - 1) * math.log(1 - 0.999999**2) - d / 2 * (psi(d / 2) + np.euler_gamma)
        assert sphere.information(f64(0.999999), d).item() == pytest.approx(sure, rel=d * 2e-5)


def test_information_keeps_dtype_and_uses_the_gap():
    gap = torch.tensor(1.00001e-3)
    exact = sphere.information(1 - gap.double(), 128)
    assert sphere.information(1 - gap, 128, gap).dtype == torch.float32
    assert sphere.information(1 - gap, 128, gap).item() == pytest.approx(exact.item(), rel=1e-7)
    assert abs(sphere.information(1 - gap, 128).item() - exact.item()) > 1e-4  # what the gap is for


@pytest.mark.parametrize("d", [2, 3, 128, 4096])
def test_information_table_error(d):
    radius = f64(np.concatenate([np.linspace(0, 0.999, 4001), 1 - np.logspace(-6, -3, 500)]))
    table = InformationTable(d)
    assert (table(radius) - sphere.information(radius, d)).abs().max() < 1e-10
    assert table(radius.float()).dtype == torch.float32
    assert table(torch.zeros(2, 3)).shape == (2, 3)
    with torch.inference_mode():
        assert torch.equal(InformationTable(d)(radius), table(radius))
    beyond = table(f64([1 - 4e-7, 1.0]))
    assert beyond[0] == beyond[1] > table(f64(1 - 1e-6))


@pytest.mark.parametrize("d", [2, 3, 4, 8, 128])
@pytest.mark.parametrize("rho", [0.01, 0.5, 0.95])
def test_fisher_information_is_the_mean_squared_score(d, rho):
    theta, log_weight = zonal_rule(d)
    r = torch.full((len(theta),), rho, dtype=torch.float64, requires_grad=True)
    log_p = log_kernel(f64(2 * np.sin(theta / 2) ** 2), r, 1 - r, d)
    (score,) = torch.autograd.grad(log_p.sum(), r)
    expected = ((f64(log_weight) + log_p.detach()).exp() * score.square()).sum()
    assert sphere.fisher_information(f64(rho), d).item() == pytest.approx(expected.item(), rel=1e-8)


# --- Fusion ---------------------------------------------------------------------------


def product_mean(
    means: torch.Tensor, z: torch.Tensor, weight: torch.Tensor | float, d: int
) -> torch.Tensor:
    """The mean of the normalised product of the Poisson kernels, on a rule; its first two
    coordinates.
    """
    log_product = sum(log_posterior(u[: z.shape[1]], z, d) for u in means)
    mass = weight * (log_product - log_product.max()).exp()
    return (mass[:, None] * z).sum(0)[:2] / mass.sum()


def padded(means: torch.Tensor, d: int) -> torch.Tensor:
    return torch.cat([means, torch.zeros(len(means), d - 2, dtype=means.dtype)], 1)


CONFLICT = torch.tensor([[0.7, 0.2], [-0.3, 0.85], [0.1, 0.6]], dtype=torch.float64)


def test_product_of_two_on_the_circle():
    t = torch.arange(4000, dtype=torch.float64) * 2 * math.pi / 4000
    z = torch.stack([t.cos(), t.sin()], 1)
    torch.testing.assert_close(
        fuse_product(CONFLICT[:2]).mean, product_mean(CONFLICT[:2], z, 1.0, 2), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("d", [3, 8, 32])
def test_product_of_two_on_a_sphere(d):
    means = padded(CONFLICT[:2], d)
    torch.testing.assert_close(
        fuse_product(means).mean[:2], product_mean(means, *sphere_rule(d), d), rtol=0, atol=1e-5
    )


def test_product_of_more_is_near_the_truth_in_many_dimensions():
    """A saddle-point approximation: its error falls with d (theory 6: 0.852 for 0.851 at d = 128)."""
    errors = {}
    for d in (4, 32, 128):
        means = padded(CONFLICT, d)
        errors[d] = (
            (fuse_product(means).mean[:2] - product_mean(means, *sphere_rule(d), d)).norm().item()
        )
    assert errors[128] < 4e-3
    assert 3 * errors[128] < 1.2 * errors[32] < errors[4]


def test_fixed_point_is_exact_for_one_and_two():
    u, v = CONFLICT[:2]
    pair = sphere._posterior(sphere._saddle_point(torch.stack([u, v])), torch.float64)
    torch.testing.assert_close(
        pair.mean, fuse_product(torch.stack([u, v])).mean, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        sphere._posterior(sphere._saddle_point(u[None]), torch.float64).mean, u, rtol=0, atol=1e-12
    )


def test_fusion_of_one_of_nothing_and_in_any_order():
    means = views(4, 6).mean
    for fuse in (fuse_average, fuse_product):
        torch.testing.assert_close(fuse(means[:1]).mean, means[0])
        torch.testing.assert_close(fuse(means[[2, 0, 3, 1]]).mean, fuse(means).mean)
        torch.testing.assert_close(fuse(means.reshape(2, 2, 6)).mean[1], fuse(means[1::2]).mean)
        nothing = fuse(torch.zeros(3, 6))
        assert (
            nothing.radius == 0
            and nothing.gap == nothing.direction.norm() == 1
            and nothing.mean.dtype == torch.float32
        )
    know_nothing = torch.zeros(3, 6, dtype=torch.float64)
    for k in (1, 2, 4):
        torch.testing.assert_close(
            fuse_product(torch.cat([means[:k], know_nothing])).mean, fuse_product(means[:k]).mean
        )
    torch.testing.assert_close(fuse_average(means).mean, means.mean(0))


def test_average_is_never_surer_than_the_surest_and_the_product_of_agreeing_views_is():
    u = Posterior(at_angle(0.3, 16), f64(0.5)).mean
    assert fuse_average(torch.stack([u, u, 0.1 * u])).radius < 0.5
    two, four = fuse_product(u.repeat(2, 1)), fuse_product(u.repeat(4, 1))
    assert 0.5 < two.radius < four.radius < 1
    torch.testing.assert_close(
        two.radius, f64(2 * 0.5 / 1.25)
    )  # of two equal views: 2 rho / (1 + rho^2)


def test_fused_gap_survives_float32():
    means = torch.tensor([[0.999, 0.0, 0.0]] * 2)
    rho = means[0, 0].item()
    assert fuse_product(means).gap.item() == pytest.approx(
        (1 - rho) ** 2 / (1 + rho**2), rel=1e-6
    )  # of two equal views
    for fused in (fuse_product(means), fuse_product(means.repeat(3, 1))):
        assert sphere.log_density(fused, fused.direction).isfinite()


# --- Bad input ------------------------------------------------------------------------


def test_bad_input_is_told():
    one = torch.ones(3, 1)
    for wrong in (
        lambda: Posterior(one, torch.zeros(3)),
        lambda: sphere.information(torch.zeros(3), 1),
        lambda: sphere.fisher_information(torch.zeros(3), 1.5),
        lambda: InformationTable(1),
        lambda: fuse_product(one),
    ):
        with pytest.raises(UserError, match="at least 2"):
            wrong()
    certain_of_nothing = Posterior(torch.eye(3))
    for wrong in (
        lambda: certain_of_nothing.mean,
        lambda: evidence(certain_of_nothing, views(3, 3)),
        lambda: evidence_matrix(views(3, 3), certain_of_nothing),
    ):
        with pytest.raises(UserError, match="no radius"):
            wrong()
    with pytest.raises(UserError, match="above 1"):
        evidence(views(3, 3), views(3, 3), 1)
