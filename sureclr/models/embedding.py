"""Model and images to Embeddings, the table that every analysis reads."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.maths.inputs import checked_count
from sureclr.maths.sphere import Posterior
from sureclr.models.devices import autocast
from sureclr.models.encoders import encoder_blocks, pooled
from sureclr.models.simclr import SimCLR
from sureclr.progress import SILENT, Progress, report_progress

# Rows of pixels of the images that a CPU embeds at once: 64 images of 32 px, 9 of 224 px. Larger
# maps leave its caches, and the system clears their memory anew for every layer. With 512 images of
# 32 px, small-24 takes 1.8 times as long and ResNet-18 1.3 times; the numbers are the same, bit by
# bit (measured, one thread)
PIXEL_ROWS = 2048
LARGEST_BATCH = 512


def embed(
    model: SimCLR,
    images: ImageSet,
    *,
    kernel_dimension: float | None = None,
    precision: torch.dtype = torch.float32,
    batch: int | None = None,
    progress: Progress = SILENT,
) -> Embeddings:
    """Embed whole images with the model in evaluation mode, on the model's device.

    Args:
        model: the network.
        images: at the size and with the channels that the model takes.
        kernel_dimension: of the run's loss; it is stored in the table.
        precision: in which the network computes; the table is float32 in any case.
        batch: number of images that are embedded at once; None: `batch_for`.
        progress: gets the number of embedded images after each batch; may raise to stop.

    Raises:
        UserError: there are no images, or batch is not 1 or more.
    """
    batch = batch_for(model.device, images) if batch is None else checked_count("batch", batch)
    if len(images) == 0:
        raise UserError(f"{images.name} has no images to embed; choose a source that has some.")
    outputs: list[tuple[Tensor, Posterior]] = []
    with (
        evaluating(model),
        autocast(model.device, precision),
        report_progress(progress, "Embedding images", len(images)) as update,
    ):
        for start in range(0, len(images), batch):
            pixels = images.images[start : start + batch].to(model.device)
            outputs.append(model(as_float(pixels)))
            update(min(start + batch, len(images)))
    return Embeddings(
        torch.cat([features for features, _ in outputs]).float().cpu(),
        _joined([posterior.direction for _, posterior in outputs]),
        _joined([posterior.radius for _, posterior in outputs]),
        _joined([posterior.certainty for _, posterior in outputs]),
        images.labels,
        images.classes,
        images.split,
        images.paths,
        kernel_dimension,
    )


def embed_blocks(
    model: SimCLR,
    images: ImageSet,
    rows: NDArray[np.int64] | None = None,
    *,
    precision: torch.dtype = torch.float32,
    batch: int | None = None,
    progress: Progress = SILENT,
) -> dict[str, Tensor]:
    """Return what each block of the encoder puts out for whole images, averaged over positions.

    `encoders.encoder_blocks` defines the blocks and `encoders.pooled` the average. The images pass
    through the network once. Maps are averaged at once, so that the memory is that of one batch
    and of the result.

    Args:
        model: the network.
        images: at the size and with the channels that the model takes.
        rows: (n,) rows of the images, in the order of the result; None: all.
        precision: as in `embed`.
        batch: as in `embed`.
        progress: as in `embed`.

    Returns:
        The name of each block, with (n, c) float32 on the CPU.

    Raises:
        UserError: batch is not 1 or more.
    """
    batch = batch_for(model.device, images) if batch is None else checked_count("batch", batch)
    index = torch.arange(len(images)) if rows is None else torch.from_numpy(rows)
    with (
        evaluating(model),
        autocast(model.device, precision),
        report_progress(progress, "Embedding blocks", len(index)) as update,
        collecting_blocks(model) as parts,
    ):
        for start in range(0, len(index), batch):
            some = index[start : start + batch].to(images.images.device)
            model.features(as_float(images.images[some].to(model.device)))
            update(min(start + batch, len(index)))
    return {name: torch.cat(part) for name, part in parts.items()}


@contextmanager
def collecting_blocks(model: SimCLR) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what each block puts out, pooled, of all images that are embedded inside the block.

    Yields:
        The name of each block, with a tensor (batch, c) float32 on the CPU for each batch so far.
    """
    backbone = model.encoder.backbone
    parts: dict[str, list[Tensor]] = {name: [] for name, _ in encoder_blocks(backbone)}
    with ExitStack() as stack:
        for name, block in encoder_blocks(backbone):
            hook = partial(_append_pooled, backbone, parts[name])
            stack.callback(block.register_forward_hook(hook).remove)
        yield parts


def _append_pooled(
    backbone: nn.Module, outputs: list[Tensor], block: nn.Module, inputs: Any, output: Any
) -> None:
    """Append a block's pooled output; as a forward hook, which gets the last three arguments."""
    outputs.append(pooled(backbone, output).float().cpu())


def batch_for(device: torch.device, images: ImageSet) -> int:
    """Return how many images are embedded at once: on a CPU as many as its caches like."""
    if device.type != "cpu":
        return LARGEST_BATCH
    return min(max(PIXEL_ROWS // images.images.shape[-1], 1), LARGEST_BATCH)


def _joined(parts: list[Any]) -> Any:
    return None if parts[0] is None else torch.cat(parts).float().cpu()


def as_float(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels 0..255 to float32 in [0, 1]."""
    return pixels.float() / 255


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode without gradients, and restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
