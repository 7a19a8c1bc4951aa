"""The von Mises-Fisher distribution C(kappa) exp(kappa mu.z).

The reference losses use it where ours has the Poisson kernel. Densities are with respect to the
uniform *probability* measure on S^{d-1}, so C(0) = 1 and no areas of spheres appear. All logarithms
are in nats.
"""

import math
from functools import cache

import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from sureclr.maths.inputs import check_dimension, check_finite
from sureclr.maths.sampling import around, uniform, uniform_directions
from sureclr.maths.sphere import wide

# Relative error 1e-14 from this order on (measured against mpmath, kappa from 0.01 to 1e5)
DEBYE_TERMS, DEBYE_ORDER = 8, 30


def vmf_mean_resultant_length(kappa: Tensor, dimension: int) -> Tensor:
    """Return A_d(kappa) = I_{d/2}(kappa) / I_{d/2-1}(kappa) = E[c] in [0, 1), in kappa's dtype.

    It is twice differentiable. Debye's uniform expansion at order 30 or more, then the recurrence
    of the ratio down to d/2 - 1: the relative error is under 1e-13 in float64 for kappa from 0 to
    1e5 and d from 2 to 512.

    Args:
        kappa: (...), from 0 on.
        dimension: d, the number of coordinates, at least 2.

    Raises:
        UserError: the dimension is below 2.

    >>> vmf_mean_resultant_length(torch.tensor(2.0), 3)  # coth(2) - 1/2
    tensor(0.5373)
    """
    check_dimension(dimension)
    k = wide(kappa)
    return (k * _bessel_ratios(k, dimension / 2 - 1)[0]).to(kappa.dtype)


def vmf_log_normaliser(kappa: Tensor, dimension: int) -> Tensor:
    """Return log C_d(kappa) in nats, (...); the density is C exp(kappa c).

    C = (kappa/2)^nu / (Gamma(nu + 1) I_nu(kappa)) with nu = d/2 - 1, so log C(0) = 0. The gradient
    is exactly -A_d(kappa). The error in float64 is under 1e-13 max(1, |log C|) for kappa from 0 to
    1e5 and d from 2 to 512.

    Args:
        kappa: (...), from 0 on.
        dimension: d, the number of coordinates, at least 2.

    Raises:
        UserError: the dimension is below 2.

    >>> vmf_log_normaliser(torch.tensor(2.0), 3)  # log(2 / sinh(2))
    tensor(-0.5952)
    """
    check_dimension(dimension)
    result: Tensor = _VmfLogNormaliser.apply(kappa, dimension)  # type: ignore[no-untyped-call]
    return result


class _VmfLogNormaliser(torch.autograd.Function):
    """Saves only kappa for the backward pass, since losses compute a matrix of these."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, kappa: Tensor, dimension: int) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.dimension = dimension  # type: ignore[attr-defined]
        k, nu = wide(kappa), dimension / 2 - 1
        ratios = _bessel_ratios(k, nu)
        log_c = -_debye(k, nu + len(ratios) - 1)[0]
        # I_nu / I_{nu+1} brings the normaliser down one order
        for i, ratio in enumerate(ratios[:-1]):
            log_c = log_c + torch.log(2 * (nu + i + 1) * ratio)
        return log_c.to(kappa.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (kappa,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return -grads[0] * vmf_mean_resultant_length(kappa, ctx.dimension), None  # type: ignore[attr-defined]


def _bessel_ratios(kappa: Tensor, nu: float) -> list[Tensor]:
    """I_{n+1}(kappa) / (kappa I_n(kappa)) for n = nu, nu + 1, ... up to an order for Debye."""
    order = nu + max(0, math.ceil(DEBYE_ORDER - nu))
    ratios = [_debye(kappa, order)[1]]
    while order > nu:
        ratios.insert(0, 1 / (2 * order + kappa.square() * ratios[0]))
        order -= 1
    return ratios


def _debye(kappa: Tensor, n: float) -> tuple[Tensor, Tensor]:
    """The pair log E[exp(kappa c)] = log Gamma(n+1) (2/kappa)^n I_n(kappa), and slope / kappa.

    The latter is I_{n+1} / (kappa I_n). DLMF 10.41.3 with z = kappa/n and p = 1/sqrt(1 + z^2).
    Stirling's series of Gamma is the same polynomial at p = 1, so C(0) = 1.
    """
    series = sum((u / n**k for k, u in enumerate(_debye_polynomials())), Polynomial([0.0]))
    root = torch.sqrt(1 + (kappa / n).square())
    p, rise = 1 / root, (kappa / n).square() / (1 + root)  # rise = root - 1
    value = _horner(series, p)
    log_mean = n * (rise - torch.log1p(rise / 2)) - root.log() / 2 + torch.log(value / series(1.0))
    return (
        log_mean,
        1 / (n * (1 + root)) - (p.square() / 2 + p**3 * _horner(series.deriv(), p) / value) / n**2,
    )


@cache
def _debye_polynomials() -> list[Polynomial]:
    """U_0, U_1, ... of DLMF 10.41.9.

    U_{k+1} = p^2 (1 - p^2) U_k' / 2 + Int_0^p (1 - 5 t^2) U_k dt / 8.
    """
    p, polynomials = Polynomial([0.0, 1.0]), [Polynomial([1.0])]
    for _ in range(DEBYE_TERMS):
        u = polynomials[-1]
        polynomials.append(p**2 * (1 - p**2) * u.deriv() / 2 + ((1 - 5 * p**2) * u).integ() / 8)
    return polynomials


def _horner(polynomial: Polynomial, x: Tensor) -> Tensor:
    value = torch.zeros_like(x)
    for coefficient in reversed(polynomial.coef):
        value = value * x + float(coefficient)
    return value


def sample_vmf(direction: Tensor, kappa: Tensor, generator: torch.Generator) -> Tensor:
    """Draw von Mises-Fisher samples, (..., d) unit vectors, exactly, by Wood's rejection (1994).

    Wood's proposal is a uniform cosine c moved by the Moebius map w = (x + c)/(1 + x c), with
    x = 2 kappa / (d - 1 + sqrt(4 kappa^2 + (d - 1)^2)). With y = x c, it is accepted with
    probability exp((d - 1)(y/(1 + y) - log(1 + y))).

    The samples are differentiable in the direction exactly, and in kappa through the accepted
    proposal's w: rejection reparameterisation without the term for the changed acceptance, as in
    Davidson et al. 2018 and in MC-InfoNCE. Without that term the slope of E[w] in kappa is 0.95 to
    1 of the true one for d >= 16 (at least 0.57 for d = 2, near kappa = 1; measured with 20,000 to
    200,000 samples).

    Args:
        direction: (..., d), unit vectors.
        kappa: (...), from 0 on.
        generator: from which all numbers are drawn.

    Raises:
        UserError: a kappa is not finite.
    """
    d, k = direction.shape[-1], wide(kappa)
    pull = 2 * k / (d - 1 + torch.sqrt(4 * k.square() + (d - 1) ** 2))
    check_finite(pull, "kappas must be finite")
    c = _accepted_cosine(pull.detach().flatten(), d, generator).reshape(pull.shape)
    w = (pull + c) / (1 + pull * c)
    sine = torch.sqrt((1 - pull.square()) * (1 - c.square())) / (1 + pull * c)
    return around(direction, w, sine, generator)


def _accepted_cosine(pull: Tensor, d: int, generator: torch.Generator) -> Tensor:
    """The uniform cosines that Wood's test accepts, (n,)."""
    accepted, waiting = torch.empty_like(pull), torch.arange(len(pull), device=pull.device)
    while len(waiting):
        c = uniform_directions(len(waiting), d, generator, pull)[:, 0]
        y = pull[waiting] * c
        log_ratio = (d - 1) * (y / (1 + y) - torch.log1p(y))
        passes = uniform(len(waiting), generator, pull).log() < log_ratio
        accepted[waiting[passes]] = c[passes]
        waiting = waiting[~passes]
    return accepted
