"""One image file -> pixels. Imports neither torch nor the rest of the package, so that a worker
process is up at once.

Whatever Pillow opens becomes 8-bit grey or RGB: EXIF orientation applied, the first frame of an
animation, palette and CMYK to RGB, transparency composited on white, 16-bit and floating-point
values scaled (not clipped), the centre square resized.
"""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Image.init()  # makes Pillow load its plugins; some builds lack some
# Not every format of Pillow: EPS would run Ghostscript on a stranger's file; HDF5 and GRIB are no
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
ENDINGS = frozenset(
    ending for ending, form in Image.EXTENSION.items() if form in (*FORMATS, "MPO")
)  # ".jpg", ...
WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
# A JPEG is decoded at a power-of-two reduction that keeps at least this many times the wanted side
DRAFT = 2


def decode(file: str, size: int, channels: int) -> NDArray[np.uint8] | str:
    """(channels, size, size) uint8; or the reason, in words, why the file cannot be read. Never
    raises for a bad file.

    Pillow refuses decompression bombs (more than 179 million pixels); truncated files and unknown
    formats end here too.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _pixels(Path(file), size, "L" if channels == 1 else "RGB")
    except UnidentifiedImageError:  # its text repeats the path
        return "no image format that is known here"
    except OSError as error:
        return error.strerror or str(error)
    except (
        Exception
    ) as error:  # Pillow's plugins raise anything, SyntaxError and struct.error included
        return str(error) or type(error).__name__


def _pixels(file: Path, size: int, mode: str) -> NDArray[np.uint8]:
    with file.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
        image.draft(None, (DRAFT * size, DRAFT * size))  # JPEG only, elsewhere it does nothing
        square = centre_square(eight_bits(_upright(image)).convert(mode), size)
    pixels = np.asarray(square, dtype=np.uint8)  # (h, w) or (h, w, 3)
    return np.ascontiguousarray(pixels.reshape(size, size, -1).transpose(2, 0, 1))


def _upright(image: Image.Image) -> Image.Image:
    """As its EXIF orientation says; as it is stored where the EXIF block is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged pixels raise again as soon as they are read
        return image


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square, resized to `size` pixels a side: antialiased bilinear, as
    `image_set.resize`.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop(
        (left, top, left + side, top + side)
    )  # not resize(box=...), which mixes in pixels from outside the box
    return square.resize((size, size), Image.Resampling.BILINEAR)


def eight_bits(image: Image.Image) -> Image.Image:
    """Any mode of Pillow -> "L" or "RGB": the same picture on white, in 0..255."""
    if image.mode in WIDE_MODES:
        return Image.fromarray(scaled(np.asarray(image), image.mode))
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def scaled(values: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    """Wide grey values -> uint8, linearly from black 0 to a full scale that does not depend on the
    picture where possible.

    16 bits: 65535. 32-bit integers: 65535 too (Pillow's 16-bit PGM). Floats: the first of 1, 255,
        65535 that holds them all.
    Values that are negative or larger go from their own minimum to their own maximum.
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
