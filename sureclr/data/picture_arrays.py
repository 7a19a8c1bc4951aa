"""Pictures in memory, of any sizes, as squares and as whole pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.config import ReadOptions
from sureclr.data.decoding import DecodedPicture, Decoding, FileRef
from sureclr.data.parallel_decoding import decode_files
from sureclr.data.pictures import Pictures
from sureclr.data.survey import few_levels, fitting_range, fitting_size, look_at
from sureclr.errors import UserError
from sureclr.progress import SILENT, Progress


@dataclass(frozen=True, eq=False)
class PictureArrays:
    """n pictures in memory.

    Attributes:
        squares: (n, c, h, w) uint8; the whole pictures where they have one size and none was asked
            for.
        pictures: n whole pictures; None if all of them equal `squares`.
        note: what a reader of results should know.
        contents: n digests of the pictures' content; None: not computed.
        value_range: what became black and white in images of more than 8 bits; None: there are
            none.
        warning: a sentence about that range, or "".
    """

    squares: Tensor
    pictures: Pictures | None = None
    note: str = ""
    contents: Sequence[str] | None = None
    value_range: tuple[float, float] | None = None
    warning: str = ""


def side_of(sizes: Sequence[tuple[int, int]], options: ReadOptions) -> tuple[int | None, str]:
    """Return the side of the squares to make (None: pictures stay whole), and a note.

    Args:
        sizes: width and height of each picture in pixels.
        options: may ask for a size.
    """
    if options.size is not None or len(set(sizes)) < 2:
        return options.size, ""
    side = fitting_size([min(size) for size in sizes])
    return side, f"images of {len(set(sizes))} different sizes, each resized to {side} pixels"


def whole_side(side: int, options: ReadOptions) -> int:
    """Return the shorter side of whole pictures beside squares of this side."""
    return max(side, round(options.cache_scale * side))


def joined(pictures: Sequence[DecodedPicture], note: str = "") -> PictureArrays:
    """Return pictures as one set; grey ones become RGB where others are.

    Args:
        pictures: whose squares have one height and width.
        note: for the result.

    Raises:
        UserError: they have different numbers of bands that do not turn into each other.
    """
    depths = {len(picture.square) for picture in pictures}
    if len(depths - {1}) > 1:
        words = ", ".join(map(str, sorted(depths)))
        raise UserError(f"the images have different numbers of bands ({words}); use one number.")
    depth = max(depths)

    def of_depth(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.broadcast_to(pixels, (depth, *pixels.shape[1:]))

    squares = torch.from_numpy(np.stack([of_depth(picture.square) for picture in pictures]))
    wholes = [p.square if p.whole is None else p.whole for p in pictures]
    contents = [picture.content for picture in pictures]
    pairs = zip(wholes, pictures, strict=True)
    if all(whole is p.square or np.array_equal(whole, p.square) for whole, p in pairs):
        return PictureArrays(squares, None, note, contents)
    height, width = (torch.tensor([whole.shape[axis] for whole in wholes]) for axis in (1, 2))
    length = depth * height * width
    values = torch.from_numpy(np.concatenate([of_depth(whole).reshape(-1) for whole in wholes]))
    whole = Pictures(values, length.cumsum(0) - length, height, width, depth)
    return PictureArrays(squares, whole, note, contents)


def decoded_arrays(
    files: Sequence[FileRef], options: ReadOptions, progress: Progress = SILENT
) -> tuple[PictureArrays | None, dict[int, str]]:
    """Decode picture files into memory.

    Args:
        files: where they are.
        options: how they become pixels.
        progress: what to report to.

    Returns:
        The pictures, and {}; or None, and the reason for each row that cannot be read.
    """
    found = look_at(files, progress)
    side, note = side_of([(fact.width, fact.height) for fact in found.readable], options)
    is_wide = any(fact.wide for fact in found.readable)
    value_range = (options.value_range or fitting_range(found)) if is_wide else None
    whole = None if side is None else whole_side(side, options)
    wanted = Decoding(side, options.channels, whole, value_range)
    decoded = list(decode_files(files, wanted, progress))
    bad = {row: result for row, result in enumerate(decoded) if isinstance(result, str)}
    if bad:
        return None, bad
    good = [result for result in decoded if isinstance(result, DecodedPicture)]
    warning = few_levels(found, value_range) if value_range else ""
    return replace(joined(good, note), value_range=value_range, warning=warning), {}
