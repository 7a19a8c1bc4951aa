"""Numbers (JSON, Parquet) -> one self-contained HTML page. It computes nothing and asks nothing of
a network.

Everything that comes from the user's folder (names, labels, notes) reaches the page as text:
autoescaped in the template, and in the map's data as JSON without a single < > or &. The page's own
script and style are allowed by their hashes and nothing else is.
"""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sureclr import __version__
from sureclr.errors import UserError
from sureclr.files import write_atomically
from sureclr.reporting.blocks import Section, section
from sureclr.reporting.certainty import sure, unsure
from sureclr.reporting.charts import told
from sureclr.reporting.map import sees
from sureclr.reporting.run_files import Numbers
from sureclr.reporting.sections import compared, ignored, learned, trained

PARTS = (
    (
        "trained",
        "What was trained, and how good it is",
        (
            "Read the first figure as a race: the encoder against the same network untrained "
            "and against the bare pixels."
        ),
        trained,
    ),
    (
        "learned",
        "How it learned",
        (
            "Read from left to right: each chart is one number over the epochs, on fixed images;"
            " look for what is still moving at the end."
        ),
        learned,
    ),
    (
        "sees",
        "What it sees",
        (
            "Each point is an image, close points are images that the encoder takes for alike;"
            " point at one to see it and its neighbours."
        ),
        sees,
    ),
    (
        "ignores",
        "What it ignores",
        (
            "Each panel alters images more and more: a line that stays high is a change that the"
            " encoder has learned not to see."
        ),
        ignored,
    ),
    (
        "sure",
        "How sure it is, and is it right",
        (
            "Its own certainty is the blue circle everywhere; compare it with the plain rivals "
            "beside it, which cost nothing."
        ),
        sure,
    ),
    (
        "unsure",
        "Why it is unsure",
        (
            "Blue patches make it surer, orange ones less sure; believe the maps only as far as the"
            " sanity check above them."
        ),
        unsure,
    ),
)


def render(runs: Sequence[Numbers], comparison: dict[str, Any] | None = None, why: str = "") -> str:
    """The page of one run, or of two side by side with their comparison (or why there is none)."""
    sections = [section(*part, runs) for part in PARTS]
    if len(runs) == 2:
        sections.append(
            Section(
                "compare",
                "Compare",
                f"From {runs[0].name} to {runs[1].name}: what was set differently, which is "
                "better, and whether they see the same.",
                [compared(runs[0], runs[1], comparison, why)],
            )
        )
    style, script = asset("style.css"), asset("page.js") + asset("map.js")
    return template().render(
        runs=runs,
        sections=sections,
        about=[headline(run) for run in runs],
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        style_hash=content_policy_hash(style),
        script_hash=content_policy_hash(script),
    )


@cache
def template() -> Any:
    """page.html, compiled once; everything put into it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    page = Environment(
        loader=PackageLoader("sureclr.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    page.filters["told"] = told
    return page.get_template("page.html")


def asset(name: str) -> str:
    return (resources.files("sureclr.reporting") / "templates" / name).read_text(encoding="utf-8")


def content_policy_hash(text: str) -> str:
    """The sha256 of a style or script, as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def headline(run: Numbers) -> str:
    config, images = (
        run.config,
        ("" if run.table is None else f" · {len(run.table):,} images embedded"),
    )
    return (
        f"{config.loss} on {config.source} · {config.encoder} encoder · {config.epochs:,} epochs ·"
        f" seed {config.seed}{images}"
    )


def write_report(
    runs: Sequence[Numbers], out: Path, comparison: dict[str, Any] | None = None, why: str = ""
) -> int:
    """Render and write at once, never half; returns the bytes written. UserError where it cannot be
    written.
    """
    data = render(runs, comparison, why).encode("utf-8", "backslashreplace")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, data)
    except OSError as error:
        raise UserError(
            f"the report {out} cannot be written ({error.strerror or error}); give another --out."
        ) from error
    return len(data)
