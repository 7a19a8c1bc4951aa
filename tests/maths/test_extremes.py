"""Numbers at the ends of their ranges: radii of 0 and near 1, half precision, rows of 1e30.

Witness: the same formula in mpmath's numbers of 60 digits, or in float64 of rescaled rows.
"""

import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import generator
from torch import Tensor

from sureclr.config import LARGEST_AMOUNT, ViewConfig
from sureclr.data.views import two_views
from sureclr.evaluation.neighbour_vote import knn_accuracy
from sureclr.evaluation.probes import linear_probe
from sureclr.maths import losses, metrics, neighbours, sphere, tiles
from sureclr.maths.logistic import standardisation
from sureclr.maths.objectives import OBJECTIVES, objective
from sureclr.maths.sampling import sample
from sureclr.maths.sphere import Posterior, unit_rows

mpmath.mp.dps = 60
GAPS = [1.0, 1 - 1e-30, 0.5, 1e-3, 1e-7]  # of a radius of 0, of 1e-30, ..., of 1 - 1e-7
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def unit(n: int, d: int = 3, seed: int = 0) -> Tensor:
    return unit_rows(torch.randn(n, d, generator=generator(seed), dtype=torch.float64))


def exact_evidence(mu: Tensor, gaps: list[float], m: float) -> list[list[mpmath.mpf]]:
    """s_ij of theory 1 and 2 by its first formula, with 60 digits."""
    rows = [[mpmath.mpf(x) for x in row] for row in mu.tolist()]
    rows = [[x / mpmath.sqrt(sum(y * y for y in row)) for x in row] for row in rows]
    rho = [1 - mpmath.mpf(gap) for gap in gaps]

    def s(i: int, j: int) -> mpmath.mpf:
        r = rho[i] * rho[j]
        c = sum(x * y for x, y in zip(rows[i], rows[j], strict=True))
        return mpmath.log(1 - r * r) - mpmath.mpf(m) / 2 * mpmath.log(1 - 2 * r * c + r * r)

    return [[s(i, j) for j in range(len(rows))] for i in range(len(rows))]


def exact_likelihood(mu: Tensor, gaps: list[float], m: float) -> float:
    s, n = exact_evidence(mu, gaps, m), len(gaps) // 2
    return -float(sum(s[i][i + n] for i in range(n)) / n)


@settings(max_examples=12, deadline=None)
@given(
    gaps=st.lists(st.sampled_from(GAPS), min_size=6, max_size=6),
    seed=st.integers(0, 5),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_plain_and_tiled_are_the_formula_at_any_radius(
    gaps: list[float], seed: int, dtype: torch.dtype
) -> None:
    """Radii of exactly 0 and of 1 - 1e-7 among others: value and gradients are finite and equal."""
    mu, gap = unit(6, seed=seed), torch.tensor(gaps, dtype=torch.float64)
    expected = exact_likelihood(mu, gaps, 3)
    results = []
    for loss in (losses.sure, tiles.sure):
        x, radii, given_gaps = (
            tensor.to(dtype, copy=True).requires_grad_() for tensor in (mu, 1 - gap, gap)
        )
        value = loss(x, radii, weight=1.0, gaps=given_gaps, softening="off")
        gradients = torch.autograd.grad(value, (x, radii, given_gaps))
        assert all(g.isfinite().all() for g in gradients)
        likelihood = value - losses.nt_xent(x.detach())
        tolerance = 1e-9 if dtype == torch.float64 else 2e-4
        assert likelihood.item() == pytest.approx(expected, rel=tolerance, abs=tolerance)
        results.append((value, *gradients))
    for plain, tiled in zip(*results, strict=True):
        torch.testing.assert_close(tiled, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("softening", ["anchors", "means", "off"])
def test_every_softening_and_prior_is_finite_at_any_radius(gap: float, softening: str) -> None:
    for dtype in (torch.float64, torch.float32):
        for loss in (losses.sure, tiles.sure):
            mu = unit(8).to(dtype).requires_grad_()
            gaps = torch.full((8,), gap, dtype=torch.float64).to(dtype)
            radii = (1 - gaps).requires_grad_()
            value = loss(mu, radii, gaps=gaps, softening=softening, empirical_prior=0.5)
            assert value.isfinite()
            assert all(g.isfinite().all() for g in torch.autograd.grad(value, (mu, radii)))


@pytest.mark.parametrize("gap", GAPS)
def test_evidence_density_and_samples_at_any_radius(gap: float) -> None:
    mu = unit(6)
    expected = exact_evidence(mu, [gap] * 6, 3)
    gaps = torch.full((6,), gap, dtype=torch.float64)
    posterior = Posterior(mu, 1 - gaps, gaps)
    ours = sphere.evidence_matrix(posterior, posterior)
    for i in range(6):
        for j in range(6):
            if i != j:
                assert ours[i, j].item() == pytest.approx(
                    float(expected[i][j]), rel=1e-9, abs=1e-12
                )
    first, second = (Posterior(mu[i], (1 - gaps)[i], gaps[i]) for i in (slice(0, 3), slice(3, 6)))
    by_row = [float(expected[i][i + 3]) for i in range(3)]
    assert sphere.evidence(first, second).tolist() == pytest.approx(by_row, rel=1e-9, abs=1e-12)
    drawn = sample(posterior, generator())
    assert torch.allclose(drawn.norm(dim=1), torch.ones(6, dtype=torch.float64), atol=1e-9)
    assert sphere.log_density(posterior, mu.roll(1, 0)).isfinite().all()


@pytest.mark.parametrize("d", [2, 3, 8, 128])
@pytest.mark.parametrize("gap", [1.0, 0.5, 1e-3, 1e-6])
def test_information_is_its_series_at_any_radius(gap: float, d: int) -> None:
    """The series of theory 6 with 60 digits: I = -nu log(1 - x) + d/2 sum x^k / (k + nu).

    The sum is x / (nu + 1) 2F1(1, nu + 1; nu + 2; x).
    """
    rho, nu = 1 - mpmath.mpf(gap), mpmath.mpf(d) / 2 - 1
    x = rho * rho
    s = x / (nu + 1) * mpmath.hyp2f1(1, nu + 1, nu + 2, x)
    exact = float(-nu * mpmath.log(1 - x) + mpmath.mpf(d) / 2 * s)
    gaps = torch.tensor([gap], dtype=torch.float64)
    radius = (1 - gaps).requires_grad_()
    value = sphere.information(radius, d, gaps)
    assert value.item() == pytest.approx(exact, rel=1e-11, abs=1e-11)
    (slope,) = torch.autograd.grad(sphere.information(radius, d).sum(), radius)
    assert slope.isfinite().all()


# Half precision and lengths


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_loss_in_every_type_with_a_row_of_zeros(name: str, dtype: torch.dtype) -> None:
    g = generator()
    z = torch.randn(8, 4, generator=g).to(dtype)
    z[2] = 0
    z, k = z.requires_grad_(), torch.randn(8, generator=g).to(dtype).requires_grad_()
    loss = objective(name)(z, k, generator=generator())
    exact = objective(name)(z.detach().double(), k.detach().double(), generator=generator())
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if name != "mc-infonce":  # another type draws other numbers
        assert loss.item() == pytest.approx(exact.item(), rel=1e-4, abs=1e-4)
    loss.backward()
    assert z.grad is not None and z.grad.isfinite().all() and z.grad.dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        (torch.float64, [1e300, 1e-300, 1e154, 1e-154]),
        (torch.float32, [1e30, 1e-30, 1e19, 1e-20]),
        (torch.bfloat16, [1e30, 1e-30]),
        (torch.float16, [2e4, 1e-4]),
    ],
)
def test_directions_of_rows_of_any_size(dtype: torch.dtype, scales: list[float]) -> None:
    """Witness: float64 of the same rows, divided by their largest number first."""
    for scale in scales:
        x = (unit(20, 5) * scale).to(dtype)
        wide = x.double() / x.double().abs().amax(1, keepdim=True)
        expected = wide / wide.square().sum(1, keepdim=True).sqrt()
        eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        assert (unit_rows(x).double() - expected).abs().max() < 4 * eps


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_tables_of_any_size_have_the_same_answers(scale: float) -> None:
    """Neighbours, kNN, linear probe, rank: a probe on columns of 1e30 answered at chance."""
    x = torch.randn(80, 4, generator=generator())
    y = (x[:, 0] + 0.1 * torch.randn(80, generator=generator(1)) > 0).long()
    train, test = slice(0, 60), slice(60, 80)

    def answers(x: Tensor) -> list[object]:
        probe = linear_probe(x[train], y[train], x[test], y[test])
        return [
            neighbours.top_k(x[test], x[train], 3)[1].tolist(),
            knn_accuracy(x[train], y[train], x[test], y[test], 5).accuracy,
            probe.predictions.tolist(),
            pytest.approx(metrics.effective_rank(x), rel=1e-6),
        ]

    assert answers(x * scale) == answers(x)
    mean, deviation = standardisation(x * scale)
    exact = (x.double() * scale).std(0, correction=0)
    torch.testing.assert_close(deviation.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(mean.double(), (x.double() * scale).mean(0), rtol=1e-4, atol=0)


def test_the_rank_of_numbers_whose_squares_do_not_fit() -> None:
    x = torch.randn(30, 4, generator=generator(), dtype=torch.float64)
    for scale in (1e300, 1e-300):
        assert metrics.effective_rank(x * scale) == pytest.approx(metrics.effective_rank(x))


def test_a_constant_column_counts_as_none_whatever_its_size() -> None:
    x = torch.ones(10, 3) * torch.tensor([1e30, 1e-30, 0.0])
    mean, deviation = standardisation(x)
    torch.testing.assert_close(mean, x[0])
    assert deviation.tolist() == [1, 1, 1]


# Temperatures and views at the ends of their ranges


@pytest.mark.parametrize("temperature", [1e-9, 1e-3, 1e9])
def test_the_coldest_and_the_hottest_temperature(temperature: float) -> None:
    """Witness: log-sum-exp in mpmath's numbers, from the float64 cosines."""
    mu = unit(6)
    cosine = (mu @ mu.T).tolist()
    total = mpmath.mpf(0)
    for i in range(6):
        logits = {j: mpmath.mpf(cosine[i][j]) / mpmath.mpf(temperature) for j in range(6) if j != i}
        largest = max(logits.values())
        total += mpmath.log(sum(mpmath.exp(x - largest) for x in logits.values())) + largest
        total -= logits[(i + 3) % 6]
    for loss in (losses.nt_xent, tiles.nt_xent):
        x = mu.clone().requires_grad_()
        value = loss(x, temperature)
        assert value.item() == pytest.approx(float(total / 6), rel=1e-6)
        assert torch.autograd.grad(value, x)[0].isfinite().all()


VIEWS = {
    "tiny crops": dict(crop_area=(1e-300, 1e-300)),
    "wide crops": dict(crop_aspect=(1e300, 1e300)),
    "tall crops": dict(crop_aspect=(1e-300, 1e-300)),
    "any crops": dict(crop_aspect=(1e-300, 1e300)),
    "sharp": dict(blur_sigma=(1e-300, 1e-300), blur_kernel=1.0),
    "blurred": dict(blur_sigma=(1e300, 1e300), blur_kernel=1.0),
    "bright": dict(brightness=LARGEST_AMOUNT, contrast=LARGEST_AMOUNT, saturation=LARGEST_AMOUNT),
    "strong": dict(strength=LARGEST_AMOUNT, hue=0.0),
    "hue": dict(hue=0.5),
}


@pytest.mark.parametrize("case", VIEWS)
@pytest.mark.parametrize("pixels", ["noise", "black", "white"])
def test_views_at_the_ends_of_their_ranges_are_images(case: str, pixels: str) -> None:
    shape = (8, 3, 12, 16)
    images = {
        "noise": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator()),
        "black": torch.zeros(shape, dtype=torch.uint8),
        "white": torch.full(shape, 255, dtype=torch.uint8),
    }[pixels]
    config = ViewConfig(**{"jitter_p": 1.0, "blur_p": 1.0, "grey_p": 0.0, **VIEWS[case]})
    views = two_views(images, torch.arange(8), config, 12)
    assert views.isfinite().all() and views.min() >= 0 and views.max() <= 1 + 1e-5


def test_scores_at_the_ends_equal_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    right = np.arange(8) % 2
    for score in ([1e300, -1e300, 1e-300, 0, 0, -1e-300, 5e-324, 1], [3.0] * 8):
        ours = metrics.auroc(torch.tensor(score, dtype=torch.float64), torch.from_numpy(right))
        assert ours == pytest.approx(roc_auc_score(right, score))


@pytest.mark.parametrize("case", ["constant", "black", "each constant", "two identical"])
def test_images_without_differences_train_to_finite_numbers(case: str, tmp_path: Path) -> None:
    """The deviation of their pixels is 0; the loss, the weights and the table stay finite."""
    noise = torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8, generator=generator())
    images = {
        "constant": torch.full((16, 1, 8, 8), 128, dtype=torch.uint8),
        "black": torch.zeros(16, 1, 8, 8, dtype=torch.uint8),
        "each constant": (torch.arange(16, dtype=torch.uint8) * 16)
        .view(16, 1, 1, 1)
        .repeat(1, 1, 8, 8),
        "two identical": noise.repeat(2, 1, 1, 1),
    }[case]
    out = tmp_path / "run"
    run = tiny.train(out, images, epochs=1, batch_size=min(16, len(images)))
    numbers = [x for line in tiny.lines(out) for x in line.values() if isinstance(x, float)]
    assert numbers and all(map(math.isfinite, numbers))
    assert all(tensor.isfinite().all() for tensor in tiny.weights(out).values())
    table = run.embed(images)
    assert table.features.isfinite().all() and table.direction.isfinite().all()
