"""What a run says of the images of any source, as a table that can be kept."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import digest_of_pixels
from sureclr.errors import UserError
from sureclr.evaluation.classifiers import Gallery, itself_among
from sureclr.evaluation.familiarity import familiarity_without_images, kept_familiarity
from sureclr.evaluation.prediction_table import check_out
from sureclr.evaluation.run_images import read_run_images
from sureclr.evaluation.session import Session
from sureclr.evaluation.tables import evidence_against
from sureclr.files import why, writing_atomically
from sureclr.progress import Progress, report_progress
from sureclr.training.run import Run

FORMATS = (".parquet", ".npz")
ROWS_AT_ONCE = 4096  # compared with the training images between two reports of progress


@dataclass(frozen=True, eq=False)
class EmbeddedSource:
    """The embeddings of n images, and how they compare with the training images of the run.

    Attributes:
        table: features, direction, radius, certainty and presence.
        familiar: (n,) float64 in [0, 1], a conformal p-value, low for an image that is unlike the
            training images (see `familiarity.fit_familiarity`); None where the run has neither the
            file familiarity.safetensors of these weights nor a table of the training images.
        evidence: (n,) float32 nats, how much better than uniform the training images expect this
            posterior (`tables.evidence_against`); None without such a table or without a radius.
        n_compared: images with which `familiar` is compared.
        compared_with: what these images are, in words; "" where there are none.
    """

    table: Embeddings
    familiar: Tensor | None = None
    evidence: Tensor | None = None
    n_compared: int = 0
    compared_with: str = ""

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the table, and return its path. The file is whole or not there.

        A Parquet file has the columns of the run's own embeddings.parquet (`Embeddings.save`) and
        the columns `familiar` and `evidence` where they exist. An .npz file has an array for each
        column, the class names as `classes`, and `labels` and `paths` in the plural.

        Args:
            path: ends in .parquet or .npz.
            overwrite: whether an existing file may be replaced.

        Raises:
            UserError: the file exists, its ending is another one, or it cannot be written.
        """
        path = check_out(path, overwrite=overwrite, formats=FORMATS)
        found = {"familiar": self.familiar, "evidence": self.evidence}
        more = {name: values for name, values in found.items() if values is not None}
        try:
            if path.suffix.lower() == ".parquet":
                self.table.save(path, more=more)
            else:
                self._save_arrays(path, more)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({why(error)}); give another out=."
            ) from error
        return path

    def _save_arrays(self, path: Path, more: dict[str, Tensor]) -> None:
        table = self.table
        columns = {
            "features": table.features,
            "direction": table.direction,
            "radius": table.radius,
            "certainty": table.certainty,
            "presence": table.presence,
            "information": table.information,
            **more,
        }
        arrays: dict[str, Any] = {
            name: values.numpy() for name, values in columns.items() if values is not None
        }
        arrays |= {
            "paths": np.array(list(table.paths), np.str_),
            "split": np.array(table.split, np.str_),
            "labels": table.labels.numpy(),
            "classes": np.array(table.classes, np.str_),
        }
        with writing_atomically(path) as file:
            np.savez(file, allow_pickle=False, **arrays)


def embed_source(
    run: str | Path | Run,
    source: Any = None,
    *,
    checkpoint: str | int | None = None,
    device: str = "auto",
    root: Path | None = None,
    progress: Progress | None = None,
) -> EmbeddedSource:
    """Embed the images of a source, and compare them with the training images of the run.

    An image that is a training image itself is not compared with itself.

    Args:
        run: a run folder, or a `Run`.
        source: the name of a data source, or anything that `as_image_set` takes; for a run on a
            table of features table:PATH, or an array (m, f). None means the run's own images.
        checkpoint: "last", "best" or a number of steps; None: the last, or that of a `Run`.
        device: auto, cuda, mps or cpu; a `Run` stays where it is.
        root: the folder of downloaded data sets.
        progress: what to report to; None reports on stderr.

    Raises:
        UserError: the run or the images cannot be used.
        Stopped: SIGINT or SIGTERM came.
    """
    with Session(
        run, device=device, root=root, progress=progress, checkpoint=checkpoint
    ) as session:
        if source is None:
            return _compared(session, session.inputs.table)
        images = read_run_images(session.run, source, root, session.progress, to_classify=True)
        table = session.run.embed(images, session.progress)
        made_of = f"{session.run.made_in}images {digest_of_pixels(images)}"
        table = replace(table, origin=f"checkpoint {session.run.checkpoint} {made_of}")
        try:
            session.catalogue  # noqa: B018  (reading it tells whether the run's own are there)
        except UserError as error:
            return _without_own_images(session, table, error)
        return _compared(session, table)


def _without_own_images(session: Session, table: Embeddings, error: UserError) -> EmbeddedSource:
    """Compare embedded images with what the run has kept of its training images, if anything."""
    kept = familiarity_without_images(session.run)
    left_out = "column evidence is" if kept else "columns familiar and evidence are"
    session.progress.message(
        f"The {left_out} left out, because the run's own images are not there to compare with:"
        f" {error}"
    )
    if kept is None:
        return EmbeddedSource(table)
    compared = len(kept.calibration), kept.compared_with
    return EmbeddedSource(table, kept.p_values(table.features), None, *compared)


def _compared(session: Session, table: Embeddings) -> EmbeddedSource:
    """Compare embedded images with the training images of the run."""
    own_table = session.inputs.table
    gallery = Gallery.of(own_table)
    comparison = kept_familiarity(session)
    familiar, evidence = [], []
    with report_progress(session.progress, "Comparing images", len(table)) as update:
        for rows in np.array_split(np.arange(len(table)), -(-len(table) // ROWS_AT_ONCE)):
            part = table.select(rows)
            own = itself_among(part.features, gallery.others.features)
            familiar.append(comparison.p_values(part.features))
            evidence.append(evidence_against(part, gallery.others, own))
            update(sum(map(len, familiar)))
    nats = [part for part in evidence if part is not None]
    return EmbeddedSource(
        table,
        torch.cat(familiar),
        torch.cat(nats) if nats else None,
        len(comparison.calibration),
        comparison.compared_with,
    )
