"""Whole pictures of different sizes, from which views are cropped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.data.cached_pixels import CachedPixels

MOST_BANDS = 32  # of an image
BYTES_AT_ONCE = 2**28  # that move to a device in one step
PINNING = ("cuda",)  # devices that copy from pinned memory while the program goes on


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """Return x, on the CPU, in memory from which this device copies while the program goes on."""
    return x.pin_memory() if device.type in PINNING and x.device.type == "cpu" else x


def sent(x: Tensor, device: torch.device) -> Tensor:
    """Return x on a device, and do not wait until it is there."""
    return pinned(x, device).to(device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Pictures:
    """n whole pictures of c channels, each with its own height and width.

    A picture is stored as (c, height, width) in one flat array, which may be memory-mapped, or lie
    on a device. Several rows may share one picture. Selecting rows copies no pixels.

    Attributes:
        values: (m,) uint8, the pixels of all pictures.
        start: (n,) int64 on the CPU, the place of each picture's first value.
        height: (n,) int64 on the CPU, in pixels.
        width: (n,) int64 on the CPU, in pixels.
        channels: c.
    """

    values: Tensor
    start: Tensor
    height: Tensor
    width: Tensor
    channels: int

    @staticmethod
    def of_array(images: Tensor) -> "Pictures":
        """Return images (n, c, h, w) uint8 as pictures, without a copy if they are contiguous.

        Those of `CachedPixels` are never copied.
        """
        n, c, h, w = images.shape
        rows, size = torch.arange(n), torch.full((n,), 1)
        if isinstance(images, CachedPixels):
            rows = rows if images.rows is None else images.rows.cpu()
            images = images.whole
        return Pictures(images.contiguous().view(-1), rows * (c * h * w), size * h, size * w, c)

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.start)

    def __getitem__(self, row: int) -> Tensor:
        """Return one picture, (c, height, width) uint8, without a copy."""
        start, height, width = (int(t[row]) for t in (self.start, self.height, self.width))
        length = self.channels * height * width
        return self.values[start : start + length].view(self.channels, height, width)

    @property
    def length(self) -> Tensor:
        """Return the number of values of each picture, (n,) int64."""
        return self.channels * self.height * self.width

    @property
    def nbytes(self) -> int:
        """Return the bytes of the pixels; a picture that several rows share counts once."""
        return int(self.length[self._stored()[0]].sum())

    def select(self, rows: Sequence[int] | NDArray[np.generic] | Tensor | slice) -> "Pictures":
        """Return some of the pictures.

        Args:
            rows: (m,) integers, or a slice.
        """
        index = rows if isinstance(rows, slice) else torch.as_tensor(rows).cpu().long()
        return replace(
            self, start=self.start[index], height=self.height[index], width=self.width[index]
        )

    def to(self, device: torch.device) -> "Pictures":
        """Return the pictures with their pixels on a device, and no pixels of other pictures.

        They are returned as they are if their pixels are on the device already.
        """
        here = self.values.device
        if device.type == here.type and device.index in (None, here.index):
            return self
        return self._gathered(device)

    def _gathered(self, device: torch.device) -> "Pictures":
        """A copy on a device in which only these pictures are stored, each once."""
        rows, place = self._stored()
        start, length = self.start[rows], self.length[rows]
        end = length.cumsum(0)
        values = torch.empty(int(length.sum()), dtype=torch.uint8, device=device)
        blocks = (end - 1) // BYTES_AT_ONCE
        for block in blocks.unique().tolist():
            some = blocks == block
            moved = sent(self._joined(start[some], length[some]), device)
            last = int(end[some][-1])
            values[last - len(moved) : last] = moved
        return replace(self, values=values, start=(end - length)[place])

    def recoloured(self, channels: int, recolour: Callable[[Tensor, int], Tensor]) -> "Pictures":
        """Return copies of the pictures with another number of channels.

        Args:
            channels: of the copies.
            recolour: maps (1, c, h, w) uint8 and the number to (1, channels, h, w).
        """
        rows, place = self._stored()
        length = self.length[rows] // self.channels * channels
        end = length.cumsum(0)
        values = self.values.new_empty(int(length.sum()))
        for row, last, count in zip(rows.tolist(), end.tolist(), length.tolist(), strict=True):
            values[last - count : last] = recolour(self[row][None], channels).flatten()
        return replace(self, values=values, start=(end - length)[place], channels=channels)

    def _stored(self) -> tuple[Tensor, Tensor]:
        """A row of each stored picture, by its place, and the number of each row's picture."""
        _, rows, place = np.unique(self.start.numpy(), return_index=True, return_inverse=True)
        return torch.from_numpy(rows), torch.from_numpy(place)

    def _joined(self, start: Tensor, length: Tensor) -> Tensor:
        """The values of stored pictures, one after the other; a copy unless they lie so already."""
        first, end = int(start[0]), int(start[-1] + length[-1])
        if end - first == int(length.sum()):
            return self.values[first:end]
        pairs = zip(start.tolist(), length.tolist(), strict=True)
        return torch.cat([self.values[at : at + count] for at, count in pairs])
