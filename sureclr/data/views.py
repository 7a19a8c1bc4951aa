"""SimCLR's augmentation (Chen et al. 2020, section 2.1 and appendix A) for batches of uint8 images.

    crop -> flip -> colour jitter -> grey -> blur

Images are a tensor of one size, or whole pictures of different sizes: then each view is cropped
from the whole picture and resized once, so that it is as sharp as the picture allows.

Every image has its own parameters, which are hashes of its own seed: its views depend neither on
the batch around it nor on the device (up to float32 rounding). The parameters are drawn on the CPU,
a few numbers an image, so that no step waits for an accelerator; pixels stay on the device of the
images. Each operation equals torchvision's at the same parameters to 1e-5.

Images have 1 to 32 bands. Crop, flip, brightness, contrast and blur change all of them alike; hue,
saturation and grey need colours, and only images of three bands have them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from sureclr.config import ViewConfig
from sureclr.data import colour
from sureclr.data.counter_rng import uniform_numbers
from sureclr.data.pictures import MOST_BANDS, Pictures
from sureclr.errors import UserError

# Candidates before a central crop is used, as in torchvision's RandomResizedCrop
CROP_TRIES = 10
# Numbers that a CPU core works on at once: 2 MiB of float32 stay in its cache (2**17 and 2**21 are
# slower)
NUMBERS_AT_ONCE = 2**19
# Numbers between the two passes of `_resize_together`: 64 MiB of float32, and twice that of indices
NUMBERS_BETWEEN = 2**24


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
    seeds: Tensor, view: int, height: int | Tensor, width: int | Tensor, config: ViewConfig
) -> ViewParameters:
    """Draw the parameters of one view of each image.

    Args:
        seeds: (n,) int64, one an image.
        view: number of the view.
        height: of the images, in pixels: one number, or (n,) int64 on the CPU.
        width: of the images, in pixels, likewise.
        config: the distributions.
    """
    u = uniform_numbers(seeds.cpu(), view, 2 * CROP_TRIES + 15)
    area, aspect, place, factors, order, coins = u.split(
        [CROP_TRIES, CROP_TRIES, 2, 4, 4, 5], dim=1
    )
    flip, jitter, grey, blurred, sigma = coins.unbind(dim=1)
    return ViewParameters(
        box=_draw_box(area, aspect, place, _sizes(height, width, len(seeds)), config),
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


def _sizes(height: int | Tensor, width: int | Tensor, n: int) -> Tensor:
    """(n, 2) int64: height and width of each image."""
    return torch.stack([torch.as_tensor(side).expand(n) for side in (height, width)], dim=1)


def _draw_box(
    area: Tensor, aspect: Tensor, place: Tensor, whole: Tensor, config: ViewConfig
) -> Tensor:
    """(n, 4) int64: the first of ten candidates that fits, else a central crop.

    As torchvision's RandomResizedCrop.get_params; `whole` is (n, 2), height and width.
    """
    area = whole.prod(dim=1, keepdim=True) * _between(area, *config.crop_area)
    aspect = _between(aspect, *map(math.log, config.crop_aspect)).exp()
    sides = [(area / aspect).sqrt().round(), (area * aspect).sqrt().round()]
    size = torch.stack(sides, dim=-1).long()  # (n, 10, 2)
    fits = ((size > 0) & (size <= whole[:, None])).all(dim=-1)
    first = fits.long().argmax(dim=1)  # the first True
    chosen = size[torch.arange(len(size)), first]
    corner = (place * (whole - chosen + 1)).long()
    central = _central_size(whole, config.crop_aspect)
    fallback = torch.cat([(whole - central) // 2, central], dim=1)
    return torch.cat([corner, chosen], dim=1).where(fits.any(dim=1, keepdim=True), fallback)


def _central_size(whole: Tensor, aspect: tuple[float, float]) -> Tensor:
    """(n, 2) int64, 1 or more: the largest height and width with an aspect that is allowed."""
    height, width = whole.unbind(dim=1)
    ratio = width.double() / height
    tall = (width.double() / aspect[0]).round().long().where(ratio < aspect[0], height)
    wide = (height.double() * aspect[1]).round().long().where(ratio > aspect[1], width)
    return torch.stack([tall, wide], dim=1).clamp(min=1)


def crop_and_flip(images: Tensor, box: Tensor, flip: Tensor) -> Tensor:
    """Cut a box out of each image, resize it back bilinearly, and flip some images.

    A crop is never larger than the image, so nothing shrinks, and torchvision's `antialias` makes
    no difference. For crops of another size than the result see `crop_pictures`.

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


def crop_pictures(pictures: Pictures, box: Tensor, flip: Tensor, size: int) -> Tensor:
    """Cut a box out of each whole picture, resize it, and flip some results.

    The filter is bilinear and antialiased: a triangle of one source pixel on each side, or of one
    result pixel where the crop shrinks, as torchvision's `resized_crop(..., antialias=True)`.

    Args:
        pictures: n whole pictures.
        box: (n, 4) int64 pixels of the picture: top, left, height, width. On the CPU.
        flip: (n,) bool. On the CPU.
        size: side of the result in pixels.

    Returns:
        (n, c, size, size) float32 in [0, 1], on the device of the pictures.
    """
    device = pictures.values.device
    resize = _resize_each if device.type == "cpu" else _resize_together
    x = resize(pictures, box, size).div_(255)
    rows = flip.nonzero().squeeze(1).to(device)
    return x.index_copy_(0, rows, x.index_select(0, rows).flip(3))


def _resize_each(pictures: Pictures, box: Tensor, size: int) -> Tensor:
    """The resized crops, one after the other: ten times as fast on a CPU as all together."""
    x = torch.empty(len(pictures), pictures.channels, size, size)
    for i, (top, left, height, width) in enumerate(box.tolist()):
        crop = pictures[i][None, :, top : top + height, left : left + width].float()
        x[i] = functional.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
    return x


def _resize_together(
    pictures: Pictures, box: Tensor, size: int, numbers_between: int = NUMBERS_BETWEEN
) -> Tensor:
    """The resized crops in a few large steps for an accelerator, in blocks of bounded memory."""
    numbers = pictures.channels * size * box[:, 2]  # between the two passes
    block = (numbers.cumsum(0) - numbers) // numbers_between
    counts = block.unique_consecutive(return_counts=True)[1].tolist()
    rows = torch.arange(len(box)).split(counts)
    return torch.cat([_resize_block(pictures.select(part), box[part], size) for part in rows])


def _resize_block(pictures: Pictures, box: Tensor, size: int) -> Tensor:
    """Weighted sums along the lines of all crops, then along their columns.

    Indices are computed on the CPU, so that no step waits for the accelerator.
    """
    values, channels = pictures.values, pictures.channels
    top, left, height, width = box.unbind(1)
    lines = channels * height  # of each crop: its rows in all bands
    first = lines.cumsum(0) - lines
    image = torch.arange(len(box)).repeat_interleave(lines)
    line = torch.arange(len(image)) - first[image]
    band, row = line // height[image], line % height[image]
    row += band * pictures.height[image] + top[image]
    start = pictures.start[image] + row * pictures.width[image] + left[image]
    bands = first[:, None] + torch.arange(channels) * height[:, None]  # (n, c), their first lines
    image, start, bands = (t.to(values.device) for t in (image, start, bands))
    between = torch.zeros(len(image), size, device=values.device)
    for column, weight in _taps(width, size, values.device):
        between.addcmul_(values[start[:, None] + column[image]].float(), weight[image])
    x = torch.zeros(len(box), channels, size, size, device=values.device)
    for row, weight in _taps(height, size, values.device):
        x.addcmul_(between[bands[:, :, None] + row[:, None]], weight[:, None, :, None])
    return x


def _taps(length: Tensor, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the source pixels of each result pixel, one after the other, with their weights.

    Both are (n, size); pixels that are not needed have weight 0. The steps and their float32 are
    those of torch's `interpolate`.
    """
    pixels = length[:, None]
    scale = pixels.float() / size
    reach = scale.clamp(min=1)
    centre = scale * (torch.arange(size) + 0.5)
    begin = (centre - reach + 0.5).long().clamp(min=0)
    count = torch.minimum((centre + reach + 0.5).long(), pixels) - begin
    step = torch.arange(int(count.max()))
    distance = (begin[..., None] + step) - centre[..., None] + 0.5
    weight = (1 - (distance / reach[..., None]).abs()).clamp(min=0)
    weight = weight.where(step < count[..., None], 0)
    weight = (weight / weight.sum(-1, keepdim=True)).to(device)
    column = torch.minimum(begin[..., None] + step, pixels[..., None] - 1).to(device)
    yield from zip(column.unbind(-1), weight.unbind(-1), strict=True)


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


def augment(
    images: Tensor | Pictures, parameters: ViewParameters, radius: int, size: int | None = None
) -> Tensor:
    """Return one view of each image.

    Args:
        images: (n, c, h, w) uint8, or n whole pictures.
        parameters: of n views.
        radius: of the blur's kernel in pixels; 0 for no blur.
        size: side of the views of whole pictures in pixels. Those of a tensor keep its size.

    Returns:
        (n, c, h, w) float32 in [0, 1].
    """
    if isinstance(images, Tensor):
        device = images.device
        x = crop_and_flip(images, parameters.box.to(device), parameters.flip.to(device))
    else:
        device = images.values.device
        x = crop_pictures(images, parameters.box, parameters.flip, cast(int, size))
    x = colour.jitter(x, parameters.factors.to(device), parameters.order)
    if x.shape[1] == 3:
        rows = parameters.grey.nonzero().squeeze(1).to(device)
        x.index_copy_(0, rows, colour.grey(x.index_select(0, rows)).expand(-1, 3, -1, -1))
    if radius:
        chosen = parameters.sigma.nonzero().squeeze(1)
        rows, sigma = chosen.to(device), parameters.sigma[chosen].to(device)
        x.index_copy_(0, rows, blur(x.index_select(0, rows), sigma, radius))
    return x.clamp_(0, 1)  # the blur's weights sum to one, and hues turn, up to rounding


def _blocks(n: int, numbers: int, device: torch.device, numbers_at_once: int) -> Iterator[slice]:
    """Rows to work on together: on a CPU what the caches of its cores can hold, else all."""
    rows = n
    if device.type == "cpu":
        rows = torch.get_num_threads() * max(1, numbers_at_once // numbers)
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def _views(
    images: Tensor | Pictures,
    seeds: Tensor,
    numbers: Sequence[int],
    config: ViewConfig,
    size: int | None,
    numbers_at_once: int = NUMBERS_AT_ONCE,
) -> Tensor:
    """The views of these numbers, one block of n after the other: (len(numbers) n, c, h, w)."""
    images = _checked(images, seeds, size)
    if isinstance(images, Tensor):
        device, (channels, height, width) = images.device, images.shape[1:]
        sides: tuple[Any, Any] = height, width
    else:
        device, channels, height = images.values.device, images.channels, cast(int, size)
        width, sides = height, (images.height, images.width)
    shape = channels, height, width
    radius = config.blur_radius(*shape[1:])
    views = torch.empty(len(numbers), len(images), *shape, device=device)
    for view, number in zip(views, numbers, strict=True):
        parameters = draw_parameters(seeds, number, *sides, config)
        for rows in _blocks(len(images), math.prod(shape), device, numbers_at_once):
            part = images[rows] if isinstance(images, Tensor) else images.select(rows)
            view[rows] = augment(part, parameters[rows], radius, size)
    return views.flatten(0, 1)


def _checked(images: Tensor | Pictures, seeds: Tensor, size: int | None) -> Tensor | Pictures:
    """A contiguous tensor whose views have its own size, or pictures; a UserError otherwise."""
    if size is not None and size < 1:
        raise UserError(f"size must be at least 1 pixel, not {size}.")
    if isinstance(images, Tensor) and (
        images.dtype != torch.uint8
        or images.ndim != 4
        or not 1 <= images.shape[1] <= MOST_BANDS
        or images.numel() == 0
    ):
        raise UserError(
            f"views need uint8 images (n, 1 to {MOST_BANDS} bands, height, width), not"
            f" {images.dtype} {tuple(images.shape)}."
        )
    if not len(images):
        raise UserError("views need at least one image; there is none.")
    if seeds.dtype != torch.int64 or seeds.shape != (len(images),):
        raise UserError(
            f"views need {len(images)} int64 seeds, one an image, not {seeds.dtype}"
            f" {tuple(seeds.shape)}."
        )
    if isinstance(images, Pictures):
        if size is None:
            raise UserError("views of whole pictures need their side in pixels; give size=96.")
        return images
    if size in (None, images.shape[2]) and size in (None, images.shape[3]):
        return images.contiguous()
    return Pictures.of_array(images)


def one_view(
    images: Tensor | Pictures,
    seeds: Tensor,
    view: int,
    config: ViewConfig,
    size: int | None = None,
    numbers_at_once: int = NUMBERS_AT_ONCE,
) -> Tensor:
    """Return one random view of each image, on the device of the images.

    Args:
        images: (n, c, h, w) uint8 with c = 1 to 32 bands, n > 0; or n whole pictures, from each of
            which the view is cropped before anything is resized.
        seeds: (n,) int64, one an image; best on the CPU, where the parameters are drawn.
        view: number of the view; another number gives another view.
        config: the distributions of the views. Areas and aspects of crops are those of the whole
            image, and the blur's kernel is measured in pixels of the view.
        size: side of the square views in pixels; None: views of a tensor have its height and width.
            Whole pictures need a size.
        numbers_at_once: pixel values that a CPU core works on together; it changes the speed, not
            the result.

    Returns:
        (n, c, size, size) float32 in [0, 1], or (n, c, h, w) without a size.

    Raises:
        UserError: images of another kind, or none, seeds that do not fit, or no size for pictures.
    """
    return _views(images, seeds, (view,), config, size, numbers_at_once)


def two_views(
    images: Tensor | Pictures, seeds: Tensor, config: ViewConfig, size: int | None = None
) -> Tensor:
    """Return the views number 0 and 1 of each image, see `one_view`.

    Args:
        images: (n, c, h, w) uint8 with c = 1 to 32 bands, n > 0; or n whole pictures.
        seeds: (n,) int64, one an image; best on the CPU.
        config: the distributions of the views.
        size: side of the square views in pixels; None: views of a tensor have its height and width.

    Returns:
        (2n, c, h, w) float32 in [0, 1]; rows i and i + n are the views of image i.

    Raises:
        UserError: images of another kind, or none, seeds that do not fit, or no size for pictures.
    """
    return _views(images, seeds, (0, 1), config, size)
