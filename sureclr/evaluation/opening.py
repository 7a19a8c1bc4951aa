"""Opening a run for a command: which checkpoint it is of, and where its results are kept.

Results of the last checkpoint lie in the run folder, and those of another one in a folder of its
own in it. A folder that the user names as out= takes new results instead; what the run folder
holds already is read and never written. A run folder that cannot be written is read all the same.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.results import Results
from sureclr.files import (
    DRAFT,
    json_bytes,
    make_folder,
    read_json,
    sealed,
    unsealed,
    unwritable,
    write_atomically,
)
from sureclr.training.image_record import ImageRecord, check_recorded_images
from sureclr.training.run import Run, load
from sureclr.training.run_dir import RunDir

MARKER = "run.json"  # in a folder of out=: whose results it holds


def open_run(
    run: str | Path | Run | Results,
    checkpoint: str | int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
) -> Run:
    """Return an opened run, however it is given.

    Args:
        run: a run folder, a `Run`, or the `Results` of one, which name their checkpoint.
        checkpoint: "last", "best" or a number of steps; None: that of a `Run` or of `Results`, and
            the last one of a folder.
        out: the folder for new results; None: that of a `Run` or of `Results`, else the run's own.
        device: auto, cuda, mps or cpu; a `Run` stays where it is.

    Raises:
        UserError: it cannot be opened, or the `Run` is of another checkpoint.
    """
    if isinstance(run, Run):
        wanted = (
            run.checkpoint
            if checkpoint is None
            else run.directory.checkpoint_digest(str(checkpoint))
        )
        if wanted != run.checkpoint:
            raise UserError(
                f"the run in {run.path} is open with other weights than those of checkpoint"
                f" {checkpoint}; open it with sureclr.load(path, checkpoint={str(checkpoint)!r})."
            )
        found = run
    elif isinstance(run, Results):
        found = load(
            run.run, device, checkpoint=run.checkpoint if checkpoint is None else checkpoint
        )
        out = run.out if out is None else out
    else:
        found = load(run, device, checkpoint="last" if checkpoint is None else checkpoint)
    return found if out is None else replace(found, out=Path(out))


@contextmanager
def held(run: Run) -> Iterator[Run]:
    """Keep other writers out of the folder of the results inside the block.

    Yields:
        The run; `not_kept` says why, where its folder cannot be written.

    Raises:
        UserError: no checkpoint holds the weights, another process writes there, the run was
            trained on since it was opened, or `out` holds something else.
    """
    if not run.checkpoint:
        raise UserError(
            "this network is untrained or redrawn, and no checkpoint holds its weights; evaluate"
            " the run itself, or embed images with it."
        )
    if run.out is not None:
        with _chosen_folder(run, run.out):
            yield run
        return
    if reason := why_not_kept(run):
        yield replace(run, not_kept=reason)
        return
    with run.directory.lock():
        _check_weights(run)
        if run.results_folder != run.path:
            make_folder(run.results_folder)
        try:
            yield run
        finally:
            if run.results_folder != run.path:
                with suppress(OSError):
                    run.results_folder.rmdir()  # it stays if it holds a result


def images_changed(run: Run, images: ImageSet) -> str:
    """Return a sentence if a run's own images are not those that it was trained on, or "".

    It takes about a second for each gigabyte of pixels, where their contents were not recorded.

    Args:
        run: whose checkpoint recorded the training images; those of older versions did not.
        images: as their source has them now.
    """
    numbers = run.directory.checkpoint_numbers(run.which) or {}
    if not isinstance(recorded := numbers.get("images"), str):
        return ""
    now = ImageRecord.of(images.pretraining, like=recorded)
    found = check_recorded_images(run.directory.images, recorded, numbers.get("count"), now)
    if not found:
        return ""
    return (
        f"The images of this run are not those that it was trained on ({'; '.join(found)}); what is"
        " computed now is of the images as they are."
    )


def why_not_kept(run: Run) -> str:
    """Return why new results of a run cannot be kept, or "": its folder cannot be written."""
    if run.out is not None:
        return ""
    if reason := unwritable(run.path):
        return reason
    lock = run.path / "lock"  # perhaps of another user, who lets us write into the folder
    return "" if not lock.is_file() or os.access(lock, os.W_OK) else os.strerror(errno.EACCES)


def _check_weights(run: Run) -> None:
    """Raise a UserError unless the run's folder holds the weights of this `Run`.

    Results and embeddings are kept in the folder, so they must be those of its weights.
    """
    try:
        found = run.directory.checkpoint_digest(run.which)
    except UserError as error:
        raise UserError(
            f"the checkpoint of step {run.which} has gone since this run was opened ({error})"
        ) from error
    if found is not None and found != run.checkpoint:
        raise UserError(
            f"{run.path} was trained on since this run was opened; open it again with"
            " sureclr.load(path)."
        )


@contextmanager
def _chosen_folder(run: Run, folder: Path) -> Iterator[None]:
    """Check a folder that the user chose for results of a run, make it, and lock it."""
    own = run.path.resolve()
    if own == folder.resolve() or own in folder.resolve().parents or RunDir(folder).is_run():
        raise UserError(
            f"{folder} is a run folder or lies in one, and results that are to be kept elsewhere"
            " need a folder of their own; give another out=."
        )
    _check_content(run, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be made ({error.strerror}); give another out=."
        ) from error
    with RunDir(folder).lock():
        _check_content(run, folder)  # again: another process may have been faster
        if not (folder / MARKER).exists():
            about = {"run": str(own), "checkpoint": run.checkpoint}
            write_atomically(folder / MARKER, json_bytes(sealed(about)))
        yield


def _check_content(run: Run, folder: Path) -> None:
    """Raise a UserError unless a folder is empty, or holds results of this checkpoint."""
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise UserError(f"{folder} is not a folder; give another out=.")
        return
    if holds_results_of(folder, run.checkpoint):
        return
    if (folder / MARKER).exists():
        raise UserError(
            f"{folder} holds results of another run or of another checkpoint, and they would be"
            " mixed; give another out=."
        )
    if any(path.name != "lock" and not DRAFT.fullmatch(path.name) for path in folder.iterdir()):
        raise UserError(
            f"{folder} holds files that are no results of this run; give the name of a new or empty"
            " folder as out=."
        )


def holds_results_of(folder: Path, checkpoint: str | None) -> bool:
    """Return whether a folder was chosen with out= for results of a checkpoint.

    Args:
        folder: any folder.
        checkpoint: its digest.
    """
    try:
        content = unsealed(read_json(folder / MARKER))
    except (OSError, ValueError):
        return False
    return checkpoint is not None and content.get("checkpoint") == checkpoint
