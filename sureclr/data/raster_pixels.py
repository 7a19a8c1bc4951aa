"""How a raster, a picture in the form of its file, becomes 8-bit pixels of the size asked for.

This module imports neither torch nor the rest of the package, except its neighbours for decoding.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil, floor
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sureclr.data.rasters import MIB, Raster, Strip, Unreadable, Values, bands_of, check_memory

if TYPE_CHECKING:
    from sureclr.data.decoding import Decoding

TURNS = {  # what undoes each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The filters by name, and their radius in pixels of the source where they do not reduce
FILTERS: Mapping[str, tuple[Image.Resampling, int]] = MappingProxyType(
    {"bilinear": (Image.Resampling.BILINEAR, 1), "bicubic": (Image.Resampling.BICUBIC, 2)}
)
AT_ONCE = 4 * MIB  # pictures of more pixels are converted strip by strip
STRIP = MIB  # values in a strip, about

Convert = Callable[[Values], NDArray[np.uint8]]
Layers = list[Image.Image]  # one of mode "RGB", or one "L" a band
Box = tuple[float, float, float, float]  # left, top, right, bottom
Side = TypeVar("Side", int, float)


@dataclass(frozen=True)
class _Target:
    """A part of a picture, and what it is resized to.

    Attributes:
        box: the part, which need not end between pixels.
        seen: whole pixels, among them the box, that the filter may mix; no others.
        new: width and height of the result.
        filter: a name in `FILTERS`.
    """

    box: Box
    seen: tuple[int, int, int, int]
    new: tuple[int, int]
    filter: str = "bilinear"

    @staticmethod
    def of_pixels(
        box: tuple[int, int, int, int], new: tuple[int, int], filter: str = "bilinear"
    ) -> "_Target":
        """A box of whole pixels, outside of which nothing is seen."""
        return _Target(box, box, new, filter)


class _Reduction:
    """Cuts a box out of a picture that comes in strips, and resizes it with antialias.

    The result is Pillow's `crop(seen).resize(new, filter, box)`, which resizes rows before columns
    too.
    """

    def __init__(self, target: _Target) -> None:
        self._target = target
        self._strips: list[Layers] = []

    def add(self, layers: Layers, top: int) -> None:
        left, upper, right, lower = self._target.seen
        first, last = max(upper - top, 0), min(lower - top, layers[0].height)
        if first < last:
            seen = (left, first, right, last)
            parts = layers if seen == (0, 0, *layers[0].size) else [x.crop(seen) for x in layers]
            box = (self._target.box[0] - left, 0, self._target.box[2] - left, last - first)
            self._strips.append(
                [self._resized(x, self._target.new[0], last - first, box) for x in parts]
            )

    def finish(self) -> Layers:
        joined = self._strips[0]
        _, upper, _, lower = self._target.seen
        width, height = self._target.new
        if len(self._strips) > 1:
            size = width, lower - upper
            joined = [Image.new(layer.mode, size) for layer in joined]
            top = 0
            for strip in self._strips:
                for whole, layer in zip(joined, strip, strict=True):
                    whole.paste(layer, (0, top))
                top += strip[0].height
        self._strips = []
        box = (0, self._target.box[1] - upper, width, self._target.box[3] - upper)
        return [self._resized(layer, width, height, box) for layer in joined]

    def _resized(self, image: Image.Image, width: int, height: int, box: Box) -> Image.Image:
        if image.size == (width, height) and box == (0, 0, width, height):
            return image
        return image.resize((width, height), FILTERS[self._target.filter][0], box)


def centre_box(width: int, height: int, size: int, share: float) -> Box:
    """Return the place of the centre square that is a share of the shorter side of a picture.

    It is what stays of a picture whose shorter side is resized to floor(size / share) pixels, and
    out of the middle of which a square of `size` pixels is cut then. So are pretrained networks
    evaluated (timm's `crop_pct`, torchvision's Resize and CenterCrop), and the whole numbers to
    which these round the resized sides and the place are kept: half a pixel more or less shows at
    every edge of a photograph.

    Args:
        width: of the picture.
        height: of the picture.
        size: side of the square when it is resized.
        share: above 0 and at most 1.

    Returns:
        The sides of the square in pixels of the picture; they need not be whole numbers.
    """
    short = floor(size / share)
    across = short if width <= height else int(short * width / height)
    down = short if height <= width else int(short * height / width)
    left, top = round((across - size) / 2), round((down - size) / 2)
    x, y = width / across, height / down
    return left * x, top * y, min(width, (left + size) * x), min(height, (top + size) * y)


def _square_target(
    width: int, height: int, full: tuple[int, int], wanted: "Decoding", size: int
) -> _Target:
    """The centre square of an upright picture, which may have been reduced from its full size."""
    if wanted.centre_share is None:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
        return _Target.of_pixels(box, (size, size), wanted.interpolation)
    times = round(full[0] / width)  # a JPEG's reduction rounds its sides up
    places = centre_box(*full, size, wanted.centre_share)
    left_, top_, right, bottom = (place / times for place in places)
    radius = FILTERS[wanted.interpolation][1]
    margin = ceil(radius * max(1, (right - left_) / size, (bottom - top_) / size)) + 1
    seen = (
        max(0, floor(left_) - margin),
        max(0, floor(top_) - margin),
        min(width, ceil(right) + margin),
        min(height, ceil(bottom) + margin),
    )
    return _Target((left_, top_, right, bottom), seen, (size, size), wanted.interpolation)


def square_of(pixels: NDArray[np.uint8], wanted: "Decoding") -> NDArray[np.uint8]:
    """Return the centre square of a picture whose pixels are known, as decoding it makes it.

    Args:
        pixels: (c, h, w).
        wanted: has a size; its channels do not count.

    Returns:
        (c, size, size).
    """
    assert wanted.size is not None
    height, width = pixels.shape[1:]
    reduction = _Reduction(_square_target(width, height, (width, height), wanted, wanted.size))
    reduction.add(_images(pixels.transpose(1, 2, 0)), 0)
    return _pixels(reduction.finish())


def square_and_whole(
    raster: Raster, wanted: "Decoding"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, str, int]:
    """The square, the whole picture, the content's sum and the number of filled values."""
    channels = _channels(raster, wanted.channels)
    targets = _targets(raster, wanted)
    rows = strip_rows(raster)
    check_memory(raster, _working_memory(raster, rows, channels, targets))
    convert = _converter(raster, *_range(raster, wanted.value_range, rows))
    digest = hashlib.sha256(
        f"{raster.width} {raster.height} {raster.bands} {raster.kind} {raster.orientation}".encode()
    )
    # A picture that comes whole is turned first, a larger one at the end, when it is small
    turn = TURNS.get(raster.orientation)
    turns_first = turn if rows >= raster.height else None
    turns_last = turn if turns_first is None else None
    if turns_last is not None:
        targets = [_stored(target, raster) for target in targets]
    reductions = [_Reduction(target) for target in targets]
    top = filled = 0
    for strip in raster.strips(rows):
        if raster.content is None:
            digest.update(_raw(strip))
        layers, more = _layers(strip, raster, convert)
        layers = _recoloured(layers, channels)
        filled, height = filled + more, layers[0].height
        if turns_first is not None:
            layers = [layer.transpose(turns_first) for layer in layers]
        for reduction in reductions:
            reduction.add(layers, top)
        top += height
    results = []
    for reduction in reductions:
        layers = reduction.finish()
        if turns_last is not None:
            layers = [layer.transpose(turns_last) for layer in layers]
        results.append(_pixels(layers))
    content = digest.hexdigest() if raster.content is None else raster.content()
    return results[0], results[1] if len(results) > 1 else None, content, filled


def _channels(raster: Raster, wanted: int | None) -> int:
    """The channels of the result; Unreadable if the picture does not have what is asked for."""
    if wanted in (None, raster.bands) or (wanted in (1, 3) and raster.bands in (1, 3)):
        return raster.bands if wanted is None else wanted
    raise Unreadable(f"it has {bands_of(raster.bands)}; use channels={raster.bands}")


def _targets(raster: Raster, wanted: "Decoding") -> list[_Target]:
    """Parts of the upright picture, as it is decoded, and the sizes that they are resized to."""
    width, height = raster.width, raster.height
    if raster.turned:
        width, height = height, width
    whole, full = (0, 0, width, height), raster.upright_size
    if wanted.size is None:
        targets = [_Target.of_pixels(whole, (width, height))]
    else:
        targets = [_square_target(width, height, full, wanted, wanted.size)]
    if wanted.whole_side is not None:
        scale = min(1.0, wanted.whole_side / min(full))
        new = max(1, round(scale * full[0])), max(1, round(scale * full[1]))
        targets.append(_Target.of_pixels(whole, new))
    return targets


def _stored(target: _Target, raster: Raster) -> _Target:
    """A part of the upright picture as a part of the picture as it is stored."""
    new = (target.new[1], target.new[0]) if raster.turned else target.new
    box, seen = _stored_box(target.box, raster), _stored_box(target.seen, raster)
    return replace(target, box=box, seen=seen, new=new)


def _stored_box(
    box: tuple[Side, Side, Side, Side], raster: Raster
) -> tuple[Side, Side, Side, Side]:
    left, top, right, bottom = box
    if raster.turned:
        left, top, right, bottom = top, left, bottom, right
    if raster.orientation in (2, 3, 7, 8):
        left, right = raster.width - right, raster.width - left
    if raster.orientation in (3, 4, 6, 7):
        top, bottom = raster.height - bottom, raster.height - top
    return left, top, right, bottom


def strip_rows(raster: Raster) -> int:
    """How many rows are converted at a time."""
    if raster.width * raster.height * (raster.bands + raster.alpha) <= AT_ONCE:
        return raster.height
    return max(1, STRIP // (raster.width * (raster.bands + raster.alpha)))


def _working_memory(raster: Raster, rows: int, channels: int, targets: list[_Target]) -> int:
    """Bytes that strips and results take next to what decoding takes."""
    layer = 4 if channels == 3 else channels
    strip = rows * raster.width * (raster.bands + raster.alpha)
    memory = strip * 8 if not raster.wide else strip * 24
    for target in targets:
        new, seen = target.new, target.seen
        joined = new[0] * (seen[3] - seen[1]) * (1 if rows >= raster.height else 2)
        memory += layer * joined + (layer + 2 * channels) * new[0] * new[1]
    return memory


def _raw(strip: Strip) -> bytes:
    if isinstance(strip, Image.Image):
        return strip.tobytes()
    return strip.astype(strip.dtype.newbyteorder("<"), copy=False).tobytes()


def unmeasured(values: Values, raster: Raster) -> NDArray[np.bool_]:
    """Where stored values are not finite or mean "not measured"."""
    is_float = values.dtype.kind == "f"
    holes: NDArray[np.bool_] = ~np.isfinite(values) if is_float else np.zeros(values.shape, bool)
    if raster.nodata is None or np.isnan(raster.nodata):
        return holes
    with np.errstate(over="ignore"):  # GDAL may write fewer digits than the value has
        holes |= values == (values.dtype.type(raster.nodata) if is_float else raster.nodata)
    return holes


def measured(values: Values, raster: Raster) -> NDArray[np.float64]:
    """Stored values in the unit of the picture."""
    return values.astype(np.float64) * raster.slope + raster.intercept


def _range(raster: Raster, wanted: tuple[float, float] | None, rows: int) -> tuple[float, float]:
    """What becomes 0 and 255; for a picture that is not wide it is 0 and 255.

    Without a range that is asked for, black is 0, and white does not depend on the picture where
    possible: 65535 for integers, and for floats the first of 1, 255 and 65535 that is not exceeded.
    Values that are negative or larger go from their least to their greatest.
    """
    if not raster.wide:
        return 0.0, 255.0
    if wanted is not None:
        low, high = map(float, wanted)
        return low, high if high > low else low + 1  # a source of one value only
    low, high = np.inf, -np.inf
    for strip in raster.strips(rows):
        stored = np.asarray(strip)[..., : raster.bands]
        values = measured(stored[~unmeasured(stored, raster)], raster)
        low, high = min(low, values.min(initial=np.inf)), max(high, values.max(initial=-np.inf))
    if low > high:  # nothing was measured
        return 0.0, 1.0
    scales = (1.0, 255.0, 65535.0) if raster.kind.kind == "f" else (65535.0,)
    fitting = [scale for scale in scales if high <= scale]
    return (0.0, fitting[0]) if fitting and low >= 0 else (low, max(high, low + 1))


def _converter(raster: Raster, black: float, white: float) -> Convert:
    """A function that makes 8 bits of stored values: black becomes 0 and white 255."""

    def convert(values: Values) -> NDArray[np.uint8]:
        with np.errstate(invalid="ignore", over="ignore"):  # values that are not finite
            numbers = (measured(values, raster) - black) * 255 / (white - black)
        np.nan_to_num(numbers, copy=False)
        return np.rint(np.clip(numbers, 0, 255, out=numbers), out=numbers).astype(np.uint8)

    if raster.kind.kind not in "iu" or raster.kind.itemsize != 2:
        return convert
    kind = raster.kind.newbyteorder("=")
    table = convert(np.arange(1 << 16, dtype=np.uint16).view(kind))  # of every value
    return lambda values: table[values.astype(kind, copy=False).view(np.uint16)]


def _layers(strip: Strip, raster: Raster, convert: Convert) -> tuple[Layers, int]:
    """A strip as 8-bit images, and how many of its values were filled with black."""
    if isinstance(strip, Image.Image):
        return [strip], 0
    bands = strip[..., : raster.bands]
    holes = unmeasured(bands, raster)
    filled = int(np.count_nonzero(holes))
    pixels = convert(bands) if raster.wide else np.array(bands)
    if raster.inverted:
        pixels = 255 - pixels
    if filled:
        pixels[holes] = 0
    if raster.alpha:
        pixels = _composited(pixels, strip[..., raster.bands :], raster.premultiplied)
    return _images(pixels), filled


def _composited(pixels: NDArray[np.uint8], alpha: Values, premultiplied: bool) -> NDArray[np.uint8]:
    """Pixels (rows, w, c) on white paper."""
    most = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1.0
    opaque = np.clip(alpha.astype(np.float32) / most, 0, 1)
    colour = pixels if premultiplied else pixels * opaque
    on_paper: NDArray[np.float32] = np.minimum(colour + 255 * (1 - opaque), 255)
    return np.rint(on_paper).astype(np.uint8)


def _images(pixels: NDArray[np.uint8]) -> Layers:
    """Pixels (h, w, c) as layers."""
    if pixels.shape[2] == 3:
        return [Image.fromarray(np.ascontiguousarray(pixels))]
    bands = range(pixels.shape[2])
    return [Image.fromarray(np.ascontiguousarray(pixels[..., band])) for band in bands]


def _recoloured(layers: Layers, channels: int) -> Layers:
    if len(layers) == 1 and channels in (1, 3):
        mode = "L" if channels == 1 else "RGB"
        return layers if layers[0].mode == mode else [layers[0].convert(mode)]
    return layers


def _pixels(layers: Layers) -> NDArray[np.uint8]:
    """Layers as (c, h, w)."""
    if len(layers) > 1:
        return np.stack([np.asarray(layer) for layer in layers])
    pixels = np.atleast_3d(np.asarray(layers[0]))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
