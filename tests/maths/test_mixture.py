"""The presence in losses, samples and information, against loops, quadrature and limits.

The laws of the mixture are in tests/test_theory.py, section 9.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sureclr.errors import UserError
from sureclr.maths import losses, tiles
from sureclr.maths.objectives import SureLoss
from sureclr.maths.sampling import sample, uniform_directions
from sureclr.maths.sphere import Posterior, evidence_matrix, expected_cosine, information


def f64(x: object) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views(n: int, d: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return directions (n, d), radii (n,) and presences (n,) in float64."""
    numbers = torch.rand(2, n, generator=seeded(seed), dtype=torch.float64)
    mu = uniform_directions(n, d, seeded(seed), f64(0))
    return mu, 0.1 + 0.8 * numbers[0], 0.05 + 0.9 * numbers[1]


def ratio(mu: Tensor, rho: Tensor, pi: Tensor, i: int, j: int) -> float:
    """Return 1 + pi pi' (P_r(c) - 1) of rows i and j by the formula."""
    d, r, c = mu.shape[1], float(rho[i] * rho[j]), float(mu[i] @ mu[j])
    kernel = (1 - r * r) / (1 - 2 * r * c + r * r) ** (d / 2)
    return 1 + float(pi[i] * pi[j]) * (kernel - 1)


def test_the_likelihood_is_its_loop() -> None:
    mu, rho, pi = views(10)
    by_loop = -np.mean([math.log(ratio(mu, rho, pi, i, (i + 5) % 10)) for i in range(10)])
    assert losses.radius_likelihood(mu, rho, presences=pi).item() == pytest.approx(by_loop)


def test_the_base_rate_is_its_loop() -> None:
    mu, rho, pi = views(10)
    means = [
        np.mean([ratio(mu, rho, pi, i, j) for j in range(10) if j % 5 != i % 5]) for i in range(10)
    ]
    found = losses.log_base_rate(mu, rho, presences=pi).item()
    assert found == pytest.approx(np.log(means).mean())


@pytest.mark.parametrize("pairs_at_once", [1, 30, 1 << 20])
def test_null_views_are_their_loop(monkeypatch: pytest.MonkeyPatch, pairs_at_once: int) -> None:
    monkeypatch.setattr(losses, "NULL_PAIRS", pairs_at_once)
    mu, rho, pi = views(15)
    by_loop = -np.mean(
        [math.log(ratio(mu, rho, pi, i, j)) for i in range(10, 15) for j in range(10)]
    )
    seen, nothing = (
        Posterior(mu[at], rho[at], presence=pi[at]) for at in (slice(10), slice(10, 15))
    )
    assert losses.null_likelihood(seen, nothing).item() == pytest.approx(by_loop)


class Largest(TorchDispatchMode):
    """The most numbers in one tensor that an operator returned."""

    numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_the_memory_of_null_views_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "NULL_PAIRS", 256)
    mu, rho, pi = views(96, 3)
    own = rho[64:].clone().requires_grad_()
    with Largest() as largest:
        nulls = Posterior(mu[64:], own, presence=pi[64:])
        losses.null_likelihood(Posterior(mu[:64], rho[:64], presence=pi[:64]), nulls).backward()
    assert largest.numbers <= 512 < 32 * 64  # the matrix of pairs
    assert own.grad is not None and (own.grad != 0).all()


def test_null_views_train_their_own_numbers_alone() -> None:
    mu, rho, pi = (x.requires_grad_() for x in views(6))
    other, radius, presence = (x.requires_grad_() for x in views(4, seed=1))
    seen, nothing = Posterior(mu, rho, presence=pi), Posterior(other, radius, presence=presence)
    inputs = (mu, rho, pi, other, radius, presence)
    grads = torch.autograd.grad(losses.null_likelihood(seen, nothing), inputs, allow_unused=True)
    assert [g is not None and bool((g != 0).all()) for g in grads] == [False] * 4 + [True] * 2
    assert torch.autograd.gradcheck(
        lambda r, p: losses.null_likelihood(seen, Posterior(other, r, presence=p)),
        (radius, presence),
    )


def test_gradients_of_the_likelihood_by_finite_differences() -> None:
    mu, rho, pi = (x.requires_grad_() for x in views(6))

    def loss(r: Tensor, p: Tensor) -> Tensor:
        value: Tensor = losses.certainty_loss(mu, r, empirical_prior=0.5, presences=p)
        return value

    assert torch.autograd.gradcheck(loss, (rho, pi))
    assert torch.autograd.grad(loss(rho, pi), mu, allow_unused=True)[0] is None


@pytest.mark.parametrize("softening", ["anchors", "means", "off"])
def test_sure_in_tiles_is_the_plain_one_with_presences(softening: losses.Softening) -> None:
    found = []
    for function in (losses.sure, tiles.sure):
        inputs = [x.requires_grad_() for x in views(12)]
        value = function(*inputs[:2], presences=inputs[2], softening=softening)
        found.append((value, *torch.autograd.grad(value, inputs)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("softening", ["anchors", "means"])
def test_softening_goes_by_the_mean_resultant_length(softening: losses.Softening) -> None:
    mu, rho, pi = views(12)
    what = losses.sure(mu, rho, weight=0, presences=pi, softening=softening)
    assert what.item() == losses.sure(mu, pi * rho, weight=0, softening=softening).item()


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_presences_at_an_end_are_finite_in_value_and_gradient(end: float) -> None:
    mu, rho, pi = views(8)
    pi[::3] = end
    rho[0] = 0
    rho, pi = rho.requires_grad_(), pi.requires_grad_()
    nulls = Posterior(mu[4:], rho[4:], presence=pi[4:])
    value = losses.sure(mu, rho, presences=pi, empirical_prior=0.5) + losses.null_likelihood(
        Posterior(mu, rho, presence=pi), nulls
    )
    assert all(x.isfinite().all() for x in (value, *torch.autograd.grad(value, (rho, pi))))


def test_float32_at_the_extremes_is_within_1e_3_nats() -> None:
    """rho = pi = .999 at d = 128, for close, far and opposite pairs."""
    mu = uniform_directions(6, 128, seeded(), f64(0))
    mu = torch.cat((mu, mu + 1e-3 * mu.roll(1, 0), -mu))
    mu = mu / mu.norm(dim=1, keepdim=True)
    exact, rounded = (
        evidence_matrix(
            *2 * (Posterior(mu.to(t), *(x.to(t) for x in own[:2]), presence=own[2].to(t)),)
        )
        for t in (torch.float64, torch.float32)
        for own in [(f64(0.999).expand(18), f64(1e-3).expand(18), f64(0.999).expand(18))]
    )
    torch.testing.assert_close(rounded.double(), exact, rtol=0, atol=1e-3)
    assert exact.min() == pytest.approx(math.log(1 - 0.999**2), abs=1e-9)  # the bound is reached


def test_half_precision_is_raised_and_autocast_is_off() -> None:
    mu, rho, pi = (x.float() for x in views(8))
    half = [x.bfloat16() for x in (mu, rho, pi)]
    nulls = Posterior(*half[:2], presence=half[2])
    expected = losses.sure(*(x.float() for x in half[:2]), presences=half[2].float())
    with torch.autocast("cpu", torch.bfloat16):
        found = losses.sure(*half[:2], presences=half[2])
        value = losses.null_likelihood(nulls, nulls)
    assert found.dtype == value.dtype == torch.float32 and value.isfinite()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("presences", "message"),
    [
        (f64([1.5] * 8), r"presences must lie in \[0, 1\]"),
        (f64([-0.1] * 8), r"presences must lie in \[0, 1\]"),
        (f64([math.nan] * 8), "presences"),
        (f64([0.5] * 4), "presences must have the shape"),
    ],
)
def test_presences_that_do_not_fit_are_refused(presences: Tensor, message: str) -> None:
    mu, rho, _ = views(8)
    with pytest.raises(UserError, match=message) as refused:
        losses.sure(mu, rho, presences=presences)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3), (3, 2)])
def test_numbers_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"k|one number for each row"):
        SureLoss(presence="on").read(torch.ones(4, 3), torch.zeros(shape))


# Information and samples


def information_on_a_grid(gap: float, pi: float, d: int) -> float:
    """E_q[log q] by the trapezoidal rule in v = 2 artanh(c), from theory 1 and 9."""
    delta, n = 2 * math.log((2 - gap) / gap), 60_001 if d < 500 else 240_001
    v = np.linspace(-80 if d < 50 else -15, delta + (80 if d < 50 else 10), n)
    uniform = (d - 1) * (v / 2 - np.logaddexp(0, v)) - special.betaln((d - 1) / 2, 0.5)
    uniform += (d - 2) * math.log(2)
    log_p = d / 2 * (np.logaddexp(0, v) - np.logaddexp(0, v - delta))
    log_p -= delta / 2 + (d - 2) * math.log(2 - gap)
    log_q = np.logaddexp(math.log1p(-pi), math.log(pi) + log_p)
    return float((np.exp(uniform + log_q) * log_q).sum() * (v[1] - v[0]))


@pytest.mark.parametrize("d", [2, 3, 10, 128, 512, 4096])
def test_information_of_a_mixture_is_its_integral(d: int) -> None:
    cases = [(gap, pi) for gap in (0.9, 0.1, 1e-3, 1e-6) for pi in (1e-6, 0.3, 0.999)]
    gaps, pi = f64(cases).unbind(1)
    found = information(1 - gaps, d, gaps, pi).tolist()
    expected = [information_on_a_grid(*case, d) for case in cases]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_information_at_the_ends_and_its_gradient() -> None:
    rho, ends = f64([0.3, 0.6, 0.3, 0.6]), f64([0, 0, 1, 1])
    found = information(rho, 7, presence=ends)
    assert found.tolist() == [0, 0, *information(rho[:2], 7).tolist()]
    inputs = f64([0.2, 0.9]).requires_grad_(), f64([0.4, 0.8]).requires_grad_()
    assert torch.autograd.gradcheck(lambda r, p: information(r, 7, presence=p), inputs)
    with pytest.raises(UserError, match="presence"):
        information(rho, 7, presence=f64([2.0, 0, 0, 0]))
    with pytest.raises(UserError, match="presence must have the shape"):
        information(rho, 7, presence=ends[:2])


@pytest.mark.parametrize("d", [2, 10])
def test_samples_of_a_mixture(d: int) -> None:
    n, rho, pi = 40_000, 0.8, 0.6
    mu = uniform_directions(1, d, seeded(), f64(0)).expand(n, d)
    posterior = Posterior(mu, f64(rho).expand(n), presence=f64(pi).expand(n))
    z = sample(posterior, seeded(1))
    c = (z * mu).sum(1)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(n, dtype=torch.float64))
    second = pi * (rho**2 * (d - 1) / d + 1 / d) + (1 - pi) / d  # of c, from theory 1.4
    for value, expected in ((c, pi * rho), (c.square(), second)):
        assert abs(value.mean() - expected) < 4.5 * value.std() / math.sqrt(n)
    nothing = Posterior(mu[:500], f64(0.999).expand(500), presence=f64(0.0).expand(500))
    assert (sample(nothing, seeded()) * mu[:500]).sum(1).mean().abs() < 0.2


# --- What reaches the loss, and what is predicted ---------------------------------------


def test_the_expected_cosine_is_the_mean_cosine_of_samples() -> None:
    """Two views of one latent: mu' comes from the mixture of both about mu (theory 9)."""
    n, mu = 40_000, f64([1.0, 0, 0, 0])
    a = Posterior(mu, f64(0.9), presence=f64(0.8))
    b = Posterior(mu, f64(0.7), presence=f64(0.5))
    both = Posterior(mu.expand(n, 4), f64(0.63).expand(n), presence=f64(0.4).expand(n))
    cosine = (sample(both, seeded()) @ mu).mean()
    assert float(expected_cosine(a, b)) == pytest.approx(0.8 * 0.5 * 0.9 * 0.7)
    assert float(cosine) == pytest.approx(float(expected_cosine(a, b)), abs=0.01)
    assert float(expected_cosine(a, Posterior(mu, f64(0.7)))) == pytest.approx(0.8 * 0.63)


def test_the_empirical_prior_knows_of_presences() -> None:
    mu, rho, pi = views(6)
    found = losses.certainty_loss(mu, rho, 4.0, empirical_prior=0.5, presences=pi)
    likelihood = losses.radius_likelihood(mu, rho, 4.0, presences=pi)
    base = losses.log_base_rate(mu, rho, 4.0, presences=pi)
    assert float(found) == pytest.approx(float(likelihood + 0.5 * base))
    assert float(base) != pytest.approx(float(losses.log_base_rate(mu, rho, 4.0)))


def test_training_starts_with_a_presence_of_seven_eighths() -> None:
    loss, k = SureLoss(presence="on"), torch.zeros(6, 2)
    found = loss.read(torch.eye(6), k)
    assert found.presence is not None and found.radius is not None
    assert found.presence.tolist() == pytest.approx([0.87] * 6, abs=0.01)
    assert found.radius.tolist() == pytest.approx([0.5] * 6)
    k[:, 1] = torch.tensor([-100.0, -2, -1, 0, 1, 100])
    presence = loss.read(torch.eye(6), k).presence
    assert presence is not None and bool((presence.diff() > 0).all())
    assert 0.001 < float(presence[0]) < 0.002 and 0.998 < float(presence[-1]) < 0.9991


@pytest.mark.parametrize("weight", [0.25, 2.0])
def test_a_null_view_counts_beside_an_image(weight: float) -> None:
    mu, rho, pi = views(13)
    both = Posterior(mu, rho, presence=pi)
    seen, nulls = both.part(slice(10)), both.part(slice(10, 13))
    loss = SureLoss(presence="on", weight=3.0, null_weight=weight, dimension=4.0)
    likelihood = losses.null_likelihood(seen, nulls, 4.0)
    assert float(loss.null_loss(seen, nulls)) == pytest.approx(
        3 * weight * 3 / 5 * float(likelihood)  # three null views beside five images
    )
