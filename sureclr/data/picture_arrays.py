"""Pictures in memory, of any sizes, as squares and as whole pictures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sureclr.config import ReadOptions
from sureclr.data.decoding import (
    DecodedPicture,
    Decoding,
    FileRef,
    decode_image,
    reason_in_words,
    upright_size,
)
from sureclr.data.parallel_decoding import decode_files
from sureclr.data.pictures import Pictures
from sureclr.data.survey import (
    SAMPLED_IMAGES,
    Survey,
    few_levels,
    fitting_range,
    fitting_size,
    look_at,
    with_values,
)
from sureclr.errors import UserError
from sureclr.progress import SILENT, Progress

SAMPLED_VALUES = 4096  # of an image, for the value range


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
        options: may ask for a size. A share of pictures of one size is cut out of them and resized
            to their shorter side.
    """
    if options.size is not None or not sizes:
        return options.size, ""
    if len(set(sizes)) == 1:
        return (None if options.centre_share is None else min(sizes[0])), ""
    side = fitting_size([min(size) for size in sizes])
    return side, f"images of {len(set(sizes))} different sizes, each resized to {side} pixels"


def whole_side(side: int, options: ReadOptions) -> int:
    """Return the shorter side of whole pictures beside squares of this side."""
    return max(side, round(options.cache_scale * side))


def decoding_of(
    side: int | None,
    channels: int | None,
    value_range: tuple[float, float] | None,
    options: ReadOptions,
) -> Decoding:
    """Return what is made of pictures.

    Args:
        side: of the squares that are wanted, in pixels; None: the pictures stay whole.
        channels: of the result; None: each picture keeps its own.
        value_range: what becomes 0 and 255 in images of more than 8 bits.
        options: say how the squares are cut and resized, and how large whole pictures are kept.
    """
    return Decoding(
        side,
        channels,
        None if side is None else whole_side(side, options),
        value_range,
        options.centre_share,
        options.interpolation,
    )


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


def _survey_of(images: Sequence[Image.Image]) -> Survey:
    """Return a survey of images of Pillow; their value range is found as that of files is."""
    wide = [image for image in images if _is_wide(image)]
    chosen = wide[:: max(1, len(wide) // SAMPLED_IMAGES)]
    samples = []
    for image in chosen:
        values = np.asarray(image, dtype=np.float64).reshape(-1)
        values = values[np.isfinite(values)]
        samples.append(values[:: max(1, len(values) // SAMPLED_VALUES)])
    return with_values([], samples)


def _is_wide(image: Image.Image) -> bool:
    """Return whether an image of Pillow has values of more than 8 bits."""
    return image.mode.startswith(("I", "F"))


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
    found = look_at(files, progress, options.channels)
    side, note = side_of([(fact.width, fact.height) for fact in found.readable], options)
    is_wide = any(fact.wide for fact in found.readable)
    value_range = (options.value_range or fitting_range(found)) if is_wide else None
    wanted = decoding_of(side, options.channels, value_range, options)
    decoded = list(decode_files(files, wanted, progress))
    bad = {row: result for row, result in enumerate(decoded) if isinstance(result, str)}
    if bad:
        return None, bad
    good = [result for result in decoded if isinstance(result, DecodedPicture)]
    warning = few_levels(found, value_range) if value_range else ""
    return replace(joined(good, note), value_range=value_range, warning=warning), {}


def decoded_images(
    pictures: Iterable[tuple[Image.Image, bool]], options: ReadOptions
) -> PictureArrays:
    """Return the pixels of images of Pillow.

    Args:
        pictures: each with whether it is an array of the user's. Such an array is taken to be the
            square itself if it has its size, see `image_set.convert`.
        options: how they become pixels.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    pictures = iter(pictures)
    side, note, found, value_range = options.size, "", None, options.value_range
    if side is None:  # all are needed at once, for one size
        listed = list(pictures)
        side, note = side_of([upright_size(picture) for picture, _ in listed], options)
        pictures = iter(listed)
    decoded: list[DecodedPicture] = []
    while (item := next(pictures, None)) is not None:
        picture, is_array = item
        if found is None and _is_wide(picture):  # the rest is needed at once, for one range
            rest = list(pictures)
            found = _survey_of([picture, *(other for other, _ in rest)])
            value_range = options.value_range or fitting_range(found)
            pictures = iter(rest)
        try:
            wanted = decoding_of(side, options.channels, value_range, options)
            if is_array and picture.size == (side, side):
                wanted = replace(wanted, centre_share=None)
            decoded.append(decode_image(picture, wanted))
        except Exception as error:  # Pillow's plugins raise anything
            raise UserError(
                f"image {len(decoded)} cannot be read ({reason_in_words(error)}); leave it out."
            ) from error
    if not decoded:
        raise UserError("there are no images; use at least one.")
    # Their contents are those of the squares, as for arrays: the same images in another form are
    # then split alike
    arrays = replace(joined(decoded, note), contents=None)
    if found is None or not len(found.values) or value_range is None:
        return arrays
    warning = few_levels(found, value_range)
    return replace(arrays, value_range=value_range, warning=warning)
