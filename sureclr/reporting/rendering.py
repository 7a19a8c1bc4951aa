"""A run's files -> one self-contained HTML page, which asks nothing of a network.

Everything that comes from the user's folder (names, labels, notes) reaches the page as text:
autoescaped in the template, and in the map's data as JSON without a single < > or &. The page's own
script and style are allowed by their hashes and nothing else is.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any

from markupsafe import Markup

from sureclr.evaluation.results import Comparison
from sureclr.reporting import captions
from sureclr.reporting.blocks import Block, Section
from sureclr.reporting.run_files import RunFiles
from sureclr.reporting.sections.how_certain import draw_certainty
from sureclr.reporting.sections.how_it_learned import draw_learning
from sureclr.reporting.sections.two_runs import draw_comparison
from sureclr.reporting.sections.what_it_ignores import draw_invariances
from sureclr.reporting.sections.what_it_sees import draw_geometry
from sureclr.reporting.sections.what_was_trained import draw_training
from sureclr.reporting.sections.why_uncertain import draw_explanations
from sureclr.version import __version__

SECTIONS: tuple[tuple[str, captions.Caption, Callable[[RunFiles], list[Block]]], ...] = (
    ("trained", captions.TRAINED, draw_training),
    ("learned", captions.LEARNED, draw_learning),
    ("sees", captions.SEEN, draw_geometry),
    ("ignores", captions.IGNORED, draw_invariances),
    ("sure", captions.CERTAIN, draw_certainty),
    ("unsure", captions.UNCERTAIN, draw_explanations),
)


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
        epochs=config.all_epochs,
        seed=config.seed,
        images=captions.HEADLINE_IMAGES.format(n=n) if n else "",
    )


def remarks(run: RunFiles) -> list[str]:
    """Return which checkpoint is shown, and a sentence for each part that could not be made."""
    problems = (
        (captions.RESULTS_ABSENT, run.no_results),
        (captions.NOT_EVALUATED, run.not_evaluated if run.not_evaluated != run.no_results else ""),
        (captions.IMAGES_ABSENT, run.no_images),
    )
    shown = [] if run.step is None else [captions.OTHER_CHECKPOINT.format(step=run.step)]
    shown += [text.format(why=why) for text, why in problems if why]
    return [*shown, *run.problems]


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
