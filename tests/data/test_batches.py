"""batch(seed, epoch, step): pure, every image once an epoch, another order each epoch, seeds that
never meet.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sureclr.data.batches import batch, steps_per_epoch
from sureclr.errors import UserError


def epoch_of(seed: int, epoch: int, images: int, size: int) -> tuple[list[int], list[int]]:
    parts = [
        batch(seed, epoch, step, images, size) for step in range(steps_per_epoch(images, size))
    ]
    return [i for p in parts for i in p.indices.tolist()], [
        s for p in parts for s in p.seeds.tolist()
    ]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 3000),
    images=st.integers(2, 300),
    size=st.integers(2, 40),
)
def test_no_image_twice_an_epoch_and_all_where_batches_fill_it(
    seed: int, epoch: int, images: int, size: int
) -> None:
    size = min(size, images)
    indices, seeds = epoch_of(seed, epoch, images, size)
    assert len(indices) == images // size * size
    assert len(set(indices)) == len(indices) and set(indices) <= set(range(images))
    assert images % size or set(indices) == set(range(images))
    assert len(set(seeds)) == len(seeds)


def test_what_one_epoch_leaves_out_others_show() -> None:
    seen = {i for epoch in range(6) for i in epoch_of(0, epoch, 39, 20)[0]}
    assert seen == set(range(39))


@pytest.mark.parametrize(
    "between",
    [
        lambda: None,
        lambda: batch(3, 6, 0, 50, 10),
        lambda: batch(3, 5, 0, 51, 10),
        lambda: [batch(seed, 0, 0, 50, 10) for seed in range(4)],  # more than a cache of two holds
    ],
    ids=["nothing", "another epoch", "other images", "other seeds"],
)
def test_a_batch_is_a_pure_function(between: Callable[[], object]) -> None:
    """Neither earlier batches nor what a caller does to a batch changes a later one."""
    first = batch(3, 5, 1, 50, 10)
    before = (first.indices.clone(), first.seeds.clone())
    first.indices.zero_(), first.seeds.zero_()
    between()
    again = batch(3, 5, 1, 50, 10)
    assert torch.equal(again.indices, before[0]) and torch.equal(again.seeds, before[1])
    assert again.indices.dtype == again.seeds.dtype == torch.int64


def test_known_values_stay() -> None:
    """A resumed run must see the same batches after an upgrade: these numbers were written down
    once.
    """
    indices, seeds = batch(seed=7, epoch=2, step=1, images=10, batch_size=3)
    assert (indices.tolist(), seeds.tolist()) == (
        [5, 2, 1],
        [4992167972413342767, 7783350970792382997, -9213011074394855604],
    )


def test_orders_and_seeds_differ_between_epochs_and_seeds() -> None:
    orders, seeds = zip(
        *(epoch_of(seed, epoch, 64, 64) for seed in range(4) for epoch in range(8)), strict=True
    )
    assert len({tuple(order) for order in orders}) == 32
    assert len({s for some in seeds for s in some}) == 32 * 64  # no view seed is used twice


def test_the_order_is_fair() -> None:
    """Over 400 epochs the mean place of each of 20 images is 9.5 within 5 standard errors, and no
    pair keeps its order.
    """
    orders = torch.stack([batch(1, epoch, 0, 20, 20).indices for epoch in range(400)])  # (400, 20)
    places = orders.argsort(dim=1).double()
    standard_error = ((20**2 - 1) / 12 / 400) ** 0.5
    assert float((places.mean(0) - 9.5).abs().max()) < 5 * standard_error
    before = (places[:, :, None] < places[:, None, :]).double().mean(0) + 0.5 * torch.eye(20)
    assert float((before - 0.5).abs().max()) < 5 * 0.5 / 400**0.5


@pytest.mark.parametrize(
    ("images", "size", "words"),
    [
        (0, 2, "0 training images"),
        (1, 2, "1 training images"),
        (3, 4, "try batch_size 2"),
        (10, 16, "batch_size 16 .* 10 training images; try batch_size 5"),
    ],
)
def test_too_few_images_are_refused(images: int, size: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        steps_per_epoch(images, size)


@pytest.mark.parametrize(("images", "steps"), [(8, 1), (15, 1), (16, 2), (17, 2)])
def test_full_batches_alone_count(images: int, steps: int) -> None:
    assert steps_per_epoch(images, 8) == steps


def test_two_images_are_enough() -> None:
    assert steps_per_epoch(2, 2) == 1
