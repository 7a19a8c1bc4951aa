"""The reference losses, each the formula of its paper.

Conventions as in losses.py: `directions` is (2n, d), unit vectors mu; rows i and i + n are the
views of image i; a loss is a mean over all 2n views, in nats. A `UserError` is raised where a
tensor does not fit or a number lies outside its range (inputs.py).
"""

import math

import torch
from torch import Tensor

from sureclr.maths.inputs import checked_count, checked_temperature, not_negative, pairs
from sureclr.maths.losses import (
    TEMPERATURE,
    Dimension,
    full_precision,
    info_nce,
    loss_of_views,
    nt_xent,
    partners,
    per_view_nt_xent,
    without_own_image,
)
from sureclr.maths.sphere import Posterior, evidence_matrix, kernel_dimension_of, pair_gap, wide
from sureclr.maths.vmf import sample_vmf, vmf_log_normaliser

ELK_TEMPERATURE = 1.0  # of `elk`; 1: the evidence itself
PREDICTION_WEIGHT = 1.0  # lambda of `loss_prediction`
REGRESSION_WEIGHT = 1.0  # lambda of `cosine_regression`


# InfoNCE over the evidence of a pair of posteriors


@loss_of_views
def poisson_nce(
    directions: Tensor, radii: Tensor, dimension: Dimension = None, gaps: Tensor | None = None
) -> Tensor:
    """Return InfoNCE over s(u_i, u_j), direction and radius together (theory 3, last point).

    Arguments as for `losses.sure`.

    Returns:
        a scalar in nats, the mean over 2n views.
    """
    views = Posterior(directions, radii, gaps)
    return info_nce(evidence_matrix(views, views, dimension)).mean()


@full_precision
def gaussian_evidence(
    directions: Tensor, radii: Tensor, dimension: float | Tensor, gaps: Tensor | None = None
) -> Tensor:
    """Return m ((a c - a^2) / (1 - a^2) - log(1 - a^2) / 2) in nats, (N, N).

    Here a = rho_i rho_j and c = mu_i.mu_j. It is the pointwise mutual information of two standard
    Gaussian vectors of m coordinates and length sqrt(m), correlated by a (Mehler 1866).

    Args:
        directions: (N, d), unit vectors mu.
        radii: (N,), rho in [0, 1).
        dimension: m.
        gaps: (N,), 1 - rho. Default: 1 - radii.
    """
    gaps = 1 - radii if gaps is None else gaps
    a, gap = torch.outer(radii, radii), pair_gap(gaps[:, None], gaps)
    one_minus_a2 = gap * (1 + a)
    c_minus_a = gap - (1 - directions @ directions.T)
    return dimension * (a * c_minus_a / one_minus_a2 - torch.log(one_minus_a2) / 2)


@loss_of_views
def gaussian_nce(
    directions: Tensor, radii: Tensor, dimension: Dimension = None, gaps: Tensor | None = None
) -> Tensor:
    """Return InfoNCE over the Mehler kernel, the Gaussian sister of `poisson_nce`.

    Arguments as for `losses.sure`.

    Returns:
        a scalar in nats, the mean over 2n views.
    """
    m = kernel_dimension_of(directions, dimension)
    return info_nce(gaussian_evidence(directions, radii, m, gaps)).mean()


@loss_of_views
def elk(directions: Tensor, kappas: Tensor, temperature: float = ELK_TEMPERATURE) -> Tensor:
    """Return InfoNCE over the expected likelihood kernel of two von Mises-Fisher posteriors.

    s_ij = log Int vMF(z; mu_i, kappa_i) vMF(z; mu_j, kappa_j) dz
         = log C(kappa_i) + log C(kappa_j) - log C(|kappa_i mu_i + kappa_j mu_j|)

    Jebara & Kondor 2003; in a loss Kirchhof et al. 2022 (non-isotropic probabilistic metric
    learning) and 2023 (URL). Against the uniform probability measure s is a pointwise mutual
    information, as in `poisson_nce`.

    Args:
        directions: (2n, d), unit vectors mu.
        kappas: (2n,), from 0 on.
        temperature: by which s is divided, above 0.

    Returns:
        a scalar in nats, the mean over 2n views.
    """
    # float32 would lose the difference of the log C's, which are of size kappa
    d, mu, kappa = directions.shape[1], wide(directions), wide(kappas)
    squared_norm = (
        kappa[:, None].square() + kappa.square() + 2 * torch.outer(kappa, kappa) * (mu @ mu.T)
    )
    norm = squared_norm.clamp(min=torch.finfo(kappa.dtype).tiny).sqrt()
    log_c = vmf_log_normaliser(kappa, d)
    evidence = log_c[:, None] + log_c - vmf_log_normaliser(norm, d)
    return info_nce(evidence.to(directions.dtype) / checked_temperature(temperature)).mean()


@loss_of_views
def mc_infonce(
    directions: Tensor, kappas: Tensor, temperature: float, samples: int, generator: torch.Generator
) -> Tensor:
    """Return - mean_i log mean_s ( exp(z_i.z_p(i) / tau) / sum_{j != i} exp(z_i.z_j / tau) ).

    z_i ~ vMF(mu_i, kappa_i) for s = 1..S. Kirchhof et al. 2023 (Probabilistic Contrastive Learning
    Recovers the Correct Aleatoric Uncertainty), MC-InfoNCE, with their kappa_pos = 1 / tau, and
    their sums over negatives without the constant 1 / M. The mean is inside the logarithm, so the
    loss of few samples is too high on average (Jensen). Memory: S (2n)^2.

    Args:
        directions: (2n, d), unit vectors mu.
        kappas: (2n,), from 0 on.
        temperature: tau, above 0.
        samples: S, at least 1.
        generator: from which all samples are drawn.

    Returns:
        a scalar in nats, the mean over 2n views.
    """
    count = checked_count("samples", samples)
    z = sample_vmf(
        directions.expand(count, -1, -1), kappas.expand(count, -1), generator
    )  # (S, 2n, d)
    log_ratio = -info_nce(z @ z.mT / checked_temperature(temperature))  # (S, 2n)
    return (math.log(count) - log_ratio.logsumexp(0)).mean()


# Variants of NT-Xent


@loss_of_views
def dcl(directions: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return - mean_i log( exp(mu_i.mu_p(i) / tau) / sum_{j != i, p(i)} exp(mu_i.mu_j / tau) ).

    NT-Xent without the positive below: Yeh et al. 2022 (Decoupled Contrastive Learning), L_DC. It
    can be negative.

    Args:
        directions: (2n, d), unit vectors.
        temperature: tau, above 0.

    Returns:
        a scalar in nats, the mean over 2n views.
    """
    evidence = directions @ directions.T / checked_temperature(temperature)
    return (without_own_image(evidence).logsumexp(-1) - partners(evidence)).mean()


@loss_of_views
def tau(directions: Tensor, temperatures: Tensor) -> Tensor:
    """Return - mean_i log( exp(mu_i.mu_p(i) / tau_i) / sum_{j != i} exp(mu_i.mu_j / tau_i) ).

    NT-Xent with one temperature an anchor: Zhang et al. 2021 (Temperature as Uncertainty). Here the
    positive stays in the denominator, so the ratio is the probability of naming the partner; the
    original drops it there.

    Args:
        directions: (2n, d), unit vectors.
        temperatures: (2n,), tau_i above 0.

    Returns:
        a scalar in nats, the mean over 2n views.
    """
    return info_nce(directions @ directions.T / temperatures[:, None]).mean()


@loss_of_views
def loss_prediction(
    directions: Tensor,
    predictions: Tensor,
    temperature: float = TEMPERATURE,
    weight: float = PREDICTION_WEIGHT,
) -> Tensor:
    """Return mean_i l_i + lambda mean_i (prediction_i - sg(l_i))^2, l_i the NT-Xent of view i.

    Yoo & Kweon 2019 (Learning Loss for Active Learning); the squared error in place of their
    ranking loss is the URL benchmark's (Kirchhof et al. 2023).

    Args:
        directions: (2n, d), unit vectors.
        predictions: (2n,), predicted losses in nats.
        temperature: tau, above 0.
        weight: lambda.

    Returns:
        a scalar, nats plus lambda times nats^2, the mean over 2n views.
    """
    per_view = per_view_nt_xent(directions, temperature)
    regression = (predictions - per_view.detach()).square().mean()
    return per_view.mean() + not_negative("weight", weight) * regression


@loss_of_views
def cosine_regression(
    directions: Tensor,
    radii: Tensor,
    temperature: float = TEMPERATURE,
    weight: float = REGRESSION_WEIGHT,
) -> Tensor:
    """Return L_what + lambda mean_i (rho_i rho_p(i) - sg(mu_i.mu_p(i)))^2.

    Our simplest rival: E[c | r] = r by least squares (theory 8).

    Args:
        directions: (2n, d), unit vectors mu.
        radii: (2n,), rho in [0, 1).
        temperature: tau of L_what, above 0.
        weight: lambda.

    Returns:
        a scalar, nats plus lambda times a number without unit, the mean over 2n views.
    """
    rho, rho_other = pairs(radii)
    mu, other = pairs(directions.detach())
    regression = (rho * rho_other - (mu * other).sum(-1)).square().mean()
    return nt_xent(directions, temperature) + not_negative("weight", weight) * regression
