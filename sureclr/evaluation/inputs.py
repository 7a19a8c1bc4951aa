"""What evaluations read: the run's table, and the same table for two baselines, the untrained
encoder and raw pixels.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isqrt
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet, convert
from sureclr.errors import UserError
from sureclr.evaluation.certainty_quality import Reference
from sureclr.evaluation.probes import ProbeResult, check_rows, linear_probe
from sureclr.files import digest_of_tensors
from sureclr.models.embedding import as_float
from sureclr.progress import SILENT, Progress
from sureclr.training.run import Run

# Of an image, as raw pixels: 32 px in grey, 18 in colour. A linear probe on 27,648 says no more and
# costs hours
RAW_NUMBERS = 1024


@dataclass
class Probes:
    """`linear_probe`, each fitted once: the same features are asked about by linear, uncertainty
    and ood, and as the last block.
    """

    found: dict[str, ProbeResult] = field(default_factory=dict)

    def __call__(
        self,
        train_x: Tensor,
        train_y: Tensor,
        test_x: Tensor,
        test_y: Tensor,
        *,
        allow_missing: bool = False,
    ) -> ProbeResult:
        check_rows(train_x, train_y, test_x, test_y, allow_missing)
        key = digest_of_tensors(train_x, train_y, test_x, test_y)
        if key not in self.found:
            self.found[key] = linear_probe(
                train_x, train_y, test_x, test_y, allow_missing=allow_missing
            )
        return self.found[key]


@dataclass
class Material:
    """The images of an evaluation (the run's own, or others for transfer) and their tables.

    Attributes:
        run: the trained run.
        images: at the run's size and channels.
        table: their embeddings by the run.
        progress: reports how far the work is; may raise to stop.
        root: where data sets lie (out-of-distribution images).
        human: CIFAR-10H's probabilities, where the user has them.
        probes: those fitted so far.
    """

    run: Run
    images: ImageSet
    table: Embeddings
    progress: Progress
    root: Path | None = None
    human: Path | None = None
    probes: Probes = field(default_factory=Probes)

    @cached_property
    def untrained(self) -> Embeddings:
        """The table of the network as it was before its first step."""
        return self.run.untrained().embed(self.images, self.progress)

    @cached_property
    def raw(self) -> Embeddings:
        """The pixels themselves as features, in [0, 1], at most RAW_NUMBERS of an image."""
        small = convert(
            self.images, size=min(self.run.size, isqrt(RAW_NUMBERS // self.run.channels))
        )
        pixels = as_float(small.images.flatten(1))
        return replace(
            self.table,
            features=pixels,
            direction=F.normalize(pixels, dim=1),
            radius=None,
            certainty=None,
        )

    @cached_property
    def reference(self) -> Reference:
        """Training images and their linear probe, with which uncertainty and ood both compare:
        fitted once.
        """
        return Reference.of(self.table, self.probes)


def labelled_split(table: Embeddings, what: str, name: str) -> tuple[Embeddings, Embeddings]:
    """Labelled training and test rows."""
    train, test = table.labelled("train"), table.labelled("test")
    if len(train) == 0 or len(test) == 0:
        missing = "labelled training images" if len(train) == 0 else "labelled test images"
        raise UserError(
            f"{what} needs labels, and {name} has no {missing}; put the images into one sub-folder"
            " a class (with train/ and test/ above them, or we split), or name labelled data with"
            " --data."
        )
    return train, test


def material(
    run: Run,
    images: ImageSet,
    table: Embeddings | None = None,
    *,
    root: Path | None = None,
    human: Path | None = None,
    progress: Progress = SILENT,
) -> Material:
    """The material of a run on these images; `table` where it has been computed before and is still
    of these images.
    """
    fitting = convert(images, run.size, run.channels)
    if table is None or list(table.paths) != list(fitting.paths):
        table = run.embed(fitting, progress)
    return Material(run, fitting, table, progress, root, human)
