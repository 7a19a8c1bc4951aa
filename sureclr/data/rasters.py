"""A picture in the form in which its file stores it, before it becomes 8-bit pixels.

A `Raster` gives strips of rows, so that a large picture is converted with little memory. This
module imports neither torch nor the rest of the package.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MIB = 1 << 20
EIGHT_BITS: np.dtype[Any] = np.dtype(np.uint8)
# A worker's memory in bytes, and the part of it that Python and its libraries take
MEMORY, INTERPRETER = 512 * MIB, 72 * MIB

DAMAGED = "its pixels are damaged (a checksum is wrong)"

Values = NDArray[Any]  # (rows, w, planes), as stored
Strip = Image.Image | Values  # an image is 8-bit "L" or "RGB", without transparency


class Unreadable(Exception):
    """A reason, in words for the user, why a picture is not used."""


@dataclass(frozen=True)
class Raster:
    """A picture as its file stores it.

    Attributes:
        width: in pixels, as stored: the orientation is still to be applied.
        height: likewise.
        bands: planes without alpha.
        strips: called with a number of rows, yields the picture from top to bottom in strips of
            that many rows, or of as many as the file's format asks for. It may be called again.
        memory: bytes that decoding takes at most, next to the strips.
        kind: type of the stored values; uint8 for all that a decoder gives as 8-bit pixels.
        full: (width, height) of the picture as stored, which a JPEG that was reduced while it was
            decoded no longer has.
        pages: pages in the file.
        alpha: whether another plane after the bands says how opaque they are.
        premultiplied: whether the bands are already multiplied by alpha.
        orientation: 1 to 8, as in EXIF.
        nodata: the stored value that means "not measured".
        slope: what stored values are multiplied by, before `intercept` is added.
        intercept: see `slope`.
        inverted: whether the largest value is black.
        content: gives the sha256 that stands for the picture; None: its pixels' is taken.
    """

    width: int
    height: int
    bands: int
    strips: Callable[[int], Iterator[Strip]]
    memory: int
    kind: np.dtype[Any] = EIGHT_BITS
    full: tuple[int, int] = (0, 0)
    pages: int = 1
    alpha: bool = False
    premultiplied: bool = False
    orientation: int = 1
    nodata: float | None = None
    slope: float = 1.0
    intercept: float = 0.0
    inverted: bool = False
    content: Callable[[], str] | None = None

    @property
    def wide(self) -> bool:
        """Whether values have more than 8 bits, so that they are scaled."""
        return self.kind != np.uint8 or (self.slope, self.intercept) != (1.0, 0.0)

    @property
    def turned(self) -> bool:
        """Whether the orientation exchanges width and height."""
        return self.orientation >= 5

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height of the whole upright picture, not reduced."""
        width, height = self.full if self.full != (0, 0) else (self.width, self.height)
        return (height, width) if self.turned else (width, height)


def check_memory(raster: Raster, more: int = 0) -> None:
    """Refuse a picture that would take more memory than a worker has.

    Args:
        raster: the picture.
        more: bytes that are needed next to those of decoding.

    Raises:
        Unreadable: it would.
    """
    needed = raster.memory + more + INTERPRETER
    if needed > MEMORY:
        width, height = raster.full if raster.full != (0, 0) else (raster.width, raster.height)
        planes = f" in {raster.bands} bands" if raster.bands > 1 else ""
        raise Unreadable(
            f"its {width:,} x {height:,} pixels of {raster.kind.itemsize * 8} bits{planes} need"
            f" {needed // MIB + 1:,} MiB of memory, more than {MEMORY // MIB}; reduce the picture"
        )


def slices(values: Values) -> Callable[[int], Iterator[Strip]]:
    """Return the `Raster.strips` of an array (h, w, planes) in memory."""

    def strips(rows: int) -> Iterator[Strip]:
        for top in range(0, len(values), rows):
            yield values[top : top + rows]

    return strips


def bands_of(count: int) -> str:
    """Return a number of bands in words."""
    return f"{count} band" + "s" * (count != 1)


def inflates(parts: Iterable[bytes]) -> bool:
    """Return whether deflated data is complete and fits the sum at its own end."""
    inflate = zlib.decompressobj()
    try:
        for data in parts:
            while data and not inflate.eof:
                inflate.decompress(data, MIB)
                data = inflate.unconsumed_tail
    except zlib.error:
        return False
    return inflate.eof
