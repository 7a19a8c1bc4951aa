"""Pixels that stay in a memory-mapped file until they are used, as a tensor."""

from collections.abc import Callable, Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor
from torch.utils._pytree import tree_map

from sureclr.errors import UserError

BYTES_AT_ONCE = 2**22  # of pixels that are converted or copied together

Rows = int | slice | Sequence[int] | NDArray[np.generic] | Tensor


class CachedPixels(Tensor):
    """Some rows of a memory-mapped array of images, as a tensor (n, c, h, w) uint8.

    Choosing rows with `chosen` reads no pixels, whatever the rows are; a plain tensor would copy
    them into memory unless they are neighbours. Indexing reads the rows that it names and returns a
    plain tensor. Every other operation of torch works as on a plain tensor, and first copies all
    rows if they are not the whole array; so index where there may be many.

    It also says how its pixels were made from the content of the images. A plain tensor does not,
    so pixels that a user put into a set in place of others are never taken for those of the cache;
    nor are those that torch changed in place.

    Attributes:
        whole: (m, c, h, w) uint8, memory-mapped, or on a device.
        rows: (n,) int64 rows of `whole`, on its device; None: all of them, in order.
    """

    whole: Tensor
    rows: Tensor | None
    _made: str
    _began: int  # the version of `whole` at which its pixels are those that were made

    def __new__(cls, whole: Tensor, rows: Tensor | None, made: str) -> "CachedPixels":
        """Make a tensor that has a shape, a type and a device, and no memory of its own."""
        count = len(whole) if rows is None else len(rows)
        pixels: CachedPixels = Tensor._make_wrapper_subclass(
            cls, (count, *whole.shape[1:]), dtype=whole.dtype, device=whole.device
        )
        pixels.whole, pixels.rows, pixels._made, pixels._began = whole, rows, made, _version(whole)
        return pixels

    @property
    def made(self) -> str:
        """How the pixels were made: with `ImageSet.contents` it decides them; "" if it does not.

        It does not after an operation of torch has changed pixels of `whole` in place.
        """
        return self._made if _version(self.whole) == self._began else ""

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub has no `cls`
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation of torch on plain tensors; one without effect reads nothing."""
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return args[0].chosen(slice(None))
        given = kwargs or {}
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[place] if place < len(args) else given.get(argument.name)
                _note_written(value, reshapes=torch.Tag.inplace_view in func.tags)
        return func(*tree_map(_plain, args), **tree_map(_plain, given))

    def chosen(self, rows: Rows) -> "CachedPixels":
        """Return some of the rows, in any order, without reading pixels.

        Args:
            rows: (m,) rows, a mask, or a slice.
        """
        if isinstance(rows, slice) and self.rows is None:
            return CachedPixels(self.whole[rows], None, self.made)
        places = torch.arange(len(self), device=self.device) if self.rows is None else self.rows
        return CachedPixels(self.whole, places[rows], self.made)

    def gathered(self) -> Tensor:
        """Return all rows as a plain tensor: the memory-mapped one, or a copy of some rows."""
        return self.whole if self.rows is None else self.whole[self.rows]

    def moved(self, device: torch.device) -> "CachedPixels":
        """Return the rows on a device; on the way to it only a block of them is in memory."""
        size = len(self), *self.whole.shape[1:]
        copy = torch.empty(size, dtype=self.dtype, device=device)
        count = images_at_once(self)
        for start in range(0, len(self), count):
            copy[start : start + count] = self[start : start + count]
        return CachedPixels(copy, None, self.made)

    def __getitem__(self, index: Any) -> Tensor:
        """Read the rows that an index names; it may be anything that torch's own takes."""
        if self.rows is None:
            return self.whole[index]
        first, *others = index if isinstance(index, tuple) and index else (index,)
        if (
            first is None
            or first is Ellipsis
            or (others and not isinstance(first, int | slice))
            or np.ndim(first) > 1  # a mask of pixels
        ):
            return self.gathered()[index]
        found = self.whole[self.rows[first]]
        before = (slice(None),) if isinstance(first, slice) else ()
        return found[(*before, *others)] if others else found

    def __setitem__(self, index: Any, value: Any) -> None:
        """Change pixels in the memory of this process, if all rows are here."""
        _note_written(self)
        self.whole[index] = _plain(value)

    def __iter__(self) -> Iterator[Tensor]:
        """Read one image after the other."""
        return (self[row] for row in range(len(self)))

    def split(self, split_size: Any, dim: int = 0) -> tuple[Tensor, ...]:
        """Return blocks of rows, which are read when they are used."""
        if dim != 0 or not isinstance(split_size, int) or split_size < 1:
            return tuple(self.gathered().split(split_size, dim))
        starts = range(0, max(1, len(self)), split_size)
        return tuple(self.chosen(slice(start, start + split_size)) for start in starts)

    def numpy(self, *, force: bool = False) -> NDArray[Any]:
        """Return all rows as an array, which cannot be written to: nothing here would notice it."""
        array = self.gathered().numpy(force=force)
        array.flags.writeable = False
        return array

    def as_subclass(self, cls: type[Any]) -> Any:
        """Return all rows as a tensor of another class, such as torchvision's `Image`."""
        return self.gathered().as_subclass(cls)

    def share_memory_(self) -> "CachedPixels":
        """Move the whole array into memory that processes share."""
        self.whole.share_memory_()
        return self

    def tolist(self) -> list[Any]:
        """Return all rows as lists."""
        return list(self.gathered().tolist())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle all rows as a plain tensor."""
        return self.gathered().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Copy all rows, as a plain tensor."""
        return self.gathered().clone()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Say how many images there are; their pixels are not read."""
        return f"CachedPixels({tuple(self.shape)} of {len(self.whole)} images)"


def images_at_once(pixels: Tensor) -> int:
    """Return how many images of a tensor (n, c, h, w) are worked on together."""
    return max(1, BYTES_AT_ONCE // max(1, pixels.shape[1:].numel() * pixels.element_size()))


def _note_written(pixels: Any, reshapes: bool = False) -> None:
    """Count a change of pixels in place.

    Args:
        pixels: an argument that an operation writes to.
        reshapes: whether it changes the shape.

    Raises:
        UserError: it would change a copy of rows, which is lost, or the shape.
    """
    if not isinstance(pixels, CachedPixels):
        return
    if pixels.rows is not None or reshapes:
        what = "the shape" if reshapes else "chosen rows"
        raise UserError(
            f"{what} of the cache of images cannot be changed in place; change a copy,"
            " images[:].clone()."
        )
    if not pixels.whole.is_inference():
        torch.autograd.graph.increment_version(pixels.whole)


def _version(pixels: Tensor) -> int:
    """How often torch has changed the memory of a tensor; 0 where it does not count that."""
    return 0 if pixels.is_inference() else pixels._version


def _plain(value: Any) -> Any:
    return value.gathered() if isinstance(value, CachedPixels) else value


def _sent(pixels: CachedPixels) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    """Send rows to another process, such as a worker of a DataLoader, as a plain tensor.

    Torch would put a copy of chosen rows into shared memory, which is freed before a new process
    has opened it.
    """
    if pixels.rows is None:
        return reduce_tensor(pixels.whole)  # type: ignore[no-any-return]
    return torch.from_numpy, (pixels.gathered().cpu().numpy(),)


ForkingPickler.register(CachedPixels, _sent)
