"""The learning rate's law, and each optimizer against its formula written out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sureclr.errors import UserError
from sureclr.maths.objectives import SureLoss
from sureclr.models.encoders import encoder
from sureclr.models.simclr import CertaintyHead, ProjectionHead, SimCLR, StandardisedEncoder
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


def with_heads(name: str) -> SimCLR:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = encoder(name)
        one, features = torch.ones(3), backbone.num_features
        return SimCLR(
            StandardisedEncoder(backbone, 0 * one, one),
            ProjectionHead(features, 4, 8, 2),
            CertaintyHead(features),
            SureLoss().read,
        )


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext"])
def test_the_scales_of_the_layers_are_those_of_timm(name: str) -> None:
    """timm counts its classifier as the last layer, as we count the heads; ConvNeXt's last norm is
    a part of it there, and a part of the encoder here.
    """
    import timm
    from timm.models import group_parameters

    decay = 0.7
    other = timm.create_model(name, num_classes=2)
    layers = group_parameters(other, other.group_matcher(coarse=True), reverse=True)
    last = max(layers.values())
    model = with_heads(name)
    scales = {
        parameter: group["scale"]
        for group in parameter_groups(model, 0.1, decay)
        for parameter in group["params"]
    }
    assert scales.keys() == set(model.parameters())
    named = dict(model.encoder.backbone.named_parameters())
    assert set(named) <= set(layers) and last >= 5
    for key, parameter in named.items():
        layers["head.norm.weight"] = layers["head.norm.bias"] = last - 1
        assert scales[parameter] == pytest.approx(decay ** (last - layers[key])), key
    heads = [*model.projection.parameters(), *model.certainty.parameters()]
    assert {scales[parameter] for parameter in heads} == {1.0}


def test_layers_keep_matrices_and_other_parameters_apart() -> None:
    model = with_heads("test_resnet")
    model.encoder.backbone.layer2.requires_grad_(False)
    groups = parameter_groups(model, 0.3, 0.5)
    for group in groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] > 0}
    assert sorted({group["scale"] for group in groups}) == [0.5**k for k in (5, 4, 2, 1, 0)]


def test_with_a_factor_of_1_the_groups_are_the_same_two() -> None:
    model = with_heads("small-4")
    trained = [*model.parameters()]
    matrices, others = parameter_groups(model, 0.3, 1.0)
    assert [*map(id, matrices["params"])] == [id(p) for p in trained if p.ndim > 1]
    assert [*map(id, others["params"])] == [id(p) for p in trained if p.ndim < 2]


@pytest.mark.parametrize("name", ["sgd", "lars", "adam"])
def test_the_first_step_of_a_block_is_its_power_of_the_factor(name: str) -> None:
    """The first step of each optimizer is the learning rate times something that does not depend
    on it, so the update of a block is factor^distance times that without layer decay.
    """
    moved: list[dict[str, torch.Tensor]] = []
    for factor in (1.0, 0.5):
        model = with_heads("small-4").double()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        stepper = new_optimizer(name, model, 1.0, 0.01, factor)
        set_learning_rate(stepper, 0.1)
        images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
        _, posterior = model(images)
        (posterior.direction[:, 0].sum() + posterior.radius.square().sum()).backward()
        stepper.step()
        moved.append({key: value - before[key] for key, value in model.named_parameters()})
    distances = {"stem": 4, "layer1": 3, "layer2": 2, "layer3": 1}
    for key, plain in moved[0].items():
        part = key.removeprefix("encoder.backbone.").split(".")[0]
        assert plain.abs().max() > 0 or not key.startswith("encoder"), key
        torch.testing.assert_close(
            moved[1][key], plain * 0.5 ** distances.get(part, 0), rtol=1e-9, atol=1e-15
        )


def test_the_rate_is_set_in_every_group() -> None:
    stepper = new_optimizer("adam", network(), 0.1, 0.01)
    set_learning_rate(stepper, 0.025)
    assert [group["lr"] for group in stepper.param_groups] == [0.025, 0.025]


def test_unknown_optimizer() -> None:
    with pytest.raises(UserError, match="unknown optimizer 'adamw': did you mean adam"):
        new_optimizer("adamw", network(), 0.1, 0.0)
