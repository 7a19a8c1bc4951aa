"""The views of a step, prepared so that making them waits for nothing.

What they are made of, pixels and random parameters, is chosen on the CPU and sent to the device. On
an accelerator this is done while the step before is still computed there. Of a frozen encoder the
features of views stand in for the views.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.config import PretrainConfig
from sureclr.data.batches import batch, steps_per_epoch
from sureclr.data.counter_rng import hashed, two_of
from sureclr.data.feature_table import FeatureSet
from sureclr.data.image_set import ImageSet
from sureclr.data.null_views import images_of_nothing
from sureclr.data.pictures import Pictures, pinned, sent
from sureclr.data.view_parameters import ViewForm, plan_views
from sureclr.data.views import one_view, two_views, views_of
from sureclr.training.accumulate import null_rows

CHOICE = 0x5EED  # stream of the random numbers that choose among stored features
NULLS = 0x0DD5  # stream of the seeds of null views
ViewsOf = Callable[[Tensor, Tensor, ViewForm], Tensor]  # as `views.views_of`


class StepViews(NamedTuple):
    """The views of a step.

    Attributes:
        done: the number of steps before it.
        of: returns both views of the images of a slice of the batch, (2m, c, h, w) float32 in
            [0, 1], or the features of both views, (2m, f) float32; rows i and i + m are those of
            image i. Behind them are the null views that belong to the slice
            (`accumulate.null_rows`). It returns the same numbers each time.
    """

    done: int
    of: Callable[[slice], Tensor]


@dataclass(frozen=True, eq=False)
class FeatureViews:
    """Features of k >= 2 views of each of n images, on which heads are trained.

    Attributes:
        values: (k, m, f) float16 or float32, in memory or memory-mapped; rows are read when they
            are used.
        whole: maps rows (m,) int64 to the features (m, f) float32 of these images without any
            augmentation, on the CPU. The monitor calls it once, for at most some thousand rows.
        at: (n,) int64, where the features of each image stand in `values`, which may then have
            other images as well; None: in their order.
        nulls: (p, f) float16 or float32, features of null views, from which each step draws; None:
            there are none.
    """

    values: NDArray[np.floating[Any]]
    whole: Callable[[Tensor], Tensor]
    at: Tensor | None = None
    nulls: NDArray[np.floating[Any]] | None = None

    @staticmethod
    def of(images: ImageSet) -> "FeatureViews | None":
        """Return the features that a table has of these images; None: the images have pixels."""
        if not isinstance(images, FeatureSet):
            return None
        whole = images.images.flatten(1)
        values = images.views.numpy().swapaxes(0, 1)
        return FeatureViews(values, lambda rows: whole[rows], images.view_rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return k, n and f."""
        k, n, f = self.values.shape
        return k, n if self.at is None else len(self.at), f

    def rows(self, views: Tensor, indices: Tensor) -> Tensor:
        """Return the features (m, f) float32, on the CPU, of one view of each of m images.

        Args:
            views: (m,) int64, the number of the view, from 0 to k - 1.
            indices: (m,) int64 rows of the images.
        """
        places = indices if self.at is None else self.at[indices]
        found = np.asarray(self.values[views.numpy(), places.numpy()], dtype=np.float32)
        return torch.from_numpy(found)


def nulls_of_run(
    config: PretrainConfig, images: ImageSet, numbers: range, device: torch.device
) -> Tensor:
    """Return the null views of these numbers, (m, c, h, w) float32 in [0, 1], on a device.

    Each depends on the seed of the run and on its number alone.

    Args:
        config: names the seed, the kinds, and the distributions of the views.
        images: the training images.
        numbers: m numbers, one after the other.
        device: on which they are wanted.
    """
    words = hashed(_seeds(config, numbers), NULLS, 2)
    seeds, rows = words[:, 0], _remainder(words[:, 1], len(images))
    channels, size = images.images.shape[1], images.images.shape[-1]

    def squares(places: Tensor) -> Tensor:
        index = sent(rows[places], images.images.device)
        return sent(images.images[index], device)

    pixels = images_of_nothing(
        config.null_kinds, seeds, channels, size, device, squares, numbers.start
    )
    whole = pixels if device.type == "cpu" else Pictures.of_array(pixels)
    return one_view(whole, seeds, 0, config.views, size)


def _seeds(config: PretrainConfig, numbers: range) -> Tensor:
    return torch.arange(numbers.start, numbers.stop) + (config.seed << 40)


def _remainder(words: Tensor, count: int) -> Tensor:
    """Return random numbers from 0 to count - 1."""
    return ((words >> 1) & ((1 << 62) - 1)) % count


def _numbers_of_nulls(config: PretrainConfig, done: int) -> range:
    """Return the numbers of the null views of a step; no other step has them."""
    return range(done * config.nulls, (done + 1) * config.nulls)


def prepared_views(
    config: PretrainConfig,
    images: ImageSet,
    done: int,
    device: torch.device,
    compiled: ViewsOf | None = None,
) -> StepViews:
    """Prepare the views of a step.

    Args:
        config: names the seed, the size of the batch and the distributions of the views.
        images: the training images.
        done: the number of steps before it.
        device: on which the views are wanted.
        compiled: `views_of`, compiled; a CPU makes its views another way.
    """
    epoch, number = divmod(done, steps_per_epoch(len(images), config.batch_size))
    indices, seeds = batch(config.seed, epoch, number, len(images), config.batch_size)
    pixels, size = images.for_views(pinned(indices, device)), images.images.shape[-1]
    nulls = None
    if config.nulls:
        nulls = nulls_of_run(config, images, _numbers_of_nulls(config, done), device)
    if device.type == "cpu":

        def on_cpu(part: slice) -> Tensor:
            some = pixels[part] if isinstance(pixels, Tensor) else pixels.select(part)
            return two_views(some, seeds[part], config.views, size)

        return StepViews(done, _with_nulls(on_cpu, nulls, config))
    pictures = _on_device(pixels, device)
    plan = plan_views(pictures, seeds, (0, 1), size, size, config.views)
    packed = sent(plan.packed(), device)
    make = compiled or views_of
    on_device = _with_nulls(
        lambda part: make(pictures.values, packed[part], plan.form), nulls, config
    )
    return StepViews(done, on_device)


def _on_device(pixels: Tensor | Pictures, device: torch.device) -> Pictures:
    pictures = Pictures.of_array(pixels) if isinstance(pixels, Tensor) else pixels
    return pictures.to(device)


def _with_nulls(
    of: Callable[[slice], Tensor], nulls: Tensor | None, config: PretrainConfig
) -> Callable[[slice], Tensor]:
    """Return what returns the views of a slice with its null views behind them."""
    if nulls is None:
        return of

    def both(part: slice) -> Tensor:
        own = null_rows(part, config.batch_size, len(nulls))
        views = of(part)
        return torch.cat([views, nulls[own].to(views)])

    return both


def prepared_features(
    config: PretrainConfig, features: FeatureViews, done: int, device: torch.device
) -> StepViews:
    """Prepare the features of a step: of each image, those of two of its views.

    Args:
        config: names the seed and the size of the batch.
        features: of the views of the training images.
        done: the number of steps before it.
        device: on which the features are wanted.
    """
    views, images, width = features.shape
    epoch, number = divmod(done, steps_per_epoch(images, config.batch_size))
    indices, seeds = batch(config.seed, epoch, number, images, config.batch_size)
    found = features.rows(torch.cat(two_of(seeds, CHOICE, views)), indices.repeat(2))
    both, nulls = sent(found.view(2, -1, width), device), None
    if config.nulls and features.nulls is not None:
        words = hashed(_seeds(config, _numbers_of_nulls(config, done)), CHOICE, 1)[:, 0]
        rows = _remainder(words, len(features.nulls))
        drawn = np.asarray(features.nulls[rows.numpy()], dtype=np.float32)
        nulls = sent(torch.from_numpy(drawn), device)
    of = _with_nulls(lambda part: both[:, part].flatten(0, 1), nulls, config)
    return StepViews(done, of)
