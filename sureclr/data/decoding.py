"""How an image file, or an image of Pillow, becomes pixels.

Whatever Pillow opens becomes 8-bit grey or RGB: the EXIF orientation is applied, an animation gives
its first frame, palettes and CMYK become RGB, transparent parts become white, 16-bit and
floating-point values are scaled (not clipped), and the centre square is resized. This module
imports neither torch nor the rest of the package, so that worker processes start at once.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

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
# ".jpg", ...: the endings of the files that a folder's images have
ENDINGS = frozenset(ending for ending, form in Image.EXTENSION.items() if form in (*FORMATS, "MPO"))
WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
# A JPEG is decoded at a power-of-two reduction that keeps at least this many times the wanted side
DRAFT = 2
ORIENTATION = 0x0112  # the EXIF tag; values from 5 exchange width and height


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
    """

    size: int | None = None
    channels: int | None = None
    whole_side: int | None = None
    value_range: tuple[float, float] | None = None


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


def decode(source: FileRef, wanted: Decoding = Decoding()) -> DecodedPicture | str:
    """Decode a picture completely.

    Args:
        source: where the picture is.
        wanted: what to make of it.

    Returns:
        The picture; or, for one that cannot be read, the reason in words. A bad file never raises.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = file_bytes(source)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.seek(source.page)
                whole = None
                if wanted.whole_side is not None:
                    picture = picture_pixels(image, None, wanted.channels)
                    side = min(picture.shape[1:])
                    scale = min(1.0, wanted.whole_side / side)
                    new = [max(1, round(scale * length)) for length in picture.shape[:0:-1]]
                    layers = [
                        Image.fromarray(band).resize(new, Image.Resampling.BILINEAR)
                        for band in picture
                    ]
                    whole = np.stack([np.asarray(layer) for layer in layers])
                square = picture_pixels(image, wanted.size, wanted.channels)
        return DecodedPicture(square, whole, hashlib.sha256(data).hexdigest())
    except Exception as error:
        return reason_in_words(error)


def file_bytes(source: FileRef) -> bytes:
    """Return the bytes of a picture's file."""
    if source.data is not None:
        return source.data
    with Path(source.path).open("rb") as stream:
        stream.seek(source.offset)
        return stream.read(-1 if source.length is None else source.length)


def inspect(source: FileRef) -> PictureFacts | str:
    """Read what a file's header says of its picture, without decoding it.

    Returns:
        The facts; or, for a file that cannot be read, the reason in words.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(file_bytes(source)), formats=FORMATS) as image:
                width, height = upright_size(image)
                bands = 1 if image.mode in ("1", "L", *WIDE_MODES) else 3
                pages = getattr(image, "n_frames", 1)
                return PictureFacts(width, height, bands, image.mode in WIDE_MODES, pages)
    except Exception as error:
        return reason_in_words(error)


def sample_values(source: FileRef, count: int = 4096) -> NDArray[np.float64] | str:
    """Return some values of a picture of more than 8 bits, from which its source's range is found.

    Args:
        source: where the picture is.
        count: values at most, evenly spread over the picture.

    Returns:
        (m,) finite values; or the reason why the file cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(file_bytes(source)), formats=FORMATS) as image:
                values = np.asarray(image, dtype=np.float64).reshape(-1)
        values = values[np.isfinite(values)]
        return values[:: max(1, len(values) // count)][:count]
    except Exception as error:
        return reason_in_words(error)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height in pixels after the EXIF orientation was applied."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # a damaged EXIF block; the picture is then used as it is stored
        turned = False
    return (image.height, image.width) if turned else image.size


def picture_pixels(image: Image.Image, size: int | None, channels: int | None) -> NDArray[np.uint8]:
    """Return the pixels of an image of Pillow, whatever its mode.

    Args:
        image: an image; it does not change.
        size: side in pixels of the centre square; None: the whole picture at its own size.
        channels: 1 for grey, 3 for RGB; None: grey stays grey, all else becomes RGB.

    Returns:
        (channels, height, width).

    Raises:
        Exception: the image is still to be read from its file, and the file is damaged. Pillow's
            plugins raise anything.
    """
    picture = eight_bits(_upright(image))
    if channels is not None:
        picture = picture.convert("L" if channels == 1 else "RGB")
    if size is not None:
        picture = centre_square(picture, size)
    pixels = np.asarray(picture, dtype=np.uint8)  # (h, w) or (h, w, 3)
    return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))


def reason_in_words(error: Exception) -> str:
    """Return why a picture cannot be read, without its path."""
    if isinstance(error, UnidentifiedImageError):  # its text repeats the path
        return "no image format that is known here"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says; as it is stored where the EXIF block is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged pixels raise again as soon as they are read
        return image


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """Return the largest centred square, resized with Pillow's antialiased bilinear filter.

    `image_set.resize` does the same for tensors, up to rounding.

    Args:
        image: of any size.
        size: side of the result in pixels.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Not resize(box=...), which mixes in pixels from outside the box
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BILINEAR)


def eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of any mode as "L" or "RGB", with white where it is transparent."""
    if image.mode in WIDE_MODES:
        return Image.fromarray(scaled(np.asarray(image), image.mode))
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def scaled(values: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    """Scale grey values of more than 8 bits to 0..255, linearly.

    Black is 0, and white does not depend on the picture where possible: 65535 for 16-bit and 32-bit
    integers (Pillow's 16-bit PGM), and for floats the first of 1, 255 and 65535 that is not
    exceeded. Values that are negative or larger are scaled from their minimum to their maximum.

    Args:
        values: of any shape.
        mode: Pillow's name of their type; "F" is float.

    Raises:
        ValueError: a value is not finite.
    """
    numbers = values.astype(np.float64)
    low, high = numbers.min(), numbers.max()
    if not np.isfinite(low + high):
        raise ValueError("it has values that are not finite")
    fitting = [scale for scale in ((1, 255, 65535) if mode == "F" else (65535,)) if high <= scale]
    black, white = (0, fitting[0]) if fitting and low >= 0 else (low, max(high, low + 1))
    return np.rint((numbers - black) * (255 / (white - black))).astype(np.uint8)


def _on_white(image: Image.Image) -> Image.Image:
    paper = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(paper, image).convert("RGB")
