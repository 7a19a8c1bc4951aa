"""The losses against their papers' algorithms as loops, quadrature, laws and limits, in float64."""

import math
from collections.abc import Callable
from itertools import pairwise, product
from typing import get_args

import numpy as np
import pytest
import torch
from loss_cases import TAU, all_losses, generator, loops, views
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths import losses, references
from sureclr.maths.sampling import sample, uniform_directions
from sureclr.maths.sphere import Posterior


def test_nt_xent_is_algorithm_1_of_simclr() -> None:
    """Chen et al. 2020, Algorithm 1, as written: views interleaved as z_{2k-1}, z_{2k}, l(i, j),
    the mean over both orders.
    """
    n = 5
    directions, _ = views(n)
    z = {2 * k + 1: directions[k] for k in range(n)} | {
        2 * k + 2: directions[k + n] for k in range(n)
    }

    def s(i: int, j: int) -> float:
        return float(z[i] @ z[j] / (z[i].norm() * z[j].norm()))

    def cost(i: int, j: int) -> float:
        return -math.log(
            math.exp(s(i, j) / TAU)
            / sum(math.exp(s(i, k) / TAU) for k in range(1, 2 * n + 1) if k != i)
        )

    expected = sum(cost(2 * k - 1, 2 * k) + cost(2 * k, 2 * k - 1) for k in range(1, n + 1)) / (
        2 * n
    )
    assert losses.nt_xent(directions, TAU).item() == pytest.approx(expected, abs=1e-12)
    assert losses.per_view_nt_xent(directions, TAU)[2].item() == pytest.approx(
        cost(5, 6), abs=1e-12
    )  # view 1 of image 3


def test_sure_is_nt_xent_and_the_log_likelihood() -> None:
    mu, rho = views()
    m, n, likelihood = 3.5, 5, 0.0
    for i in range(2 * n):
        p = (i + n) % (2 * n)
        r, c = float(rho[i] * rho[p]), float(mu[i] @ mu[p])
        likelihood += math.log((1 - r**2) / (1 - 2 * r * c + r**2) ** (m / 2)) / (2 * n)
    value = losses.sure(mu, rho, TAU, weight=0.7, dimension=m, softening="off")
    assert value.item() == pytest.approx(
        losses.nt_xent(mu, TAU).item() - 0.7 * likelihood, abs=1e-12
    )


def test_the_defaults_of_sure() -> None:
    """Temperature 0.2, lambda 28 / d, the kernel of all d coordinates, anchors, no prior."""
    mu, rho = views()
    plain = losses.sure(mu, rho, 0.2, 28 / 4, 4, 1 - rho, 0.0, "anchors")
    assert losses.sure(mu, rho).item() == plain.item()
    assert losses.sure(mu, rho, dimension=7).item() == pytest.approx(
        losses.sure(mu, rho, 0.2, 28 / 7, 7).item(), abs=1e-12
    )


@pytest.mark.parametrize("zeros", [1, 3, 10])
@pytest.mark.parametrize("softening", get_args(losses.Softening))
def test_radii_of_zero_are_finite_in_value_and_gradient(
    softening: losses.Softening, zeros: int
) -> None:
    """Also where all ten are 0: all views are equally sure, which is NT-Xent."""
    mu, rho = (x.requires_grad_() for x in views())
    rho = torch.where(torch.arange(10) < zeros, 0, rho)
    value = losses.sure(mu, rho, TAU, softening=softening)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, (mu, rho)))
    if zeros == 10:
        assert value.item() == pytest.approx(losses.nt_xent(mu, TAU).item(), abs=1e-12)


@pytest.mark.parametrize("softening", ["anchors", "means"])
def test_a_radius_that_is_not_a_number_is_not_hidden(softening: losses.Softening) -> None:
    mu, rho = views()
    rho[0] = math.nan
    with pytest.raises(UserError, match="radii must lie in"):
        losses.sure(mu, rho, TAU, weight=0, softening=softening)


def test_the_likelihood_leaves_the_directions_alone() -> None:
    """Theory 7: no gradient of L_sure at the direction output; that of sure is NT-Xent's, bit for
    bit.
    """
    gradients = []
    for loss in (
        lambda mu, rho: losses.nt_xent(mu, TAU),
        lambda mu, rho: losses.sure(mu, rho, TAU, weight=100.0, softening="off"),
        lambda mu, rho: losses.sure(
            mu, rho, TAU, weight=100.0, empirical_prior=0.5, softening="off"
        ),
    ):
        mu, rho = (x.requires_grad_() for x in views())
        loss(mu, rho).backward()
        gradients.append(mu.grad)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])
    assert rho.grad.abs().min() > 0
    assert not losses.radius_likelihood(mu, rho.detach()).requires_grad


def test_softened_logits_by_loops() -> None:
    """Theory 4's temperature at the product with the mean radius, scaled to a mean of 1/tau; and
    u_i.u_j / (tau rho^2), rho the mean
    radius: 0.9 is less than twice the mean, so no view is held back.
    """
    mu, rho = views()
    mean = float(rho.mean())
    q = [float(r) * mean / (1 + (float(r) * mean) ** 2) for r in rho]
    expected = loops(lambda i, j: float(mu[i] @ mu[j]) / TAU * q[i] / np.mean(q), 5)
    assert losses.sure(mu, rho, TAU, weight=0, softening="anchors").item() == pytest.approx(
        expected, abs=1e-12
    )
    u = rho[:, None] * mu
    expected = loops(lambda i, j: float(u[i] @ u[j]) / (TAU * mean**2), 5)
    assert losses.sure(mu, rho, TAU, weight=0, softening="means").item() == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("softening", get_args(losses.Softening))
def test_with_equal_radii_softening_changes_nothing(softening: losses.Softening) -> None:
    mu, rho = views()
    value = losses.sure(mu, torch.full_like(rho, 0.37), TAU, weight=0, softening=softening)
    assert value.item() == pytest.approx(losses.nt_xent(mu, TAU).item(), abs=1e-12)


def test_no_posterior_mean_counts_more_than_twice_the_average() -> None:
    mu, _ = views()
    rho = torch.full((10,), 0.05, dtype=torch.float64)
    rho[3] = 0.9  # 6.7 times the mean of 0.135
    rows = losses.posterior_means(mu, rho) * losses.SUREST
    torch.testing.assert_close(
        rows.norm(dim=1),
        torch.tensor([2.0 if i == 3 else 0.05 / 0.135 for i in range(10)], dtype=torch.float64),
    )
    torch.testing.assert_close(torch.nn.functional.normalize(rows, dim=1), mu)


@pytest.mark.parametrize("softening", ["anchors", "means"])
def test_the_softened_contrast_leaves_the_radii_alone(softening: losses.Softening) -> None:
    """... and the likelihood the directions: each term trains its own."""
    mu, rho = (x.requires_grad_() for x in views())
    of_mu, of_rho = torch.autograd.grad(
        losses.sure(mu, rho, TAU, weight=0, softening=softening), (mu, rho)
    )
    assert of_rho.abs().max() == 0
    both = torch.autograd.grad(
        losses.sure(mu, rho, TAU, weight=100.0, softening=softening), (mu, rho)
    )
    assert torch.equal(both[0], of_mu) and both[1].abs().min() > 0
    assert torch.autograd.gradcheck(
        lambda mu: losses.sure(mu, rho.detach(), TAU, weight=0, softening=softening), (mu,)
    )


@pytest.mark.parametrize("group", [5, 3])  # of images: all five, then three and two
def test_the_base_rate_is_its_loop(group: int) -> None:
    mu, rho = views()
    m, n, mean = 3.5, 5, 0.0
    for i in range(2 * n):
        others = [j for j in range(2 * n) if j % n != i % n and (j % n < group) == (i % n < group)]
        density = 0.0
        for j in others:
            r, c = float(rho[i] * rho[j]), float(mu[i] @ mu[j])
            density += (1 - r**2) / (1 - 2 * r * c + r**2) ** (m / 2) / len(others)
        mean += math.log(density) / (2 * n)
    rate = losses.log_base_rate(mu, rho, m, group=group)
    assert rate.item() == pytest.approx(mean, abs=1e-12)


def test_the_certainty_loss_is_the_likelihood_and_the_base_rate() -> None:
    mu, rho = views()
    own, rate = losses.radius_likelihood(mu, rho, 3.5), losses.log_base_rate(mu, rho, 3.5)
    assert losses.certainty_loss(mu, rho, 3.5, empirical_prior=0.3).item() == pytest.approx(
        (own + 0.3 * rate).item(), abs=1e-12
    )
    assert losses.certainty_loss(mu, rho, 3.5).item() == own.item()


def test_the_base_rate_of_a_large_batch_is_the_mean_over_its_groups() -> None:
    """129 images: 65 and 64, each against its own; the gradient with respect to the radii too."""
    mu, rho = views(129)
    rho.requires_grad_()
    whole = losses.log_base_rate(mu, rho, 3.5)
    rows = [torch.cat((half, half + 129)) for half in torch.arange(129).tensor_split([65])]
    apart = sum(len(r) / 258 * losses.log_base_rate(mu[r], rho[r], 3.5) for r in rows)
    assert whole.item() == pytest.approx(apart.item(), abs=1e-12)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, rho)[0] for value in (whole, apart)), rtol=1e-10, atol=1e-14
    )


def test_the_base_rate_is_zero_where_directions_are_uniform() -> None:
    """P integrates to 1; a log-mean over 254 others is low by about var / (2 * 254), 0.001 here.
    Crowded directions are not.
    """
    mu = uniform_directions(1280, 4, generator(), torch.zeros((), dtype=torch.float64))
    radii = 0.3 + 0.3 * torch.rand(1280, generator=generator(1), dtype=torch.float64)
    assert abs(losses.log_base_rate(mu, radii).item()) < 0.01
    crowded = torch.nn.functional.normalize(mu + torch.tensor([1.0, 0, 0, 0]), dim=-1)
    assert losses.log_base_rate(crowded, radii).item() > 0.1


@pytest.mark.parametrize("m", [1.5, 4.0, 128.0])
def test_the_gradient_of_the_likelihood_is_the_formula_and_bounded(m: float) -> None:
    """Theory 5: d/dr log P = m (c - r)/(1 - 2 r c + r^2) - 2 r/(1 - r^2), and |d log P / d logit
    rho| < m.
    """
    g = generator(1)
    rho = torch.sigmoid(7 * torch.randn(4000, generator=g, dtype=torch.float64)).requires_grad_()
    turn = (
        torch.rand(2000, generator=g, dtype=torch.float64).pow(4) * math.pi
    )  # many pairs close together, where it is steep
    mu = torch.stack((torch.cat((turn, 0 * turn)).cos(), torch.cat((turn, 0 * turn)).sin()), -1)
    losses.radius_likelihood(mu, rho, m).backward()
    slope = -2000 * rho.grad  # d log P of the pair / d rho_i
    partner, r, c = rho.detach().roll(2000), (rho * rho.roll(2000)).detach(), turn.cos().repeat(2)
    formula = partner * (m * (c - r) / (1 - 2 * r * c + r**2) - 2 * r / (1 - r**2))
    torch.testing.assert_close(slope, formula, rtol=1e-6, atol=1e-8)
    by_logit = (slope * rho * (1 - rho)).abs().max().item()
    assert by_logit < m
    if m > 2:
        assert by_logit > 0.4 * m  # the bound is not idle


def test_the_likelihood_recovers_single_radii() -> None:
    """Strictly proper (theory 3): the radii of three kinds of views come back from pairs of the
    model, and not at a wrong m.
    """
    truth, d, n = torch.tensor([0.35, 0.6, 0.9], dtype=torch.float64), 8, 30_000
    kind = torch.randint(3, (2 * n,), generator=generator(2))
    z = uniform_directions(n, d, generator(3), truth)
    mu = sample(Posterior(torch.cat((z, z)), truth[kind]), generator(4))

    def best(m: float) -> Tensor:
        k = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([k], max_iter=50, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = losses.radius_likelihood(mu, torch.sigmoid(k)[kind], m)
            loss.backward()
            return loss

        optimizer.step(closure)
        return torch.sigmoid(k.detach())

    assert (best(d) - truth).abs().max() < 0.01  # sampling error about 0.003
    assert (best(2 * d) - truth).abs().max() > 0.03


def test_equal_radii_and_growing_d_converge_to_nt_xent() -> None:
    """Theory 4: 1/tau = d r / (1 + r^2), error O(1/d): doubling d halves it."""
    mu, _ = views(n=16, d=8)
    errors = []
    for d in (256, 512, 1024, 2048):
        r = (1 - math.sqrt(1 - 4 / (TAU * d) ** 2)) * TAU * d / 2
        radii = torch.full((32,), math.sqrt(r), dtype=torch.float64)
        errors.append((references.poisson_nce(mu, radii, d) - losses.nt_xent(mu, TAU)).abs().item())
    ratios = [a / b for a, b in pairwise(errors)]
    assert all(1.9 < ratio < 2.1 for ratio in ratios), errors
    assert errors[-1] < 1 / (TAU**2 * 2048)


@pytest.mark.parametrize("loss", [references.poisson_nce, references.gaussian_nce, references.elk])
def test_views_that_know_nothing_cannot_name_the_partner(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    mu, rho = views()
    assert loss(mu, 0 * rho).item() == pytest.approx(math.log(9), abs=1e-9)


@pytest.mark.parametrize(
    "name", sorted(all_losses().keys() - {"sure_softened"})
)  # which stops one gradient for each input
def test_gradients(name: str) -> None:
    """Against finite differences; where a loss stops a gradient, only the number's."""
    mu, x = views(n=3, d=3)
    loss = all_losses()[name]
    stops = name in ("sure", "sure_with_prior", "loss_prediction", "cosine_regression")
    inputs = (mu.requires_grad_(not stops), x.requires_grad_(name not in ("nt_xent", "dcl")))
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("name", all_losses())
def test_no_order_of_images_or_views_matters(name: str) -> None:
    mu, x = views()
    order = torch.randperm(5, generator=generator())
    swapped = torch.cat((order + 5, order))
    loss = all_losses()[name]
    assert loss(mu[swapped], x[swapped]).item() == pytest.approx(loss(mu, x).item(), abs=1e-12)
    wrong = torch.cat((order, torch.arange(5, 10)))  # ... but who is whose partner does
    assert abs(loss(mu[wrong], x[wrong]).item() - loss(mu, x).item()) > 1e-3


@pytest.mark.parametrize("name", [*all_losses(), "mc_infonce"])
def test_half_precision_is_raised_to_float32(name: str) -> None:
    """bfloat16 inputs, with and without autocast, give float32 and exactly the loss of the same
    numbers in float32.
    """
    mu, x = (v.bfloat16() for v in views(n=6, d=16))
    loss = (
        all_losses()
        | {"mc_infonce": lambda mu, x: references.mc_infonce(mu, 8 * x, TAU, 4, generator())}
    )[name]
    plain = loss(mu.float(), x.float())
    assert plain.dtype == loss(mu, x).dtype == torch.float32
    assert loss(mu, x).item() == pytest.approx(plain.item(), abs=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(mu.float(), x.float()).item() == pytest.approx(plain.item(), abs=1e-6)


@pytest.mark.parametrize("certainty", [6.9, 12.0])
def test_float32_is_exact_for_sure_views(certainty: float) -> None:
    """Theory 5: at rho = 0.999 and d = 128 the naive form is 0.24 nats wrong; this one, given the
    gaps, stays under 1e-3.
    """
    g = generator(5)
    k = certainty + 0.1 * torch.rand(64, generator=g, dtype=torch.float64)
    mu = uniform_directions(32, 128, g, k)
    mu = torch.nn.functional.normalize(
        torch.cat((mu, mu + math.exp(-certainty) * uniform_directions(32, 128, g, k))), dim=-1
    )
    k32, mu32 = k.float(), mu.float()
    exact = losses.radius_likelihood(
        mu32.double(), torch.sigmoid(k32.double()), 128, torch.sigmoid(-k32.double())
    )
    value = losses.radius_likelihood(mu32, torch.sigmoid(k32), 128, torch.sigmoid(-k32))
    assert value.item() == pytest.approx(exact.item(), abs=1e-3)


@pytest.mark.parametrize("same", [1.0, -1.0])
@pytest.mark.parametrize("name", all_losses())
def test_nothing_overflows(name: str, same: float) -> None:
    """Identical views, opposite views, temperature 1e-3, radii at 1 - 1e-3: finite loss and
    gradient in float32.
    """
    mu = torch.nn.functional.normalize(torch.randn(8, 16, generator=generator()), dim=-1)
    mu = torch.cat((mu, same * mu)).requires_grad_()
    x = torch.full((16,), 0.999, requires_grad=True)
    loss = losses.nt_xent(mu, 1e-3) if name == "nt_xent" else all_losses()[name](mu, x)
    loss.backward()
    assert loss.isfinite() and mu.grad.isfinite().all()
    assert x.grad is None or x.grad.isfinite().all()


@pytest.mark.parametrize("views_of_each", [1, 2, 5])
def test_mean_squared_cosine_is_its_loop(views_of_each: int) -> None:
    mu, n = views()[0], 10 // views_of_each
    squares = [
        float(mu[i] @ mu[j]) ** 2 for i, j in product(range(10), range(10)) if i % n != j % n
    ]
    value = losses.mean_squared_cosine(mu, views_of_each).item()
    assert value == pytest.approx(np.mean(squares), abs=1e-12)
    assert losses.measured_dimension(mu, views_of_each).item() == pytest.approx(
        min(4, 1 / np.mean(squares)), abs=1e-12
    )


def test_two_views_of_each_image_are_the_default() -> None:
    mu, _ = views()
    assert losses.mean_squared_cosine(mu) == losses.mean_squared_cosine(mu, 2)
    assert losses.measured_dimension(mu) == losses.measured_dimension(mu, 2)


def test_orthogonal_directions_use_as_many_dimensions_as_there_are() -> None:
    """E[c^2] is 0 there and its inverse unbounded."""
    assert losses.measured_dimension(torch.eye(6), views=1) == 6
    assert losses.measured_dimension(torch.eye(6, 9), views=2) == 9


@pytest.mark.parametrize(("rows", "views_of_each"), [(1, 1), (2, 2), (7, 2), (0, 1)])
def test_the_mean_over_different_images_needs_two(rows: int, views_of_each: int) -> None:
    with pytest.raises(UserError, match=f"{views_of_each} views .* not {rows} rows; add images"):
        losses.measured_dimension(torch.ones(rows, 3), views_of_each)


@pytest.mark.parametrize(("rows", "views_of_each"), [(2, 1), (4, 2)])
def test_two_images_are_enough(rows: int, views_of_each: int) -> None:
    one = torch.eye(3)[:1].expand(rows, 3)
    assert losses.mean_squared_cosine(one, views_of_each) == 1


@pytest.mark.parametrize("d", [3, 16, 64])
def test_uniform_directions_use_all_dimensions(d: int) -> None:
    """E[c^2] = 1/d (theory 1); the spread of the estimate is about sqrt(2) / (n d)."""
    mu = uniform_directions(4000, d, generator(), torch.zeros((), dtype=torch.float64))
    assert 1 / losses.mean_squared_cosine(mu).item() == pytest.approx(d, rel=0.01)


# log E[exp s]


def test_log_mean_exp_evidence_is_its_loop() -> None:
    mu, rho = views()
    ratio = [
        (1 - r**2) / (1 - 2 * r * float(mu[i] @ mu[j]) + r**2) ** 2
        for i, j in product(range(10), range(10))
        if i % 5 != j % 5 and (r := float(rho[i] * rho[j]))
    ]
    assert losses.log_mean_exp_evidence(Posterior(mu, rho), 4)[0] == pytest.approx(
        math.log(np.mean(ratio)), abs=1e-12
    )


def test_log_mean_exp_evidence_is_zero_where_the_model_is_true() -> None:
    """Theory 5, in 40 worlds: unbiased in E, and the standard error is the observed spread.
    Clusters are seen.
    """
    ratios, errors = [], []
    for seed in range(40):
        mu = uniform_directions(300, 4, generator(seed), torch.zeros((), dtype=torch.float64))
        radii = 0.3 + 0.3 * torch.rand(300, generator=generator(seed), dtype=torch.float64)
        value, error = losses.log_mean_exp_evidence(Posterior(mu, radii), 4, views=1)
        ratios.append(math.exp(value))
        errors.append(error)
    assert abs(np.mean(ratios) - 1) < 4 * np.std(ratios) / math.sqrt(40)
    assert 0.4 < np.std(ratios) / np.mean(errors) < 1.6
    clustered = torch.nn.functional.normalize(mu + torch.tensor([1.0, 0, 0, 0]), dim=-1)
    value, error = losses.log_mean_exp_evidence(Posterior(clustered, radii), 4, views=1)
    assert value > 5 * error


@pytest.mark.parametrize("views_of_each", [1, 2])
def test_the_standard_error_is_that_of_the_jackknife(views_of_each: int) -> None:
    """Witness: the estimate without each image in turn."""
    n = 80
    mu = uniform_directions(views_of_each * n, 4, generator(), torch.zeros((), dtype=torch.float64))
    radii = 0.3 + 0.3 * torch.rand(len(mu), generator=generator(1), dtype=torch.float64)
    _, error = losses.log_mean_exp_evidence(Posterior(mu, radii), 4, views_of_each)
    image = torch.arange(len(mu)) % n
    without = [
        losses.log_mean_exp_evidence(
            Posterior(mu[image != i], radii[image != i]), 4, views_of_each
        )[0]
        for i in range(n)
    ]
    assert error == pytest.approx(np.std(without) * math.sqrt(n - 1), rel=0.05)


def test_log_mean_exp_evidence_needs_a_radius() -> None:
    with pytest.raises(UserError, match="radius"):
        losses.log_mean_exp_evidence(Posterior(views()[0]), 4)


# Bad input


@pytest.mark.parametrize("rows", [0, 2, 7])
@pytest.mark.parametrize("name", all_losses())
def test_rows_that_are_no_pairs(name: str, rows: int) -> None:
    with pytest.raises(UserError, match=f"two views .* not {rows}; add images"):
        all_losses()[name](torch.ones(rows, 2), torch.ones(rows))


@pytest.mark.parametrize("temperature", [0.0, -0.5, math.inf, math.nan])
@pytest.mark.parametrize("name", ["nt_xent", "dcl", "sure", "elk", "mc_infonce"])
def test_temperatures_out_of_range(name: str, temperature: float) -> None:
    mu, x = views()
    loss = {
        "nt_xent": lambda: losses.nt_xent(mu, temperature),
        "dcl": lambda: references.dcl(mu, temperature),
        "sure": lambda: losses.sure(mu, x, temperature),
        "elk": lambda: references.elk(mu, x, temperature),
        "mc_infonce": lambda: references.mc_infonce(mu, x, temperature, 1, generator()),
    }[name]
    with pytest.raises(UserError, match="temperature must be a finite number above 0"):
        loss()


@pytest.mark.parametrize("dimension", [1, 1.0, 0.5, -3, math.inf, math.nan])
@pytest.mark.parametrize("name", ["sure", "poisson_nce", "gaussian_nce"])
def test_dimensions_out_of_range(name: str, dimension: float) -> None:
    mu, x = views()
    loss = getattr(losses, name, None) or getattr(references, name)
    with pytest.raises(UserError, match="dimension must be a finite number above 1"):
        loss(mu, x, dimension=dimension)


@pytest.mark.parametrize(("value", "accepted"), [(0, True), (2.5, True), (-1e-9, False)])
def test_weights_are_0_or_more(value: float, accepted: bool) -> None:
    if accepted:
        assert losses.not_negative("weight", value) == value
    else:
        with pytest.raises(UserError, match="weight must be a finite number, 0 or more"):
            losses.not_negative("weight", value)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_weights_are_finite(value: float) -> None:
    with pytest.raises(UserError, match="weight must be a finite number"):
        losses.not_negative("weight", value)


def test_two_pairs_are_enough() -> None:
    first, second = losses.pairs(torch.arange(4))
    assert first.tolist() == [0, 1] and second.tolist() == [2, 3]


def test_the_sampler_of_this_file_has_the_semigroup() -> None:
    """Two views drawn about one latent have E[mu.mu'] = rho rho' (theory 2): the worlds above are
    the model's.
    """
    z = uniform_directions(20_000, 8, generator(1), torch.zeros((), dtype=torch.float64))
    mu, other = (
        sample(Posterior(z, torch.full_like(z[:, 0], radius)), generator(seed))
        for seed, radius in ((2, 0.6), (3, 0.9))
    )
    assert (mu * other).sum(-1).mean().item() == pytest.approx(0.54, abs=0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"softening": "x"}, "softening must be one of"),
        ({"softening": None}, "softening must be one of"),
        ({"weight": -1.0}, "weight must be"),
        ({"empirical_prior": 2.0}, "empirical_prior|beta"),
    ],
)
def test_sure_refuses_what_its_module_refuses(options: dict, words: str) -> None:
    mu = torch.nn.functional.normalize(torch.randn(8, 4, generator=torch.manual_seed(0)), dim=1)
    with pytest.raises(UserError, match=words):
        losses.sure(mu, torch.full((8,), 0.5), **options)
