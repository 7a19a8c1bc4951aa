"""Photographs of a kind: JPEG files of 32 px in ten folders, each with shapes of one class.

Colours, places, sizes and angles are random, so that raw pixels say little of the class.
"""

from collections.abc import Callable
from math import cos, pi, sin
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE, LARGE = 32, 128  # pixels of a picture, and of the one that it is reduced from
Point = tuple[float, float]
Colours = tuple[tuple[int, ...], tuple[int, ...]]  # of the shape, and of what is behind it
Shape = Callable[[ImageDraw.ImageDraw, Point, float, float, Colours], None]


def at(centre: Point, radius: float, angle: float) -> Point:
    return centre[0] + radius * cos(angle), centre[1] + radius * sin(angle)


def box(centre: Point, radius: float) -> tuple[float, float, float, float]:
    return centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius


def polygon(*radii: float) -> Shape:
    """Corners at these shares of the radius, at equal angles."""

    def draw(on: ImageDraw.ImageDraw, c: Point, r: float, a: float, colours: Colours) -> None:
        step = 2 * pi / len(radii)
        on.polygon([at(c, r * share, a + i * step) for i, share in enumerate(radii)], colours[0])

    return draw


def strokes(*angles: float) -> Shape:
    """Thick lines through the centre."""

    def draw(on: ImageDraw.ImageDraw, c: Point, r: float, a: float, colours: Colours) -> None:
        for angle in angles:
            ends = [at(c, r, a + angle), at(c, r, a + angle + pi)]
            on.line(ends, colours[0], width=round(0.35 * r))

    return draw


def disc(on: ImageDraw.ImageDraw, c: Point, r: float, a: float, colours: Colours) -> None:
    on.ellipse(box(c, r), colours[0])


def ring(on: ImageDraw.ImageDraw, c: Point, r: float, a: float, colours: Colours) -> None:
    on.ellipse(box(c, r), outline=colours[0], width=round(0.35 * r))


def moon(on: ImageDraw.ImageDraw, c: Point, r: float, a: float, colours: Colours) -> None:
    disc(on, c, r, a, colours)
    on.ellipse(box(at(c, r / 2, a), 0.85 * r), colours[1])


def stripes(on: ImageDraw.ImageDraw, c: Point, r: float, a: float, colours: Colours) -> None:
    for k in range(-8, 9):
        middle = at(c, k * LARGE / 6, a)
        ends = [at(middle, 2 * LARGE, a + pi / 2), at(middle, 2 * LARGE, a - pi / 2)]
        on.line(ends, colours[0], width=LARGE // 14)


def dots(on: ImageDraw.ImageDraw, c: Point, r: float, a: float, colours: Colours) -> None:
    for k in range(36):
        on.ellipse(box((k % 6 * 21 + r / 3, k // 6 * 21 + r / 3), LARGE / 20), colours[0])


def squares(on: ImageDraw.ImageDraw, c: Point, r: float, a: float, colours: Colours) -> None:
    step = 0.6 * r
    for k in range(64):
        if (k + k // 8) % 2:
            x, y = k % 8 * step, k // 8 * step
            on.rectangle((x, y, x + step, y + step), colours[0])


SHAPES: dict[str, Shape] = {
    **{"disc": disc, "ring": ring, "moon": moon},
    **{"stripes": stripes, "dots": dots, "squares": squares},
    **{"triangle": polygon(1, 1, 1), "star": polygon(*[1, 0.4] * 5)},
    **{"bar": strokes(0), "cross": strokes(0, pi / 2)},
}


def write_shapes(folder: Path, count: int, seed: int = 0) -> Path:
    """Write so many pictures, as many of each class; 0.6 ms each."""
    random = np.random.default_rng(seed)
    for i in range(count):
        name = list(SHAPES)[i % len(SHAPES)]
        (folder / name).mkdir(parents=True, exist_ok=True)
        fore, back = random.integers(0, 256, (2, 3))
        while abs(fore - back).sum() < 150:
            fore = random.integers(0, 256, 3)
        picture = Image.new("RGB", (LARGE, LARGE), tuple(back.tolist()))
        x, y = random.uniform(0.4, 0.6, 2) * LARGE
        radius, angle = random.uniform(0.2, 0.36) * LARGE, random.uniform(0, 2 * pi)
        colours = tuple(fore.tolist()), tuple(back.tolist())
        SHAPES[name](ImageDraw.Draw(picture), (float(x), float(y)), radius, angle, colours)
        pixels = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
        noisy = (pixels + random.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / name / f"{i:04d}.jpg", quality=90)
    return folder
