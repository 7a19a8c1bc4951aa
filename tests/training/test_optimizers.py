"""The learning rate's law, and each optimizer against its formula written out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sureclr.errors import UserError
from sureclr.training.optimizers import (
    learning_rate,
    new_optimizer,
    parameter_groups,
    set_learning_rate,
)


@given(steps=st.integers(2, 500), share=st.floats(0, 0.5), peak=st.floats(1e-6, 10))
def test_linear_up_then_half_a_cosine_down(steps: int, share: float, peak: float) -> None:
    warmup = int(share * steps)
    rates = [learning_rate(step, steps, warmup, peak) for step in range(steps + 1)]
    assert max(rates) == pytest.approx(peak) and min(rates) >= 0
    for step in range(warmup):
        assert rates[step] == pytest.approx(
            peak * (step + 1) / warmup
        )  # never zero: the first step learns
    assert rates[warmup] == pytest.approx(peak) and rates[steps] == pytest.approx(
        0, abs=1e-9 * peak
    )
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    for step in range(
        warmup, steps + 1
    ):  # the cosine is odd about its middle: rates at mirrored places add up to the peak
        assert rates[step] + rates[steps + warmup - step] == pytest.approx(peak)


def test_a_quarter_of_the_way_down() -> None:
    assert learning_rate(25, 100, 0, 1.0) == pytest.approx((1 + math.sqrt(0.5)) / 2)


def network() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 36, 4))
    return made.double()


def test_matrices_decay_and_biases_and_norms_do_not() -> None:
    made = network()
    made[0].weight.requires_grad_(False)
    decayed, plain = parameter_groups(made, 0.3)
    assert [p.shape for p in decayed["params"]] == [made[3].weight.shape] and decayed[
        "weight_decay"
    ] == 0.3
    assert {id(p) for p in plain["params"]} == {
        id(p) for p in (made[0].bias, made[1].weight, made[1].bias, made[3].bias)
    }
    assert plain["weight_decay"] == 0


def take(
    name: str, steps: int = 3, rate: float = 0.1, decay: float = 0.01, **options: bool
) -> tuple[list, list, list]:
    """Weights before, gradients of each step, weights after each step; parameters in the model's
    order. The options are those of the optimizer's groups.
    """
    made = network()
    stepper = new_optimizer(name, made, rate, decay)
    for group in stepper.param_groups:
        assert all(group[option] is None for option in options)  # on a CPU they are loops
        group.update(options)
    before, gradients, after = [p.detach().clone() for p in made.parameters()], [], []
    for step in range(steps):
        stepper.zero_grad()
        images = torch.randn(
            5, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step)
        )
        made(images).square().mean().backward()
        gradients.append([p.grad.clone() for p in made.parameters()])
        stepper.step()
        after.append([p.detach().clone() for p in made.parameters()])
    return before, gradients, after


def test_lars_by_hand() -> None:
    """You et al. 2017: momentum of g + wd w, matrices times 0.001 |w| / (|g| + wd |w|); biases,
    norms plain SGD.
    """
    before, gradients, after = take("lars")
    for place, weight in enumerate(before):
        w, momentum = weight.clone(), torch.zeros_like(weight)
        for step, of_step in enumerate(gradients):
            g = of_step[place]
            if w.ndim > 1:
                g = (g + 0.01 * w) * (0.001 * w.norm() / (g.norm() + 0.01 * w.norm()))
            momentum = 0.9 * momentum + g
            w = w - 0.1 * momentum
            assert torch.allclose(after[step][place], w, rtol=1e-6, atol=1e-9), (place, step)


def test_lars_leaves_biases_and_norms_unscaled() -> None:
    """The first step moves them by exactly the learning rate times the gradient, and matrices by
    0.001 |w| times the rate.
    """
    before, gradients, after = take("lars", steps=1, decay=0.0)
    for weight, gradient, moved in zip(before, gradients[0], after[0], strict=True):
        if weight.ndim == 1:
            assert torch.allclose(weight - moved, 0.1 * gradient)
        else:
            assert float((weight - moved).norm()) == pytest.approx(
                0.1 * 0.001 * float(weight.norm()), rel=1e-6
            )


def test_sgd_by_hand() -> None:
    """Sutskever et al. 2013 as torch writes it: b = 0.9 b + g, w -= lr (g + 0.9 b)."""
    before, gradients, after = take("sgd")
    for place, weight in enumerate(before):
        w, momentum = weight.clone(), None
        for step, of_step in enumerate(gradients):
            g = of_step[place] + (0.01 * w if w.ndim > 1 else 0)
            momentum = g if momentum is None else 0.9 * momentum + g
            w = w - 0.1 * (g + 0.9 * momentum)
            assert torch.allclose(after[step][place], w)


def test_adam_by_hand() -> None:
    before, gradients, after = take("adam")
    for place, weight in enumerate(before):
        w, first, second = weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)
        for step, of_step in enumerate(gradients):
            g = of_step[place] + (0.01 * w if w.ndim > 1 else 0)
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g.square()
            w = w - 0.1 * (first / (1 - 0.9 ** (step + 1))) / (
                (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            )
            assert torch.allclose(after[step][place], w)


@pytest.mark.parametrize(
    ("name", "option"), [("lars", "foreach"), ("adam", "fused"), ("sgd", "fused")]
)
def test_the_kernels_of_a_gpu_do_what_the_loops_do(name: str, option: str) -> None:
    _, _, loops = take(name)
    _, _, kernels = take(name, **{option: True})
    for expected, found in zip(loops, kernels, strict=True):
        for weight, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, weight, rtol=1e-7, atol=1e-12)


def test_the_rate_is_set_in_every_group() -> None:
    stepper = new_optimizer("adam", network(), 0.1, 0.01)
    set_learning_rate(stepper, 0.025)
    assert [group["lr"] for group in stepper.param_groups] == [0.025, 0.025]


def test_unknown_optimizer() -> None:
    with pytest.raises(UserError, match="unknown optimizer 'adamw': did you mean adam"):
        new_optimizer("adamw", network(), 0.1, 0.0)
