"""How a raster, a picture in the form of its file, becomes 8-bit pixels of the size asked for.

This module imports neither torch nor the rest of the package, except its neighbours for decoding.
"""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
AT_ONCE = 4 * MIB  # pictures of more pixels are converted strip by strip
STRIP = MIB  # values in a strip, about

Convert = Callable[[Values], NDArray[np.uint8]]
Layers = list[Image.Image]  # one of mode "RGB", or one "L" a band


class _Reduction:
    """Cuts a box out of a picture that comes in strips, and resizes it with antialias.

    The result is Pillow's `crop(box).resize(new)` with its bilinear filter, which resizes rows
    before columns too. Not its `resize(box=...)`, which mixes in pixels from outside the box.
    """

    def __init__(self, box: tuple[int, int, int, int], new: tuple[int, int]) -> None:
        self._box, self._new = box, new
        self._strips: list[Layers] = []

    def add(self, layers: Layers, top: int) -> None:
        left, upper, right, lower = self._box
        first, last = max(upper - top, 0), min(lower - top, layers[0].height)
        if first < last:
            box, new = (left, first, right, last), (self._new[0], last - first)
            parts = layers if box == (0, 0, *layers[0].size) else [x.crop(box) for x in layers]
            self._strips.append([_resized(part, new) for part in parts])

    def finish(self) -> Layers:
        joined = self._strips[0]
        if len(self._strips) > 1:
            size = self._new[0], self._box[3] - self._box[1]
            joined = [Image.new(layer.mode, size) for layer in joined]
            top = 0
            for strip in self._strips:
                for whole, layer in zip(joined, strip, strict=True):
                    whole.paste(layer, (0, top))
                top += strip[0].height
        self._strips = []
        return [_resized(layer, self._new) for layer in joined]


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


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
        targets = [_stored(box, new, raster) for box, new in targets]
    reductions = [_Reduction(box, new) for box, new in targets]
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


def _targets(
    raster: Raster, wanted: "Decoding"
) -> list[tuple[tuple[int, int, int, int], tuple[int, int]]]:
    """Boxes of the upright picture, as it is decoded, and the sizes that they are resized to."""
    width, height = raster.width, raster.height
    if raster.turned:
        width, height = height, width
    whole = (0, 0, width, height)
    if wanted.size is None:
        targets = [(whole, (width, height))]
    else:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        targets = [((left, top, left + side, top + side), (wanted.size, wanted.size))]
    if wanted.whole_side is not None:
        full = raster.upright_size
        scale = min(1.0, wanted.whole_side / min(full))
        targets.append((whole, (max(1, round(scale * full[0])), max(1, round(scale * full[1])))))
    return targets


def _stored(
    box: tuple[int, int, int, int], new: tuple[int, int], raster: Raster
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """A box of the upright picture, and its new size, in the picture as it is stored."""
    left, top, right, bottom = box
    if raster.turned:
        left, top, right, bottom, new = top, left, bottom, right, (new[1], new[0])
    if raster.orientation in (2, 3, 7, 8):
        left, right = raster.width - right, raster.width - left
    if raster.orientation in (3, 4, 6, 7):
        top, bottom = raster.height - bottom, raster.height - top
    return (left, top, right, bottom), new


def strip_rows(raster: Raster) -> int:
    """How many rows are converted at a time."""
    if raster.width * raster.height * (raster.bands + raster.alpha) <= AT_ONCE:
        return raster.height
    return max(1, STRIP // (raster.width * (raster.bands + raster.alpha)))


def _working_memory(raster: Raster, rows: int, channels: int, targets: list[Any]) -> int:
    """Bytes that strips and results take next to what decoding takes."""
    layer = 4 if channels == 3 else channels
    strip = rows * raster.width * (raster.bands + raster.alpha)
    memory = strip * 8 if not raster.wide else strip * 24
    for box, new in targets:
        joined = new[0] * (box[3] - box[1]) * (1 if rows >= raster.height else 2)
        memory += layer * joined + (layer + 2 * channels) * new[0] * new[1]
    return memory


def _raw(strip: Strip) -> bytes:
    if isinstance(strip, Image.Image):
        return strip.tobytes()
    return strip.astype(strip.dtype.newbyteorder("<"), copy=False).tobytes()


def unmeasured(values: Values, raster: Raster) -> NDArray[np.bool_]:
    """Where stored values are not finite or mean "not measured"."""
    none = np.zeros(values.shape, dtype=np.bool_)
    if values.dtype.kind == "f":
        none = ~np.isfinite(values)
    if raster.nodata is None or np.isnan(raster.nodata):
        return none
    if values.dtype.kind == "f":  # GDAL may write fewer digits than the value has
        with np.errstate(over="ignore"):
            return none | (values == values.dtype.type(raster.nodata))
    return none | (values == raster.nodata)


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
    if raster.bands == 3:
        return [Image.fromarray(np.ascontiguousarray(pixels))], filled
    return [
        Image.fromarray(np.ascontiguousarray(pixels[..., band])) for band in range(raster.bands)
    ], filled


def _composited(pixels: NDArray[np.uint8], alpha: Values, premultiplied: bool) -> NDArray[np.uint8]:
    """Pixels (rows, w, c) on white paper."""
    most = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1.0
    opaque = np.clip(alpha.astype(np.float32) / most, 0, 1)
    colour = pixels if premultiplied else pixels * opaque
    return np.rint(np.minimum(colour + 255 * (1 - opaque), 255)).astype(np.uint8)


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
