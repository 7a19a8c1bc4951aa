"""Bytes that code asks for, counted: the same numbers on every machine, and quick.

    with counted() as memory:
        describe_geometry(table)
    assert memory.peak < 1.2 * bytes_of(table.features)

The storages that torch's operators make are followed until they are freed, and numpy's by
tracemalloc. What a library takes inside one call and gives back is not seen.
"""

import tracemalloc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counted(TorchDispatchMode):
    """Counts the bytes of storages that come into being while it is on.

    Attributes:
        peak: bytes that existed at the same time, at most, of torch and numpy together.
        largest: bytes of the largest storage of torch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.largest = 0
        self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = operator(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and _key(x) not in given:
                self._add(x)
        self.peak = max(self.peak, self._now + tracemalloc.get_traced_memory()[0])
        return result

    def _add(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key, size = _key(x), storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._now += size
            self.largest = max(self.largest, size)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def _key(x: Tensor) -> int:
    return x.untyped_storage()._cdata


@contextmanager
def counted() -> Iterator[Counted]:
    """Count what is asked for inside the block."""
    with Counted():
        torch.zeros(1) + 1  # the first operator imports what later ones need
    tracemalloc.start()
    try:
        with Counted() as memory:
            yield memory
        memory.peak = max(memory.peak, tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def bytes_of(x: Tensor) -> int:
    """The bytes of a tensor's numbers."""
    return x.numel() * x.element_size()
