"""The posterior on the sphere: density, evidence, information, fusing views (theory.md, sections 1,
2, 5 and 6).

A view is a point u = rho * mu of the open unit ball, and that point is its posterior over the
latent z on S^{d-1}: the Poisson kernel P(u, z) = (1 - |u|^2) / |u - z|^d, a density with respect to
the uniform *probability* measure. All logarithms are natural: nats. Samples are drawn in
sampling.py; the von Mises-Fisher distribution, which other losses use in its place, is in vmf.py.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from sureclr.errors import UserError

GAP_MIN = (
    1e-3  # 1 - rho never falls below this in training (theory 5); what is read off a fusion may
)
# In units of eps: a pair with 1 - 2 r c + r^2 below this is measured again, from the difference
# (evidence_matrix)
NEAR = 1e6
NODES = 96  # of the Gauss-Legendre rule of `information`; error in its docstring


@dataclass(frozen=True)
class Posterior:
    """What a view says about its latent, as a value. Whoever reads it need not know which loss made
    it.

    Attributes:
        direction: (..., d), unit vectors mu, d >= 2: *what* the view shows.
        radius: (...), mean resultant length rho in [0, 1): *how sure* the view is; None where the
            loss has none (NT-Xent).
        gap: (...), 1 - rho, kept apart because float32 loses it near 1 (theory 5); 1 - radius when
            not given.
        certainty: (...), any increasing scale of certainty (radius, kappa, minus the predicted
            loss); None for NT-Xent.
        parameter: (...), the loss's own number (kappa, temperature, predicted loss); None where the
            radius is that number.

    Raises:
        UserError: fewer than two coordinates.
    """

    direction: Tensor
    radius: Tensor | None = None
    gap: Tensor | None = None
    certainty: Tensor | None = None
    parameter: Tensor | None = None

    def __post_init__(self) -> None:
        check_dimension(self.direction.shape[-1])
        if self.gap is None and self.radius is not None:
            object.__setattr__(self, "gap", 1 - self.radius)
        if self.certainty is None and self.radius is not None:
            object.__setattr__(self, "certainty", self.radius)

    @property
    def mean(self) -> Tensor:
        """(..., d), E[z | x] = u = rho * mu exactly, |u| < 1 (theory 1)."""
        radius, _ = radius_and_gap(self)
        return radius.unsqueeze(-1) * self.direction


def check_dimension(dimension: float) -> None:
    """Raises UserError below two coordinates: S^0 is two points, and no Poisson kernel lives there."""
    if dimension < 2:
        raise UserError(
            f"a posterior on the sphere needs at least 2 coordinates, not {dimension}; give 2 or"
            " more."
        )


def radius_and_gap(posterior: Posterior) -> tuple[Tensor, Tensor]:
    """rho and 1 - rho, (...) each. Raises UserError where the loss has no notion of a radius."""
    if posterior.radius is None or posterior.gap is None:
        raise UserError(
            "this posterior has no radius (NT-Xent and other losses have none); train with --loss"
            " sure to get one."
        )
    return posterior.radius, posterior.gap


# --- Density and evidence (theory 1, 2, 5) --------------------------------------------


def log_kernel(
    cosine_gap: Tensor, radius: Tensor, gap: Tensor, dimension: float | Tensor
) -> Tensor:
    """log P_r(c), nats, elementwise over broadcast shapes; from 1 - c and 1 - r, which stays exact
    where c and r come near 1.

    log(1 - r^2) - (m/2) log(1 - 2 r c + r^2), with 1 - 2 r c + r^2 = (1 - r)^2 + 2 r (1 - c)   (theory 5)

    Args:
        cosine_gap: 1 - c; for unit vectors |mu - mu'|^2 / 2.
        radius, gap: r and 1 - r, of one posterior or of a pair (r = rho rho').
        dimension: m > 1; the number of coordinates d for the posterior itself, the kernel dimension
            for the loss.
    """
    return torch.log(gap * (1 + radius)) - (dimension / 2) * torch.log(
        squared_distance(cosine_gap, radius, gap)
    )


def squared_distance(cosine_gap: Tensor, radius: Tensor, gap: Tensor) -> Tensor:
    """|u - z|^2 = 1 - 2 r c + r^2 = (1 - r)^2 + 2 r (1 - c), without cancellation (theory 5).
    Broadcast shapes.
    """
    return gap.square() + 2 * radius * cosine_gap


def pair_gap(gap: Tensor, other: Tensor) -> Tensor:
    """1 - rho rho' from 1 - rho and 1 - rho', without cancellation (theory 5)."""
    return gap + other - gap * other


def pair_radius(a: Posterior, b: Posterior) -> tuple[Tensor, Tensor]:
    """r = rho rho', and 1 - r, of paired posteriors (...): the semigroup multiplies radii (theory
    1).
    """
    (radius, gap), (other, other_gap) = radius_and_gap(a), radius_and_gap(b)
    return radius * other, pair_gap(gap, other_gap)


def cosine_gap(mu: Tensor, other: Tensor) -> Tensor:
    """1 - mu.mu' = |mu - mu'|^2 / 2 for unit vectors (..., d), from the difference, so exact for
    close ones (theory 5).
    """
    return (mu - other).square().sum(-1) / 2


def log_density(posterior: Posterior, z: Tensor) -> Tensor:
    """log q(z | x) = log P(u, z), nats against the uniform probability measure; z (..., d) unit
    vectors, broadcast (theory 1).

    >>> knows_nothing = Posterior(torch.tensor([1.0, 0.0]), torch.tensor(0.0))
    >>> log_density(knows_nothing, torch.tensor([0.0, 1.0]))
    tensor(0.)
    """
    radius, gap = radius_and_gap(posterior)
    return log_kernel(
        cosine_gap(posterior.direction, z), radius, gap, posterior.direction.shape[-1]
    )


def density(posterior: Posterior, z: Tensor) -> Tensor:
    """q(z | x) = P(u, z) = (1 - |u|^2) / |u - z|^d; 1 is the uniform distribution (theory 1)."""
    return log_density(posterior, z).exp()


def evidence(a: Posterior, b: Posterior, dimension: float | Tensor | None = None) -> Tensor:
    """s(u, u') = log P_{rho rho'}(mu.mu'), (...): nats for "these two views show one image", row by
    row (theory 2).

    Args:
        dimension: m of the kernel; None is the number of coordinates.
    """
    r, gap = pair_radius(a, b)
    return log_kernel(cosine_gap(a.direction, b.direction), r, gap, _kernel_dimension(a, dimension))


def evidence_matrix(a: Posterior, b: Posterior, dimension: float | Tensor | None = None) -> Tensor:
    """s(u_i, u'_j), nats, (n, m) for n and m views (theory 2): one product, one outer product, one
    logarithm an entry.

    1 - c by product is off by some eps, which matters only where (1 - r)^2 + 2 r (1 - c) is small:
    close *and* sure. Those few
    pairs are measured again from the difference: float32 stays within 1e-3 nats at d = 128 (13
    without; float64 instead would exclude Apple GPUs and be slow on most others). Memory: some (n,
    m) arrays; with gradient, d numbers more for each such pair.
    """
    r, gap = pair_radius(_column(a), b)
    with torch.autocast(
        a.direction.device.type, enabled=False
    ):  # a bfloat16 product is 24 nats wrong at rho = 0.99 (theory 5)
        by_product = 1 - a.direction @ b.direction.T
    near = squared_distance(by_product.detach(), r, gap) < NEAR * torch.finfo(r.dtype).eps
    return log_kernel(
        _refined(by_product, near, a.direction, b.direction),
        r,
        gap,
        _kernel_dimension(a, dimension),
    )


def _kernel_dimension(posterior: Posterior, dimension: float | Tensor | None) -> float | Tensor:
    if (
        isinstance(dimension, int | float) and dimension <= 1
    ):  # a Tensor is not looked at: that would wait for the GPU
        raise UserError(
            f"the kernel's dimension must be above 1, not {dimension}; leave it out for the number"
            " of coordinates."
        )
    return posterior.direction.shape[-1] if dimension is None else dimension


def _column(posterior: Posterior) -> Posterior:
    radius, gap = radius_and_gap(posterior)
    return Posterior(posterior.direction, radius[:, None], gap[:, None])


def _refined(by_product: Tensor, near: Tensor, mu: Tensor, other: Tensor) -> Tensor:
    """1 - c (n, m) with the marked pairs measured from the difference, 65,536 pairs at a time."""
    pairs = near.nonzero().split(65536)
    exact = torch.cat([cosine_gap(mu[i], other[j]) for i, j in (p.unbind(-1) for p in pairs)])
    return by_product.index_put((near,), exact)


# --- What to read off (theory 6) ------------------------------------------------------


def wide(x: Tensor) -> Tensor:
    """x in float64, or in float32 on Apple GPUs, which have none."""
    return x.float() if x.device.type == "mps" else x.double()


def information(radius: Tensor, dimension: float, gap: Tensor | None = None) -> Tensor:
    """I(rho, d) = E_P[log P], nats: what a view of this radius tells about its latent, comparable
    across dimensions (theory 6).

    I = -nu log(1 - x) + (d/2) S,   S = sum_{k>=1} x^k / (k + nu) = x/(nu + 1) Int_0^inf e^-p / (1 - x e^(-p/(nu+1))) dp,
    x = rho^2, nu = d/2 - 1

    The series needs 1e4 terms near rho = 1, so its sum is taken as that integral (1/(k + nu) is the
    integral of an exponential, and the sum under it geometric): p = e (exp(y) - 1), e = (nu + 1)(1
    - x), straightens the near-pole for Gauss-Legendre. In float64; error under 1e-12 max(1, I) nats
    for rho up to 1 - 1e-6 and d from 2 to 4096, the tail cut at e^-40 included.

    Args:
        radius: (...) in [0, 1).
        gap: 1 - radius where it is known more exactly (float32 near 1); 1 - radius otherwise.

    >>> information(torch.tensor(0.6, dtype=torch.float64), 2)  # d = 2: -log(1 - rho^2)
    tensor(0.4463, dtype=torch.float64)
    """
    check_dimension(dimension)
    return _information(_one_minus_square(radius, gap), dimension).to(radius.dtype)


def _one_minus_square(radius: Tensor, gap: Tensor | None) -> Tensor:
    """1 - rho^2 in wide precision."""
    gap = 1 - wide(radius) if gap is None else wide(gap)
    return gap * (2 - gap)


def _information(rest: Tensor, dimension: float) -> Tensor:
    """I from rest = 1 - x = 1 - rho^2, by the integral of `information`."""
    nu = dimension / 2 - 1
    nodes, weights = (
        torch.as_tensor(a, dtype=rest.dtype, device=rest.device) for a in _gauss_legendre()
    )
    pole, y_end = (
        (nu + 1) * rest.unsqueeze(-1),
        torch.log1p(40 / ((nu + 1) * rest)).unsqueeze(-1),
    )  # e^-p is 4e-18 at the end
    p = pole * torch.expm1(y_end * nodes)
    dp = (pole + p) * y_end * weights
    one_minus_power = rest.unsqueeze(-1) - (1 - rest.unsqueeze(-1)) * torch.expm1(-p / (nu + 1))
    return (1 - rest) * (torch.exp(-p) * dp / one_minus_power).sum(
        -1
    ) - nu * rest.log()  # d/2 = nu + 1


@cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return (nodes + 1) / 2, weights / 2


class InformationTable:
    """`information` of many radii, fast: cubic Hermite interpolation in t = -log(1 - rho^2), with
    exact slopes.

    Error under 1e-10 nats for d up to 4096 and rho up to 1 - 1e-6, where the table almost ends:
    surer views read as its end. 250 times faster (0.03 microseconds a radius on one CPU core).

    >>> round(InformationTable(16)(torch.tensor(0.5)).item(), 4)
    2.3355
    """

    def __init__(self, dimension: float, size: int = 4096) -> None:
        check_dimension(dimension)
        with torch.inference_mode(False), torch.enable_grad():
            t = torch.linspace(0, -math.log(1e-6), size, dtype=torch.float64).requires_grad_()
            values = _information(torch.exp(-t), dimension)
            (slopes,) = torch.autograd.grad(values.sum(), t)
        self.dimension, self.step = dimension, t[1].item()
        self.values, self.slopes = values.detach(), slopes * self.step

    def __call__(self, radius: Tensor, gap: Tensor | None = None) -> Tensor:
        """(...) radii in [0, 1) -> (...) nats in their dtype, differentiable; gap as in
        `information`.
        """
        position = (-_one_minus_square(radius, gap).log() / self.step).clamp(
            0, len(self.values) - 1
        )
        left = position.detach().long().clamp_max(len(self.values) - 2)
        (f, g), (f_next, g_next) = self._at(left, position), self._at(left + 1, position)
        t, rise = position - left, f_next - f
        return (f + t * (g + t * (3 * rise - 2 * g - g_next + t * (g + g_next - 2 * rise)))).to(
            radius.dtype
        )

    def _at(self, index: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.values.to(like)[index], self.slopes.to(like)[index]


def fisher_information(radius: Tensor, dimension: float) -> Tensor:
    """Fisher information of rho in one direction z: d/(1 - rho^2)^2 [1 - (d-2)(d-4) rho^2 / (d(d+2))]   (theory 6).

    n independent directions estimate a radius with a standard error of at least 1 / sqrt(n * this).

    >>> fisher_information(torch.tensor(0.0), 8)
    tensor(8.)
    """
    check_dimension(dimension)
    d, x = dimension, radius.square()
    return d / (1 - x).square() * (1 - (d - 2) * (d - 4) * x / (d * (d + 2)))


# --- Fusing K views of one image (theory 6) -------------------------------------------


def fuse_average(means: Tensor) -> Posterior:
    """The mixture's mean, (K, ..., d) -> posterior (..., d): never surer than the surest view. The
    cautious default.
    """
    u = wide(means).mean(0)
    return _posterior(u / (1 - u.square().sum(-1, keepdim=True)), means.dtype)


def fuse_product(means: Tensor) -> Posterior:
    """p(z | x_1..K) ~ prod_k P(u_k, z), for views independent given z, (K, ..., d) -> posterior
    (..., d) with the same mean.

    Exact mean for K = 1 and 2, any d; for more the saddle-point iteration of theory 6 (0.852 for
    0.851 at d = 128; poor for d <= 4 with conflicting views). Overlapping crops are *not*
    independent and this overcounts them.
    """
    u = wide(means)
    if len(u) == 1:
        u = torch.cat([u, torch.zeros_like(u)])  # a view that knows nothing changes nothing
    return _posterior(_pair_product(*u) if len(u) == 2 else _saddle_point(u), means.dtype)


def _pair_product(u: Tensor, v: Tensor) -> Tensor:
    """m / (1 - |m|^2) for m = (B u + A v) / (A + B - A B), A = 1 - |u|^2, B = 1 - |v|^2: the mean
    of the product, exactly.

    Then 1 - |m|^2 = A B (A B + |u - v|^2) / (A + B - A B)^2, which does not cancel.
    """
    a, b = (1 - w.square().sum(-1, keepdim=True) for w in (u, v))
    return (
        (a + b - a * b)
        * (b * u + a * v)
        / (a * b * (a * b + (u - v).square().sum(-1, keepdim=True)))
    )


def _saddle_point(u: Tensor, iterations: int = 2000) -> Tensor:
    """s = sum_k u_k / (1 + rho_k^2 - 2 u_k.m), m = 2 s / (1 + sqrt(1 + 4 |s|^2)), from m = 0 to the
    fixed point.

    Some 100 rounds; above 2,000 only for conflicting views at rho = 0.999, where what is reached
    then is returned.
    """
    m, last = torch.zeros_like(u[0]), torch.ones_like(u[0])
    while iterations and (m - last).abs().max() > 16 * torch.finfo(u.dtype).eps:
        s = (u / (1 + u.square().sum(-1, keepdim=True) - 2 * (u * m).sum(-1, keepdim=True))).sum(0)
        last, m = m, 2 * s / (1 + torch.sqrt(1 + 4 * s.square().sum(-1, keepdim=True)))
        iterations -= 1
    return s


def _posterior(s: Tensor, dtype: torch.dtype) -> Posterior:
    """The posterior of mean m = 2 s / (1 + sqrt(1 + 4 |s|^2)), that is s = m / (1 - |m|^2), which
    keeps the gap near 1.
    """
    norm = torch.linalg.vector_norm(s, dim=-1)
    root = torch.sqrt(1 + 4 * norm.square())
    axis = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)[
        0
    ]  # any direction, for a posterior that knows nothing
    direction = torch.where(norm.unsqueeze(-1) > 0, s / norm.unsqueeze(-1).clamp_min(1e-30), axis)
    gap = (1 + 1 / (root + 2 * norm)) / (1 + root)
    return Posterior(direction.to(dtype), (2 * norm / (1 + root)).to(dtype), gap.to(dtype))
