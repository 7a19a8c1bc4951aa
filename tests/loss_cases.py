"""Views, and every loss as one function of them, for tests of losses."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sureclr.maths import losses, references

TAU = 0.3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views(n: int = 5, d: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(2n, d) directions, partners alike, and (2n,) radii in [0.1, 0.9]; float64."""
    g = generator(seed)
    image = torch.randn(n, d, generator=g, dtype=torch.float64)
    noisy = torch.cat((image, image)) + 0.5 * torch.randn(
        2 * n, d, generator=g, dtype=torch.float64
    )
    return torch.nn.functional.normalize(noisy, dim=-1), 0.1 + 0.8 * torch.rand(
        2 * n, generator=g, dtype=torch.float64
    )


def all_losses(n: int = 5) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Every loss as a function of directions and one positive number for each view.

    The number is the radius, kappa, temperature or prediction.
    """
    return {
        "nt_xent": lambda mu, x: losses.nt_xent(mu, TAU),
        "dcl": lambda mu, x: references.dcl(mu, TAU),
        "sure": lambda mu, x: losses.sure(mu, x, TAU, weight=0.7, dimension=3.5, softening="off"),
        "sure_with_prior": lambda mu, x: losses.sure(
            mu, x, TAU, weight=0.7, dimension=3.5, empirical_prior=0.4, softening="off"
        ),
        "sure_softened": lambda mu, x: losses.sure(
            mu, x, TAU, weight=0.7, dimension=3.5, softening="anchors"
        ),
        "poisson_nce": lambda mu, x: references.poisson_nce(mu, x, 3.5),
        "gaussian_nce": lambda mu, x: references.gaussian_nce(mu, x, 3.5),
        "elk": lambda mu, x: references.elk(mu, 8 * x),
        "tau": lambda mu, x: references.tau(mu, x),
        "loss_prediction": lambda mu, x: references.loss_prediction(mu, x, TAU, 0.7),
        "cosine_regression": lambda mu, x: references.cosine_regression(mu, x, TAU, 0.7),
    }


def loops(score: Callable[[int, int], float], n: int, positive_below: bool = True) -> float:
    """Mean over all views of - log( exp s(i, p(i)) / sum_j exp s(i, j) ), one number at a time."""
    total = 0.0
    for i in range(2 * n):
        p = (i + n) % (2 * n)
        below = [j for j in range(2 * n) if j != i and (positive_below or j != p)]
        total -= math.log(math.exp(score(i, p)) / sum(math.exp(score(i, j)) for j in below))
    return total / (2 * n)
