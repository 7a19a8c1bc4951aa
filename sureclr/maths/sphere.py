"""The posterior on the sphere: density, information, sampling, evidence, fusing views (theory.md, sections 1, 2 and 6).

A view is a point u = rho * mu of the open unit ball, and that point is its posterior over the latent z on S^{d-1}: the Poisson kernel
P(u, z) = (1 - |u|^2) / |u - z|^d, a density with respect to the uniform *probability* measure.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GAP_MIN = 1e-3  # 1 - rho never falls below this (theory 5)


@dataclass(frozen=True)
class Posterior:
    """What a view says about its latent, as a value. Whoever reads it need not know which loss made it.

    Attributes:
        direction: (n, d), unit vectors mu: *what* the view shows.
        radius: (n,), mean resultant length rho in [0, 1): *how sure* the view is; None where the loss has no such notion (NT-Xent).
        gap: (n,), 1 - rho, kept apart because float32 loses it near 1 (theory 5); 1 - radius when not given.
        certainty: (n,), any increasing scale of certainty (radius, kappa, minus the predicted loss); None for NT-Xent.
        parameter: (n,), the loss's own number behind it (kappa, temperature, predicted loss); None where the radius is that number.
    """

    direction: Tensor
    radius: Tensor | None = None
    gap: Tensor | None = None
    certainty: Tensor | None = None
    parameter: Tensor | None = None

    def __post_init__(self) -> None:
        if self.gap is None and self.radius is not None:
            object.__setattr__(self, "gap", 1 - self.radius)
        if self.certainty is None and self.radius is not None:
            object.__setattr__(self, "certainty", self.radius)

    @property
    def mean(self) -> Tensor:
        """(n, d), E[z | x] = u = rho * mu exactly, |u| < 1 (theory 1)."""
        if self.radius is None:
            raise ValueError("this posterior has no radius (its loss has no notion of one), so its mean is not defined")
        return self.radius.unsqueeze(-1) * self.direction


def log_kernel(cosine_gap: Tensor, radius: Tensor, gap: Tensor, dimension: float) -> Tensor:
    """log P_r(c), nats, elementwise over broadcast shapes; from 1 - c and 1 - r, which stays exact where c and r come near 1.

    log(1 - r^2) - (m/2) log(1 - 2 r c + r^2), with 1 - 2 r c + r^2 = (1 - r)^2 + 2 r (1 - c)   (theory 5)

    Args:
        cosine_gap: 1 - c; for unit vectors |mu - mu'|^2 / 2.
        radius, gap: r and 1 - r, of one posterior or of a pair (r = rho rho').
        dimension: m > 1; the number of coordinates d for the posterior itself, the kernel dimension for the loss.
    """
    return torch.log(gap) + torch.log1p(radius) - (dimension / 2) * torch.log(gap.square() + 2 * radius * cosine_gap)


def pair_gap(gap: Tensor, other: Tensor) -> Tensor:
    """1 - rho rho' from 1 - rho and 1 - rho', without cancellation (theory 5)."""
    return gap + other - gap * other
