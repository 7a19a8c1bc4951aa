"""Charts that are grids of cells: a matrix of numbers, and heat maps over images."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from sureclr.reporting.svg import (
    DASH,
    Chart,
    Number,
    Values,
    drawing,
    finite,
    number_text,
    shortened,
    text_element,
)

Picture = tuple[str, Sequence[Values]]  # a data: URI (or ""), and the rows of its heat map
WIDE = 10  # columns of a matrix up to which its cells are wide


def matrix(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Values],
    *,
    text: str = "",
) -> Chart:
    """Draw a grid of numbers in [0, 1], written in their cells; a stronger colour is more."""
    cell, left, top = 44.0 if len(columns) <= WIDE else 30.0, 110.0, 30.0
    width, height = left + cell * len(columns) + 8, top + cell * len(rows) + 8
    parts = [
        text_element(left + cell * (j + 0.5), top - 9, shortened(name, 7), "tick")
        for j, name in enumerate(columns)
    ]
    for i, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = top + cell * i
        parts.append(text_element(left - 8, y + cell / 2 + 4, shortened(name, 16), "name", "end"))
        for j, value in enumerate(line):
            tip = f"{name} and {columns[j]}: {number_text(value)}"
            parts.append(_cell(left + cell * j, y, cell, value, tip))
    table = [[name, *map(number_text, line)] for name, line in zip(rows, values, strict=True)]
    return Chart(drawing(width, height, title, text, *parts, kind="matrix"), ["", *columns], table)


def _cell(x: float, y: float, side: float, value: Number, tip: str) -> Markup:
    share = min(1.0, max(0.0, value or 0.0))
    box = Markup(
        '<rect class="cell" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"'
        ' fill-opacity="{:.2f}" data-tip="{}"/>'
    ).format(x + 1, y + 1, side - 2, side - 2, share, tip)
    number = DASH if value is None else f"{value:.2f}"
    kind = "on" if share > 0.45 else "tick"
    return box + text_element(x + side / 2, y + side / 2 + 4, number, kind)


def heat(title: str, pictures: Sequence[Picture], crisp: bool, *, text: str = "") -> Chart:
    """Draw images side by side, each under a grid of signed numbers.

    Positive and negative numbers have two colours, scaled to the largest number of all grids.

    Args:
        title: of the drawing.
        pictures: images with their grids; all grids are equally wide.
        crisp: whether pixels are drawn as squares.
        text: a description for those who cannot see it.
    """
    side, gap = 120.0, 8.0
    sizes = [abs(v) for _, grid in pictures for line in grid for v in finite(line)]
    largest = max(sizes, default=0.0) or 1.0
    width = len(pictures) * (side + gap) - gap
    parts = []
    for i, (image, grid) in enumerate(pictures):
        parts += [_image(i * (side + gap), side, image, crisp)]
        parts += [_heat_cells(i * (side + gap), side, grid, largest)]
    rows = [[number_text(v) for v in line] for _, grid in pictures for line in grid]
    columns = len(pictures[0][1][0]) if pictures and pictures[0][1] else 0
    head = [str(i + 1) for i in range(columns)]
    return Chart(drawing(width, side, title, text, *parts, kind="heat"), head, rows)


def _image(x: float, side: float, image: str, crisp: bool) -> Markup:
    """A white ground, and the image on it where there is one."""
    ground = Markup('<rect class="ground" x="{:.0f}" width="{:.0f}" height="{:.0f}"/>')
    picture = Markup('<image href="{}" x="{:.0f}" width="{:.0f}" height="{:.0f}" class="{}"/>')
    drawn = ground.format(x, side, side)
    return drawn + picture.format(image, x, side, side, "pixels" if crisp else "") * bool(image)


def _heat_cells(x: float, side: float, grid: Sequence[Values], largest: float) -> Markup:
    box = Markup(
        '<rect class="{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"'
        ' fill-opacity="{:.2f}"/>'
    )
    height = side / max(1, len(grid))
    parts = []
    for i, line in enumerate(grid):
        width = side / max(1, len(line))
        for j, v in enumerate(line):
            if v is None or not math.isfinite(v):
                continue
            kind, opacity = "plus" if v > 0 else "minus", 0.85 * abs(v) / largest
            parts.append(box.format(kind, x + j * width, i * height, width, height, opacity))
    return Markup("").join(parts)
