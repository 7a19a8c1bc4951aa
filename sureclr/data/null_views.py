"""Null views: images of nothing, from which a loss learns what it looks like (theory 9).

    noise    coloured noise of random smoothness, contrast, colour and mean
    tiles    views of training images whose small square tiles are shuffled: every pixel of an
             image, and none of its shapes

Each null view is a function of its own seed, drawn on the CPU, so that it is the same on every
device.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sureclr.data.counter_rng import hashed, uniform_numbers

STEEPEST = 2.5  # spectral slope of the smoothest noise; that of photographs is about 1
CONTRASTS = 0.005, 0.5  # standard deviations of noise, as a share of the range of a pixel
TILES_ACROSS = 7  # in an image there are at least so many tiles in a row
OF_NUMBERS, OF_PIXELS, OF_TILES = 0xC01, 0xC02, 0xC03  # streams of random numbers


def make_null_views(
    kinds: tuple[str, ...],
    seeds: Tensor,
    channels: int,
    size: int,
    device: torch.device,
    views: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return null views, (n, channels, size, size) float32 in [0, 1], on a device.

    Args:
        kinds: null view i is of kind i modulo their number.
        seeds: (n,) int64 on the CPU.
        channels: of the images.
        size: side of the images in pixels.
        device: of the result.
        views: maps the places (m,) int64 of some null views to views of as many training images,
            (m, channels, size, size) float32, on the device.
    """
    found = torch.empty(len(seeds), channels, size, size, device=device)
    for number, kind in enumerate(kinds):
        places = torch.arange(number, len(seeds), len(kinds))
        if len(places) == 0:
            continue
        if kind == "noise":
            some = coloured_noise(seeds[places], channels, size).to(device, non_blocking=True)
        else:
            some = shuffled_tiles(views(places), seeds[places])
        found[number :: len(kinds)] = some
    return found


def coloured_noise(seeds: Tensor, channels: int, size: int) -> Tensor:
    """Return images of coloured noise, (n, channels, size, size) float32 in [0, 1], on the CPU.

    The amplitude of frequency f is f^-a. The slope a is uniform in [0, 2.5] (0 is white noise),
    the contrast log-uniform in [.005, .5], and the mean and the saturation uniform in [0, 1]: a
    saturation of 0 is grey noise, and with 1 the channels have nothing in common.

    Args:
        seeds: (n,) int64 on the CPU.
        channels: of the images.
        size: side of the images in pixels.
    """
    count = (channels + 1) * size * size
    # Box and Muller 1958: 1 - u is never 0, of which there is no logarithm
    first, second = uniform_numbers(seeds, OF_PIXELS, 2 * count).view(-1, 2, count).unbind(1)
    white = (-2 * torch.log1p(-first)).sqrt() * torch.cos(2 * math.pi * second)
    numbers = uniform_numbers(seeds, OF_NUMBERS, 4 + channels)[:, :, None, None]
    slope, contrast, saturation, common, own = numbers.split([1, 1, 1, 1, channels], 1)
    down, across = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)
    frequency = (down.square() + across.square()).sqrt().double()
    amplitude = frequency.clamp(min=1 / size) ** (-STEEPEST * slope)
    spectrum = torch.fft.rfft2(white.view(-1, channels + 1, size, size)) * amplitude
    spectrum[..., 0, 0] = 0  # the mean is chosen below
    grey, colours = torch.fft.irfft2(spectrum, (size, size)).split([1, channels], 1)
    noise = (1 - saturation) * grey + saturation * colours
    noise = noise / noise.std((1, 2, 3), correction=0, keepdim=True).clamp(min=1e-12)
    low, high = map(math.log, CONTRASTS)
    mean = (1 - saturation) * common + saturation * own
    pixels: Tensor = mean + (low + (high - low) * contrast).exp() * noise
    return pixels.clamp(0, 1).float()


def shuffled_tiles(images: Tensor, seeds: Tensor) -> Tensor:
    """Return images whose square tiles are shuffled, (n, c, s, s), on the device of the images.

    The side of an image's tiles is one of the divisors of its own side that leave at least 7 tiles
    in a row (1, 2 or 4 pixels of 32), each equally likely.

    Args:
        images: (n, c, s, s) float.
        seeds: (n,) int64 on the CPU.
    """
    _, c, size, _ = images.shape
    sides = [side for side in range(1, size // TILES_ACROSS + 1) if size % side == 0] or [1]
    chosen = (hashed(seeds, OF_TILES, 1)[:, 0] >> 1 & ((1 << 62) - 1)) % len(sides)
    found = torch.empty_like(images)
    for number, side in enumerate(sides):
        rows = (chosen == number).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        across = size // side
        order = hashed(seeds[rows], OF_TILES + 1, across**2).argsort(1).to(images.device)
        here = rows.to(images.device)
        tiles = images[here].view(-1, c, across, side, across, side)
        tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(len(rows), across**2, c * side**2)
        tiles = tiles.gather(1, order[:, :, None].expand_as(tiles))
        tiles = tiles.view(-1, across, across, c, side, side).permute(0, 3, 1, 4, 2, 5)
        found[here] = tiles.reshape(-1, c, size, size)
    return found
