"""The losses, each the formula of its paper (theory.md, sections 2-4).

Conventions. ``directions`` is (2n, d), unit vectors mu; rows i and i + n are the two views of image i; p(i) is the partner of row i.
A loss is a mean over all 2n views, in nats. Half precision is raised to float32 and autocast is off inside every loss (theory 5);
float64 stays float64. A ``UserError`` is raised where the rows do not make at least two pairs or a number lies outside its range.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths.sphere import log_kernel, pair_gap

Inputs = ParamSpec("Inputs")


# ---------------------------------------------------------------- what all losses share

def full_precision(loss: Callable[Inputs, Tensor]) -> Callable[Inputs, Tensor]:
    """Raise half-precision arguments of ``loss`` to float32, and switch autocast off inside: it would lower the products again."""

    @wraps(loss)
    def in_float32(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Tensor:
        device = next(x.device.type for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*map(raised, args), **{name: raised(x) for name, x in kwargs.items()})

    return in_float32


def raised(x: Any) -> Any:
    """A tensor in at least float32; anything else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if isinstance(x, Tensor) and x.is_floating_point() else x


def above(name: str, value: float, bound: float) -> float:
    """The value, or a ``UserError`` if it is not a finite number above the bound."""
    if not bound < value < math.inf:
        raise UserError(f"{name} must be a finite number above {bound:g}, and is {value}; choose a larger one.")
    return value


def pairs(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows i and i + n: the two views of image i, (n, ...) each; they must make at least two pairs."""
    if len(rows) % 2 or len(rows) < 4:
        raise UserError(f"a loss needs two views of each of 2 images or more: an even number of rows, at least 4, and got {len(rows)}.")
    first, second = rows.chunk(2)
    return first, second


def partners(evidence: Tensor) -> Tensor:
    """(..., 2n): entry (i, p(i)) of a (..., 2n, 2n) matrix."""
    n = evidence.shape[-1] // 2
    return torch.cat((evidence.diagonal(n, -2, -1), evidence.diagonal(-n, -2, -1)), -1)


def info_nce(evidence: Tensor) -> Tensor:
    """- log( exp(e_ip(i)) / sum_{j != i} exp(e_ij) ), (..., 2n, 2n) -> (..., 2n): naming the partner among all other views, nats.

    van den Oord et al. 2018, eq. 4, with SimCLR's choice of negatives: both views of every other image.
    """
    itself = torch.eye(evidence.shape[-1], dtype=torch.bool, device=evidence.device)
    return evidence.masked_fill(itself, -math.inf).logsumexp(-1) - partners(evidence)


# ---------------------------------------------------------------- NT-Xent and SURE

@full_precision
def per_view_nt_xent(directions: Tensor, temperature: float) -> Tensor:
    """(2n,), the NT-Xent loss of every view before the mean, nats."""
    above("temperature", temperature, 0)
    pairs(directions)
    return info_nce(directions @ directions.T / temperature)


def nt_xent(directions: Tensor, temperature: float) -> Tensor:
    """- mean_i log( exp(mu_i.mu_p(i) / tau) / sum_{j != i} exp(mu_i.mu_j / tau) )   (theory 3, L_what).

    Chen et al. 2020 (SimCLR), eq. 1 and Algorithm 1. (2n, d) unit vectors -> scalar, nats, mean over 2n views.
    """
    return per_view_nt_xent(directions, temperature).mean()


@full_precision
def radius_likelihood(directions: Tensor, radii: Tensor, dimension: float | None = None, gaps: Tensor | None = None) -> Tensor:
    """- mean_i log P_{rho_i rho_p(i)}( sg(mu_i).sg(mu_p(i)) )   (theory 3, L_sure): where on the sphere is the partner?

    Strictly proper for the radii; no gradient reaches the directions. Arguments as for ``sure``; scalar, nats, mean over 2n views
    (equal to the mean over n pairs, which share their value).
    """
    mu, other = pairs(directions.detach())
    rho, rho_other = pairs(radii)
    gap = pair_gap(*pairs(1 - radii if gaps is None else gaps))
    cosine_gap = (mu - other).square().sum(-1) / 2  # from the difference: 1 - c loses c near 1 in float32 (theory 5)
    m = directions.shape[1] if dimension is None else dimension
    return -log_kernel(cosine_gap, rho * rho_other, gap, m).mean()


def sure(
    directions: Tensor,
    radii: Tensor,
    temperature: float,
    weight: float = 1.0,
    dimension: float | None = None,
    gaps: Tensor | None = None,
) -> Tensor:
    """L = L_what + lambda * L_sure   (theory 3): which view shares the image, and how sure is each view of it?

    Args:
        directions: (2n, d), unit vectors mu.
        radii: (2n,), rho in [0, 1).
        temperature: tau of L_what.
        weight: lambda of L_sure; 0 is NT-Xent.
        dimension: m of the kernel, above 1; None: the number of coordinates d. ``SureLoss`` passes the running 1 / E[c^2].
        gaps: (2n,), 1 - rho where the caller knows it better than float32's 1 - radii (``sigmoid(-k)``).
    Returns:
        scalar, nats, mean over 2n views.
    """
    return nt_xent(directions, temperature) + weight * radius_likelihood(directions, radii, dimension, gaps)


@full_precision
def mean_squared_cosine(directions: Tensor) -> Tensor:
    """E[c^2] over the 2n (2n - 2) ordered pairs of views of *different* images, scalar; 1 / it is the kernel dimension m (theory 3).

    sum_ij c_ij^2 = |M^T M|^2 for the (2n, d) matrix M, so it costs O(n d^2) and no (2n, 2n) matrix.
    """
    mu, other = pairs(directions)
    everything = (directions.T @ directions).square().sum()
    same_image = (mu.square().sum(-1).square() + other.square().sum(-1).square() + 2 * (mu * other).sum(-1).square()).sum()
    return ((everything - same_image) / (len(directions) * (len(directions) - 2))).clamp(min=0)
