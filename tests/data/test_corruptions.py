"""Corruptions against torchvision at the same window or width, their strengths measured on the
result, and their laws.
"""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import functional as F

from sureclr.data.corruptions import (
    CORRUPTIONS,
    IMAGES_AT_ONCE,
    PIXELS,
    Corruption,
    add_noise,
    blur_images,
    crop_images,
    occlude,
    window,
)
from sureclr.data.counter_rng import uniform_numbers
from sureclr.errors import UserError

SEEDS = torch.arange(IMAGES_AT_ONCE + 40)
ALL = pytest.mark.parametrize("corruption", CORRUPTIONS.values(), ids=CORRUPTIONS)


def pictures(n: int = 8, channels: int = 3, side: int = 24) -> Tensor:
    return torch.randint(
        0,
        256,
        (n, channels, side, side),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )


def checkers(n: int, side: int = 20) -> Tensor:
    """Black and white pixels by turns: none has the mean colour, 128."""
    return (
        ((torch.arange(side)[:, None] + torch.arange(side)) % 2 * 255)
        .to(torch.uint8)
        .expand(n, 1, side, side)
        .contiguous()
    )


@pytest.mark.parametrize("area", [0.08, 0.4, 0.9])
def test_crop_is_torchvisions_at_the_same_window(area: float) -> None:
    images, boxes = pictures(), window(SEEDS[:8], area, 24, 24).tolist()
    theirs = torch.stack(
        [
            F.resized_crop(image.float(), *box, [24, 24], antialias=True)
            for image, box in zip(images, boxes, strict=True)
        ]
    )
    ours = crop_images(images, SEEDS[:8], area)
    assert (theirs - ours).abs().max() <= 0.5 + 1e-3  # rounding to a byte


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("area", [0.05, 0.3, 0.8])
def test_a_window_has_its_area_and_any_place(area: float, axis: int) -> None:
    box = window(torch.arange(20_000), area, 96, 64)
    assert abs(float(box[0, 2:].prod()) / (96 * 64) - area) < 0.01
    places = int((96, 64)[axis] - box[0, 2 + axis]) + 1
    counts = torch.bincount(box[:, axis], minlength=places)
    assert len(counts) == places  # never beyond the image
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_the_smallest_windows() -> None:
    assert window(SEEDS[:1], 1e-6, 96, 64)[0, 2:].tolist() == [1, 1]
    assert window(SEEDS[:1], 0.0, 96, 64)[0, 2:].tolist() == [0, 0]


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_blur_is_torchvisions(sigma: float) -> None:
    images, radius = pictures(), int(np.ceil(3 * sigma))
    theirs = F.gaussian_blur(images.float(), [2 * radius + 1] * 2, [sigma] * 2)
    assert (theirs - blur_images(images, SEEDS[:8], sigma)).abs().max() <= 0.5 + 1e-2


def test_a_blur_wider_than_the_image_is_cut_at_its_size() -> None:
    images = pictures(4, side=5)
    theirs = F.gaussian_blur(images.float(), [9, 9], [3.0, 3.0])  # 4 pixels either side
    assert (theirs - blur_images(images, SEEDS[:4], 3.0)).abs().max() <= 0.5 + 1e-2


GREY = torch.full((40, 1, 32, 32), 128, dtype=torch.uint8)


@pytest.mark.parametrize("deviation", [0.03, 0.1])
def test_noise_has_its_deviation_and_shape(deviation: float) -> None:
    error = (add_noise(GREY, SEEDS[:40], deviation).double().flatten() - 128) / 255
    bound = 4 * deviation / np.sqrt(2 * error.numel())  # four standard errors of a deviation
    rounded = np.hypot(deviation, 1 / 255 / np.sqrt(12))
    assert abs(float(error.square().mean().sqrt()) - rounded) < bound
    within = torch.rand(len(error), generator=torch.Generator().manual_seed(1)) - 0.5
    law = stats.norm(scale=deviation).cdf
    assert stats.kstest((error + within / 255).numpy(), law).pvalue > 1e-3


def test_another_image_has_other_noise() -> None:
    first, second = add_noise(GREY, SEEDS[:40], 0.1).double().flatten(1)[:2]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


def unmixed(word: int) -> int:
    """The inverse of SplitMix64's finaliser, in Python's unbounded integers."""
    mask = (1 << 64) - 1
    for bits, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        shifted = word
        for _ in range(64 // bits):
            shifted = word ^ (shifted >> bits)
        word = shifted * pow(factor, -1, 1 << 64) & mask
    return word


def test_the_one_seed_whose_random_number_is_zero_gives_a_finite_noise() -> None:
    """The normal number of 0 would be minus infinity, and times a deviation of 0 not a number."""
    golden, size = 0x9E3779B97F4A7C15, 1 << 64
    state = (unmixed(0) - golden) % size
    seed = (unmixed((unmixed(state) - PIXELS * golden) % size) - golden) % size
    seeds = torch.tensor([seed - size if seed >> 63 else seed])
    assert uniform_numbers(seeds, PIXELS, 1).tolist() == [[0.0]]
    white = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    assert torch.equal(add_noise(white, seeds, 0.0), white)
    assert 140 < int(add_noise(white, seeds, 0.05)) < 160  # 8.2 deviations below


@pytest.mark.parametrize("area", [0.1, 0.5, 1.0])
def test_occlusion_covers_a_square_of_its_area_with_the_mean_colour(area: float) -> None:
    covered = occlude(checkers(50), SEEDS[:50], area)[:, 0] == 128
    side = round(20 * area**0.5)
    assert (covered.sum((1, 2)) == side**2).all()
    assert (covered.any(1).sum(1) == side).all() and (covered.any(2).sum(1) == side).all()


def test_each_channel_is_covered_with_its_own_mean() -> None:
    colours = (
        torch.tensor([10, 100, 200], dtype=torch.uint8)
        .view(1, 3, 1, 1)
        .expand(1, 3, 8, 8)
        .contiguous()
    )
    assert torch.equal(occlude(colours, SEEDS[:1], 0.5), colours)


@ALL
def test_nothing_changes_nothing_and_more_changes_more(corruption: Corruption) -> None:
    images = pictures(32)
    assert torch.equal(corruption(images, SEEDS[:32], corruption.none), images)
    apart = [
        (corruption(images, SEEDS[:32], s).float() - images.float()).abs().mean()
        for s in corruption.strengths
    ]
    assert all(a < b for a, b in zip([0.0, *apart], apart, strict=False))
    severity = corruption.severity(torch.tensor(corruption.strengths))
    assert (severity.diff() > 0).all() and severity[0] > 0


@ALL
def test_an_image_depends_on_its_own_seed_and_strength_alone(corruption: Corruption) -> None:
    images, strengths = pictures(len(SEEDS), 1, 12), corruption.random_strengths(SEEDS)
    together = corruption(images, SEEDS, strengths)  # every strength is another
    some = [0, 7, IMAGES_AT_ONCE - 1, IMAGES_AT_ONCE, IMAGES_AT_ONCE + 39]
    alone = [corruption(images[[i]], SEEDS[[i]], float(strengths[i])) for i in some]
    assert torch.equal(torch.cat(alone), together[some])
    assert torch.equal(corruption(images, SEEDS, strengths, images_at_once=100), together)
    same = corruption(
        images[:1].expand(2, -1, -1, -1).contiguous(), SEEDS[:2], corruption.strengths[-1]
    )
    assert corruption is CORRUPTIONS["blur"] or not torch.equal(
        same[0], same[1]
    )  # a blur draws nothing


@ALL
def test_random_strengths_are_uniform_from_nothing_to_the_strongest(corruption: Corruption) -> None:
    drawn = corruption.random_strengths(torch.arange(20_000)).numpy()
    low, high = sorted((corruption.none, corruption.strengths[-1]))
    assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("crop", 0.0),
        ("crop", 1.1),
        ("occlusion", -0.01),
        ("noise", float("inf")),
        ("blur", -1.0),
        ("blur", float("inf")),
        ("noise", float("nan")),
        ("occlusion", 1.5),
    ],
)
def test_impossible_strengths_are_refused(name: str, strength: float) -> None:
    with pytest.raises(UserError, match="strength"):
        CORRUPTIONS[name](pictures(), SEEDS[:8], strength)


@pytest.mark.parametrize(
    ("name", "strength"), [("crop", 1e-9), ("crop", 1.0), ("occlusion", 0.0), ("occlusion", 1.0)]
)
def test_strengths_at_the_edge_are_accepted(name: str, strength: float) -> None:
    assert CORRUPTIONS[name](pictures(), SEEDS[:8], strength).shape == pictures().shape


@pytest.mark.parametrize("images", [pictures().float(), pictures()[:0], pictures()[0]])
def test_other_images_are_refused(images: Tensor) -> None:
    with pytest.raises(UserError, match="uint8"):
        CORRUPTIONS["crop"](images, SEEDS[: len(images)], 0.5)


def test_other_seeds_are_refused() -> None:
    with pytest.raises(UserError, match="seed"):
        CORRUPTIONS["crop"](pictures(), SEEDS[:7], 0.5)
