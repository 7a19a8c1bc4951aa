"""Images as data: URIs: one for a gallery, sheets of many for the map.

Of images with more than three bands the first three are shown as red, green and blue, and of those
with two bands the first one as grey.
"""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sureclr.data.image_set import ImageSet

GALLERY_PIXELS = 96  # longest side of a picture in a gallery
MAP_PIXELS = 32  # longest side of a picture on the map
PER_SHEET = 1024  # pictures: a square of 1,024 pixels, which every browser decodes in one go
LOSSLESS_PIXELS = 40  # longest side of a picture that is stored without loss
QUALITY = 72  # of WebP


def shown_bands(channels: int) -> int:
    """Return how many of an image's bands are shown: the first three, or the first one."""
    return 3 if channels >= 3 else 1


def data_uri(images: "ImageSet", row: int, longest: int = GALLERY_PIXELS) -> str:
    """Return one image as a data: URI: a small one without loss, a larger one shrunk, as WebP."""
    picture = _picture(images.images[row].numpy())
    picture.thumbnail((longest, longest))
    return _encoded(picture, lossless=max(picture.size) <= LOSSLESS_PIXELS)


def sheets(images: "ImageSet", rows: Sequence[int], longest: int = MAP_PIXELS) -> dict[str, Any]:
    """Return pictures of these rows on sheets, row after row.

    Returns:
        `uris` of the sheets, `side` of a picture in pixels, pictures `per_row` and `per_sheet`.
    """
    side = min(longest, max(images.images.shape[2:]))
    per_row = int(PER_SHEET**0.5)
    uris = [
        _sheet(images, rows[start : start + PER_SHEET], side, per_row)
        for start in range(0, len(rows), PER_SHEET)
    ]
    return {"side": side, "per_row": per_row, "per_sheet": PER_SHEET, "uris": uris}


def _sheet(images: "ImageSet", rows: Sequence[int], side: int, per_row: int) -> str:
    from PIL import Image

    sheet = Image.new(
        "L" if shown_bands(images.images.shape[1]) == 1 else "RGB",
        (per_row * side, -(-len(rows) // per_row) * side),
    )
    for i, row in enumerate(rows):
        picture = _picture(images.images[row].numpy())
        picture.thumbnail((side, side))
        sheet.paste(picture, (i % per_row * side, i // per_row * side))
    return _encoded(sheet, lossless=side <= 12)


def _picture(pixels: NDArray[np.uint8]) -> Any:
    """(c, h, w) uint8 as a Pillow image."""
    from PIL import Image

    shown = pixels[: shown_bands(len(pixels))]
    return Image.fromarray(
        shown[0] if len(shown) == 1 else np.ascontiguousarray(np.moveaxis(shown, 0, -1))
    )


def _encoded(picture: Any, lossless: bool) -> str:
    buffer = io.BytesIO()
    if lossless:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "WEBP", quality=QUALITY, method=2)
    kind, data = "png" if lossless else "webp", base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind};base64,{data}"
