"""The images of an evaluation: a run's own, or others, with their labels, as the run takes them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import UNLABELLED, ImageSet, digest_of_labels
from sureclr.data.label_request import LabelFile
from sureclr.data.labels import hold_out_labels, why_not_tested, with_file_labels
from sureclr.data.sources import given_features, is_source, load_images, where_now
from sureclr.data.splits import contents_of, held_out_by_content
from sureclr.data.user_images import as_image_set
from sureclr.data.user_labels import encode_labels
from sureclr.errors import UserError, reason_in
from sureclr.files import digest_of_bytes, refuse_if_lost
from sureclr.progress import SILENT, Progress
from sureclr.training.run import Run

Labels = Sequence[Any] | str | Path | LabelFile


def load_run_images(
    run: Run,
    data: Any = None,
    labels: Labels | None = None,
    root: Path | None = None,
    progress: Progress = SILENT,
) -> ImageSet:
    """Return the images of an evaluation with their labels, at the size and channels of the run.

    Args:
        run: the trained run.
        data: the name of a data source, or anything that `as_image_set` takes; None means the
            images that the run was trained on.
        labels: as in `label_images`.
        root: the folder of downloaded data sets.
        progress: what to report to.

    Raises:
        UserError: the images or their labels cannot be used.
    """
    return label_images(read_run_images(run, data, root, progress), labels, run, progress)


def read_run_images(
    run: Run,
    data: Any = None,
    root: Path | None = None,
    progress: Progress = SILENT,
    *,
    to_classify: bool = False,
    verify: bool = False,
) -> ImageSet:
    """Return the images of an evaluation as their source has them, at the size of the run.

    Args:
        run: the trained run.
        data: as in `load_run_images`. Where the run's own images are no longer at their recorded
            place, they are looked for at the same place relative to the run folder.
        root: the folder of downloaded data sets.
        progress: what to report to.
        to_classify: whether the images are only to be classified: then they have no splits, every
            picture is read, and files may be unreadable, whatever the run says of them.
        verify: as in `ReadOptions`.

    Raises:
        UserError: the images cannot be used.
    """
    options = replace(run.config.read_options, verify=verify)
    if to_classify:
        options = replace(options, strict=False, allow_unreadable=True, unsplit=True)
    if data is None and not is_source(run.source):
        raise UserError(
            f"this run was trained on images given in Python ({run.source}), which are not stored;"
            " pass labelled images as data=."
        )
    where = where_now(run.source, run.path, run.directory.image_paths())
    source = where if data is None else data
    if (of_table := given_features(source, run.config, run.channels, progress)) is not None:
        return replace(of_table, name=run.source) if data is None else of_table
    if isinstance(source, str) and is_source(source):
        images = load_images(
            source,
            root=root,
            size=run.size,
            channels=run.channels,
            seed=run.config.seed,
            progress=progress,
            options=options,
        )
        if data is not None or where == run.source:
            return images
        progress.message(f"{run.source} is gone; its images are read from {where}.")
        return replace(images, name=run.source)
    return as_image_set(
        source,
        size=run.size,
        channels=run.channels,
        progress=progress,
        options=options,
    )


def read_or_stored_images(
    run: Run,
    data: Any = None,
    root: Path | None = None,
    progress: Progress = SILENT,
    *,
    verify: bool = False,
) -> tuple[ImageSet, str]:
    """Return the images as their source has them, and why their pixels cannot be read or "".

    Where the run's own images are gone, what its stored table says of them is returned: without
    pixels (`images_without_pixels`), and with the reason.

    Args:
        run: the trained run.
        data: as in `load_run_images`.
        root: the folder of downloaded data sets.
        progress: what to report to.
        verify: as in `ReadOptions`.

    Raises:
        UserError: the images cannot be used, and there is no stored table of them.
    """
    try:
        return read_run_images(run, data, root, progress, verify=verify), ""
    except UserError as error:
        if data is not None or not is_source(run.source):
            raise
        reason = str(error)
        if stored_table(run) is None:
            if not run.source.startswith("folder:"):
                raise
            raise UserError(
                f"{reason.rstrip('.')}. There is no table of their embeddings by these weights"
                " either; name the images' new place with data=folder:PATH."
            ) from error
    return images_without_pixels(run), reason


def no_pixels_in(run: Run) -> str:
    """Return why the images of a run never have pixels, or ""."""
    if not run.config.of_table:
        return ""
    return f"{run.source} is a table of features, which has no pixels"


def name_the_place(run: Run) -> str:
    """Return how to go on where the images of a run are gone, as the end of a sentence."""
    kind = "table" if run.config.of_table else "folder"
    return f"name the images' new place with data={kind}:PATH"


def key_of(name: str, images: ImageSet, digest: str) -> str:
    """Return the key in results.json of an evaluation on other images than the run's own.

    Images that have no name of their own are named by the start of their digest.
    """
    of = images.name
    return f"{name}:{of}" if is_source(of) else f"{name}:{of}-{digest[:8]}"


def label_file_of(labels: Labels | None) -> LabelFile | None:
    """Return the file of labels that the user gave, or None where the labels are something else."""
    return LabelFile.of(labels) if isinstance(labels, str | Path | LabelFile) else None


def check_tested(evaluation: str, images: ImageSet) -> None:
    """Raise a UserError if labels of a file were too few to hold some of them out."""
    if why := why_not_tested(images):
        raise UserError(f"{evaluation} needs labelled test images: {why}")


def digest_of_given_labels(images: ImageSet, source: ImageSet) -> str:
    """Return the digest of labels, and of the splits where they are not those of the source."""
    digest, splits = digest_of_labels(images), images.split.tolist()
    if splits == source.split.tolist():
        return digest
    return digest_of_bytes(digest.encode(), " ".join(splits).encode())


def label_images(
    images: ImageSet, labels: Labels | None, run: Run, progress: Progress = SILENT
) -> ImageSet:
    """Return the images with the labels that the user gave, and with test images if possible.

    Args:
        images: as their source has them.
        labels: one for each image, or a file of labels (its path, or a `LabelFile` that names its
            columns); None: their own. Where the labels in a file leave too few test images with a
            label, a part of them is held out for testing, if there are enough
            (`hold_out_labels`). Other images without a test split get one: about 20 %, by a
            hash of their content. Both depend on the run's seed, and `note` says so.
        run: whose seed is taken.
        progress: what to report to.

    Raises:
        UserError: the labels cannot be used.
    """
    if (file := label_file_of(labels)) is not None:
        images = with_file_labels(images, file, progress)
        return hold_out_labels(images, run.config.seed, progress)
    if labels is not None:
        targets, classes = encode_labels(labels, images.classes or None, len(images))
        images = replace(images, labels=targets, classes=classes)
    return _with_test_split(images, run.config.seed)


def _with_test_split(images: ImageSet, seed: int) -> ImageSet:
    """Hold out images for testing where none are, so that given images can be evaluated."""
    if "test" in images.split or not (images.labels != UNLABELLED).any():
        return images
    contents = images.contents or contents_of(images.images)
    test = held_out_by_content(contents, seed) & (images.labels.numpy() != UNLABELLED)
    note = f"Splits: a hash of each image's content holds out 20 % for testing, seed {seed}"
    return replace(
        images,
        split=np.where(test, "test", images.split),
        note="; ".join(filter(None, [images.note, note])),
    )


def stored_table(run: Run) -> Embeddings | None:
    """Return the table among the run's results, or None where there is none of its weights.

    Raises:
        UserError: the file is damaged.
    """
    path = run.stored("embeddings.parquet")
    try:
        table = Embeddings.read(path) if path.exists() else None
    except UserError as error:
        raise UserError(
            f"neither the images of this run nor their stored table {path} can be read;"
            f" {name_the_place(run)}."
        ) from error
    if table is None or not table.origin.startswith(f"checkpoint {run.checkpoint} "):
        return None
    return table


def precision_of(table: Embeddings) -> str:
    """Return in which precision the network made a stored table, float32 or bfloat16."""
    return "bfloat16" if " in bfloat16 images " in table.origin else "float32"


def digest_of_stored(table: Embeddings | None) -> str:
    """Return `digest_of_pixels` of the images that a stored table was made of; "" without one."""
    return "" if table is None else table.origin.split(" images ")[1]


def digest_in_footer(run: Run) -> str:
    """Return `digest_of_stored` of the table in the run's file, whatever weights made it.

    Its rows are not read, so a table whose rows are damaged has a digest too.
    """
    return Embeddings.origin_of(run.stored("embeddings.parquet")).partition(" images ")[2]


def images_without_pixels(run: Run) -> ImageSet:
    """Return what the stored table says of its images: labels, classes, splits and paths.

    The pixels lie on torch's meta device: they have a shape, and reading one is an error.

    Raises:
        UserError: there is no table of these weights, or it is damaged.
    """
    table = stored_table(run)
    if table is None:
        raise UserError(f"{run.path} has no table of the embeddings of its images; evaluate it.")
    channels = 1 if run.config.of_table else run.channels
    shape = (len(table), channels, run.size, run.size)
    pixels = torch.empty(shape, dtype=torch.uint8, device="meta")
    return ImageSet(run.source, pixels, table.labels, table.classes, table.split, table.paths)


def embed_run_images(
    run: Run,
    images: ImageSet,
    digest: str,
    *,
    own: bool,
    progress: Progress,
    stored: Embeddings | None = None,
) -> Embeddings:
    """Return the embeddings of the images; those of the run's own images are kept with its results.

    A stored table is used again only if the same checkpoint made it of the same images in the
    precision of today, or the pixels are gone; of a damaged one a sentence is said, and it is made
    anew. So numbers of two precisions are never compared.

    Args:
        run: the trained run.
        images: as the run takes them.
        digest: `digest_of_pixels` of the images.
        own: whether they are the images that the run was trained on.
        progress: what to report to.
        stored: what `stored_table` returned, if it was read before.
    """
    path = run.stored("embeddings.parquet")
    precision = run.precision_name
    origin = f"checkpoint {run.checkpoint} {run.made_in}images {digest}"
    if own and path.exists():
        try:
            stored = stored or Embeddings.read(path)
        except UserError as error:
            if images.images.is_meta:
                raise
            if isinstance(error.__cause__, OSError):
                refuse_if_lost(error.__cause__, path)
            progress.message(
                f"{path} is damaged ({reason_in(error)}); the images are embedded anew."
            )
        else:
            kept = stored.origin == origin or images.images.is_meta
            if kept and list(stored.paths) == list(images.paths):
                return replace(
                    stored, labels=images.labels, classes=images.classes, split=images.split
                )
            made = precision_of(stored)
            progress.message(
                f"{path} was made of other weights or images; the images are embedded anew."
                if made == precision
                else f"{path} was made in {made}, and this machine embeds in {precision}; the"
                " images are embedded anew."
            )
    table = replace(run.embed(images, progress), origin=origin)
    if own and not run.not_kept:
        table.save(run.results_folder / "embeddings.parquet")
    return table
