"""NT-Xent and SURE (theory.md, sections 2-4), and what all losses share; the reference losses are
in references.py.

Conventions. ``directions`` is (2n, d), unit vectors mu; rows i and i + n are the views of image i,
and p(i) is row i's partner. A loss is a mean over all 2n views, in nats. Half precision is raised
to float32 and autocast is off inside every loss (theory 5); float64 stays float64. A ``UserError``
is raised where the rows do not make at least two pairs or a number lies outside its range.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, ParamSpec

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sureclr.errors import UserError
from sureclr.maths.sphere import Posterior, cosine_gap, evidence_matrix, log_kernel, pair_gap

Inputs = ParamSpec("Inputs")
Softening = Literal["anchors", "means", "off"]
GROUP = 128  # images whose views `log_base_rate` holds against each other
# How much surer than the mean a view may count; binds only where the mean radius is below a half
SUREST = 2.0
Dimension = float | Tensor | None  # of the kernel, m > 1; None: the number of coordinates


# What all losses share


def full_precision(loss: Callable[Inputs, Tensor]) -> Callable[Inputs, Tensor]:
    """``loss`` with half-precision arguments raised to float32 and autocast off inside: it would
    lower the products again.
    """

    @wraps(loss)
    def in_float32(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Tensor:
        device = next(x.device.type for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*map(raised, args), **{name: raised(x) for name, x in kwargs.items()})

    return in_float32


def raised(x: Any) -> Any:
    """A tensor in at least float32; anything else as it is."""
    return (
        x.to(torch.promote_types(x.dtype, torch.float32))
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
    )


def above(name: str, value: float, bound: float) -> float:
    """The value, or a ``UserError`` if it is not a finite number above the bound."""
    if not bound < value < math.inf:
        raise UserError(
            f"{name} must be a finite number above {bound:g}, and is {value}; choose a larger one."
        )
    return value


def pairs(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows i and i + n: the two views of image i, (n, ...) each; they must make at least two pairs."""
    if len(rows) % 2 or len(rows) < 4:
        raise UserError(
            "a loss needs two views of each of 2 images or more, so 4, 6, 8, ... rows, not"
            f" {len(rows)}; add images."
        )
    first, second = rows.chunk(2)
    return first, second


def not_negative(name: str, value: float) -> float:
    """The value, or a ``UserError`` if it is not a finite number from 0 on."""
    if not 0 <= value < math.inf:
        raise UserError(
            f"{name} must be a finite number, 0 or more, and is {value}; 0 switches its term off."
        )
    return value


def partners(evidence: Tensor) -> Tensor:
    """(..., 2n): entry (i, p(i)) of a (..., 2n, 2n) matrix."""
    n = evidence.shape[-1] // 2
    return torch.cat((evidence.diagonal(n, -2, -1), evidence.diagonal(-n, -2, -1)), -1)


def without_own_image(evidence: Tensor, views: int = 2) -> Tensor:
    """The (views * n, views * n) matrix with -inf where row and column show the same image."""
    image = torch.arange(len(evidence), device=evidence.device) % (len(evidence) // views)
    return evidence.masked_fill(image[:, None] == image, -math.inf)


def info_nce(evidence: Tensor) -> Tensor:
    """- log( exp(e_ip(i)) / sum_{j != i} exp(e_ij) ), (..., 2n, 2n) -> (..., 2n), nats: name the
    partner among all other views.

    van den Oord et al. 2018, eq. 4, with SimCLR's choice of negatives: both views of every other
    image.
    """
    itself = torch.eye(evidence.shape[-1], dtype=torch.bool, device=evidence.device)
    return evidence.masked_fill(itself, -math.inf).logsumexp(-1) - partners(evidence)


# NT-Xent and SURE


@full_precision
def per_view_nt_xent(
    directions: Tensor, temperature: float, sharpness: Tensor | None = None
) -> Tensor:
    """(2n,), the NT-Xent loss of every view before the mean, nats."""
    pairs(directions)
    logits = directions @ directions.T / above("temperature", temperature, 0)
    return info_nce(logits if sharpness is None else logits * sharpness[:, None])


def nt_xent(directions: Tensor, temperature: float, sharpness: Tensor | None = None) -> Tensor:
    """- mean_i log( exp(mu_i.mu_p(i) / tau) / sum_{j != i} exp(mu_i.mu_j / tau) )   (theory 3, L_what).

    Chen et al. 2020 (SimCLR), eq. 1 and Algorithm 1. (2n, d) unit vectors -> scalar, nats, mean
    over 2n views. With a sharpness (2n,), above 0, view i has the temperature tau / sharpness_i of
    its own; no gradient reaches it in tiles.
    """
    return per_view_nt_xent(directions, temperature, sharpness).mean()


@full_precision
def radius_likelihood(
    directions: Tensor, radii: Tensor, dimension: Dimension = None, gaps: Tensor | None = None
) -> Tensor:
    """- mean_i log P_{rho_i rho_p(i)}( sg(mu_i).sg(mu_p(i)) )   (theory 3, L_sure): where on the sphere is the partner?

    Strictly proper for the radii; no gradient reaches the directions. Arguments as for ``sure``;
    scalar, nats, mean over 2n views (equal to the mean over n pairs, which share their value).
    """
    mu, other = pairs(directions.detach())
    rho, rho_other = pairs(radii)
    gap = pair_gap(*pairs(1 - radii if gaps is None else gaps))
    m = directions.shape[1] if dimension is None else dimension
    return -log_kernel(cosine_gap(mu, other), rho * rho_other, gap, m).mean()


@full_precision
def log_base_rate(
    directions: Tensor, radii: Tensor, dimension: Dimension = None, gaps: Tensor | None = None
) -> Tensor:
    """mean_i log mean_j P_{rho_i rho_j}( sg(mu_i).sg(mu_j) ), j over views of other images: how
    well a view predicts *them*.

    The likelihood's normaliser under the law that the directions have, in place of the uniform one
    (theory 2: "the radius absorbs the base rate"). 0 for many views if that law is uniform, since P
    integrates to 1. j runs over a group of at most ``GROUP``
    images that are next to each other in the batch: shuffled, so a sample; the cost is O(n), and
    the number (a log-mean, so it depends on how many) the same for every batch size. No gradient
    reaches the directions. Arguments as for ``sure``; scalar, nats, mean over 2n views.
    """
    n, gaps = len(pairs(directions)[0]), 1 - radii if gaps is None else gaps
    groups = torch.arange(n, device=directions.device).tensor_split(math.ceil(n / GROUP))

    def one(images: Tensor, radii: Tensor, gaps: Tensor) -> Tensor:
        """The sum over a group's views. Computed again for its gradient: memory is that of one
        group.
        """
        rows = torch.cat((images, images + n))
        views = Posterior(directions.detach()[rows], radii[rows], gaps[rows])
        others = without_own_image(evidence_matrix(views, views, dimension))
        return (others.logsumexp(1) - math.log(len(rows) - 2)).sum()

    return sum(
        checkpoint(one, images, radii, gaps, use_reentrant=False, preserve_rng_state=False)
        for images in groups
    ) / len(radii)


def sure(
    directions: Tensor,
    radii: Tensor,
    temperature: float,
    weight: float | Tensor = 1.0,
    dimension: Dimension = None,
    gaps: Tensor | None = None,
    empirical_prior: float = 0.0,
    softening: Softening = "off",
    nt_xent: Callable[..., Tensor] = nt_xent,
) -> Tensor:
    """L = L_what + lambda * L_sure   (theory 3): which view shares the image, and how sure is each view of it?

    Args:
        directions: (2n, d), unit vectors mu.
        radii: (2n,), rho in [0, 1).
        temperature: tau of L_what.
        weight: lambda of L_sure; 0 is NT-Xent.
        dimension: m of the kernel, above 1; None: the number of coordinates d. ``SureLoss`` passes
            the running 1 / E[c^2].
        gaps: (2n,), 1 - rho where the caller knows it better than float32's 1 - radii
            (``sigmoid(-k)``).
        empirical_prior: beta in [0, 1] of ``certainty``.
        softening: of the logits of unsure views in L_what. View i's logit for j is
            "off": c_ij / tau (theory 3);
            "anchors": a_i c_ij / tau, each view at the temperature that its certainty deserves,
            ``sharpness``; "means": u_i.u_j over tau and the mean radius squared,
            ``posterior_means``. With equal radii all are NT-Xent. The radii have no gradient and no
            common scale in L_what, so the temperature, whose mean stays, cannot run away (theory
            5).
        nt_xent: of rows, temperature and sharpness (``tiles.nt_xent`` for large batches).
    Returns:
        scalar, nats, mean over 2n views.
    """
    if softening == "means":
        what = nt_xent(posterior_means(directions, radii), temperature / SUREST**2)
    else:
        what = nt_xent(
            directions, temperature, sharpness(radii) if softening == "anchors" else None
        )
    return what + weight * certainty(directions, radii, dimension, gaps, empirical_prior)


@full_precision
def sharpness(radii: Tensor) -> Tensor:
    """a_i = q_i / mean_j q_j, (2n,), q = r / (1 + r^2) at r = sg(rho_i) times the mean radius:
    theory 4 has 1/tau = d q.
    """
    radii = radii.detach()
    r = radii * radii.mean()
    q = r / (1 + r.square())
    return q / q.mean()


@full_precision
def posterior_means(directions: Tensor, radii: Tensor) -> Tensor:
    """min(a_i, SUREST) / SUREST mu_i, (2n, d), a = ``relative(radii)``: the posterior means u_i,
    but for one factor.

    NT-Xent of these rows at tau / SUREST^2 has the logits a_i a_j c_ij / tau, proportional to
    u_i.u_j, which is the *expected* cosine of the latents, E[z.z' | x, x'], and to first order in r
    the evidence s (theory 4).
    """
    return relative(radii).clamp(max=SUREST)[:, None] / SUREST * directions


def relative(radii: Tensor) -> Tensor:
    """sg(rho_i) / mean_j sg(rho_j), (2n,)."""
    radii = radii.detach()
    return radii / radii.mean()


def certainty(
    directions: Tensor,
    radii: Tensor,
    dimension: Dimension = None,
    gaps: Tensor | None = None,
    empirical_prior: float = 0.0,
) -> Tensor:
    """L_sure = - mean_i ( log P_{r_ip(i)}(c_ip(i)) - beta log mean_j P_{r_ij}(c_ij) ), j over views
    of other images.

    beta = 0 is theory 3: directions are uniform on the sphere. beta = 1 takes their law from the
    batch: a contrastive likelihood, of which image a view is (theory 8). Arguments as for ``sure``;
    scalar, nats, mean over 2n views.
    """
    likelihood = radius_likelihood(directions, radii, dimension, gaps)
    if empirical_prior:
        likelihood = likelihood + empirical_prior * log_base_rate(
            directions, radii, dimension, gaps
        )
    return likelihood


@full_precision
def mean_squared_cosine(directions: Tensor) -> Tensor:
    """E[c^2] over the 2n (2n - 2) ordered pairs of views of *different* images, scalar; its inverse
    is m (theory 3).

    sum_ij c_ij^2 = |M^T M|^2 for the (2n, d) matrix M, so it costs O(n d^2) and no (2n, 2n) matrix.
    """
    mu, other = pairs(directions)
    everything = (directions.T @ directions).square().sum()
    same_image = (
        mu.square().sum(-1).square()
        + other.square().sum(-1).square()
        + 2 * (mu * other).sum(-1).square()
    ).sum()
    return ((everything - same_image) / (len(directions) * (len(directions) - 2))).clamp(min=0)


# The diagnostic of the model


@torch.no_grad()
def log_mean_exp_evidence(
    posterior: Posterior, dimension: float, views: int = 2
) -> tuple[float, float]:
    """log E[exp s] over views of *different* images, nats: 0 if the model is true, since P
    integrates to 1 (theory 5).

    Args:
        posterior: of views * n rows, with a radius; rows i, i + n, ... show image i. Memory is
            (views * n)^2: give a sample.
        dimension: m of the kernel.
        views: of each image; 1 where every row shows another image.
    Returns:
        the estimate and its standard error. Pairs share images, so it is that of a U-statistic of
        order 2: 2 sd(h_i) / sqrt(n), h_i image i's mean over all others. The estimate is
        heavy-tailed: where the error is not small, it is itself a guess.
    """
    n = len(posterior.direction) // views
    s = evidence_matrix(posterior, posterior, dimension)
    an_image = without_own_image(s, views).logsumexp(-1).reshape(views, n).logsumexp(0) - math.log(
        views * views * (n - 1)
    )
    estimate = an_image.logsumexp(0) - math.log(n)
    return estimate.item(), (2 * (an_image - estimate).exp().std() / math.sqrt(n)).item()
