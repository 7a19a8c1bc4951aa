"""What a page is made of. A section is a heading, a sentence that says how to read it, and blocks;
a template draws each kind.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from sureclr.reporting.charts import Chart, told
from sureclr.reporting.pictures import uri
from sureclr.reporting.run_files import Numbers


@dataclass(frozen=True)
class Figure:
    """Charts under one title, with one sentence that says how to read them. key: where its numbers
    stand in results.json.
    """

    key: str
    title: str
    caption: str
    charts: Sequence[tuple[str, Chart]]  # a small heading (or "") and the chart
    legend: str = ""
    half: bool = False  # two stand beside each other
    kind: str = "figure"


@dataclass(frozen=True)
class Note:
    """A sentence: what is missing and what makes it, or what a number means."""

    text: str
    missing: bool = False
    kind: str = "note"


@dataclass(frozen=True)
class Tiles:
    """Some numbers in large type: (key, what, value, small print)."""

    tiles: Sequence[tuple[str, str, str, str]]
    kind: str = "tiles"


@dataclass(frozen=True)
class Picture:
    """An image with what is said below it; uri "" where the image itself is not to be had."""

    uri: str
    lines: Sequence[str]
    alt: str
    crisp: bool = False


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures, each row under a name."""

    key: str
    title: str
    caption: str
    rows: Sequence[tuple[str, Sequence[Picture]]]
    tight: bool = False  # rows beside each other
    kind: str = "gallery"


@dataclass(frozen=True)
class Facts:
    """Names and values in groups, folded: (group, [(name, value, differs from the default)])."""

    title: str
    groups: Sequence[tuple[str, Sequence[tuple[str, str, bool]]]]
    open: bool = False
    kind: str = "facts"


@dataclass(frozen=True)
class Map:
    """The interactive map: its data as JSON, and its sheets of images."""

    key: str
    data: Markup
    uris: Sequence[str]
    count: int
    layouts: Sequence[tuple[str, str]]
    colours: Sequence[tuple[str, str]]
    kind: str = "map"


Block = Figure | Note | Tiles | Gallery | Facts | Map


@dataclass(frozen=True)
class Section:
    """columns: the blocks of each run side by side."""

    id: str
    title: str
    how: str
    columns: Sequence[Sequence[Block]] = field(default_factory=list)


def section(
    id: str, title: str, how: str, build: Callable[[Numbers], list[Block]], runs: Sequence[Numbers]
) -> Section:
    return Section(id, title, how, [build(run) for run in runs])


def from_key(
    run: Numbers, key: str, build: Callable[[Numbers, dict[str, Any]], list[Block]]
) -> list[Block]:
    """The blocks of one key of results.json, or the sentence that says why there are none."""
    found = run.results.get(key)
    if not found:
        why = f": {run.reasons[key]}" if key in run.reasons else "."
        return [
            Note(
                f"results.json holds no “{key}” yet; `sureclr evaluate {run.path}` makes it{why}",
                missing=True,
            )
        ]
    if "skipped" in found and isinstance(found["skipped"], str):
        return [Note(f"There is no “{key}” here: {found['skipped']}", missing=True)]
    try:
        return build(run, found)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        return [
            Note(
                f"“{key}” in results.json was written by another version ({type(error).__name__}:"
                f" {error}); take the key out and `sureclr evaluate {run.path}` makes it again.",
                missing=True,
            )
        ]


def picture(run: Numbers, row: int, *lines: str) -> Picture:
    """The image of a row of the table, with its label and these lines below it."""
    label = label_of(run, row)
    path = run.table.paths[row] if run.table is not None else f"row {row}"
    alt = ", ".join(filter(None, [f"image {path}", f"label {label}" if label else "", *lines]))
    if run.images is None or row >= len(run.images):
        return Picture("", [label or path, *lines], alt)
    return Picture(
        uri(run.images, row),
        list(filter(None, [label, *lines])),
        alt,
        max(run.images.images.shape[2:]) <= 40,
    )


def label_of(run: Numbers, row: int) -> str:
    if run.table is None or int(run.table.labels[row]) < 0:
        return ""
    return run.table.classes[int(run.table.labels[row])]


def interval(span: Sequence[float] | None) -> tuple[float, float] | None:
    return (span[0], span[1]) if span else None


def range_text(span: Sequence[float] | None) -> str:
    return f"95 % interval {told(span[0])} to {told(span[1])}" if span else ""
