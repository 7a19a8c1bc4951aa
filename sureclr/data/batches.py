"""Which images a training step sees, as a pure function of (seed, epoch, step).

There is no loader whose state would have to be saved, so a resumed run sees exactly the batches of
an uninterrupted one.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sureclr.data.counter_rng import hashed
from sureclr.errors import UserError


class Batch(NamedTuple):
    """The images of one step.

    Attributes:
        indices: (b,) int64 rows of the training images, on the CPU.
        seeds: (b,) int64, the seed of each image's views, on the CPU.
    """

    indices: Tensor
    seeds: Tensor


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of full batches an epoch.

    Images that do not fill a batch are left out of this epoch; the next one has another order.

    Args:
        images: number of training images.
        batch_size: images a batch.

    Raises:
        UserError: there is no full batch.
    """
    if images < 2:
        raise UserError(
            f"there are {images} training images, and a contrastive loss needs at least 2; use a"
            " source that has them."
        )
    if images < batch_size:
        smaller = max(2, images // 2)
        raise UserError(
            f"batch_size {batch_size} is more than the {images} training images; try batch_size"
            f" {smaller}."
        )
    return images // batch_size


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, images: int) -> tuple[Tensor, Tensor]:
    """The order of the images (n,) and the seeds of their views (n,) in one epoch."""
    words = hashed(torch.arange(images), stream=(seed << 32) + epoch, count=2)
    return words[:, 0].argsort(), words[:, 1]


def batch(seed: int, epoch: int, step: int, images: int, batch_size: int) -> Batch:
    """Return one batch of an epoch.

    Args:
        seed: of the run.
        epoch: its number, from 0.
        step: number of the batch in the epoch, from 0.
        images: number of training images.
        batch_size: images a batch.

    >>> first = batch(seed=0, epoch=0, step=0, images=10, batch_size=5).indices
    >>> second = batch(seed=0, epoch=0, step=1, images=10, batch_size=5).indices
    >>> sorted([*first.tolist(), *second.tolist()]) == list(range(10))
    True
    """
    order, seeds = _epoch(seed, epoch, images)
    # A copy, because the order itself is used again in the next step
    indices = order[step * batch_size : (step + 1) * batch_size].clone()
    return Batch(indices, seeds[indices])
