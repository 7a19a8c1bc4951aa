"""Which parts of an image raise a score: occlusion maps, and a sanity check of them.

A window slides over the image and is filled with the image's mean colour; the loss of score is what
the window gave to it (Zeiler & Fergus 2014, section 4.2). A cell of the map is the mean over the
windows that cover it; a positive cell raises the score.

A map may show the image rather than what was learned (Adebayo et al. 2018, section 3). So it must
change if the weights are drawn anew, and much more than if it is measured again with another fill.
And covering the best cells first must lower the score faster than covering cells at random.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from sureclr.data.corruptions import to_uint8
from sureclr.data.counter_rng import uniform_numbers
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.evaluation.results import DeletionCurve, SanityCheck
from sureclr.evaluation.scores import Embed
from sureclr.evaluation.tables import finite_or_none
from sureclr.maths.metrics import spearman

Score = Callable[[Embeddings], Tensor]

GRID = 8  # cells on a side, about
WINDOW = 2  # cells on a side that are covered at once
STEPS = 8  # points of the deletion curve after the whole image
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
        passed=passes(float(randomised.mean()), float(repeat.mean()), deletion),
    )


def passes(randomised: float, repeat: float, deletion: DeletionCurve) -> bool:
    """Return whether maps pass the check.

    The rank correlation with the maps of randomised weights must be, in size, below half of that
    with the maps of another fill; and covering the best cells first must leave a lower mean score
    than covering cells at random.
    """
    depends_on_weights = abs(randomised) < SMALL_SHARE * repeat
    return depends_on_weights and mean(deletion.by_map) < mean(deletion.at_random)


def rank_correlations(maps: list[Tensor], others: list[Tensor]) -> Tensor:
    """Return Spearman's correlation, map by map, (m,); 0 for a map without any difference."""
    return torch.tensor(
        [spearman(a.flatten(), b.flatten()) for a, b in zip(maps, others, strict=True)]
    ).nan_to_num(0)


def delete_cells(
    embed: Embed, questions: list[Question], maps: list[Tensor], grid: Grid, seed: int
) -> DeletionCurve:
    """Return the mean score after covering a share of the cells, by two orders.

    One order begins with the cells that the map says raise the score; the other is random.
    """
    shares = torch.arange(STEPS + 1) / STEPS
    chance = uniform_numbers(torch.arange(len(maps)) + (seed << 32), ORDER, maps[0].numel())

    def curve(orders: list[Tensor]) -> tuple[float, ...]:
        scores = []
        for question, order in zip(questions, orders, strict=True):
            masks = grid.pixels(best_cells(order, shares))
            harmed = cover(question.image, mean_colour(question.image), masks)
            scores.append(question.score(embed)(embed(harmed)))
        return tuple(torch.stack(scores).mean(0).tolist())

    return DeletionCurve(
        shares=tuple(shares.tolist()),
        by_map=curve(maps),
        at_random=curve(list(chance.view(-1, *maps[0].shape))),
    )


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
