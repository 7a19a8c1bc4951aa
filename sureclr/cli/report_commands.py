"""report: one self-contained page of a run, or of two beside each other."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sureclr.cli.shared import Device, Json, Opened, Root, Run_, answer, app
from sureclr.errors import UserError

if TYPE_CHECKING:
    from sureclr.data.embeddings import Embeddings
    from sureclr.reporting.run_files import Numbers


@app.command
def report(
    run: Run_,
    other: Annotated[
        Path | None, Parameter(name="OTHER", help="A second run, to be put beside the first.")
    ] = None,
    /,
    *,
    evaluate: Annotated[
        bool,
        Parameter(negative="--no-evaluate", help="First run the evaluations that are missing."),
    ] = True,
    out: Annotated[
        Path | None,
        Parameter(
            help="HTML file. Default: report.html, or comparison-OTHER.html, in the run folder."
        ),
    ] = None,
    open: Annotated[bool, Parameter(negative="", help="Show it in the browser.")] = False,
    device: Device = "auto",
    root: Root = None,
    json: Json = False,
) -> None:
    """One page that explains a run, made of its numbers: quality, how it learned, what it sees and
    ignores, how sure it is and why.
    """
    runs = [numbers_of(path, evaluate, device, root) for path in (run, *([other] if other else []))]
    place = out or run / (f"comparison-{other.resolve().name}.html" if other else "report.html")
    size = page_of(runs, place, device)
    answer(
        json,
        {"report": str(place), "bytes": size},
        f"report: {place}  ({size / 1e6:.1f} MB, one file, opens without a network)",
        f"open {place} in a browser",
    )
    if open:
        import webbrowser

        webbrowser.open(place.resolve().as_uri())


def numbers_of(path: Path, evaluate: bool, device: str, root: Path | None) -> "Numbers":
    """A run's numbers; the missing ones are made first, and what cannot be made is said and left
    out.
    """
    from sureclr.reporting.run_files import read_numbers

    if not evaluate:
        return read_numbers(path, root=root)
    with Opened(path, None, device, root) as opened:
        reasons = evaluate_missing(opened)
        return read_numbers(
            path, images=opened.made.images if opened.made else None, root=root, reasons=reasons
        )


def evaluate_missing(opened: Opened) -> dict[str, str]:
    """Run every evaluation that results.json lacks; evaluation -> why it could not be had."""
    from sureclr.evaluation.session import EVALUATIONS

    reasons: dict[str, str] = {}
    missing = [name for name in EVALUATIONS if name not in opened.run.directory.results_so_far()]
    for i, name in enumerate(missing, 1):
        print(f"evaluating {name} ({i} of {len(missing)})", file=sys.stderr, flush=True)
        if isinstance(why := opened.attempt(name), str):
            reasons[name] = why
    return reasons


def page_of(runs: "list[Numbers]", place: Path, device: str = "auto") -> int:
    """Write the page; the comparison of two runs is made here where it is missing."""
    from sureclr.reporting.page import write_report

    print("drawing the report", file=sys.stderr, flush=True)
    found, why = comparison(runs[0], runs[1], device) if len(runs) == 2 else (None, "")
    return write_report(runs, place, found, why)


def comparison(a: "Numbers", b: "Numbers", device: str) -> tuple[dict[str, Any] | None, str]:
    """What `compare` finds of two runs, kept in the first one's results.json; or None and why."""
    from sureclr.training.run_dir import RunDir

    key = f"comparison:{b.path}"
    if key in a.results:
        return dict(a.results[key]), ""
    if a.table is None or b.table is None:
        return (
            None,
            (
                f"one of them has no embeddings.parquet; run `sureclr report {a.path} {b.path}`"
                " without --no-evaluate."
            ),
        )
    try:
        found = computed(a, a.table, b, b.table, device)
    except UserError as error:
        return None, str(error)
    RunDir(a.path).add_result(key, found)
    return found, ""


def computed(
    a: "Numbers", table_a: "Embeddings", b: "Numbers", table_b: "Embeddings", device: str
) -> dict[str, Any]:
    """The comparison; block by block too where the images are at hand."""
    from sureclr.evaluation.similarity import compare, compare_runs
    from sureclr.training.run import load

    if a.images is None:
        return compare(table_a, table_b, (a.name, b.name))
    return compare_runs(load(a.path, device), load(b.path, device), a.images, table_a, table_b)
