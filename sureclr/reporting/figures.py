"""The sheet of augmented views; matplotlib is imported when it is drawn."""

import math
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sureclr.config import ViewConfig
from sureclr.data.pictures import Pictures
from sureclr.data.views import two_views
from sureclr.errors import UserError
from sureclr.files import why, writing_atomically
from sureclr.reporting.pictures import shown_bands

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEADS = ("image", "view 1", "view 2")
_CELL, _GAP = 96, 8  # pixels: the least side of a drawn image, the gap between two
_MARGIN, _TOP = 16, 84  # pixels: around the sheet, and above it for title and column heads
_WIDTH = 560  # pixels, at least: title and settings fit
_DPI = 100
_OF_NULLS = 52  # pixels: above the row of null views for its title and heads
_FRAME = 217  # light grey: white images end somewhere


def augmented_pairs(
    images: Tensor | Pictures,
    config: ViewConfig,
    seeds: Tensor,
    path: Path,
    size: int | None = None,
    nulls: Callable[[int], Tensor] | None = None,
    kinds: Sequence[str] = (),
) -> None:
    """Write a sheet of images with two random views of each, and a row of null views below.

    Pixels are enlarged by a whole factor, without smoothing, so the sheet shows what the encoder
    sees. Whole pictures are shrunk to the size of a view, on white, because views are cropped from
    all of them. Of images with more than three bands the first three are shown as red, green and
    blue, and of those with two bands the first one as grey.

    Args:
        images: uint8 (n, c, h, w), or n whole pictures.
        config: the augmentation.
        seeds: int64 (n,), of the views.
        path: of the PNG file.
        size: side of the views in pixels, see `views.one_view`.
        nulls: returns so many null views, (m, c, h, w) float in [0, 1]; None: there is no such row.
        kinds: of the null views, which take turns.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    views = two_views(images, seeds, config, size).mul(255).round().byte()
    shape = views.shape[1:]
    sheet, centres = _sheet(_triples(images, views))
    under = 0  # pixels below the pairs
    if nulls is not None:
        cells = _framed(_shown(nulls(len(centres)).mul(255).round().byte()))
        under = _OF_NULLS + cells.shape[1]
        sheet = np.pad(sheet, ((0, under), (0, 0), (0, 0)), constant_values=255)
        for cell, centre in zip(cells, centres, strict=True):
            left = round(centre - cell.shape[1] / 2)
            sheet[-cell.shape[0] :, left : left + cell.shape[1]] = cell
    height, width = sheet.shape[0] + _TOP + _MARGIN, max(sheet.shape[1] + 2 * _MARGIN, _WIDTH)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    figure.figimage(sheet, xo=_MARGIN, yo=_MARGIN)
    figure.text(
        _MARGIN / width,
        1 - 14 / height,
        "Two random views of each image",
        fontsize=13,
        weight="bold",
        va="top",
    )
    figure.text(
        _MARGIN / width,
        1 - 38 / height,
        _settings(config, *shape),
        fontsize=8,
        color="0.35",
        va="top",
    )
    if under:
        figure.text(
            _MARGIN / width,
            (_MARGIN + under - 6) / height,
            "Null views, of which a model learns that they show nothing",
            fontsize=9,
            weight="bold",
            va="top",
        )
    heads = [(_HEADS, height - _TOP + 6), (kinds, _MARGIN + under - _OF_NULLS + 4)]
    for words, bottom in heads[: 2 if under else 1]:
        for centre, head in zip(centres, cycle(words), strict=False):
            figure.text(
                (_MARGIN + centre) / width,
                bottom / height,
                head,
                fontsize=9,
                ha="center",
                va="bottom",
            )
    _save(figure, path)


def _triples(images: Tensor | Pictures, views: Tensor) -> NDArray[np.uint8]:
    """Image, view 0 and view 1 of each: (n, 3, h, w, 3)."""
    whole = torch.stack([_fitted(images[i], *views.shape[2:]) for i in range(len(images))])
    return np.stack([_shown(part) for part in (whole, *views.chunk(2))], axis=1)


def _shown(images: Tensor) -> NDArray[np.uint8]:
    """Images (n, c, h, w) uint8 with the bands that are drawn: (n, h, w, 3)."""
    bands = images[:, : shown_bands(images.shape[1])].movedim(1, -1).cpu().numpy()
    return np.broadcast_to(bands, (*bands.shape[:3], 3))


def _framed(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (..., h, w, 3), enlarged by a whole factor, each in a thin frame."""
    factor = max(1, -(-_CELL // max(images.shape[-3:-1])))
    cells = images.repeat(factor, axis=-3).repeat(factor, axis=-2)
    around = [(0, 0)] * (images.ndim - 3) + [(1, 1), (1, 1), (0, 0)]
    return np.pad(cells, around, constant_values=_FRAME)


def _fitted(image: Tensor, height: int, width: int) -> Tensor:
    """A whole image (c, h, w) uint8 in the middle of (c, height, width), on white."""
    h, w = image.shape[1:]
    if (h, w) == (height, width):
        return image
    scale = min(height / h, width / w)
    sides = max(1, round(h * scale)), max(1, round(w * scale))
    small = functional.interpolate(image[None].float(), sides, mode="bilinear", antialias=True)
    top, left = (height - sides[0]) // 2, (width - sides[1]) // 2
    space = (left, width - sides[1] - left, top, height - sides[0] - top)
    return functional.pad(small[0].round().byte(), space, value=255)


def _sheet(triples: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], list[float]]:
    """The triples in a few columns on white, each image in a thin frame.

    Returns (height, width, 3), and the middle of each column in pixels.
    """
    n, per_row = len(triples), math.ceil((len(triples) / 3) ** 0.5)
    cells = _framed(triples)
    h, w = cells.shape[2:4]
    stride = 3 * (w + _GAP) + 2 * _GAP  # a wider gap between triples
    sheet = np.full(
        (-(-n // per_row) * (h + _GAP) - _GAP, per_row * stride - 3 * _GAP, 3), 255, dtype=np.uint8
    )
    left = [group * stride + column * (w + _GAP) for group in range(per_row) for column in range(3)]
    for i, triple in enumerate(cells):
        top = i // per_row * (h + _GAP)
        for column, cell in enumerate(triple):
            x = left[i % per_row * 3 + column]
            sheet[top : top + h, x : x + w] = cell
    return sheet, [x + w / 2 for x in left]


def _settings(config: ViewConfig, channels: int, height: int, width: int) -> str:
    """The augmentation in one line; what is off is not named."""
    kernel = 2 * config.blur_radius(height, width) + 1
    parts = [
        (True, f"crop {config.crop_area[0]:g} to {config.crop_area[1]:g} of the area"),
        (config.flip, f"flip {config.flip:g}"),
        (
            config.jitter_p * config.strength,
            f"jitter {config.jitter_p:g}, strength {config.strength:g}",
        ),
        (config.grey_p * (channels == 3), f"grey {config.grey_p:g}"),
        (config.blur_p * (kernel > 1), f"blur {config.blur_p:g}, kernel {kernel} px"),
    ]
    return " · ".join(text for on, text in parts if on)


def _save(figure: "Figure", path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing_atomically(path) as file:
            figure.savefig(file, dpi=_DPI, format="png")
    except OSError as error:
        raise UserError(f"cannot write {path}: {why(error)}; give another out=.") from error
