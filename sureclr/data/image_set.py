"""ImageSet, the form in which all images enter SureCLR, and its conversion to another size.

Every data source is read as an ImageSet.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sureclr.config import READ_OPTIONS, ReadOptions
from sureclr.data.cached_pixels import CachedPixels, images_at_once
from sureclr.data.decoding import Decoding
from sureclr.data.folder_cache import array_on_disk
from sureclr.data.image_report import ImageReport
from sureclr.data.pictures import MOST_BANDS, Pictures
from sureclr.data.raster_pixels import square_of
from sureclr.errors import UserError
from sureclr.files import digest_of_bytes, digest_of_tensors

SPLITS = ("train", "test", "unlabelled")
UNLABELLED = -1  # the label of an image whose class is not known
LARGEST_ENLARGED = 2**30  # bytes of enlarged squares in memory; more of them lie on the disk
OF_CONTENTS = "-contents"  # ends a digest of what decides the pixels, in place of the pixels
# Rec. 601 (0.299, 0.587, 0.114) in 1 / 65536, the integers that Pillow's convert("L") uses
LUMA = (19595, 38470, 7471)

Indices = Sequence[int] | NDArray[np.generic] | Tensor


@dataclass(frozen=True, eq=False)
class ImageSet:
    """n images with what is known about them. All columns are checked when an ImageSet is made.

    It may be empty: a data set without test images has an empty `.test`.

    Attributes:
        name: the source of the images, as the user wrote it.
        images: (n, c, h, w) uint8, from 0 (black) to 255; c is 1 (grey), 3 (RGB), or any other
            number of bands up to 32. In memory, or `CachedPixels`, which stay in a file until they
            are used. Evaluations and embeddings see these.
        labels: (n,) int64, an index into `classes`, or -1 where the class is not known.
        classes: names of the classes; empty where nothing is labelled.
        split: (n,) of "train", "test" and "unlabelled" (may be trained on, and has no labels).
        paths: n names: the path of each file in its folder, or "train/00012" where there is none.
        folds: (k, m) int64 rows of this ImageSet: k training subsets that the data set itself
            defines (STL-10 has 10); or None.
        note: what a reader of results should know, such as how the split was made and which files
            could not be read.
        pictures: n whole pictures from which views are cropped, where `images` are their centre
            squares or smaller copies; None: views are cropped from `images`.
        contents: n digests of the images' content (sha256, hexadecimal): two images have the same
            one if they are exact duplicates, at any size; None: not computed.
        shares: (n, k) float32, the share of each class in the labels of an image that several
            people labelled differently; a row of zeros where there is none; None: no image has
            one. `labels` then holds the class of the largest share.
        report: what was understood of the source that the images come from; None: not known.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    split: NDArray[np.str_]
    paths: Sequence[str]
    folds: Tensor | None = None
    note: str = ""
    pictures: Pictures | None = None
    contents: Sequence[str] | None = None
    shares: Tensor | None = None
    report: ImageReport | None = None

    def __post_init__(self) -> None:
        """Check every column.

        Raises:
            UserError: a column has another type or length, or values out of range.
        """
        self.check_pixels()
        _check_pictures(self.name, self.pictures, self.images)
        _check_labels(self.name, self.labels, len(self), len(self.classes))
        strange = sorted(set(np.unique(self.split).tolist()) - set(SPLITS))
        if strange:
            raise UserError(
                f"{self.name}: a split is one of {', '.join(SPLITS)}, not {strange[0]!r};"
                " rename it."
            )
        for column, count in (("splits", len(self.split)), ("paths", len(self.paths))):
            if count != len(self):
                raise UserError(
                    f"{self.name}: there are {len(self)} images but {count} {column}; each image"
                    " needs one."
                )
        if (
            self.folds is not None
            and self.folds.numel()
            and not 0 <= int(self.folds.min()) <= int(self.folds.max()) < len(self)
        ):
            raise UserError(
                f"{self.name}: a fold names an image outside 0..{len(self) - 1}; folds are rows of"
                " this set."
            )

    @property
    def has_pixels(self) -> bool:
        """Whether these are images, and no features that were made elsewhere."""
        return True

    def check_pixels(self) -> None:
        """Raise a UserError unless the pixels are uint8 (n, c, h, w)."""
        _check_images(self.name, self.images)

    def __len__(self) -> int:
        """The number of images."""
        return self.images.shape[0]

    @property
    def labelled(self) -> bool:
        """Whether any image has a label."""
        return bool((self.labels != UNLABELLED).any())

    @property
    def train(self) -> "ImageSet":
        """The images of the training split."""
        return self.select(self.rows("train"))

    @property
    def test(self) -> "ImageSet":
        """The images of the test split."""
        return self.select(self.rows("test"))

    @property
    def pretraining(self) -> "ImageSet":
        """All images that may be trained on without labels: those of train and unlabelled."""
        return self.select(self.rows("train", "unlabelled"))

    def rows(self, *splits: str) -> NDArray[np.int64]:
        """Return the rows of some splits, in order.

        Args:
            splits: any of "train", "test" and "unlabelled".

        Returns:
            (m,) int64.
        """
        return np.flatnonzero(np.isin(self.split, splits))

    def select(self, indices: Indices) -> "ImageSet":
        """Return some of the images.

        Args:
            indices: rows in the wanted order, or a boolean mask over all images.

        Returns:
            An ImageSet whose pixels are a view if the rows are neighbours in order, else a copy;
            those of picture files (`CachedPixels`) and whole pictures are never copied. Folds
            follow their images; they are None if one of their images is missing.

        Raises:
            IndexError: a row does not exist, or the mask has another length.
        """
        index = as_rows(indices, len(self))
        rows, pixels = _slice_or_rows(index), self.images
        return replace(
            self,
            images=pixels.chosen(rows) if isinstance(pixels, CachedPixels) else pixels[rows],
            labels=self.labels[rows],
            split=self.split[index],
            paths=[self.paths[i] for i in index],
            folds=_follow(self.folds, index, len(self)),
            pictures=None if self.pictures is None else self.pictures.select(index),
            contents=None if self.contents is None else [self.contents[i] for i in index],
            shares=None if self.shares is None else self.shares[torch.from_numpy(index)],
        )

    def with_pixels(self, pixels: Tensor, **changes: Any) -> "ImageSet":
        """Return the same images with other pixels, as after a corruption.

        Whole pictures and digests of the content are left out, since they are those of the old
        pixels.

        Args:
            pixels: (n, c, h, w) uint8.
            changes: other columns that change.
        """
        return replace(self, images=pixels, **{"pictures": None, "contents": None, **changes})

    def stored_pairs(self, rows: NDArray[np.int64], seeds: Tensor) -> "ImageSet | None":
        """Return two different stored views of each of some images, as 2m images.

        Rows i and i + m of the result are of one image. None: views are drawn from the pixels.

        Args:
            rows: (m,) of this set.
            seeds: (m,) int64, which choose the views.
        """
        return None

    def for_views(self, rows: Indices) -> "Tensor | Pictures":
        """Return the images from which the views of some rows are cropped.

        Args:
            rows: (m,) rows, in the wanted order.

        Returns:
            (m, c, h, w) uint8, or m whole pictures; `views.two_views` takes both.
        """
        index = torch.as_tensor(rows)
        if self.pictures is not None:
            return self.pictures.select(index)
        return self.images[index.to(self.images.device, non_blocking=True)]


def digest_of_pixels(images: ImageSet, known: Collection[str] = ()) -> str:
    """Return a digest of pixels, paths and splits: 64 hexadecimal digits of a sha256.

    With `digest_of_labels` it identifies the images that a result was computed from; their name,
    folds and note do not count. For images from picture files it is the digest of their contents
    and of how pixels are made from these, and "-contents" follows it; no pixel is read. Else it
    reads every pixel (about a tenth of a second per 100 MB), so compute it once and keep it.

    Args:
        images: the images.
        known: digests of stored results. Those of older versions are of the pixels: where one of
            them is that of these images it is returned, so that such results stay valid.
    """
    words = json.dumps([images.split.tolist(), list(images.paths)]).encode()
    digest = ""
    if (described := described_pixels(images)) is not None:
        digest = digest_of_bytes("\n".join(described).encode(), words) + OF_CONTENTS
        if digest in known or all(one.endswith(OF_CONTENTS) for one in known):
            return digest
    of_pixels = digest_of_bytes(digest_of_tensors(images.images).encode(), words)
    return of_pixels if not digest or of_pixels in known else digest


def described_pixels(images: ImageSet) -> Iterator[str] | None:
    """Return words for each image that decide its pixels, or None where only its pixels do.

    They are the content, how pixels were made from it, and the shape that views are cropped from.
    Only pixels of the cache of picture files have them: others may have been changed.
    """
    pixels, pictures = images.images, images.pictures
    if pixels.is_floating_point():  # the contents of a `FeatureSet` are of all its numbers
        return iter(images.contents or ())
    if not isinstance(pixels, CachedPixels) or not pixels.made or images.contents is None:
        return None
    if pictures is None:
        height, width = ([side] * len(images) for side in pixels.shape[2:])
    else:
        height, width = pictures.height.tolist(), pictures.width.tolist()
    facts = zip(images.contents, height, width, strict=True)
    return (f"{pixels.made} {content} {h} {w}" for content, h, w in facts)


def digest_of_labels(images: ImageSet) -> str:
    """Return the sha256 of labels, class names and shares, as 64 hexadecimal digits."""
    words = json.dumps(images.classes)
    shares = () if images.shares is None else (digest_of_tensors(images.shares).encode(),)
    return digest_of_bytes(digest_of_tensors(images.labels).encode(), words.encode(), *shares)


def convert(
    images: ImageSet,
    size: int | None = None,
    channels: int | None = None,
    options: ReadOptions = READ_OPTIONS,
    *,
    are_pictures: bool = False,
) -> ImageSet:
    """Return the same images at another size or with other channels, as a run needs them.

    Images that have the size already are taken to be the squares themselves, whatever
    `options.centre_share` says: squares are cut only once. So what was cut by these options before
    stays as it is, and an array of images of a run's size is what its encoder takes.

    Images that lose a part of theirs, because they are larger or not square, stay as the `pictures`
    of the result, from which views are cropped. No pixels are copied for this if the channels stay.
    Beside the result, memory holds only a few images at a time.

    Args:
        images: the ImageSet; returned itself if nothing is to change. New squares are made from its
            whole pictures where it has them.
        size: side in pixels of the centre square, see `resize`; None: the shorter side.
        channels: of the result, see `recolour`; None: the present number.
        options: whose centre_share and interpolation make the squares; no other option counts.
        are_pictures: whether images without whole pictures are whole pictures themselves, as those
            of a data source are; a square is then cut out of them at any size.

    Raises:
        UserError: a size below 1, or channels that cannot be made from the present ones.
    """
    height, width = images.images.shape[2:]
    side = min(height, width) if size is None else size
    depth = images.images.shape[1] if channels is None else channels
    cuts = are_pictures and options.centre_share is not None
    fits = (side, side) == (height, width) and not cuts
    if fits and depth == images.images.shape[1]:
        return images
    check_shape(side, depth)
    squares, pictures = _squares(images, side, depth, options, fits), images.pictures
    loses = max(height, width) > side or height != width or options.centre_share is not None
    if pictures is None and loses and not fits:
        pictures = Pictures.of_array(_recoloured(images.images, depth))
    elif pictures is not None and pictures.channels != depth:
        pictures = pictures.recoloured(depth, recolour)
    return replace(images, images=squares, pictures=pictures)


def _squares(
    images: ImageSet, side: int, channels: int, options: ReadOptions, fits: bool
) -> Tensor:
    """(n, channels, side, side): the centre squares of the whole pictures, or of the images.

    Where these fit, they are the squares already.
    """
    pixels, whole = images.images, None if fits else images.pictures
    shape = (len(images), channels, side, side)
    # Enlarged for a pretrained encoder, a data set that fits in memory may no longer do so
    on_disk = prod(shape) > max(LARGEST_ENLARGED, pixels.nbytes) and pixels.device.type == "cpu"
    if on_disk and side > min(pixels.shape[2:]):
        kept = array_on_disk(shape, np.dtype(np.uint8), "the enlarged images")
        squares: Tensor = CachedPixels(torch.from_numpy(kept), None, "")
    else:
        squares = torch.empty(shape, dtype=torch.uint8, device=pixels.device)
    count = images_at_once(pixels) if whole is None else 1
    for start in range(0, len(images), count):
        rows = slice(start, start + count)
        part = pixels[rows] if whole is None else whole[start][None]
        squares[rows] = recolour(part if fits else resize(part, side, options), channels)
    return squares


def _recoloured(pixels: Tensor, channels: int) -> Tensor:
    if pixels.shape[1] == channels:
        return pixels
    shape = (len(pixels), channels, *pixels.shape[2:])
    recoloured = torch.empty(shape, dtype=torch.uint8, device=pixels.device)
    count = images_at_once(pixels)
    for start in range(0, len(pixels), count):
        rows = slice(start, start + count)
        recoloured[rows] = recolour(pixels[rows], channels)
    return recoloured


def check_shape(size: int | None, channels: int | None) -> None:
    """Raise a UserError for a size in pixels or a number of channels that images cannot have.

    Args:
        size: the wanted side; None stands for a default.
        channels: the wanted channels; None stands for a default.
    """
    if size is not None and size < 1:
        raise UserError(f"size must be at least 1 pixel, not {size}.")
    if channels is not None and not 1 <= channels <= MOST_BANDS:
        raise UserError(
            f"channels must be 1 (grey), 3 (RGB), or another number of bands up to {MOST_BANDS},"
            f" not {channels}."
        )


def resize(pixels: Tensor, size: int, options: ReadOptions = READ_OPTIONS) -> Tensor:
    """Resize the largest centred square of each image, or another one that options ask for.

    The largest square is what torchvision's Resize(size) and CenterCrop(size) show of a picture, in
    the order CenterCrop(shorter side), Resize(size): the result lies exactly in the middle, whereas
    the other order rounds its place to whole pixels of the result. The filter is bilinear and
    antialiased (the triangle grows with the shrink factor), as Pillow's BILINEAR; values are
    rounded to the nearest integer. A square with a `centre_share` or of another filter is made by
    Pillow, as that of a picture file is, so that both are equal.

    Args:
        pixels: (n, c, h, w) uint8.
        size: side of the result in pixels.
        options: whose centre_share and interpolation count.

    Returns:
        (n, c, size, size) uint8.
    """
    if (options.centre_share, options.interpolation) != (None, "bilinear"):
        wanted = Decoding(
            size, centre_share=options.centre_share, interpolation=options.interpolation
        )
        squares = [square_of(image.numpy(), wanted) for image in pixels.cpu()]
        made = (
            np.stack(squares) if squares else np.empty((0, pixels.shape[1], size, size), np.uint8)
        )
        return torch.from_numpy(made).to(pixels.device)
    height, width = pixels.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[:, :, top : top + side, left : left + side]
    if side == size:
        return square
    scaled = functional.interpolate(
        square.float(), (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def recolour(pixels: Tensor, channels: int) -> Tensor:
    """Turn grey images into RGB (three equal channels), or RGB images into grey (Rec. 601 luma).

    Args:
        pixels: (n, c, h, w) uint8.
        channels: c, or one of 1 and 3 where c is the other.

    Returns:
        (n, channels, h, w) uint8, rounded; the pixels themselves if nothing changes.

    Raises:
        UserError: there is no rule for these two numbers.
    """
    present = pixels.shape[1]
    if present == channels:
        return pixels
    if {present, channels} != {1, 3}:
        raise UserError(
            f"images with {_bands(present)} cannot become images with {_bands(channels)}; only grey"
            " (1) and RGB (3) turn into each other. Use images with the same bands, or"
            f" channels={present}."
        )
    if present == 1:
        return pixels.expand(-1, channels, -1, -1).contiguous()
    weights = torch.tensor(LUMA, dtype=torch.int32, device=pixels.device).view(1, 3, 1, 1)
    luma = (pixels.int() * weights).sum(1, keepdim=True, dtype=torch.int32)
    return ((luma + 0x8000) >> 16).to(torch.uint8)


def _bands(count: int) -> str:
    return "1 band" if count == 1 else f"{count} bands"


def _check_images(name: str, images: Tensor) -> None:
    form = f"{images.dtype} {tuple(images.shape)}"
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UserError(
            f"{name}: images must be uint8 (n, c, h, w), not {form}; scale them to 0..255 and"
            " convert them."
        )
    if not 1 <= images.shape[1] <= MOST_BANDS or 0 in images.shape[2:]:
        raise UserError(
            f"{name}: images (n, c, h, w) must have c = 1 to {MOST_BANDS} channels and some pixels,"
            f" not {form}; convert them."
        )


def _check_pictures(name: str, pictures: Pictures | None, images: Tensor) -> None:
    if pictures is not None and (len(pictures), pictures.channels) != tuple(images.shape[:2]):
        raise UserError(
            f"{name}: there are {len(pictures)} whole pictures of {pictures.channels} channels for"
            f" {images.shape[0]} images of {images.shape[1]}; each image needs its own."
        )


def _check_labels(name: str, labels: Tensor, images: int, classes: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != (images,):
        form = f"{labels.dtype} {tuple(labels.shape)}"
        raise UserError(
            f"{name}: labels must be int64 ({images},), one an image, not {form}; convert them."
        )
    if images and not UNLABELLED <= int(labels.min()) <= int(labels.max()) < classes:
        span = f"{int(labels.min())}..{int(labels.max())}"
        raise UserError(
            f"{name}: there are labels {span} but {classes} classes; use 0..{classes - 1}, or -1"
            " where the class is unknown."
        )


def as_rows(indices: Indices, count: int) -> NDArray[np.int64]:
    """Return row numbers (m,) int64, each in 0..count - 1.

    Args:
        indices: rows, also counted from the end, or a boolean mask.
        count: of all images.

    Raises:
        IndexError: a row does not exist, or the mask has another length.
    """
    array = np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices)
    if array.dtype == bool:
        if array.shape != (count,):
            raise IndexError(f"a mask over {count} images has shape ({count},), not {array.shape}")
        return np.flatnonzero(array)
    rows = array.astype(np.int64).reshape(-1)
    if rows.size and not -count <= rows.min() <= rows.max() < count:
        raise IndexError(f"row {rows.min()} or {rows.max()} lies outside {count} images")
    return rows % max(count, 1)


def _slice_or_rows(rows: NDArray[np.int64]) -> slice | Tensor:
    """The rows as a slice if they are neighbours in order (tensors then give a view)."""
    if rows.size and np.array_equal(rows, np.arange(rows[0], rows[0] + rows.size)):
        return slice(int(rows[0]), int(rows[0]) + rows.size)
    return torch.from_numpy(rows)


def _follow(folds: Tensor | None, rows: NDArray[np.int64], count: int) -> Tensor | None:
    """Folds as rows of the selection; None if the selection lacks one of their images."""
    if folds is None:
        return None
    new_row = torch.full((count,), -1, dtype=torch.int64)
    new_row[torch.from_numpy(rows)] = torch.arange(rows.size)
    moved = new_row[folds]
    return None if bool((moved < 0).any()) else moved
