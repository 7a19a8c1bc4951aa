"""Sampling on the sphere: uniform directions and the Poisson kernel, exactly, in any dimension
(theory.md, section 6).

Every draw comes from the generator given, on its own device, and is then moved: one seed gives one
sample, wherever it is used.
"""

import math

import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths.sphere import Posterior, check_dimension, radius_and_gap, wide


def uniform_directions(
    n: int, d: int, generator: torch.Generator, like: Tensor | None = None
) -> Tensor:
    """(n, d) unit vectors, uniform on S^{d-1}; of the dtype and device of `like`, else default, at
    the generator.
    """
    check_dimension(d)
    return _unit(_normal((n, d), generator, like))


def sample_cosine(radius: Tensor, dimension: int, generator: torch.Generator) -> Tensor:
    """c = mu.z (...) for z ~ P_rho, rho (...) in [0, 1); exact in any d, in radius's dtype; no
    gradient (theory 6).
    """
    return torch.tanh(_half_rapidity(radius, 1 - wide(radius), dimension, generator)).to(
        radius.dtype
    )


def sample(posterior: Posterior, generator: torch.Generator) -> Tensor:
    """z ~ q(z | x), (..., d) unit vectors, one a posterior; exact; no gradient (theory 6)."""
    direction = posterior.direction.detach()
    radius, gap = (value.detach() for value in radius_and_gap(posterior))
    h = _half_rapidity(radius, gap, direction.shape[-1], generator)
    return around(direction, torch.tanh(h), 1 / torch.cosh(h), generator)


def around(direction: Tensor, cosine: Tensor, sine: Tensor, generator: torch.Generator) -> Tensor:
    """cosine * mu + sine * (a uniform unit tangent at mu): (..., d) in direction's dtype,
    differentiable in all three.

    The sine is asked for because 1 - c^2 loses it where c is near 1.
    """
    mu = wide(direction)
    noise = _normal(mu.shape, generator, mu)
    tangent = _unit(noise - (noise * mu).sum(-1, keepdim=True) * mu)
    return (cosine.unsqueeze(-1) * mu + sine.unsqueeze(-1) * tangent).to(direction.dtype)


def uniform(n: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """(n,) uniform in [0, 1), on the generator's device and then on that of `like`, in its dtype."""
    return torch.rand(n, generator=generator, device=generator.device, dtype=like.dtype).to(
        like.device
    )


def check_finite(x: Tensor, rule: str) -> None:
    """Raises UserError on a number that no proposal would ever be accepted for: the rejection would
    run for ever.
    """
    if not x.isfinite().all():
        bad = int((~x.isfinite()).sum())
        raise UserError(
            f"{rule}, but {bad} of {x.numel()} break this rule; leave them out, or look where they"
            " come from."
        )


def _normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor | None) -> Tensor:
    dtype, device = (None, generator.device) if like is None else (like.dtype, like.device)
    return torch.randn(shape, generator=generator, device=generator.device, dtype=dtype).to(device)


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


@torch.no_grad()
def _half_rapidity(radius: Tensor, gap: Tensor, d: int, generator: torch.Generator) -> Tensor:
    """artanh(c) (...) in wide precision, by rejection: v = 2 artanh(c) has a log-concave density f
    = exp(h + const).

    With M = f(v0) at the mode v0, the hat min(M, M exp(1 - M |v - v0|)) lies above it and has area
    4 (Devroye 1986, VII.2): exactly 1/4 of the proposals is accepted, for every d and rho.
    """
    check_dimension(d)
    shift = (2 * torch.log((1 + wide(radius)) / wide(gap))).flatten()  # delta = 4 artanh(rho)
    check_finite(shift, "radii must lie in [0, 1), with a gap above 0")
    mode, height = _mode(shift, d)
    v, waiting = torch.empty_like(shift), torch.arange(len(shift), device=shift.device)
    while len(waiting):
        i = waiting
        offset = _hat(len(i), generator, shift)  # M (v - v0)
        proposal = mode[i] + offset / height[i].exp()
        log_ratio = (
            _log_shape(proposal, shift[i], d)
            - _log_shape(mode[i], shift[i], d)
            - (1 - offset.abs()).clamp_max(0)
        )
        passed = uniform(len(i), generator, shift).log() < log_ratio
        v[i[passed]] = proposal[passed]
        waiting = i[~passed]
    return (v / 2).reshape(radius.shape)


def _hat(n: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Signed distances from the density min(1, exp(1 - |t|)) / 4: uniform on [0, 1) or 1 +
    exponential, either sign.
    """
    length, side, tail = uniform(3 * n, generator, like).reshape(3, n)
    length = torch.where(tail < 0.5, length, 1 - torch.log1p(-length))
    return torch.where(side < 0.5, length, -length)


def _log_shape(v: Tensor, shift: Tensor, d: int) -> Tensor:
    """h(v) = ((d-1)/2) v - ((d-2)/2) softplus(v) - (d/2) softplus(v - delta): log f(v) less its
    constant (theory 6).
    """
    softplus = torch.nn.functional.softplus
    return (d - 1) / 2 * v - (d - 2) / 2 * softplus(v) - d / 2 * softplus(v - shift)


def _mode(shift: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """v0 and log M = log f(v0). h'(v0) = 0 is q X^2 - X (1 - q)/(d - 1) - 1 = 0, X = exp(v0), q =
    exp(-delta); this is its root.

    (Theory 6 prints q X^2 - (1 - q) X - (d - 1) = 0: the mode at d = 2 only; its hat cuts through
    the density.)
    """
    mode = shift / 2 + torch.asinh(torch.sinh(shift / 2) / (d - 1))
    ratio = shift / 2  # log((1 + rho) / (1 - rho))
    log_one_plus_radius = math.log(2) - torch.nn.functional.softplus(-ratio)
    log_area = (
        math.lgamma(d / 2)
        - math.lgamma((d - 1) / 2)
        - math.log(math.pi) / 2
        + (d - 2) * math.log(2)
    )
    return mode, log_area - ratio - (d - 2) * log_one_plus_radius + _log_shape(mode, shift, d)
