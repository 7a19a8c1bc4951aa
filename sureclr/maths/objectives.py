"""The losses as modules: how a head's direction and number k become a posterior, and the loss of
it.

    objective = SureLoss(temperature=0.2)
    loss = objective(objective.read(projections, k))    # (2n, d) and (2n,): rows i and i + n are the two views of image i

``OBJECTIVES`` names them all; ``objective(name, **options)`` builds one. At k = 0 every loss that
has a radius starts from 1/2.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from sureclr.errors import UserError, unknown
from sureclr.maths import losses, references, tiles
from sureclr.maths.losses import Softening, above, not_negative, raised
from sureclr.maths.sphere import GAP_MIN, Posterior, radius_and_gap
from sureclr.maths.vmf import vmf_mean_resultant_length

MEASURED: Literal["measured"] = "measured"
PULL = 28.0  # lambda * m of SURE
K_MAX = math.log((1 - GAP_MIN) / GAP_MIN)  # sigmoid(-K_MAX) = GAP_MIN


def bounded(k: Tensor) -> Tensor:
    """k / sqrt(1 + (k / K)^2), inside (-K, K): so 1 - rho >= GAP_MIN; the slope falls only as
    |k|^-3, so no view is stuck.
    """
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
        """(n, d) projections of any length (normalised here), (n,) numbers k -> the posterior of
        each view, at least float32.
        """

    @abstractmethod
    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        """The loss of the posteriors of 2n views: scalar, at least float32, nats; the generator is
        for losses that sample.
        """

    def number(self, k: Tensor | None) -> Tensor:
        """k in at least float32, or a ``UserError`` where the head gave none."""
        if k is None:
            raise UserError(
                f"loss {self.name} needs one number a view beside the direction; pass k of shape"
                " (n,)."
            )
        return raised(k)

    def need(self, what: str, value: Tensor | None) -> Tensor:
        """A part of the posterior, or a ``UserError`` where it has none."""
        if value is None:
            raise UserError(
                f"loss {self.name} needs a posterior with a {what}; make it with its own"
                " read(directions, k)."
            )
        return value


# Losses of the direction alone


class DirectionLoss(Objective):
    """No notion of certainty: the posterior is a direction. ``loss(projections)`` works as well as
    ``loss(posterior)``.
    """

    uses_certainty = False

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = above("temperature", temperature, 0)

    def read(self, directions: Tensor, k: Tensor | None = None) -> Posterior:
        return Posterior(unit(directions))

    def directions(self, views: Posterior | Tensor) -> Tensor:
        """Unit vectors of a posterior, or of (2n, d) projections of any length."""
        return unit(views) if isinstance(views, Tensor) else views.direction


class NTXentLoss(DirectionLoss):
    """SimCLR's loss (``tiles.nt_xent``: memory linear in n), in which every view is equally sure.

    Takes a posterior or plain (2n, d) projections.
    """

    name = "nt-xent"

    def forward(
        self, posterior: Posterior | Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return tiles.nt_xent(self.directions(posterior), self.temperature)


class DCLLoss(DirectionLoss):
    """Decoupled contrastive learning (``references.dcl``). Takes a posterior or plain (2n, d)
    projections.
    """

    name = "dcl"

    def forward(
        self, posterior: Posterior | Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return references.dcl(self.directions(posterior), self.temperature)


# Losses with a radius


class RadiusLoss(Objective):
    """rho = sigmoid(k) and 1 - rho = sigmoid(-k), exact where 1 - sigmoid(k) has rounded (theory
    5).
    """

    def read(self, directions: Tensor, k: Tensor | None = None) -> Posterior:
        k = bounded(self.number(k))
        return Posterior(unit(directions), torch.sigmoid(k), torch.sigmoid(-k))


class SureLoss(RadiusLoss):
    """SURE (``tiles.sure``: memory linear in n): NT-Xent for what a view shows, a likelihood for
    how sure it is (theory 3).

    Args:
        temperature: tau of the first term.
        weight: lambda of the second; None: PULL / m, since its pull on the encoder grows with
            lambda * m (theory 5).
        dimension: m of the kernel: a number; None: the number of coordinates, as in the model
            itself (theory 1); "measured": the running 1 / E[c^2] over views of different images,
            which is kept in any case, for reading evidence (theory 3).
        empirical_prior: beta in [0, 1]. 0: the likelihood takes directions as uniform on the sphere
            (theory 3). 1: as the batch has them, so that the radius says how sure *which image* it
            is, and of its class less than chance (NOTEBOOK.md).
        softening: of the first term's logits where a view is unsure: of its own ("anchors"), of all
            it takes part in ("means"), or "off", theory 3 (``losses.sure``).
        momentum: of that running mean, in [0, 1). A batch of n images has about 2 n^2 pairs, so a
            short memory (10 steps) is exact enough, and follows the directions as they spread.

    At equal pull the two kernels rank images alike; with all coordinates a crop is more often less
    certain than its whole, with the measured one the radius is calibrated without a map
    (benchmarks.study; NOTEBOOK.md has the numbers).
    """

    name = "sure"
    squared_cosine: Tensor
    seen: Tensor
    m: Tensor

    def __init__(
        self,
        temperature: float = 0.2,
        weight: float | None = None,
        dimension: float | Literal["measured"] | None = None,
        empirical_prior: float = 0.0,
        softening: Softening = "anchors",
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.temperature = above("temperature", temperature, 0)
        self.weight = weight if weight is None else not_negative("weight", weight)
        self.dimension = dimension if dimension == MEASURED else kernel_dimension(dimension)
        if not 0 <= empirical_prior <= 1:
            raise UserError(
                f"empirical_prior must lie in [0, 1], and is {empirical_prior}; 0 is the uniform"
                " prior of the model."
            )
        self.empirical_prior = empirical_prior
        if softening not in get_args(Softening):
            raise UserError(
                f"softening must be one of {', '.join(get_args(Softening))}, and is {softening};"
                " leave it out for anchors."
            )
        self.softening: Softening = softening
        if not 0 <= momentum < 1:
            raise UserError(
                f"momentum must lie in [0, 1), and is {momentum}; 0 uses each batch's own kernel"
                " dimension."
            )
        self.momentum = momentum
        for running in ("squared_cosine", "seen", "m"):
            self.register_buffer(running, torch.zeros(()))

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        mu, (rho, gap) = posterior.direction, radius_and_gap(posterior)
        if self.training:
            self.update(mu)
        m = self.kernel(mu.shape[1])
        weight = PULL / m if self.weight is None else self.weight
        return tiles.sure(
            mu, rho, self.temperature, weight, m, gap, self.empirical_prior, self.softening
        )

    @torch.no_grad()
    def update(self, directions: Tensor) -> None:
        """Move the running mean of c^2 towards this batch's; ``seen`` = 1 - momentum^steps, the
        weight collected, unbiases it.

        m is at most the number of coordinates: few views in many coordinates can be almost
            orthogonal, and 1 / E[c^2] unbounded.
        """
        self.squared_cosine.lerp_(
            losses.mean_squared_cosine(directions).to(self.squared_cosine), 1 - self.momentum
        )
        self.seen.lerp_(torch.ones_like(self.seen), 1 - self.momentum)
        self.m.copy_((self.seen / self.squared_cosine).clamp(max=directions.shape[1]))

    def kernel(self, coordinates: int) -> float | Tensor:
        """m of the loss; the running one as a tensor: a number would wait for the device."""
        if self.dimension == MEASURED:
            return torch.where(self.m > 0, self.m, coordinates)
        return coordinates if self.dimension is None else self.dimension

    @property
    def kernel_dimension(self) -> float | None:
        """m for reading evidence: the fixed one, else the running 1 / E[c^2]; None before the first
        training step.
        """
        return (
            (float(self.m) or None)
            if self.dimension is None or self.dimension == MEASURED
            else self.dimension
        )


def kernel_dimension(value: float | str | None) -> float | None:
    """A kernel dimension m > 1, at which the density is normalised (theory 3), or None."""
    if isinstance(value, str):
        raise UserError(
            f"dimension must be a number above 1 or {MEASURED}, not {value!r}; leave it out for the"
            " number of coordinates."
        )
    return value if value is None else above("dimension", value, 1)


class EvidenceNCELoss(RadiusLoss):
    """InfoNCE over the evidence of pairs of posteriors, direction and radius together. dimension:
    m; None: coordinates.
    """

    formula: ClassVar[Callable[..., Tensor]]

    def __init__(self, dimension: float | None = None) -> None:
        super().__init__()
        self.dimension = kernel_dimension(dimension)

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        rho, gap = radius_and_gap(posterior)
        return type(self).formula(posterior.direction, rho, self.dimension, gap)


class PoissonNCELoss(EvidenceNCELoss):
    """InfoNCE over the evidence (``references.poisson_nce``). dimension: m; None: coordinates."""

    name = "poisson-nce"
    formula = staticmethod(references.poisson_nce)


class GaussianNCELoss(EvidenceNCELoss):
    """InfoNCE over the Mehler kernel (``references.gaussian_nce``). dimension: m; None:
    coordinates.
    """

    name = "gaussian-nce"
    formula = staticmethod(references.gaussian_nce)


class CosineRegressionLoss(RadiusLoss):
    """NT-Xent, and the pair's radius regressed on its cosine (``references.cosine_regression``)."""

    name = "cosine-regression"

    def __init__(self, temperature: float = 0.2, weight: float = 1.0) -> None:
        super().__init__()
        self.temperature = above("temperature", temperature, 0)
        self.weight = not_negative("weight", weight)

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        rho, _ = radius_and_gap(posterior)
        return references.cosine_regression(posterior.direction, rho, self.temperature, self.weight)


class VonMisesFisherLoss(Objective):
    """kappa = rho (d - rho^2) / (1 - rho^2), rho = sigmoid(k): Banerjee et al. 2005's estimate of
    the kappa that has radius rho.

    At both ends it is an exponential of k (d e^k, (d - 1) e^k / 2), as the papers take for a number
    over orders of magnitude; and every loss with a radius starts and ranges alike, for a fair race.
    Certainty is kappa, the radius its mean resultant length.
    """

    def read(self, directions: Tensor, k: Tensor | None = None) -> Posterior:
        k, d = bounded(self.number(k)), directions.shape[-1]
        rho, gap = torch.sigmoid(k), torch.sigmoid(-k)
        kappa = rho * (d - rho.square()) / (gap * (1 + rho))
        return Posterior(
            unit(directions), vmf_mean_resultant_length(kappa, d), certainty=kappa, parameter=kappa
        )


class ELKLoss(VonMisesFisherLoss):
    """InfoNCE over the expected likelihood kernel (``references.elk``)."""

    name = "elk"

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = above("temperature", temperature, 0)

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        return references.elk(
            posterior.direction, self.need("kappa", posterior.parameter), self.temperature
        )


class MCInfoNCELoss(VonMisesFisherLoss):
    """InfoNCE over samples (``references.mc_infonce``); forward needs a generator. samples: draws a
    view and step.
    """

    name = "mc-infonce"

    def __init__(self, temperature: float = 0.2, samples: int = 16) -> None:
        super().__init__()
        self.temperature = above("temperature", temperature, 0)
        self.samples = int(above("samples", samples, 0))

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        if generator is None:
            raise UserError(
                "loss mc-infonce draws samples and got no generator; call it as loss(posterior,"
                " generator)."
            )
        kappa = self.need("kappa", posterior.parameter)
        return references.mc_infonce(
            posterior.direction, kappa, self.temperature, self.samples, generator
        )


# Losses with another certainty


class TauLoss(Objective):
    """Temperature as uncertainty (``references.tau``): tau_i = temperature / (2 sigmoid(k)),
    certainty 1 / tau_i.

    Like the original's sigmoid, it keeps the temperature from falling to 0: tau_i > temperature /
    2. k = 0 is NT-Xent.
    """

    name = "tau"

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = above("temperature", temperature, 0)

    def read(self, directions: Tensor, k: Tensor | None = None) -> Posterior:
        temperatures = self.temperature / (2 * torch.sigmoid(bounded(self.number(k))))
        return Posterior(unit(directions), certainty=1 / temperatures, parameter=temperatures)

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        return references.tau(posterior.direction, self.need("temperature", posterior.parameter))


class LossPredictionLoss(Objective):
    """NT-Xent, and k regressed on the view's own loss in nats (``references.loss_prediction``):
    certainty = - the predicted loss.
    """

    name = "loss-prediction"

    def __init__(self, temperature: float = 0.2, weight: float = 1.0) -> None:
        super().__init__()
        self.temperature = above("temperature", temperature, 0)
        self.weight = not_negative("weight", weight)

    def read(self, directions: Tensor, k: Tensor | None = None) -> Posterior:
        predicted = self.number(k)
        return Posterior(unit(directions), certainty=-predicted, parameter=predicted)

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        predicted = self.need("predicted loss", posterior.parameter)
        return references.loss_prediction(
            posterior.direction, predicted, self.temperature, self.weight
        )


# The registry

OBJECTIVES: dict[str, type[Objective]] = {
    loss.name: loss
    for loss in (
        NTXentLoss,
        SureLoss,
        PoissonNCELoss,
        GaussianNCELoss,
        MCInfoNCELoss,
        ELKLoss,
        TauLoss,
        LossPredictionLoss,
        CosineRegressionLoss,
        DCLLoss,
    )
}


def objective(name: str, **options: Any) -> Objective:
    """The loss of that name. Options that are None keep the loss's default; an option that it does
    not have is refused.
    """
    if name not in OBJECTIVES:
        raise unknown("loss", name, OBJECTIVES)
    chosen = {option: value for option, value in options.items() if value is not None}
    takes = list(inspect.signature(OBJECTIVES[name]).parameters)
    for option in chosen:
        if option not in takes:
            raise UserError(f"loss {name} takes no {option}; it takes {', '.join(takes)}.")
    return OBJECTIVES[name](**chosen)
