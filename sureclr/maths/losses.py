"""NT-Xent and SURE (theory 2 to 4), and what all losses share; references.py has the others.

Conventions: `directions` is (2n, d), unit vectors mu. Rows i and i + n are the views of image i,
and p(i) is row i's partner. A loss is a mean over all 2n views, in nats. Inside every loss half
precision is raised to float32 and autocast is off (theory 5); float64 stays float64. A `UserError`
is raised where a tensor has another type or shape, the rows do not make at least two pairs, or a
number lies outside its range (inputs.py, also for GPUs).

The defaults of SURE and NT-Xent stand here and nowhere else: the loss modules (objectives.py) and
the tiled losses (tiles.py) refer to these names.
"""

import math
from collections.abc import Callable
from functools import wraps
from inspect import signature, unwrap
from itertools import combinations
from typing import Any, Literal, ParamSpec, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sureclr.errors import UserError
from sureclr.maths.inputs import (
    RULES,
    check_rows,
    check_values,
    check_views,
    checked_share,
    checked_temperature,
    not_negative,
    pairs,
)
from sureclr.maths.sphere import (
    Posterior,
    at_least_float32,
    cosine_gap,
    evidence_matrix,
    kernel_dimension_of,
    log_kernel,
    log_mixture,
    pair_gap,
    radius_and_gap,
)

Inputs = ParamSpec("Inputs")
Softening = Literal["anchors", "means", "off"]
Switch = Literal["on", "off"]
Dimension = float | Tensor | None  # of the kernel, m > 1. None: the number of coordinates

TEMPERATURE = 0.2  # tau, of every loss that has one (but ELK's, which divides evidence)
PULL = 28.0  # lambda * m of SURE: its pull on the encoder grows with this product (theory 5)
EMPIRICAL_PRIOR = 0.0  # beta of SURE
SOFTENING: Softening = "anchors"  # of SURE
PRESENCE: Switch = "off"  # of SURE: whether the posterior has a second number, pi
NULL_WEIGHT = 1.0  # of SURE: how much a null view counts beside an image
GROUP = 128  # images that `log_base_rate` compares with each other
NULL_PAIRS = (
    1 << 20
)  # of null views with views, that `null_likelihood` compares at once: 4 MiB each
# How many times the mean radius a view may count; binds only where the mean radius is below a half
SUREST = 2.0


# What all losses share


def full_precision(loss: Callable[Inputs, Tensor]) -> Callable[Inputs, Tensor]:
    """Wrap a loss so that half precision is raised to float32 and autocast is off inside.

    Autocast would lower the products again.
    """

    @wraps(loss)
    def in_float32(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Tensor:
        tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        device = next((x.device.type for x in tensors), "cpu")
        with torch.autocast(device, enabled=False):
            arguments: Any = map(_raised, args)
            options: Any = {name: _raised(x) for name, x in kwargs.items()}
            return loss(*arguments, **options)

    return in_float32


def _raised(x: object) -> object:
    """A floating-point tensor in at least float32; anything else unchanged."""
    return at_least_float32(x) if isinstance(x, Tensor) and x.is_floating_point() else x


def loss_of_views(loss: Callable[Inputs, Tensor]) -> Callable[Inputs, Tensor]:
    """Wrap a loss: `full_precision`, and its views are checked first (inputs.py).

    Its first argument is `directions`; arguments of one number a view are known by their names.
    """
    arguments = tuple(signature(loss).parameters.items())
    of_views = {"radii", "gaps", *RULES} - {"directions"}
    in_full_precision = full_precision(loss)

    @wraps(loss)
    def checked(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Tensor:
        given: dict[str, Any] = {name: x for (name, _), x in zip(arguments, args, strict=False)}
        given |= kwargs
        numbers = {
            name: given[name]
            for name, parameter in arguments
            if name in of_views
            and name in given
            and not (given[name] is None and parameter.default is None)
        }
        added = check_views(given["directions"], numbers) if "directions" in given else None
        result = in_full_precision(*args, **kwargs)
        return result if added is None else result + added

    return checked


def checked_prior(empirical_prior: float) -> float:
    """Return the share beta of the empirical prior.

    Raises:
        UserError: it does not lie in [0, 1].
    """
    return checked_share("empirical_prior", empirical_prior, "0 is the uniform prior of the model")


def checked_presence(presence: Switch) -> Switch:
    """Return whether the posterior has a presence, "on" or "off".

    Raises:
        UserError: it is another word.
    """
    if presence not in get_args(Switch):
        raise UserError(
            f"presence must be one of {', '.join(get_args(Switch))}, and is {presence}; leave it"
            f" out for {PRESENCE}."
        )
    return presence


def checked_softening(softening: Softening) -> Softening:
    """Return the softening.

    Raises:
        UserError: there is none of this name.
    """
    if softening not in get_args(Softening):
        raise UserError(
            f"softening must be one of {', '.join(get_args(Softening))}, and is {softening};"
            f" leave it out for {SOFTENING}."
        )
    return softening


def partners(evidence: Tensor) -> Tensor:
    """Return the entries (i, p(i)) of a (..., 2n, 2n) matrix, (..., 2n)."""
    n = evidence.shape[-1] // 2
    return torch.cat((evidence.diagonal(n, -2, -1), evidence.diagonal(-n, -2, -1)), -1)


def without_own_image(evidence: Tensor, views: int = 2) -> Tensor:
    """Return the matrix with -inf where row and column show the same image.

    Args:
        evidence: (views * n, views * n).
        views: of each image; rows i, i + n, ... show image i.
    """
    image = torch.arange(len(evidence), device=evidence.device) % (len(evidence) // views)
    return evidence.masked_fill(image[:, None] == image, -math.inf)


def info_nce(evidence: Tensor) -> Tensor:
    """Return - log( exp(e_ip(i)) / sum_{j != i} exp(e_ij) ) in nats, (..., 2n, 2n) -> (..., 2n).

    The task is to name the partner among all other views: van den Oord et al. 2018, eq. 4, with
    SimCLR's choice of negatives, both views of every other image.
    """
    itself = torch.eye(evidence.shape[-1], dtype=torch.bool, device=evidence.device)
    return evidence.masked_fill(itself, -math.inf).logsumexp(-1) - partners(evidence)


# NT-Xent and SURE


@loss_of_views
def per_view_nt_xent(
    directions: Tensor, temperature: float = TEMPERATURE, sharpness: Tensor | None = None
) -> Tensor:
    """Return the NT-Xent loss of every view in nats, (2n,). Arguments as for `nt_xent`."""
    logits = directions @ directions.T / checked_temperature(temperature)
    return info_nce(logits if sharpness is None else logits * sharpness[:, None])


def nt_xent(
    directions: Tensor, temperature: float = TEMPERATURE, sharpness: Tensor | None = None
) -> Tensor:
    """Return - mean_i log( exp(mu_i.mu_p(i) / tau) / sum_{j != i} exp(mu_i.mu_j / tau) ).

    L_what of theory 3, and Chen et al. 2020 (SimCLR), eq. 1 and Algorithm 1.

    Args:
        directions: (2n, d), unit vectors.
        temperature: tau, above 0.
        sharpness: (2n,), from 0 on: view i has the temperature tau / sharpness_i. Not given: 1.
            tiles.py gives it no gradient.

    Returns:
        a scalar in nats, the mean over all 2n views.

    Raises:
        UserError: a tensor or the temperature does not fit.
    """
    return per_view_nt_xent(directions, temperature, sharpness).mean()


@loss_of_views
def radius_likelihood(
    directions: Tensor,
    radii: Tensor,
    dimension: Dimension = None,
    gaps: Tensor | None = None,
    presences: Tensor | None = None,
) -> Tensor:
    """Return - mean_i log P_{rho_i rho_p(i)}( sg(mu_i).sg(mu_p(i)) ), L_sure of theory 3.

    It asks where on the sphere the partner is. It is strictly proper for the radii, and no gradient
    reaches the directions. With presences it is - mean_i log(1 + pi_i pi_p(i) (P - 1)) (theory 9):
    a pair that shares nothing is explained by pi, not by smaller radii. Arguments as for `sure`.

    Returns:
        a scalar in nats, the mean over 2n views (equal to that over n pairs, which share a value).
    """
    mu, other = pairs(directions.detach())
    rho, rho_other = pairs(radii)
    gap = pair_gap(*pairs(1 - radii if gaps is None else gaps))
    m = kernel_dimension_of(directions, dimension)
    log_ratio = log_kernel(cosine_gap(mu, other), rho * rho_other, gap, m)
    if presences is not None:
        pi, pi_other = pairs(presences)
        log_ratio = log_mixture(log_ratio, pi * pi_other, pair_gap(1 - pi, 1 - pi_other))
    return -log_ratio.mean()


@full_precision
def null_likelihood(views: Posterior, nulls: Posterior, dimension: Dimension = None) -> Tensor:
    """Return - mean_{i null, j view} log(1 + pi_i sg(pi_j) (P_{rho_i sg(rho_j)}(c_ij) - 1)).

    L_null of theory 9, with c_ij = sg(mu_i).sg(mu_j). A null view, an image of nothing, shares
    nothing with any view, so its likelihood is best where it says nothing: pi_i = 0 or rho_i = 0.
    No gradient reaches the directions, nor the numbers of the views. Without presences pi is 1.

    Args:
        views: m posteriors of views of images, with a radius.
        nulls: k posteriors of null views, at least 1.
        dimension: m of the kernel. Default: the number of coordinates.

    Returns:
        a scalar in nats, the mean over all k m pairs. The memory is that of `NULL_PAIRS` pairs.

    Raises:
        UserError: a posterior has no radius, or a number lies outside its range.
    """
    radius, gap = radius_and_gap(views)
    presence = None if views.presence is None else views.presence.detach()
    known = Posterior(views.direction.detach(), radius.detach(), gap.detach(), presence=presence)
    m = kernel_dimension_of(known.direction, dimension)
    own_radius, own_gap = radius_and_gap(nulls)
    rows = max(1, NULL_PAIRS // len(known.direction))

    def sum_of_rows(
        direction: Tensor, radius: Tensor, gap: Tensor, presence: Tensor | None
    ) -> Tensor:
        """The sum over some null views, computed again for its gradient to save memory."""
        some = Posterior(direction, radius, gap, presence=presence)
        return evidence_matrix(some, known, m).sum()

    total = own_radius.new_zeros(())
    for start in range(0, len(nulls.direction), rows):
        some = slice(start, start + rows)
        total = total + checkpoint(
            sum_of_rows,
            nulls.direction[some].detach(),
            own_radius[some],
            own_gap[some],
            None if nulls.presence is None else nulls.presence[some],
            use_reentrant=False,
            preserve_rng_state=False,
        )
    return -total / (len(nulls.direction) * len(known.direction))


@loss_of_views
def log_base_rate(
    directions: Tensor,
    radii: Tensor,
    dimension: Dimension = None,
    gaps: Tensor | None = None,
    group: int = GROUP,
    presences: Tensor | None = None,
) -> Tensor:
    """Return mean_i log mean_j P_{rho_i rho_j}( sg(mu_i).sg(mu_j) ), j over other images' views.

    It says how well a view predicts the views of other images. It is the likelihood's normaliser
    under the law that the directions have, in place of the uniform one (theory 2: the radius
    absorbs the base rate), and 0 for many views if that law is uniform, since P integrates to 1. No
    gradient reaches the directions. Arguments as for `sure`.

    Args:
        directions: (2n, d), unit vectors mu.
        radii: (2n,), rho.
        dimension: m of the kernel.
        gaps: (2n,), 1 - rho.
        group: j runs over a group of at most so many images that are neighbours in the batch, which
            is shuffled: a sample. So the cost is O(n), and the number (a log-mean, which depends on
            how many) is the same for every batch size.
        presences: (2n,), pi; then P is 1 + pi_i pi_j (P - 1).

    Returns:
        a scalar in nats, the mean over 2n views.
    """
    n, gaps = len(pairs(directions)[0]), 1 - radii if gaps is None else gaps
    groups = torch.arange(n, device=directions.device).tensor_split(math.ceil(n / group))

    def sum_of_group(
        images: Tensor, radii: Tensor, gaps: Tensor, presences: Tensor | None
    ) -> Tensor:
        """The sum over a group's views, computed again for its gradient to save memory."""
        rows = torch.cat((images, images + n))
        present = None if presences is None else presences[rows]
        views = Posterior(directions.detach()[rows], radii[rows], gaps[rows], presence=present)
        others = without_own_image(evidence_matrix(views, views, dimension))
        return (others.logsumexp(1) - math.log(len(rows) - 2)).sum()

    total = directions.new_zeros(())
    for images in groups:
        total = total + checkpoint(
            sum_of_group,
            images,
            radii,
            gaps,
            presences,
            use_reentrant=False,
            preserve_rng_state=False,
        )
    return total / len(radii)


@loss_of_views
def sure(
    directions: Tensor,
    radii: Tensor,
    temperature: float = TEMPERATURE,
    weight: float | Tensor | None = None,
    dimension: Dimension = None,
    gaps: Tensor | None = None,
    empirical_prior: float = EMPIRICAL_PRIOR,
    softening: Softening = SOFTENING,
    nt_xent: Callable[..., Tensor] = nt_xent,
    presences: Tensor | None = None,
) -> Tensor:
    """Return L = L_what + lambda * L_sure (theory 3), what a view shows and how sure it is.

    The defaults are those of `SureLoss`, so both give the same loss.

    Args:
        directions: (2n, d), unit vectors mu.
        radii: (2n,), rho in [0, 1).
        temperature: tau of L_what.
        weight: lambda of L_sure; 0 leaves L_what alone. Default: `PULL` / m, since the pull of
            L_sure on the encoder grows with lambda * m (theory 5).
        dimension: m of the kernel, above 1. Default: the number of coordinates d, as in the model
            itself (theory 1).
        gaps: (2n,), 1 - rho where the caller knows it better than float32's 1 - radii
            (`sigmoid(-k)`). Default: 1 - radii.
        empirical_prior: beta in [0, 1] of `certainty_loss`.
        softening: how an unsure view's logits are softened in L_what. View i's logit for j is
            "off": c_ij / tau (theory 3);
            "anchors": a_i c_ij / tau, each view at the temperature that suits its certainty, a =
            `sharpness`;
            "means": u_i.u_j over tau and the squared mean radius, see `posterior_means`.
            With equal radii all three are NT-Xent. The radii have no gradient and no common scale
            in L_what, so the temperature, whose mean stays, cannot run away (theory 5).
        nt_xent: a function of rows, temperature and sharpness (`tiles.nt_xent` for large batches).
        presences: (2n,), pi in [0, 1]: the probability that a view shows anything (theory 9).
            Softening then goes by the lengths pi_i rho_i. Not given: 1.

    Returns:
        a scalar in nats, the mean over 2n views.

    Raises:
        UserError: a tensor does not fit, or a number lies outside its range.
    """
    checked_softening(softening)
    if weight is not None and not isinstance(weight, Tensor):
        not_negative("weight", weight)
    checked_prior(empirical_prior)
    m = kernel_dimension_of(directions, dimension)
    lengths = radii if presences is None else presences * radii
    if softening == "means":
        what = nt_xent(posterior_means(directions, lengths), temperature / SUREST**2)
    else:
        own = unchecked_sharpness(lengths) if softening == "anchors" else None
        what = nt_xent(directions, temperature, own)
    certainty: Tensor = unchecked_certainty_loss(
        directions, radii, m, gaps, empirical_prior, presences
    )
    return what + pull(weight, m) * certainty


def pull(weight: float | Tensor | None, dimension: float | Tensor) -> float | Tensor:
    """Return lambda, the weight of L_sure: the given one, or by default `PULL` / m."""
    return PULL / dimension if weight is None else weight


@full_precision
def sharpness(radii: Tensor) -> Tensor:
    """Return a_i = q_i / mean_j q_j, (2n,): how many times the mean 1/tau suits view i.

    q = r / (1 + r^2) at r = sg(rho_i) times the mean radius, since theory 4 has 1/tau = d q. All
    ones if all radii are 0.
    """
    radii = radii.detach()
    r = radii * radii.mean()
    return _over_mean(r / (1 + r.square()))


@full_precision
def posterior_means(directions: Tensor, radii: Tensor) -> Tensor:
    """Return min(a_i, SUREST) / SUREST mu_i, (2n, d), with a = `relative(radii)`.

    These are the posterior means u_i but for one common factor. NT-Xent of these rows at
    tau / SUREST^2 has the logits a_i a_j c_ij / tau, proportional to u_i.u_j, which is the
    *expected* cosine of the latents, E[z.z' | x, x'], and to first order in r the evidence s
    (theory 4).
    """
    return relative(radii).clamp(max=SUREST)[:, None] / SUREST * directions


def relative(radii: Tensor) -> Tensor:
    """Return sg(rho_i) / mean_j sg(rho_j), (2n,); all ones if all radii are 0."""
    return _over_mean(radii.detach())


def _over_mean(x: Tensor) -> Tensor:
    """x_i / mean_j x_j; all equal, so all ones, where the mean is 0."""
    mean = x.mean()
    return torch.where(mean == 0, 1, x / mean)


@loss_of_views
def certainty_loss(
    directions: Tensor,
    radii: Tensor,
    dimension: Dimension = None,
    gaps: Tensor | None = None,
    empirical_prior: float = EMPIRICAL_PRIOR,
    presences: Tensor | None = None,
) -> Tensor:
    """Return - mean_i ( log P_{r_ip(i)}(c_ip(i)) - beta log mean_j P_{r_ij}(c_ij) ).

    The second mean is over the views of other images (`log_base_rate`). beta = 0 is L_sure of
    theory 3: directions are uniform on the sphere. beta = 1 takes their law from the batch: a
    contrastive likelihood, of which image a view is (theory 3). Arguments as for `sure`.

    Returns:
        a scalar in nats, the mean over 2n views.
    """
    likelihood: Tensor = unchecked_likelihood(directions, radii, dimension, gaps, presences)
    if empirical_prior:
        likelihood = likelihood + empirical_prior * log_base_rate(
            directions, radii, dimension, gaps, presences=presences
        )
    return likelihood


# For losses that have checked and raised the same views: at n = 256, to do that again takes as long
# as the likelihood
unchecked_certainty_loss = unwrap(certainty_loss)
unchecked_likelihood = unwrap(radius_likelihood)
unchecked_sharpness = unwrap(sharpness)


# The dimension that directions use


@full_precision
def mean_squared_cosine(directions: Tensor, views: int = 2) -> Tensor:
    """Return E[c^2] over all ordered pairs of views of *different* images, a scalar.

    sum_ij c_ij^2 = |M^T M|^2 for the matrix M of directions, so it costs O(n d^2) and needs no
    matrix of pairs.

    Args:
        directions: (views * n, d), unit vectors; rows i, i + n, ... show image i.
        views: of each image; 1 where every row shows another image.

    Raises:
        UserError: there are fewer than two images, or the rows do not divide into views.
    """
    check_rows("directions", directions)
    _check_images(len(directions), views)
    added = check_values({"directions": directions})
    parts = directions.chunk(views)
    everything = (directions.T @ directions).square().sum()
    same_image = torch.stack([x.square().sum(-1).square() for x in parts]).sum(0)
    for x, y in combinations(parts, 2):
        same_image = same_image + 2 * (x * y).sum(-1).square()
    count = len(directions) * (len(directions) - views)
    result = ((everything - same_image.sum()) / count).clamp(min=0)
    return result if added is None else result + added


def _check_images(rows: int, views: int) -> None:
    """Raise a `UserError` unless the rows are `views` views of each of two images or more."""
    if views < 1 or rows % views or rows < 2 * views:
        raise UserError(
            f"the mean over different images needs {views} views of each of 2 images or more, not"
            f" {rows} rows; add images."
        )


def measured_dimension(directions: Tensor, views: int = 2) -> Tensor:
    """Return 1 / E[c^2] over views of different images: how many dimensions directions use.

    Uniform directions give the number of coordinates d (theory 1), and evidence is read with this
    number (theory 3). It is at most d: few views in many coordinates can be nearly orthogonal, and
    1 / E[c^2] is then unbounded. Arguments and errors as for `mean_squared_cosine`.

    Returns:
        a scalar.

    >>> in_a_plane = torch.eye(8)[:2].repeat(100, 1)
    >>> round(measured_dimension(in_a_plane, views=1).item(), 1)
    2.0
    """
    return (1 / mean_squared_cosine(directions, views)).clamp(max=directions.shape[1])


# The diagnostic of the model


@torch.no_grad()
def log_mean_exp_evidence(
    posterior: Posterior, dimension: float, views: int = 2
) -> tuple[float, float]:
    """Return log E[exp s] over views of *different* images, in nats, and its standard error.

    It is 0 if the model is true, since P integrates to 1 (theory 5). The estimate is heavy-tailed:
    where the error is not small, it is itself a guess. Pairs share images, so the error is that of
    a U-statistic of order 2: 2 sd(h_i) / sqrt(n), h_i image i's mean over all others.

    Args:
        posterior: of views * n rows, with a radius; rows i, i + n, ... show image i. Memory grows
            with (views * n)^2, so pass a sample.
        dimension: m of the kernel.
        views: of each image; 1 where every row shows another image.

    Raises:
        UserError: the posterior has no radius, there are fewer than two images, or the rows do not
            divide into views.
    """
    _check_images(len(posterior.direction), views)
    n = len(posterior.direction) // views
    s = evidence_matrix(posterior, posterior, dimension)
    by_image = without_own_image(s, views).logsumexp(-1).reshape(views, n).logsumexp(0) - math.log(
        views * views * (n - 1)
    )
    estimate = by_image.logsumexp(0) - math.log(n)
    return estimate.item(), (2 * (by_image - estimate).exp().std() / math.sqrt(n)).item()
