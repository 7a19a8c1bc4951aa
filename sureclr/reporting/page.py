"""The service: evaluate what is missing, compare, and write the page of one run or two."""

from collections.abc import Callable, Sequence
from errno import EISDIR
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sureclr.errors import UserError
from sureclr.evaluation.results import Comparison, Results, run_path
from sureclr.files import why, write_atomically
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
            second run, in the folder of the first run.
        device: auto, cuda, mps or cpu.
        root: the folder of downloaded data sets.
        progress: what to report to; None reports on stderr.

    Returns:
        The path of the page.

    Raises:
        UserError: a folder is not a run, one of its files is damaged, or `out` cannot be written.
        Stopped: SIGINT or SIGTERM came; finished results are saved.
    """
    runs = {run_path(each): each for each in (run, other) if each is not None}
    progress = progress or ConsoleProgress()
    options: dict[str, Any] = {"device": device, "root": root, "progress": progress}

    def make(path: Path) -> Results:
        """Return results that are given; a run that is open may have an encoder of its own."""
        given = runs[path]
        if isinstance(given, Results):
            return given
        from sureclr.evaluation import session

        return session.evaluate(given, labels=labels, **options)

    def compare(a: Path, b: Path) -> Comparison:
        from sureclr.evaluation import session

        return session.compare(runs[a], runs[b], **options)

    return draw_page(
        list(runs), out, make if evaluate else None, compare, root=root, progress=progress
    )


def draw_page(
    runs: Sequence[Path],
    out: str | Path | None,
    evaluate: Evaluate | None,
    compare: Compare,
    *,
    root: Path | None = None,
    progress: Progress,
) -> Path:
    """Do what `report` does.

    Args:
        runs: one run folder, or two.
        out: the HTML file; None means the default of `report`.
        evaluate: makes what is missing in a run folder and returns all; None reads results.json.
        compare: compares two run folders.
        root: the folder of downloaded data sets.
        progress: what to report to.
    """
    for path in runs:
        run_directory(path)
    files = [_evaluated(path, evaluate, root, progress) for path in runs]
    name = f"comparison-{files[1].name}.html" if len(files) == 2 else "report.html"
    place = runs[0] / name if out is None else Path(out)
    comparison = _compared(files, evaluate is not None, compare) if len(files) == 2 else None
    progress.message("Drawing the report.")
    write_page(render(files, comparison), place)
    return place


def _evaluated(
    path: Path, evaluate: Evaluate | None, root: Path | None, progress: Progress
) -> RunFiles:
    """The files of a run; evaluations that cannot be made are named on the page and left out."""
    if evaluate is None:
        return read_run_files(path, root=root)
    try:
        return read_run_files(path, evaluate(path), root=root)
    except UserError as error:
        progress.message(captions.NOT_EVALUATED.format(why=error))
        return read_run_files(path, not_evaluated=str(error), root=root)


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
        raise UserError(
            f"the report {out} cannot be written ({why(error)}); give another out=."
        ) from error
