"""ImageSet: the one form in which every data source arrives, and how it is brought to another size
or number of channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sureclr.errors import UserError

SPLITS = ("train", "test", "unlabelled")
UNLABELLED = -1  # the label of an image whose class nobody told
CHUNK = 1024  # images resized or recoloured at a time: bounded memory on 100,000 images
LUMA = (
    19595,
    38470,
    7471,
)  # Rec. 601 (0.299, 0.587, 0.114) in 1 / 65536, the integers Pillow's convert("L") uses

Indices = Sequence[int] | NDArray[np.generic] | Tensor


@dataclass(frozen=True, eq=False)
class ImageSet:
    """n images with what is known of them; checked at birth. May be empty (a data set without test
    images has an empty `.test`).

    Attributes:
        name: the source it came from, as the user wrote it.
        images: (n, c, h, w) uint8, 0 black to 255, c = 1 grey or 3 RGB; in memory or memory-mapped.
        labels: (n,) int64, an index into `classes`, or -1 where the class is not known.
        classes: names of the classes; empty where nothing is labelled.
        split: (n,) str array of "train", "test" and "unlabelled" (may be trained on; was never
            meant to be labelled).
        paths: n names, one an image: the file's path in its folder, or "train/00012" where there is
            no file.
        folds: (k, m) int64 rows of this ImageSet, k training subsets that the data set itself
            defines (STL-10's 10); or None.
        note: what a reader of results should know: how the split was made, which files could not be
            read.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    split: NDArray[np.str_]
    paths: Sequence[str]
    folds: Tensor | None = None
    note: str = ""

    def __post_init__(self) -> None:
        _check_images(self.name, self.images)
        _check_labels(self.name, self.labels, len(self), len(self.classes))
        strange = sorted(set(np.unique(self.split).tolist()) - set(SPLITS))
        if strange:
            raise UserError(
                f"{self.name}: a split is one of {', '.join(SPLITS)}, not {strange[0]!r};"
                " rename it."
            )
        for what, count in (("splits", len(self.split)), ("paths", len(self.paths))):
            if count != len(self):
                raise UserError(
                    f"{self.name}: {len(self)} images but {count} {what}; give one an image."
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

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def labelled(self) -> bool:
        """Whether any image has a label."""
        return bool((self.labels != UNLABELLED).any())

    @property
    def train(self) -> "ImageSet":
        return self.select(self.rows("train"))

    @property
    def test(self) -> "ImageSet":
        return self.select(self.rows("test"))

    @property
    def pretraining(self) -> "ImageSet":
        """All that may be trained on without labels: train and unlabelled."""
        return self.select(self.rows("train", "unlabelled"))

    def rows(self, *splits: str) -> NDArray[np.int64]:
        """(m,) int64: the rows in any of these splits, in order. Index `images` by them where a
        copy would not fit in memory.
        """
        return np.flatnonzero(np.isin(self.split, splits))

    def select(self, indices: Indices) -> "ImageSet":
        """The images at these rows (integers or a boolean mask), in this order. Neighbouring rows
        are a view, others a copy.
        """
        index = _as_rows(indices, len(self))
        rows = _slice_or_rows(index)
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            split=self.split[index],
            paths=[self.paths[i] for i in index],
            folds=_follow(self.folds, index, len(self)),
        )


def convert(images: ImageSet, size: int | None = None, channels: int | None = None) -> ImageSet:
    """The same images at another size or number of channels, as a run trained on other data needs
    them (transfer, OOD).
    """
    side = min(images.images.shape[2:]) if size is None else size
    depth = images.images.shape[1] if channels is None else channels
    pixels = images.images
    if (depth, side, side) == tuple(pixels.shape[1:]):
        return images
    if side < 1 or depth not in (1, 3):
        raise UserError(
            f"no images of {depth} channels and {side} pixels a side; give 1 or 3 channels and a"
            " size of 1 or more."
        )
    parts = [recolour(resize(part, side), depth) for part in pixels.split(CHUNK)]
    return replace(images, images=torch.cat(parts))


def resize(pixels: Tensor, size: int) -> Tensor:
    """(n, c, h, w) uint8 -> (n, c, size, size) uint8: the largest centred square, resized.

    Bilinear and antialiased (the triangle filter grows with the shrink factor), what Pillow's
    BILINEAR does; rounded to nearest.
    """
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
    """(n, c, h, w) uint8 -> (n, channels, h, w): grey to RGB as three copies, RGB to grey by Rec.
    601 luma, rounded.
    """
    if pixels.shape[1] == channels:
        return pixels
    if pixels.shape[1] == 1:
        return pixels.expand(-1, channels, -1, -1).contiguous()
    weights = torch.tensor(LUMA, dtype=torch.int32, device=pixels.device).view(1, 3, 1, 1)
    luma = (pixels.int() * weights).sum(1, keepdim=True, dtype=torch.int32)
    return ((luma + 0x8000) >> 16).to(torch.uint8)


def _check_images(name: str, images: Tensor) -> None:
    form = f"{images.dtype} {tuple(images.shape)}"
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UserError(
            f"{name}: images are uint8 (n, c, h, w), not {form}; scale them to 0..255 and convert"
            " them."
        )
    if images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise UserError(
            f"{name}: images (n, c, h, w) have c = 1 or 3 channels and some pixels, not {form};"
            " convert them."
        )


def _check_labels(name: str, labels: Tensor, images: int, classes: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != (images,):
        form = f"{labels.dtype} {tuple(labels.shape)}"
        raise UserError(
            f"{name}: labels are int64 ({images},), one an image, not {form}; convert them."
        )
    if images and not UNLABELLED <= int(labels.min()) <= int(labels.max()) < classes:
        span = f"{int(labels.min())}..{int(labels.max())}"
        raise UserError(
            f"{name}: labels {span} but {classes} classes; use 0..{classes - 1}, or -1 where the"
            " class is unknown."
        )


def _as_rows(indices: Indices, count: int) -> NDArray[np.int64]:
    """(m,) int64, each in 0..count - 1."""
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
    """A slice where the rows are neighbours in order (so that tensors give a view), else the rows
    as a tensor.
    """
    if rows.size and np.array_equal(rows, np.arange(rows[0], rows[0] + rows.size)):
        return slice(int(rows[0]), int(rows[0]) + rows.size)
    return torch.from_numpy(rows)


def _follow(folds: Tensor | None, rows: NDArray[np.int64], count: int) -> Tensor | None:
    """Folds as rows of the selection; None where the selection lost one of their images."""
    if folds is None:
        return None
    place = torch.full((count,), -1, dtype=torch.int64)
    place[torch.from_numpy(rows)] = torch.arange(rows.size)
    moved = place[folds]
    return None if bool((moved < 0).any()) else moved
