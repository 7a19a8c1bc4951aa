"""Evaluating a run: what the commands and a notebook call.

    results = sureclr.evaluate("runs/tour", "knn")
    results["knn"].accuracy

A `Session` holds the run's lock and the stop flag, reads the images and embeds them once, and keeps
every result in `results.json` with its provenance. A stored result is used again only if it was
made of the same checkpoint, images and labels.

Where the run's own images are gone (a folder was moved, a disk is not there), what needs no pixels
works from the stored table embeddings.parquet, if the same checkpoint made it.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sureclr.data.image_set import ImageSet, digest_of_pixels
from sureclr.errors import UserError
from sureclr.evaluation.evaluations import EVALUATIONS
from sureclr.evaluation.inputs import EvaluationInputs, ProbeCache, blocks_beside
from sureclr.evaluation.opening import held, images_changed, open_run
from sureclr.evaluation.results import (
    Comparison,
    Provenance,
    Results,
    checked_result,
    damage_text,
    precision_text,
    read_results,
    run_path,
    save_result,
)
from sureclr.evaluation.run_images import (
    Labels,
    check_tested,
    digest_in_footer,
    digest_of_given_labels,
    digest_of_stored,
    embed_run_images,
    key_of,
    label_file_of,
    label_images,
    name_the_place,
    no_pixels_in,
    precision_of,
    read_or_stored_images,
    stored_table,
)
from sureclr.evaluation.similarity import compare_runs, compare_tables
from sureclr.progress import ConsoleProgress, Progress, Stoppable
from sureclr.stopping import stop_on_signals
from sureclr.training.run import Run
from sureclr.version import __version__

TESTED = ("knn", "linear")  # evaluations that need labelled test images
ROUNDING = timedelta(seconds=1)  # of the time in a provenance
SAVED = "finished results are in results.json; run the same command again to go on"


class Session:
    """A run opened for evaluation, for use in a `with` block.

    Args:
        run: a run folder, a `Run`, or the `Results` of one.
        data: other images, for transfer: the name of a data source, or anything that
            `as_image_set` takes; None means the images that the run was trained on.
        labels: of the images: one for each, or a file of labels (its path, or a `LabelFile` that
            names its columns).
        device: auto, cuda, mps or cpu; a `Run` stays where it is.
        root: the folder of downloaded data sets.
        verify: whether every byte of the cache of decoded pictures is checked.
        human: what people said of the test images, see `labels_of_people.read_human_shares`.
        progress: what to report to; None reports on stderr.
        checkpoint: "last", "best" or a number of steps; None: that of a `Run` or of `Results`, and
            the last one of a folder.
        out: a folder for new results in place of the run folder, see `open_run`.
        advice: how new results can be kept, for the sentence where the run folder cannot be
            written.
        coming: names of the evaluations that will be asked for; if the images are embedded anew and
            one of them needs the encoder's blocks, these come from the same pass.

    Attributes:
        run: the opened run.
        progress: raises `Stopped` at the first report after SIGINT or SIGTERM.
    """

    def __init__(
        self,
        run: str | Path | Run | Results,
        data: Any = None,
        labels: Labels | None = None,
        *,
        device: str = "auto",
        root: Path | None = None,
        verify: bool = False,
        human: Path | None = None,
        progress: Progress | None = None,
        checkpoint: str | int | None = None,
        out: str | Path | None = None,
        advice: str = "",
        coming: Sequence[str] = (),
    ) -> None:
        """Load the run; nothing is locked yet."""
        self.run = open_run(run, checkpoint, out, device)
        self.progress: Progress = progress or ConsoleProgress()
        self._data, self._root, self._human, self._verify = data, root, human, verify
        self._labels = labels if (file := label_file_of(labels)) is None else file
        self._held = ExitStack()
        self._advice, self._coming = advice, coming
        self._inside = Results(self.run.path)  # what the run folder holds already
        self._unkept = Results(self.run.path)

    def __enter__(self) -> "Session":
        """Take the lock of the folder of results, and the signals.

        Raises:
            UserError: another process writes there, its results.json cannot be read, or the run was
                trained on since it was opened.
        """
        with ExitStack() as stack:
            flag = stack.enter_context(stop_on_signals(SAVED))
            self.run = stack.enter_context(held(self.run))
            self._inside = self._read_inside()
            if self._inside.damaged:
                self.progress.message(damage_text(self._inside))
            if self.run.not_kept:
                self.progress.message(
                    f"The run folder {self.run.path} cannot be written ({self.run.not_kept}), so"
                    f" new results are not kept{self._advice}."
                )
            self.progress = Stoppable(self.progress, flag, SAVED)
            self._held = stack.pop_all()
        return self

    def _read_inside(self) -> Results:
        """Return the results in the run folder, which must be whole only if more are put there."""
        folder = self.run.results_path or self.run.path
        try:
            return read_results(folder, quiet=True)
        except UserError as error:
            if self.run.out is None and not self.run.not_kept:
                raise
            self.progress.message(f"Stored results are not used: {error}")
        return Results(folder)

    def results(self) -> Results:
        """Return what is stored by now, and the new results that cannot be kept."""
        run = self.run
        if not run.not_kept and run.out is None:
            return read_results(run.results_folder, quiet=True)
        new = self._unkept if run.out is None else read_results(run.out, quiet=True)
        return new.over(self._inside, run.path)

    def __exit__(self, *error: object) -> None:
        """Release both."""
        self._held.close()

    @cached_property
    def images(self) -> ImageSet:
        """The images with pixels and labels, at the run's size; read when first asked for.

        Raises:
            UserError: they cannot be read, or the labels do not fit.
        """
        images, reason = self._read
        if reason:
            raise UserError(f"{reason.rstrip('.')}; {name_the_place(self.run)}.")
        return images

    @cached_property
    def catalogue(self) -> ImageSet:
        """The images with labels, splits and paths, but without pixels where they are gone.

        Without pixels, `catalogue.images` lies on torch's meta device, so that using it is an
        error and never a wrong number.

        Raises:
            UserError: the images cannot be read and there is no stored table of them, or the
                labels do not fit.
        """
        images, reason = self._read
        if reason:
            self.progress.message(
                f"The images of this run cannot be read ({reason.rstrip('.')}). The stored table"
                " embeddings.parquet is used instead, and what needs pixels is left out, such as"
                f" the baselines; {name_the_place(self.run)}."
            )
        return images

    @cached_property
    def _read(self) -> tuple[ImageSet, str]:
        """The images with their labels, and why their pixels cannot be read or ""."""
        images, reason = self._source
        return label_images(images, self._labels, self.run, self.progress), reason

    @cached_property
    def _source(self) -> tuple[ImageSet, str]:
        """The images as their source has them, and why their pixels cannot be read or ""."""
        return read_or_stored_images(
            self.run, self._data, self._root, self.progress, verify=self._verify
        )

    @property
    def source_split(self) -> NDArray[np.str_]:
        """(n,) the splits of the images as their source has them, without those for labels."""
        return self._source[0].split

    @cached_property
    def digest(self) -> str:
        """The digest of the images as their source has them, without their labels.

        It is the stored table's if the images are gone.
        """
        images, reason = self._source
        if reason:
            return digest_of_stored(self._stored)
        known = {one.images for one in self.results().provenance.values()}
        return digest_of_pixels(images, {*known, digest_in_footer(self.run)} - {""})

    @cached_property
    def _stored(self) -> Any:
        """The stored table of these weights (`Embeddings`), read once; None: damaged or missing."""
        try:
            return stored_table(self.run)
        except UserError:
            return None

    @cached_property
    def own(self) -> bool:
        """Whether these are the images that the run was trained on.

        Images given as data= are, where the stored table was made of the same pixels, paths and
        splits: the folder was moved.
        """
        return self._data is None or digest_of_stored(self._stored) == self.digest

    @cached_property
    def labels_digest(self) -> str:
        """The digest of the labels, and of the splits where the labels changed these."""
        return digest_of_given_labels(self._read[0], self._source[0])

    @cached_property
    def inputs(self) -> EvaluationInputs:
        """What every evaluation reads; made when first asked for.

        Raises:
            UserError: the images cannot be read, and there is no stored table of them.
        """
        images, reason = self.catalogue, self._read[1]
        as_given = self._data is not None or reason
        embedded = as_given or digest_of_stored(self._stored) == self.digest
        if not embedded and (changed := images_changed(self.run, self._source[0])):
            self.progress.message(changed)
        with self._beside_table() as blocks:
            table = embed_run_images(
                self.run,
                self._source[0],
                self.digest,
                own=self.own,
                progress=self.progress,
                stored=self._stored,
            )
        table = replace(table, labels=images.labels, classes=images.classes, split=images.split)
        if self.own:
            images = replace(images, name=self.run.source)
        return EvaluationInputs(
            self.run,
            images,
            table,
            self.progress,
            self._root,
            self._human,
            ProbeCache(device=self.run.model.device),
            no_pixels=reason or no_pixels_in(self.run),
            own_digest=self.digest if self.own and not reason else "",
            blocks=blocks,
        )

    def _beside_table(self) -> AbstractContextManager[dict[str, Any]]:
        """Collect the encoder's blocks while the images are embedded, if they are coming anyway."""
        images, reason = self._source
        fresh = digest_of_stored(self._stored) != self.digest and not reason
        coming = "linear" in self._coming and "linear" not in self._inside
        return blocks_beside(self.run, images) if fresh and coming else nullcontext({})

    def renew_table(self) -> None:
        """Make the stored table of the run's own images anew if it is not of them and the weights.

        A report draws it, and stored results are used without a look at it.
        """
        if self.own and not self._read[1] and digest_of_stored(self._stored) != self.digest:
            self.inputs  # noqa: B018  (reading it makes the table)

    def key(self, name: str) -> str:
        """Return the key in results.json: `knn`, or `knn:NAME` for other data."""
        return name if self.own else key_of(name, self.images, self.digest)

    def provenance(self, seconds: float, other_checkpoint: str = "") -> Provenance:
        """Return what a result that is finished now was made of."""
        return Provenance(
            checkpoint=self.run.checkpoint,
            images=self.digest,
            labels=self.labels_digest,
            other_checkpoint=other_checkpoint,
            version=__version__,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            options=self._options(),
            precision=self._precision,
        )

    @cached_property
    def _precision(self) -> str:
        """In which the images are embedded; or were, if they are gone and the table is there."""
        if self._read[1] and self._stored is not None:
            return precision_of(self._stored)
        return self.run.precision_name

    def _options(self) -> dict[str, str]:
        """What the user gave beside the images."""
        options = {} if self._human is None else {"human": str(self._human)}
        if (file := label_file_of(self._labels)) is not None:
            options["labels"] = str(file.path.absolute())
        return options

    def evaluate(self, name: str, *, again: bool = False) -> Any:
        """Return a result: the stored one if it is of the same origin, else a new one, and save it.

        Args:
            name: of EVALUATIONS.
            again: make it anew in any case.

        Raises:
            UserError: an unknown name, or the evaluation cannot be made of these images.
        """
        evaluation = EVALUATIONS[name]
        if name in TESTED and label_file_of(self._labels) is not None:
            check_tested(name, self._read[0])
        if name == "geometry" and self.own:  # its map is a file of its own
            if not os.path.lexists(self.run.stored("map.parquet")):
                again = True
            elif not again and (problem := self.inputs.map_problem()):
                again = True
                self.progress.message(f"The map of the images is made anew: {problem}.")
        if name == "learning" and self.own and not again and self._has_new_snapshots():
            again = True
            self.progress.message(
                "The stored result learning was made before the run was trained on; it is made"
                " anew of all snapshots."
            )
        return self.stored_or_new(self.key(name), lambda: evaluation(self.inputs), again=again)

    def _has_new_snapshots(self) -> bool:
        """Whether the run saved snapshots after the stored result of learning was made.

        Of a checkpoint before an extension those count that it had, so that its results stay.
        """
        stored = self.results().get(self.key("learning"))
        if stored is None:
            return False
        newest = self.run.directory.checkpoint_numbers() or {}
        own = self.run.directory.checkpoint_numbers(self.run.which) or {}
        numbers = own if own.get("step") in newest.get("ends", ()) else newest
        recorded = numbers.get("snapshots", ())
        return bool(max(recorded, default=0) > max(stored.epochs))

    def stored_or_new(
        self, key: str, make: Callable[[], Any], *, again: bool = False, other_checkpoint: str = ""
    ) -> Any:
        """Return the stored result if it is of the same origin, else make and save a new one.

        A stored result may have been made with more options than are asked for now. Where the
        images are gone, a stored result that was made with their pixels is kept; where they are
        back, one that was made without them is made anew.
        """
        stored = self.results()
        if key in stored:
            made, wanted = stored.provenance[key], self.provenance(0, other_checkpoint)
            has_options = wanted.options.items() <= made.options.items()
            file = made.options.get("labels")
            if file and self._labels is None and not self._read[0].labelled and not again:
                when = _changed_since(file, made)
                self.progress.message(f"The stored result {key} is of the labels in {file}{when}.")
                wanted = replace(wanted, labels=made.labels)
            same = has_options and made.same_origin(replace(wanted, options=made.options))
            lacks_pixels = bool(getattr(stored[key], "no_pixels", ""))
            gone = bool(self._read[1]) or self.run.config.of_table  # a table never has pixels
            if same and gone and again and _is_whole(stored[key]):
                self.progress.message(
                    f"The stored result {key} was made of the same weights, images and labels with"
                    " the pixels at hand; it is kept."
                )
                return stored[key]
            if same and not again and (gone or not lacks_pixels):
                return stored[key]
            if not again and not same:
                self.progress.message(
                    f"The stored result {key} was made of other weights, images or labels; it is"
                    " made anew."
                )
        began = time.monotonic()
        self.progress.begin(f"Evaluating {key}", 1)
        try:
            result = checked_result(key, make())
        finally:
            self.progress.finish()
        provenance = self.provenance(time.monotonic() - began, other_checkpoint)
        if self.run.not_kept:
            self._unkept.entries[key], self._unkept.provenance[key] = result, provenance
        else:
            save_result(self.run.results_folder, key, result, provenance)
        return result


def _changed_since(file: str, made: Provenance) -> str:
    """Return words for a file of labels that is not the one that a result was made of, or ""."""
    try:
        written = datetime.fromtimestamp(Path(file).stat().st_mtime, UTC)
        changed = written > datetime.fromisoformat(made.time) + ROUNDING
    except (OSError, ValueError, TypeError):
        return ""
    return f", as they were at {made.time}; the file has changed since" if changed else ""


def _is_whole(result: Any) -> bool:
    """Whether a result of knn or linear has all that can be made of images with pixels."""
    return getattr(result, "no_pixels", None) == "" and result.by_class is not None


def _names(which: str | Iterable[str] | None) -> list[str]:
    """Return the names of the evaluations that are asked for."""
    if which is None:
        return list(EVALUATIONS)
    names = [which] if isinstance(which, str) or not isinstance(which, Iterable) else list(which)
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"which must be a name of an evaluation or a list of names, not {which!r}.")
    return [str(name) for name in names]


def evaluate(
    run: str | Path | Run | Results,
    which: str | Iterable[str] | None = None,
    data: Any = None,
    labels: Labels | None = None,
    *,
    again: bool = False,
    checkpoint: str | int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    root: Path | None = None,
    verify: bool = False,
    human: Path | None = None,
    progress: Progress | None = None,
) -> Results:
    """Evaluate a run and return its results, which are also in its results.json.

    Args:
        run: a run folder, a `Run`, or the `Results` of one.
        which: a name or names of evaluations (knn, linear, uncertainty, ood, learning, geometry,
            sensitivity, explanation); None means all that can be made.
        data: other images, for transfer: the name of a data source, or paths, a folder, PIL images,
            an array, a map-style data set of (image, label); None means the run's own images.
        labels: of the images: one for each, or a file of labels (its path, or a `LabelFile` that
            names its columns). A part of the labels in a file is held out for testing where they
            leave no test image with a label.
        again: make results anew even where stored ones are of the same weights, images and labels.
        checkpoint: "last", "best" or a number of steps; None: the last, or that of a `Run`. Results
            of another one than the last are kept in a folder of its own in the run folder.
        out: a folder for new results in place of the run folder, new, empty or with results of the
            same checkpoint. What the run folder holds is read and not changed.
        device: auto, cuda, mps or cpu.
        root: the folder of downloaded data sets.
        verify: check every byte of the cache of decoded pictures, see `ReadOptions`.
        human: what people said of the test images: an array of a row an image and a column a class
            (.npy, as CIFAR-10H's), or a file of labels with several for an image. Labels with
            several for an image in `labels` serve as well.
        progress: what to report to; None reports on stderr.

    Returns:
        A mapping from the names asked for to frozen dataclasses (`sureclr.evaluation.results`);
        `.skipped` says why an evaluation could not be made, where `which` is None.

    Raises:
        UserError: bad input, or an evaluation named in `which` cannot be made.
        Stopped: SIGINT or SIGTERM came; finished results are saved.
    """
    names = _names(which)
    entries, skipped = {}, {}
    with Session(
        run,
        data,
        labels,
        device=device,
        root=root,
        verify=verify,
        human=human,
        progress=progress,
        checkpoint=checkpoint,
        out=out,
        advice="; out=DIR keeps them elsewhere",
        coming=names,
    ) as session:
        for name in names:
            EVALUATIONS[name]  # a misspelt name is an error before any work
        session.catalogue  # noqa: B018  (images that cannot be read are one error, not one each)
        for name in names:
            try:
                entries[name] = session.evaluate(name, again=again)
            except UserError as error:
                if which is not None:
                    raise
                skipped[name] = str(error)
                session.progress.message(f"The evaluation {name} is skipped: {error}")
        if which is None:
            session.renew_table()
        if not entries:
            raise UserError(
                f"nothing could be evaluated on {session.run.path}; "
                + "; ".join(f"{name}: {why}" for name, why in skipped.items())
            )
        stored = session.results()
        provenance = {name: stored.provenance[session.key(name)] for name in entries}
        run, data = session.run, "" if session.own else session.images.name
        if mixed := precision_text(Results(run.path, entries, provenance)):
            session.progress.message(mixed)
    return Results(
        run.path,
        entries,
        provenance,
        skipped,
        checkpoint=run.which,
        out=run.out,
        kept=not run.not_kept,
        data=data,
    )


def compare(
    a: str | Path | Run | Results,
    b: str | Path | Run | Results,
    *,
    checkpoint: str | int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    root: Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare the representations of two runs on the images of the first.

    The result is kept in the first run's results.json (or in `out`), and used again while both runs
    have the weights that it was made of.

    Args:
        a: a run folder, a `Run`, or the `Results` of one.
        b: another one, trained on the same images.
        checkpoint: of both runs, as in `evaluate`.
        out: as in `evaluate`, for what is computed of the first run.
        device: auto, cuda, mps or cpu.
        root: the folder of downloaded data sets.
        progress: what to report to; None reports on stderr.

    Raises:
        UserError: the runs are the same folder, or were not trained on the same images.
        Stopped: SIGINT or SIGTERM came.
    """
    if run_path(a).resolve() == run_path(b).resolve():
        raise UserError(f"a comparison needs two different runs, and both are {run_path(a)}.")
    with (
        Session(
            a, device=device, root=root, progress=progress, checkpoint=checkpoint, out=out
        ) as first,
        Session(b, device=device, root=root, progress=progress, checkpoint=checkpoint) as second,
    ):
        comparison: Comparison = first.stored_or_new(
            f"comparison:{second.run.path.resolve().name}",
            lambda: _comparison(first, second),
            other_checkpoint=second.run.checkpoint,
        )
    return comparison


def _comparison(first: Session, second: Session) -> Comparison:
    ours, theirs = first.inputs, second.inputs
    if ours.no_pixels:  # the blocks of the encoders are not compared
        names = (first.run.path.name, second.run.path.name)
        return compare_tables(ours.table, theirs.table, names, progress=second.progress)
    return compare_runs(
        first.run, second.run, ours.images, ours.table, theirs.table, second.progress
    )
