"""Exact accumulation against the plain thing: all micro-batches on one autograd graph, BN by
micro-batch, one backward.
"""

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sureclr.errors import UserError
from sureclr.maths.objectives import Objective, SureLoss, objective
from sureclr.models.encoders import SmallResNet
from sureclr.models.simclr import CertaintyHead, ProjectionHead, SimCLR, StandardisedEncoder
from sureclr.training import accumulate
from sureclr.training.accumulate import backward, frozen_statistics

IMAGES = 12


def model_for(loss: Objective, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> SimCLR:
    """A small network whose certainty head already says something (its last layer starts at zero,
    which stops its gradient).
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(SmallResNet(1, stride=1, width=2), nn.Dropout(dropout))
        certainty = CertaintyHead(16, 8) if loss.uses_certainty else None
        model = SimCLR(
            StandardisedEncoder(encoder), ProjectionHead(16, 6), certainty, loss.read
        ).to(dtype)
        if certainty is not None:
            nn.init.normal_(certainty.body[-1].weight)
    return model.train()


def pixels(dtype: torch.dtype = torch.float32) -> Tensor:
    """(2, IMAGES, 1, 8, 8): first and second views, close to each other."""
    generator = torch.Generator().manual_seed(1)
    images, blur = (
        torch.rand(k, IMAGES, 1, 8, 8, generator=generator, dtype=torch.float64) for k in (1, 2)
    )
    return (images + 0.3 * blur).to(dtype)


def from_pixels(both: Tensor, part: slice) -> Tensor:
    return torch.cat([both[0, part], both[1, part]])


def on_one_graph(
    model: SimCLR,
    loss: Objective,
    both: Tensor,
    micro_batch: int,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """The witness. Micro-batches (start, stop) in turn, rows put where they belong, one loss, one
    backward.
    """
    projections, ks = torch.empty(0), torch.empty(0)
    halves: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = {}
    for start in range(0, IMAGES, micro_batch):
        m = min(micro_batch, IMAGES - start)
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            p, k = model.heads(model.features(from_pixels(both, slice(start, start + m))))
        halves.update(
            {
                (view, start): (
                    p[view * m : view * m + m],
                    None if k is None else k[view * m : view * m + m],
                )
                for view in (0, 1)
            }
        )
    order = sorted(halves)
    projections = torch.cat([halves[at][0] for at in order])
    ks = [k for at in order if (k := halves[at][1]) is not None]
    value = loss(model.read(projections, torch.cat(ks) if ks else None))
    value.backward()
    return value.detach()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def furthest(a: nn.Module, b: nn.Module) -> float:
    """The largest error of a parameter's gradient, relative to its norm (or to a thousandth of the
    largest norm, where BN cancels it).
    """
    ours, theirs = gradients(a), gradients(b)
    assert ours.keys() == theirs.keys() == dict(a.named_parameters()).keys()
    floor = 1e-3 * max(g.norm().item() for g in theirs.values())
    return max(
        (ours[name] - g).norm().item() / max(g.norm().item(), floor) for name, g in theirs.items()
    )


@pytest.mark.parametrize("micro_batch", [1, 4, 5, 11])  # also where the last one is smaller
@pytest.mark.parametrize("name", ["nt-xent", "sure", "poisson-nce", "elk"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_gradient_loss_and_statistics_are_those_of_one_graph(
    dtype: torch.dtype, tolerance: float, name: str, micro_batch: int
) -> None:
    loss, both = objective(name), pixels(dtype)
    model = model_for(loss, dtype)
    witness, witness_loss = copy.deepcopy(model), copy.deepcopy(loss)
    witness._read = witness_loss.read
    value, posterior = backward(
        model, loss, lambda part: from_pixels(both, part), IMAGES, micro_batch
    )
    expected = on_one_graph(witness, witness_loss, both, micro_batch)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert furthest(model, witness) < tolerance
    for ours, theirs in zip(
        model.buffers(), witness.buffers(), strict=True
    ):  # running means, variances, counts
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(
        loss.buffers(), witness_loss.buffers(), strict=True
    ):  # the running kernel dimension
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert posterior.direction.shape == (2 * IMAGES, 6) and not posterior.direction.requires_grad


def test_the_radius_reaches_certainty_head_and_encoder() -> None:
    """What the likelihood adds to the gradient, alone: nothing at the projection head
    (stop-gradient), something in the encoder.
    """
    found = []
    for weight in (0.0, 1.0):
        loss, both = SureLoss(weight=weight), pixels()
        backward(
            model := model_for(loss),
            loss,
            lambda part, both=both: from_pixels(both, part),
            IMAGES,
            4,
        )
        found.append(gradients(model))
    added = {name: (found[1][name] - found[0][name]).norm().item() for name in found[0]}
    assert all(size == 0 for name, size in added.items() if name.startswith("projection"))
    assert all(
        size > 1e-4
        for name, size in added.items()
        if "certainty.body.3" in name or "encoder.backbone.0.stem.0" in name
    )


def test_one_micro_batch_is_the_plain_step_bit_by_bit() -> None:
    loss, both = objective("sure"), pixels()
    models, runs = [model_for(loss) for _ in range(3)], []
    for model, size in zip(models, (None, IMAGES, IMAGES + 1), strict=True):
        model.encoder.register_forward_pre_hook(lambda _, inputs: runs.append(len(inputs[0])))
        backward(model, objective("sure"), lambda part: from_pixels(both, part), IMAGES, size)
    assert runs == [2 * IMAGES] * 3  # and it costs one pass
    for other in models[1:]:
        assert all(
            torch.equal(a, b)
            for a, b in zip(gradients(models[0]).values(), gradients(other).values(), strict=True)
        )


def test_running_statistics_move_once_a_micro_batch() -> None:
    loss, both = objective("nt-xent"), pixels()
    model = model_for(loss)
    backward(model, loss, lambda part: from_pixels(both, part), IMAGES, 4)
    norms = [
        module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    assert len(norms) > 5 and all(
        norm.num_batches_tracked == 3 and norm.momentum == 0.1 for norm in norms
    )


def test_the_kernel_dimension_moves_once_a_step() -> None:
    loss, both = SureLoss(momentum=0.75), pixels()
    backward(model_for(loss), loss, lambda part: from_pixels(both, part), IMAGES, 3)
    assert loss.seen.item() == pytest.approx(0.25)  # 1 - momentum^steps


def test_both_views_of_an_image_meet_in_one_micro_batch_and_each_is_seen_twice() -> None:
    loss, both = objective("nt-xent"), pixels()
    both[:, :, 0, 0, 0] = torch.arange(IMAGES)
    model, batches = model_for(loss), []
    model.encoder.register_forward_pre_hook(
        lambda _, inputs: batches.append(inputs[0][:, 0, 0, 0].tolist())
    )
    backward(model, loss, lambda part: from_pixels(both, part), IMAGES, 5)
    assert all(images[: len(images) // 2] == images[len(images) // 2 :] for images in batches)
    assert [len(images) for images in batches] == [10, 10, 4] * 2
    assert sorted(itertools.chain.from_iterable(batches)) == sorted(list(range(IMAGES)) * 4)


@pytest.mark.parametrize("micro_batch", [4, 5])
def test_views_are_made_once_where_they_fit_and_twice_elsewhere(
    monkeypatch: pytest.MonkeyPatch, micro_batch: int
) -> None:
    """The same gradient bit for bit; the last micro-batch of 5 is smaller than the others, and
    would fit alone.
    """
    both, models, calls = pixels(), [], []
    size = 2 * micro_batch * both[0, 0].nbytes  # of the views of a micro-batch
    most = -(-IMAGES // micro_batch) * size  # of all, if all were full
    for room in (most, most - 1, 0):
        monkeypatch.setattr(accumulate, "KEPT_ON_CPU", room)
        loss, made = objective("sure"), []

        def views(part: slice, made: list = made) -> Tensor:
            made.append(part.start)
            return from_pixels(both, part)

        backward(model := model_for(loss), loss, views, IMAGES, micro_batch)
        models.append(model)
        calls.append(made)
    starts = list(range(0, IMAGES, micro_batch))
    last = [] if IMAGES % micro_batch == 0 else starts[-1:]  # its two views are kept alone
    again = [start for start in starts if start not in last]
    assert calls == [starts, starts + again, 2 * starts]
    for other in models[1:]:
        for g, h in zip(gradients(models[0]).values(), gradients(other).values(), strict=True):
            assert torch.equal(g, h)


def test_dropout_draws_the_same_masks_in_both_passes() -> None:
    """Otherwise the gradient is that of a loss nobody computed. Encoders by name may have it
    (timm's Swin drops paths by default).
    """
    loss, both = objective("sure"), pixels()
    model = model_for(loss, dropout=0.5)
    witness = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        value, _ = backward(model, loss, lambda part: from_pixels(both, part), IMAGES, 4)
        after = torch.rand(3)
        torch.manual_seed(7)
        expected = on_one_graph(witness, objective("sure"), both, 4)
        follows = torch.rand(3)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert furthest(model, witness) < 2e-6
    assert torch.equal(after, follows)  # and what comes later draws as if there had been one pass


def test_the_masks_are_those_of_the_device_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its name torch would take the generator of the first GPU, and none is here."""
    states: dict[torch.device, int] = {
        torch.device("cuda:0"): 5,
        (second := torch.device("cuda:1")): 7,
    }
    module = SimpleNamespace(
        get_rng_state=lambda device="cuda:0": states[torch.device(device)],
        set_rng_state=lambda state, device="cuda:0": states.update({torch.device(device): state}),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    kept = accumulate._random_states(second)
    states[second] = 8  # a micro-batch draws
    accumulate._set_random_states(second, kept)
    assert states == {torch.device("cuda:0"): 5, second: 7}


def test_bfloat16_accumulates_what_bfloat16_on_one_graph_does() -> None:
    loss, both = objective("sure"), pixels()
    model = model_for(loss)
    witness = copy.deepcopy(model)
    value, _ = backward(
        model, loss, lambda part: from_pixels(both, part), IMAGES, 4, precision=torch.bfloat16
    )
    expected = on_one_graph(witness, objective("sure"), both, 4, precision=torch.bfloat16)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert furthest(model, witness) < 1e-5


def test_gradients_add_to_those_already_there() -> None:
    loss, both = objective("nt-xent"), pixels()
    once, twice = model_for(loss), model_for(loss)
    for model, times in ((once, 1), (twice, 2)):
        for _ in range(times):
            backward(model, loss, lambda part: from_pixels(both, part), IMAGES, 4)
    for g, h in zip(gradients(once).values(), gradients(twice).values(), strict=True):
        torch.testing.assert_close(2 * g, h, rtol=1e-5, atol=1e-7)


def test_statistics_are_free_again_after_an_error() -> None:
    norm = nn.BatchNorm1d(3, momentum=None)
    counter = norm.num_batches_tracked
    with pytest.raises(ZeroDivisionError), frozen_statistics(norm):
        norm(torch.randn(5, 3) + 7)
        raise ZeroDivisionError
    assert (
        norm.momentum is None
        and norm.num_batches_tracked is counter
        and counter == 0
        and norm.running_mean.abs().max() == 0
    )


# Null views


def plain_model(loss: Objective) -> SimCLR:
    """A network without BN, in which no view depends on another one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh())
        model = SimCLR(
            StandardisedEncoder(encoder), nn.Linear(16, 6), nn.Linear(16, loss.numbers), loss.read
        )
    return model.double().train()


@pytest.mark.parametrize("nulls", [1, 5, 12])
@pytest.mark.parametrize("micro_batch", [1, 4, 5, IMAGES, None])
def test_null_views_are_seen_once_and_their_gradient_is_that_of_the_whole_batch(
    micro_batch: int | None, nulls: int
) -> None:
    """The witness: all views, then all null views, through the network, and the sum of the losses.

    The first pixel of a null view is its number.
    """
    loss, both = SureLoss(presence="on"), pixels(torch.float64)
    empty = torch.rand(nulls, 1, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    empty[:, 0, 0, 0] = 100.0 + torch.arange(nulls)
    model, batches = plain_model(loss), []
    model.encoder.register_forward_pre_hook(
        lambda _, inputs: batches.append(inputs[0][:, 0, 0, 0].tolist())
    )

    def views(part: slice) -> Tensor:
        own = accumulate.null_rows(part, IMAGES, nulls)
        return torch.cat([both[0, part], both[1, part], empty[own]])

    value, posterior = backward(model, loss, views, IMAGES, micro_batch, nulls=nulls)
    passes = 1 if micro_batch in (IMAGES, None) else 2
    numbers = [[x for x in batch if x >= 100] for batch in batches]
    assert sorted(itertools.chain(*numbers)) == sorted([100.0 + i for i in range(nulls)] * passes)
    assert max(map(len, numbers)) - min(map(len, numbers)) <= 1 or micro_batch == 5
    witness = plain_model(other := SureLoss(presence="on"))
    _, seen = witness(torch.cat([both[0], both[1], empty]))
    first, second = seen.part(slice(2 * IMAGES)), seen.part(slice(2 * IMAGES, None))
    expected = other(first) + other.null_loss(first, second)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert furthest(model, witness) < 2e-6
    for name in ("direction", "radius", "presence"):
        assert torch.allclose(getattr(posterior, name), getattr(seen, name), atol=1e-6)
    assert torch.equal(loss.m, other.m)  # which views alone decide


def test_null_views_reach_the_certainty_and_no_direction() -> None:
    """What they add to the gradient, alone (in the network, where they pass BN with the others,
    they would also change the views).
    """
    both, found = pixels(torch.float64), []
    empty = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    for weight in (0.0, 1.0):
        loss = SureLoss(presence="on", null_weight=weight)
        model = plain_model(loss)
        views = torch.cat([both[0], both[1], empty])
        value, _ = backward(model, loss, lambda part, views=views: views, IMAGES, nulls=6)
        found.append((value.item(), gradients(model)))
    (less, before), (more, after) = found
    added = {name: (after[name] - before[name]).norm().item() for name in before}
    assert more != less
    assert all(size == 0 for name, size in added.items() if name.startswith("projection"))
    assert all(size > 1e-4 for name, size in added.items() if not name.startswith("projection"))


def test_a_loss_that_has_no_use_for_null_views_says_so() -> None:
    loss = objective("nt-xent")
    with pytest.raises(UserError, match="NTXentLoss learns nothing from null views"):
        backward(model_for(loss), loss, lambda part: torch.rand(7, 1, 8, 8), 3, nulls=1)
