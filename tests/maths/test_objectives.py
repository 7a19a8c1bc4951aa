"""The losses as modules: defaults, plain tensors, how k is read, the running kernel dimension."""

import ast
import inspect
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sureclr.errors import UserError
from sureclr.maths import losses, objectives, references, tiles
from sureclr.maths.objectives import OBJECTIVES, NTXentLoss, Objective, SureLoss, objective
from sureclr.maths.sampling import uniform_directions
from sureclr.maths.sphere import GAP_MIN, Posterior

WITH_RADIUS = ["sure", "poisson-nce", "gaussian-nce", "mc-infonce", "elk", "cosine-regression"]
ASKING_K = [*WITH_RADIUS, "tau", "loss-prediction"]
OPTIONS = {
    "nt-xent": ["temperature"],
    "dcl": ["temperature"],
    "sure": [
        *("temperature", "weight", "dimension", "empirical_prior", "softening", "momentum"),
        *("presence", "null_weight"),
    ],
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


def test_the_names_of_the_losses() -> None:
    assert set(OBJECTIVES) == {"nt-xent", "dcl", *ASKING_K} == set(OPTIONS)
    assert list(OBJECTIVES)[:2] == ["nt-xent", "sure"]  # the order in which they are listed


@pytest.mark.parametrize("name", OPTIONS)
def test_a_name_builds_its_loss_with_its_options(name: str) -> None:
    assert OBJECTIVES[name].uses_certainty == (name in ASKING_K)
    assert type(objective(name)) is OBJECTIVES[name]
    assert list(inspect.signature(OBJECTIVES[name]).parameters) == OPTIONS[name]


# One default for each knob


@pytest.mark.parametrize("sure", [losses.sure, tiles.sure])
@pytest.mark.parametrize("seed", range(3))
def test_the_function_and_the_module_have_the_same_defaults(
    sure: Callable[..., Tensor], seed: int
) -> None:
    z, k = (x.double() for x in projections(seed=seed, d=5))
    view = SureLoss().read(z, k)
    expected = SureLoss()(z, k).item()
    assert sure(view.direction, view.radius).item() == pytest.approx(expected, rel=1e-12)
    for other in ({"temperature": 0.3}, {"weight": 1.0}, {"dimension": 3}, {"softening": "off"}):
        assert abs(sure(view.direction, view.radius, **other).item() - expected) > 1e-3
    prior = sure(view.direction, view.radius, empirical_prior=0.5).item()
    assert abs(prior - expected) > 1e-3


@pytest.mark.parametrize("nt_xent", [losses.nt_xent, tiles.nt_xent])
def test_nt_xent_and_its_module_have_the_same_default(nt_xent: Callable[..., Tensor]) -> None:
    z, _ = projections()
    directions = NTXentLoss().read(z).direction
    assert nt_xent(directions).item() == pytest.approx(NTXentLoss()(z).item(), rel=1e-6)
    assert nt_xent(directions).item() == pytest.approx(nt_xent(directions, 0.2).item(), abs=0)


def test_every_default_is_written_once() -> None:
    """A knob's default is None, the name of a constant, or a literal in one place."""
    knobs = {option for options in OPTIONS.values() for option in options}
    written: Counter[str] = Counter()
    for module in (losses, tiles, references, objectives):
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            if isinstance(node, ast.FunctionDef) and node.args.defaults:
                named = node.args.args[-len(node.args.defaults) :]
                for argument, default in zip(named, node.args.defaults, strict=True):
                    literal = isinstance(default, ast.Constant) and default.value is not None
                    if argument.arg in knobs and literal:
                        written[argument.arg] += 1
    assert written == {"momentum": 1, "samples": 1}


@pytest.mark.parametrize(
    "constant, value",
    [("TEMPERATURE", 0.2), ("PULL", 28.0), ("EMPIRICAL_PRIOR", 0.0), ("SOFTENING", "anchors")],
)
def test_the_defaults_are_those_of_the_study(constant: str, value: object) -> None:
    assert getattr(losses, constant) == value
    assert SureLoss().momentum == 0.9 and objective("mc-infonce").samples == 16


# Training


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


@pytest.mark.parametrize("name", OPTIONS)
def test_plain_tensors_and_a_posterior_give_the_same_loss(name: str) -> None:
    z, k = projections()
    plain = objective(name)(z, k, generator=generator())
    assert plain == objective(name)(read(objective(name), z, k), generator=generator())


@pytest.mark.parametrize("name", ["nt-xent", "dcl"])
def test_losses_of_the_direction_need_no_k_and_ignore_it(name: str) -> None:
    z, k = projections()
    assert objective(name)(z) == objective(name)(z, k)


def test_mc_infonce_needs_a_generator_and_repeats_with_it() -> None:
    z, k = projections()
    loss = objective("mc-infonce", samples=3)
    first, again, other = (loss(z, k, generator=generator(seed)) for seed in (1, 1, 2))
    assert first == again != other
    with pytest.raises(UserError, match="no generator"):
        loss(loss.read(z, k))


@pytest.mark.parametrize("name", ASKING_K)
def test_a_posterior_or_head_of_another_loss_is_refused(name: str) -> None:
    loss, (z, _) = objective(name), projections()
    with pytest.raises(UserError, match=r"pass k of shape \(n,\)"):
        loss.read(z)
    with pytest.raises(UserError, match=r"posterior"):
        loss(NTXentLoss().read(z), generator=generator())


def test_k_beside_a_posterior_is_refused() -> None:
    z, k = projections()
    with pytest.raises(UserError, match="k cannot be passed beside"):
        SureLoss()(SureLoss().read(z, k), k)


Z, K = torch.ones(8, 3), torch.zeros(8)
BAD_TENSORS = {
    "no k": ((Z,), "SureLoss needs one number a view beside the direction; pass k"),
    "numpy projections": ((Z.numpy(), K), "projections must be a torch tensor, and is a numpy"),
    "numpy k": ((Z, np.zeros(8)), r"k must be a torch tensor, and is a numpy\.ndarray"),
    "a list": ((Z.tolist(), K), "projections must be a torch tensor, and is a builtins.list"),
    "integer projections": ((Z.long(), K), r"floating-point type, and has torch\.int64; convert"),
    "integer k": ((Z, K.int()), "k must have a floating-point type, and has torch.int32"),
    "a column of k": ((Z, K[:, None]), r"must have the shape \(8,\).* has \(8, 1\); reshape"),
    "too few k": ((Z, K[:7]), r"must have the shape \(8,\).* has \(7,\)"),
    "one vector": ((Z[0], K[:1]), r"shape \(rows, coordinates\), and have \(3,\)"),
    "a map": ((Z[:, :, None], K), r"shape \(rows, coordinates\), and have \(8, 3, 1\)"),
    "no pairs": ((Z[:7], K[:7]), r"not 7\b.*add images"),
    "one image": ((Z[:2], K[:2]), r"not 2\b.*add images"),
    "no coordinates": ((Z[:, :1], K), "at least 2 coordinates, not 1"),
    "another device": ((Z, K.to("meta")), "k is on meta and projections are on cpu"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors_get_one_sentence(case: str) -> None:
    arguments, sentence = BAD_TENSORS[case]
    with pytest.raises(UserError, match=sentence) as error:
        SureLoss()(*arguments)
    assert "\n" not in str(error.value) and "--" not in str(error.value)


@pytest.mark.parametrize("name", ["nt-xent", "dcl"])
@pytest.mark.parametrize("case", ["numpy projections", "integer projections", "one vector"])
def test_bad_projections_without_k_get_one_sentence(case: str, name: str) -> None:
    arguments, sentence = BAD_TENSORS[case]
    with pytest.raises(UserError, match=sentence):
        objective(name)(arguments[0])


@pytest.mark.parametrize("name", ["sure", "nt-xent"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_row_of_zeros_has_a_finite_gradient(name: str, dtype: torch.dtype) -> None:
    z, k = (x.to(dtype) for x in projections())
    z[3] = 0
    loss = objective(name)(z.requires_grad_(), k)
    loss.backward()
    assert loss.isfinite() and z.grad is not None and z.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e30, 1e-30, 3e38 / 5])
@pytest.mark.parametrize("name", ["sure", "nt-xent"])
def test_the_loss_of_huge_and_tiny_projections_is_that_of_their_directions(
    name: str, scale: float
) -> None:
    """Their squares overflow or underflow in float32."""
    z, k = projections()
    z = z / z.abs().max()
    huge = (z * scale).requires_grad_()
    loss = objective(name)(huge, k)
    assert loss.item() == pytest.approx(objective(name)(z.double(), k).item(), rel=1e-5)
    loss.backward()
    assert huge.grad is not None and huge.grad.isfinite().all()


def test_a_loss_survives_compilation_and_keeps_its_hooks() -> None:
    z, k = projections()
    loss = SureLoss(softening="off").eval()
    calls: list[object] = []
    loss.register_forward_hook(lambda module, inputs, output: calls.append(output))
    assert loss(z, k) == calls[0]
    compiled = torch.compile(SureLoss(softening="off").eval(), backend="eager")
    assert compiled(z, k).item() == pytest.approx(loss(z, k).item(), abs=1e-6)


class HalfCosine(Objective):
    """A loss of a user: `read` and `forward` alone."""

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.scale = scale

    def read(self, projections: Tensor, k: Tensor | None = None) -> Posterior:
        return Posterior(self.directions(projections), self.number(projections, k).sigmoid())

    def forward(self, posterior: Posterior, generator: torch.Generator | None = None) -> Tensor:
        first, second = posterior.mean.chunk(2)
        return self.scale * (1 - (first * second).sum(1).mean())


def test_a_new_loss_needs_read_and_forward_alone() -> None:
    z, k = projections()
    u = torch.sigmoid(k)[:, None] * nn.functional.normalize(z, dim=1)
    expected = 0.5 * (1 - (u[:6] * u[6:]).sum(1).mean())
    assert HalfCosine()(z, k).item() == pytest.approx(expected.item(), abs=1e-6)
    with pytest.raises(UserError, match="HalfCosine needs one number a view"):
        HalfCosine()(z)
    with pytest.raises(UserError, match="k must have the shape"):
        HalfCosine()(z, k[:, None])
    with pytest.raises(TypeError, match="abstract"):
        Objective()  # type: ignore[abstract]


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
        losses.sure(mu.direction, mu.radius, 0.2, 28 / 3.5, 3.5, softening="off").item(), abs=1e-5
    )
    assert fixed.kernel_dimension == 3.5


@pytest.mark.parametrize("dimension", [5, None, "measured"])
def test_the_default_weight_keeps_the_pull_whatever_the_dimension(
    dimension: float | str | None,
) -> None:
    """lambda m = 28: by number, by the coordinates (8 here), and by the running m, which the first
    batch sets.
    """
    z, k = projections()
    view = SureLoss().read(z, k)
    running = 1 / losses.mean_squared_cosine(view.direction).item()
    m = {5: 5, None: 8, "measured": running}[dimension]
    loss = SureLoss(dimension=dimension, softening="off")
    expected = losses.sure(view.direction, view.radius, 0.2, 28 / m, m, softening="off")
    assert loss(view).item() == pytest.approx(expected.item(), rel=1e-5)
    evidence_m = 5 if dimension == 5 else running  # evidence is read with the measured one
    assert loss.kernel_dimension == pytest.approx(evidence_m, rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_prior_reaches_the_loss(beta: float) -> None:
    z, k = projections()
    view = SureLoss().read(z, k)
    rate = losses.log_base_rate(view.direction, view.radius).item()
    without = losses.sure(view.direction, view.radius, 0.2, 28 / 8).item()
    assert objective("sure", empirical_prior=beta)(view).item() == pytest.approx(
        without + 28 / 8 * beta * rate, abs=1e-5
    )
    assert abs(rate) > 0.01


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


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(UserError, match="unknown loss 'ntxent': did you mean nt-xent"):
        objective("ntxent")


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((name, "temperature", bad) for name in WITH_TEMPERATURE for bad in (0.0, -1.0)),
        *((name, "weight", -0.1) for name in ("sure", "loss-prediction", "cosine-regression")),
        *((name, "weight", math.inf) for name in ("sure", "loss-prediction", "cosine-regression")),
        *((name, "dimension", 1.0) for name in ("sure", "poisson-nce", "gaussian-nce")),
        *((name, "dimension", math.inf) for name in ("sure", "poisson-nce", "gaussian-nce")),
        ("sure", "momentum", -0.1),
        ("sure", "momentum", 1.0),
        *(("sure", "empirical_prior", bad) for bad in (-0.1, 1.1, math.nan)),
        ("sure", "weight", math.nan),
        ("mc-infonce", "samples", 0),
    ],
)
def test_values_out_of_range(name: str, option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{option} must .* is {value}; "):
        objective(name, **{option: value})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((name, "weight", 0.0) for name in ("sure", "loss-prediction", "cosine-regression")),
        *((name, "dimension", 1.001) for name in ("sure", "poisson-nce", "gaussian-nce")),
        *(("sure", "empirical_prior", edge) for edge in (0, 1)),
        ("sure", "momentum", 0.0),
        ("mc-infonce", "samples", 1),
    ],
)
def test_values_at_the_edge_of_their_range(name: str, option: str, value: float) -> None:
    assert getattr(objective(name, **{option: value}), option) == value
