"""Corruptions of a known strength, for evaluation: does a model that sees less say that it is less
sure?

    crop, blur, noise, occlusion: (images uint8 (n, c, h, w), seeds int64 (n,), strength) -> uint8
        (n, c, h, w)

A strength is one number for all images, or one an image (n,). Like the views, an image's corruption
depends on its own seed alone, so it is the same in any batch; crop and blur are those of views.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sureclr.data.counter_rng import uniform
from sureclr.data.views import blur as gaussian_blur
from sureclr.data.views import crop_and_flip
from sureclr.errors import UserError

CHUNK = 512  # images corrupted at a time: bounded memory for the random numbers of noise
PLACE, PIXELS, STRENGTH = 1001, 1002, 1003  # streams of random numbers that no view uses

Strength = float | Tensor


def crop(images: Tensor, seeds: Tensor, area: Strength) -> Tensor:
    """What remains is this fraction of the image's area, in (0, 1]: a window anywhere, resized back
    bilinearly.
    """
    box = window(seeds, area, images.shape[2], images.shape[3])
    unflipped = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    return to_uint8(crop_and_flip(images, box.to(images.device), unflipped))


def blur(images: Tensor, seeds: Tensor, sigma: Strength) -> Tensor:
    """Gaussian blur of this standard deviation in pixels, >= 0, its kernel cut at 3 sigma; edges
    are reflected.
    """
    sigma, blurred = per_image(sigma, images).float(), images.clone()
    radii = (3 * sigma).ceil().clamp(max=min(images.shape[2:]) - 1).long()
    for radius in (
        radii[radii > 0].unique().tolist()
    ):  # by kernel width: the cut must not depend on the batch
        rows = (radii == radius).nonzero().squeeze(1)
        at = rows.to(images.device)
        blurred[at] = to_uint8(
            gaussian_blur(images[at].float() / 255, sigma[rows].to(images.device), radius)
        )
    return blurred


def noise(images: Tensor, seeds: Tensor, deviation: Strength) -> Tensor:
    """Gaussian noise on every pixel and channel, of this standard deviation on the scale 0..1, >=
    0; clipped to 0..1.
    """
    u = uniform(seeds.cpu(), PIXELS, images[0].numel()).clamp(
        min=2.0**-53
    )  # 0 would be a normal of minus infinity
    normal = (math.sqrt(2) * torch.erfinv(2 * u - 1)).float().view(images.shape).to(images.device)
    return to_uint8(
        images.float() / 255
        + per_image(deviation, images).float().to(images.device).view(-1, 1, 1, 1) * normal
    )


def occlusion(images: Tensor, seeds: Tensor, area: Strength) -> Tensor:
    """A window of this fraction of the image's area, in [0, 1], anywhere, is filled with the
    image's own mean colour.
    """
    _, _, height, width = images.shape
    top, left, tall, wide = (
        window(seeds, area, height, width).to(images.device).view(-1, 4, 1, 1).unbind(1)
    )
    y, x = (
        torch.arange(height, device=images.device).view(1, -1, 1),
        torch.arange(width, device=images.device),
    )
    covered = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)  # (n, h, w)
    mean = images.float().mean((2, 3), keepdim=True).round().to(torch.uint8)
    return torch.where(covered[:, None], mean, images)


def window(seeds: Tensor, area: Strength, height: int, width: int) -> Tensor:
    """(n, 4) int64 pixels: top, left, height, width of a window of this fraction of the area, its
    place uniform by seed.

    The sides are rounded to pixels: at 28 px an area of 0.1 is 9 x 9 pixels, 0.103. A positive area
        has a pixel at least.
    """
    seeds = seeds.cpu()
    share = torch.as_tensor(area, dtype=torch.float64).cpu().expand(len(seeds))
    whole = torch.tensor([height, width])
    size = (share.sqrt()[:, None] * whole).round().long().maximum((share > 0).long()[:, None])
    corner = (uniform(seeds, PLACE, 2) * (whole - size + 1)).long()
    return torch.cat([corner, size], 1)


def per_image(strength: Strength, images: Tensor) -> Tensor:
    """(n,) float64."""
    return torch.as_tensor(strength, dtype=torch.float64).expand(len(images))


def to_uint8(x: Tensor) -> Tensor:
    """[0, 1] (clipped) -> 0..255, rounded to nearest."""
    return (x * 255).round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Corruption:
    """A corruption and its strengths.

    Attributes:
        apply: images, seeds, strength -> images.
        none: the strength that changes nothing.
        strengths: the levels to measure at, from weak to strong.
        unit: what a strength counts.
    """

    apply: Callable[[Tensor, Tensor, Strength], Tensor]
    none: float
    strengths: tuple[float, ...]
    unit: str

    def __call__(self, images: Tensor, seeds: Tensor, strength: Strength) -> Tensor:
        """The corrupted images; UserError where a strength lies outside `none`..(0 for a crop,
        infinity for blur and noise).
        """
        _check(self, images, seeds, torch.as_tensor(strength, dtype=torch.float64))
        each = per_image(strength, images)
        parts = [slice(i, i + CHUNK) for i in range(0, len(images), CHUNK)]
        return torch.cat([self.apply(images[part], seeds[part], each[part]) for part in parts])

    def random_strengths(self, seeds: Tensor) -> Tensor:
        """(n,) float64, uniform between nothing and the strongest level, by seed."""
        return self.none + uniform(seeds.cpu(), STRENGTH, 1)[:, 0] * (
            self.strengths[-1] - self.none
        )

    def severity(self, strength: Tensor) -> Tensor:
        """Distance from doing nothing: grows as the image gets worse."""
        return (strength - self.none).abs()


CORRUPTIONS: dict[str, Corruption] = {
    "crop": Corruption(crop, 1.0, (0.8, 0.6, 0.4, 0.2, 0.08), "area that remains"),
    "blur": Corruption(blur, 0.0, (0.5, 1.0, 1.5, 2.0, 3.0), "pixels"),
    "noise": Corruption(noise, 0.0, (0.05, 0.1, 0.2, 0.3, 0.5), "standard deviation, of 0..1"),
    "occlusion": Corruption(occlusion, 0.0, (0.1, 0.2, 0.3, 0.5, 0.7), "area covered"),
}


def _check(corruption: Corruption, images: Tensor, seeds: Tensor, strength: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
        raise UserError(
            f"corruptions need uint8 images (n, c, h, w), not {images.dtype} {tuple(images.shape)};"
            " convert them."
        )
    if seeds.dtype != torch.int64 or seeds.shape != images.shape[:1]:
        raise UserError(
            f"corruptions need one int64 seed an image, {len(images)}, not {seeds.dtype}"
            f" {tuple(seeds.shape)}."
        )
    area = corruption.unit.startswith("area")
    low, high = float(strength.min()), float(strength.max())
    if (
        not (0 <= low <= high <= (1 if area else math.inf))
        or not math.isfinite(high)
        or (corruption.none == 1 and low == 0)
    ):
        bounds = ("above 0" if corruption.none == 1 else "at least 0") + (
            " and at most 1" if area else " and finite"
        )
        raise UserError(
            f"the strength of this corruption ({corruption.unit}) must be {bounds}, and spans"
            f" {low:g} to {high:g}."
        )
