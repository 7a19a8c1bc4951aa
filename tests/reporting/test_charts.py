"""Charts show what their numbers are: positions read back through the axis' own tick labels, text
that stays text, one table each.
"""

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sureclr.reporting.charts import Row, Series, bars, dots, legend, lines, reliability
from sureclr.reporting.grids import heat, matrix
from sureclr.reporting.svg import Axis, Chart, nice_step, number_text

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'{{ 7 * 7 }}&amp;\u202e"
DASH, MINUS = "\u2013", "\u2212"
SVG = "{http://www.w3.org/2000/svg}"
NUMBER = st.floats(-1e4, 1e4).map(lambda v: round(v, 3))


def parsed(chart: Chart) -> ET.Element:
    return ET.fromstring(str(chart.svg))


def ticks(svg: ET.Element, anchor: str) -> list[tuple[float, float]]:
    """(number, position) of the labels of an axis: x's stand in the middle of their tick, y's end
    at it (3.5 px below its centre).
    """
    found = [
        e for e in svg.iter("text") if e.get("class") == "tick" and e.get("text-anchor") == anchor
    ]
    position = (
        (lambda e: float(e.get("x"))) if anchor == "middle" else (lambda e: float(e.get("y")) - 3.5)
    )
    return [(float((e.text or "").replace(MINUS, "-")), position(e)) for e in found]


def read_off(svg: ET.Element, anchor: str, position: float) -> float:
    """The number that a reader finds at a position, between the first and the last tick label."""
    (a, p), (b, q) = ticks(svg, anchor)[0], ticks(svg, anchor)[-1]
    return a + (position - p) / (q - p) * (b - a)


def marks(svg: ET.Element) -> list[tuple[float, float]]:
    places = [
        e.get("transform") or ""
        for e in svg.iter("path")
        if (e.get("class") or "").startswith("m ")
    ]
    return [
        (float(x), float(y))
        for x, y in (place.removeprefix("translate(").removesuffix(")").split() for place in places)
    ]


@given(st.lists(st.tuples(NUMBER, NUMBER), min_size=2, max_size=8, unique_by=lambda pair: pair[0]))
def test_points_lie_where_the_tick_labels_say(pairs: list[tuple[float, float]]) -> None:
    x, y = zip(*sorted(pairs), strict=True)
    svg = parsed(lines("title", [Series("one", x, y)], Axis("x"), Axis("y")))
    if min(len(ticks(svg, "middle")), len(ticks(svg, "end"))) < 2:
        return  # equal values: nothing to read off
    width, height = max(x) - min(x), max(max(y) - min(y), 1e-6 * abs(max(y)))
    for (px, py), a, b in zip(marks(svg), x, y, strict=True):
        assert read_off(svg, "middle", px) == pytest.approx(a, abs=0.01 * width + 1e-3)
        assert read_off(svg, "end", py) == pytest.approx(b, abs=0.02 * height + 1e-3)


def test_values_and_intervals_of_rows_lie_where_the_tick_labels_say() -> None:
    rows = [
        Row("ours", [("accuracy", 0, 0.9, (0.85, 0.93))]),
        Row("pixels", [("accuracy", 2, 0.6, None)]),
    ]
    svg = parsed(dots("t", rows, Axis("accuracy")))
    found = sorted(read_off(svg, "middle", x) for x, _ in marks(svg))
    whisker = next(e for e in svg.iter("line") if "whisker" in (e.get("class") or ""))
    assert found == pytest.approx([0.6, 0.9], abs=0.002)
    assert [
        read_off(svg, "middle", float(whisker.get(end) or "")) for end in ("x1", "x2")
    ] == pytest.approx([0.85, 0.93], abs=0.002)


def test_bars_grow_from_zero_in_proportion() -> None:
    boxes = [
        e
        for e in parsed(bars("t", ["a", "b", "c"], [0.1, 0.2, 0.4], Axis("share", 0))).iter("rect")
    ]
    heights = [float(e.get("height") or "") for e in boxes]
    assert heights[1] / heights[0] == pytest.approx(2, abs=0.02) and heights[2] / heights[
        0
    ] == pytest.approx(4, abs=0.04)


def test_what_comes_true_lies_on_the_diagonal() -> None:
    svg = parsed(
        reliability(
            "t",
            [("raw", 0, [0.1, 0.5, 0.9], [0.1, 0.5, 0.9], [3, 3, 3])],
            Axis("predicted", 0, 1),
            Axis("observed"),
        )
    )
    diagonal = next(e for e in svg.iter("line") if e.get("class") == "reference")
    x1, y1, x2, y2 = (float(diagonal.get(name) or "") for name in ("x1", "y1", "x2", "y2"))
    for x, y in marks(svg):
        assert y == pytest.approx(y1 + (x - x1) / (x2 - x1) * (y2 - y1), abs=0.2)


def test_a_modest_prediction_lies_above_the_diagonal() -> None:
    svg = parsed(
        reliability("t", [("raw", 0, [0.3], [0.8], [1])], Axis("predicted", 0, 1), Axis("observed"))
    )
    ((x, y),) = marks(svg)
    assert read_off(svg, "middle", x) == pytest.approx(0.3, abs=0.01) and read_off(
        svg, "end", y
    ) == pytest.approx(0.8, abs=0.01)


def test_a_gap_breaks_the_line_and_has_no_mark() -> None:
    svg = parsed(
        lines("t", [Series("one", [0, 1, 2, 3], [1.0, None, math.nan, 4.0])], Axis("x"), Axis("y"))
    )
    path = next(e for e in svg.iter("path") if (e.get("class") or "").startswith("line"))
    assert (path.get("d") or "").count("M") == 2 and len(marks(svg)) == 2


def test_a_map_shows_its_sign_and_its_strength() -> None:
    boxes = [
        e
        for e in parsed(heat("t", [("", [[2.0, -1.0], [0.5, None]])], crisp=True)).iter("rect")
        if e.get("class") != "ground"
    ]
    assert [e.get("class") for e in boxes] == ["plus", "minus", "plus"]
    strength = [float(e.get("fill-opacity") or "") for e in boxes]
    assert strength[0] > strength[1] > strength[2] > 0


def test_a_matrix_writes_each_value_in_its_row_and_column() -> None:
    chart = matrix("t", ["a", "b"], ["c", "d", "e"], [[0.0, 0.25, 1.0], [0.5, None, -0.1]])
    assert (
        chart.head == ["", "c", "d", "e"]
        and [row[0] for row in chart.rows] == ["a", "b"]
        and chart.rows[0][2] == number_text(0.25)
    )
    shown = [float(e.get("fill-opacity") or "") for e in parsed(chart).iter("rect")]
    assert shown == [0.0, 0.25, 1.0, 0.5, 0.0, 0.0]


EVERY = {
    "lines": lambda name: lines(
        name,
        [Series(name, [0, 1], [1.0, 2.0])],
        Axis(name),
        Axis(name),
        references=[(1.5, name)],
        shade=(0, 1),
    ),
    "dots": lambda name: dots(
        name, [Row(name, [(name, 0, 0.5, (0.4, 0.6))])], Axis(name), references=[(0.5, name)]
    ),
    "bars": lambda name: bars(name, [name], [1.0], Axis(name)),
    "reliability": lambda name: reliability(
        name, [(name, 0, [0.1], [0.2], [3])], Axis(name), Axis(name)
    ),
    "matrix": lambda name: matrix(name, [name], [name], [[0.5]]),
    "heat": lambda name: heat(name, [("data:,", [[0.5]])], crisp=True),
}


@pytest.mark.parametrize("kind", EVERY)
def test_names_are_text_whatever_they_hold(kind: str) -> None:
    svg = parsed(EVERY[kind](HOSTILE))
    tags = {e.tag.removeprefix(SVG) for e in svg.iter()}
    assert tags <= {"svg", "title", "desc", "text", "line", "path", "rect", "circle", "image"}
    names = {name for e in svg.iter() for name in e.attrib}
    assert not any(name.startswith("on") or name == "style" for name in names)


@pytest.mark.parametrize("kind", EVERY)
def test_every_chart_has_a_text_alternative_and_its_numbers(kind: str) -> None:
    chart = EVERY[kind]("the name")
    svg = parsed(chart)
    assert svg.get("role") == "img" and "the name" in (svg.get("aria-label") or "")
    assert chart.rows and all(len(row) == len(chart.head) for row in chart.rows)


@pytest.mark.parametrize(
    "values",
    [[], [None, None], [math.nan, math.inf], [3.0], [5.0, 5.0], [0.0, 0.0], [-1e-12, 1e12]],
)
def test_poor_numbers_still_make_a_chart(values: list[float | None]) -> None:
    svg = str(
        lines("t", [Series("one", list(range(len(values))), values)], Axis("x"), Axis("y")).svg
    )
    assert "nan" not in svg.lower() and ET.fromstring(svg) is not None


def test_a_legend_has_each_name_once_as_text() -> None:
    found = ET.fromstring(str(legend([(HOSTILE, 0), ("other", 1)])))
    assert [e.text for e in found.iter("bdi")] == [HOSTILE, "other"]


@given(st.floats(1e-8, 1e8))
def test_steps_are_one_two_or_five_and_the_least_that_suffices(step: float) -> None:
    nice = nice_step(step)
    power = 10.0 ** math.floor(math.log10(nice) + 1e-9)
    assert round(nice / power, 6) in (1, 2, 5)
    assert nice >= step * (1 - 1e-6) and nice < 2.6 * step


@pytest.mark.parametrize(
    "value, text",
    [
        (None, DASH),
        (math.nan, DASH),
        (0.12345, "0.123"),
        (-0.5, f"{MINUS}0.500"),
        (0, "0"),
        (12_345, "12,345"),
        (12.0, "12"),
        (123.45, "123.5"),
        (0.0001, f"1.0e{MINUS}4"),
    ],
)
def test_numbers_as_people_read_them(value: float | None, text: str) -> None:
    assert number_text(value) == text
