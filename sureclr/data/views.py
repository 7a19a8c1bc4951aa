"""SimCLR's augmentation (Chen et al. 2020, section 2.1 and appendix A) for batches of uint8 images.

    crop -> flip -> colour jitter -> grey -> blur

Every image has its own parameters, which are hashes of its own seed: its views depend neither on
the batch around it nor on the device (up to float32 rounding). The parameters are drawn on the CPU,
a few numbers an image, so that no step waits for an accelerator; pixels stay on the device of the
images. Each operation equals torchvision's at the same parameters to 1e-5.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from sureclr.config import ViewConfig
from sureclr.data import colour
from sureclr.data.counter_rng import uniform_numbers
from sureclr.errors import UserError

# Candidates before a central crop is used, as in torchvision's RandomResizedCrop
CROP_TRIES = 10
# Numbers that a CPU core works on at once: 2 MiB of float32 stay in its cache (2**17 and 2**21 are
# slower)
NUMBERS_AT_ONCE = 2**19


@dataclass(frozen=True)
class ViewParameters:
    """The parameters of one view of each of n images; all tensors are on the CPU.

    Attributes:
        box: (n, 4) int64 pixels: top, left, height, width of the crop.
        flip: (n,) bool.
        factors: (n, 4) float32: brightness, contrast, saturation, hue.
        order: (n, 4) int64: the operation of each step, see `colour.jitter`; -1 where the colours
            stay.
        grey: (n,) bool.
        sigma: (n,) float32: standard deviation of the blur in pixels; 0 where there is none.
    """

    box: Tensor
    flip: Tensor
    factors: Tensor
    order: Tensor
    grey: Tensor
    sigma: Tensor

    def __getitem__(self, rows: slice) -> "ViewParameters":
        """Return the parameters of some of the images."""
        return ViewParameters(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw_parameters(
    seeds: Tensor, view: int, height: int, width: int, config: ViewConfig
) -> ViewParameters:
    """Draw the parameters of one view of each image.

    Args:
        seeds: (n,) int64, one an image.
        view: number of the view.
        height: of the images, in pixels.
        width: of the images, in pixels.
        config: the distributions.
    """
    u = uniform_numbers(seeds.cpu(), view, 2 * CROP_TRIES + 15)
    area, aspect, place, factors, order, coins = u.split(
        [CROP_TRIES, CROP_TRIES, 2, 4, 4, 5], dim=1
    )
    flip, jitter, grey, blurred, sigma = coins.unbind(dim=1)
    return ViewParameters(
        box=_draw_box(area, aspect, place, height, width, config),
        flip=flip < config.flip,
        factors=_draw_factors(factors, config).float(),
        order=order.argsort(dim=1).where(jitter[:, None] < config.jitter_p, -1),
        grey=grey < config.grey_p,
        sigma=_between(sigma, *config.blur_sigma).where(blurred < config.blur_p, 0).float(),
    )


def _between(u: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    return low + u * (high - low)


def _draw_factors(u: Tensor, config: ViewConfig) -> Tensor:
    """(n, 4) float64: brightness, contrast and saturation around 1, hue around 0."""
    amounts = [config.brightness, config.contrast, config.saturation, config.hue]
    reach = config.strength * torch.tensor(amounts, dtype=torch.float64)
    centre = torch.tensor([1, 1, 1, 0], dtype=torch.float64)
    # At least 0 for the first three; hue reaches half a turn at most
    lowest = torch.maximum(centre - reach, centre - 1)
    return _between(u, lowest, centre + reach)


def _draw_box(
    area: Tensor, aspect: Tensor, place: Tensor, height: int, width: int, config: ViewConfig
) -> Tensor:
    """(n, 4) int64: the first of ten candidates that fits, else a central crop.

    As torchvision's RandomResizedCrop.get_params.
    """
    area = height * width * _between(area, *config.crop_area)
    aspect = _between(aspect, *map(math.log, config.crop_aspect)).exp()
    sides = [(area / aspect).sqrt().round(), (area * aspect).sqrt().round()]
    size = torch.stack(sides, dim=-1).long()  # (n, 10, 2)
    whole = torch.tensor([height, width])
    fits = ((size > 0) & (size <= whole)).all(dim=-1)
    first = fits.long().argmax(dim=1)  # the first True
    chosen = size[torch.arange(len(size)), first]
    corner = (place * (whole - chosen + 1)).long()
    central = torch.tensor(_central_size(height, width, config.crop_aspect))
    fallback = torch.cat([(whole - central) // 2, central])
    return torch.cat([corner, chosen], dim=1).where(fits.any(dim=1, keepdim=True), fallback)


def _central_size(height: int, width: int, aspect: tuple[float, float]) -> tuple[int, int]:
    """The largest height and width with an aspect that is allowed."""
    if width / height < aspect[0]:
        return round(width / aspect[0]), width
    if width / height > aspect[1]:
        return height, round(height * aspect[1])
    return height, width


def crop_and_flip(images: Tensor, box: Tensor, flip: Tensor) -> Tensor:
    """Cut a box out of each image, resize it back bilinearly, and flip some images.

    A crop is never larger than the image, so nothing shrinks, and torchvision's `antialias` makes
    no difference.

    Args:
        images: (n, c, h, w) uint8.
        box: (n, 4) int64 pixels: top, left, height, width. On the same device.
        flip: (n,) bool. On the same device.

    Returns:
        (n, c, h, w) float32 in [0, 1].
    """
    n, c, height, width = images.shape
    top, bottom, down = _neighbours(box[:, 0], box[:, 2], height)
    left, right, along = (
        t.where(~flip[:, None], t.flip(1)) for t in _neighbours(box[:, 1], box[:, 3], width)
    )
    rows = images.view(n * c * height, width)
    # Row 0 of every channel
    first = torch.arange(0, n * c * height, height, device=images.device).view(n, c, 1)
    upper, lower = (
        rows.index_select(0, (first + y[:, None]).view(-1)).view(images.shape).float()
        for y in (top, bottom)
    )
    x = upper.lerp_(lower, down[:, None, :, None])
    left, right = (index[:, None, None].expand(images.shape) for index in (left, right))
    return x.gather(3, left).lerp_(x.gather(3, right), along[:, None, None]).div_(255)


def _neighbours(start: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels between which each of `size` output pixels lies, and the second one's weight.

    Each is (n, size). Pixel i of the output lies at (i + 1/2) length / size - 1/2, clamped to the
    crop. Computed in integers, so exact at any size: float32 positions (and grid_sample) miss
    torchvision's values by 1.3e-5 at 96 pixels.
    """
    start, length = start[:, None], length[:, None]
    # In units of 1 / (2 size) pixels
    position = (2 * torch.arange(size, device=start.device) + 1) * length - size
    position.clamp_(min=0)
    near = position // (2 * size)
    weight = (position - 2 * size * near).float() / (2 * size)
    return start + near, start + torch.minimum(near + 1, length - 1), weight


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur each image with a Gaussian kernel of 2 radius + 1 pixels; edges are reflected.

    Args:
        x: (n, c, h, w) float.
        sigma: (n,) standard deviation in pixels, > 0.
        radius: pixels on each side of the kernel's centre, less than h and w.
    """
    distance = torch.arange(-radius, radius + 1, device=x.device)
    weight = torch.softmax(-0.5 * (distance / sigma[:, None]) ** 2, dim=1)
    half = weight[:, radius:, None, None, None]  # (n, radius + 1, 1, 1, 1), the centre first
    padded = functional.pad(x, (0, 0, radius, radius), mode="reflect")
    rows = _weighted_sum(padded, half, radius, 2)
    padded = functional.pad(rows, (radius, radius, 0, 0), mode="reflect")
    return _weighted_sum(padded, half, radius, 3)


def _weighted_sum(padded: Tensor, weight: Tensor, radius: int, dim: int) -> Tensor:
    """The symmetric weighted sum of shifted copies along `dim`.

    Not a convolution, because autocast would compute that in bfloat16.

    Args:
        padded: the images with `radius` more pixels on either side along `dim`.
        weight: (n, radius + 1, 1, 1, 1), the centre first.
        radius: pixels on each side of the centre.
        dim: 2 or 3.
    """
    size = padded.shape[dim] - 2 * radius
    total = padded.narrow(dim, radius, size) * weight[:, 0]
    for shift in range(1, radius + 1):
        total.addcmul_(
            padded.narrow(dim, radius - shift, size) + padded.narrow(dim, radius + shift, size),
            weight[:, shift],
        )
    return total


def augment(images: Tensor, parameters: ViewParameters, radius: int) -> Tensor:
    """Return one view of each image.

    Args:
        images: (n, c, h, w) uint8.
        parameters: of n views.
        radius: of the blur's kernel in pixels; 0 for no blur.

    Returns:
        (n, c, h, w) float32 in [0, 1].
    """
    device = images.device
    x = crop_and_flip(images, parameters.box.to(device), parameters.flip.to(device))
    x = colour.jitter(x, parameters.factors.to(device), parameters.order)
    if x.shape[1] == 3:
        rows = parameters.grey.nonzero().squeeze(1).to(device)
        x.index_copy_(0, rows, colour.grey(x.index_select(0, rows)).expand(-1, 3, -1, -1))
    if radius:
        chosen = parameters.sigma.nonzero().squeeze(1)
        rows, sigma = chosen.to(device), parameters.sigma[chosen].to(device)
        x.index_copy_(0, rows, blur(x.index_select(0, rows), sigma, radius))
    return x.clamp_(0, 1)  # the blur's weights sum to one, and hues turn, up to rounding


def _blocks(images: Tensor, numbers_at_once: int) -> Iterator[slice]:
    """Rows to work on together: on a CPU what the caches of its cores can hold, else all."""
    n, rows = len(images), len(images)
    if images.device.type == "cpu":
        rows = torch.get_num_threads() * max(1, numbers_at_once // images[0].numel())
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def _views(
    images: Tensor,
    seeds: Tensor,
    numbers: Sequence[int],
    config: ViewConfig,
    numbers_at_once: int = NUMBERS_AT_ONCE,
) -> Tensor:
    """The views of these numbers, one block of n after the other: (len(numbers) n, c, h, w)."""
    images = _checked(images, seeds)
    n, channels, height, width = images.shape
    radius = config.blur_radius(height, width)
    views = torch.empty(len(numbers), n, channels, height, width, device=images.device)
    for view, number in zip(views, numbers, strict=True):
        parameters = draw_parameters(seeds, number, height, width, config)
        for rows in _blocks(images, numbers_at_once):
            view[rows] = augment(images[rows], parameters[rows], radius)
    return views.flatten(0, 1)


def _checked(images: Tensor, seeds: Tensor) -> Tensor:
    if (
        images.dtype != torch.uint8
        or images.ndim != 4
        or images.shape[1] not in (1, 3)
        or images.numel() == 0
    ):
        raise UserError(
            f"views need uint8 images (n, 1 or 3, height, width), not {images.dtype}"
            f" {tuple(images.shape)}."
        )
    if seeds.dtype != torch.int64 or seeds.shape != images.shape[:1]:
        raise UserError(
            f"views need {len(images)} int64 seeds, one an image, not {seeds.dtype}"
            f" {tuple(seeds.shape)}."
        )
    return images.contiguous()


def one_view(
    images: Tensor,
    seeds: Tensor,
    view: int,
    config: ViewConfig,
    numbers_at_once: int = NUMBERS_AT_ONCE,
) -> Tensor:
    """Return one random view of each image, on the device of the images.

    Args:
        images: (n, c, h, w) uint8 with c = 1 or 3, n > 0.
        seeds: (n,) int64, one an image; best on the CPU, where the parameters are drawn.
        view: number of the view; another number gives another view.
        config: the distributions of the views.
        numbers_at_once: pixel values that a CPU core works on together; it changes the speed, not
            the result.

    Returns:
        (n, c, h, w) float32 in [0, 1].

    Raises:
        UserError: images of another kind, or none, or seeds that do not fit.
    """
    return _views(images, seeds, (view,), config, numbers_at_once)


def two_views(images: Tensor, seeds: Tensor, config: ViewConfig) -> Tensor:
    """Return the views number 0 and 1 of each image, see `one_view`.

    Args:
        images: (n, c, h, w) uint8 with c = 1 or 3, n > 0.
        seeds: (n,) int64, one an image; best on the CPU.
        config: the distributions of the views.

    Returns:
        (2n, c, h, w) float32 in [0, 1]; rows i and i + n are the views of image i.

    Raises:
        UserError: images of another kind, or none, or seeds that do not fit.
    """
    return _views(images, seeds, (0, 1), config)
