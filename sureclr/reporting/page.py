"""The service: evaluate what is missing, compare, and write the page of one run or two."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from errno import EISDIR
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sureclr.errors import UserError
from sureclr.evaluation.results import Comparison, Results, run_path
from sureclr.files import unwritable, why, write_atomically
from sureclr.progress import ConsoleProgress, Progress
from sureclr.reporting import captions
from sureclr.reporting.rendering import render
from sureclr.reporting.run_files import RunFiles, read_run_files, run_directory

if TYPE_CHECKING:
    from sureclr.evaluation.run_images import Labels
    from sureclr.training.run import Run

Evaluate = Callable[[Path], Results]
Compare = Callable[[Path, Path], Comparison]


def report(
    run: "str | Path | Run | Results",
    other: "str | Path | Run | Results | None" = None,
    *,
    evaluate: bool = True,
    labels: "Labels | None" = None,
    out: str | Path | None = None,
    checkpoint: str | int | None = None,
    device: str = "auto",
    root: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write one HTML page that explains a run, or two runs side by side.

    Args:
        run: a run folder, a `Run`, or the `Results` of one.
        other: a second run, to be compared with the first.
        evaluate: whether to make the evaluations that are missing first. What cannot be made is
            named on the page.
        labels: of the images, as in `sureclr.evaluate`: what is evaluated here is of these labels.
        out: the HTML file; by default report.html, or comparison-NAME.html with the name of the
            second run, in the folder of the first run's results. Results that `evaluate` has put
            into the folder of this file are used.
        checkpoint: "last", "best" or a number of steps, of both runs; None: the last, or that of a
            `Run` or of `Results`.
        device: auto, cuda, mps or cpu.
        root: the folder of downloaded data sets.
        progress: what to report to; None reports on stderr.

    Returns:
        The path of the page.

    Raises:
        UserError: a folder is not a run, one of its files is damaged, or `out` cannot be written.
        Stopped: SIGINT or SIGTERM came; finished results are saved.
    """
    if other is not None and run_path(run).resolve() == run_path(other).resolve():
        raise UserError(
            f"two runs are shown side by side, and both are {run_path(run)}; name another one."
        )
    given = {run_path(each): each for each in (run, other) if each is not None}
    progress = progress or ConsoleProgress()
    options: dict[str, Any] = {"device": device, "root": root, "progress": progress}
    wanted = [_wanted(each, checkpoint, out) for each in given.values()]
    check_page(_place(wanted, out))
    with ExitStack() as stack:
        if evaluate:
            wanted = [_writable(each, stack, progress) for each in wanted]
        opened = {each.run: _opened(given[each.run], each) for each in wanted}

        def make(path: Path) -> Results:
            """Return results that are given; a run that is open may have an encoder of its own."""
            if isinstance(finished := given[path], Results):
                return finished
            from sureclr.evaluation import session

            return session.evaluate(opened[path], labels=labels, **options)

        def compare(a: Path, b: Path) -> Comparison:
            from sureclr.evaluation import session

            return session.compare(opened[a], opened[b], **options)

        made = make if evaluate else None
        return draw_page(wanted, out, made, compare, root=root, progress=progress)


def _wanted(
    run: "str | Path | Run | Results", checkpoint: str | int | None, page: str | Path | None
) -> Results:
    """Return which run, checkpoint and folder of results are meant, without any result."""
    path = run_path(run)
    directory = run_directory(path)
    which, out = "last", None
    if isinstance(run, Results):
        if run.data:
            raise UserError(
                f"these results of {path} are of other images ({run.data}), and a report is about"
                " the images that the run was trained on; pass the run itself."
            )
        which, out = run.checkpoint, run.out
    elif not isinstance(run, str | Path):
        which, out = run.which, run.out
    if checkpoint is not None:
        which = str(checkpoint)
    if out is None and page is not None:
        from sureclr.evaluation.opening import holds_results_of

        beside = Path(page).parent
        out = beside if holds_results_of(beside, directory.checkpoint_digest(which)) else None
    return Results(path, checkpoint=which, out=out)


def _writable(wanted: Results, stack: ExitStack, progress: Progress) -> Results:
    """Let new results go to a folder that is removed in the end, where the run's is read-only."""
    if wanted.out is not None or not (reason := unwritable(wanted.run)):
        return wanted
    progress.message(
        f"The run folder {wanted.run} cannot be written ({reason}), so new results are on the page"
        " and not kept."
    )
    return replace(wanted, out=Path(stack.enter_context(TemporaryDirectory(prefix="sureclr-"))))


def _opened(given: "str | Path | Run | Results", wanted: Results) -> "Run | Results":
    """Return what a `Session` opens: a `Run` that is given, or the folder, with what is wanted."""
    if isinstance(given, str | Path | Results):
        return wanted
    return replace(given, out=wanted.out)


def draw_page(
    runs: Sequence[Path | Results],
    out: str | Path | None,
    evaluate: Evaluate | None,
    compare: Compare,
    *,
    root: Path | None = None,
    progress: Progress,
) -> Path:
    """Do what `report` does.

    Args:
        runs: one run folder, or two; `Results` name a folder with a checkpoint of it and with the
            folder of its results.
        out: the HTML file; None means the default of `report`.
        evaluate: makes what is missing in a run folder and returns all; None reads results.json.
        compare: compares two run folders.
        root: the folder of downloaded data sets.
        progress: what to report to.
    """
    wanted = [Results(run) if isinstance(run, Path) else run for run in runs]
    for each in wanted:
        run_directory(each.run)
    place = _place(wanted, out)
    check_page(place)
    files = [_evaluated(each, evaluate, root, progress) for each in wanted]
    comparison = _compared(files, evaluate is not None, compare) if len(files) == 2 else None
    progress.message("Drawing the report.")
    write_page(render(files, comparison), place)
    return place


def _place(wanted: Sequence[Results], out: str | Path | None) -> Path:
    """Return the file of the page."""
    if out is not None:
        return Path(out)
    first = wanted[0]
    folder = first.out or run_directory(first.run).results_folder(first.checkpoint)
    two = len(wanted) == 2
    return folder / (f"comparison-{wanted[1].run.resolve().name}.html" if two else "report.html")


def check_page(place: Path) -> None:
    """Raise a UserError if the page cannot be written, before minutes of work for it."""
    if place.is_dir():
        raise _unwritten(place, "it is a folder")
    if reason := unwritable(place.parent):
        raise _unwritten(place, reason)


def _evaluated(
    wanted: Results, evaluate: Evaluate | None, root: Path | None, progress: Progress
) -> RunFiles:
    """The files of a run; evaluations that cannot be made are named on the page and left out."""
    path = wanted.run
    about: dict[str, Any] = {"root": root, "checkpoint": wanted.checkpoint, "out": wanted.out}
    if evaluate is None:
        return read_run_files(path, **about)
    try:
        return read_run_files(path, evaluate(path), **about)
    except UserError as error:
        progress.message(captions.NOT_EVALUATED.format(why=error))
        return read_run_files(path, not_evaluated=str(error), **about)


def _compared(files: Sequence[RunFiles], evaluate: bool, compare: Compare) -> Comparison | str:
    """The comparison of two runs, or why there is none."""
    a, b = files
    if not evaluate and (a.table is None or b.table is None):
        return captions.NO_TABLES_TO_COMPARE
    try:
        return compare(a.path, b.path)
    except UserError as error:
        return str(error)


def write_page(page: str, out: Path) -> None:
    """Write the page at once, never half.

    Raises:
        UserError: it cannot be written.
    """
    try:
        if out.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, page.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise _unwritten(out, why(error)) from error


def _unwritten(place: Path, reason: str) -> UserError:
    return UserError(f"the report {place} cannot be written ({reason}); give another out=.")
