"""SimCLR's augmentation (Chen et al. 2020, section 2.1 and appendix A) for batches of uint8 images.

    crop -> flip -> colour jitter -> grey -> blur

Images are a tensor of one size, or whole pictures of different sizes: then each view is cropped
from the whole picture and resized once, so that it is as sharp as the picture allows.

Every image has its own parameters, which are hashes of its own seed: its views depend neither on
the batch around it nor on the device (up to float32 rounding). The parameters are drawn on the CPU,
a few numbers an image; pixels stay on the device of the images. On a CPU each operation works on
the images that need it. On an accelerator all images pass through all operations, and each keeps
what it needs (`views_of`): the parameters arrive in one copy, and no step waits for the device.
Each operation equals torchvision's at the same parameters to 1e-5.

Images have 1 to 32 bands. Crop, flip, brightness, contrast and blur change all of them alike; hue,
saturation and grey need colours, and only images of three bands have them.
"""

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from sureclr.config import ViewConfig
from sureclr.data import colour
from sureclr.data.crops import crop_and_flip, crop_lines, crop_pictures, crop_together
from sureclr.data.pictures import MOST_BANDS, Pictures, sent
from sureclr.data.view_parameters import COLUMNS, ViewForm, ViewParameters, plan_views
from sureclr.errors import UserError

# Numbers that a CPU core works on at once: 2 MiB of float32 stay in its cache (2**17 and 2**21 are
# slower)
NUMBERS_AT_ONCE = 2**19
# A standard deviation in pixels whose kernel is 1 at its centre and exactly 0 elsewhere in float32
NO_BLUR = 0.01


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
    """Return one view of each image, computed on the rows that need each operation.

    Args:
        images: (n, c, h, w) uint8, or n whole pictures. On the CPU.
        parameters: of n views.
        radius: of the blur's kernel in pixels; 0 for no blur.
        size: side of the views of whole pictures in pixels. Those of a tensor keep its size.

    Returns:
        (n, c, h, w) float32 in [0, 1].
    """
    if isinstance(images, Tensor):
        x = crop_and_flip(images, parameters.box, parameters.flip)
    else:
        x = crop_pictures(images, parameters.box, parameters.flip, cast(int, size))
    x = colour.jitter(x, parameters.factors, parameters.order)
    if x.shape[1] == 3:
        rows = parameters.grey.nonzero().squeeze(1)
        x.index_copy_(0, rows, colour.grey(x.index_select(0, rows)).expand(-1, 3, -1, -1))
    if radius:
        rows = parameters.sigma.nonzero().squeeze(1)
        x.index_copy_(0, rows, blur(x.index_select(0, rows), parameters.sigma[rows], radius))
    return x.clamp_(0, 1)  # the blur's weights sum to one, and hues turn, up to rounding


def views_of(values: Tensor, packed: Tensor, form: ViewForm) -> Tensor:
    """Return all views of a plan, computed on all images together.

    It equals `augment` up to float32 rounding. No operation waits for the device, copies to or from
    it, or has a shape that depends on a number there, so `torch.compile` makes a few kernels of it.

    Args:
        values: (m,) uint8, the pixels of all pictures of the plan, `ViewPlan.pictures.values`.
        packed: (n, views, columns) int32, rows of `ViewPlan.packed`, on the device of the pixels.
        form: `ViewPlan.form`.

    Returns:
        (views n, c, h, w) float32 in [0, 1]; view v of image i is row v n + i.
    """
    numbers = packed.transpose(0, 1).flatten(0, 1)  # (views n, columns)
    whole = numbers.split(list(COLUMNS.values()), dim=1)
    place, sides, box, flip, grey, operation = whole[:6]
    amount, sigma = numbers.view(torch.float32).split(list(COLUMNS.values()), dim=1)[6:]
    first = (place[:, 0].long() << 31) + place[:, 1]
    if form.largest is None:
        lines = values.view(-1, form.width)
        first //= form.width
        x = crop_lines(lines, first, (form.channels, form.height), box.long(), flip[:, 0] > 0)
    else:
        shape = form.height, form.width
        x = crop_together(
            values, form.channels, first, sides, box, flip[:, 0] > 0, shape, form.largest
        )
    if form.jitter:
        x = colour.jitter_together(x, operation, amount)
    if form.grey:
        x = colour.grey(x).where(grey[..., None, None] > 0, x)
    if form.radius:
        x = blur(x, sigma[:, 0].clamp(min=NO_BLUR), form.radius)
    return x.clamp(0, 1)


def _blocks(n: int, numbers: int, numbers_at_once: int) -> Iterator[slice]:
    """Rows to work on together: what the caches of a CPU's cores can hold."""
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
        pictures, (height, width) = Pictures.of_array(images), images.shape[2:]
    else:
        pictures, height, width = images, cast(int, size), cast(int, size)
    plan = plan_views(pictures, seeds, numbers, height, width, config)
    device = pictures.values.device
    if device.type != "cpu":
        return views_of(pictures.values, sent(plan.packed(), device), plan.form)
    shape = pictures.channels, height, width
    views = torch.empty(len(numbers), len(images), *shape)
    for view, parameters in zip(views, plan.parameters, strict=True):
        for rows in _blocks(len(images), math.prod(shape), numbers_at_once):
            part = images[rows] if isinstance(images, Tensor) else images.select(rows)
            view[rows] = augment(part, parameters[rows], plan.form.radius, size)
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
