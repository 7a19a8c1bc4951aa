"""Images of nothing, of which null views are made: a loss learns from them what that looks like.

    noise    coloured noise of random smoothness, contrast, colour and mean
    tiles    training images whose small square tiles are shuffled: every pixel of an image, and
             none of its shapes

A null view is a random view of such an image, made as that of any other image, so that neither its
crop nor its colours tell it from them (theory 9). Each image is a function of its own seed, whose
random numbers are drawn on the CPU, so that it is the same on every device.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sureclr.data.counter_rng import hashed, uniform_numbers
from sureclr.data.pictures import sent

STEEPEST = 2.5  # spectral slope of the smoothest noise; that of photographs is about 1
CONTRASTS = 0.005, 0.5  # standard deviations of noise, as a share of the range of a pixel
TILES_ACROSS = 7  # in an image there are at least so many tiles in a row
OF_NUMBERS, OF_PIXELS, OF_SIDES, OF_TILES = 0xC01, 0xC02, 0xC03, 0xC04  # random numbers


def images_of_nothing(
    kinds: tuple[str, ...],
    seeds: Tensor,
    channels: int,
    size: int,
    device: torch.device,
    images: Callable[[Tensor], Tensor],
    first: int = 0,
) -> Tensor:
    """Return images of nothing, (n, channels, size, size) uint8, on a device.

    Args:
        kinds: image i is of kind first + i modulo their number.
        seeds: (n,) int64 on the CPU.
        channels: of the images.
        size: side of the images in pixels.
        device: of the result.
        images: maps the places (m,) int64 of some of them to as many training images,
            (m, channels, size, size) uint8, on the device.
        first: number of image 0.
    """
    found = torch.empty(len(seeds), channels, size, size, dtype=torch.uint8, device=device)
    for number, kind in enumerate(kinds):
        places = torch.arange((number - first) % len(kinds), len(seeds), len(kinds))
        if len(places) == 0:
            continue
        if kind == "noise":
            noise = coloured_noise(seeds[places], channels, size)
            some = sent((255 * noise).round().byte(), device)
        else:
            some = shuffled_tiles(images(places), seeds[places])
        found[places[0] :: len(kinds)] = some
    return found


def coloured_noise(seeds: Tensor, channels: int, size: int) -> Tensor:
    """Return images of coloured noise, (n, channels, size, size) float32 in [0, 1], on the CPU.

    The amplitude of frequency f is f^-a. The slope a is uniform in [0, 2.5] (0 is white noise),
    the standard deviation log-uniform in [.005, .5], and the mean and the saturation uniform in
    [0, 1]: a saturation of 0 is grey noise, and with 1 the channels have nothing in common. Then
    the pixels are clamped.

    Args:
        seeds: (n,) int64 on the CPU.
        channels: of the images.
        size: side of the images in pixels.
    """
    numbers = uniform_numbers(seeds, OF_NUMBERS, 4 + channels).float()[:, :, None, None]
    slope, contrast, saturation, common, own = numbers.split([1, 1, 1, 1, channels], 1)
    white = _normal_numbers(seeds, (channels + 1) * size**2).view(-1, channels + 1, size, size)
    down, across = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)
    frequency = (down.square() + across.square()).sqrt().clamp(min=1 / size)
    spectrum = torch.fft.rfft2(white) * frequency ** (-STEEPEST * slope)
    spectrum[..., 0, 0] = 0  # the mean is chosen below
    grey, colours = torch.fft.irfft2(spectrum, (size, size)).split([1, channels], 1)
    noise = (1 - saturation) * grey + saturation * colours
    noise = noise / noise.std((1, 2, 3), correction=0, keepdim=True).clamp(min=1e-12)
    low, high = map(math.log, CONTRASTS)
    mean = (1 - saturation) * common + saturation * own
    pixels: Tensor = mean + (low + (high - low) * contrast).exp() * noise
    return pixels.clamp(0, 1)


def _normal_numbers(seeds: Tensor, count: int) -> Tensor:
    """Return standard normal numbers, (n, count) float32 (Box and Muller 1958)."""
    words = hashed(seeds, OF_PIXELS, -(-count // 2))
    first, second = ((words >> shift & 0xFFFFFFFF).float() for shift in (32, 0))
    radius = (-2 * torch.log((first + 0.5) * 2.0**-32)).sqrt()  # never the logarithm of 0
    angle = second * (2 * math.pi * 2.0**-32)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count]


def shuffled_tiles(images: Tensor, seeds: Tensor) -> Tensor:
    """Return images whose square tiles are shuffled, (n, c, s, s), on the device of the images.

    The side of an image's tiles is one of the divisors of its own side that leave at least 7 tiles
    in a row (1, 2 or 4 pixels of 32), each equally likely.

    Args:
        images: (n, c, s, s), of any type.
        seeds: (n,) int64 on the CPU.
    """
    n, c, size, _ = images.shape
    sides = [side for side in range(1, size // TILES_ACROSS + 1) if size % side == 0] or [1]
    chosen = (hashed(seeds, OF_SIDES, 1)[:, 0] >> 1 & ((1 << 62) - 1)) % len(sides)
    source = torch.empty(n, size**2, dtype=torch.int64)  # the place each pixel is taken from
    for number, side in enumerate(sides):
        rows, across = chosen == number, size // side
        order = hashed(seeds[rows], OF_TILES, across**2).argsort(1)
        tiles = torch.arange(size**2).view(across, side, across, side).transpose(1, 2)
        taken = tiles.reshape(across**2, side, side)[order]
        taken = taken.view(-1, across, across, side, side).transpose(2, 3)
        source[rows] = taken.reshape(-1, size**2)
    places = sent(source, images.device)[:, None].expand(-1, c, -1)
    return images.flatten(2).gather(2, places).view_as(images)
