"""What a page is made of: sections, which hold blocks; the template draws each kind of block."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from sureclr.maths.metrics import verdict
from sureclr.reporting import captions
from sureclr.reporting.captions import Caption
from sureclr.reporting.pictures import data_uri
from sureclr.reporting.run_files import RunFiles
from sureclr.reporting.svg import Chart, number_text

SMALL_PIXELS = 40  # images up to this side are shown with square pixels


@dataclass(frozen=True)
class Figure:
    """Charts under one caption.

    Attributes:
        key: where the numbers stand in results.json.
        caption: title and text.
        charts: each with a small heading, or "".
        legend: of all charts.
        half: whether two such figures stand side by side.
    """

    key: str
    caption: Caption
    charts: Sequence[tuple[str, Chart]]
    legend: str = ""
    half: bool = False
    kind: str = "figure"


@dataclass(frozen=True)
class Note:
    """A sentence; `missing` sets it off, because something is not there."""

    text: str
    missing: bool = False
    kind: str = "note"


@dataclass(frozen=True)
class Tiles:
    """Some numbers in large type: (key in results.json, name, value, small print)."""

    tiles: Sequence[tuple[str, str, str, str]]
    caption: Caption | None = None
    kind: str = "tiles"


@dataclass(frozen=True)
class Picture:
    """An image with lines below it.

    Attributes:
        uri: data: URI, or "" where the image itself cannot be read.
        lines: below the image.
        alt: a description for those who cannot see it.
        crisp: whether pixels are drawn as squares.
    """

    uri: str
    lines: Sequence[str]
    alt: str
    crisp: bool = False


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures, each row under a name; `tight` puts rows side by side."""

    key: str
    caption: Caption
    rows: Sequence[tuple[str, Sequence[Picture]]]
    tight: bool = False
    kind: str = "gallery"


@dataclass(frozen=True)
class Facts:
    """Names and values in groups, folded: (group, [(name, value, whether it is bold)])."""

    title: str
    groups: Sequence[tuple[str, Sequence[tuple[str, str, bool]]]]
    note: str = ""
    open: bool = False
    kind: str = "facts"


@dataclass(frozen=True)
class Table:
    """A table under a caption: names of the columns, and rows of text."""

    key: str
    caption: Caption
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: str = "table"


@dataclass(frozen=True)
class Map:
    """The interactive map: its data as JSON, and its sheets of images."""

    key: str
    caption: Caption
    label: str
    data: Markup
    uris: Sequence[str]
    layouts: Sequence[tuple[str, str]]
    colours: Sequence[tuple[str, str]]
    kind: str = "map"


Block = Figure | Note | Tiles | Gallery | Facts | Table | Map


@dataclass(frozen=True)
class Section:
    """A numbered part of the page; `columns` are the blocks of each run, side by side."""

    id: str
    caption: Caption
    columns: Sequence[Sequence[Block]] = field(default_factory=list)


def result_blocks(
    run: RunFiles, name: str, build: Callable[[RunFiles, Any], list[Block]]
) -> list[Block]:
    """Return the blocks that `build` makes of a result, or a sentence that says why it is missing.

    Where results.json cannot be read, the top of the page says so once, and there are no blocks.
    """
    if name in run.results:
        return build(run, run.results[name])
    if run.no_results:
        return []
    if name in run.results.skipped:
        text = captions.SKIPPED_RESULT.format(name=name, why=run.results.skipped[name])
    else:
        text = captions.MISSING_RESULT.format(name=name, run=run.path)
    return [Note(text, missing=True)]


def picture(run: RunFiles, row: int, *lines: str) -> Picture:
    """Return the image in a row of the table, with its label and these lines below it."""
    label = label_of(run, row)
    path = run.table.paths[row] if run.table is not None else f"row {row}"
    alt = ", ".join(filter(None, [f"image {path}", f"label {label}" if label else "", *lines]))
    if run.images is None or row >= len(run.images):
        return Picture("", [label or path, *lines], alt)
    uri = data_uri(run.images, row)
    return Picture(uri, list(filter(None, [label, *lines])), alt, is_small(run))


def is_small(run: RunFiles) -> bool:
    """Whether the run's images are so small that their pixels are drawn as squares."""
    return run.images is not None and max(run.images.images.shape[2:]) <= SMALL_PIXELS


def label_of(run: RunFiles, row: int) -> str:
    """Return the class of the image in a row, or ""."""
    if run.table is None or int(run.table.labels[row]) < 0:
        return ""
    return run.table.classes[int(run.table.labels[row])]


def interval_text(span: tuple[float, float], text: str = captions.INTERVAL) -> str:
    """Return an interval in words."""
    return text.format(low=number_text(span[0]), high=number_text(span[1]))


def verdict_text(rival: str, interval: tuple[float, float], other: tuple[float, float]) -> str:
    """Return in words whether what has the first interval is better or worse than the rival."""
    return captions.VERDICTS[verdict(interval, other)].format(rival=rival)
