"""The losses as modules: how k is read, the running kernel dimension, the registry, and what bad
input is told.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from sureclr.errors import UserError
from sureclr.maths import losses, references
from sureclr.maths.objectives import OBJECTIVES, NTXentLoss, Objective, SureLoss, objective
from sureclr.maths.sampling import uniform_directions
from sureclr.maths.sphere import GAP_MIN, Posterior

WITH_RADIUS = ["sure", "poisson-nce", "gaussian-nce", "mc-infonce", "elk", "cosine-regression"]
ASKING_K = [*WITH_RADIUS, "tau", "loss-prediction"]
OPTIONS = {
    "nt-xent": ["temperature"],
    "dcl": ["temperature"],
    "sure": ["temperature", "weight", "dimension", "empirical_prior", "softening", "momentum"],
    "poisson-nce": ["dimension"],
    "gaussian-nce": ["dimension"],
    "mc-infonce": ["temperature", "samples"],
    "elk": ["temperature"],
    "tau": ["temperature"],
    "loss-prediction": ["temperature", "weight"],
    "cosine-regression": ["temperature", "weight"],
}
WITH_TEMPERATURE = [name for name, options in OPTIONS.items() if "temperature" in options]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def projections(n: int = 6, d: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(2n, d) projections of any length, partners alike, and (2n,) numbers k; float32. Off centre,
    so that m is about d / 2.
    """
    g = generator(seed)
    image = torch.randn(n, d, generator=g) + 1
    return torch.cat((image, image)) + 0.5 * torch.randn(2 * n, d, generator=g), torch.randn(
        2 * n, generator=g
    )


def read(loss: Objective, z: Tensor, k: Tensor) -> Posterior:
    return loss.read(z, k if loss.uses_certainty else None)


def test_the_registry() -> None:
    assert set(OBJECTIVES) == {"nt-xent", "dcl", *ASKING_K} == set(OPTIONS)
    for name, kind in OBJECTIVES.items():
        assert kind.name == name
        assert kind.uses_certainty == (name in ASKING_K)
        assert isinstance(objective(name), kind)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_loss_trains_the_head(name: str) -> None:
    """Gradient descent on free projections and k lowers it: each is differentiable in what it
    reads.
    """
    loss = objective(name)
    z, k = (x.requires_grad_() for x in projections())
    optimizer = torch.optim.Adam([z, k], lr=0.03)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(read(loss, z, k), generator=generator())
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert value.shape == () and value.dtype == torch.float32
    assert values[-1] < values[0] - 0.1
    assert (k.grad is not None and bool(k.grad.abs().max() > 0)) == loss.uses_certainty


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_length_of_a_projection_says_nothing(name: str) -> None:
    z, k = projections()
    long, short = (read(objective(name), scale * z, k) for scale in (100.0, 0.01))
    torch.testing.assert_close(long.direction, short.direction)
    torch.testing.assert_close(long.direction.norm(dim=-1), torch.ones(12))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_precision_heads(name: str) -> None:
    """A head under autocast gives bfloat16; the posterior and the loss are float32, and those of
    the same numbers in float32.
    """
    z, k = (x.bfloat16() for x in projections())
    loss = objective(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior = read(loss, z, k)
        value = loss(posterior, generator=generator())
    plain = loss(read(loss, z.float(), k.float()), generator=generator())
    assert posterior.direction.dtype == value.dtype == torch.float32
    assert posterior.certainty is None or posterior.certainty.dtype == torch.float32
    assert value.item() == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_equals_its_function(name: str, temperature: float | None) -> None:
    """At its defaults (temperature None), and with every option another."""
    z, k = (x.double() for x in projections())
    other = {
        "temperature": temperature,
        "weight": 0.7,
        "dimension": 3.5,
        "empirical_prior": 0.4,
        "softening": "means",
        "samples": 5,
    }
    loss = objective(
        name, **({o: v for o, v in other.items() if o in OPTIONS[name]} if temperature else {})
    )
    posterior = read(loss, z, k)
    mu, rho, x = nn.functional.normalize(z, dim=-1), posterior.radius, posterior.parameter
    t, w, m, s = (temperature, 0.7, 3.5, 5) if temperature else (0.2, 1.0, 8, 16)
    expected = {
        "nt-xent": lambda: losses.nt_xent(mu, t),
        "dcl": lambda: references.dcl(mu, t),
        "sure": lambda: losses.sure(
            mu,
            rho,
            t,
            *((w, m, None, 0.4, "means") if temperature else (28 / 8, 8, None, 0.0, "anchors")),
        ),
        "poisson-nce": lambda: references.poisson_nce(mu, rho, m),
        "gaussian-nce": lambda: references.gaussian_nce(mu, rho, m),
        "mc-infonce": lambda: references.mc_infonce(mu, x, t, s, generator()),
        "elk": lambda: references.elk(mu, x, temperature or 1.0),
        "tau": lambda: references.tau(mu, x),
        "loss-prediction": lambda: references.loss_prediction(mu, k, t, w),
        "cosine-regression": lambda: references.cosine_regression(mu, rho, t, w),
    }[name]
    value = loss(posterior, generator=generator()).item()
    assert value == pytest.approx(expected().item(), rel=1e-6)  # m is kept in float32


# How k is read


@pytest.mark.parametrize("name", WITH_RADIUS)
def test_radii_start_at_a_half_and_stay_inside(name: str) -> None:
    """1 - rho >= 1e-3 however large k, and the slope never dies: at k = 100 it is still 1e-8 or
    more in float32.
    """
    k = torch.tensor([-1e4, -100.0, -3.0, 0.0, 3.0, 100.0, 1e4], requires_grad=True)
    posterior = objective(name).read(torch.ones(7, 32), k)
    assert (
        posterior.radius is not None
        and posterior.gap is not None
        and posterior.certainty is not None
    )
    assert posterior.radius[3].item() == pytest.approx(0.5, abs=0.01)
    assert posterior.gap.min().item() >= GAP_MIN * 0.98 and posterior.radius.min().item() > 5e-4
    assert posterior.gap.min().item() < 1.1e-3  # the range is used
    slope = torch.autograd.grad(posterior.radius.sum(), k)[0]
    assert (slope[1:-1] > 1e-8).all()


@pytest.mark.parametrize("name", ["sure", "poisson-nce", "gaussian-nce", "cosine-regression"])
def test_small_k_is_the_logit_of_the_radius(name: str) -> None:
    posterior = objective(name).read(torch.ones(1, 4), torch.tensor([0.3]))
    assert posterior.radius is not None and posterior.parameter is None
    assert posterior.radius.item() == pytest.approx(1 / (1 + math.exp(-0.3)), abs=1e-4)


def test_the_gap_keeps_what_float32_rounds_away() -> None:
    k = torch.linspace(-30, 30, 101)
    posterior, exact = (SureLoss().read(torch.ones(101, 4), x) for x in (k, k.double()))
    torch.testing.assert_close(posterior.gap.double(), exact.gap, rtol=2e-6, atol=0)
    assert ((1 - posterior.radius).double() / exact.gap - 1).abs().max() > 1e-5


@pytest.mark.parametrize("name", ASKING_K)
def test_certainty_rises_with_the_radius_or_falls_with_the_loss(name: str) -> None:
    k = torch.linspace(-20, 20, 41, dtype=torch.float64)
    posterior = objective(name).read(torch.ones(41, 16), -k if name == "loss-prediction" else k)
    assert (posterior.certainty.diff() > 0).all()
    assert posterior.radius is None or (posterior.radius.diff() > 0).all()
    assert (posterior.radius is not None) == (name in WITH_RADIUS)


def test_tau_starts_as_nt_xent_and_never_falls_below_half() -> None:
    z, k = projections()
    loss = objective("tau", temperature=0.4)
    assert loss(loss.read(z, 0 * k)).item() == pytest.approx(NTXentLoss(0.4)(z).item(), abs=1e-6)
    assert loss.read(z, k + 1e6).parameter.min().item() == pytest.approx(0.2, rel=2e-3)


# In anyone's own loop


def test_losses_of_the_direction_take_plain_tensors() -> None:
    z, _ = projections()
    for name in ("nt-xent", "dcl"):
        loss = objective(name)
        assert loss(z) == loss(loss.read(z))


def test_mc_infonce_asks_for_a_generator_and_repeats_with_it() -> None:
    z, k = projections()
    loss = objective("mc-infonce", samples=3)
    posterior = loss.read(z, k)
    assert (
        loss(posterior, generator(1))
        == loss(posterior, generator(1))
        != loss(posterior, generator(2))
    )
    with pytest.raises(UserError, match="no generator"):
        loss(posterior)


@pytest.mark.parametrize("name", ASKING_K)
def test_a_posterior_or_head_of_another_loss_is_refused(name: str) -> None:
    loss, (z, _) = objective(name), projections()
    with pytest.raises(UserError, match="pass k of shape"):
        loss.read(z)
    with pytest.raises(UserError, match=r"posterior"):
        loss(NTXentLoss().read(z), generator())


# The kernel dimension


def test_the_running_kernel_dimension_is_the_exact_weighted_mean() -> None:
    """Weights momentum^age, normalised: the first is the batch's own; evaluation leaves it; it is
    saved with the state.
    """
    loss, means = SureLoss(dimension="measured", momentum=0.7), []
    assert loss.kernel_dimension is None
    for seed in range(5):
        z, k = projections(seed=seed)
        means.append(losses.mean_squared_cosine(loss.read(z, k).direction).item())
        loss(loss.read(z, k))
        weights = [0.7 ** (seed - age) for age in range(seed + 1)]
        mean = sum(w * x for w, x in zip(weights, means, strict=True)) / sum(weights)
        assert loss.kernel_dimension == pytest.approx(1 / mean, rel=1e-5)
    before = loss.kernel_dimension
    z, k = projections(seed=9)
    value = loss.eval()(loss.read(z, k))
    assert loss.kernel_dimension == before
    assert value.item() == pytest.approx(
        SureLoss(dimension=before)(loss.read(z, k)).item(), abs=1e-5
    )
    copy = SureLoss(dimension="measured")
    copy.load_state_dict(loss.state_dict())
    assert copy.kernel_dimension == before and not list(loss.parameters())


def test_uniform_directions_have_all_dimensions_and_no_more() -> None:
    """m = d (theory 3); and orthogonal views, where 1 / E[c^2] is infinite, count as d."""
    loss = SureLoss()
    loss(loss.read(uniform_directions(4000, 32, generator()), torch.zeros(4000)))
    assert loss.kernel_dimension == pytest.approx(32, rel=0.01)
    orthogonal = SureLoss()
    assert orthogonal(orthogonal.read(torch.eye(8, 32), torch.zeros(8))).isfinite()
    assert orthogonal.kernel_dimension == 32
    flat = SureLoss()
    flat(
        flat.read(
            nn.functional.pad(uniform_directions(4000, 5, generator()), (0, 27)), torch.zeros(4000)
        )
    )
    assert flat.kernel_dimension == pytest.approx(5, rel=0.02)


def test_the_kernel_dimension_gives_no_gradient_and_can_be_fixed() -> None:
    """The direction's gradient is NT-Xent's at any weight: nothing leaks through m."""
    z, k = projections()
    gradients = []
    for loss in (
        SureLoss(weight=50.0, dimension="measured", softening="off"),
        SureLoss(weight=50.0, dimension=3.5, softening="off"),
        NTXentLoss(),
    ):
        free = z.clone().requires_grad_()
        loss(read(loss, free, k)).backward()
        gradients.append(free.grad)
    assert torch.equal(gradients[0], gradients[2]) and torch.equal(gradients[1], gradients[2])
    fixed = SureLoss(dimension=3.5, softening="off")
    mu = fixed.read(z, k)
    assert fixed(mu).item() == pytest.approx(
        losses.sure(mu.direction, mu.radius, 0.2, 28 / 3.5, 3.5).item(), abs=1e-5
    )
    assert fixed.kernel_dimension == 3.5


def test_the_default_weight_keeps_the_pull_whatever_the_dimension() -> None:
    """lambda m = 28: by number, by the coordinates (8 here), and by the running m, which the first
    batch sets.
    """
    z, k = projections()
    view = SureLoss().read(z, k)
    running = 1 / losses.mean_squared_cosine(view.direction).item()
    for dimension, m in ((5, 5), (None, 8), ("measured", running)):
        loss = SureLoss(dimension=dimension, softening="off")
        assert loss(view).item() == pytest.approx(
            losses.sure(view.direction, view.radius, 0.2, 28 / m, m).item(), rel=1e-5
        )
        assert loss.kernel_dimension == pytest.approx(
            running if m == 8 else m, rel=1e-5
        )  # evidence is read with the measured one


def test_the_prior_reaches_the_loss() -> None:
    z, k = projections()
    view = SureLoss().read(z, k)
    values = []
    for options, beta in (
        ({}, 0.0),
        ({"empirical_prior": 0.3}, 0.3),
        ({"empirical_prior": 1}, 1.0),
    ):
        values.append(objective("sure", **options)(view).item())
        expected = losses.sure(
            view.direction, view.radius, 0.2, 28 / 8, empirical_prior=beta, softening="anchors"
        ).item()
        assert values[-1] == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in values}) == 3


def test_without_softening_the_first_term_is_nt_xent() -> None:
    z, k = projections()
    view = SureLoss().read(z, k)
    assert SureLoss(weight=0, softening="off")(view).item() == pytest.approx(
        losses.nt_xent(view.direction, 0.2).item(), abs=1e-5
    )
    assert abs(SureLoss(weight=0)(view).item() - losses.nt_xent(view.direction, 0.2).item()) > 1e-3


def test_softening_is_one_of_three() -> None:
    with pytest.raises(
        UserError, match="softening must be one of anchors, means, off, and is on; leave it out"
    ):
        SureLoss(softening="on")


def test_a_dimension_in_words_is_measured_or_refused() -> None:
    with pytest.raises(UserError, match="measured"):
        SureLoss(dimension="mesured")


def test_before_any_training_the_kernel_has_all_coordinates() -> None:
    z, k = projections()
    loss = SureLoss(dimension="measured").eval()
    assert loss(loss.read(z, k)).item() == pytest.approx(
        SureLoss(dimension=8)(loss.read(z, k)).item(), abs=1e-5
    )
    assert loss.kernel_dimension is None


# Options


def test_options_that_are_none_keep_the_default() -> None:
    loss = objective("sure", temperature=None, weight=0.0, dimension=None)
    assert isinstance(loss, SureLoss) and (loss.temperature, loss.weight, loss.dimension) == (
        0.2,
        0.0,
        None,
    )


def test_options_that_a_loss_does_not_take_are_refused() -> None:
    with pytest.raises(UserError, match=r"^loss nt-xent takes no weight; it takes temperature\.$"):
        objective("nt-xent", weight=0.5)
    with pytest.raises(UserError, match=r"poisson-nce takes no temperature; it takes dimension\."):
        objective("poisson-nce", temperature=0.5)
    with pytest.raises(UserError, match="did you mean nt-xent"):
        objective("ntxent")


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((name, "temperature", bad) for name in WITH_TEMPERATURE for bad in (0.0, -1.0)),
        *((name, "weight", -0.1) for name in ("sure", "loss-prediction", "cosine-regression")),
        *((name, "dimension", 1.0) for name in ("sure", "poisson-nce", "gaussian-nce")),
        ("sure", "momentum", 1.0),
        *(("sure", "empirical_prior", bad) for bad in (-0.1, 1.1, math.nan)),
        ("sure", "weight", math.nan),
        ("mc-infonce", "samples", 0),
    ],
)
def test_values_out_of_range(name: str, option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{option} must .* is {value}; "):
        objective(name, **{option: value})
