"""Which parts of an image raise a score: occlusion maps, and a sanity check of them.

A window slides over the image and is filled with the image's mean colour; the loss of score is what
the window gave to it (Zeiler & Fergus 2014, section 4.2). A cell of the map is the mean over the
windows that cover it; a positive cell raises the score.

A map may show the image rather than what was learned (Adebayo et al. 2018, section 3). So it must
change if the weights are drawn anew, and much more than if it is measured again with another fill.
And covering the best cells first must lower the score faster than covering cells at random, by
more than chance over the images explains.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sureclr.data.corruptions import to_uint8
from sureclr.data.counter_rng import uniform_numbers
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.evaluation.results import DeletionCurve, Interval, SanityCheck
from sureclr.evaluation.scores import Embed
from sureclr.evaluation.tables import finite_or_none
from sureclr.maths.metrics import spearman

Score = Callable[[Embeddings], Tensor]

GRID = 8  # cells on a side, about
WINDOW = 2  # cells on a side that are covered at once
STEPS = 8  # points of the deletion curve after the whole image
ORDERS = 3  # random orders of each image that the curve is compared with
RESAMPLED = 2000  # times the images are drawn again for the interval
# The correlation with randomised weights must be below this share of that with another fill
SMALL_SHARE = 0.5
ORDER = 3005  # stream of seeds


@dataclass(frozen=True)
class Question:
    """An image, and the score whose map is wanted.

    Attributes:
        image: a set of one.
        score: network -> (table of k versions of the image -> (k,) float64).
    """

    image: ImageSet
    score: Callable[[Embed], Score]


@dataclass(frozen=True)
class Grid:
    """A square image in g x g cells, and the windows that slide over them.

    Attributes:
        size: side of the image in pixels.
        cell: side of a cell in pixels; the last row and column may be smaller.
        covers: (k, g, g) bool, the cells that each of k = (g + WINDOW - 1)^2 windows covers.
    """

    size: int
    cell: int
    covers: Tensor

    @staticmethod
    def of(size: int) -> "Grid":
        """Return the grid of images with this side in pixels."""
        cell = max(1, round(size / GRID))
        g = -(-size // cell)
        start, line = torch.arange(1 - WINDOW, g)[:, None], torch.arange(g)
        inside = (line >= start) & (line < start + WINDOW)  # (g + WINDOW - 1, g)
        return Grid(size, cell, (inside[:, None, :, None] & inside[None, :, None, :]).flatten(0, 1))

    def pixels(self, cells: Tensor) -> Tensor:
        """Return masks of pixels (k, size, size) for masks of cells (k, g, g)."""
        pixels = cells.repeat_interleave(self.cell, 1).repeat_interleave(self.cell, 2)
        return pixels[:, : self.size, : self.size]

    def mean_over_windows(self, change: Tensor) -> Tensor:
        """Return the map (g, g) of changes by window (k,): each cell's mean over its windows.

        A cell has WINDOW^2 windows, at the border as well as inside.
        """
        return torch.einsum("k,kij->ij", change.double(), self.covers.double()) / WINDOW**2


def mean_colour(image: ImageSet) -> Tensor:
    """Return the mean colour of each image, (n, c, 1, 1) uint8."""
    return to_uint8(image.images.float().mean((2, 3), keepdim=True) / 255)


def cover(image: ImageSet, fill: Tensor, masks: Tensor) -> ImageSet:
    """Return k copies of an image with some pixels replaced.

    Args:
        image: a set of one.
        fill: the new pixels, broadcast to (1, c, h, w).
        masks: (k, h, w) bool, which pixels are replaced.
    """
    copies = image.select([0] * len(masks))
    return copies.with_pixels(torch.where(masks[:, None].to(fill.device), fill, image.images))


def occlude(embed: Embed, question: Question, grid: Grid, fill: Tensor | None = None) -> Tensor:
    """Return the map of a score: what it loses where a cell is covered.

    Args:
        embed: the network.
        question: the image and the score.
        grid: of the image.
        fill: (1, c, h, w), what covered pixels show; by default the image's mean colour.

    Returns:
        (g, g) float64.
    """
    nothing = torch.zeros(1, grid.size, grid.size, dtype=torch.bool)
    fill = mean_colour(question.image) if fill is None else fill
    masks = torch.cat([nothing, grid.pixels(grid.covers)])
    value = question.score(embed)(embed(cover(question.image, fill, masks)))
    return grid.mean_over_windows(value[0] - value[1:])


# --- Sanity ---------------------------------------------------------------------------


def check_maps(
    embed: Embed,
    embed_randomised: Embed,
    questions: list[Question],
    maps: list[Tensor],
    grid: Grid,
    seed: int,
) -> SanityCheck:
    """Check that maps depend on the weights, are repeatable, and find what matters.

    Args:
        embed: the trained network.
        embed_randomised: the same network with other random weights.
        questions: m images and scores.
        maps: theirs, (g, g) each.
        grid: of the images.
        seed: of the random order of cells.

    Returns:
        Means over the m maps, and whether they pass (see `passes`).
    """
    images = torch.cat([question.image.images for question in questions])
    other_fill = to_uint8(images.float().mean(0, keepdim=True) / 255)
    repeat = rank_correlations(maps, [occlude(embed, q, grid, other_fill) for q in questions])
    randomised = rank_correlations(maps, [occlude(embed_randomised, q, grid) for q in questions])
    deletion = delete_cells(embed, questions, maps, grid, seed)
    return SanityCheck(
        n=len(maps),
        rank_correlation_randomised=finite_or_none(randomised.mean()),
        rank_correlation_repeat=finite_or_none(repeat.mean()),
        rank_correlation_randomised_sd=finite_or_none(randomised.std()),
        rank_correlation_repeat_sd=finite_or_none(repeat.std()),
        deletion=deletion,
        passed=passes(float(randomised.mean()), float(repeat.mean()), deletion.interval),
    )


def passes(randomised: float, repeat: float, interval: Interval | None) -> bool:
    """Return whether maps pass the check.

    The rank correlation with the maps of randomised weights must be, in size, below half of that
    with the maps of another fill; and covering the best cells first must lower the score more than
    covering cells at random: the interval of the difference lies above 0.
    """
    depends_on_weights = abs(randomised) < SMALL_SHARE * repeat
    return depends_on_weights and interval is not None and interval[0] > 0


def rank_correlations(maps: list[Tensor], others: list[Tensor]) -> Tensor:
    """Return Spearman's correlation, map by map, (m,); 0 for a map without any difference."""
    return torch.tensor(
        [spearman(a.flatten(), b.flatten()) for a, b in zip(maps, others, strict=True)]
    ).nan_to_num(0)


def delete_cells(
    embed: Embed, questions: list[Question], maps: list[Tensor], grid: Grid, seed: int
) -> DeletionCurve:
    """Return the mean score after covering a share of the cells, by the map and at random.

    The map's order begins with the cells that it says raise the score. The curves meet where no
    cell is covered and where all are.
    """
    shares, cells = torch.arange(STEPS + 1) / STEPS, maps[0].numel()
    chance = uniform_numbers(torch.arange(len(maps)) + (seed << 32), ORDER, ORDERS * cells)
    curves = []
    for question, own, others in zip(questions, maps, chance, strict=True):
        orders = [own, *others.view(ORDERS, *own.shape)]
        masks = grid.pixels(torch.cat([best_cells(order, shares) for order in orders]))
        harmed = cover(question.image, mean_colour(question.image), masks)
        curves.append(question.score(embed)(embed(harmed)).view(1 + ORDERS, -1))
    found = torch.stack(curves)  # (m, orders, shares)
    by_map, at_random = found[:, 0], found[:, 1:].mean(1)
    area, interval = mean_and_interval((at_random - by_map).mean(1), seed)
    return DeletionCurve(
        shares=tuple(shares.tolist()),
        by_map=tuple(by_map.mean(0).tolist()),
        at_random=tuple(at_random.mean(0).tolist()),
        area=finite_or_none(area),
        interval=interval,
    )


def mean_and_interval(values: Tensor, seed: int) -> tuple[float, Interval | None]:
    """Return the mean of (m,) numbers, and its 95 % percentile interval by the bootstrap.

    There is no interval for a single number. Efron and Tibshirani 1993, chapter 13.
    """
    mean = float(values.mean())
    if len(values) < 2 or not values.isfinite().all():
        return mean, None
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (RESAMPLED, len(values)), generator=generator)
    low, high = values.cpu().double()[drawn].mean(1).quantile(torch.tensor([0.025, 0.975]).double())
    return mean, (float(low), float(high))


def best_cells(m: Tensor, shares: Tensor) -> Tensor:
    """Return the cells with the highest values of a map.

    Args:
        m: (g, g).
        shares: (s,) of the cells.

    Returns:
        (s, g, g) bool.
    """
    rank = m.flatten().argsort(descending=True, stable=True).argsort().view(m.shape)
    return rank < (shares * m.numel()).round()[:, None, None]
