"""model + images -> Embeddings: the one table that every analysis reads."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.maths.sphere import Posterior
from sureclr.models.encoders import blocks, pooled
from sureclr.models.simclr import SimCLR


@dataclass(frozen=True, eq=False)
class Embeddings:
    """n images as a model sees them (whole, not augmented), on the CPU.

    Attributes:
        features: (n, f) float32, h of the encoder.
        direction: (n, d) float32 unit vectors.
        radius: (n,) float32 or None (a loss without one), see ``Posterior``.
        certainty: (n,) float32 or None.
        labels: (n,) int64, -1 where unlabelled.
        classes: names of the classes.
        split: (n,) of "train", "test", "unlabelled".
        paths: n names.
        kernel_dimension: m of the run's loss, for evidence; None where it has none.
    """

    features: Tensor
    direction: Tensor
    radius: Tensor | None
    certainty: Tensor | None
    labels: Tensor
    classes: tuple[str, ...]
    split: NDArray[np.str_]
    paths: Sequence[str]
    kernel_dimension: float | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def posterior(self) -> Posterior:
        return Posterior(self.direction, self.radius, certainty=self.certainty)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> "Embeddings":
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        at = torch.from_numpy(index)
        return replace(
            self,
            features=self.features[at],
            direction=self.direction[at],
            labels=self.labels[at],
            split=self.split[index],
            radius=None if self.radius is None else self.radius[at],
            certainty=None if self.certainty is None else self.certainty[at],
            paths=[self.paths[i] for i in index],
        )

    def labelled(self, split: str) -> "Embeddings":
        """The images of a split whose class is known."""
        return self.select((self.split == split) & (self.labels.numpy() >= 0))

    def save(self, path: Path) -> None:
        """Parquet: a row an image; features and direction as fixed-size lists; classes and kernel
        dimension in the metadata.
        """
        import pyarrow as pa
        from pyarrow import parquet

        columns = {
            "path": pa.array(self.paths, pa.string()),
            "split": pa.array(self.split.tolist(), pa.string()),
            "label": pa.array(self.labels.numpy()),
            "features": _lists(self.features),
            "direction": _lists(self.direction),
        }
        optional = {"radius": self.radius, "certainty": self.certainty}
        columns |= {
            name: pa.array(value.numpy()) for name, value in optional.items() if value is not None
        }
        about = {
            "classes": json.dumps(self.classes),
            "kernel_dimension": json.dumps(self.kernel_dimension),
        }
        draft = path.with_name(f".{path.name}")
        parquet.write_table(pa.table(columns).replace_schema_metadata(about), draft)
        draft.replace(path)

    @staticmethod
    def read(path: Path) -> "Embeddings":
        """The table that `save` wrote."""
        import pyarrow as pa
        from pyarrow import parquet

        try:
            return _from_table(parquet.read_table(path))
        except (OSError, pa.ArrowInvalid, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the embedding table {path} cannot be read ({reason}); delete it and evaluate"
                " again."
            ) from error


def _from_table(table: Any) -> Embeddings:
    """What `Embeddings.save` wrote. ValueError or KeyError where it was not that."""
    metadata = table.schema.metadata or {}
    about = {name: json.loads(metadata[name.encode()]) for name in ("classes", "kernel_dimension")}
    number = {
        name: torch.from_numpy(table[name].to_numpy().copy())
        for name in ("label", "radius", "certainty")
        if name in table.column_names
    }
    return Embeddings(
        _matrix(table["features"]),
        _matrix(table["direction"]),
        number.get("radius"),
        number.get("certainty"),
        number["label"],
        tuple(about["classes"]),
        np.asarray(table["split"].to_pylist(), dtype=np.str_),
        table["path"].to_pylist(),
        about["kernel_dimension"],
    )


def _lists(rows: Tensor) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(rows.numpy().reshape(-1)), rows.shape[1])


def _matrix(column: Any) -> Tensor:
    """A column of fixed-size lists as (n, width)."""
    chunks = [
        chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), -1)
        for chunk in column.chunks
    ]
    return torch.from_numpy(np.concatenate(chunks).copy())


def embed(
    model: SimCLR,
    images: ImageSet,
    *,
    kernel_dimension: float | None = None,
    batch: int = 512,
    each_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Embeddings:
    """Every image, whole, through the model in evaluation mode, on the model's device.

    Args:
        each_batch: called with (images done, images in all): progress, and the place to stop
            (raise).
    """
    if len(images) == 0:
        raise UserError(f"{images.name} has no images to embed; give a source that has some.")
    device = model.mean.device
    outputs: list[tuple[Tensor, Posterior]] = []
    with evaluating(model):
        for start in range(0, len(images), batch):
            outputs.append(model(as_float(images.images[start : start + batch].to(device))))
            each_batch(min(start + batch, len(images)), len(images))
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
    each_batch: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Images, whole, through the encoder alone: block's name -> (n, c) float32 on the CPU, its
    output averaged over positions.

    Blocks and their average are those of `encoders.blocks` and `encoders.pooled`. One pass; maps
    are averaged as they come, so the memory is that of one batch and of the answer.

    Args:
        rows: (n,) of the images, in this order; None for all.
        each_batch: as in `embed`.
    """
    device, index = (
        model.mean.device,
        (torch.arange(len(images)) if rows is None else torch.from_numpy(rows)),
    )
    parts: dict[str, list[Tensor]] = {name: [] for name, _ in blocks(model.encoder)}
    with evaluating(model), ExitStack() as hooks:
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
            each_batch(min(start + batch, len(index)), len(index))
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
