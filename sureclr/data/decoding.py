"""How an image file, or an image of Pillow, becomes pixels.

Whatever Pillow opens becomes 8-bit grey or RGB: the EXIF orientation is applied, an animation gives
its first frame, palettes and CMYK become RGB, transparent parts become white, 16-bit and
floating-point values are scaled (not clipped), and the centre square is resized. This module
imports neither torch nor the rest of the package, so that worker processes start at once.
"""

import warnings
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


def decode(file: str, size: int | None, channels: int | None) -> NDArray[np.uint8] | str:
    """Read an image file.

    Pillow refuses decompression bombs (more than 179 million pixels).

    Args:
        file: the path.
        size: side in pixels of the centre square; None: the whole picture at its own size.
        channels: 1 for grey, 3 for RGB; None: grey stays grey, all else becomes RGB.

    Returns:
        The pixels (channels, height, width); or, for a file that cannot be read, the reason in
        words. A bad file never raises.
    """
    try:
        with warnings.catch_warnings(), Path(file).open("rb") as stream:
            warnings.simplefilter("ignore")
            with Image.open(stream, formats=FORMATS) as image:
                if size is not None:  # JPEG only; for other formats `draft` does nothing
                    image.draft(None, (DRAFT * size, DRAFT * size))
                return picture_pixels(image, size, channels)
    except Exception as error:
        return reason_in_words(error)


def picture_size(file: str) -> tuple[int, int] | str:
    """Read the width and height of the upright picture from a file's header, in pixels.

    Args:
        file: the path.

    Returns:
        Width and height; or, for a file that cannot be read, the reason in words.
    """
    try:
        with warnings.catch_warnings(), Path(file).open("rb") as stream:
            warnings.simplefilter("ignore")
            with Image.open(stream, formats=FORMATS) as image:
                return upright_size(image)
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
