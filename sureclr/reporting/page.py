"""A run's files -> one self-contained HTML page, which asks nothing of a network.

Everything that comes from the user's folder (names, labels, notes) reaches the page as text:
autoescaped in the template, and in the map's data as JSON without a single < > or &. The page's own
script and style are allowed by their hashes and nothing else is.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from sureclr.errors import UserError
from sureclr.evaluation.results import Comparison, Results
from sureclr.files import write_atomically
from sureclr.progress import ConsoleProgress, Progress
from sureclr.reporting import captions
from sureclr.reporting.blocks import Block, Section
from sureclr.reporting.captions import Caption
from sureclr.reporting.run_files import RunFiles, read_run_files, run_directory
from sureclr.reporting.sections.how_certain import draw_certainty
from sureclr.reporting.sections.how_it_learned import draw_learning
from sureclr.reporting.sections.two_runs import draw_comparison
from sureclr.reporting.sections.what_it_ignores import draw_invariances
from sureclr.reporting.sections.what_it_sees import draw_geometry
from sureclr.reporting.sections.what_was_trained import draw_training
from sureclr.reporting.sections.why_uncertain import draw_explanations
from sureclr.version import __version__

if TYPE_CHECKING:
    from sureclr.training.run import Run

Evaluate = Callable[[Path], Results]
Compare = Callable[[Path, Path], Comparison]
SECTIONS: tuple[tuple[str, Caption, Callable[[RunFiles], list[Block]]], ...] = (
    ("trained", captions.TRAINED, draw_training),
    ("learned", captions.LEARNED, draw_learning),
    ("sees", captions.SEEN, draw_geometry),
    ("ignores", captions.IGNORED, draw_invariances),
    ("sure", captions.CERTAIN, draw_certainty),
    ("unsure", captions.UNCERTAIN, draw_explanations),
)


# --- The service ----------------------------------------------------------------------


def report(
    run: "str | Path | Run | Results",
    other: "str | Path | Run | Results | None" = None,
    *,
    evaluate: bool = True,
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
    from sureclr.evaluation import session

    runs = [run_folder(each) for each in (run, other) if each is not None]
    progress = progress or ConsoleProgress()
    options: dict[str, Any] = {"device": device, "root": root, "progress": progress}
    make = partial(session.evaluate, **options) if evaluate else None
    return draw_page(
        runs, out, make, partial(session.compare, **options), root=root, progress=progress
    )


def run_folder(run: "str | Path | Run | Results") -> Path:
    """Return the folder of a run."""
    if isinstance(run, str | Path):
        return Path(run)
    return run.run if isinstance(run, Results) else run.path


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
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, page.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UserError(
            f"the report {out} cannot be written ({error.strerror or error}); pass another out=."
        ) from error


# --- The page -------------------------------------------------------------------------


def render(runs: Sequence[RunFiles], comparison: Comparison | str | None = None) -> str:
    """Return the page.

    Args:
        runs: one run, or two side by side.
        comparison: of two runs, or a sentence that says why there is none.
    """
    sections = [
        Section(id, caption, columns)
        for id, caption, draw in SECTIONS
        if any(columns := [draw(run) for run in runs])
    ]
    if comparison is not None:
        a, b = runs
        caption = captions.COMPARED.fill(first=a.name, second=b.name)
        sections.append(Section("compare", caption, [draw_comparison(a, b, comparison)]))
    style, script = asset("style.css"), asset("page.js") + asset("map.js")
    return str(
        template().render(
            runs=[(run.name, headline(run), remarks(run)) for run in runs],
            sections=sections,
            captions=captions,
            version=__version__,
            style=Markup(style),
            script=Markup(script),
            style_hash=hash_source(style),
            script_hash=hash_source(script),
        )
    )


def headline(run: RunFiles) -> str:
    """Return what a run is, in one line."""
    config = run.config
    n = 0 if run.table is None else len(run.table)
    return captions.HEADLINE.format(
        loss=config.loss,
        source=config.source,
        encoder=config.encoder,
        epochs=config.epochs,
        seed=config.seed,
        images=captions.HEADLINE_IMAGES.format(n=n) if n else "",
    )


def remarks(run: RunFiles) -> list[str]:
    """Return a sentence for each part of the run that could not be read or made."""
    problems = (
        (captions.RESULTS_ABSENT, run.no_results),
        (captions.NOT_EVALUATED, run.not_evaluated if run.not_evaluated != run.no_results else ""),
        (captions.IMAGES_ABSENT, run.no_images),
    )
    return [text.format(why=why) for text, why in problems if why]


@cache
def template() -> Any:
    """Return page.html, compiled once; everything put into it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    page = Environment(
        loader=PackageLoader("sureclr.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return page.get_template("page.html")


def asset(name: str) -> str:
    """Return a text file of the templates."""
    return (resources.files("sureclr.reporting") / "templates" / name).read_text(encoding="utf-8")


def hash_source(text: str) -> str:
    """Return the hash of a script or style, as the content policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
