"""What evaluations read: the run's table, and the same table for two baselines, the untrained encoder and raw pixels."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch.nn import functional as F

from sureclr.data.image_set import ImageSet, convert
from sureclr.errors import UserError
from sureclr.evaluation.uncertainty import Reference
from sureclr.models.embed import Embeddings, as_float
from sureclr.training.run import Run

RAW_SIDE = 32  # raw pixels of larger images are compared at this size: a linear probe on 27,648 pixels says no more and costs hours


@dataclass
class Material:
    """The images of an evaluation (the run's own, or others for transfer) and their tables.

    Attributes:
        run: the trained run.
        images: at the run's size and channels.
        table: their embeddings by the run.
        each_batch: called with (images done, in all) while a model runs; may raise to stop.
        root: where data sets lie (out-of-distribution images).
        human: CIFAR-10H's probabilities, where the user has them.
    """

    run: Run
    images: ImageSet
    table: Embeddings
    each_batch: Callable[[int, int], None]
    root: Path | None = None
    human: Path | None = None

    @cached_property
    def untrained(self) -> Embeddings:
        """The table of the network as it was before its first step."""
        return self.run.untrained().embed(self.images, self.each_batch)

    @cached_property
    def raw(self) -> Embeddings:
        """The pixels themselves as features, in [0, 1], at most 32 px a side."""
        small = convert(self.images, size=min(self.run.size, RAW_SIDE))
        pixels = as_float(small.images.flatten(1))
        return replace(self.table, features=pixels, direction=F.normalize(pixels, dim=1), radius=None, certainty=None)

    @cached_property
    def reference(self) -> Reference:
        """Training images and their linear probe, with which uncertainty and ood both compare: fitted once."""
        return Reference.of(self.table)


def labelled_split(table: Embeddings, what: str, name: str) -> tuple[Embeddings, Embeddings]:
    """Labelled training and test rows."""
    train, test = table.labelled("train"), table.labelled("test")
    if len(train) == 0 or len(test) == 0:
        missing = "labelled training images" if len(train) == 0 else "labelled test images"
        raise UserError(f"{what} needs labels, and {name} has no {missing}; put the images into one sub-folder a class "
                        "(with train/ and test/ above them, or we split), or name labelled data with --data.")
    return train, test


def material(run: Run, images: ImageSet, table: Embeddings | None = None, *, root: Path | None = None, human: Path | None = None,
             each_batch: Callable[[int, int], None] = lambda done, total: None) -> Material:
    """The material of a run on these images; `table` where it has been computed before and is still of these images."""
    fitting = convert(images, run.size, run.channels)
    if table is None or list(table.paths) != list(fitting.paths):
        table = run.embed(fitting, each_batch)
    return Material(run, fitting, table, each_batch, root, human)
