"""Pictures that Pillow does not decode: TIFF of many or wide bands, .npy arrays, DICOM.

This module imports neither torch nor the rest of the package, except its neighbours for decoding.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from sureclr.data.pillow_rasters import (
    NODATA,
    WHITE_IS_ZERO,
    Patient,
    number,
    open_pillow,
)
from sureclr.data.rasters import (
    DAMAGED,
    MEMORY,
    MIB,
    Raster,
    Strip,
    Unreadable,
    Values,
    bands_of,
    inflates,
    slices,
)

if TYPE_CHECKING:
    from tifffile import TiffPage

MOST_BANDS = 32
DEFLATED = b"1.2.840.10008.1.2.1.99"  # DICOM's name of a file of which all is compressed
MOST_DICOM_READS = 500_000  # small ones, two or three an element; they take some seconds
KINDS = frozenset(
    ["uint8", "int8", "uint16", "uint32", "int16", "int32", "float16", "float32", "float64"]
)
DEFLATE = (8, 32946)  # compressions of TIFF that have a checksum, which libtiff does not look at
# Planes of colour for each photometric interpretation of TIFF that Pillow knows
COLOUR_PLANES = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
ONLY_PILLOW = (3, 5, 6, 8)  # palettes, CMYK, YCbCr and Lab have to be converted
# Pillow holds a whole page in memory; tifffile reads a larger one, a row of tiles at a time, if its
# values are colours as they stand
LARGE, ROW_BY_ROW = MEMORY // 2, (1, 2)
SMALLER, MASK = 1, 4  # bits of the tag that tells what a page is beside the full picture


# --- TIFF -------------------------------------------------------------------------------


def open_tiff(stream: IO[bytes], page: int) -> Raster:
    """Open a page of a TIFF file, with Pillow if it reads such a page rightly, else with tifffile.

    Smaller copies of the picture and masks, which many files hold beside it, do not count as pages.

    Raises:
        Exception: it cannot be read.
    """
    try:
        stream.seek(0)
        image: Image.Image | None = Image.open(stream, formats=("TIFF",))
    except UnidentifiedImageError:
        image = None
    numbers = [0]
    if image is None or page or getattr(image, "is_animated", False):
        numbers = _pages(stream)
    if page >= len(numbers):
        raise Unreadable(f"it has no page {page + 1}")
    if image is not None:
        try:
            image.seek(numbers[page])
        except (SyntaxError, KeyError):  # a page in a form that Pillow does not know
            image = None
    if image is not None and _is_for_pillow(image):
        raster = open_pillow(stream, numbers[page], None)
        tags: Any = getattr(image, "tag_v2", {})
        if raster.memory < LARGE or tags.get(262) not in ROW_BY_ROW:
            return replace(_checked(raster, image, stream), pages=len(numbers))
        bands = _tiff_bands(stream, numbers[page], None, True)
    else:
        # Pillow opens no file whose first page it does not know
        bands = _tiff_bands(stream, numbers[page], image, image is not None or page > 0)
    return replace(bands, pages=len(numbers))


def _pages(stream: IO[bytes]) -> list[int]:
    """The numbers of the pages that are pictures of their own."""
    from tifffile import TiffFile

    numbers = [0]
    stream.seek(0)
    try:
        pages = TiffFile(stream).pages
        for number in range(1, len(pages)):
            tag: Any = pages[number].aspage().tags.get(254)
            if not (tag and tag.value & (SMALLER | MASK)):
                numbers.append(number)
    except Exception:  # the chain of pages is damaged: those before it count
        pass
    return numbers


def _is_for_pillow(image: Image.Image) -> bool:
    """Whether Pillow reads a page of TIFF with all its bands, all their bits and the right alpha.

    It takes a fourth band for alpha or drops it, and gives only 8 bits of bands of 16.
    """
    tags: Any = getattr(image, "tag_v2", {})
    planes, bits = int(tags.get(277, 1)), max(tags.get(258, (1,)))
    photometric = tags.get(262, 0)
    if photometric in ONLY_PILLOW:
        return True
    signed = tags.get(339, (1,))[0] == 2
    if planes == 1:
        # Pillow's 32-bit integers are signed, and its 8-bit integers are not
        return not (signed if bits <= 8 else bits == 32 and not signed and image.mode == "I")
    colour = COLOUR_PLANES.get(photometric, 0)
    has_alpha = planes == colour + 1 and tuple(tags.get(338, ()))[:1] in ((1,), (2,))
    return bits <= 8 and not signed and (planes == colour or has_alpha)


def _checked(raster: Raster, image: Image.Image, stream: IO[bytes]) -> Raster:
    """The raster, whose strips check the sums of deflate before they are used."""
    tags: Any = getattr(image, "tag_v2", {})
    if tags.get(259) not in DEFLATE:
        return raster
    starts, lengths = tags.get(273) or tags.get(324, ()), tags.get(279) or tags.get(325, ())

    def strips(rows: int) -> Iterator[Strip]:
        checked = False
        for strip in raster.strips(rows):  # decoded now: what Pillow refuses is refused first
            if not checked:
                checked = True
                for start, length in zip(starts, lengths, strict=False):
                    stream.seek(start)
                    _check_deflate(stream.read(length))
            yield strip

    return replace(raster, strips=strips)


def _check_deflate(data: bytes) -> None:
    """Raise Unreadable if the sum at the end of a deflated strip is missing or wrong."""
    if not inflates([data]):
        raise Unreadable(DAMAGED)


def _tiff_bands(
    stream: IO[bytes], number_of_page: int, image: Image.Image | None, known: bool
) -> Raster:
    """A page of TIFF as tifffile reads it.

    Args:
        stream: the file.
        number_of_page: from 0.
        image: the same page in Pillow, which is decoded as well, so that what Pillow refuses as
            damaged is refused here too; None if it is too large or Pillow does not know such pages.
        known: whether Pillow knows such pages.
    """
    from tifffile import TiffFile

    stream.seek(0)
    page = TiffFile(stream).pages[number_of_page].aspage()
    separate, depth, height, width, together = page.shaped
    planes = separate * together
    kind = np.dtype(page.dtype or "V")
    extras = tuple(page.extrasamples)
    alphas = [planes - len(extras) + i for i, extra in enumerate(extras) if extra in (1, 2)]
    bands = planes - bool(alphas)
    if depth != 1 or min(height, width, bands) < 1:  # the only plane may be alpha
        raise Unreadable("it is no picture of two dimensions")
    if kind.name not in KINDS or page.bitspersample != kind.itemsize * 8:
        raise Unreadable(f"values of the type {kind.name} in a TIFF file are not read here")
    is_plain = kind == np.uint8 and bands in (1, 3)
    if not known and is_plain and page.photometric != 1:  # 1: bands that are not called colours
        name = getattr(page.compression, "name", page.compression)
        raise Unreadable(f"Pillow does not read this kind of TIFF (its compression is {name})")
    if bands > MOST_BANDS:
        raise Unreadable(f"it has {bands_of(bands)}; at most {MOST_BANDS} are read")
    segment_height = page.tilelength if page.is_tiled else min(page.rowsperstrip, height)
    memory = 3 * segment_height * width * planes * kind.itemsize
    memory += max(page.databytecounts, default=0)

    def strips(rows: int) -> Iterator[Strip]:
        if image is not None and 4 * image.width * image.height + memory < MEMORY // 2:
            _check_with_pillow(image)
        order = [i for i in range(planes) if i not in alphas[:1]] + alphas[:1]
        blocks = _tiff_blocks(stream, page, segment_height)
        for block in [np.concatenate(list(blocks))] if rows >= height else blocks:
            yield block if order == list(range(planes)) else block[..., order]

    tag: Any = page.tags.get(274)
    nodata: Any = page.tags.get(NODATA)
    turn = int(tag.value) if tag and 1 <= int(tag.value) <= 8 else 1
    return Raster(
        width=width,
        height=height,
        bands=bands,
        strips=strips,
        memory=memory,
        kind=kind,
        alpha=bool(alphas),
        premultiplied=bool(alphas) and extras[alphas[0] - planes + len(extras)] == 1,
        orientation=turn,
        nodata=number(nodata.value) if nodata else None,
        inverted=page.photometric == WHITE_IS_ZERO,
    )


def _check_with_pillow(image: Image.Image) -> None:
    """Raise what Pillow raises at damage; it also opens some intact pages that it cannot decode."""
    try:
        image.load()
    except ValueError as error:
        if "raw mode" not in str(error):  # bands one after the other, without compression
            raise


def _tiff_blocks(stream: IO[bytes], page: "TiffPage", segment_height: int) -> Iterator[Values]:
    """The rows of a page, as many at a time as its strips or tiles are high."""
    separate, _, height, width, together = page.shaped
    down = ceil(height / segment_height)
    across = ceil(width / page.tilewidth) if page.is_tiled else 1
    tables: Any = page.jpegtables
    if len(page.dataoffsets) < separate * down * across:
        raise Unreadable("some of its strips or tiles are missing")
    for row in range(down):
        rows = min(segment_height, height - row * segment_height)
        block = np.empty((rows, width, separate * together), page.dtype)
        for part in range(separate * across):
            plane, column = divmod(part, across)
            index = (plane * down + row) * across + column
            length = page.databytecounts[index]
            stream.seek(page.dataoffsets[index])
            data = stream.read(length)
            if not length or len(data) < length:
                raise Unreadable("the image file is truncated")
            if page.compression in DEFLATE:
                _check_deflate(data)
            try:
                values = page.decode(data, index, jpegtables=tables)[0]
            except ValueError as error:
                if "imagecodecs" not in str(error):
                    raise
                name = getattr(page.compression, "name", page.compression)
                raise Unreadable(
                    f"many or wide bands in TIFF's compression {name} need the extra bands:"
                    " install sureclr[bands]"
                ) from None
            if values is None:
                raise Unreadable("some of its strips or tiles are empty")
            left = column * (page.tilewidth if page.is_tiled else width)
            piece = values[0, :rows, : width - left]
            target = block[:, left : left + piece.shape[1]]
            target[..., plane : plane + 1 if separate > 1 else None] = piece
        yield block


# --- .npy -------------------------------------------------------------------------------


def open_npy(stream: IO[bytes], wanted: int | None) -> Raster:
    """Open an array (h, w), (h, w, c) or (c, h, w).

    Args:
        stream: the file.
        wanted: the number of bands that is asked for, which decides where either of the first and
            the last axis may be that of the bands.

    Raises:
        Exception: it cannot be read.
    """
    start = stream.seek(0)
    version = np.lib.format.read_magic(stream)
    reader = {1: np.lib.format.read_array_header_1_0}.get(
        version[0], np.lib.format.read_array_header_2_0
    )
    shape, _, kind = reader(stream)
    if kind.hasobject:
        raise Unreadable("it holds Python objects, which are not read from strangers' files")
    if kind.kind not in "buif" or min(shape, default=1) < 1:
        raise Unreadable(f"an array of {kind} with the shape {shape} is no picture")
    axis = bands_axis(shape, wanted)
    memory = (int(np.prod(shape, dtype=np.float64)) if shape else 1) * kind.itemsize

    def strips(rows: int) -> Iterator[Strip]:
        stream.seek(start)
        values = np.lib.format.read_array(stream, allow_pickle=False)
        if values.dtype == np.bool_:
            values = values.astype(np.uint8) * 255
        yield from slices(np.moveaxis(values, axis, -1) if axis is not None else values[..., None])(
            rows
        )

    height, width, bands = (
        (*shape, 1) if axis is None else (*shape[1:], shape[0]) if axis == 0 else shape
    )
    if kind == np.bool_:
        kind, memory = np.dtype(np.uint8), 2 * memory
    return Raster(width, height, bands, strips, memory, kind)


def bands_axis(shape: tuple[int, ...], wanted: int | None) -> int | None:
    """Return which axis of an array is that of its bands; None for (h, w).

    Raises:
        Unreadable: it cannot be known.
    """
    if len(shape) == 2:
        return None
    if len(shape) != 3:
        raise Unreadable(f"its shape {shape} is not (h, w), (h, w, c) or (c, h, w)")
    axes = [axis for axis in (0, 2) if shape[axis] <= MOST_BANDS]
    for preferred in (
        [axis for axis in axes if shape[axis] == wanted],
        [axis for axis in axes if shape[axis] in (1, 3)],
        # the other two are the sides of a square
        [axis for axis in axes if shape[1] == shape[2 - axis]],
    ):
        if len(axes) > 1 and len(preferred) == 1:
            axes = preferred
    if not axes:
        raise Unreadable(f"its shape {shape} has no axis of at most {MOST_BANDS} bands")
    if len(axes) > 1:
        raise Unreadable(
            f"its shape {shape} may be (h, w, c) or (c, h, w); make one side larger than"
            f" {MOST_BANDS}, or use channels={shape[2]} or channels={shape[0]}"
        )
    return axes[0]


# --- DICOM ------------------------------------------------------------------------------


def open_dicom(stream: IO[bytes], page: int) -> Raster:
    """Open a frame of a DICOM file: grey with its rescaling, or colour.

    Raises:
        Exception: it cannot be read, or pydicom is not installed.
    """
    try:
        from pydicom import dcmread
        from pydicom.pixels.utils import pixel_array
    except ImportError:
        raise Unreadable("DICOM needs the extra dicom: install sureclr[dicom]") from None
    length = stream.seek(0, 2)
    if length > MEMORY // 2:
        raise Unreadable(f"its file has {length // MIB:,} MiB; reduce the picture")
    stream.seek(0)
    if DEFLATED in stream.read():  # pydicom would inflate it whole: 500 MB from one of 500 kB
        raise Unreadable("deflated DICOM files are not read here; save it without compression")
    stream.seek(0)
    patient: Any = Patient(stream, MOST_DICOM_READS)
    data: Any = dcmread(patient)
    if "PixelData" not in data and "FloatPixelData" not in data:
        raise Unreadable("it holds no picture")
    pages = int(data.get("NumberOfFrames") or 1)
    if page >= pages:
        raise Unreadable(f"it has no page {page + 1}")
    planes, photometric = int(data.SamplesPerPixel), str(data.PhotometricInterpretation)
    height, width, bits = int(data.Rows), int(data.Columns), int(data.BitsAllocated)
    signed = data.get("PixelRepresentation", 0) == 1
    kind = np.dtype(
        np.uint8
        if bits <= 8 and not signed
        else f"float{bits}"
        if "PixelData" not in data
        else f"{'' if signed else 'u'}int{bits}"
    )
    if photometric == "PALETTE COLOR":
        raise Unreadable("DICOM pictures with a palette are not read here")

    def strips(rows: int) -> Iterator[Strip]:
        values = pixel_array(data, index=page)
        if bits == 1:
            values = values * np.uint8(255)
        yield from slices(values if planes > 1 else values[..., None])(rows)

    return Raster(
        width=width,
        height=height,
        bands=planes,
        strips=strips,
        memory=length + 3 * height * width * planes * kind.itemsize,
        kind=kind,
        pages=pages,
        nodata=number(data.get("PixelPaddingValue")) if planes == 1 else None,
        slope=float(data.get("RescaleSlope") or 1) if planes == 1 else 1.0,
        intercept=float(data.get("RescaleIntercept") or 0) if planes == 1 else 0.0,
        inverted=photometric == "MONOCHROME1",
    )
