"""Charts as inline SVG: lines, dots, bars, reliability diagrams and their legends.

Colours, dashes and fonts are classes of the page's style sheet, so light, dark and print follow it.
Every chart has a title and a description, and the table of the numbers that it shows. It is drawn
small and laid out in a grid, so its text stays readable.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from sureclr.reporting.svg import (
    BOTTOM,
    DASH,
    LEFT,
    RIGHT,
    TOP,
    Axis,
    Chart,
    Number,
    Point,
    Scale,
    Values,
    both_axes,
    drawing,
    finite,
    hidden_marker,
    line_element,
    marker,
    number_text,
    path_data,
    scale,
    shortened,
    text_element,
    tick_text,
)

TABLE_ROWS = 60  # of the table below a chart; longer series are thinned

Interval = tuple[float, float]
References = Sequence[tuple[float, str]]  # values that are marked by a dashed line, and their names
Bins = tuple[str, int, Values, Values, Sequence[int]]  # name, style, predicted, observed, counts


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        name: of the line.
        x: as long as `y`.
        y: None interrupts the line.
        style: of STYLES; 0 is the colour of our own quantities.
        band: half the width of a band around the line, or empty.
        markers: whether the points are visible.
    """

    name: str
    x: Values
    y: Values
    style: int = 0
    band: Values = field(default_factory=list)
    markers: bool = True


@dataclass(frozen=True)
class Row:
    """A row of `dots`: its name, and (name, style, value, interval or None) of each point."""

    name: str
    points: Sequence[tuple[str, int, Number, Interval | None]]


# --- Lines ----------------------------------------------------------------------------


def lines(
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    text: str = "",
    shade: Interval | None = None,
    references: References = (),
    width: float = 270,
    height: float = 184,
) -> Chart:
    """Draw lines over x.

    Args:
        title: of the drawing.
        series: the lines, the most important one first; it is drawn on top.
        x: the horizontal axis.
        y: the vertical axis.
        text: a description for those who cannot see it; by default, where each line starts and
            ends.
        shade: a range of x that is shaded.
        references: values of y with a dashed line and a name.
        width: of the drawing.
        height: of the drawing.
    """
    right, base = width - RIGHT, height - BOTTOM
    along = scale(x, [v for line in series for v in line.x], LEFT, right)
    values = [v for line in series for v in (*line.y, *_band_edges(line))]
    up = scale(y, [*values, *(v for v, _ in references)], base, TOP)
    parts = [_shade(along, shade, base)] if shade else []
    parts.append(both_axes(along, up, x, y))
    for value, name in references:
        parts.append(line_element(LEFT, up(value), right, up(value), "reference"))
        parts.append(text_element(right, up(value) - 4, name, "note", "end"))
    parts += [_line(line, along, up) for line in reversed(series)]
    head = [x.label, *(line.name for line in series)]
    return Chart(
        drawing(width, height, title, text or _description(series), *parts), head, _table(series)
    )


def _band_edges(line: Series) -> list[float]:
    pairs = zip(line.y, line.band, strict=False)
    return [
        y + half * sign
        for y, half in pairs
        if y is not None and half is not None
        for sign in (-1, 1)
    ]


def _line(line: Series, x: Scale, y: Scale) -> Markup:
    """The band, the line and its points."""
    places = _places(line, x, y)
    tips = [
        f"{line.name}: {number_text(b)} at {_x_text(a)}"
        for a, b in zip(line.x, line.y, strict=True)
    ]
    step = 1 if line.markers else max(1, len(places) // TABLE_ROWS)
    points = [
        marker(*place, line.style, tip) if line.markers else hidden_marker(*place, tip)
        for place, tip in list(zip(places, tips, strict=True))[::step]
        if place is not None
    ]
    stroke = Markup('<path class="line s{}" d="{}"/>').format(line.style, path_data(places))
    return _band(line, x, y) + stroke + Markup("").join(points)


def _x_text(x: Number) -> str:
    """A number of the horizontal axis; whole numbers, such as epochs, have no decimals."""
    whole = x is not None and math.isfinite(x) and x == round(x)
    return number_text(round(x) if whole and x is not None else x)


def _places(line: Series, x: Scale, y: Scale) -> list[Point | None]:
    return [
        (x(v), y(w)) if v is not None and w is not None and math.isfinite(w) else None
        for v, w in zip(line.x, line.y, strict=True)
    ]


def _band(line: Series, x: Scale, y: Scale) -> Markup:
    known = [
        (a, b, c)
        for a, b, c in zip(line.x, line.y, line.band, strict=False)
        if a is not None and b is not None and c is not None
    ]
    if not known:
        return Markup("")
    upper = [(x(a), y(b + c)) for a, b, c in known]
    lower = [(x(a), y(b - c)) for a, b, c in reversed(known)]
    return Markup('<path class="band s{}" d="{}z"/>').format(line.style, path_data(upper + lower))


def _shade(along: Scale, span: Interval, base: float) -> Markup:
    a, b = sorted(along(min(max(v, along.low), along.high)) for v in span)
    box = Markup('<rect class="shade" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
    return box.format(a, TOP, max(b - a, 2), base - TOP)


def _description(series: Sequence[Series]) -> str:
    """Where each line starts and ends, in words."""
    known = [(line.name, finite(line.y)) for line in series]
    return "; ".join(
        f"{name} from {number_text(y[0])} to {number_text(y[-1])}" for name, y in known if y
    )


def _table(series: Sequence[Series]) -> list[list[str]]:
    xs = sorted({v for line in series for v in finite(line.x)})
    step = max(1, -(-len(xs) // TABLE_ROWS))
    columns = [dict(zip(line.x, line.y, strict=True)) for line in series]
    return [[_x_text(v), *(number_text(column.get(v)) for column in columns)] for v in xs[::step]]


# --- Dots -----------------------------------------------------------------------------


def dots(
    title: str,
    rows: Sequence[Row],
    x: Axis,
    *,
    text: str = "",
    references: References = (),
    width: float = 460,
    left: float = 130,
) -> Chart:
    """Draw rows of points with intervals on one common axis.

    Args:
        title: of the drawing.
        rows: from top to bottom.
        x: the axis.
        text: a description for those who cannot see it.
        references: values of x with a dashed line and a name.
        width: of the drawing.
        left: room for the names of the rows.
    """
    pitch, top = 30.0, 30.0
    height = top + pitch * len(rows) + BOTTOM
    base, right = height - BOTTOM, width - RIGHT
    along = scale(x, [*_row_values(rows), *(v for v, _ in references)], left, right)
    parts = []
    for tick in along.ticks():
        parts.append(line_element(along(tick), top - 8, along(tick), base, "grid"))
        parts.append(text_element(along(tick), base + 16, tick_text(tick), "tick"))
    for value, name in references:
        parts.append(line_element(along(value), top - 8, along(value), base, "reference"))
        parts.append(text_element(along(value), top - 13, name, "note"))
    parts.append(text_element(right, base + 31, x.label, "label", "end"))
    parts += [_row(row, along, top + pitch * (i + 0.5), left) for i, row in enumerate(rows)]
    drawn = drawing(width, height, title, text, *parts, kind="dots")
    return Chart(drawn, ["", "of", x.label, "95 % interval"], _row_table(rows))


def _row_values(rows: Sequence[Row]) -> list[Number]:
    points = [(value, span) for row in rows for _, _, value, span in row.points]
    ends = [end for _, span in points if span for end in span]
    return [*(value for value, _ in points), *ends]


def _row_table(rows: Sequence[Row]) -> list[list[str]]:
    return [
        [row.name, name, number_text(value), _span_text(span) if span else DASH]
        for row in rows
        for name, _, value, span in row.points
    ]


def _span_text(span: Interval) -> str:
    return f"{number_text(span[0])} to {number_text(span[1])}"


def _row(row: Row, along: Scale, middle: float, left: float) -> Markup:
    """The name, a line and the points, a little apart: equal ones must not hide each other."""
    apart = {1: 0.0, 2: 8.0}.get(len(row.points), 3.2)
    first = middle - apart * (len(row.points) - 1) / 2
    name = text_element(left - 12, middle + 4, shortened(row.name), "name", "end")
    points = [
        _dot(along, first + apart * j, row.name, *point) for j, point in enumerate(row.points)
    ]
    return name + line_element(left, middle, along.end, middle, "grid") + Markup("").join(points)


def _dot(
    along: Scale, y: float, row: str, name: str, style: int, value: Number, span: Interval | None
) -> Markup:
    if value is None:
        return Markup("")
    tip = f"{row}, {name}: {number_text(value)}" + (f" ({_span_text(span)})" if span else "")
    point = marker(along(value), y, style, tip, 4.6)
    if span is None:
        return point
    return line_element(along(span[0]), y, along(span[1]), y, f"whisker s{style}") + point


# --- Bars -----------------------------------------------------------------------------


def bars(
    title: str,
    names: Sequence[str],
    values: Values,
    y: Axis,
    *,
    text: str = "",
    width: float = 340,
    height: float = 210,
) -> Chart:
    """Draw a bar for each name, from zero."""
    right, base = width - RIGHT, height - BOTTOM
    up = scale(y, [0, *values], base, TOP)
    pitch = (right - LEFT) / max(1, len(names))
    parts = []
    for tick in up.ticks():
        parts.append(line_element(LEFT, up(tick), right, up(tick), "grid"))
        parts.append(text_element(LEFT - 7, up(tick) + 3.5, tick_text(tick), "tick", "end"))
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        x, tip = LEFT + pitch * i, f"{name}: {number_text(value)}"
        parts.append(text_element(x + pitch / 2, base + 16, shortened(name, 8), "tick"))
        parts.append(_bar(x + pitch * 0.16, up(value or 0), pitch * 0.68, up(0), tip))
    parts.append(text_element(4, 13, y.label, "label", "start"))
    table = [[name, number_text(v)] for name, v in zip(names, values, strict=True)]
    return Chart(drawing(width, height, title, text, *parts), ["", y.label], table)


def _bar(x: float, top: float, width: float, base: float, tip: str) -> Markup:
    return Markup(
        '<rect class="bar s0" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" data-tip="{}"/>'
    ).format(x, min(top, base), width, abs(base - top), tip)


# --- Reliability ----------------------------------------------------------------------


def reliability(title: str, kinds: Sequence[Bins], x: Axis, y: Axis, *, text: str = "") -> Chart:
    """Draw predictions against observations, a point for each bin.

    A prediction that equals its observation lies on the diagonal.
    """
    size, height = 300.0, 290.0
    values = [v for _, _, predicted, observed, _ in kinds for v in (*predicted, *observed)]
    along = scale(Axis("", x.low, x.high), values, LEFT, size - RIGHT)
    up = Scale(along.low, along.high, height - BOTTOM, TOP)
    parts = [
        both_axes(along, up, x, y),
        line_element(along.start, up.start, along.end, up.end, "reference"),
        text_element(along.end - 30, TOP + 12, "equal", "note", "end"),
    ]
    rows: list[list[str]] = []
    for bins in kinds:
        parts.append(_bins(bins, along, up))
        rows += [
            [bins[0], number_text(p), number_text(o), f"{n:,}"] for p, o, n in _known_bins(bins)
        ]
    drawn = drawing(size, height, title, text, *parts, kind="square")
    return Chart(drawn, ["", "predicted", "observed", "pairs"], rows)


def _known_bins(bins: Bins) -> list[tuple[float, float, int]]:
    """The bins with pairs in them: prediction, observation, number of pairs."""
    _, _, predicted, observed, counts = bins
    return [
        (p, o, n)
        for p, o, n in zip(predicted, observed, counts, strict=True)
        if p is not None and o is not None
    ]


def _bins(bins: Bins, along: Scale, up: Scale) -> Markup:
    name, style, predicted, observed, _ = bins
    data = path_data(_places(Series(name, predicted, observed), along, up))
    line = Markup('<path class="line s{}" d="{}"/>').format(style, data)
    points = [
        marker(
            along(p),
            up(o),
            style,
            f"{name}: predicted {number_text(p)}, observed {number_text(o)}, {n:,} pairs",
        )
        for p, o, n in _known_bins(bins)
    ]
    return line + Markup("").join(points)


# --- Legend ---------------------------------------------------------------------------


def legend(names: Sequence[tuple[str, int]], boxes: bool = False) -> Markup:
    """Return a list of what colours, dashes and shapes mean.

    Args:
        names: with their styles.
        boxes: whether the keys are the two colours of a heat map (style 0: positive).
    """
    keys = [_box_key(style) if boxes else _line_key(style) for _, style in names]
    entry = Markup(
        '<li><svg class="key" viewBox="0 0 30 12" aria-hidden="true">{}</svg><bdi>{}</bdi></li>'
    )
    entries = [entry.format(key, name) for key, (name, _) in zip(keys, names, strict=True)]
    if not entries:
        return Markup("")
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(entries))


def _box_key(style: int) -> Markup:
    kind = "minus" if style else "plus"
    return Markup('<rect class="{}" x="8" width="14" height="12"/>').format(kind)


def _line_key(style: int) -> Markup:
    line = Markup('<path class="line s{}" d="M1 6H29"/>').format(style)
    return line + marker(15, 6, style, "")
