"""Pictures that Pillow decodes, among them HEIF through pillow-heif.

This module imports neither torch nor the rest of the package, except its neighbours for decoding.
"""

import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import IO, Any

import numpy as np
from PIL import BmpImagePlugin, IcoImagePlugin, Image, PngImagePlugin

from sureclr.data.rasters import DAMAGED, INTERPRETER, MEMORY, Raster, Strip, Unreadable, inflates

Image.init()  # makes Pillow load its plugins; some builds lack some
# Not every format of Pillow: EPS would run Ghostscript on a stranger's file; HDF5 and GRIB are not
# pictures. JPEG opens MPO too.
SAFE = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "PCX",
    "PNG",
    "PPM",
    "QOI",
    "SGI",
    "TGA",
    "TIFF",
    "WEBP",
)
FORMATS = tuple(form for form in SAFE if form in Image.OPEN)
WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
# A JPEG is decoded at a power-of-two reduction that keeps at least this many times the wanted side
DRAFT = 2
ORIENTATION = 0x0112  # the EXIF tag; values from 5 exchange width and height
NODATA = 42113  # the TIFF tag of GDAL
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # the TIFF tag that tells what values mean, and its value
# Bytes a pixel that decoders take next to the image that they fill, measured with pictures of 9 MP
# (AVIF 6, JPEG 2000 16, WebP 12, QOI 3, SGI 2), with a margin; GIF keeps earlier frames
DECODER_BYTES = {
    "AVIF": 14,
    "JPEG2000": 22,
    "WEBP": 14,
    "QOI": 4,
    "SGI": 4,
    "GIF": 8,
}
# The same of HEIF, measured (3.7; 6.4; 12.4, with alpha 17.6); phones write the first kind
HEIF_420, HEIF_8, HEIF_DEEP = 4, 8, 20
PNG_16 = re.compile(r"(RGB|RGBA|LA);16B")  # Pillow keeps only the high byte of these

ICON = b"\0\0\1\0"  # how the file of an icon begins
ICON_BYTES = 12  # a pixel, with the copies that Pillow makes

MOST_SMALL_READS = 2_000_000  # of a file; they take a second


class Patient:
    """A file that is looked through for a header, byte by byte where there is rubbish."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        """Allow as many small reads."""
        self.seek, self.tell, self._read, self._left = stream.seek, stream.tell, stream.read, most

    def read(self, count: int = -1) -> bytes:
        """Read as the file itself does, or raise `Unreadable`."""
        if 0 <= count < 16:
            self._left -= 1
            if self._left < 0:
                raise Unreadable("it is rubbish where its picture should be")
        return self._read(count)


def open_pillow(
    stream: IO[bytes], page: int, enough: int | None, header_only: bool = False
) -> Raster:
    """Open a picture; nothing but its header is decoded yet.

    Args:
        stream: its file.
        page: from 0.
        enough: shorter side in pixels that suffices for what is to be made of it, so that a JPEG
            may be reduced while it is decoded; None: it must stay whole.
        header_only: whether the sum of its content is not needed; for a JPEG it takes reading the
            whole file.

    Raises:
        Exception: it cannot be read. Pillow's plugins raise anything.
    """
    if stream.read(2) == b"\xff\xd8" and not header_only:
        length = stream.seek(0, io.SEEK_END)
        if length > MEMORY // 2:
            raise Unreadable(f"its file has {length >> 20:,} MiB; reduce the picture")
        stream.seek(0)
        stream = io.BytesIO(stream.read())
    stream.seek(0)
    patient: Any = stream
    start = stream.read(4)
    if start[:2] in (b"\xff\xd8", b"\x89P", b"GI"):  # the others are quick
        patient = Patient(stream, MOST_SMALL_READS)
    if start[:1] == b"P":  # a netpbm file, whose comments may be long
        patient = Patient(stream, MOST_SMALL_READS // 20)
    if start == ICON:  # Pillow decodes it while it opens it
        _check_icon(stream)
    stream.seek(0)
    image = Image.open(patient, formats=FORMATS)
    is_jpeg = image.format in ("JPEG", "MPO")
    pages = 1
    if not is_jpeg and image.format != "TIFF":  # `open_tiff` counts its pages
        try:
            pages = int(getattr(image, "n_frames", 1))
        except Exception:  # a later frame is damaged; the image then stands somewhere in the file
            stream.seek(0)
            image = Image.open(patient, formats=FORMATS)
    if page:
        if page >= pages and image.format != "TIFF":
            raise Unreadable(f"it has no page {page + 1}")
        image.seek(page)
    full = image.size
    if is_jpeg and enough is not None:
        image.draft(None, (DRAFT * enough, DRAFT * enough))
    memory = _decoder_memory(image, full)
    if image.format == "PNG" and "exif" not in image.info:  # it may come after the pixels
        place = stream.tell()
        for data, _ in _chunks(stream, (b"eXIf",)):
            image.info["exif"] = b"Exif\0\0" + data
        stream.seek(place)
    if image.format == "PNG" and PNG_16.fullmatch(str(image.tile[0].args if image.tile else "")):
        return _png_16(image, stream, page, pages, memory)
    raster = of_image(image, memory, stream if image.format == "PNG" else None)
    if is_jpeg and isinstance(stream, io.BytesIO):
        content = partial(jpeg_content, stream.getvalue(), raster.orientation)
        raster = replace(raster, content=content)
    return replace(raster, full=full, pages=pages)


def open_heif(stream: IO[bytes], page: int) -> Raster:
    """Open a HEIC or HEIF picture.

    Raises:
        Exception: it cannot be read, or pillow-heif is not installed.
    """
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise Unreadable("HEIC needs the extra heif: install sureclr[heif]") from None
    opener: Any = HeifImageFile  # it has no types
    image = opener(stream)
    pages = image.n_frames
    if page >= pages:
        raise Unreadable(f"it has no page {page + 1}")
    first = image.tell()  # the primary image, which need not be stored first
    order = [first, *(number for number in range(pages) if number != first)]
    if order[page] != first:
        image.seek(order[page])
    deep = image.info.get("bit_depth") != 8
    few = HEIF_420 if image.info.get("chroma", 420) == 420 else HEIF_8
    memory = (HEIF_DEEP if deep else few) * image.width * image.height
    raster = of_image(image, _decoder_memory(image, image.size) + memory)
    return replace(raster, pages=pages)


def of_image(image: Image.Image, memory: int = 0, png: IO[bytes] | None = None) -> Raster:
    """Return an image of Pillow as a raster; its `strips` decode it completely first.

    Args:
        image: it does not change, except that it is loaded.
        memory: bytes that decoding takes.
        png: the file whose sums are checked, if it is a PNG.
    """
    page = image.tell()
    tags = getattr(image, "tag_v2", {})
    nodata = number(tags.get(NODATA)) if image.format == "TIFF" else None

    def strips(rows: int) -> Iterator[Strip]:
        image.load()
        if png is not None:
            _check_png(png, page)
        for top in range(0, image.height, rows):
            box = (0, top, image.width, min(top + rows, image.height))
            part = image if rows >= image.height else image.crop(box)
            if image.mode in WIDE_MODES:
                yield np.atleast_3d(np.asarray(part))
            else:
                part = eight_bits(part)
                yield part if nodata is None else np.atleast_3d(np.asarray(part))

    grey = image.mode in ("1", "L", "LA", "La", *WIDE_MODES)
    kind = {"F": np.float32, "I": np.int32}.get(image.mode, np.uint16)
    # Pillow turns a TIFF itself while it loads it, and gives its size accordingly
    return Raster(
        width=image.width,
        height=image.height,
        bands=1 if grey else 3,
        strips=strips,
        memory=memory,
        kind=np.dtype(kind if image.mode in WIDE_MODES else np.uint8),
        orientation=1 if image.format == "TIFF" else orientation(image),
        nodata=nodata,
        # Pillow inverts 8 bits itself, and leaves more as they are
        inverted=image.mode in WIDE_MODES and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO,
    )


def number(text: object) -> float | None:
    """Return the number that GDAL's tag for nodata holds, if any."""
    try:
        return None if text is None else float(str(text).strip("\0 "))
    except ValueError:
        return None


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1, as the picture is stored, where the EXIF block is damaged."""
    try:
        # Pillow's method for PNG would decode the picture, and an exception would be lost here
        exif = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()
        value = exif.get(ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of 8 bits in any mode as "L" or "RGB", with white where it is transparent."""
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA")).convert(mode)
    return image if image.mode == mode else image.convert(mode)


def _on_white(image: Image.Image) -> Image.Image:
    paper = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(paper, image).convert("RGB")


def _decoder_memory(image: Image.Image, full: tuple[int, int]) -> int:
    """Bytes that decoding an image takes, with the image itself."""
    pixel = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    memory = (pixel + DECODER_BYTES.get(str(image.format), 0)) * image.width * image.height
    fp = getattr(image, "fp", None)
    if isinstance(fp, io.BytesIO):
        memory += 2 * len(fp.getbuffer())  # the original and this copy of it
    if image.info.get("progressive"):  # all coefficients, 2 bytes each, before the first pixel
        layers = [(across, down) for _, across, down, *_ in getattr(image, "layer", [])]
        most = max((across * down for across, down in layers), default=1)
        share = sum(across * down for across, down in layers) / most or 3
        memory += round(2 * share * full[0] * full[1])
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        rows = min(int(tags.get(278) or tags.get(323) or image.height), image.height)
        memory += rows * image.width * 4
        memory *= 1 + (tags.get(ORIENTATION, 1) != 1)  # Pillow turns a copy
    return memory


def _check_icon(stream: IO[bytes]) -> None:
    """Refuse an icon whose picture, a PNG or a BMP, says that it needs too much memory.

    Raises:
        Exception: it cannot be read.
    """
    stream.seek(0)
    first = IcoImagePlugin.IcoFile(stream).entry[0]
    stream.seek(first.offset)
    kind: Any = PngImagePlugin.PngImageFile
    if stream.read(4) != b"\x89PNG":
        kind = BmpImagePlugin.DibImageFile
    stream.seek(first.offset)
    width, height = kind(stream).size
    if ICON_BYTES * width * height > MEMORY - INTERPRETER:
        raise Unreadable(f"the picture in it has {width:,} x {height:,} pixels; reduce it")


# --- PNG --------------------------------------------------------------------------------


def _png_16(image: Image.Image, stream: IO[bytes], page: int, pages: int, memory: int) -> Raster:
    """A PNG of 16 bits a channel; Pillow unpacks one byte of each, so it is decoded twice."""
    tiles: Any = getattr(image, "tile", ())
    unpacked = str(tiles[0].args)
    planes = len(unpacked) - len(";16B")

    def part(rawmode: str) -> Image.Image:
        stream.seek(0)
        again: Any = Image.open(stream, formats=("PNG",))
        again.seek(page)
        again.tile = [tile._replace(args=rawmode) for tile in again.tile]
        again.load()
        half: Image.Image = again
        return half

    def strips(rows: int) -> Iterator[Strip]:
        image.load()
        _check_png(stream, page)
        halves = [image, part("RGBA")] if planes == 2 else [image, part(unpacked[:-1] + "L")]
        for top in range(0, image.height, rows):
            box = (0, top, image.width, min(top + rows, image.height))
            high, low = (np.asarray(half.crop(box)).astype(np.uint16) for half in halves)
            if planes == 2:  # both bytes of both channels are in the second decoding
                high, low = low[..., 0::2], low[..., 1::2]
            yield high << 8 | low

    return Raster(
        width=image.width,
        height=image.height,
        bands=1 if planes == 2 else 3,
        strips=strips,
        memory=2 * memory,
        kind=np.dtype(np.uint16),
        pages=pages,
        alpha=planes != 3,
        orientation=orientation(image),
    )


FEW_BITS = 8  # of a sum: damage of the sum itself; damage of the data changes 16 of 32 on average


def _check_png(stream: IO[bytes], page: int) -> None:
    """Check the sums of a PNG's pixel data, which Pillow does not check.

    Of 5,241 files with one flipped bit in the pixels' data, Pillow decodes 30, and 23 of them are
    not the picture that was written. Where only the sum itself is damaged, the picture is used.

    Args:
        stream: the file.
        page: from 0; the frames of an animation have sums of their own.

    Raises:
        Unreadable: the pixels are damaged.
    """
    kinds = (b"IDAT", b"fdAT") if page else (b"IDAT",)
    wrong = [bits for _, bits in _chunks(stream, kinds)]
    if not any(wrong):
        return
    # The compressed pixels end with a sum of their own, which is weaker: other pixels may fit it
    if page or max(wrong) > FEW_BITS or not inflates(data for data, _ in _chunks(stream, kinds)):
        raise Unreadable(DAMAGED)


def _chunks(stream: IO[bytes], kinds: tuple[bytes, ...]) -> Iterator[tuple[bytes, int]]:
    """The chunks of a PNG that are of these kinds, and how many bits of the sum of each differ."""
    stream.seek(8)
    patient, seen = Patient(stream, MOST_SMALL_READS), False
    while len(head := patient.read(8)) == 8 and head[4:] != b"IEND" and head[4:].isalpha():
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind in kinds:
            data, seen = stream.read(length), True
            stored, computed = stream.read(4), zlib.crc32(data, zlib.crc32(kind))
            bits = (computed ^ int.from_bytes(stored, "big")).bit_count()
            yield data, bits if len(stored) == 4 else 1  # the file may end here
        elif seen and len(kinds) == 1:  # Pillow stops at the first other chunk as well
            return
        else:
            stream.seek(length + 4, io.SEEK_CUR)


# --- JPEG -------------------------------------------------------------------------------

MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
END, SCAN, START = 0xD9, 0xDA, 0xD8


def jpeg_content(data: bytes, orientation: int) -> str:
    """Return a sum of a JPEG's first picture that does not depend on its metadata.

    Args:
        data: the file.
        orientation: from its EXIF block.
    """
    digest = hashlib.sha256(f"JPEG {orientation}".encode())
    at = 0
    while found := MARKER.search(data, at):
        marker, after = found[1][0], found.end()
        if marker == END:
            digest.update(data[at : found.start()])
            break
        if marker == START:
            at = after
            continue
        end = after + max(2, int.from_bytes(data[after : after + 2], "big"))
        digest.update(data[at : found.start()])  # the pixels of the scan before
        if marker not in range(0xE0, 0xF0) and marker != 0xFE:
            digest.update(data[found.start() : end])
        at = end
    else:
        digest.update(data[at:])
    return digest.hexdigest()
