"""The reference losses against their papers' formulas as loops and quadrature, and what each is
best at, in float64.
"""

import math

import numpy as np
import pytest
import torch
from loss_cases import TAU, all_losses, generator, loops, views
from scipy.stats import multivariate_normal

from sureclr.maths import losses, references


def test_dcl_and_tau_are_their_loops() -> None:
    mu, x = views()
    assert references.dcl(mu, TAU).item() == pytest.approx(
        loops(lambda i, j: float(mu[i] @ mu[j]) / TAU, 5, False), abs=1e-12
    )
    assert references.tau(mu, x).item() == pytest.approx(
        loops(lambda i, j: float(mu[i] @ mu[j] / x[i]), 5), abs=1e-12
    )


def test_tau_at_one_temperature_is_nt_xent() -> None:
    mu, x = views()
    assert references.tau(mu, torch.full_like(x, TAU)).item() == pytest.approx(
        losses.nt_xent(mu, TAU).item(), abs=1e-12
    )


def test_poisson_nce_is_its_loop() -> None:
    """By theory 2's formula in the points u of the ball, which the code never forms."""
    mu, rho = views()
    u, m = rho[:, None] * mu, 3.5

    def s(i: int, j: int) -> float:
        r2 = float(u[i] @ u[i] * (u[j] @ u[j]))
        return math.log(1 - r2) - m / 2 * math.log(1 - 2 * float(u[i] @ u[j]) + r2)

    assert references.poisson_nce(mu, rho, m).item() == pytest.approx(loops(s, 5), abs=1e-11)


def test_gaussian_nce_is_the_log_density_ratio_of_correlated_gaussians() -> None:
    """The Mehler kernel as what it is: log p(x, y) / (p(x) p(y)), by scipy's multivariate normal,
    for m = d = 4.
    """
    mu, rho = views()
    d = mu.shape[1]
    x = mu.numpy() * math.sqrt(d)  # a standard Gaussian vector of d coordinates has length sqrt(d)
    single = multivariate_normal(np.zeros(d), np.eye(d))

    def s(i: int, j: int) -> float:
        a = float(rho[i] * rho[j])
        joint = multivariate_normal(
            np.zeros(2 * d), np.block([[np.eye(d), a * np.eye(d)], [a * np.eye(d), np.eye(d)]])
        )
        return float(
            joint.logpdf(np.concatenate((x[i], x[j]))) - single.logpdf(x[i]) - single.logpdf(x[j])
        )

    assert references.gaussian_nce(mu, rho).item() == pytest.approx(loops(s, 5), abs=1e-10)


def test_elk_is_its_integral() -> None:
    """The product of two densities integrated over S^2, with constants by the same quadrature, and
    no Bessel function.
    """
    mu, x = views(d=3)
    kappa = 12 * x
    height, weight = np.polynomial.legendre.leggauss(60)
    angle = np.arange(120) * 2 * math.pi / 120
    flat = np.sqrt(1 - height**2)[:, None]
    z = np.stack(
        (flat * np.cos(angle), flat * np.sin(angle), np.broadcast_to(height[:, None], (60, 120))),
        -1,
    )
    mass = np.broadcast_to(
        weight[:, None] / 2 / 120, (60, 120)
    )  # of the uniform probability measure
    shape = [np.exp(float(kappa[i]) * z @ mu[i].numpy()) for i in range(10)]
    density = [q / (q * mass).sum() for q in shape]

    def s(i: int, j: int) -> float:
        return math.log((density[i] * density[j] * mass).sum())

    assert references.elk(mu, kappa).item() == pytest.approx(loops(s, 5), abs=1e-9)
    assert references.elk(mu, kappa, 2.0).item() == pytest.approx(
        loops(lambda i, j: s(i, j) / 2, 5), abs=1e-9
    )


def test_elk_in_float32_keeps_close_and_sure_pairs() -> None:
    """Views within a few 1 / sqrt(kappa) of each other at kappa = 1e5: evidence of order 1 out of
    log C of order 1e5.
    """
    noise = 2e-3 * torch.randn(16, 8, generator=generator())
    mu = torch.nn.functional.normalize(torch.ones(16, 8) + noise, dim=-1)
    kappa = 1e5 * (1 + torch.rand(16, generator=generator(1)))
    exact = references.elk(mu.double(), kappa.double()).item()
    assert exact > 0.5
    assert references.elk(mu, kappa).item() == pytest.approx(exact, abs=1e-4)


def test_mc_infonce_is_its_integral() -> None:
    """Two images on the circle: expectations are integrals over four angles, exact by the trapezoid
    rule. Many samples give minus log E[ratio], single ones on average minus E[log ratio], which is
    0.17 nats higher: the mean is inside the logarithm.
    """
    mu = torch.tensor([[1.0, 0.2], [-1.0, 0.5], [0.9, 0.5], [-0.2, -1.0]], dtype=torch.float64)
    mu, kappa = (
        torch.nn.functional.normalize(mu, dim=-1),
        torch.tensor([3.0, 1.0, 6.0, 2.0], dtype=torch.float64),
    )
    angle = torch.arange(28, dtype=torch.float64) * 2 * math.pi / 28
    z = torch.stack((angle.cos(), angle.sin()), -1)
    weight = torch.einsum(
        "a,b,c,d->abcd", *(torch.softmax(k * (z @ m), 0) for k, m in zip(kappa, mu, strict=True))
    )
    similarity = (z @ z.T / 0.5).exp()
    many, single = 0.0, 0.0
    for i in range(4):
        to = {
            j: similarity.reshape([28 if axis in (i, j) else 1 for axis in range(4)])
            for j in range(4)
            if j != i
        }
        ratio = to[(i + 2) % 4] / sum(to.values())
        many -= (weight * ratio).sum().log().item() / 4
        single -= (weight * ratio.log()).sum().item() / 4
    assert references.mc_infonce(mu, kappa, 0.5, 60_000, generator()).item() == pytest.approx(
        many, abs=0.01
    )
    draws = [
        references.mc_infonce(mu, kappa, 0.5, 1, generator(seed)).item() for seed in range(1500)
    ]
    assert np.mean(draws) == pytest.approx(single, abs=4 * np.std(draws) / math.sqrt(1500))
    assert single > many + 0.1


def test_mc_infonce_of_sure_views_is_nt_xent() -> None:
    mu, _ = views()
    value = references.mc_infonce(
        mu, torch.full((10,), 1e8, dtype=torch.float64), TAU, 4, generator()
    )
    assert value.item() == pytest.approx(losses.nt_xent(mu, TAU).item(), abs=1e-3)


@pytest.mark.parametrize("name", ["loss_prediction", "cosine_regression"])
def test_the_simple_rivals_leave_the_directions_alone(name: str) -> None:
    mu, x = (v.requires_grad_() for v in views())
    all_losses()[name](mu, x).backward()
    plain = mu.detach().clone().requires_grad_()
    losses.nt_xent(plain, TAU).backward()
    torch.testing.assert_close(mu.grad, plain.grad, rtol=1e-12, atol=1e-15)
    assert x.grad.abs().min() > 0


def test_loss_prediction_is_best_where_it_predicts_the_loss() -> None:
    mu, _ = views()
    own = losses.per_view_nt_xent(mu, TAU)
    assert references.loss_prediction(mu, own, TAU).item() == pytest.approx(
        own.mean().item(), abs=1e-12
    )
    assert references.loss_prediction(mu, own + 0.5, TAU, 2.0).item() == pytest.approx(
        own.mean().item() + 0.5, abs=1e-12
    )


def test_cosine_regression_is_best_where_the_radius_is_the_cosine() -> None:
    mu, _ = views(n=3)
    cosine = (mu[:3] * mu[3:]).sum(-1)
    assert cosine.min() > 0
    radii = cosine.sqrt().repeat(2)
    assert references.cosine_regression(mu, radii, TAU).item() == pytest.approx(
        losses.nt_xent(mu, TAU).item(), abs=1e-12
    )
    off = radii * torch.tensor([0.0, 1, 1, 1, 1, 1], dtype=torch.float64)
    assert references.cosine_regression(mu, off, TAU, 2.0) - losses.nt_xent(
        mu, TAU
    ) == pytest.approx(2 * cosine[0].item() ** 2 / 3, abs=1e-12)


def test_poisson_and_gaussian_agree_at_small_radii() -> None:
    """Both are m r c + O(r^2) there."""
    mu, rho = views()
    small = 0.02 * rho
    assert references.poisson_nce(mu, small, 100).item() == pytest.approx(
        references.gaussian_nce(mu, small, 100).item(), abs=1e-4
    )
