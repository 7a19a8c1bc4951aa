"""The losses as modules for any training loop, and their registry.

    loss_of = SureLoss()
    loss = loss_of(projections, k)    # (2n, d) and (2n,); rows i and i + n are views of image i

`OBJECTIVES` has all losses by name, `objective(name, **options)` builds one, and `register_loss`
adds your own. At k = 0 every loss that has a radius starts from 1/2.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sureclr.errors import UserError
from sureclr.maths import losses, references, tiles
from sureclr.maths.inputs import (
    above,
    check_numbers,
    check_rows,
    check_values,
    checked_count,
    checked_temperature,
    not_negative,
)
from sureclr.maths.losses import (
    EMPIRICAL_PRIOR,
    NULL_WEIGHT,
    PRESENCE,
    SOFTENING,
    TEMPERATURE,
    Softening,
    Switch,
)
from sureclr.maths.references import ELK_TEMPERATURE, PREDICTION_WEIGHT, REGRESSION_WEIGHT
from sureclr.maths.sphere import (
    GAP_MIN,
    Posterior,
    at_least_float32,
    kernel_dimension_of,
    radius_and_gap,
    unit_rows,
)
from sureclr.maths.vmf import vmf_mean_resultant_length
from sureclr.registry import Registry

MEASURED: Literal["measured"] = "measured"
LARGEST_K = 1e15  # its square is a float32 number; the result is K_MAX long before
K_MAX = math.log((1 - GAP_MIN) / GAP_MIN)  # sigmoid(-K_MAX) = GAP_MIN
PRESENCE_START = 2.0  # logit of the presence at the start of training: pi = .88


def bounded(k: Tensor) -> Tensor:
    """Return k / sqrt(1 + (k / K)^2), inside (-K, K), in at least float32.

    So 1 - rho >= GAP_MIN, and the slope falls only as |k|^-3, so no view is stuck.
    """
    k = at_least_float32(k).clamp(-LARGEST_K, LARGEST_K)
    return k / torch.sqrt(1 + (k / K_MAX).square())


class Objective(nn.Module, ABC):
    """A loss, and how it reads the network's outputs as posteriors.

    Call it with plain tensors, `loss_of(projections, k)`, or with what its `read` returned,
    `loss_of(posterior)`; a loss that samples also needs `generator=...`. A loss of your own needs
    `read` and `forward`, and `@register_loss("mine")` above the class gives it a name for
    `objective` and the command line. Options of its `__init__` are options there.

    Attributes:
        uses_certainty: whether the network must also return numbers k of each view. Default: True.
        numbers: how many: 1, so that k is (n,), or more, so that k is (n, numbers). Default: 1.

    >>> class Cosine(Objective):
    ...     "Radius and cosine of a pair should both be 1."
    ...     def read(self, projections, k=None):
    ...         rho = self.number(projections, k).sigmoid()
    ...         return Posterior(self.directions(projections), rho)
    ...     def forward(self, posterior, generator=None):
    ...         first, second = posterior.mean.chunk(2)
    ...         return 1 - (first * second).sum(1).mean()
    >>> Cosine()(torch.eye(2).repeat(2, 1), k=torch.zeros(4))  # radii of 1/2
    tensor(0.7500)
    """

    uses_certainty: ClassVar[bool] = True
    numbers: int = 1

    @abstractmethod
    def read(self, projections: Tensor, k: Tensor | None = None) -> Posterior:
        """Return the posterior of each row, in at least float32.

        Args:
            projections: (n, d), of any length.
            k: (n,), the network's raw number for each row; (n, numbers) where there are several. A
                loss without certainty ignores it.

        Raises:
            UserError: the tensors do not fit (see `directions` and `number`).
        """

    @abstractmethod
    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        """Return the loss of the posteriors of 2n views.

        Args:
            posterior: rows i and i + n are the views of image i.
            generator: for losses that sample.

        Returns:
            a scalar in at least float32, in nats, the mean over 2n views.
        """

    def __call__(
        self,
        views: Posterior | Tensor,
        k: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss of 2n views, from raw outputs or from a posterior.

        Args:
            views: (2n, d) projections of any length, or the posterior that `read` returned; rows i
                and i + n are the views of image i.
            k: (2n,) or (2n, numbers), the raw numbers where `views` are projections.
            generator: for losses that sample.

        Returns:
            a scalar in at least float32, in nats, the mean over 2n views.

        Raises:
            UserError: the tensors do not fit, the rows do not make two pairs, or a value is NaN or
                infinite (on a GPU the loss is NaN then, see inputs.py).
        """
        if not isinstance(views, Posterior):
            given = {"projections": views, "k": k if self.uses_certainty else None}
            check_values({name: x for name, x in given.items() if isinstance(x, Tensor)})
            posterior = self.read(views, k)
        elif k is None:
            posterior = views
        else:
            raise UserError(
                "a posterior already contains its certainty, so k cannot be passed beside it; call"
                " loss(posterior) or loss(projections, k), and pass a generator as generator=."
            )
        loss: Tensor = super().__call__(posterior, generator)
        return loss

    def null_loss(self, views: Posterior, nulls: Posterior) -> Tensor:
        """Return what null views, which are images of nothing, add to the loss (theory 9).

        Args:
            views: posteriors of the 2n views of the batch.
            nulls: posteriors of the batch's null views, at least 1.

        Returns:
            a scalar in nats.

        Raises:
            UserError: this loss has no use for them, which is so unless it overrides this method.
        """
        raise UserError(
            f"{type(self).__name__} learns nothing from null views; set null_fraction to 0, or use"
            " the loss sure."
        )

    def directions(self, projections: Tensor) -> Tensor:
        """Return the rows scaled to length 1, (n, d), in at least float32. For use in `read`.

        Raises:
            UserError: projections are not a floating-point tensor of shape (n, d).
        """
        check_rows("projections", projections)
        return unit_rows(projections)

    def number(self, projections: Tensor, k: Tensor | None) -> Tensor:
        """Return k in at least float32, (n,). For use in `read`.

        Raises:
            UserError: k is missing, or not a floating-point tensor with one number for each row of
                the projections, on their device.
        """
        check_rows("projections", projections)
        if k is None:
            raise UserError(
                f"{type(self).__name__} needs one number a view beside the direction; pass k of"
                " shape (n,)."
            )
        check_numbers("k", k, projections, "projections")
        return at_least_float32(k)

    def need(self, what: str, value: Tensor | None) -> Tensor:
        """Return a part of the posterior that this loss needs.

        Raises:
            UserError: the posterior does not have it, because another loss made it.
        """
        if value is None:
            raise UserError(
                f"{type(self).__name__} needs a posterior with a {what}; make it with its own"
                " read(projections, k)."
            )
        return value


OBJECTIVES = Registry[type[Objective]]("loss", "sureclr.losses")
register_loss = OBJECTIVES.register  # a class decorator: @register_loss("mine")


def objective(name: str, **options: Any) -> Objective:
    """Build the loss of that name.

    Args:
        name: a name in `OBJECTIVES`.
        options: of the loss; those that are None keep the loss's default.

    Raises:
        UserError: the name is unknown, the loss does not take an option, or a value is out of
            range.

    >>> objective("nt-xent", temperature=0.5).temperature
    0.5
    """
    kind = OBJECTIVES[name]
    chosen = {option: value for option, value in options.items() if value is not None}
    takes = [
        option
        for option, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    for option in chosen:
        if option not in takes:
            raise UserError(
                f"loss {name} takes no {option}; it takes {', '.join(takes) or 'no options'}."
            )
    return kind(**chosen)


# Losses of the direction alone


class DirectionLoss(Objective):
    """A loss without a notion of certainty: the posterior is a direction, and k is ignored.

    Args:
        temperature: tau, above 0.
    """

    uses_certainty = False

    def __init__(self, temperature: float = TEMPERATURE) -> None:
        """Check the temperature."""
        super().__init__()
        self.temperature = checked_temperature(temperature)

    def read(self, projections: Tensor, k: Tensor | None = None) -> Posterior:
        """Return the directions of the projections, without radius or certainty."""
        return Posterior(self.directions(projections))


@register_loss("nt-xent")
class NTXentLoss(DirectionLoss):
    """SimCLR's loss, NT-Xent: every view is equally certain.

    It is `tiles.nt_xent`, whose memory is linear in n.

    Args:
        temperature: tau, above 0.
    """

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        """Return `tiles.nt_xent` of the directions."""
        return tiles.nt_xent(posterior.direction, self.temperature)


# Losses with a radius


class RadiusLoss(Objective):
    """A loss whose k is the logit of the radius: rho = sigmoid(k), and 1 - rho = sigmoid(-k).

    The gap is exact where 1 - sigmoid(k) has rounded (theory 5). k is `bounded` first.
    """

    def read(self, projections: Tensor, k: Tensor | None = None) -> Posterior:
        """Return direction and radius of each row."""
        k = bounded(self.number(projections, k))
        return Posterior(self.directions(projections), torch.sigmoid(k), torch.sigmoid(-k))


@register_loss("sure")
class SureLoss(RadiusLoss):
    """SURE: NT-Xent for what a view shows, a likelihood for how certain that is (theory 3).

    It is `tiles.sure`, whose memory is linear in n. At equal pull the two kernels (all coordinates,
    measured) rank images alike. With all coordinates a crop is more often less certain than its
    whole; with the measured dimension the radius is calibrated without a map (benchmarks.study;
    NOTEBOOK.md has the numbers).

    Args:
        temperature: tau of the first term, above 0.
        weight: lambda of the second and of null views, 0 or more. Default: `losses.PULL` / m, since
            its pull on the encoder grows with lambda * m (theory 5).
        dimension: m of the kernel, a number above 1. Default: the number of coordinates, as in the
            model itself (theory 1). "measured": the running 1 / E[c^2] over views of different
            images. That running number is kept in any case, for reading evidence (theory 3).
        empirical_prior: beta in [0, 1]. 0: the likelihood takes directions as uniform on the
            sphere. 1: as the batch has them, so that the radius says how sure *which image* it is,
            and of its class less than chance (theory 3; NOTEBOOK.md).
        softening: how an unsure view's logits are softened in the first term: only its own
            ("anchors"), also those of other views with it ("means"), or none ("off");
            `losses.sure` has the formulas.
        presence: "on": the posterior has a second number, pi, the probability that the view shows
            anything of the kind of the training images, and k is (n, 2): the logit of the radius,
            then that of pi less `PRESENCE_START`. "off": it has none, and k is (n,) (theory 9).
        null_weight: how much a null view counts beside an image, 0 or more: L_null counts lambda
            times this, times the number of null views over that of the images.
        momentum: of the running mean of c^2, in [0, 1). A batch of n images has about 2 n^2 pairs,
            so a short memory (10 steps) is exact enough, and follows the directions as they spread.

    Raises:
        UserError: a value is out of its range.
    """

    squared_cosine: Tensor
    seen: Tensor
    m: Tensor

    def __init__(
        self,
        temperature: float = TEMPERATURE,
        weight: float | None = None,
        dimension: float | Literal["measured"] | None = None,
        empirical_prior: float = EMPIRICAL_PRIOR,
        softening: Softening = SOFTENING,
        momentum: float = 0.9,
        presence: Switch = PRESENCE,
        null_weight: float = NULL_WEIGHT,
    ) -> None:
        """Check the options and start the running mean."""
        super().__init__()
        self.temperature = checked_temperature(temperature)
        self.weight = weight if weight is None else not_negative("weight", weight)
        self.dimension = dimension if dimension == MEASURED else checked_dimension(dimension)
        self.empirical_prior = losses.checked_prior(empirical_prior)
        self.softening: Softening = losses.checked_softening(softening)
        self.presence: Switch = losses.checked_presence(presence)
        self.numbers = 2 if presence == "on" else 1
        self.null_weight = not_negative("null_weight", null_weight)
        if not isinstance(momentum, int | float) or not 0 <= momentum < 1:
            raise UserError(
                f"momentum must lie in [0, 1), and is {momentum}; 0 uses each batch's own kernel"
                " dimension."
            )
        self.momentum = momentum
        for running in ("squared_cosine", "seen", "m"):
            self.register_buffer(running, torch.zeros(()))

    def read(self, projections: Tensor, k: Tensor | None = None) -> Posterior:
        """Return direction, radius and, where the loss has one, presence of each row."""
        if self.presence == "off":
            return super().read(projections, k)
        if k is None or k.ndim != 2 or k.shape[-1] != 2:
            form = "none" if k is None else f"the shape {tuple(k.shape)}"
            raise UserError(
                "SureLoss with a presence needs two numbers a view beside the direction: pass k of"
                f" shape (n, 2), not {form}."
            )
        of_radius, of_presence = k.unbind(-1)
        known = super().read(projections, of_radius)
        number = self.number(projections, of_presence)
        presence = torch.sigmoid(bounded(number + PRESENCE_START))
        return Posterior(known.direction, known.radius, known.gap, presence=presence)

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        """Return `tiles.sure` of the views; in training mode, update the running mean first."""
        mu, (rho, gap) = posterior.direction, radius_and_gap(posterior)
        if self.training:
            self.update(mu)
        return tiles.sure(
            mu,
            rho,
            self.temperature,
            self.weight,
            self.kernel(mu),
            gap,
            self.empirical_prior,
            self.softening,
            presences=posterior.presence,
        )

    def null_loss(self, views: Posterior, nulls: Posterior) -> Tensor:
        """Return lambda times their weight times `losses.null_likelihood`."""
        m, images = self.kernel(views.direction), len(views.direction) / 2
        weight = self.null_weight * len(nulls.direction) / images
        likelihood: Tensor = losses.null_likelihood(views, nulls, m)
        return losses.pull(self.weight, m) * weight * likelihood

    @torch.no_grad()
    def update(self, directions: Tensor) -> None:
        """Move the running mean of c^2 towards this batch's, and set m from it.

        `seen` = 1 - momentum^steps is the weight collected so far; dividing by it removes the bias
        of the start. m is at most the number of coordinates, as in `losses.measured_dimension`.
        """
        self.squared_cosine.lerp_(
            losses.mean_squared_cosine(directions).to(self.squared_cosine), 1 - self.momentum
        )
        self.seen.lerp_(torch.ones_like(self.seen), 1 - self.momentum)
        self.m.copy_((self.seen / self.squared_cosine).clamp(max=directions.shape[1]))

    def kernel(self, directions: Tensor) -> float | Tensor:
        """Return m of the loss for (2n, d) directions.

        The running one is a tensor: a number would make the program wait for the device.
        """
        if self.dimension == MEASURED:
            return torch.where(self.m > 0, self.m, directions.shape[1])
        return kernel_dimension_of(directions, self.dimension)

    @property
    def kernel_dimension(self) -> float | None:
        """The dimension m for reading evidence: the fixed one, else the running 1 / E[c^2].

        None before the first training step.
        """
        if self.dimension is None or self.dimension == MEASURED:
            return float(self.m) or None
        return self.dimension


def checked_dimension(value: float | str | None) -> float | None:
    """Return the kernel dimension m if it is None or a finite number above 1.

    Raises:
        UserError: it is not; the density is not normalised there (theory 3).
    """
    if isinstance(value, str):
        raise UserError(
            f"dimension must be a number above 1 or {MEASURED!r}, and is {value!r}; leave it out"
            " for the number of coordinates."
        )
    return value if value is None else above("dimension", value, 1)


class EvidenceNCELoss(RadiusLoss):
    """A loss that is InfoNCE over a kernel of pairs of posteriors, direction and radius together.

    Args:
        dimension: m of the kernel, above 1. Default: the number of coordinates.
    """

    formula: ClassVar[Callable[..., Tensor]]

    def __init__(self, dimension: float | None = None) -> None:
        """Check the dimension."""
        super().__init__()
        self.dimension = checked_dimension(dimension)

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        """Return the formula of directions and radii."""
        rho, gap = radius_and_gap(posterior)
        return type(self).formula(posterior.direction, rho, self.dimension, gap)


@register_loss("poisson-nce")
class PoissonNCELoss(EvidenceNCELoss):
    """InfoNCE over the evidence of two posteriors.

    Args:
        dimension: m of the kernel, above 1. Default: the number of coordinates.
    """

    formula = staticmethod(references.poisson_nce)


@register_loss("gaussian-nce")
class GaussianNCELoss(EvidenceNCELoss):
    """InfoNCE over the Mehler kernel of two Gaussians.

    Args:
        dimension: m of the kernel, above 1. Default: the number of coordinates.
    """

    formula = staticmethod(references.gaussian_nce)


class VonMisesFisherLoss(Objective):
    """A loss whose posterior is von Mises-Fisher; its certainty is kappa.

    kappa = rho (d - rho^2) / (1 - rho^2) with rho = sigmoid(k): the estimate by Banerjee et al.
    2005 of the kappa that has the radius rho. At both ends it is an exponential of k (d e^k and
    (d - 1) e^k / 2), as the papers take for a number over orders of magnitude. So every loss with a
    radius starts and ranges alike, for a fair race.
    """

    def read(self, projections: Tensor, k: Tensor | None = None) -> Posterior:
        """Return direction, kappa, and the mean resultant length of kappa as the radius."""
        k, d = bounded(self.number(projections, k)), projections.shape[-1]
        rho, gap = torch.sigmoid(k), torch.sigmoid(-k)
        kappa = rho * (d - rho.square()) / (gap * (1 + rho))
        return Posterior(
            self.directions(projections),
            vmf_mean_resultant_length(kappa, d),
            certainty=kappa,
            parameter=kappa,
        )


@register_loss("mc-infonce")
class MCInfoNCELoss(VonMisesFisherLoss):
    """MC-InfoNCE: InfoNCE over samples of each posterior.

    Calls need a generator.

    Args:
        temperature: tau, above 0.
        samples: how many samples of each view a step draws, at least 1.
    """

    def __init__(self, temperature: float = TEMPERATURE, samples: int = 16) -> None:
        """Check the options."""
        super().__init__()
        self.temperature = checked_temperature(temperature)
        self.samples = checked_count("samples", samples)

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        """Return `references.mc_infonce` of the views."""
        if generator is None:
            raise UserError(
                "loss mc-infonce draws samples and got no generator; call it as loss(projections,"
                " k, generator=torch.Generator())."
            )
        kappa = self.need("kappa", posterior.parameter)
        return references.mc_infonce(
            posterior.direction, kappa, self.temperature, self.samples, generator
        )


@register_loss("elk")
class ELKLoss(VonMisesFisherLoss):
    """InfoNCE over the expected likelihood kernel of two posteriors.

    Args:
        temperature: by which the evidence is divided, above 0.
    """

    def __init__(self, temperature: float = ELK_TEMPERATURE) -> None:
        """Check the temperature."""
        super().__init__()
        self.temperature = checked_temperature(temperature)

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        """Return `references.elk` of the views."""
        kappa = self.need("kappa", posterior.parameter)
        return references.elk(posterior.direction, kappa, self.temperature)


# Losses with another certainty


@register_loss("tau")
class TauLoss(Objective):
    """NT-Xent with a temperature for each view, which is its uncertainty.

    tau_i = temperature / (2 sigmoid(k)), and the certainty is 1 / tau_i. As in the original's
    sigmoid, the temperature cannot fall to 0: tau_i > temperature / 2. k = 0 is NT-Xent.

    Args:
        temperature: tau at k = 0, above 0.
    """

    def __init__(self, temperature: float = TEMPERATURE) -> None:
        """Check the temperature."""
        super().__init__()
        self.temperature = checked_temperature(temperature)

    def read(self, projections: Tensor, k: Tensor | None = None) -> Posterior:
        """Return direction and temperature of each row."""
        share = 2 * torch.sigmoid(bounded(self.number(projections, k)))
        temperatures = self.temperature / share
        return Posterior(
            self.directions(projections), certainty=1 / temperatures, parameter=temperatures
        )

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        """Return `references.tau` of the views."""
        return references.tau(posterior.direction, self.need("temperature", posterior.parameter))


@register_loss("loss-prediction")
class LossPredictionLoss(Objective):
    """NT-Xent, and the certainty predicts each view's loss.

    The certainty is minus the predicted loss in nats.

    Args:
        temperature: tau of NT-Xent, above 0.
        weight: of the regression, 0 or more.
    """

    def __init__(self, temperature: float = TEMPERATURE, weight: float = PREDICTION_WEIGHT) -> None:
        """Check the options."""
        super().__init__()
        self.temperature = checked_temperature(temperature)
        self.weight = not_negative("weight", weight)

    def read(self, projections: Tensor, k: Tensor | None = None) -> Posterior:
        """Return direction and predicted loss of each row."""
        predicted = self.number(projections, k)
        return Posterior(self.directions(projections), certainty=-predicted, parameter=predicted)

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        """Return `references.loss_prediction` of the views."""
        predicted = self.need("predicted loss", posterior.parameter)
        return references.loss_prediction(
            posterior.direction, predicted, self.temperature, self.weight
        )


# Variants of the first two


@register_loss("cosine-regression")
class CosineRegressionLoss(RadiusLoss):
    """NT-Xent, and the radii predict the cosine of two views.

    Args:
        temperature: tau of NT-Xent, above 0.
        weight: of the regression, 0 or more.
    """

    def __init__(self, temperature: float = TEMPERATURE, weight: float = REGRESSION_WEIGHT) -> None:
        """Check the options."""
        super().__init__()
        self.temperature = checked_temperature(temperature)
        self.weight = not_negative("weight", weight)

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        """Return `references.cosine_regression` of the views."""
        rho, _ = radius_and_gap(posterior)
        return references.cosine_regression(posterior.direction, rho, self.temperature, self.weight)


@register_loss("dcl")
class DCLLoss(DirectionLoss):
    """Decoupled contrastive learning: NT-Xent without the partner in the denominator.

    Args:
        temperature: tau, above 0.
    """

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        """Return `references.dcl` of the directions."""
        return references.dcl(posterior.direction, self.temperature)
