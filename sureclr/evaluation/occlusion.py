"""Which parts of an image raise a score: occlusion maps, and the check that they tell of what was
learned.

A window slides over the image and is filled with the image's mean colour; what the score loses is
what the window gave it (Zeiler & Fergus 2014, section 4.2). A cell of the map is the mean over the
windows that cover it: positive = it makes the score higher.

A map may show the image rather than what was learned (Adebayo et al. 2018, section 3): so it must
change when the weights are drawn anew, and much more than when it is measured again with another
fill. And covering the best cells first must lower the score faster than covering them in random
order.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sureclr.data.corruptions import to_uint8
from sureclr.data.counter_rng import uniform_numbers
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.evaluation.calibration import Embed
from sureclr.maths import metrics

Result = dict[str, Any]
Score = Callable[[Embeddings], Tensor]

GRID = 8  # cells a side, about
WINDOW = 2  # cells a side that are covered at once
STEPS = 8  # points of the deletion curve after the whole image
PASSES = (
    0.5  # the correlation with randomised weights must stay below this part of that of a repeat
)
ORDER = 3005  # stream of seeds


@dataclass(frozen=True)
class Question:
    """What does a network say of one image?

    Attributes:
        image: a set of one.
        score: network -> (table of k versions of the image -> (k,) float64).
    """

    image: ImageSet
    score: Callable[[Embed], Score]


@dataclass(frozen=True)
class Grid:
    """A square image in g x g cells of `cell` pixels (the last may be smaller), and the windows
    that slide over them.

    Attributes:
        covers: (k, g, g) bool, the cells that each of k = (g + WINDOW - 1)^2 windows covers.
    """

    size: int
    cell: int
    covers: Tensor

    @staticmethod
    def of(size: int) -> "Grid":
        cell = max(1, round(size / GRID))
        g = -(-size // cell)
        start = torch.arange(1 - WINDOW, g)
        line = (torch.arange(g) >= start[:, None]) & (
            torch.arange(g) < start[:, None] + WINDOW
        )  # (g + WINDOW - 1, g)
        return Grid(size, cell, (line[:, None, :, None] & line[None, :, None, :]).flatten(0, 1))

    def pixels(self, cells: Tensor) -> Tensor:
        """(k, g, g) -> (k, size, size)."""
        return cells.repeat_interleave(self.cell, 1).repeat_interleave(self.cell, 2)[
            :, : self.size, : self.size
        ]

    def map(self, change: Tensor) -> Tensor:
        """(k,) by window -> (g, g): each cell the mean over the WINDOW^2 windows that cover it, as
        many at the border as inside.
        """
        return torch.einsum("k,kij->ij", change.double(), self.covers.double()) / WINDOW**2


def own_mean(image: ImageSet) -> Tensor:
    """(1, c, 1, 1) uint8, the image's mean colour."""
    return to_uint8(image.images.float().mean((2, 3), keepdim=True) / 255)


def covered(image: ImageSet, fill: Tensor, masks: Tensor) -> ImageSet:
    """k copies of one image with the pixels of masks (k, h, w) taken from `fill`, broadcast to (1,
    c, h, w).
    """
    copies = image.select([0] * len(masks))
    return replace(copies, images=torch.where(masks[:, None].to(fill.device), fill, image.images))


def occluded(embed: Embed, question: Question, grid: Grid, fill: Tensor | None = None) -> Tensor:
    """(g, g) float64: what the score of an image loses where a cell is covered; by its own mean
    colour, or by `fill` (1, c, h, w).
    """
    nothing = torch.zeros(1, grid.size, grid.size, dtype=torch.bool)
    fill = own_mean(question.image) if fill is None else fill
    value = question.score(embed)(
        embed(covered(question.image, fill, torch.cat([nothing, grid.pixels(grid.covers)])))
    )
    return grid.map(value[0] - value[1:])


# --- Sanity ---------------------------------------------------------------------------


def sanity(
    embed: Embed,
    embed_randomised: Embed,
    questions: list[Question],
    maps: list[Tensor],
    grid: Grid,
    seed: int,
) -> Result:
    """Do the maps (m of (g, g)) depend on the weights, are they repeatable, and do they find what
    matters? Means over the m maps.

    passed: the rank correlation with the maps of randomised weights is, in size, below half of that
        with the maps of another fill (the
    mean of these images), and covering the best cells first leaves a lower mean score than covering
    in random order.
    """
    mean = to_uint8(
        torch.cat([q.image.images for q in questions]).float().mean(0, keepdim=True) / 255
    )
    repeat = rank_correlations(maps, [occluded(embed, q, grid, mean) for q in questions])
    changed = rank_correlations(maps, [occluded(embed_randomised, q, grid) for q in questions])
    deletion = deleted(embed, questions, maps, grid, seed)
    found_by_map = np.mean(deletion["by_map"]) < np.mean(deletion["at_random"])
    return {
        "n": len(maps),
        "rank_correlation_randomised": float(changed.mean()),
        "rank_correlation_repeat": float(repeat.mean()),
        "rank_correlation_randomised_sd": float(changed.std()),
        "rank_correlation_repeat_sd": float(repeat.std()),
        "deletion": deletion,
        "passed": bool(abs(float(changed.mean())) < PASSES * float(repeat.mean()) and found_by_map),
    }


def rank_correlations(maps: list[Tensor], others: list[Tensor]) -> Tensor:
    """(m,) Spearman's, map by map; a map without any difference goes with none: 0."""
    return torch.tensor(
        [metrics.spearman(a.flatten(), b.flatten()) for a, b in zip(maps, others, strict=True)]
    ).nan_to_num(0)


def deleted(
    embed: Embed, questions: list[Question], maps: list[Tensor], grid: Grid, seed: int
) -> Result:
    """Mean score after covering a share of the cells: those first that the map says raise it, and
    in random order.
    """
    shares = torch.arange(STEPS + 1) / STEPS
    chance = uniform_numbers(torch.arange(len(maps)) + (seed << 32), ORDER, maps[0].numel()).view(
        -1, *maps[0].shape
    )

    def curve(order: list[Tensor]) -> list[float]:
        scores = [
            q.score(embed)(
                embed(covered(q.image, own_mean(q.image), grid.pixels(best_cells(m, shares))))
            )
            for q, m in zip(questions, order, strict=True)
        ]
        return torch.stack(scores).mean(0).tolist()

    return {"shares": shares.tolist(), "by_map": curve(maps), "at_random": curve(list(chance))}


def best_cells(m: Tensor, shares: Tensor) -> Tensor:
    """(s, g, g) bool: the share of the cells with the highest values of m (g, g)."""
    rank = m.flatten().argsort(descending=True, stable=True).argsort().view(m.shape)
    return rank < (shares * m.numel()).round()[:, None, None]
