"""How an image file, or an image of Pillow, becomes pixels.

Whatever is read becomes 8-bit grey, RGB or bands: a picture is decoded completely, palettes and
CMYK become RGB, transparent parts become white, values of more than 8 bits are scaled (not
clipped), the EXIF orientation is applied, and the centre square is resized. A damaged picture gives
a reason and never pixels, and a picture that needs more than 512 MiB is refused. This module and
those that it imports import neither torch nor the rest of the package, so that worker processes
start at once.
"""

import importlib.util
import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sureclr.data.array_rasters import open_dicom, open_npy, open_tiff
from sureclr.data.decoder_guard import Complaints, guarded
from sureclr.data.pillow_rasters import FORMATS, of_image, open_heif, open_pillow
from sureclr.data.raster_pixels import measured, square_and_whole, strip_rows, unmeasured
from sureclr.data.rasters import MEMORY, Raster, Unreadable, check_memory

# ".jpg", ...: the endings of the files that a folder's images have
ENDINGS = frozenset(
    [ending for ending, form in Image.EXTENSION.items() if form in (*FORMATS, "MPO")] + [".npy"]
)
# ".heic", ...: the endings of images that need an extra of the package, and which
OPTIONAL_ENDINGS: Mapping[str, str] = MappingProxyType(
    {".heic": "heif", ".heif": "heif", ".hif": "heif", ".dcm": "dicom"}
)
EXTRA_MODULES = {"heif": "pillow_heif", "dicom": "pydicom"}  # what an extra installs
SILENT_MAGIC = (
    b"\xff\xd8",
    b"\x89P",
    b"GI",
    b"BM",
    b"\x93N",
)  # their decoders never write to stderr


@dataclass(frozen=True)
class FileRef:
    """Where the bytes of one picture are.

    Attributes:
        path: of the file.
        offset: the first byte of the picture's file inside it (a member of a tar archive).
        length: its number of bytes; None: to the end.
        page: the page or frame, from 0.
        data: the bytes themselves, where they do not come from a file of their own; `path` is then
            a name for messages.
    """

    path: str
    offset: int = 0
    length: int | None = None
    page: int = 0
    data: bytes | None = None


@dataclass(frozen=True)
class Decoding:
    """What is made of every file of a source.

    Attributes:
        size: side in pixels of the centre square; None: the whole picture at its own size.
        channels: 1 (grey), 3 (RGB) or another number of bands; None: the picture's own.
        whole_side: shorter side in pixels of the whole picture that is kept beside the square, and
            is never larger than the picture's own; None: none is kept.
        value_range: what becomes 0 and 255 in images of more than 8 bits; None: a range that fits
            the picture alone.
        centre_share: side of the centre square as a share of the shorter side, see
            `raster_pixels.centre_box`; None: the largest square, which is cut out before it is
            resized.
        interpolation: filter that resizes the square, antialiased: bilinear or bicubic. The whole
            picture is always reduced by the bilinear one.
    """

    size: int | None = None
    channels: int | None = None
    whole_side: int | None = None
    value_range: tuple[float, float] | None = None
    centre_share: float | None = None
    interpolation: str = "bilinear"


@dataclass(frozen=True, eq=False)
class DecodedPicture:
    """One picture.

    Attributes:
        square: (c, size, size) uint8, the centre square; the whole picture where no size is asked
            for.
        whole: (c, h, w) uint8, the whole picture, reduced to `Decoding.whole_side`; None if not
            asked for.
        content: sha256 of the picture's content, which does not depend on the size that is asked
            for, on the file's name or on its metadata.
        filled: values that were NaN, infinite or nodata and were replaced.
        complaints: lines that decoders wrote to stderr.
    """

    square: NDArray[np.uint8]
    whole: NDArray[np.uint8] | None
    content: str
    filled: int = 0
    complaints: int = 0


@dataclass(frozen=True)
class PictureFacts:
    """What a file's header says of a picture.

    Attributes:
        width: of the upright picture in pixels.
        height: of the upright picture in pixels.
        bands: channels without alpha: 1 for grey, 3 for colour and palettes, else the number of
            bands.
        wide: whether values have more than 8 bits.
        pages: pages or frames in the file.
    """

    width: int
    height: int
    bands: int
    wide: bool
    pages: int = 1


def readable_endings() -> frozenset[str]:
    """Return the endings of all files that can be read here: `ENDINGS` and installed extras'."""
    extras = {e for e, module in EXTRA_MODULES.items() if importlib.util.find_spec(module)}
    return ENDINGS | {ending for ending, extra in OPTIONAL_ENDINGS.items() if extra in extras}


def decode(source: FileRef, wanted: Decoding = Decoding()) -> DecodedPicture | str:
    """Decode a picture completely.

    Args:
        source: where the picture is.
        wanted: what to make of it.

    Returns:
        The picture; or, for one that cannot be read, the reason in words. A bad file never raises.
    """
    enough = None
    if wanted.size is not None:
        enough = max(ceil(wanted.size / (wanted.centre_share or 1)), wanted.whole_side or 0)
    complaints = Complaints()
    try:
        with _opened(source) as stream:
            with guarded(_may_write(stream), complaints):
                raster = _raster(stream, source, enough, wanted.channels)
                square, whole, content, filled = square_and_whole(raster, wanted)
            return DecodedPicture(square, whole, content, filled, complaints.count)
    except Exception as error:
        reason = reason_in_words(error)
        if reason.startswith("decoder error") and complaints.last:  # a number of Pillow's
            line = complaints.last.removeprefix("tempfile.tif: ")
            return "".join(c if c.isprintable() else "?" for c in line)
        return reason


def inspect(source: FileRef, channels: int | None = None) -> PictureFacts | str:
    """Read what a file's header says of its picture, without decoding it.

    Args:
        source: where the picture is.
        channels: the number that is asked for, which decides where the bands of an array are.

    Returns:
        The facts; or, for a file that cannot be read, the reason in words.
    """
    try:
        with _opened(source) as stream, guarded(_may_write(stream)):
            raster = _raster(stream, source, None, channels, header_only=True)
            width, height = raster.upright_size
            return PictureFacts(width, height, raster.bands, raster.wide, raster.pages)
    except Exception as error:
        return reason_in_words(error)


def sample_values(
    source: FileRef, count: int = 4096, channels: int | None = None
) -> NDArray[np.float64] | str:
    """Return some values of a picture of more than 8 bits, from which its source's range is found.

    Args:
        source: where the picture is.
        count: values at most, at random places that are the same in every call.
        channels: as for `inspect`.

    Returns:
        (m,) finite values, without those that mean "not measured"; or the reason why the file
        cannot be read.
    """
    try:
        with _opened(source) as stream, guarded(_may_write(stream)):
            raster = _raster(stream, source, None, channels)
            check_memory(raster)
            total, parts = raster.width * raster.height * raster.bands, []
            generator = np.random.default_rng(0)
            for strip in raster.strips(strip_rows(raster)):
                values = np.atleast_3d(np.asarray(strip))[..., : raster.bands].reshape(-1)
                some = min(len(values), ceil(count * len(values) / total))
                values = values[generator.integers(0, len(values), some)]
                parts.append(measured(values[~unmeasured(values, raster)], raster))
        return generator.permutation(np.concatenate(parts))[:count]
    except Exception as error:
        return reason_in_words(error)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height in pixels after the EXIF orientation was applied."""
    return of_image(image).upright_size


def picture_pixels(image: Image.Image, size: int | None, channels: int | None) -> NDArray[np.uint8]:
    """Return the pixels of an image of Pillow, whatever its mode.

    Args:
        image: an image; it does not change, except that it is loaded.
        size: side in pixels of the centre square; None: the whole picture at its own size.
        channels: 1 for grey, 3 for RGB; None: grey stays grey, all else becomes RGB.

    Returns:
        (channels, height, width).

    Raises:
        Exception: the image is still to be read from its file, and the file is damaged. Pillow's
            plugins raise anything.
    """
    return decode_image(image, Decoding(size, channels)).square


def decode_image(image: Image.Image, wanted: Decoding = Decoding()) -> DecodedPicture:
    """Decode an image of Pillow, whatever its mode, as `decode` does for a file.

    Args:
        image: an image; it does not change, except that it is loaded.
        wanted: what to make of it.

    Raises:
        Exception: as `picture_pixels`.
    """
    with guarded(False):
        image.load()
        square, whole, content, filled = square_and_whole(of_image(image), wanted)
    return DecodedPicture(square, whole, content, filled)


def reason_in_words(error: Exception) -> str:
    """Return why a picture cannot be read, without its path."""
    if isinstance(error, UnidentifiedImageError):  # its text repeats the path
        return "no image format that is known here"
    if isinstance(error, MemoryError):
        return "there is too little memory for it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


# --- From bytes to a raster -------------------------------------------------------------


class _Window(io.RawIOBase):
    """A part of a file, such as a member of a tar archive."""

    def __init__(self, stream: IO[bytes], start: int, length: int) -> None:
        self._stream, self._start, self._length, self._at = stream, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError("a negative place in a file")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._stream.seek(self._start + self._at)
        data = self._stream.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def _opened(source: FileRef) -> Iterator[IO[bytes]]:
    if source.data is not None:
        yield io.BytesIO(source.data)
        return
    # A pipe or a device could be waited for, or be read for ever
    with open(source.path, "rb", opener=_without_waiting) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise Unreadable("it is a pipe or a device and not a file")
        length = stream.seek(0, io.SEEK_END)
        if source.offset == 0 and source.length in (None, length):
            stream.seek(0)
            yield stream
            return
        rest = max(0, length - source.offset)
        window = _Window(
            stream, source.offset, min(rest, rest if source.length is None else source.length)
        )
        yield io.BufferedReader(window)


def _may_write(stream: IO[bytes]) -> bool:
    """Whether a decoder of this file may write to stderr."""
    start = stream.read(2)
    stream.seek(0)
    return start not in SILENT_MAGIC


def _raster(
    stream: IO[bytes],
    source: FileRef,
    enough: int | None,
    wanted: int | None,
    header_only: bool = False,
) -> Raster:
    """The picture of a file in the form in which it is stored."""
    start = stream.read(132)
    stream.seek(0)
    if not start:
        raise Unreadable("the file is empty")
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return open_tiff(stream, source.page)
    if start[128:] == b"DICM":
        return open_dicom(stream, source.page)
    if start[:6] == b"\x93NUMPY":
        if source.page:
            raise Unreadable(f"it has no page {source.page + 1}")
        return open_npy(stream, wanted)
    length = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if length > MEMORY:  # a decoder may look through all of it for a header
        raise Unreadable(f"its file has {length >> 20:,} MiB; reduce the picture")
    try:
        return open_pillow(stream, source.page, enough, header_only)
    except UnidentifiedImageError:
        if start[4:8] != b"ftyp" or start[8:12] in (b"avif", b"avis"):
            raise
        stream.seek(0)
        return open_heif(stream, source.page)
