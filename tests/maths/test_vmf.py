"""The von Mises-Fisher distribution against mpmath, scipy, closed forms, quadrature and its own
samples.
"""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ive

from sureclr.errors import UserError
from sureclr.maths.vmf import sample_vmf, vmf_log_normaliser, vmf_mean_resultant_length

KAPPAS = (1e-4, 0.1, 1.0, 7.0, 40.0, 300.0, 5e3, 1e5)


def f64(x) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("d", [2, 3, 4, 7, 61, 62, 63, 128, 512])
def test_against_bessel_functions_of_forty_digits(d):
    with mpmath.workdps(40):
        nu = mpmath.mpf(d) / 2 - 1
        for kappa in KAPPAS:
            bessel, k = mpmath.besseli(nu, kappa), mpmath.mpf(kappa)
            log_c = nu * mpmath.log(k / 2) - mpmath.loggamma(nu + 1) - mpmath.log(bessel)
            assert vmf_log_normaliser(f64(kappa), d).item() == pytest.approx(
                float(log_c), rel=1e-13, abs=1e-14
            )
            length = mpmath.besseli(nu + 1, kappa) / bessel
            assert vmf_mean_resultant_length(f64(kappa), d).item() == pytest.approx(
                float(length), rel=1e-13, abs=0
            )


def test_against_scipy_and_the_closed_form_of_three_dimensions():
    kappa = f64([0.5, 3.0, 50.0])
    torch.testing.assert_close(
        vmf_mean_resultant_length(kappa, 10), f64(ive(5, kappa.numpy()) / ive(4, kappa.numpy()))
    )
    torch.testing.assert_close(
        vmf_mean_resultant_length(kappa, 3), 1 / torch.tanh(kappa) - 1 / kappa
    )
    torch.testing.assert_close(vmf_log_normaliser(kappa, 3), torch.log(kappa / torch.sinh(kappa)))


@pytest.mark.parametrize("d", [2, 5, 128])
def test_nothing_known_at_zero(d):
    kappa = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    log_c, length = vmf_log_normaliser(kappa, d), vmf_mean_resultant_length(kappa, d)
    assert log_c.abs().max() < 1e-15 and (length == 0).all()
    assert torch.autograd.grad(length.sum(), kappa)[0][0].item() == pytest.approx(1 / d, rel=1e-12)


@pytest.mark.parametrize("d", [2, 6, 128])
def test_gradients(d):
    kappa = f64([0.0, 0.3, 4.0, 200.0, 1e5]).requires_grad_()
    (slope,) = torch.autograd.grad(vmf_log_normaliser(kappa, d).sum(), kappa)
    assert torch.equal(slope, -vmf_mean_resultant_length(kappa, d))
    (curve,) = torch.autograd.grad(vmf_mean_resultant_length(kappa, d).sum(), kappa)
    length = vmf_mean_resultant_length(kappa, d).detach()[1:4]
    expected = (
        1 - length**2 - (d - 1) / kappa.detach()[1:4] * length
    )  # the Riccati equation of the Bessel ratio
    torch.testing.assert_close(curve[1:4], expected, rtol=1e-7, atol=1e-12)
    inner = f64([0.3, 4.0, 30.0]).requires_grad_()
    assert torch.autograd.gradcheck(lambda k: vmf_log_normaliser(k, d), inner)
    assert torch.autograd.gradgradcheck(lambda k: vmf_log_normaliser(k, d), inner)


@pytest.mark.parametrize("function", [vmf_log_normaliser, vmf_mean_resultant_length])
def test_dtype_shape_and_float32(function):
    kappa = torch.rand(3, 4) * 100
    assert function(kappa, 128).dtype == torch.float32 and function(kappa, 128).shape == (3, 4)
    torch.testing.assert_close(
        function(kappa, 16).double(), function(kappa.double(), 16), rtol=1e-6, atol=1e-7
    )
    with pytest.raises(UserError, match="at least 2"):
        function(kappa, 1)


def vmf_cdf(d: int, kappa: float):
    """P(c <= x) by trapezoids in v = 2 artanh(c)."""
    v = np.linspace(-60, 60, 200_001)
    c_gap, c_rise = 2 / (1 + np.exp(v)), 2 / (1 + np.exp(-v))
    log_f = (d - 1) / 2 * np.log(c_gap * c_rise) - kappa * c_gap
    cdf = np.cumsum(np.exp(log_f - log_f.max()))
    return lambda x: np.interp(x, v, cdf / cdf[-1])


def draws(n: int, d: int, kappa: float, seed: int = 0) -> torch.Tensor:
    return sample_vmf(
        torch.eye(d, dtype=torch.float64)[0].expand(n, d), f64(kappa).expand(n), seeded(seed)
    )


@pytest.mark.parametrize("d", [2, 3, 16, 128])
@pytest.mark.parametrize("kappa", [0.0, 1.0, 30.0, 1e4])
def test_samples_have_the_distribution_of_the_density(d, kappa):
    z = draws(3000, d, kappa, seed=d)
    assert (z.norm(dim=1) - 1).abs().max() < 1e-14
    assert stats.kstest(2 * np.arctanh(z[:, 0].numpy()), vmf_cdf(d, kappa)).pvalue > 1e-3
    length = vmf_mean_resultant_length(f64(kappa), d)
    assert abs(z[:, 0].mean() - length) < 4 * z[:, 0].std() / math.sqrt(3000)
    assert (z[:, 1:].mean(0).abs() < 4.5 * z[:, 1:].std(0) / math.sqrt(3000)).all()


def test_gradient_in_the_direction_turns_the_mean_with_it():
    """d E[a.z] / d mu along the sphere is A_d(kappa) times a's tangent part."""
    d, kappa, n = 5, 3.0, 40_000
    mu = torch.nn.functional.normalize(
        torch.arange(1.0, d + 1, dtype=torch.float64), dim=0
    ).requires_grad_()
    a = f64([1.0, -2.0, 0.5, 0.0, 1.0])
    z = sample_vmf((mu / mu.norm()).expand(n, d), f64(kappa).expand(n), seeded(5))
    (slope,) = torch.autograd.grad((z @ a).mean(), mu)
    across = a - (a @ mu) * mu
    torch.testing.assert_close(
        slope, (vmf_mean_resultant_length(f64(kappa), d) * across).detach(), rtol=0, atol=0.03
    )


@pytest.mark.parametrize(("d", "kappa"), [(16, 1.0), (16, 100.0), (64, 20.0)])
def test_gradient_in_kappa_is_nearly_that_of_the_mean(d, kappa):
    k = f64(kappa).expand(20_000).clone().requires_grad_()
    z = sample_vmf(torch.eye(d, dtype=torch.float64)[0].expand(len(k), d), k, seeded(6))
    slope = torch.autograd.grad(z[:, 0].sum(), k)[0].mean()
    one = f64(kappa).requires_grad_()
    (expected,) = torch.autograd.grad(vmf_mean_resultant_length(one, d), one)
    assert slope.item() == pytest.approx(expected.item(), rel=0.03)


def test_samples_broadcast_repeat_and_keep_their_dtype():
    mu, kappa = torch.eye(3)[:2].expand(4, -1, -1), torch.tensor([0.0, 1e6]).expand(4, -1)
    z = sample_vmf(mu, kappa, seeded())
    assert z.shape == (4, 2, 3) and z.dtype == torch.float32
    assert torch.equal(z, sample_vmf(mu, kappa, seeded())) and not torch.equal(z[0, 0], z[1, 0])
    assert (z[:, 1] - mu[:, 1]).abs().max() < 0.01
    with pytest.raises(UserError, match="finite"):
        sample_vmf(mu[0], torch.tensor([1.0, math.nan]), seeded())
