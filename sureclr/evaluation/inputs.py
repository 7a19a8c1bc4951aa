"""What evaluations read: a run, images as it takes them, and tables of embeddings.

Only this module brings images to a run's size and channels; evaluations work on images that fit.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sureclr.config import READ_OPTIONS, ReadOptions
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet, convert
from sureclr.data.map_file import MapOrigin, read_map
from sureclr.data.sources import load_images
from sureclr.errors import UserError, reason_in
from sureclr.evaluation.probes import BLOCK_NUMBERS, ProbeResult, check_rows, linear_probe
from sureclr.evaluation.scores import Reference
from sureclr.files import digest_of_bytes, digest_of_tensors, make_folder, why
from sureclr.models.embedding import as_float, collecting_blocks, embed_blocks
from sureclr.progress import SILENT, Progress
from sureclr.training.run import Run

# Raw pixels of an image as features: 32 x 32 in grey, 18 x 18 in colour. A linear probe on 27,648
# numbers is no better and takes hours.
RAW_NUMBERS = 1024


FACTOR_OF_ROOM = 4  # of the features' bytes that a probe may need on a GPU: the copy, and logits
BASELINES, UNTRAINED = "baselines", "untrained.parquet"  # in the run folder


@dataclass
class ProbeCache:
    """`linear_probe`, which fits each probe once: several evaluations need the same ones.

    Attributes:
        fit: what fits a probe that is new.
        device: which does the work, where the features fit on it; else the CPU does.
        probes: those that were fitted, by a digest of their rows and labels.
    """

    fit: Callable[..., ProbeResult] = linear_probe
    device: torch.device | None = None
    probes: dict[str, ProbeResult] = field(default_factory=dict)

    def __call__(
        self, train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor
    ) -> ProbeResult:
        """Return `linear_probe` of these rows."""
        check_rows(train_x, train_y, test_x, test_y)
        key = digest_of_tensors(train_x, train_y, test_x, test_y)
        if key not in self.probes:
            rows = (train_x, train_y, test_x, test_y)
            if fits_on(self.device, FACTOR_OF_ROOM * (train_x.nbytes + test_x.nbytes)):
                found = self.fit(*(part.to(self.device) for part in rows)).cpu()
            else:
                found = self.fit(*rows)
            self.probes[key] = found
        return self.probes[key]


def fits_on(device: torch.device | None, size: int) -> bool:
    """Return whether so many bytes are free on a CUDA device; no other one fits probes."""
    return (
        device is not None and device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0]
    )


@dataclass
class EvaluationInputs:
    """A run, the images to evaluate it on (its own, or others for transfer), and their tables.

    Attributes:
        run: the trained run.
        catalogue: the images at the run's size and channels, with their labels, splits and paths;
            without pixels (on torch's meta device) where `no_pixels` says why. `images` are the
            same images where they have pixels.
        table: their embeddings by the run.
        progress: reports how far the work is; it may raise to stop.
        root: folder of the data sets, for out-of-distribution images.
        human: file of what people said of the test images, if the user has one.
        probes: the linear probes that were fitted so far.
        no_pixels: why there are no pixels, or "": the images cannot be read, so that only their
            stored table is there, or they never had any.
        own_digest: `digest_of_pixels` of the run's own images, whose baselines are kept in the run;
            "" for other images.
        blocks: each block's output for all images, batch by batch, if they were collected while the
            table was made (`blocks_beside`).
    """

    run: Run
    catalogue: ImageSet
    table: Embeddings
    progress: Progress = SILENT
    root: Path | None = None
    human: Path | None = None
    probes: ProbeCache = field(default_factory=ProbeCache)
    no_pixels: str = ""
    own_digest: str = ""
    blocks: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def images(self) -> ImageSet:
        """The images with their pixels.

        Raises:
            UserError: they cannot be read, and only their stored table is there.
        """
        if self.run.config.of_table:
            raise UserError(f"pixels are needed here, and {self.no_pixels.rstrip('.')}.")
        if self.no_pixels:
            raise UserError(
                "the pixels of the images are needed and cannot be read; name the images' new place"
                " with data=folder:PATH."
            )
        return self.catalogue

    @property
    def images_or_views(self) -> ImageSet:
        """The images with their pixels, or a table with the features of their views.

        Raises:
            UserError: as for `images`.
        """
        return self.images if self.catalogue.has_pixels else self.catalogue

    @property
    def map_path(self) -> Path:
        """Where the map of the images is read, a file of its own beside the result `geometry`."""
        return self.run.stored("map.parquet")

    def map_problem(self) -> str:
        """Return why the map of the images cannot be used, without a full stop, or ""."""
        try:
            made_of = read_map(self.map_path)[1]
        except UserError as error:
            return str(error).rstrip(".")
        same = made_of == MapOrigin.of(self.table.origin, self.catalogue)
        return "" if same else f"{self.map_path} was made of other weights, images or labels"

    def embed(self, images: ImageSet) -> Embeddings:
        """Embed images that fit the run."""
        return self.run.embed(images, self.progress)

    def embed_randomised(self, images: ImageSet) -> Embeddings:
        """Embed images that fit the run by `randomised_run` of the run."""
        return self.randomised.embed(images, self.progress)

    def embed_blocks(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return each block's output for some rows of the images, averaged over positions."""
        if any(self.blocks.values()):
            index = torch.from_numpy(rows)
            return {name: torch.cat(parts)[index] for name, parts in self.blocks.items()}
        return embed_blocks(
            self.run.model,
            self.images,
            rows,
            precision=self.run.precision,
            progress=self.progress,
        )

    def other_test_images(self, name: str) -> ImageSet:
        """Return `load_test_images` for this run."""
        return load_test_images(name, self.images, self.root, self.run.config.read_options)

    def require_own_images(self, evaluation: str) -> None:
        """Raise a UserError unless the images are those that the run was trained on.

        Results that name rows of embeddings.parquet can be about no others.
        """
        if self.catalogue.name != self.run.source:
            raise UserError(
                f"{evaluation} can only be evaluated on the training data ({self.run.source}), not"
                f" on {self.catalogue.name}; leave out data=."
            )

    @cached_property
    def randomised(self) -> Run:
        """The run with other random weights."""
        return randomised_run(self.run)

    @cached_property
    def untrained(self) -> Embeddings:
        """The table of the network as it was before its first step.

        A frozen encoder is that network still: its features are those of the run, and the table has
        no directions, as `raw`. Any other table of the run's own images is kept as
        baselines/untrained.parquet, with a digest of the weights and of the images: later commands
        and other checkpoints need the same one.
        """
        if self.run.config.first_encoder == "frozen":
            return without_heads(self.table, self.table.features)
        before, table = self.run.untrained(), self.table
        weights = f"untrained {_digest_of_weights(before)} {before.made_in}"
        origin = f"{weights}images {self.own_digest}"
        stored = self._stored_baseline(origin) if self.own_digest else None
        if stored is not None:
            return replace(stored, labels=table.labels, classes=table.classes, split=table.split)
        made = replace(before.embed(self.images, self.progress), origin=origin)
        if self.own_digest and not self.run.not_kept:
            self._keep_baseline(made)
        return made

    def _stored_baseline(self, origin: str) -> Embeddings | None:
        """Return the untrained network's table of an earlier command, if it has this origin."""
        for folder in filter(None, (self.run.out, self.run.path)):
            if not os.path.lexists(path := folder / BASELINES / UNTRAINED):
                continue
            try:
                stored = Embeddings.read(path)
            except UserError as error:
                self.progress.message(
                    f"{path} is damaged ({reason_in(error)}); the"
                    f" {self.run.config.first_encoder_name} embeds the images anew."
                )
                continue
            if stored.origin == origin and list(stored.paths) == list(self.table.paths):
                return stored
        return None

    def _keep_baseline(self, table: Embeddings) -> None:
        """Save the untrained network's table; where that fails, nothing but time is lost."""
        path = (self.run.out or self.run.path) / BASELINES / UNTRAINED
        try:
            make_folder(path.parent)
            table.save(path)
        except (UserError, OSError) as error:
            with suppress(OSError):
                path.parent.rmdir()  # it stays if it holds a table
            self.progress.message(
                f"The baseline {path} is not kept, and the next command embeds it again:"
                f" {why(error) if isinstance(error, OSError) else error}"
            )

    @cached_property
    def raw(self) -> Embeddings:
        """The table whose features are the pixels in [0, 1], at most RAW_NUMBERS of an image.

        It has no directions: (n, 0). Where the run has squares of its own form, these are reduced,
        so that the pixels show what the encoder sees.
        """
        side = min(self.run.size, isqrt(RAW_NUMBERS // self.run.channels))
        options = self.run.config.read_options
        own_form = (options.centre_share, options.interpolation) != (None, "bilinear")
        images = replace(self.images, pictures=None) if own_form else self.images
        pixels = as_float(convert(images, size=side).images.flatten(1))
        return without_heads(self.table, pixels)

    @cached_property
    def reference(self) -> Reference:
        """The training images and their linear probe, with which other images are compared."""
        return Reference.of(self.table, self.probes)


def without_heads(table: Embeddings, features: Tensor) -> Embeddings:
    """Return the table with other features (n, f), and without directions: (n, 0)."""
    empty = features[:, :0]
    return replace(table, features=features, direction=empty, radius=None, certainty=None)


def _digest_of_weights(run: Run) -> str:
    """The sha256 of the names and values of a network's state."""
    state = run.model.state_dict()
    values = digest_of_tensors(*state.values())
    return digest_of_bytes(" ".join(state).encode(), values.encode())


def evaluation_inputs(
    run: Run,
    images: ImageSet,
    table: Embeddings | None = None,
    *,
    root: Path | None = None,
    human: Path | None = None,
    progress: Progress = SILENT,
) -> EvaluationInputs:
    """Bring images to the form that a run takes, and embed them.

    Args:
        run: the trained run.
        images: of any size.
        table: embeddings of an earlier time; used if its paths are those of the images.
        root: folder of the data sets.
        human: file of what people said of the test images.
        progress: reports how far the work is; it may raise to stop.
    """
    images = fit_images(images, run)
    if table is None or list(table.paths) != list(images.paths):
        table = run.embed(images, progress)
    return EvaluationInputs(run, images, table, progress, root, human)


def fit_images(images: ImageSet, run: Run) -> ImageSet:
    """Return the images at the size and channels that a run takes, with its form of squares."""
    return convert(images, run.size, run.channels, run.config.read_options)


@contextmanager
def blocks_beside(run: Run, images: ImageSet) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the pooled output of each block of the encoder while the images are embedded.

    Yields:
        Name of a block -> its outputs, batch by batch; nothing where they are too many to be kept
        until the probes need them (a quarter of BLOCK_NUMBERS: 256 MiB).
    """
    widths = embed_blocks(run.model, images, np.array([0])).values()
    if len(images) * sum(width.shape[1] for width in widths) > BLOCK_NUMBERS // 4:
        yield {}
        return
    with collecting_blocks(run.model) as parts:
        yield parts


def embed_blocks_by(run: Run, images: ImageSet, progress: Progress = SILENT) -> dict[str, Tensor]:
    """Return each block's output for images of any size, averaged over positions."""
    fitting = fit_images(images, run)
    return embed_blocks(run.model, fitting, precision=run.precision, progress=progress)


def load_test_images(
    name: str, like: ImageSet, root: Path | None, options: ReadOptions = READ_OPTIONS
) -> ImageSet:
    """Read the test images of another data set, at the size and channels of `like`.

    Args:
        name: of the data set.
        like: images that fit the run.
        root: folder of the data sets.
        options: whose centre_share and interpolation make the squares.

    Raises:
        UserError: it is the data set of `like`, or it cannot be read.
    """
    if name == like.name:
        raise UserError("this is the data set that the images come from.")
    other = load_images(name, root=root).test
    channels, size = like.images.shape[1], like.images.shape[-1]
    before = other.images.shape[-1]
    note = (
        ""
        if before == size
        else f"resized from {before} to {size} pixels: a change of sharpness may explain the result"
    )
    return replace(convert(other, size, channels, options, are_pictures=True), note=note)


def randomised_run(run: Run) -> Run:
    """Return the run with weights of another seed, as a check of explanations.

    The last layer of the certainty head is 0 at the start of training; it is drawn as well.
    """
    other = run.redrawn(run.config.seed + 1)
    head = other.model.certainty
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(other.config.seed)
        for layer in head.modules() if head is not None else ():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    return other
