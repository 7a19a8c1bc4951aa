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
    CHUNK,
    CORRUPTIONS,
    Corruption,
    blur,
    crop,
    noise,
    occlusion,
    window,
)
from sureclr.errors import UserError

SEEDS = torch.arange(CHUNK + 40)
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


def test_crop_is_torchvisions_at_the_same_window() -> None:
    images = pictures()
    for area in (0.08, 0.4, 0.9):
        ours = crop(images, SEEDS[:8], area)
        for image, mine, (top, left, height, width) in zip(
            images, ours, window(SEEDS[:8], area, 24, 24).tolist(), strict=True
        ):
            theirs = F.resized_crop(
                image.float(), top, left, height, width, [24, 24], antialias=True
            )
            assert (theirs - mine).abs().max() <= 0.5 + 1e-3  # rounding to a byte


def test_window_keeps_the_area_and_is_anywhere() -> None:
    n = 20_000
    for area in (0.05, 0.3, 0.8):
        top, left, height, width = window(torch.arange(n), area, 96, 64).unbind(1)
        assert abs(float(height[0] * width[0]) / (96 * 64) - area) < 0.01
        for corner, room in ((top, 96 - height[0]), (left, 64 - width[0])):
            counts = torch.bincount(corner, minlength=int(room) + 1)
            assert len(counts) == int(room) + 1  # never beyond the image
            assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert window(SEEDS[:1], 1e-6, 96, 64)[0, 2:].tolist() == [1, 1]
    assert window(SEEDS[:1], 0.0, 96, 64)[0, 2:].tolist() == [0, 0]


def test_blur_is_torchvisions() -> None:
    images = pictures()
    for sigma in (0.3, 1.0, 2.5):
        radius = int(np.ceil(3 * sigma))
        theirs = F.gaussian_blur(images.float(), [2 * radius + 1] * 2, [sigma] * 2)
        assert (theirs - blur(images, SEEDS[:8], sigma)).abs().max() <= 0.5 + 1e-2


def test_noise_has_its_deviation_and_shape() -> None:
    grey = torch.full((40, 1, 32, 32), 128, dtype=torch.uint8)
    for deviation in (0.03, 0.1):
        error = (noise(grey, SEEDS[:40], deviation).double().flatten() - 128) / 255
        bound = 4 * deviation / np.sqrt(2 * error.numel())  # four standard errors of a deviation
        assert (
            abs(float(error.square().mean().sqrt()) - np.hypot(deviation, 1 / 255 / np.sqrt(12)))
            < bound
        )
        assert (
            stats.kstest(
                (
                    error
                    + (torch.rand(len(error), generator=torch.Generator().manual_seed(1)) - 0.5)
                    / 255
                ).numpy(),
                stats.norm(scale=deviation).cdf,
            ).pvalue
            > 1e-3
        )
    one, other = noise(grey, SEEDS[:40], 0.1).double().flatten(1)[:2]
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.15  # another image, other noise


def test_occlusion_covers_its_area_with_the_mean_colour() -> None:
    for area in (0.1, 0.5, 1.0):
        covered = occlusion(checkers(50), SEEDS[:50], area)[:, 0] == 128
        side = round(20 * area**0.5)
        assert (covered.sum((1, 2)) == side**2).all()
        assert (covered.any(1).sum(1) == side).all() and (
            covered.any(2).sum(1) == side
        ).all()  # so it is a square
    colours = (
        torch.tensor([10, 100, 200], dtype=torch.uint8)
        .view(1, 3, 1, 1)
        .expand(1, 3, 8, 8)
        .contiguous()
    )
    assert torch.equal(occlusion(colours, SEEDS[:1], 0.5), colours)  # each channel its own mean


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
    together = corruption(images, SEEDS, strengths)  # more than one chunk, every strength another
    for i in (0, 7, CHUNK - 1, CHUNK, CHUNK + 39):
        assert torch.equal(
            corruption(images[i : i + 1], SEEDS[i : i + 1], float(strengths[i])),
            together[i : i + 1],
        )
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
        ("blur", -1.0),
        ("blur", float("inf")),
        ("noise", float("nan")),
        ("occlusion", 1.5),
    ],
)
def test_impossible_strengths_are_refused(name: str, strength: float) -> None:
    with pytest.raises(UserError, match="strength"):
        CORRUPTIONS[name](pictures(), SEEDS[:8], strength)


def test_other_images_and_seeds_are_refused() -> None:
    with pytest.raises(UserError, match="uint8"):
        CORRUPTIONS["crop"](pictures().float(), SEEDS[:8], 0.5)
    with pytest.raises(UserError, match="seed"):
        CORRUPTIONS["crop"](pictures(), SEEDS[:7], 0.5)
