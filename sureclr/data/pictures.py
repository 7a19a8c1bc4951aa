"""Whole pictures of different sizes, from which views are cropped."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


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
        """Return images (n, c, h, w) uint8 as pictures, without a copy if they are contiguous."""
        n, c, h, w = images.shape
        size = torch.full((n,), 1)
        start = torch.arange(n) * (c * h * w)
        return Pictures(images.contiguous().view(-1), start, size * h, size * w, c)

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.start)

    def __getitem__(self, row: int) -> Tensor:
        """Return one picture, (c, height, width) uint8, without a copy."""
        start, height, width = (int(t[row]) for t in (self.start, self.height, self.width))
        length = self.channels * height * width
        return self.values[start : start + length].view(self.channels, height, width)

    def select(self, rows: Sequence[int] | NDArray[np.generic] | Tensor) -> "Pictures":
        """Return some of the pictures.

        Args:
            rows: (m,) integers.
        """
        index = torch.as_tensor(rows).cpu().long()
        return replace(
            self, start=self.start[index], height=self.height[index], width=self.width[index]
        )

    def to(self, device: torch.device) -> "Pictures":
        """Return the pictures with their pixels on a device."""
        return replace(self, values=self.values.to(device))
