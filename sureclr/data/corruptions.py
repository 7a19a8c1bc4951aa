"""Corruptions of a known strength, with which certainty is evaluated.

A model that sees less should be less certain. Each corruption is a function

    (images uint8 (n, c, h, w), seeds int64 (n,), strength) -> images uint8 (n, c, h, w)

whose strength is one number for all images, or (n,) one an image. As for the views, what happens to
an image depends on its own seed alone, so it is the same in any batch. Crop and blur are those of
views.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sureclr.data.counter_rng import uniform_numbers
from sureclr.data.crops import crop_and_flip
from sureclr.data.views import blur
from sureclr.errors import UserError

IMAGES_AT_ONCE = 512  # bounds the memory for the random numbers of noise
PLACE, PIXELS, STRENGTH = 1001, 1002, 1003  # streams of random numbers that no view uses

Strength = float | Tensor


def crop_images(images: Tensor, seeds: Tensor, area: Strength) -> Tensor:
    """Cut a window out of each image, at a random place, and resize it back bilinearly.

    Args:
        images: (n, c, h, w) uint8.
        seeds: (n,) int64.
        area: of the window, as a fraction of the image's, in (0, 1].
    """
    box = window(seeds, area, images.shape[2], images.shape[3])
    unflipped = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    return to_uint8(crop_and_flip(images, box.to(images.device), unflipped))


def blur_images(images: Tensor, seeds: Tensor, sigma: Strength) -> Tensor:
    """Blur each image with a Gaussian kernel that is cut at 3 sigma; edges are reflected.

    Args:
        images: (n, c, h, w) uint8.
        seeds: not used, since a blur is not random.
        sigma: standard deviation in pixels, >= 0.
    """
    sigma, blurred = per_image(sigma, images).float(), images.clone()
    radii = (3 * sigma).ceil().clamp(max=min(images.shape[2:]) - 1).long()
    # Images of one kernel width together: where the kernel is cut must not depend on the batch
    for radius in radii[radii > 0].unique().tolist():
        rows = (radii == radius).nonzero().squeeze(1)
        at = rows.to(images.device)
        x = images[at].float() / 255
        blurred[at] = to_uint8(blur(x, sigma[rows].to(images.device), radius))
    return blurred


def add_noise(images: Tensor, seeds: Tensor, deviation: Strength) -> Tensor:
    """Add Gaussian noise to every pixel and channel; values are clipped to 0..255.

    Args:
        images: (n, c, h, w) uint8.
        seeds: (n,) int64.
        deviation: standard deviation on the scale 0..1, >= 0.
    """
    # Clamped, because 0 would become a normal number of minus infinity
    u = uniform_numbers(seeds.cpu(), PIXELS, images[0].numel()).clamp(min=2.0**-53)
    normal = (math.sqrt(2) * torch.erfinv(2 * u - 1)).float().view(images.shape).to(images.device)
    scale = per_image(deviation, images).float().to(images.device).view(-1, 1, 1, 1)
    return to_uint8(images.float() / 255 + scale * normal)


def occlude(images: Tensor, seeds: Tensor, area: Strength) -> Tensor:
    """Fill a window of each image, at a random place, with the image's mean colour.

    Args:
        images: (n, c, h, w) uint8.
        seeds: (n,) int64.
        area: of the window, as a fraction of the image's, in [0, 1].
    """
    _, _, height, width = images.shape
    box = window(seeds, area, height, width).to(images.device)
    top, left, tall, wide = box.view(-1, 4, 1, 1).unbind(1)
    y = torch.arange(height, device=images.device).view(1, -1, 1)
    x = torch.arange(width, device=images.device)
    covered = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)  # (n, h, w)
    mean = images.float().mean((2, 3), keepdim=True).round().to(torch.uint8)
    return torch.where(covered[:, None], mean, images)


def window(seeds: Tensor, area: Strength, height: int, width: int) -> Tensor:
    """Draw a window of the image's shape, whose place is uniform by seed.

    Its sides are rounded to pixels: at 28 pixels an area of 0.1 becomes 9 x 9 pixels, 0.103. A
    window of positive area has at least one pixel.

    Args:
        seeds: (n,) int64.
        area: of the window, as a fraction of the image's, in [0, 1].
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        (n, 4) int64 on the CPU: top, left, height and width in pixels.
    """
    seeds = seeds.cpu()
    share = torch.as_tensor(area, dtype=torch.float64).cpu().expand(len(seeds))
    whole = torch.tensor([height, width])
    size = (share.sqrt()[:, None] * whole).round().long().maximum((share > 0).long()[:, None])
    corner = (uniform_numbers(seeds, PLACE, 2) * (whole - size + 1)).long()
    return torch.cat([corner, size], 1)


def per_image(strength: Strength, images: Tensor) -> Tensor:
    """Return one strength an image, (n,) float64.

    Args:
        strength: one number, or (n,).
        images: (n, ...).
    """
    return torch.as_tensor(strength, dtype=torch.float64).expand(len(images))


def to_uint8(x: Tensor) -> Tensor:
    """Scale values of [0, 1] to 0..255, rounded to the nearest integer and clipped.

    Args:
        x: float, any shape.
    """
    return (x * 255).round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Corruption:
    """A corruption and its strengths.

    Attributes:
        apply: (images, seeds, strength) -> images.
        none: the strength at which an image stays as it is.
        strengths: the levels at which to measure, from weak to strong.
        unit: what a strength counts.
    """

    apply: Callable[[Tensor, Tensor, Strength], Tensor]
    none: float
    strengths: tuple[float, ...]
    unit: str

    def __call__(
        self,
        images: Tensor,
        seeds: Tensor,
        strength: Strength,
        images_at_once: int = IMAGES_AT_ONCE,
    ) -> Tensor:
        """Return the corrupted images.

        Args:
            images: (n, c, h, w) uint8, n > 0.
            seeds: (n,) int64.
            strength: one number, or (n,).
            images_at_once: number of images that are corrupted together; it limits the memory and
                does not change the result.

        Raises:
            UserError: images or seeds of another kind, or a strength that cannot be: outside
                (0, 1] for a crop, [0, 1] for an occlusion, or negative or infinite.
        """
        _check(self, images, seeds, torch.as_tensor(strength, dtype=torch.float64))
        each = per_image(strength, images)
        parts = [slice(i, i + images_at_once) for i in range(0, len(images), images_at_once)]
        return torch.cat([self.apply(images[part], seeds[part], each[part]) for part in parts])

    def random_strengths(self, seeds: Tensor) -> Tensor:
        """Draw strengths by seed, uniformly between `none` and the strongest level.

        Args:
            seeds: (n,) int64.

        Returns:
            (n,) float64 on the CPU.
        """
        u = uniform_numbers(seeds.cpu(), STRENGTH, 1)[:, 0]
        return self.none + u * (self.strengths[-1] - self.none)

    def severity(self, strength: Tensor) -> Tensor:
        """Return the distance of a strength from `none`, which grows as images get worse."""
        return (strength - self.none).abs()


CORRUPTIONS: dict[str, Corruption] = {
    "crop": Corruption(crop_images, 1.0, (0.8, 0.6, 0.4, 0.2, 0.08), "area that remains"),
    "blur": Corruption(blur_images, 0.0, (0.5, 1.0, 1.5, 2.0, 3.0), "pixels"),
    "noise": Corruption(add_noise, 0.0, (0.05, 0.1, 0.2, 0.3, 0.5), "standard deviation, of 0..1"),
    "occlusion": Corruption(occlude, 0.0, (0.1, 0.2, 0.3, 0.5, 0.7), "area covered"),
}


def _check(corruption: Corruption, images: Tensor, seeds: Tensor, strength: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
        raise UserError(
            f"corruptions need uint8 images (n, c, h, w), not {images.dtype} {tuple(images.shape)};"
            " convert them."
        )
    if seeds.dtype != torch.int64 or seeds.shape != images.shape[:1]:
        raise UserError(
            f"corruptions need {len(images)} int64 seeds, one an image, not {seeds.dtype}"
            f" {tuple(seeds.shape)}."
        )
    is_area, is_crop = corruption.unit.startswith("area"), corruption.none == 1
    low, high = float(strength.min()), float(strength.max())
    inside = 0 <= low <= high <= (1 if is_area else math.inf) and math.isfinite(high)
    if not inside or (is_crop and low == 0):
        lower = "above 0" if is_crop else "at least 0"
        upper = "at most 1" if is_area else "finite"
        raise UserError(
            f"the strength of this corruption ({corruption.unit}) must be {lower} and {upper}; it"
            f" spans {low:g} to {high:g}."
        )
