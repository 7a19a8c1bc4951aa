"""What the functions refuse: each bad argument gets one sentence with its name, never a number.

Two witnesses. The good arguments beside each bad one pass. And what is refused on a CPU gives NaN,
never a plausible number, where values are not read: on a GPU and in compiled code.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from loss_cases import generator, views
from torch import Tensor, nn

from sureclr.errors import UserError
from sureclr.evaluation.neighbour_vote import knn_accuracy
from sureclr.evaluation.probes import linear_probe
from sureclr.evaluation.similarity import cka
from sureclr.maths import (
    coverage,
    inputs,
    logistic,
    losses,
    metrics,
    neighbours,
    references,
    sphere,
    tiles,
)
from sureclr.maths.objectives import OBJECTIVES, Objective, objective
from sureclr.maths.sampling import sample
from sureclr.maths.sphere import Posterior
from sureclr.models.simclr import SimCLR

Loss = Callable[..., Tensor]
# The name of the numbers of each loss, "" where it has none, and the loss of directions and numbers
LOSSES: dict[str, tuple[str, Loss]] = {
    "nt_xent": ("", lambda mu, x: losses.nt_xent(mu)),
    "nt_xent of sharpness": ("sharpness", lambda mu, x: losses.nt_xent(mu, 0.2, x)),
    "tiles": ("", lambda mu, x: tiles.nt_xent(mu)),
    "tiles of sharpness": ("sharpness", lambda mu, x: tiles.nt_xent(mu, 0.2, x)),
    "sure": ("radii", losses.sure),
    "sure in tiles": ("radii", tiles.sure),
    "sure of means": ("radii", lambda mu, x: losses.sure(mu, x, softening="means")),
    "sure with prior": ("radii", lambda mu, x: tiles.sure(mu, x, empirical_prior=0.5)),
    "radius_likelihood": ("radii", losses.radius_likelihood),
    "certainty_loss": ("radii", losses.certainty_loss),
    "log_base_rate": ("radii", losses.log_base_rate),
    "poisson_nce": ("radii", references.poisson_nce),
    "gaussian_nce": ("radii", references.gaussian_nce),
    "cosine_regression": ("radii", references.cosine_regression),
    "elk": ("kappas", references.elk),
    "mc_infonce": ("kappas", lambda mu, x: references.mc_infonce(mu, x, 0.2, 2, generator())),
    "dcl": ("", lambda mu, x: references.dcl(mu)),
    "tau": ("temperatures", references.tau),
    "loss_prediction": ("predictions", references.loss_prediction),
}
WITH_NUMBERS = [name for name, (number, _) in LOSSES.items() if number]
MU, X = (x.float() for x in views(4))


def put(x: Tensor, value: float) -> Tensor:
    """The tensor with this value at index 1."""
    x = x.clone()
    x.view(-1)[1] = value
    return x


def refused(words: str, call: Callable[[], object]) -> None:
    """The call raises one sentence in which these words are found."""
    with pytest.raises(UserError, match=words) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400 and text.endswith(".")


BAD_DIRECTIONS = {
    "one vector": (MU[0], r"directions must have the shape \(rows, coordinates\)"),
    "a map": (MU[:, None], r"directions must have the shape \(rows, coordinates\)"),
    "an odd number": (MU[:7], "two views of each of 2 images or more.* not 7"),
    "one image": (MU[:2], "two views of each of 2 images or more.* not 2"),
    "nothing": (MU[:0], "two views of each of 2 images or more.* not 0"),
    "integers": ((9 * MU).long(), "directions must have a floating-point type"),
    "complex": (MU + 0j, "directions must have a floating-point type"),
    "numpy": (MU.numpy(), "directions must be a torch tensor, and is a numpy.ndarray"),
    "one coordinate": (MU[:, :1], "at least 2 coordinates, not 1"),
    "NaN": (put(MU, math.nan), "directions must be rows of length 1.* 1 of 8 .* with NaN or inf"),
    "infinity": (put(MU, math.inf), "directions must be rows of length 1.* with NaN or inf"),
    "not normalised": (3 * MU, "directions must be rows of length 1.* 8 of 8 .* length 3 at index"),
    "huge": (1e30 * MU, "directions must be rows of length 1"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_refuses_bad_directions_by_name(name: str) -> None:
    assert LOSSES[name][1](MU, X).isfinite()
    for bad, words in BAD_DIRECTIONS.values():
        refused(words, lambda bad=bad: LOSSES[name][1](bad, X))


def bad_numbers(name: str) -> dict[str, tuple[Any, str]]:
    """Numbers that the argument of this name cannot take, and words of the sentence."""
    rule = rf"^{name} must .*; 1 of 8 break this rule, the first is .* at index 1\. Find out"
    limits = {"radii": [-0.1, 1.0, 1.5], "temperatures": [0.0, -1.0], "predictions": []}
    return {
        "too few": (X[:6], rf"{name} must have the shape \(8,\).*has \(6,\)"),
        "a column": (X[:, None], rf"{name} must have the shape \(8,\).*has \(8, 1\).*flatten"),
        "one": (X[0], rf"{name} must have the shape \(8,\).*has \(\)"),
        "integers": ((9 * X).long(), f"{name} must have a floating-point type"),
        "truth values": (X > 0.5, f"{name} must have a floating-point type"),
        "a list": (X.tolist(), f"{name} must be a torch tensor, and is a builtins.list"),
        "a number": (0.5, f"{name} must be a torch tensor, and is a builtins.float"),
        "elsewhere": (X.to("meta"), f"{name} is on meta and directions are on cpu"),
        **{
            str(value): (put(X, value), rule)
            for value in (math.nan, math.inf, -math.inf, *limits.get(name, [-0.1]))
        },
    }


@pytest.mark.parametrize("name", WITH_NUMBERS)
def test_every_loss_refuses_bad_numbers_by_name(name: str) -> None:
    number, loss = LOSSES[name]
    for bad, words in bad_numbers(number).values():
        refused(words, lambda bad=bad: loss(MU, bad))


@pytest.mark.parametrize("name", LOSSES)
def test_where_values_are_not_read_the_loss_is_nan(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, which is not waited for. Good values give the same number, bit for bit."""
    number, loss = LOSSES[name]
    expected = loss(MU, X)
    monkeypatch.setattr(inputs, "_readable", lambda flag: False)
    assert torch.equal(loss(MU, X), expected)
    for bad in (put(MU, math.nan), put(MU, math.inf), 3 * MU):
        if number != "kappas" or name == "elk":  # sampling waits for the device, and refuses
            assert loss(bad, X).isnan()
    for value in (math.nan, math.inf, -0.1, 1.5):
        if number == "radii":
            assert loss(MU, put(X, value)).isnan()


def test_in_compiled_code_the_loss_is_nan_and_the_graph_is_whole() -> None:
    compiled = torch.compile(losses.sure, backend="eager", fullgraph=True)
    assert compiled(MU, X).item() == pytest.approx(losses.sure(MU, X).item(), rel=1e-6)
    assert compiled(MU, put(X, -0.1)).isnan()
    with pytest.raises(UserError, match="radii"):
        losses.sure(MU, put(X, -0.1))


def test_a_batch_of_vmap_is_not_read() -> None:
    both = torch.func.vmap(losses.nt_xent)(torch.stack((MU, 3 * MU)))
    assert both[0].item() == pytest.approx(losses.nt_xent(MU).item(), rel=1e-6)
    assert both[1].isnan()


def test_a_radius_that_its_type_rounds_to_1_needs_its_gap() -> None:
    """bfloat16 rounds 0.999 to 1; with the gap, the loss is that of float64."""
    rho, gap = torch.full((8,), 0.999), torch.full((8,), 1e-3)
    refused(
        "radii must lie in .* pass a wider type or gaps", lambda: losses.sure(MU, rho.bfloat16())
    )
    exact = losses.sure(MU.double(), rho.double(), gaps=gap.double())
    assert losses.sure(MU, rho.bfloat16(), gaps=gap).item() == pytest.approx(exact.item(), rel=1e-2)
    for bad in (put(gap, 0.0), put(gap, -1e-3), put(gap, math.nan), put(gap, 1.1)):
        refused("radii must lie in .* gaps", lambda bad=bad: losses.sure(MU, rho, gaps=bad))
    refused("gaps must have the shape", lambda: losses.sure(MU, rho, gaps=gap[:3]))


# Plain numbers


NO_NUMBERS = [math.nan, math.inf, -math.inf, -1, 0, 1e300, "0.2", True, None, [0.2]]


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1e-300, np.array([0.2, 0.3])])
def test_temperatures(value: Any) -> None:
    for loss in (losses.nt_xent, tiles.nt_xent, references.dcl, references.loss_prediction):
        arguments = (MU, X) if loss is references.loss_prediction else (MU,)
        refused("^temperature must be", lambda a=arguments, f=loss: f(*a, temperature=value))
    for name, kind in OBJECTIVES.items():
        if value is not None and "temperature" in kind.__init__.__code__.co_varnames:
            refused("^temperature must be", lambda n=name: objective(n, temperature=value))


def test_a_temperature_that_learns_is_refused_only_in_tiles() -> None:
    tau = torch.tensor(0.2, requires_grad=True)
    losses.nt_xent(MU, tau).backward()
    assert tau.grad is not None and tau.grad.isfinite() and tau.grad != 0
    refused("temperature gets no gradient", lambda: tiles.nt_xent(MU, tau))
    assert tiles.nt_xent(MU, np.float32(0.2)).item() == pytest.approx(
        losses.nt_xent(MU, 0.2).item(), rel=1e-5
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 1e300, "1", True])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        *(("sure", option) for option in ("weight", "dimension", "empirical_prior", "momentum")),
        *(("mc-infonce", "samples"), ("poisson-nce", "dimension"), ("loss-prediction", "weight")),
    ],
)
def test_options_of_losses(name: str, option: str, value: Any) -> None:
    refused(f"^{option} must", lambda: objective(name, **{option: value}))
    functions: dict[str, Loss] = {
        "weight": losses.sure, "dimension": losses.sure, "empirical_prior": losses.sure,
    }  # fmt: skip
    if option in functions:
        refused(f"^{option} must", lambda: functions[option](MU, X, **{option: value}))


@pytest.mark.parametrize("samples", [0, 0.5, 2.7, 10**30, math.nan, "x", True])
def test_samples_are_whole_and_not_too_many(samples: Any) -> None:
    refused("samples must be a whole number", lambda: objective("mc-infonce", samples=samples))
    refused(
        "samples must be a whole number",
        lambda: references.mc_infonce(MU, X, 0.2, samples, generator()),
    )


# Modules


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_modules_name_what_the_user_passed(name: str) -> None:
    """Raw outputs are called projections and k; inf became a radius of NaN, 1e30 one of 1/2."""
    loss, g = objective(name), generator()
    z, k = torch.randn(8, 3, generator=g), torch.randn(8, generator=g)
    for bad in (math.nan, math.inf):
        refused("^projections must be finite", lambda bad=bad: loss(put(z, bad), k, generator=g))
        if loss.uses_certainty:
            refused("^k must be finite", lambda bad=bad: loss(z, put(k, bad), generator=g))
    with torch.no_grad():
        posterior = loss.read(z, k)
    if posterior.radius is not None:
        wrong = Posterior(posterior.direction, posterior.radius, posterior.gap, parameter=k)
        bad_posterior = Posterior(put(posterior.direction, math.nan), wrong.radius, wrong.gap,
                                  parameter=posterior.parameter)  # fmt: skip
        refused("directions must be rows of length 1", lambda: loss(bad_posterior, generator=g))


def test_a_huge_k_is_the_surest_and_not_half_sure() -> None:
    """The square of 1e30 overflows: k / sqrt(1 + k^2 / K^2) was 0."""
    loss = objective("sure")
    huge = torch.tensor([1e4, 1e18, 1e20, 1e30, 3e38])
    radii = loss.read(torch.ones(5, 2), huge).radius
    below = loss.read(torch.ones(5, 2), -huge).radius
    assert radii is not None and below is not None
    assert torch.allclose(radii, radii[:1].expand(5), atol=1e-6) and radii[0] > 0.998
    assert torch.allclose(below, 1 - radii, atol=1e-6)


def test_a_loss_of_a_user_gets_what_it_got_before() -> None:
    """No rule about radii, lengths or numbers of rows is forced on a loss that is not ours."""
    seen: list[Posterior] = []

    class Mine(Objective):
        def read(self, projections: Tensor, k: Tensor | None = None) -> Posterior:
            return Posterior(projections, 5 * self.number(projections, k))  # neither unit nor < 1

        def forward(self, posterior: Posterior, generator: Any = None) -> Tensor:
            seen.append(posterior)
            return posterior.direction.sum()

    z, k = 7 * torch.ones(3, 2), torch.ones(3)  # three rows: no pairs
    assert Mine()(z, k).item() == 42
    assert torch.equal(seen[0].direction, z) and seen[0].radius is not None
    assert torch.equal(seen[0].radius, 5 * k)


def test_training_that_diverges_at_once_is_called_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A loss that refuses NaN does not hide that training cannot begin."""

    def heads(self: SimCLR, features: Tensor) -> tuple[Tensor, Tensor]:
        return features.mean() * math.nan * torch.ones(len(features), 8), features[:, 0]

    monkeypatch.setattr(SimCLR, "heads", heads)
    with pytest.raises(UserError, match="the loss is nan before the first step"):
        tiny.train(tmp_path / "run", monitor_every=0, snapshot_every=0)


# The sphere


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.0, 1.5])
def test_the_sphere_refuses_radii_outside_its_range(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = Posterior(MU, put(X, value)), Posterior(MU, X)
    calls: dict[str, Callable[[Posterior], Tensor]] = {
        "evidence": lambda p: sphere.evidence(p, good),
        "evidence of the other": lambda p: sphere.evidence(good, p),
        "evidence_matrix": lambda p: sphere.evidence_matrix(p, good),
        "log_density": lambda p: sphere.log_density(p, MU),
        "information": lambda p: sphere.information(p.radius, 4),
        "sample": lambda p: sample(p, generator()),
    }
    for call in calls.values():
        assert call(good).isfinite().all()
        refused(r"radii must lie in \[0, 1\)", lambda call=call: call(bad))
    monkeypatch.setattr(inputs, "_readable", lambda flag: False)
    for name, call in calls.items():
        if name != "sample":
            assert call(bad).isnan().any(), name


def test_a_posterior_has_one_number_for_each_direction() -> None:
    for name in ("radius", "gap", "certainty", "parameter"):
        for bad in (X[:3], X[:, None], X[0]):
            refused(f"{name} must have the shape", lambda n=name, b=bad: Posterior(MU, **{n: b}))
        refused(f"{name} must be a torch", lambda n=name: Posterior(MU, **{n: 0.5}))  # type: ignore[arg-type]
    refused("direction must have a floating", lambda: Posterior(MU.long(), X))
    refused("at least 2 coordinates", lambda: Posterior(torch.tensor(1.0)))


# Tables


TABLE, CLASS = torch.randn(10, 3, generator=generator()), torch.arange(10) % 2
NO_TABLES = {
    "nothing": TABLE[:0],
    "NaN": put(TABLE, math.nan),
    "infinity": put(TABLE, math.inf),
    "a vector": TABLE[:, 0],
    "a map": TABLE[:, :, None],
    "no column": TABLE[:, :0],
    "numpy": TABLE.numpy(),
}


@pytest.mark.parametrize("name", NO_TABLES)
def test_tables_without_an_answer_are_refused(name: str) -> None:
    bad: Any = NO_TABLES[name]
    some = CLASS[: len(bad)]
    calls: dict[str, Callable[[], object]] = {
        "top_k": lambda: neighbours.top_k(TABLE, bad, 1),
        "top_k leaving out": lambda: neighbours.top_k(bad, bad, 1, exclude_self=True),
        "knn": lambda: knn_accuracy(bad, some, TABLE, CLASS, 1),
        "knn of": lambda: knn_accuracy(TABLE, CLASS, bad, some, 1),
        "probe": lambda: linear_probe(bad, some, TABLE, CLASS),
        "probe of": lambda: linear_probe(TABLE, CLASS, bad, some),
        "standardisation": lambda: logistic.standardisation(bad),
        "regression": lambda: logistic.logistic_regression(bad, some, [0.1]),
        "alignment": lambda: metrics.alignment(bad, bad),
        "uniformity": lambda: metrics.uniformity(bad),
        "effective_rank": lambda: metrics.effective_rank(bad),
        "cka": lambda: cka(bad, bad),
        "instance_match": lambda: metrics.instance_match(bad, bad),
        "nearest": lambda: metrics.nearest_has_class(bad, some),
    }
    for call in calls.values():
        refused(".", call)


SCORE, RIGHT = torch.rand(10, generator=generator()), CLASS.bool()


@pytest.mark.parametrize(
    ("score", "right"),
    [
        (SCORE[:0], RIGHT[:0]),
        (put(SCORE, math.nan), RIGHT),
        (put(SCORE, math.inf), RIGHT),
        (SCORE[:5], RIGHT),
        (SCORE, RIGHT[:5]),
        (SCORE[:, None], RIGHT),
        (SCORE, put(RIGHT.float(), math.nan)),
        (SCORE.tolist(), RIGHT),
    ],
    ids=["nothing", "NaN", "infinity", "few scores", "few", "a column", "NaN is right", "a list"],
)
def test_scores_without_an_answer_are_refused(score: Any, right: Tensor) -> None:
    for function in (metrics.auroc, metrics.risk_coverage, metrics.aurc, metrics.spearman):
        refused(".", lambda f=function: f(score, right.float()))
    for function in (metrics.calibration_by_bins, metrics.monotone_map):
        refused(".", lambda f=function: f(score, right.float()))


REFUSED: dict[str, tuple[str, Callable[[], object]]] = {
    "truth 2": (r"positive must lie in \[0, 1\]", lambda: metrics.auroc(SCORE, 2 * CLASS)),
    "correct -1": (r"correct must lie in", lambda: metrics.aurc(SCORE, CLASS - 1)),
    "no bins": ("bins must be a whole", lambda: metrics.calibration_by_bins(SCORE, SCORE, 0)),
    "bins": ("bins must be a whole", lambda: metrics.calibration_by_bins(SCORE, SCORE, 2.5)),
    "binning": ("binning must be count or width",
                lambda: metrics.calibration_by_bins(SCORE, SCORE, binning="x")),
    "no distribution": ("sum to 1", lambda: metrics.ece(torch.full((10, 3), 0.5), CLASS)),
    "logits": (r"probabilities must lie in", lambda: metrics.ece(TABLE, CLASS)),
    "target": ("target must be classes in 0..2",
               lambda: metrics.ece(TABLE.softmax(1), CLASS + 7)),
    "few targets": ("as many of each", lambda: metrics.ece(TABLE.softmax(1), CLASS[:3])),
    "class": ("predicted must be classes", lambda: metrics.count_classes(CLASS, CLASS + 5, 2)),
    "class of a float": ("whole numbers", lambda: metrics.count_classes(CLASS, CLASS + 0.5, 3)),
    "few classes": ("as many of each", lambda: metrics.count_classes(CLASS, CLASS[:3], 2)),
    "z": ("z must be", lambda: metrics.wilson_interval(3, 3, math.nan)),
    "trials": ("a rate needs", lambda: metrics.wilson_interval(1, math.inf)),
    "long directions": ("rows of length 1", lambda: metrics.uniformity(5 * TABLE)),
    "labels": ("labels must have one", lambda: metrics.nearest_has_class(TABLE, CLASS[:3])),
    "two widths": ("as many columns", lambda: neighbours.top_k(TABLE, TABLE[:, :2], 1)),
    "vote at 0": ("temperature must",
                  lambda: neighbours.vote(TABLE, CLASS[:, None].expand(10, 3), 2, 0.0)),
    "vote at NaN": ("temperature must",
                    lambda: neighbours.vote(TABLE, CLASS[:, None].expand(10, 3), 2, math.nan)),
    "vote of NaN": ("similarity must be finite",
                    lambda: neighbours.vote(put(TABLE, math.nan), CLASS[:, None].expand(10, 3), 2)),
    "vote of class 5": ("classes in 0..1",
                        lambda: neighbours.vote(TABLE, CLASS[:, None].expand(10, 3) + 5, 2)),
    "votes": ("a label for each neighbour",
              lambda: neighbours.vote(TABLE, CLASS[:, None].expand(10, 2), 2)),
    "knn at NaN": ("temperature must be a finite number",
                   lambda: knn_accuracy(TABLE, CLASS, TABLE, CLASS, 3, math.nan)),
    "knn of floats": ("whole numbers as labels",
                      lambda: knn_accuracy(TABLE, CLASS.float(), TABLE, CLASS, 3)),
    "probe of floats": ("whole numbers as labels",
                        lambda: linear_probe(TABLE, CLASS.float(), TABLE, CLASS)),
    "probe of two widths": ("as wide in training",
                            lambda: linear_probe(TABLE, CLASS, TABLE[:, :2], CLASS)),
    "raw features": ("x must be standardised",
                     lambda: logistic.logistic_regression(1e30 * TABLE, CLASS, [0.1])),
    "one class": ("two classes or more",
                  lambda: logistic.logistic_regression(TABLE, 0 * CLASS, [0.1])),
    "a class is missing": ("target must be classes in 0..1",
                           lambda: logistic.logistic_regression(TABLE, 3 * CLASS, [0.1])),
    "cover NaN": ("near must be finite",
                  lambda: coverage.greedy_cover(put(TABLE.abs(), math.nan), torch.zeros(3), 2)),
    "cover too many": ("budget must be 0 to 10",
                       lambda: coverage.greedy_cover(TABLE.abs(), torch.zeros(3), 11)),
    "cover what": ("covered must be 3 finite",
                   lambda: coverage.greedy_cover(TABLE.abs(), torch.zeros(4), 2)),
    "three images": ("CKA compares two tables", lambda: cka(TABLE[:3], TABLE[:3])),
    "other images": ("CKA compares two tables", lambda: cka(TABLE, TABLE[:5])),
    "one image": ("2 views of each of 2 images",
                  lambda: losses.log_mean_exp_evidence(Posterior(MU[:2], X[:2]), 4)),
    "cosines of NaN": ("directions must be",
                       lambda: losses.mean_squared_cosine(put(MU, math.nan))),
    "cosines of numpy": ("directions must be a torch",
                         lambda: losses.measured_dimension(MU.numpy())),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_more_that_has_no_answer(case: str) -> None:
    refused(*REFUSED[case])


@pytest.mark.parametrize("k", [0, -1, 11, 1.5, True, math.nan, "x", 10**30])
def test_numbers_of_neighbours(k: Any) -> None:
    refused("k = ", lambda: neighbours.top_k(TABLE, TABLE, k))
    refused("k is ", lambda: knn_accuracy(TABLE, CLASS, TABLE, CLASS, k))


@pytest.mark.parametrize(
    ("option", "value"),
    [("strengths", [value]) for value in (math.nan, math.inf, 0, -1, "x", 1e300)]
    + [("strengths", []), ("strengths", "x")]
    + [("validation", value) for value in (math.nan, 0, 1, 1.5, -1)]
    + [("tolerance", value) for value in (math.nan, 0, -1, math.inf)]
    + [("max_iterations", value) for value in (0, -1, 1.5, math.nan)]
    + [("seed", value) for value in (-1, 2**70, 1.5, math.nan)],
)
def test_options_of_the_linear_probe(option: str, value: Any) -> None:
    words = "strengths" if option == "strengths" else f"^{option} must"
    refused(words, lambda: linear_probe(TABLE, CLASS, TABLE, CLASS, **{option: value}))


def test_a_module_of_torch_sees_no_difference() -> None:
    """The checks neither change a gradient nor detach it."""
    layer = nn.Linear(3, 4)
    z = layer(torch.randn(8, 3, generator=generator()))
    mu = sphere.unit_rows(z)
    plain = (torch.logsumexp((mu @ mu.T / 0.2).fill_diagonal_(-math.inf), 1)).mean() - (
        (mu * mu.roll(4, 0)).sum(1) / 0.2
    ).mean()
    ours = torch.autograd.grad(tiles.nt_xent(mu), layer.weight, retain_graph=True)[0]
    assert torch.allclose(ours, torch.autograd.grad(plain, layer.weight)[0], atol=1e-5)
