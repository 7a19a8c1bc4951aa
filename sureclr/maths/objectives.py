"""The losses as modules: how a head's direction and number k become a posterior, and the loss of it.

    objective = SureLoss(temperature=0.2)
    loss = objective(objective.read(projections, k))    # (2n, d) and (2n,): rows i and i + n are the two views of image i

``OBJECTIVES`` names them all; ``objective(name, **options)`` builds one.
"""

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sureclr.errors import UserError, unknown
from sureclr.maths import losses
from sureclr.maths.losses import above, raised
from sureclr.maths.sphere import GAP_MIN, Posterior

K_MAX = math.log((1 - GAP_MIN) / GAP_MIN)  # sigmoid(-K_MAX) = GAP_MIN


def bounded(k: Tensor) -> Tensor:
    """k / sqrt(1 + (k / K)^2), inside (-K, K): so 1 - rho >= GAP_MIN, and the slope falls only as |k|^-3: no view is ever stuck."""
    k = raised(k)
    return k / torch.sqrt(1 + (k / K_MAX).square())


def unit(projections: Tensor) -> Tensor:
    """Rows scaled to length 1, in at least float32; unit vectors stay what they are."""
    return nn.functional.normalize(raised(projections), dim=-1)


class Objective(nn.Module, ABC):
    """A loss with its way of reading the head.

    Attributes:
        name: as in the registry and on the command line.
        uses_certainty: whether the head must also give one number k a view.
    """

    name: ClassVar[str]
    uses_certainty: ClassVar[bool] = True

    @abstractmethod
    def read(self, directions: Tensor, k: Tensor | None = None) -> Posterior:
        """(n, d) projections of any length (normalised here), (n,) numbers k -> the posterior of each view, at least float32."""

    @abstractmethod
    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        """The loss of the posteriors of 2n views: scalar, at least float32, nats; the generator is for losses that sample."""

    def number(self, k: Tensor | None) -> Tensor:
        """k, or a ``UserError`` where the head gave none."""
        if k is None:
            raise UserError(f"loss {self.name} needs a number k a view beside the direction, and got none; pass k of shape (n,).")
        return k


def with_radius(directions: Tensor, k: Tensor) -> Posterior:
    """rho = sigmoid(k), 1 - rho = sigmoid(-k): the second is exact where the first has rounded (theory 5)."""
    k = bounded(k)
    return Posterior(unit(directions), torch.sigmoid(k), torch.sigmoid(-k))


def radius_of(posterior: Posterior) -> tuple[Tensor, Tensor]:
    """rho and 1 - rho of a posterior that has them."""
    if posterior.radius is None or posterior.gap is None:
        raise UserError("this loss needs a posterior with a radius, and got one without; make it with its own read(directions, k).")
    return posterior.radius, posterior.gap


class NTXentLoss(Objective):
    """SimCLR's loss (``losses.nt_xent``): every view equally sure, so no radius and no certainty."""

    name = "nt-xent"
    uses_certainty = False

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = above("temperature", temperature, 0)

    def read(self, directions: Tensor, k: Tensor | None = None) -> Posterior:
        return Posterior(unit(directions))

    def forward(self, posterior: Posterior | Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A posterior, or simply the (2n, d) projections of any length."""
        posterior = self.read(posterior) if isinstance(posterior, Tensor) else posterior
        return losses.nt_xent(posterior.direction, self.temperature)


class SureLoss(Objective):
    """SURE (``losses.sure``): NT-Xent for what a view shows, a likelihood for how sure it is (theory 3).

    Args:
        temperature: tau of the first term.
        weight: lambda of the second; its pull on the encoder grows with lambda * m (theory 5).
        dimension: a fixed kernel dimension m; None: the running m = 1 / E[c^2] over views of different images.
        momentum: of that running mean, in [0, 1); a batch of n images has about 2 n^2 pairs, so a short memory (10 steps) is exact
            enough and follows the directions as they spread.
    """

    name = "sure"
    squared_cosine: Tensor
    seen: Tensor
    m: Tensor

    def __init__(
        self, temperature: float = 0.2, weight: float = 1.0, dimension: float | None = None, momentum: float = 0.9
    ) -> None:
        super().__init__()
        self.temperature = above("temperature", temperature, 0)
        self.weight = not_negative("weight", weight)
        self.dimension = dimension if dimension is None else above("dimension", dimension, 1)
        if not 0 <= momentum < 1:
            raise UserError(f"momentum must lie in [0, 1), and is {momentum}; 0 uses each batch's own kernel dimension.")
        self.momentum = momentum
        for running in ("squared_cosine", "seen", "m"):
            self.register_buffer(running, torch.zeros(()))

    def read(self, directions: Tensor, k: Tensor | None = None) -> Posterior:
        return with_radius(directions, self.number(k))

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        rho, gap = radius_of(posterior)
        if self.training:
            self.update(posterior.direction)
        m = self.kernel(posterior.direction.shape[1])
        return losses.sure(posterior.direction, rho, self.temperature, self.weight, m, gap)

    @torch.no_grad()
    def update(self, directions: Tensor) -> None:
        """Move the running mean of c^2 towards this batch's; ``seen`` = 1 - momentum^steps, the weight collected so far, unbiases it.

        m is at most the number of coordinates: few views in many coordinates can be almost orthogonal, and 1 / E[c^2] unbounded.
        """
        self.squared_cosine.lerp_(losses.mean_squared_cosine(directions).to(self.squared_cosine), 1 - self.momentum)
        self.seen.lerp_(torch.ones_like(self.seen), 1 - self.momentum)
        self.m.copy_((self.seen / self.squared_cosine).clamp(max=directions.shape[1]))

    def kernel(self, coordinates: int) -> Any:
        """m: the fixed one, else the running one (a scalar tensor, so that nobody waits for the device), else the coordinates."""
        return torch.where(self.m > 0, self.m, coordinates) if self.dimension is None else self.dimension

    @property
    def kernel_dimension(self) -> float | None:
        """m: the fixed one, else the running 1 / E[c^2], None before the first training step."""
        return (float(self.m) or None) if self.dimension is None else self.dimension


def not_negative(name: str, value: float) -> float:
    """The value, or a ``UserError`` if it is not a finite number from 0 on."""
    if not 0 <= value < math.inf:
        raise UserError(f"{name} must be a finite number, 0 or more, and is {value}; 0 switches its term off.")
    return value


OBJECTIVES: dict[str, type[Objective]] = {loss.name: loss for loss in (NTXentLoss, SureLoss)}


def objective(name: str, **options: Any) -> Objective:
    """The loss of that name. Options that are None keep the loss's default; an option that it does not have is refused."""
    if name not in OBJECTIVES:
        raise unknown("loss", name, OBJECTIVES)
    chosen = {option: value for option, value in options.items() if value is not None}
    takes = list(inspect.signature(OBJECTIVES[name]).parameters)
    for option in chosen:
        if option not in takes:
            raise UserError(f"loss {name} takes no {option}; it takes {', '.join(takes)}.")
    return OBJECTIVES[name](**chosen)
