"""Null views, measured: a periodogram, moments of pixels, and tiles looked up one by one."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from sureclr.data.null_views import coloured_noise, images_of_nothing, shuffled_tiles

N = 600


@cache
def noise(channels: int = 3, size: int = 32) -> NDArray[np.float64]:
    return coloured_noise(torch.arange(N), channels, size).double().numpy()


def unclamped(images: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray((images.min((1, 2, 3)) > 0) & (images.max((1, 2, 3)) < 1))


def slopes(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """The slope a of each image: a line through the logarithms of its periodogram, f^-2a."""
    size = images.shape[-1]
    power = (np.abs(np.fft.fft2(images)) ** 2).sum(1)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    keep = f > 0
    x, y = np.log(f[keep]), np.log(power[:, keep])
    return np.asarray(-(y - y.mean(1)[:, None]) @ (x - x.mean()) / x.var() / x.size / 2)


@pytest.mark.parametrize("size", [31, 32])
def test_the_smoothness_of_noise_is_uniform(size: int) -> None:
    images = noise(size=size)
    found = slopes(images[unclamped(images)])
    assert len(found) > 200
    assert stats.kstest(found, stats.uniform(0, 2.5).cdf).pvalue > 0.01
    assert abs(found.min()) < 0.1 and abs(found.max() - 2.5) < 0.1


def test_the_contrast_of_noise_is_uniform_on_a_logarithmic_scale() -> None:
    images = noise()
    grey = np.abs(images.mean((2, 3)) - 0.5).max(1) < 0.15  # clamping changes little there
    contrast = images[grey].var((2, 3)).mean(1) ** 0.5
    assert len(contrast) > 60 and contrast.min() > 0.00499 and contrast.max() < 0.5
    for share in (0.25, 0.5):
        limit = 0.005 * 100**share
        assert stats.binomtest(int((contrast < limit).sum()), len(contrast), share).pvalue > 0.01


def test_means_and_colours_of_noise() -> None:
    images = noise()
    means = images.mean((2, 3))
    first = noise(channels=1).mean((1, 2, 3))  # of grey images: between a common and an own one
    for values in (means[:, 0], first):
        assert abs(values.mean() - 0.5) < 0.04 and values.min() < 0.1 and values.max() > 0.9
    # A saturation s gives the correlation (1 - s)^2 / ((1 - s)^2 + s^2), which is 1/2 at s = 1/2
    some = unclamped(images)
    pixels = images[some].reshape(some.sum(), 3, -1)
    correlation = np.array([np.corrcoef(x)[0, 1] for x in pixels])
    assert stats.binomtest(int((correlation > 0.5).sum()), len(correlation), 0.5).pvalue > 0.01
    assert correlation.max() > 0.99 and correlation.min() < 0.1


def test_white_noise_is_normal_and_has_no_order() -> None:
    images = noise()
    white = images[unclamped(images)]
    white = white[slopes(white) < 0.3]
    pixels = white - white.mean((2, 3), keepdims=True)
    pixels /= pixels.std((2, 3), keepdims=True)
    assert pixels.size > 50_000
    assert abs(stats.kurtosis(pixels, axis=None)) < 0.1 and abs(stats.skew(pixels, axis=None)) < 0.1
    halves = (pixels[:, :, :16] * pixels[:, :, 16:]).mean()  # of one image
    others = (pixels[1:] * pixels[:-1]).mean()  # of neighbouring seeds
    assert abs(halves) < 0.02 and abs(others) < 0.02


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [4, 28, 30, 31, 96])
def test_a_null_view_is_a_function_of_its_seed(channels: int, size: int) -> None:
    seeds = torch.tensor([7, -3, 2**62, 5])
    image = torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    images = image.expand(4, -1, -1, -1)
    for some in (lambda s: coloured_noise(s, channels, size), lambda s: of_seeds(images, s)):
        together = some(seeds)
        assert together.shape == images.shape and together.dtype == torch.float32
        assert together.min() >= 0 and together.max() <= 1
        for row, seed in zip(together, seeds, strict=True):
            assert torch.equal(row, some(seed[None])[0])
        assert len({row.numpy().tobytes() for row in together}) == 4


def of_seeds(images: Tensor, seeds: Tensor) -> Tensor:
    return shuffled_tiles(images[: len(seeds)], seeds)


def sides_of(size: int) -> list[int]:
    """By trial: sides that fill the image, with 7 tiles in a row or more; else single pixels."""
    return [s for s in range(1, size) if size % s == 0 and size / s >= 7] or [1]


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [4, 28, 30, 31, 96])
def test_whole_tiles_are_shuffled(channels: int, size: int) -> None:
    """Each pixel says where it was: tiles are found again, each once, alike in all channels."""
    n = 20
    places = torch.arange(size**2).view(1, size, size)
    images = (places + size**2 * torch.arange(channels)[:, None, None]).double()
    found = shuffled_tiles(images.expand(n, -1, -1, -1), torch.arange(n)).long()
    used = set()
    for image in found:
        bands = torch.arange(channels)[:, None, None]
        assert torch.equal(image, image[0] + size**2 * bands)
        first = image[0]
        assert torch.equal(first.flatten().sort().values, places.flatten())
        fitting = [side for side in sides_of(size) if has_whole_tiles(first, side)]
        assert fitting and not torch.equal(first, places[0])
        used.add(max(fitting))
    if len(sides_of(size)) <= 3:
        assert used == set(sides_of(size))


def has_whole_tiles(places: Tensor, side: int) -> bool:
    """Whether every aligned tile of the result is an aligned tile of the image."""
    size = len(places)
    tiles = places.view(size // side, side, size // side, side)
    corner = tiles[:, :1, :, :1]
    within = (size * torch.arange(side)[:, None] + torch.arange(side)).view(1, side, 1, side)
    aligned = (corner // size % side == 0) & (corner % size % side == 0)
    return bool(aligned.all()) and torch.equal(tiles, corner + within)


def test_sides_and_places_of_tiles_are_equally_likely() -> None:
    size, n = 28, 4000  # sides 1, 2, 4
    image = torch.arange(size**2).view(1, 1, size, size).float()
    found = shuffled_tiles(image.expand(n, 1, size, size), torch.arange(n))
    row = found[:, 0, 0, :4].long()
    together = (row[:, 1:] - row[:, :1] == torch.arange(1, 4)).long().cumprod(1).sum(1)
    counts = torch.bincount(together, minlength=4)[[0, 1, 3]]
    assert stats.chisquare(counts.numpy()).pvalue > 0.01
    single = row[together == 0, 0]  # where the first pixel of images of single pixels was
    assert stats.kstest(single.numpy() / size**2, "uniform").pvalue > 0.01


def test_kinds_take_turns_and_only_tiles_need_images() -> None:
    seeds, asked = torch.arange(5) + 100, []

    def images(places: Tensor) -> Tensor:
        asked.append(places.tolist())
        return (places[:, None, None, None] * torch.ones(1, 1, 8, 8)).byte()

    cpu = torch.device("cpu")
    both = images_of_nothing(("noise", "tiles"), seeds, 1, 8, cpu, images)
    assert asked == [[1, 3]] and both.dtype == torch.uint8
    assert torch.equal(both[::2], (255 * coloured_noise(seeds[::2], 1, 8)).round().byte())
    assert torch.equal(both[1::2].flatten(1), torch.tensor([1, 3])[:, None].expand(2, 64).byte())
    alone = images_of_nothing(("tiles",), seeds, 1, 8, cpu, images)
    assert asked[1:] == [[0, 1, 2, 3, 4]] and math.isclose(float(alone[4].double().mean()), 4)
    assert len(images_of_nothing(("noise", "tiles"), seeds[:1], 1, 8, cpu, images)) == 1
    assert len(asked) == 2
