"""The posterior on the sphere: density, evidence, information and fusion (theory 1, 2, 5, 6).

A view is a point u = rho * mu of the open unit ball, and that point is its posterior over the
latent z on S^{d-1}: the Poisson kernel P(u, z) = (1 - |u|^2) / |u - z|^d, a density with respect to
the uniform *probability* measure. With a second number, the presence pi, the posterior is the
mixture pi P(u, .) + (1 - pi) (theory 9): with probability 1 - pi the view says nothing of z. All
logarithms are natural, so results are in nats. The functions
`at_least_float32`, `wide` and `unit_rows` are the package's only ones of their kind. Samples are
drawn in sampling.py; vmf.py has the von Mises-Fisher distribution, which other losses use instead.
"""

import math
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sureclr.errors import UserError
from sureclr.maths.inputs import above, check_dimension, check_floating, check_numbers, check_values

# 1 - rho never falls below this in training (theory 5); the radius of a fusion may come closer to 1
GAP_MIN = 1e-3
# In units of eps: evidence_matrix measures a pair whose 1 - 2 r c + r^2 is below this again, from
# the difference of the directions
NEAR = 1e6
NODES = 96  # of the Gauss-Legendre rule of `information`; its docstring states the error
# torch's own threshold of 20 leaves out 2e-9, which counts d/2 times
softplus = partial(functional.softplus, threshold=50.0)
# Nodes of each panel of the rule for mixtures, and rows at once: some 1,100 numbers a row
PANEL_NODES, MIXED_ROWS = 12, 1024


# Precision and length of rows


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, or unchanged if it is float64 (half precision and integers are raised).

    >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x if x.dtype == torch.float64 else x.float()


def wide(x: Tensor) -> Tensor:
    """Return x in float64, or in float32 on Apple GPUs, which have no float64."""
    return x.float() if x.device.type == "mps" else x.double()


def unit_rows(x: Tensor) -> Tensor:
    """Scale the last dimension of (..., d) to length 1, in at least float32.

    Rows whose squared length would overflow or underflow are divided by their largest coordinate
    first, so rows of 1e30 and of 1e-30 come out right. A row of zeros stays zero and its gradient
    is finite; a row with a NaN or an infinity becomes NaN.

    >>> unit_rows(torch.tensor([[3e30, 4e30], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    x = at_least_float32(x)
    x = x / scale_for_squares(x.detach(), -1)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length == 0, 1, length)


def scale_for_squares(x: Tensor, dim: int) -> Tensor:
    """Return by what to divide x so that sums of squares over a dimension are normal numbers.

    It is 1 where they are already (or all numbers are 0), else the largest absolute value. The
    dimension stays, with the length 1.
    """
    largest, limits = x.abs().amax(dim, keepdim=True), torch.finfo(x.dtype)
    # With these margins the sum of squares of up to 1e8 numbers is a normal number
    ordinary = (largest < math.sqrt(limits.max) / 1e4) & (
        largest > math.sqrt(limits.tiny / limits.eps)
    )
    return torch.where(ordinary | (largest == 0), 1, largest)


# The posterior


@dataclass(frozen=True)
class Posterior:
    """The belief about a view's latent. Code that uses it need not know which loss made it.

    Attributes:
        direction: (..., d), unit vectors mu, d >= 2: *what* the view shows.
        radius: (...), rho in [0, 1): *how precisely* it shows that. Without a presence it is the
            mean resultant length. None where the loss has none (NT-Xent).
        gap: (...), 1 - rho, stored separately because float32 loses it near 1 (theory 5). Not
            given: 1 - radius.
        certainty: (...), any increasing scale of certainty (kappa, minus the predicted loss). Not
            given: the mean resultant length, which is pi * rho. None for NT-Xent.
        parameter: (...), the loss's own number (kappa, temperature, predicted loss). None where the
            radius is that number.
        presence: (...), pi in [0, 1]: the probability that the view shows *anything* of the kind of
            the training images. None where the loss has none: 1 for every view.

    Raises:
        UserError: the directions have fewer than two coordinates, or a tensor is not of a
            floating-point type or has not one number for each direction. Values are checked where
            they are used.
    """

    direction: Tensor
    radius: Tensor | None = None
    gap: Tensor | None = None
    certainty: Tensor | None = None
    parameter: Tensor | None = None
    presence: Tensor | None = None

    def __post_init__(self) -> None:
        """Check types and shapes, and fill in the gap and the certainty."""
        check_floating("direction", self.direction)
        check_dimension(self.direction.shape[-1] if self.direction.ndim else 0)
        for name in ("radius", "gap", "certainty", "parameter", "presence"):
            if getattr(self, name) is not None:
                check_numbers(name, getattr(self, name), self.direction, "direction")
        if self.gap is None and self.radius is not None:
            object.__setattr__(self, "gap", 1 - self.radius)
        if self.certainty is None and self.radius is not None:
            length = self.radius if self.presence is None else self.presence * self.radius
            object.__setattr__(self, "certainty", length)

    def part(self, rows: slice | Tensor) -> "Posterior":
        """Return the posteriors of some rows."""
        values: dict[str, Any] = {
            name: None if value is None else value[rows] for name, value in vars(self).items()
        }
        return Posterior(**values)

    @property
    def mean(self) -> Tensor:
        """E[z | x] = pi * rho * mu, (..., d), exactly, shorter than 1 (theory 1 and 9)."""
        length, _ = radius_and_gap(self)
        if self.presence is not None:
            length = self.presence * length
        return length.unsqueeze(-1) * self.direction


def radius_and_gap(posterior: Posterior) -> tuple[Tensor, Tensor]:
    """Return rho and 1 - rho, (...) each.

    Raises:
        UserError: the posterior has no radius, as NT-Xent's.
    """
    if posterior.radius is None or posterior.gap is None:
        raise UserError(
            "this posterior has no radius (the losses nt-xent, dcl, tau and loss-prediction give"
            " none); train with the loss sure to get one."
        )
    return posterior.radius, posterior.gap


# Density and evidence (theory 1, 2, 5)


def kernel_dimension_of(direction: Tensor, dimension: float | Tensor | None) -> float | Tensor:
    """Return the kernel's dimension m: the given one, or by default the number of coordinates.

    A tensor is not checked, since reading its value would make the program wait for a GPU.

    Raises:
        UserError: m is a number not above 1, where the density is not normalised (theory 3).
    """
    if dimension is None:
        return direction.shape[-1]
    if isinstance(dimension, Tensor):
        return dimension
    return above("dimension", dimension, 1, "leave it out for the number of coordinates")


def log_kernel(
    cosine_gap: Tensor, radius: Tensor, gap: Tensor, dimension: float | Tensor
) -> Tensor:
    """Return log P_r(c) in nats, elementwise over broadcast shapes.

    log(1 - r^2) - (m/2) log(1 - 2 r c + r^2) with 1 - 2 r c + r^2 = (1 - r)^2 + 2 r (1 - c). It
    starts from 1 - c and 1 - r, which keeps it exact where c and r come near 1 (theory 5).

    Args:
        cosine_gap: 1 - c; for unit vectors |mu - mu'|^2 / 2.
        radius: r, of one posterior or of a pair (r = rho rho').
        gap: 1 - r.
        dimension: m > 1; the number of coordinates d for the posterior itself, the kernel dimension
            for the loss.
    """
    return torch.log(gap * (1 + radius)) - (dimension / 2) * torch.log(
        squared_distance(cosine_gap, radius, gap)
    )


def squared_distance(cosine_gap: Tensor, radius: Tensor, gap: Tensor) -> Tensor:
    """Return |u - z|^2 = 1 - 2 r c + r^2 = (1 - r)^2 + 2 r (1 - c), without cancellation.

    Arguments as for `log_kernel`, of broadcast shapes (theory 5).
    """
    return gap.square() + 2 * radius * cosine_gap


def pair_gap(gap: Tensor, other: Tensor) -> Tensor:
    """Return 1 - rho rho' from 1 - rho and 1 - rho', without cancellation (theory 5)."""
    return gap + other - gap * other


def pair_radius(a: Posterior, b: Posterior) -> tuple[Tensor, Tensor]:
    """Return r = rho rho' and 1 - r of paired posteriors, (...) each.

    Radii multiply, because noise on top of noise does (theory 1, the semigroup).

    Raises:
        UserError: a posterior has no radius, or one lies outside [0, 1).
    """
    (radius, gap), (other, other_gap) = usable_radius(a), usable_radius(b)
    return radius * other, pair_gap(gap, other_gap)


def pair_presence(a: Posterior, b: Posterior) -> tuple[Tensor, Tensor] | None:
    """Return p = pi pi' and 1 - p of paired posteriors, (...) each, without cancellation.

    It is None where neither has a presence: both are then 1.

    Raises:
        UserError: a presence lies outside [0, 1]. On a GPU it becomes NaN (inputs.py).
    """
    present = [usable_presence(posterior.presence) for posterior in (a, b)]
    known = [presence for presence in present if presence is not None]
    if len(known) < 2:
        return (known[0], 1 - known[0]) if known else None
    return known[0] * known[1], pair_gap(1 - known[0], 1 - known[1])


def usable_presence(presence: Tensor | None) -> Tensor | None:
    """Return pi (...) in at least float32 after a look at its values; None stays None.

    Raises:
        UserError: a presence lies outside [0, 1]. On a GPU it becomes NaN (inputs.py).
    """
    if presence is None:
        return None
    presence = at_least_float32(presence)
    added = check_values({"presences": presence})
    return presence if added is None else presence + added


def log_mixture(log_ratio: Tensor, presence: Tensor, absence: Tensor) -> Tensor:
    """Return log(1 + p (exp(l) - 1)) in nats, (...): the evidence of a mixture (theory 9).

    It is logaddexp(log(1 - p), log p + l), which neither overflows nor cancels. It is at least
    log(1 - p), so one disagreement costs no more than that; at p = 1 it is l, and at p = 0 it is 0.

    Args:
        log_ratio: l, log P of a pair or of a point, in nats.
        presence: p in [0, 1], broadcast.
        absence: 1 - p, where the caller knows it better than float32's difference.
    """
    inside = (presence > 0) & (absence > 0)
    # At either end a logarithm would be infinite, and its gradient NaN
    p, rest = (torch.where(inside, x, 0.5) for x in (presence, absence))
    mixed = torch.logaddexp(rest.log().expand_as(log_ratio), p.log() + log_ratio)
    return torch.where(inside, mixed, torch.where(presence > 0, log_ratio, 0))


def expected_cosine(a: Posterior, b: Posterior) -> Tensor:
    """Return E[mu.mu'] of two views of one image, given their numbers, (...): pi pi' rho rho'.

    It is the model's prediction (theory 2 and 9), so comparing it with cosines tests the model.

    Raises:
        UserError: as `pair_radius` and `pair_presence`.
    """
    r, _ = pair_radius(a, b)
    both = pair_presence(a, b)
    return r if both is None else both[0] * r


def cosine_gap(mu: Tensor, other: Tensor) -> Tensor:
    """Return 1 - mu.mu' = |mu - mu'|^2 / 2 for unit vectors (..., d).

    It is taken from the difference, so it is exact for close vectors (theory 5).
    """
    return (mu - other).square().sum(-1) / 2


def usable_radius(posterior: Posterior) -> tuple[Tensor, Tensor]:
    """Return rho and 1 - rho, (...) each, in at least float32, after a look at their values.

    Raises:
        UserError: the posterior has no radius, or one lies outside [0, 1). On a GPU, which is not
            waited for, such a radius becomes NaN (inputs.py).
    """
    radius, gap = map(at_least_float32, radius_and_gap(posterior))
    added = check_values({"radii": radius, "gaps": gap})
    return (radius if added is None else radius + added), gap


def log_density(posterior: Posterior, z: Tensor) -> Tensor:
    """Return log q(z | x) in nats, for unit vectors z (..., d), broadcast.

    q is P(u, z), or with a presence pi P(u, z) + 1 - pi. The density is with respect to the uniform
    probability measure (theory 1 and 9).

    >>> knows_nothing = Posterior(torch.tensor([1.0, 0.0]), torch.tensor(0.0))
    >>> log_density(knows_nothing, torch.tensor([0.0, 1.0]))
    tensor(0.)
    """
    radius, gap = usable_radius(posterior)
    away = cosine_gap(at_least_float32(posterior.direction), z)
    log_ratio = log_kernel(away, radius, gap, posterior.direction.shape[-1])
    presence = usable_presence(posterior.presence)
    return log_ratio if presence is None else log_mixture(log_ratio, presence, 1 - presence)


def density(posterior: Posterior, z: Tensor) -> Tensor:
    """Return q(z | x) = pi P(u, z) + 1 - pi, P(u, z) = (1 - |u|^2) / |u - z|^d, without a unit.

    Without a presence pi is 1. The uniform distribution has the density 1.
    """
    return log_density(posterior, z).exp()


def evidence(a: Posterior, b: Posterior, dimension: float | Tensor | None = None) -> Tensor:
    """Return s = log P_{rho rho'}(mu.mu') in nats, (...), row by row.

    It is the evidence that two views show the same image, their pointwise mutual information
    (theory 2). With presences it is log(1 + pi pi' (P - 1)), which is bounded below (theory 9).

    Args:
        a: the posteriors of the first views, (...).
        b: the posteriors of the second views, (...).
        dimension: m of the kernel. Default: the number of coordinates.

    Raises:
        UserError: a posterior has no radius, one lies outside [0, 1), or the dimension is not
            above 1.
    """
    r, gap = pair_radius(a, b)
    m = kernel_dimension_of(a.direction, dimension)
    mu, other = map(at_least_float32, (a.direction, b.direction))
    log_ratio = log_kernel(cosine_gap(mu, other), r, gap, m)
    both = pair_presence(a, b)
    return log_ratio if both is None else log_mixture(log_ratio, *both)


def evidence_matrix(a: Posterior, b: Posterior, dimension: float | Tensor | None = None) -> Tensor:
    """Return the `evidence` of all pairs in nats, (n, m), for n and m views (theory 2 and 9).

    The cost is one matrix product, one outer product and one logarithm an entry. A cosine by
    product is off by some eps, which matters only where (1 - r)^2 + 2 r (1 - c) is small, that is,
    for pairs that are close *and* sure. Those few are measured again from the difference: float32
    then stays within 1e-3 nats at d = 128 (13 nats without; float64 would exclude Apple GPUs and is
    slow on most others). Memory: some (n, m) arrays, and with gradient d numbers more for each such
    pair.

    Args:
        a: the n posteriors of the rows.
        b: the m posteriors of the columns.
        dimension: m of the kernel. Default: the number of coordinates.

    Raises:
        UserError: a posterior has no radius, one lies outside [0, 1), or the dimension is not
            above 1.
    """
    mu, other = map(at_least_float32, (a.direction, b.direction))
    (radius, gap), (radii, gaps) = usable_radius(a), usable_radius(b)
    r, gap = radius[:, None] * radii, pair_gap(gap[:, None], gaps)
    # A bfloat16 product would be 24 nats wrong at rho = 0.99 (theory 5)
    with torch.autocast(a.direction.device.type, enabled=False):
        by_product = 1 - mu @ other.T
    near = squared_distance(by_product.detach(), r, gap) < NEAR * torch.finfo(r.dtype).eps
    exact = _refined(by_product, near, mu, other)
    log_ratio = log_kernel(exact, r, gap, kernel_dimension_of(a.direction, dimension))
    rows, columns = usable_presence(a.presence), usable_presence(b.presence)
    if rows is None and columns is None:
        return log_ratio
    one = log_ratio.new_ones(())
    p, q = (one if x is None else x for x in (rows[:, None] if rows is not None else None, columns))
    return log_mixture(log_ratio, p * q, pair_gap(1 - p, 1 - q))


def _refined(by_product: Tensor, near: Tensor, mu: Tensor, other: Tensor) -> Tensor:
    """1 - c (n, m), the marked pairs from the difference, 65,536 pairs at a time.

    To list the marked pairs a GPU would have to be waited for, so there all pairs are measured.
    """
    if mu.device.type != "cpu":
        return torch.where(near, cosine_gaps(mu, other), by_product)
    pairs = near.nonzero().split(65536)
    exact = torch.cat([cosine_gap(mu[i], other[j]) for i, j in (p.unbind(-1) for p in pairs)])
    return by_product.index_put((near,), exact)


def cosine_gaps(mu: Tensor, other: Tensor) -> Tensor:
    """Return `cosine_gap` of all pairs of rows, (n, m), without an (n, m, d) array."""
    distance = torch.cdist(mu, other, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square() / 2


# The rapidity v = 2 artanh(c) of a cosine (theory 6)


def rapidity_log_shape(v: Tensor, shift: Tensor, d: float) -> Tensor:
    """Return h(v), the log-density of v = 2 artanh(c) but for a constant, nats (theory 6).

    h(v) = ((d-1)/2) v - ((d-2)/2) softplus(v) - (d/2) softplus(v - delta)

    Args:
        v: (...).
        shift: delta = 4 artanh(rho), broadcast.
        d: coordinates, at least 2.
    """
    return (d - 1) / 2 * v - (d - 2) / 2 * softplus(v) - d / 2 * softplus(v - shift)


def rapidity_mode(shift: Tensor, d: float) -> tuple[Tensor, Tensor]:
    """Return the mode v0 of v = 2 artanh(c), and log f(v0), its log-density there (theory 6).

    h'(v0) = 0 is q X^2 - X (1 - q)/(d - 1) - 1 = 0 with X = exp(v0) and q = exp(-delta); v0 is the
    logarithm of its positive root.

    Args:
        shift: delta = 4 artanh(rho), (...).
        d: coordinates.
    """
    mode = shift / 2 + torch.asinh(torch.sinh(shift / 2) / (d - 1))
    ratio = shift / 2  # log((1 + rho) / (1 - rho))
    log_one_plus_radius = math.log(2) - softplus(-ratio)
    log_area = (
        math.lgamma(d / 2)
        - math.lgamma((d - 1) / 2)
        - math.log(math.pi) / 2
        + (d - 2) * math.log(2)
    )
    constant = log_area - ratio - (d - 2) * log_one_plus_radius
    return mode, constant + rapidity_log_shape(mode, shift, d)


# Information (theory 6)


def information(
    radius: Tensor, dimension: float, gap: Tensor | None = None, presence: Tensor | None = None
) -> Tensor:
    """Return I(rho, d) = E_P[log P] in nats: how much a view of this radius says of its latent.

    Information is comparable across dimensions, radii are not (theory 6):

        I = -nu log(1 - x) + (d/2) S,   x = rho^2,   nu = d/2 - 1,
        S = sum_{k>=1} x^k / (k + nu) = x/(nu + 1) Int_0^inf e^-p / (1 - x e^(-p/(nu+1))) dp

    The series needs 1e4 terms near rho = 1, so its sum is taken as that integral (1/(k + nu) is the
    integral of an exponential, and the sum under it is geometric). The substitution
    p = e (exp(y) - 1), e = (nu + 1)(1 - x), straightens the near-pole for Gauss-Legendre. Computed
    in float64 with an error under 1e-12 max(1, I) nats for rho up to 1 - 1e-6 and d from 2 to 4096;
    that includes cutting the tail at e^-40.

    With a presence it is I(rho, pi, d) = E_q[log q] of the mixture q = pi P + 1 - pi (theory 9),
    which is 0 at pi = 0 and has no closed form. A quadrature in v = 2 artanh(c) takes it, with an
    error under 1e-9 max(1, I) nats in the same range, at ten times the work or more.

    Args:
        radius: (...) in [0, 1).
        dimension: d, the number of coordinates, at least 2.
        gap: 1 - radius where it is known more exactly (float32 near 1). Default: 1 - radius.
        presence: (...), pi in [0, 1]. Default: 1.

    Returns:
        (...) in the dtype of radius.

    Raises:
        UserError: the dimension is below 2, or a radius or a presence lies outside its range.

    >>> information(torch.tensor(0.6, dtype=torch.float64), 2)  # d = 2: -log(1 - rho^2)
    tensor(0.4463, dtype=torch.float64)
    """
    check_dimension(dimension)
    check_floating("radius", radius)
    gap = 1 - wide(radius) if gap is None else wide(gap)
    added = check_values({"radii": radius, "gaps": gap})
    result = _information(gap * (2 - gap), dimension)
    if presence is not None:
        check_numbers("presence", presence, radius.unsqueeze(-1), "radius")
        pi = wide(presence)
        of_presence = check_values({"presences": pi})
        if of_presence is not None:
            result = result + of_presence.to(result)
        # Where both laws are one, the integrals of no use are left out
        mixed = ((pi > 0) & (pi < 1)).nonzero(as_tuple=True)
        gaps, present = (x[mixed].split(MIXED_ROWS) for x in (gap, pi))
        parts = [
            _information_of_mixture(some, presences, dimension)
            for some, presences in zip(gaps, present, strict=True)
        ]
        result = torch.where(pi == 0, 0, result).index_put(mixed, torch.cat(parts))
    result = result.to(radius.dtype)
    return result if added is None else result + added.to(result)


def _information(rest: Tensor, dimension: float) -> Tensor:
    """I from rest = 1 - x = 1 - rho^2, by the integral of `information`."""
    nu = dimension / 2 - 1
    nodes, weights = (
        torch.as_tensor(a, dtype=rest.dtype, device=rest.device) for a in _gauss_legendre()
    )
    pole = (nu + 1) * rest.unsqueeze(-1)
    y_end = torch.log1p(40 / ((nu + 1) * rest)).unsqueeze(-1)  # where e^-p is 4e-18
    p = pole * torch.expm1(y_end * nodes)
    dp = (pole + p) * y_end * weights
    one_minus_power = rest.unsqueeze(-1) - (1 - rest.unsqueeze(-1)) * torch.expm1(-p / (nu + 1))
    integral = (torch.exp(-p) * dp / one_minus_power).sum(-1)
    return (1 - rest) * integral - nu * rest.log()  # (d/2) / (nu + 1) = 1


@cache
def _gauss_legendre(count: int = NODES) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


def _information_of_mixture(gap: Tensor, presence: Tensor, d: float) -> Tensor:
    """E_q[log q] (n,) for presences between 0 and 1, by Gauss-Legendre in panels of v.

    q is a density with respect to the uniform law, whose v has the density f: the integral of
    f q log q. With P f the density of v under the kernel, each factor is smooth at the scale of
    1 / (its height), but for log q, which bends where pi P = 1 - pi as fast as log P rises there.
    """
    shift = 2 * torch.log((2 - gap) / gap)  # delta = 4 artanh(rho)
    _, flat = rapidity_mode(shift.new_zeros(()), d)  # the uniform law is highest at v = 0
    edges = _panels(shift.detach(), gap.detach(), presence.detach(), d)
    nodes, weights = (
        torch.as_tensor(a, dtype=gap.dtype, device=gap.device) for a in _gauss_legendre(PANEL_NODES)
    )
    width = edges.diff(dim=-1).unsqueeze(-1)
    v = (edges[:, :-1, None] + width * nodes).flatten(1)
    weight = (width * weights).flatten(1)
    shift, gap, pi = shift[:, None], gap[:, None], presence[:, None]
    log_ratio = _log_kernel_of_rapidity(v, shift, gap, d)
    log_uniform = flat + (d - 1) / 2 * v - (d - 1) * (softplus(v) - math.log(2))
    log_mixed = log_mixture(log_ratio, pi, 1 - pi)
    return (weight * torch.exp(log_uniform + log_mixed) * log_mixed).sum(-1)


def _log_kernel_of_rapidity(v: Tensor, shift: Tensor, gap: Tensor, d: float) -> Tensor:
    """The logarithm of P as a function of v = 2 artanh(c); it rises with v."""
    return d / 2 * (softplus(v) - softplus(v - shift)) - shift / 2 - (d - 2) * torch.log(2 - gap)


def _panels(shift: Tensor, gap: Tensor, presence: Tensor, d: float) -> Tensor:
    """Return the ends of the panels (n, panels + 1), sorted: both peaks, between them, the bend."""
    modes = [rapidity_mode(x, d) for x in (torch.zeros_like(shift), shift)]
    # In units of 1 / height: beyond t a log-concave density has less than exp(1 - t)
    out = [0.0, 0.8, 1.6, 2.5, 4, 7, 12, 20, 41]
    steps = shift.new_tensor([-x for x in out[:0:-1]] + out)
    peaks = [mode[:, None] + steps / log_height.exp()[:, None] for mode, log_height in modes]
    between = shift[:, None] * torch.linspace(0, 1, 41, dtype=shift.dtype, device=shift.device)
    # log P = log((1 - pi) / pi) is (1 + q X) / (1 + X) = exp(g) for X = exp(v) and q = exp(-delta)
    at_least = torch.log((1 - presence) / presence)
    level = 2 / d * (-shift / 2 - (d - 2) * torch.log(2 - gap) - at_least)
    low = torch.exp(-shift)
    x = -torch.expm1(level) / (level.exp() - low).clamp(min=torch.finfo(low.dtype).tiny)
    lowest = torch.minimum(peaks[0][:, 0], peaks[1][:, 0])
    highest = torch.maximum(peaks[0][:, -1], peaks[1][:, -1])
    bend = x.clamp(min=torch.finfo(low.dtype).tiny).log().clamp(lowest, highest)
    slope = d / 2 * (torch.sigmoid(bend) - torch.sigmoid(bend - shift))
    powers = 2 * 4.0 ** torch.arange(9, dtype=shift.dtype, device=shift.device)
    steps = torch.cat((-powers.flip(0), powers.new_zeros(1), powers))
    bends = bend[:, None] + steps / slope.clamp(min=1e-3)[:, None]
    ends = torch.cat((*peaks, between, bends), 1)
    return ends.clamp(lowest[:, None], highest[:, None]).sort(1).values
