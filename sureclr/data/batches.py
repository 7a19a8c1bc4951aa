"""batch(seed, epoch, step): which images, and the seeds of their views, as a pure function. Nothing
about a loader is ever saved, so a resumed run sees exactly what an unbroken one would.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sureclr.data.counter_rng import hashed
from sureclr.errors import UserError


class Batch(NamedTuple):
    """Images of one step: indices (b,) into the training images, and the seed (b,) of each image's
    views; int64, on the CPU.
    """

    indices: Tensor
    seeds: Tensor


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Full batches an epoch; what does not fill one waits for the next epoch's order. UserError
    where there is none.
    """
    if images < 2:
        raise UserError(
            f"there are {images} training images, and contrasting needs at least 2; give a source"
            " that has them."
        )
    if images < batch_size:
        smaller = max(2, images // 2)
        raise UserError(
            f"batch_size {batch_size} is more than the {images} training images; try --batch-size"
            f" {smaller}."
        )
    return images // batch_size


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, images: int) -> tuple[Tensor, Tensor]:
    """The epoch's order (n,) and the seed of each image's views (n,): hashes of (image, seed,
    epoch).
    """
    words = hashed(torch.arange(images), stream=(seed << 32) + epoch, count=2)
    return words[:, 0].argsort(), words[:, 1]


def batch(seed: int, epoch: int, step: int, images: int, batch_size: int) -> Batch:
    """The step-th batch of an epoch.

    >>> first = batch(seed=0, epoch=0, step=0, images=10, batch_size=5).indices
    >>> second = batch(seed=0, epoch=0, step=1, images=10, batch_size=5).indices
    >>> sorted([*first.tolist(), *second.tolist()]) == list(range(10))
    True
    """
    order, seeds = _epoch(seed, epoch, images)
    indices = order[
        step * batch_size : (step + 1) * batch_size
    ].clone()  # the order itself is kept for the next step
    return Batch(indices, seeds[indices])
