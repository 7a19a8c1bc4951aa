"""Exact samples on the sphere: uniform directions and the Poisson kernel, any dimension (theory 6).

Every draw is made on the generator's own device and then moved, so one seed gives one sample
wherever it is used.
"""

import torch
from torch import Tensor

from sureclr.maths.inputs import check_dimension, check_finite, check_values
from sureclr.maths.sphere import (
    Posterior,
    radius_and_gap,
    rapidity_log_shape,
    rapidity_mode,
    unit_rows,
    usable_presence,
    wide,
)


def uniform_directions(
    n: int, d: int, generator: torch.Generator, like: Tensor | None = None
) -> Tensor:
    """Draw (n, d) unit vectors, uniform on S^{d-1}.

    Args:
        n: how many.
        d: coordinates, at least 2.
        generator: from which all numbers are drawn.
        like: a tensor whose dtype and device the result has. Default: torch's default dtype, on the
            generator's device.

    Raises:
        UserError: d is below 2.
    """
    check_dimension(d)
    normal = _normal((n, d), generator, like)
    return unit_rows(normal).to(normal.dtype)


def sample(posterior: Posterior, generator: torch.Generator) -> Tensor:
    """Draw z ~ q(z | x), (..., d) unit vectors, one for each posterior.

    The draw is exact in any d and has no gradient (theory 6). With a presence z is drawn from the
    kernel with probability pi, and is otherwise uniform (theory 9).

    Raises:
        UserError: the posterior has no radius, or a radius or a presence lies outside its range.
    """
    direction = posterior.direction.detach()
    radius, gap = (value.detach() for value in radius_and_gap(posterior))
    check_values({"radii": radius, "gaps": gap})
    h = _half_rapidity(radius, gap, direction.shape[-1], generator)
    z = around(direction, torch.tanh(h), 1 / torch.cosh(h), generator)
    presence = usable_presence(posterior.presence)
    if presence is None:
        return z
    shows = uniform(presence.numel(), generator, presence).reshape(presence.shape) < presence
    other = unit_rows(_normal(z.shape, generator, z)).to(z.dtype)
    return torch.where(shows.unsqueeze(-1), z, other)


def around(direction: Tensor, cosine: Tensor, sine: Tensor, generator: torch.Generator) -> Tensor:
    """Return cosine * mu + sine * (a uniform unit tangent at mu), (..., d), in direction's dtype.

    It is differentiable in all three. The sine is an argument because 1 - c^2 loses it where c is
    near 1.

    Args:
        direction: (..., d), unit vectors mu.
        cosine: (...).
        sine: (...).
        generator: from which the tangent is drawn.
    """
    mu = wide(direction)
    noise = _normal(mu.shape, generator, mu)
    tangent = unit_rows(noise - (noise * mu).sum(-1, keepdim=True) * mu)
    return (cosine.unsqueeze(-1) * mu + sine.unsqueeze(-1) * tangent).to(direction.dtype)


def uniform(n: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw (n,) numbers, uniform in [0, 1), of the dtype and device of `like`."""
    numbers = torch.rand(n, generator=generator, device=generator.device, dtype=like.dtype)
    return numbers.to(like.device)


def _normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor | None) -> Tensor:
    dtype, device = (None, generator.device) if like is None else (like.dtype, like.device)
    return torch.randn(shape, generator=generator, device=generator.device, dtype=dtype).to(device)


@torch.no_grad()
def _half_rapidity(radius: Tensor, gap: Tensor, d: int, generator: torch.Generator) -> Tensor:
    """artanh(c) (...) in wide precision, by rejection.

    v = 2 artanh(c) has a log-concave density f = exp(h + const). With M = f(v0) at the mode v0, the
    hat min(M, M exp(1 - M |v - v0|)) lies above it and has area 4 (Devroye 1986, VII.2): exactly
    1/4 of the proposals is accepted, for every d and rho.
    """
    check_dimension(d)
    shift = (2 * torch.log((1 + wide(radius)) / wide(gap))).flatten()  # delta = 4 artanh(rho)
    check_finite(shift, "radii must lie in [0, 1), with a gap above 0")
    mode, height = rapidity_mode(shift, d)
    v, waiting = torch.empty_like(shift), torch.arange(len(shift), device=shift.device)
    while len(waiting):
        i = waiting
        offset = _hat(len(i), generator, shift)  # M (v - v0)
        proposal = mode[i] + offset / height[i].exp()
        log_ratio = (
            rapidity_log_shape(proposal, shift[i], d)
            - rapidity_log_shape(mode[i], shift[i], d)
            - (1 - offset.abs()).clamp_max(0)
        )
        accepted = uniform(len(i), generator, shift).log() < log_ratio
        v[i[accepted]] = proposal[accepted]
        waiting = i[~accepted]
    return (v / 2).reshape(radius.shape)


def _hat(n: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Signed distances from the density min(1, exp(1 - |t|)) / 4.

    They are uniform on [0, 1) or 1 + exponential, with either sign.
    """
    length, side, tail = uniform(3 * n, generator, like).reshape(3, n)
    length = torch.where(tail < 0.5, length, 1 - torch.log1p(-length))
    return torch.where(side < 0.5, length, -length)
