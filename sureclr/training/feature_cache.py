"""Features of several views of each image, computed once by a frozen encoder, on the disk.

They lie in the folder `features` of a run: `values.float16` holds them, `manifest.json` says what
they are of, and `blocks.jsonl` has a line with a checksum for each block of images that is done.
View v of image i depends on the seed of the run, v and i alone, and a block is always computed in
the same batches, so that a cache that was interrupted ends with the same bits. Nothing is written
through the memory map: on a full disk that would kill the process. The folder may be deleted at any
time; a run that goes on computes it again.
"""

import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.config import PretrainConfig
from sureclr.data.counter_rng import hashed
from sureclr.data.image_set import ImageSet
from sureclr.data.views import one_view
from sureclr.errors import UserError
from sureclr.files import (
    WriteError,
    free_bytes,
    json_bytes,
    make_folder,
    open_file,
    read_json,
    remove,
    sealed,
    unsealed,
    write_atomically,
)
from sureclr.models.devices import autocast
from sureclr.models.embedding import batch_for, embed, evaluating
from sureclr.models.simclr import SimCLR
from sureclr.progress import Progress, report_progress
from sureclr.stopping import stop_on_signals
from sureclr.training.step_views import FeatureViews, nulls_of_run

VALUES, MANIFEST, BLOCKS = "values.float16", "manifest.json", "blocks.jsonl"
NULLS = "nulls"  # the folder of the features of null views, inside that of the others
BLOCK_IMAGES = 64  # whose views are computed, and lost by an interruption, together
LARGEST_BLOCKS = 1 << 30  # bytes of blocks.jsonl, of two billion images
LARGEST_HALF = 65_504  # the largest float16
FORMAT = 1  # of the folder; a number that this version does not know is not read


def computed_features(
    folder: Path,
    config: PretrainConfig,
    images: ImageSet,
    model: SimCLR,
    precision: torch.dtype,
    *,
    digests: dict[str, str],
    stopped: str,
    progress: Progress,
) -> FeatureViews:
    """Return the features of `config.cached_views` views of each image, from the disk if they fit.

    Where the run has null views, so many of these have features, too, that a step repeats them as
    seldom as the views of images.

    Args:
        folder: of the features; it is made if it is not there. The run's lock is held.
        config: names the seed, the number of views and their distributions, and the null views.
        images: the training images.
        model: whose encoder is frozen; it computes in evaluation mode, on its device.
        precision: in which the encoder computes.
        digests: of the encoder's weights and of the images. Features of others are not used.
        stopped: how to go on after a signal, as the end of a sentence.
        progress: gets the number of images that are done, and sentences about what happens.

    Raises:
        UserError: the disk has too little room, or a feature is not finite or too large for
            float16.
        Stopped: SIGINT or SIGTERM; blocks that are done stay.
    """
    views, count, width = config.cached_views, len(images), model.encoder.num_features
    about = {
        "format": FORMAT,
        "shape": (views, count, width),
        "block": BLOCK_IMAGES,
        **digests,
        "seed": config.seed,
        "views": asdict(config.views),
        "size": images.images.shape[-1],
        "precision": str(precision).removeprefix("torch."),
        "mean": model.mean.tolist(),
        "std": model.std.tolist(),
    }
    nulls = math.ceil((config.null_fraction or 0) * count * views / 2)
    parts = []
    if nulls:
        of_nulls = {"shape": (1, nulls, width), "null_kinds": config.null_kinds}
        parts.append(_Part(folder / NULLS, about | of_nulls, partial(_null_features, config)))
    parts.append(_Part(folder, about, partial(_features_of, config)))
    make_folder(folder)
    with stop_on_signals(stopped):
        stored = [part.values(images, model, precision, progress) for part in parts]

    def whole(rows: Tensor) -> Tensor:
        return embed(model, images.select(rows), precision=precision, progress=progress).features

    return FeatureViews(stored[-1], whole, nulls=stored[0][0] if nulls else None)


@dataclass(frozen=True)
class _Part:
    """Features in one folder: those of the views of images, or those of null views.

    Attributes:
        folder: where they are stored.
        about: what the manifest says of them.
        features_of: maps rows (m,) of images, or numbers of null views, with the images and the
            model, to the features (k, m, f) of their views.
    """

    folder: Path
    about: dict[str, Any]
    features_of: Callable[[ImageSet, SimCLR, Tensor], NDArray[np.float16]]

    def values(
        self, images: ImageSet, model: SimCLR, precision: torch.dtype, progress: Progress
    ) -> NDArray[np.float16]:
        """Return the features (k, n, f), memory-mapped, after those that miss are computed."""
        folder, shape = self.folder, self.about["shape"]
        about = json.loads(json_bytes(self.about))
        make_folder(folder)
        _remove_others(folder, about, progress)
        with _opened(folder, shape) as file:
            done = _checked_blocks(folder, file, shape, progress)
            missing = [b for b in range(-(-shape[1] // BLOCK_IMAGES)) if b not in done]
            if missing:
                _announce(folder, file, shape, missing, progress)
                write_atomically(folder / MANIFEST, json_bytes(sealed(about, "features")))
                with evaluating(model), autocast(model.device, precision):
                    of_rows = partial(self.features_of, images, model)
                    _compute(folder, file, shape, missing, of_rows, progress)
        return np.memmap(folder / VALUES, np.float16, "r", shape=shape)


def _remove_others(folder: Path, about: dict[str, Any], progress: Progress) -> None:
    """Remove features that were computed by other weights, of other images or of other views."""
    if not os.path.lexists(folder / BLOCKS):  # a run was stopped before the first block
        _remove(folder)
        return
    try:
        found = unsealed(read_json(folder / MANIFEST), "features")
    except (OSError, ValueError, RecursionError):
        found = {}
    if found == about:
        return
    names = [name for name in about if found.get(name) != about[name]]
    reason = f"of another {', '.join(names)}" if found else "without a readable manifest.json"
    progress.message(f"The features in {folder} are {reason}, so they are computed anew.")
    _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the features, and nothing that the user has put beside them."""
    for name in (BLOCKS, MANIFEST, VALUES):  # first what says that the others can be used
        remove(folder / name)


@contextmanager
def _opened(folder: Path, shape: tuple[int, int, int]) -> Iterator[IO[bytes]]:
    """Open the file of the values for reading and writing, at its full size; links are refused."""
    path = folder / VALUES
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NONBLOCK", 0)
    size = 2 * math.prod(shape)
    try:
        with os.fdopen(os.open(path, flags, 0o666), "r+b") as file:
            if os.fstat(file.fileno()).st_size != size:
                file.truncate(size)  # takes no room yet
            yield file
    except OSError as error:
        named = path if error.filename is None else Path(str(error.filename))
        if isinstance(error, WriteError) or named.parent != folder:
            raise  # of an image, which the block has read
        raise WriteError(named, error, size) from error


def _checked_blocks(
    folder: Path, file: IO[bytes], shape: tuple[int, int, int], progress: Progress
) -> set[int]:
    """Return the blocks that are done and whole; the lines of others are removed."""
    lines: dict[int, int] = {}
    try:
        with open_file(folder / BLOCKS, LARGEST_BLOCKS) as written:
            for line in written:
                with suppress(ValueError, TypeError):  # a crash can leave half a line
                    block, checksum = json.loads(line)
                    known = type(block) is type(checksum) is int
                    if known and 0 <= block * BLOCK_IMAGES < shape[1]:
                        lines[block] = checksum
    except FileNotFoundError:
        return set()
    good = {}
    with report_progress(progress, "Checking stored features", len(lines)) as update:
        for number, (block, checksum) in enumerate(lines.items(), 1):
            found = 0
            for _, start, count in _places(shape, block):
                file.seek(start)
                found = zlib.crc32(file.read(count), found)
            if found == checksum:
                good[block] = checksum
            update(number)
    if bad := len(lines) - len(good):
        progress.message(
            f"{bad} of {len(lines)} blocks of features in {folder} are damaged, and are computed"
            " again."
        )
    text = "".join(f"[{block}, {checksum}]\n" for block, checksum in good.items())
    write_atomically(folder / BLOCKS, text.encode())
    return set(good)


def _places(shape: tuple[int, int, int], block: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each view, and where its features of a block begin, and their bytes."""
    views, images, features = shape
    first = block * BLOCK_IMAGES
    count = min(BLOCK_IMAGES, images - first)
    for view in range(views):
        yield view, 2 * (view * images + first) * features, 2 * count * features


def _images_in(blocks: list[int], images: int) -> int:
    """Return how many of all images are in some blocks, of which the last one may be shorter."""
    return sum(min(BLOCK_IMAGES, images - block * BLOCK_IMAGES) for block in blocks)


def _announce(
    folder: Path,
    file: IO[bytes],
    shape: tuple[int, int, int],
    missing: list[int],
    progress: Progress,
) -> None:
    """Say what will be computed and how many bytes it takes, after a look at the free ones."""
    views, images, _ = shape
    size, free = 2 * math.prod(shape), free_bytes(folder)
    there = getattr(os.fstat(file.fileno()), "st_blocks", 0) * 512
    nulls = folder.name == NULLS
    if free is not None and free < size - there:
        what = f"{images:,} null views" if nulls else f"{views} views of {images:,} images"
        field = "null_fraction" if nulls else "cached_views"
        raise UserError(
            f"the features of {what} take {size:,} bytes in {folder}, and {free:,} are free; free"
            f" some space there, give another out=, or choose a smaller {field}."
        )
    count = _images_in(missing, images)
    rest = "" if count == images else f" (the other {images - count:,} are done)"
    what = (
        f"{count:,} null views once{rest}"
        if nulls
        else f"{views} views of each image once: {views * count:,} views of {count:,} images{rest}"
    )
    progress.message(
        f"The frozen encoder computes the features of {what}. They take {size:,} bytes in {folder},"
        " which may be deleted after the training."
    )


def _compute(
    folder: Path,
    file: IO[bytes],
    shape: tuple[int, int, int],
    missing: list[int],
    features_of: Callable[[Tensor], NDArray[np.float16]],
    progress: Progress,
) -> None:
    """Compute the blocks that are missing, and write a line for each.

    `features_of` maps rows (m,) of images to the features (k, m, f) of their views.
    """
    images, began = shape[1], time.monotonic()
    done = first = images - _images_in(missing, images)
    progress.begin("Computing features", images, first)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(folder / BLOCKS, flags, 0o666), "ab", buffering=0) as lines:
            for block in missing:
                first_row = block * BLOCK_IMAGES
                rows = torch.arange(first_row, min(first_row + BLOCK_IMAGES, images))
                values = features_of(rows)
                for view, start, _ in _places(shape, block):
                    file.seek(start)
                    file.write(values[view].data)
                file.flush()
                # The line need not wait for the disk: after a crash its checksum tells
                lines.write(f"[{block}, {zlib.crc32(values.data)}]\n".encode())
                done += len(rows)
                speed = (done - first) / (time.monotonic() - began)
                progress.update(done, {"images_per_second": speed})
            os.fsync(file.fileno())
    finally:
        progress.finish()


def _features_of(
    config: PretrainConfig, images: ImageSet, model: SimCLR, rows: Tensor
) -> NDArray[np.float16]:
    """Return the features (k, m, f) of the views of some images."""
    device, side = model.device, images.images.shape[-1]
    pixels = images.for_views(rows).to(device)
    # No epoch has this stream, see `batches.batch`
    seeds = hashed(rows, stream=(config.seed << 32) - 1, count=1)[:, 0]
    batch = batch_for(device, images)
    together = max(1, batch // len(rows))  # views of each image
    parts = []
    for start in range(0, config.cached_views, together):
        numbers = range(start, min(start + together, config.cached_views))
        views = torch.cat([one_view(pixels, seeds, v, config.views, side) for v in numbers])
        parts += [model.features(some).float() for some in views.split(batch)]
    found = torch.cat(parts).view(config.cached_views, len(rows), -1)
    return _as_half(found, lambda row: f"a view of {images.paths[int(rows[row])]}")


def _null_features(
    config: PretrainConfig, images: ImageSet, model: SimCLR, numbers: Tensor
) -> NDArray[np.float16]:
    """Return the features (1, m, f) of the null views of some numbers, one after the other."""
    wanted = range(int(numbers[0]), int(numbers[-1]) + 1)
    views = nulls_of_run(config, images, wanted, model.device)
    parts = [model.features(some).float() for some in views.split(batch_for(views.device, images))]
    return _as_half(torch.cat(parts)[None], lambda row: f"null view {wanted[row]}")


def _as_half(found: Tensor, name: Callable[[int], str]) -> NDArray[np.float16]:
    """Return features (k, m, f) in float16, unless one is too large; `name` says what a row is."""
    largest = found.abs().amax((0, 2)).cpu()
    if not bool((largest <= LARGEST_HALF).all()):  # NaN is not <= either
        worst = int((~(largest <= LARGEST_HALF)).nonzero()[0])
        raise UserError(
            f"the frozen encoder puts out a feature of {float(largest[worst])} for {name(worst)},"
            f" and features are stored in float16, up to {LARGEST_HALF:,}; check the weights, the"
            " pixel_mean and the pixel_std of the encoder (a norm behind its last layer helps)."
        )
    return found.half().cpu().numpy()
