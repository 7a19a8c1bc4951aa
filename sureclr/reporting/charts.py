"""Charts as inline SVG, drawn from numbers. Colours, dashes and fonts are classes of the page's
style sheet, so light, dark and print follow it; every chart carries a title and a description, and
the table of the numbers that it shows.

Coordinates are SVG user units, about one CSS pixel; a chart is drawn small and laid out in a grid,
so its text stays readable.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 26.0, 36.0  # margins of a plot
STYLES = 6  # colours, dashes and marker shapes; a name keeps its style in the whole page
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"  # for no number; before a negative one
TABLE_ROWS = 60  # of the table beside a chart; longer series are thinned

Number = float | None
Numbers = Sequence[Number]


@dataclass(frozen=True)
class Chart:
    """A drawing and the numbers in it: `head` names the columns of `rows`."""

    svg: Markup
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Axis:
    """What an axis says and from where to where it runs; None: from the numbers."""

    label: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A line: x and y as long as each other; gaps (None) break it. style 0 is ours. band: half the
    width of its band.
    """

    name: str
    x: Numbers
    y: Numbers
    style: int = 0
    band: Numbers = field(default_factory=list)
    markers: bool = True


@dataclass(frozen=True)
class Row:
    """A row of `dots`: (name, style, value, interval or None) each."""

    name: str
    points: Sequence[tuple[str, int, Number, tuple[float, float] | None]]


def told(value: object) -> str:
    """A number as people read it: three decimals, thousands apart, a dash where there is none."""
    if value is None or isinstance(value, str | bool):
        return DASH if value is None else str(value)
    number = float(value)  # type: ignore[arg-type]  # what JSON holds
    if not math.isfinite(number):
        return DASH
    if isinstance(value, int) or (number == round(number) and abs(number) >= 10):
        return f"{number:,.0f}".replace("-", MINUS)
    if 0 < abs(number) < 0.001:
        return f"{number:.1e}".replace("e-0", "e-").replace("-", MINUS)
    return (f"{number:.3f}" if abs(number) < 10 else f"{number:,.1f}").replace("-", MINUS)


def finite(values: Iterable[Number]) -> list[float]:
    return [float(v) for v in values if v is not None and math.isfinite(float(v))]


@dataclass(frozen=True)
class Scale:
    """Numbers low..high onto positions start..end; what lies outside stays near the edge."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.05, max(-0.05, share)) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        step = nice_step((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def nice_step(step: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is at least this."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def scale(axis: Axis, values: Iterable[Number], start: float, end: float) -> Scale:
    """A scale that holds the values, its ends on ticks unless the axis names them."""
    known = finite(values) or [0.0, 1.0]
    low, high = min(known), max(known)
    step = nice_step(max((high - low) / 4, abs(high) * 1e-6, 1e-9))
    low, high = math.floor(low / step + 1e-6) * step, math.ceil(high / step - 1e-6) * step
    low, high = low if axis.low is None else axis.low, high if axis.high is None else axis.high
    return Scale(low, high if high > low else low + (abs(low) or 1.0), start, end)


def tick_text(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("-", MINUS)
    return f"{round(value, 6):g}".replace("-", MINUS)


def _svg(
    width: float, height: float, title: str, text: str, *parts: Markup, kind: str = "plot"
) -> Markup:
    told_as = f"{title}. {text}".strip()
    return Markup(
        '<svg class="chart {}" viewBox="0 0 {:.0f} {:.0f}" width="{:.0f}" role="img" '
        'aria-label="{}"><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(kind, width, height, width, told_as, title, text, Markup("").join(parts))


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, text
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def marker(x: float, y: float, style: int, tip: str, r: float = 3.6) -> Markup:
    """A point whose shape tells what its colour tells: circle, square, triangle, diamond, triangle
    down, cross.
    """
    shapes = [
        f"M{-r} 0a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0",
        f"M{-r * 0.85} {-r * 0.85}h{r * 1.7}v{r * 1.7}h{-r * 1.7}z",
        f"M0 {-r * 1.1}L{r} {r * 0.8}H{-r}z",
        f"M0 {-r * 1.2}L{r * 1.2} 0L0 {r * 1.2}L{-r * 1.2} 0z",
        f"M{-r} {-r}h{2 * r}l{-r} {1.9 * r}z",
        f"M{-r} 0H{r}M0 {-r}V{r}",
    ]
    return Markup(
        '<path class="m s{}" d="{}" transform="translate({:.1f} {:.1f})" data-tip="{}"/>'
    ).format(style % STYLES, shapes[style % STYLES], x, y, tip)


def _axes(x: Scale, y: Scale, xa: Axis, ya: Axis) -> Markup:
    """Grid lines, ticks and the two labels: y's above its axis, where it can be read without
    turning the head.
    """
    parts = [
        _line(x.start, y(t), x.end, y(t), "grid")
        + _text(x.start - 7, y(t) + 3.5, tick_text(t), "tick", "end")
        for t in y.ticks()
    ]
    parts += [
        _line(x(t), y.start, x(t), y.start + 4, "axis")
        + _text(x(t), y.start + 16, tick_text(t), "tick")
        for t in x.ticks()
    ]
    parts += [
        _line(x.start, y.start, x.end, y.start, "axis"),
        _text(x.end, y.start + 31, xa.label, "label", "end"),
    ]
    return Markup("").join([*parts, _text(4, 13, ya.label, "label", "start")])


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """An SVG path through the points; None lifts the pen."""
    words, down = [], False
    for point in points:
        if point is not None:
            words.append(f"{'L' if down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        down = point is not None
    return "".join(words)


def _points(one: Series, x: Scale, y: Scale) -> list[tuple[float, float] | None]:
    return [
        (x(v), y(w)) if v is not None and w is not None and math.isfinite(w) else None
        for v, w in zip(one.x, one.y, strict=True)
    ]


def _band(one: Series, x: Scale, y: Scale) -> Markup:
    known = [
        (a, b, c)
        for a, b, c in zip(one.x, one.y, one.band, strict=False)
        if a is not None and b is not None and c is not None
    ]
    if not known:
        return Markup("")
    edge = [(x(a), y(b + c)) for a, b, c in known] + [
        (x(a), y(b - c)) for a, b, c in reversed(known)
    ]
    return Markup('<path class="band s{}" d="{}z"/>').format(one.style, _path(edge))


def _drawn(one: Series, x: Scale, y: Scale) -> Markup:
    places = _points(one, x, y)
    tips = [f"{one.name}: {told(b)} at {told(a)}" for a, b in zip(one.x, one.y, strict=True)]
    step = 1 if one.markers else max(1, len(places) // TABLE_ROWS)
    dots = [
        marker(p[0], p[1], one.style, tip) if one.markers else _hit(p[0], p[1], tip)
        for p, tip in list(zip(places, tips, strict=True))[::step]
        if p is not None
    ]
    return (
        _band(one, x, y)
        + Markup('<path class="line s{}" d="{}"/>').format(one.style, _path(places))
        + Markup("").join(dots)
    )


def _hit(x: float, y: float, tip: str) -> Markup:
    """A point that is seen only under the pointer."""
    return Markup('<circle class="hit" cx="{:.1f}" cy="{:.1f}" r="3" data-tip="{}"/>').format(
        x, y, tip
    )


def lines(
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    text: str = "",
    shade: tuple[float, float] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    width: float = 270,
    height: float = 184,
) -> Chart:
    """Lines over x. shade: a range of x set off; marks: horizontal dashed references (value, name)."""
    right, base = width - RIGHT, height - BOTTOM
    along = scale(x, [v for one in series for v in one.x], LEFT, right)
    spread = [
        b + c * sign
        for one in series
        for b, c in zip(one.y, one.band, strict=False)
        if b is not None and c is not None
        for sign in (-1, 1)
    ]
    up = scale(
        y, [*(v for one in series for v in one.y), *spread, *(v for v, _ in marks)], base, TOP
    )
    parts = [_shade(along, shade, base)] if shade else []
    parts.append(_axes(along, up, x, y))
    parts += [
        _line(LEFT, up(v), right, up(v), "reference") + _text(right, up(v) - 4, name, "note", "end")
        for v, name in marks
    ]
    parts += [_drawn(one, along, up) for one in reversed(series)]
    return Chart(
        _svg(width, height, title, text or _ends(series), *parts),
        [x.label, *(one.name for one in series)],
        _table(series),
    )


def _ends(series: Sequence[Series]) -> str:
    """What a line does, in words."""
    said = [(one.name, finite(one.y)) for one in series]
    return "; ".join(f"{name} from {told(y[0])} to {told(y[-1])}" for name, y in said if y)


def _shade(along: Scale, span: tuple[float, float], base: float) -> Markup:
    a, b = sorted(along(min(max(v, along.low), along.high)) for v in span)
    return Markup(
        '<rect class="shade" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
    ).format(a, TOP, max(b - a, 2), base - TOP)


def _table(series: Sequence[Series]) -> list[list[str]]:
    xs = sorted({v for one in series for v in finite(one.x)})
    step = max(1, -(-len(xs) // TABLE_ROWS))
    columns = [dict(zip(one.x, one.y, strict=True)) for one in series]
    return [[told(v), *(told(column.get(v)) for column in columns)] for v in xs[::step]]


def dots(
    title: str,
    rows: Sequence[Row],
    x: Axis,
    *,
    text: str = "",
    marks: Sequence[tuple[float, str]] = (),
    width: float = 460,
    left: float = 130,
) -> Chart:
    """A row a name: points with intervals on one common axis."""
    pitch, top = 30.0, 30.0
    height = top + pitch * len(rows) + BOTTOM
    base, right = height - BOTTOM, width - RIGHT
    ends = [end for row in rows for *_, span in row.points if span for end in span]
    along = scale(
        x,
        [*(v for row in rows for _, _, v, _ in row.points), *ends, *(v for v, _ in marks)],
        left,
        right,
    )
    parts = [
        _line(along(t), top - 8, along(t), base, "grid")
        + _text(along(t), base + 16, tick_text(t), "tick")
        for t in along.ticks()
    ]
    parts += [
        _line(along(v), top - 8, along(v), base, "reference")
        + _text(along(v), top - 13, name, "note")
        for v, name in marks
    ]
    parts.append(_text(right, base + 31, x.label, "label", "end"))
    for i, row in enumerate(rows):
        middle = top + pitch * (i + 0.5)
        parts += [
            _text(left - 12, middle + 4, shortened(row.name), "name", "end"),
            _line(left, middle, right, middle, "grid"),
        ]
        apart = {1: 0.0, 2: 8.0}.get(
            len(row.points), 3.2
        )  # points that agree must not hide each other
        parts += [
            _dot(along, middle + apart * (j - (len(row.points) - 1) / 2), row.name, *point)
            for j, point in enumerate(row.points)
        ]
    table = [
        [row.name, name, told(v), f"{told(span[0])} to {told(span[1])}" if span else DASH]
        for row in rows
        for name, _, v, span in row.points
    ]
    return Chart(
        _svg(width, height, title, text, *parts, kind="dots"),
        ["", "of", x.label, "95 % interval"],
        table,
    )


def _dot(
    along: Scale,
    y: float,
    row: str,
    name: str,
    style: int,
    value: Number,
    span: tuple[float, float] | None,
) -> Markup:
    if value is None:
        return Markup("")
    tip = f"{row}, {name}: {told(value)}" + (
        f" ({told(span[0])} to {told(span[1])})" if span else ""
    )
    whisker = (
        _line(along(span[0]), y, along(span[1]), y, f"whisker s{style}") if span else Markup("")
    )
    return whisker + marker(along(value), y, style, tip, 4.6)


def shortened(name: str, longest: int = 18) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def bars(
    title: str,
    names: Sequence[str],
    values: Numbers,
    y: Axis,
    *,
    text: str = "",
    width: float = 340,
    height: float = 210,
) -> Chart:
    """A bar a name, from zero."""
    right, base = width - RIGHT, height - BOTTOM
    up = scale(y, [0, *values], base, TOP)
    pitch = (right - LEFT) / max(1, len(names))
    parts = [
        _line(LEFT, up(t), right, up(t), "grid")
        + _text(LEFT - 7, up(t) + 3.5, tick_text(t), "tick", "end")
        for t in up.ticks()
    ]
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        x = LEFT + pitch * i
        parts += [
            _text(x + pitch / 2, base + 16, shortened(name, 8), "tick"),
            _bar(x + pitch * 0.16, up(value or 0), pitch * 0.68, up(0), f"{name}: {told(value)}"),
        ]
    parts.append(_text(4, 13, y.label, "label", "start"))
    return Chart(
        _svg(width, height, title, text, *parts),
        ["", y.label],
        [[n, told(v)] for n, v in zip(names, values, strict=True)],
    )


def _bar(x: float, top: float, width: float, base: float, tip: str) -> Markup:
    return Markup(
        '<rect class="bar s0" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" data-tip="{}"/>'
    ).format(x, min(top, base), width, abs(base - top), tip)


def reliability(
    title: str,
    kinds: Sequence[tuple[str, int, Numbers, Numbers, Sequence[int]]],
    x: Axis,
    y: Axis,
    *,
    text: str = "",
) -> Chart:
    """Predicted against observed, a point a bin (name, style, predicted, observed, counts); what is
    true lies on the diagonal.
    """
    size, height = 300.0, 290.0
    common = scale(
        Axis("", x.low, x.high),
        [v for _, _, p, o, _ in kinds for v in (*p, *o)],
        LEFT,
        size - RIGHT,
    )
    up = Scale(common.low, common.high, height - BOTTOM, TOP)
    parts = [
        _axes(common, up, x, y),
        _line(common.start, up.start, common.end, up.end, "reference"),
        _text(common.end - 30, TOP + 12, "true", "note", "end"),
    ]
    rows: list[list[str]] = []
    for name, style, predicted, observed, counts in kinds:
        parts.append(
            Markup('<path class="line s{}" d="{}"/>').format(
                style, _path(_points(Series(name, predicted, observed), common, up))
            )
        )
        known = [
            (p, o, n)
            for p, o, n in zip(predicted, observed, counts, strict=True)
            if p is not None and o is not None
        ]
        parts += [
            marker(
                common(p),
                up(o),
                style,
                f"{name}: predicted {told(p)}, observed {told(o)}, {n:,} pairs",
            )
            for p, o, n in known
        ]
        rows += [[name, told(p), told(o), f"{n:,}"] for p, o, n in known]
    return Chart(
        _svg(size, height, title, text, *parts, kind="square"),
        ["", "predicted", "observed", "pairs"],
        rows,
    )


def matrix(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Numbers],
    *,
    text: str = "",
) -> Chart:
    """A grid of numbers in 0..1, stronger is more, each written in its cell."""
    cell, left, top = 44.0, 110.0, 30.0
    width, height = left + cell * len(columns) + 8, top + cell * len(rows) + 8
    parts = [
        _text(left + cell * (j + 0.5), top - 9, shortened(name, 7), "tick")
        for j, name in enumerate(columns)
    ]
    for i, (name, line) in enumerate(zip(rows, values, strict=True)):
        parts.append(
            _text(left - 8, top + cell * (i + 0.5) + 4, shortened(name, 16), "name", "end")
        )
        parts += [
            _cell(left + cell * j, top + cell * i, cell, v, f"{name} and {columns[j]}: {told(v)}")
            for j, v in enumerate(line)
        ]
    table = [[name, *map(told, line)] for name, line in zip(rows, values, strict=True)]
    return Chart(_svg(width, height, title, text, *parts, kind="matrix"), ["", *columns], table)


def _cell(x: float, y: float, cell: float, value: Number, tip: str) -> Markup:
    share = min(1.0, max(0.0, value or 0.0))
    box = Markup(
        '<rect class="cell" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"'
        ' fill-opacity="{:.2f}" data-tip="{}"/>'
    ).format(x + 1, y + 1, cell - 2, cell - 2, share, tip)
    return box + _text(
        x + cell / 2,
        y + cell / 2 + 4,
        DASH if value is None else f"{value:.2f}",
        "on" if share > 0.45 else "tick",
    )


def heat(
    title: str, pictures: Sequence[tuple[str, Sequence[Numbers]]], crisp: bool, *, text: str = ""
) -> Chart:
    """Images (data: URIs, or "") beside each other, each under a grid of signed numbers: one colour
    where positive, another where negative.

    Colours are scaled to the largest number of them all.
    """
    side, gap = 120.0, 8.0
    top = (
        max(
            [abs(v) for _, values in pictures for line in values for v in finite(line)], default=0.0
        )
        or 1.0
    )
    width = len(pictures) * (side + gap) - gap
    parts = [
        _heated(i * (side + gap), side, image, values, top, crisp)
        for i, (image, values) in enumerate(pictures)
    ]
    rows = [[told(v) for v in line] for _, values in pictures for line in values]
    columns = len(pictures[0][1][0]) if pictures and pictures[0][1] else 0
    return Chart(
        _svg(width, side, title, text, *parts, kind="heat"),
        [str(i + 1) for i in range(columns)],
        rows,
    )


def _heated(
    x: float, side: float, image: str, values: Sequence[Numbers], top: float, crisp: bool
) -> Markup:
    parts = [
        Markup('<rect class="ground" x="{:.0f}" width="{:.0f}" height="{:.0f}"/>').format(
            x, side, side
        )
    ]
    if image:
        parts.append(
            Markup(
                '<image href="{}" x="{:.0f}" width="{:.0f}" height="{:.0f}" class="{}"/>'
            ).format(image, x, side, side, "pixels" if crisp else "")
        )
    tall = side / max(1, len(values))
    for i, line in enumerate(values):
        wide = side / max(1, len(line))
        parts += [
            Markup(
                '<rect class="{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"'
                ' fill-opacity="{:.2f}"/>'
            ).format(
                "plus" if v > 0 else "minus",
                x + j * wide,
                i * tall,
                wide,
                tall,
                0.85 * abs(v) / top,
            )
            for j, v in enumerate(line)
            if v is not None and math.isfinite(v)
        ]
    return Markup("").join(parts)


def legend(names: Sequence[tuple[str, int]], boxes: bool = False) -> Markup:
    """What colours, dashes and shapes mean, as a list; boxes: plain colours, of a heat map."""
    keys = [
        (
            Markup('<rect class="{}" x="8" width="14" height="12"/>').format(
                "minus" if style else "plus"
            )
            if boxes
            else Markup('<path class="line s{}" d="M1 6H29"/>{}').format(
                style, marker(15, 6, style, "")
            )
        )
        for _, style in names
    ]
    entries = [
        Markup(
            '<li><svg class="key" viewBox="0 0 30 12" aria-hidden="true">{}</svg><bdi>{}</bdi></li>'
        ).format(key, name)
        for key, (name, _) in zip(keys, names, strict=True)
    ]
    return (
        Markup('<ul class="legend">{}</ul>').format(Markup("").join(entries))
        if entries
        else Markup("")
    )
