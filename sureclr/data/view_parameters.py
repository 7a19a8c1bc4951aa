"""The random parameters of views: drawn on the CPU, and packed for an accelerator.

Every image has its own parameters, which are hashes of its own seed: they depend neither on the
batch around it nor on the device. A `ViewPlan` holds those of all views of a step. It needs no
pixels, so it can be made while the step before is still running, and `ViewPlan.packed` puts all its
numbers into one tensor, which reaches a device in one copy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sureclr.config import ViewConfig
from sureclr.data.colour import OPERATIONS
from sureclr.data.counter_rng import uniform_numbers
from sureclr.data.pictures import Pictures

# Candidates before a central crop is used, as in torchvision's RandomResizedCrop
CROP_TRIES = 10
# Sides of crops are rounded up to a multiple of this, so that a compiler meets few shapes
SIDE_STEP = 32


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


@dataclass(frozen=True)
class ViewForm:
    """What all views of a plan have in common; it can be hashed, and is a constant to a compiler.

    Attributes:
        channels: of the images.
        height: of the views, in pixels.
        width: of the views, in pixels.
        largest: height and width that every crop fits into, in pixels, where images of any size are
            resized with antialiasing. None: all images have the size of the views and lie one after
            the other, so that no crop shrinks.
        jitter: whether the colours of some views change.
        grey: whether some views lose their colours.
        radius: of the blur's kernel in pixels; 0 where no view is blurred.
    """

    channels: int
    height: int
    width: int
    largest: tuple[int, int] | None
    jitter: bool
    grey: bool
    radius: int


# What the columns of `ViewPlan.packed` hold, and how many columns each takes. A place in the
# pixels has up to 62 bits, the upper 31 first. The last two are the bits of float32 numbers.
COLUMNS = {
    "place": 2,
    "sides": 2,
    "box": 4,
    "flip": 1,
    "grey": 1,
    "operation": 4,
    "amount": 4,
    "sigma": 1,
}


@dataclass(frozen=True, eq=False)
class ViewPlan:
    """The parameters of one or more views of each of n images; all tensors are on the CPU.

    Attributes:
        pictures: the images, of which only places and sides are used here.
        parameters: of each view.
        form: what the views have in common.
    """

    pictures: Pictures
    parameters: tuple[ViewParameters, ...]
    form: ViewForm

    def packed(self) -> Tensor:
        """Return all numbers that views are made of, (n, views, columns) int32, contiguous.

        It can be sliced by images and sent to a device: `views.views_of` takes it there.
        """
        return torch.stack([self._columns(view) for view in self.parameters], dim=1)

    def _columns(self, drawn: ViewParameters) -> Tensor:
        """(n, columns) int32 of one view, in the order of `COLUMNS`."""
        place = self.pictures.start
        coloured = self.form.channels == 3
        # An operation that the image does not have is a blend that keeps it as it is
        known = (drawn.order >= 0) & (drawn.order < (len(OPERATIONS) if coloured else 2))
        amount = drawn.factors.gather(1, drawn.order.clamp(min=0)).where(known, 1)
        whole = {
            "place": torch.stack([place >> 31, place & (2**31 - 1)], dim=1),
            "sides": torch.stack([self.pictures.height, self.pictures.width], dim=1),
            "box": drawn.box,
            "flip": drawn.flip[:, None],
            "grey": drawn.grey[:, None],
            "operation": drawn.order,
        }
        floats = torch.cat([amount, drawn.sigma[:, None]], dim=1)
        return torch.cat([*(t.int() for t in whole.values()), floats.view(torch.int32)], dim=1)


def plan_views(
    pictures: Pictures,
    seeds: Tensor,
    numbers: Sequence[int],
    height: int,
    width: int,
    config: ViewConfig,
) -> ViewPlan:
    """Draw the parameters of some views of each image.

    Args:
        pictures: n images; their pixels are not looked at, and may lie on any device.
        seeds: (n,) int64, one an image, on the CPU.
        numbers: of the views.
        height: of the views, in pixels.
        width: of the views, in pixels.
        config: the distributions.
    """
    sides = pictures.height, pictures.width
    parameters = tuple(draw_parameters(seeds, number, *sides, config) for number in numbers)
    form = ViewForm(
        channels=pictures.channels,
        height=height,
        width=width,
        largest=None if _in_lines(pictures, height, width) else _largest(parameters),
        jitter=config.jitter_p > 0,
        grey=config.grey_p > 0 and pictures.channels == 3,
        radius=config.blur_radius(height, width) if config.blur_p else 0,
    )
    return ViewPlan(pictures, parameters, form)


def _in_lines(pictures: Pictures, height: int, width: int) -> bool:
    """Whether all images have this size, and the pixels can be read as lines of this width."""
    same = (pictures.height == height) & (pictures.width == width) & (pictures.start % width == 0)
    return bool(same.all()) and len(pictures.values) % width == 0


def _largest(parameters: Sequence[ViewParameters]) -> tuple[int, int]:
    """Height and width that every crop fits into."""
    sides = torch.stack([view.box[:, 2:].amax(dim=0) for view in parameters]).amax(dim=0)
    height, width = (-(-side // SIDE_STEP) * SIDE_STEP for side in sides.tolist())
    return height, width
