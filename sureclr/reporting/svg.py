"""What every chart is drawn with: numbers as text, scales, axes and single SVG elements.

Coordinates are SVG user units, about one CSS pixel; y grows downwards.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 26.0, 36.0  # margins of a plot
STYLES = 6  # colours, dashes and marker shapes; a name keeps its style in the whole page
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"  # for no number; before a negative one

Number = float | None
Values = Sequence[Number]
Point = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """A drawing and the numbers in it.

    Attributes:
        svg: the drawing.
        head: names of the columns of `rows`.
        rows: the numbers as text.
    """

    svg: Markup
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Axis:
    """The label of an axis and its ends; an end of None follows from the numbers."""

    label: str
    low: float | None = None
    high: float | None = None


def number_text(value: object) -> str:
    """Return a number as people read it: about three digits, thousands apart, a dash for None.

    >>> number_text(0.12345), number_text(12_345), number_text(None)
    ('0.123', '12,345', '–')
    """
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


def percent_text(share: float) -> str:
    """Return a share as a percentage, for sentences.

    >>> percent_text(0.8754)
    '87.5 %'
    """
    return f"{100 * share:.1f} %"


def finite(values: Iterable[Number]) -> list[float]:
    """Return the values without None, NaN and infinities."""
    return [float(v) for v in values if v is not None and math.isfinite(float(v))]


@dataclass(frozen=True)
class Scale:
    """Maps numbers low..high onto positions start..end; other numbers stay near the edge."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the position of a number."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.05, max(-0.05, share)) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Return round numbers between low and high, about this many."""
        step = nice_step((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def nice_step(step: float) -> float:
    """Return the least of 1, 2, 5 times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def scale(axis: Axis, values: Iterable[Number], start: float, end: float) -> Scale:
    """Return a scale that holds the values; its ends are ticks unless the axis names them."""
    known = finite(values) or [0.0, 1.0]
    low, high = min(known), max(known)
    step = nice_step(max((high - low) / 4, abs(high) * 1e-6, 1e-9))
    low, high = math.floor(low / step + 1e-6) * step, math.ceil(high / step - 1e-6) * step
    if low == high:  # a constant lies in the middle of its axis
        low, high = low - (0.1 * abs(low) or 1.0), high + (0.1 * abs(high) or 1.0)
    low, high = low if axis.low is None else axis.low, high if axis.high is None else axis.high
    return Scale(low, high if high > low else low + (abs(low) or 1.0), start, end)


def tick_text(value: float) -> str:
    """Return the label of a tick."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("-", MINUS)
    return f"{round(value, 6):g}".replace("-", MINUS)


def shortened(name: str, longest: int = 18) -> str:
    """Return the name, cut off with an ellipsis if it has more characters than `longest`."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


# --- Elements -------------------------------------------------------------------------


def drawing(
    width: float, height: float, title: str, text: str, *parts: Markup, kind: str = "plot"
) -> Markup:
    """Return an SVG element with a title and a description for those who cannot see it."""
    label = f"{title}. {text}".strip()
    return Markup(
        '<svg class="chart {}" viewBox="0 0 {:.0f} {:.0f}" width="{:.0f}" role="img" '
        'aria-label="{}"><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(kind, width, height, width, label, title, text, Markup("").join(parts))


def text_element(x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> Markup:
    """Return a text whose start, middle or end lies at x."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, text
    )


def line_element(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Return a straight line."""
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def marker(x: float, y: float, style: int, tip: str, r: float = 3.6) -> Markup:
    """Return a mark whose shape says the same as its colour, for colour-blind readers.

    The shapes are a circle, square, triangle, diamond, inverted triangle and cross.
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


def hidden_marker(x: float, y: float, tip: str) -> Markup:
    """Return a mark that is visible only under the pointer."""
    return Markup('<circle class="hit" cx="{:.1f}" cy="{:.1f}" r="3" data-tip="{}"/>').format(
        x, y, tip
    )


def path_data(points: Iterable[Point | None]) -> str:
    """Return an SVG path through the points; None interrupts it."""
    words, down = [], False
    for point in points:
        if point is not None:
            words.append(f"{'L' if down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        down = point is not None
    return "".join(words)


def both_axes(x: Scale, y: Scale, x_axis: Axis, y_axis: Axis) -> Markup:
    """Return grid lines, ticks and both labels.

    The label of y stands above its axis, where it can be read without turning the head.
    """
    parts = []
    for tick in y.ticks():
        parts.append(line_element(x.start, y(tick), x.end, y(tick), "grid"))
        parts.append(text_element(x.start - 7, y(tick) + 3.5, tick_text(tick), "tick", "end"))
    for tick in x.ticks():
        parts.append(line_element(x(tick), y.start, x(tick), y.start + 4, "axis"))
        parts.append(text_element(x(tick), y.start + 16, tick_text(tick), "tick"))
    parts.append(line_element(x.start, y.start, x.end, y.start, "axis"))
    parts.append(text_element(x.end, y.start + 31, x_axis.label, "label", "end"))
    parts.append(text_element(4, 13, y_axis.label, "label", "start"))
    return Markup("").join(parts)
