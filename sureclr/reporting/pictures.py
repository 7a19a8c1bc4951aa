"""Images as data: URIs: one for a gallery, sheets of many for the map."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sureclr.data.image_set import ImageSet

GALLERY, MAP = 96, 32  # pixels: the longest side of a picture in a gallery, and of one on the map
PER_SHEET = (
    1024  # pictures in a sheet: a square of 1,024 pixels, which every browser decodes in one go
)
QUALITY = 72


def uri(images: "ImageSet", row: int, longest: int = GALLERY) -> str:
    """One image as a data: URI; a small one without loss, a larger one shrunk and as WebP."""
    picture = _picture(images.images[row].numpy())
    picture.thumbnail((longest, longest))
    return _encoded(picture, lossless=max(picture.size) <= 40)


def sheets(images: "ImageSet", rows: Sequence[int], longest: int = MAP) -> dict[str, Any]:
    """Pictures of these rows in sheets, row after row: {"side", "per_row", "per_sheet", "uris"}."""
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
        "L" if images.images.shape[1] == 1 else "RGB",
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

    return Image.fromarray(
        pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
    )


def _encoded(picture: Any, lossless: bool) -> str:
    buffer = io.BytesIO()
    if lossless:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "WEBP", quality=QUALITY, method=2)
    return f"data:image/{'png' if lossless else 'webp'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
