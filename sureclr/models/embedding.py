"""Model and images to Embeddings, the table that every analysis reads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from sureclr.models.devices import autocast
from sureclr.models.encoders import encoder_blocks, pooled
from sureclr.models.simclr import SimCLR
from sureclr.progress import SILENT, Progress, Update, report_progress

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

    def outputs(pixels: Tensor) -> dict[str, Tensor | None]:
        features, posterior = model(pixels)
        return {
            "features": features,
            "direction": posterior.direction,
            "radius": posterior.radius,
            "certainty": posterior.certainty,
            "presence": posterior.presence,
        }

    with (
        evaluating(model),
        autocast(model.device, precision),
        report_progress(progress, "Embedding images", len(images)) as update,
    ):
        batches = (images.images[start : start + batch] for start in range(0, len(images), batch))
        columns = _outputs_of_all(batches, outputs, len(images), model.device, update)
    return Embeddings(
        columns["features"],
        columns["direction"],
        columns.get("radius"),
        columns.get("certainty"),
        images.labels,
        images.classes,
        images.split,
        images.paths,
        kernel_dimension,
        presence=columns.get("presence"),
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
        The name of each block, with (n, c) float32 on the CPU; nothing for an encoder without
        blocks.

    Raises:
        UserError: batch is not 1 or more.
    """
    batch = batch_for(model.device, images) if batch is None else checked_count("batch", batch)
    index = torch.arange(len(images)) if rows is None else torch.from_numpy(rows)
    if not any(True for _ in encoder_blocks(model.encoder.backbone)):
        return {}
    found: dict[str, Tensor | None] = {}

    def outputs(pixels: Tensor) -> dict[str, Tensor | None]:
        model.features(pixels)
        return dict(found)

    with (
        evaluating(model),
        autocast(model.device, precision),
        report_progress(progress, "Embedding blocks", len(index)) as update,
        _block_outputs(model, found.__setitem__),
    ):
        device = images.images.device
        batches = (images.images[some.to(device)] for some in index.split(batch))
        return _outputs_of_all(batches, outputs, len(index), model.device, update)


@contextmanager
def collecting_blocks(model: SimCLR) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the pooled output of each block of the encoder while images are embedded.

    Yields:
        The name of each block, with a tensor (batch, c) float32 for each batch so far. They lie on
        the model's device until the end, so that no batch waits for it, and then on the CPU.
    """
    parts: dict[str, list[Tensor]] = {
        name: [] for name, _ in encoder_blocks(model.encoder.backbone)
    }
    with _block_outputs(model, lambda name, output: parts[name].append(output.float())):
        yield parts
    for batches in parts.values():
        batches[:] = [batch.cpu() for batch in batches]


@contextmanager
def _block_outputs(model: SimCLR, keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `keep` with the name and the pooled output of each block of the encoder that runs."""
    backbone = model.encoder.backbone

    def hook(name: str, block: nn.Module, inputs: Any, output: Any) -> None:
        keep(name, pooled(backbone, output))

    with ExitStack() as stack:
        for name, block in encoder_blocks(backbone):
            stack.callback(block.register_forward_hook(partial(hook, name)).remove)
        yield


def batch_for(device: torch.device, images: ImageSet) -> int:
    """Return how many images are embedded at once: on a CPU as many as its caches like."""
    if device.type != "cpu":
        return LARGEST_BATCH
    return min(max(PIXEL_ROWS // images.images.shape[-1], 1), LARGEST_BATCH)


def _outputs_of_all(
    batches: Iterable[Tensor],
    outputs: Callable[[Tensor], Mapping[str, Tensor | None]],
    count: int,
    device: torch.device,
    update: Update,
) -> dict[str, Tensor]:
    """Collect what a network puts out for all images, in one array for each output.

    On a GPU nothing waits for a single batch: its results are copied while the next one runs, and
    are stored after that.

    Args:
        batches: uint8 images, some at a time.
        outputs: float images in [0, 1] to the outputs by name; None where there is none.
        count: number of all images.
        device: of the network.
        update: gets the number of images after each batch.

    Returns:
        Each output, (count, ...) float32 on the CPU.
    """
    columns: dict[str, Tensor] = {}
    copied: deque[tuple[dict[str, Tensor], torch.Event | None]] = deque()
    stored = begun = 0

    def store_oldest() -> int:
        results, event = copied.popleft()
        if event is not None:
            event.synchronize()
        for name, value in results.items():
            if name not in columns:
                columns[name] = torch.empty(count, *value.shape[1:])
            columns[name][stored : stored + len(value)] = value
        return stored + len(next(iter(results.values())))

    gpu = device.type == "cuda"
    for pixels in _sent_ahead(batches, device) if gpu else batches:
        found = outputs(as_float(pixels.to(device)))
        results = {
            name: value.float().to("cpu", non_blocking=gpu)  # into pinned memory if gpu
            for name, value in found.items()
            if value is not None
        }
        copied.append((results, torch.cuda.current_stream(device).record_event() if gpu else None))
        if not gpu or len(copied) > 1:
            stored = store_oldest()
        begun += len(pixels)
        update(begun)
    while copied:
        stored = store_oldest()
    return columns


def _sent_ahead(batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Copy each batch to a GPU while it computes on the one before."""
    copying, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)

    def send(pixels: Tensor) -> Tensor:
        if pixels.is_cuda:
            return pixels
        with torch.cuda.stream(copying):
            return pixels.pin_memory().to(device, non_blocking=True)

    coming = map(send, batches)
    ahead = next(coming, None)
    while ahead is not None:
        computing.wait_stream(copying)
        ahead.record_stream(computing)  # its memory stays until the computation is done
        now, ahead = ahead, next(coming, None)
        yield now


def as_float(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels 0..255 to float32 in [0, 1]; features in place of pixels stay."""
    return pixels if pixels.is_floating_point() else pixels.float() / 255


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode without gradients, and restore its mode afterwards."""
    training = [module for module in model.modules() if module.training]
    _set_training(training, False)
    try:
        with torch.no_grad():
            yield
    finally:
        _set_training(training, True)


def _set_training(modules: list[nn.Module], training: bool) -> None:
    """Do what `nn.Module.train` does, without its search for parameters and for submodules.

    That took a fifth of the time of explanations, which embed some hundred times.
    """
    for module in modules:
        object.__setattr__(module, "training", training)
