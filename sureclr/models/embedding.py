"""model + images -> Embeddings: the one table that every analysis reads."""

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
from sureclr.maths.sphere import Posterior
from sureclr.models.encoders import blocks, pooled
from sureclr.models.simclr import SimCLR
from sureclr.progress import SILENT, Progress, reporting


def embed(
    model: SimCLR,
    images: ImageSet,
    *,
    kernel_dimension: float | None = None,
    batch: int = 512,
    progress: Progress = SILENT,
) -> Embeddings:
    """Every image, whole, through the model in evaluation mode, on the model's device.

    Args:
        progress: is told the number of images done after each batch; may raise to stop.
    """
    if len(images) == 0:
        raise UserError(f"{images.name} has no images to embed; give a source that has some.")
    device = model.mean.device
    outputs: list[tuple[Tensor, Posterior]] = []
    with evaluating(model), reporting(progress, "Embedding images", len(images)) as update:
        for start in range(0, len(images), batch):
            outputs.append(model(as_float(images.images[start : start + batch].to(device))))
            update(min(start + batch, len(images)))
    return Embeddings(
        torch.cat([h for h, _ in outputs]).float().cpu(),
        _joined([p.direction for _, p in outputs]),
        _joined([p.radius for _, p in outputs]),
        _joined([p.certainty for _, p in outputs]),
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
    batch: int = 512,
    progress: Progress = SILENT,
) -> dict[str, Tensor]:
    """Images, whole, through the encoder alone: block's name -> (n, c) float32 on the CPU, its
    output averaged over positions.

    Blocks and their average are those of `encoders.blocks` and `encoders.pooled`. One pass; maps
    are averaged as they come, so the memory is that of one batch and of the answer.

    Args:
        rows: (n,) of the images, in this order; None for all.
        progress: as in `embed`.
    """
    device, index = (
        model.mean.device,
        (torch.arange(len(images)) if rows is None else torch.from_numpy(rows)),
    )
    parts: dict[str, list[Tensor]] = {name: [] for name, _ in blocks(model.encoder)}
    with ExitStack() as hooks:
        hooks.enter_context(evaluating(model))
        update = hooks.enter_context(reporting(progress, "Embedding blocks", len(index)))
        for name, block in blocks(model.encoder):
            hooks.callback(
                block.register_forward_hook(
                    partial(_keep_pooled, model.encoder, parts[name])
                ).remove
            )
        for start in range(0, len(index), batch):
            model.features(
                as_float(
                    images.images[index[start : start + batch].to(images.images.device)].to(device)
                )
            )
            update(min(start + batch, len(index)))
    return {name: torch.cat(part) for name, part in parts.items()}


def _keep_pooled(
    encoder: nn.Module, kept: list[Tensor], block: nn.Module, inputs: Any, output: Any
) -> None:
    """A forward hook."""
    kept.append(pooled(encoder, output).float().cpu())


def _joined(parts: list[Any]) -> Any:
    return None if parts[0] is None else torch.cat(parts).float().cpu()


def as_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [0, 1]."""
    return pixels.float() / 255


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode it had comes back."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was)
