"""Why it is unsure: which parts of an image make it certain, and which make it evidence for another image; by occlusion.

A window slides over the image and is filled with the image's mean colour; what the score loses is what the window gave it
(Zeiler & Fergus 2014, section 4.2). A cell of the map is the mean over the windows that cover it: positive = it makes the score higher.

A map may show the image rather than what was learned (Adebayo et al. 2018, section 3): so it must change when the weights are drawn
anew, and much more than when it is measured again with another fill. And covering the best cells first must lower the score faster
than covering them in random order.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sureclr.data.corruptions import to_uint8
from sureclr.data.counter_rng import hashed, uniform
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.calibration import Embed
from sureclr.evaluation.geometry import kernel_dimension
from sureclr.evaluation.uncertainty import json_able
from sureclr.maths import metrics
from sureclr.maths.neighbours import top_k
from sureclr.maths.sphere import Posterior, evidence
from sureclr.models.embed import Embeddings
from sureclr.training.run import Run, build

Result = dict[str, Any]
Read = Callable[[Embeddings], Tensor]

GRID = 8  # cells a side, about
WINDOW = 2  # cells a side that are covered at once
EACH = 8  # surest, least sure and other images that are explained
ANCHORS = 2  # images whose evidence for others is explained
STEPS = 8  # points of the deletion curve after the whole image
PASSES = 0.5  # the correlation with randomised weights must stay below this part of that of a repeat
CHOSEN, ORDER = 3004, 3005  # streams of seeds


@dataclass(frozen=True)
class Grid:
    """A square image in g x g cells of `cell` pixels (the last may be smaller), and the windows that slide over them.

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
        line = (torch.arange(g) >= start[:, None]) & (torch.arange(g) < start[:, None] + WINDOW)  # (g + WINDOW - 1, g)
        return Grid(size, cell, (line[:, None, :, None] & line[None, :, None, :]).flatten(0, 1))

    def pixels(self, cells: Tensor) -> Tensor:
        """(k, g, g) -> (k, size, size)."""
        return cells.repeat_interleave(self.cell, 1).repeat_interleave(self.cell, 2)[:, : self.size, : self.size]

    def map(self, change: Tensor) -> Tensor:
        """(k,) by window -> (g, g): each cell the mean over the windows that cover it."""
        return (change.double() @ self.covers.double().flatten(1) / self.covers.sum(0).flatten()).view(self.covers.shape[1:])


def explanation(run: Run, images: ImageSet, table: Embeddings, each: Callable[[int, int], None] = lambda done, total: None) -> Result:
    """`explain` of a run, its weights against freshly drawn ones."""
    other = randomised(run)
    return explain(lambda some: run.embed(some, each), lambda some: other.embed(some, each), images, table)


def randomised(run: Run) -> Run:
    """The same network with weights of another seed; the certainty head's last layer, 0 at the start of training, is drawn as well."""
    config = replace(run.config, init="random", seed=run.config.seed + 1)
    model, objective = build(config, run.channels, run.model.mean, run.model.std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for layer in model.certainty.modules() if model.certainty is not None else ():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    return replace(run, model=model.to(run.model.mean.device).eval(), objective=objective)


def explain(embed: Embed, embed_randomised: Embed, images: ImageSet, table: Embeddings, seed: int = 0) -> Result:
    """Maps of the certainty and of the evidence of some test images, and the sanity check; JSON-able.

    Args:
        embed, embed_randomised: the trained network, and the same with weights drawn anew; they poll for a stop themselves.
        images, table: row by row. seed: of the images chosen at random.
    Returns:
        {"skipped": why} where the loss has no certainty. Raises UserError below three images.
    """
    if table.certainty is None:
        return {"skipped": "this loss has no certainty and no evidence to explain; train with --loss sure."}
    score = "certainty" if table.radius is None else "radius"
    grid, rows = Grid.of(images.images.shape[-1]), chosen(images, table.certainty, seed)
    some = images.select(rows)
    maps = [occluded(embed, image, own_mean(image), grid, certainty) for image in split(some)]
    told = [{"row": int(row), "value": float(table.certainty[row]), "map": rounded(m)} for row, m in zip(rows, maps, strict=True)]
    return json_able({
        "method": f"occlusion by the image's mean colour, windows of {WINDOW} x {WINDOW} cells", "score": score,
        "patch": grid.cell * WINDOW, "cell": grid.cell, "grid": list(grid.covers.shape[1:]), "certainty": told,
        "evidence": [] if table.radius is None else pairs_explained(embed, images, table, grid, seed),
        "sanity": sanity(embed, embed_randomised, some, maps, grid, seed)})


def rounded(m: Tensor) -> list[list[float]]:
    """Four significant digits: a page of maps stays small."""
    return [[float(f"{value:.4g}") for value in row] for row in m.tolist()]


def split(images: ImageSet) -> list[ImageSet]:
    """Sets of one image."""
    return [images.select([i]) for i in range(len(images))]


def judged_rows(images: ImageSet) -> Tensor:
    """(m,) rows of the test images, of all images where there is none."""
    return torch.from_numpy(images.rows("test") if "test" in images.split else np.arange(len(images)))


def shuffled(rows: Tensor, seed: int) -> Tensor:
    return rows[hashed(rows + (seed << 32), CHOSEN, 1)[:, 0].argsort()]


def chosen(images: ImageSet, score: Tensor, seed: int) -> Tensor:
    """(m,) rows: the surest, the least sure, and others by seed; each once."""
    rows = judged_rows(images)
    if len(rows) < 3:
        raise UserError(f"explanations compare images, and {images.name} has {len(rows)} to look at; give three or more.")
    order = rows[score[rows].argsort(descending=True, stable=True)]
    ends = torch.cat([order[:EACH], order[EACH:][-EACH:]])
    others = shuffled(rows, seed)
    return torch.cat([ends, others[~torch.isin(others, ends)][:EACH]])


# --- Maps -----------------------------------------------------------------------------------------------------------------------


def certainty(seen: Embeddings) -> Tensor:
    assert seen.certainty is not None
    return seen.certainty.double()


def own_mean(image: ImageSet) -> Tensor:
    """(1, c, 1, 1) uint8, the image's mean colour."""
    return to_uint8(image.images.float().mean((2, 3), keepdim=True) / 255)


def covered(image: ImageSet, fill: Tensor, masks: Tensor) -> ImageSet:
    """k copies of one image with the pixels of masks (k, h, w) taken from `fill`, broadcast to (1, c, h, w)."""
    copies = image.select([0] * len(masks))
    return replace(copies, images=torch.where(masks[:, None].to(fill.device), fill, image.images))


def occluded(embed: Embed, image: ImageSet, fill: Tensor, grid: Grid, read: Read) -> Tensor:
    """(g, g) float64: what the score of one image loses where a cell is covered."""
    nothing = torch.zeros(1, grid.size, grid.size, dtype=torch.bool)
    value = read(embed(covered(image, fill, torch.cat([nothing, grid.pixels(grid.covers)]))))
    return grid.map(value[0] - value[1:])


def pairs_explained(embed: Embed, images: ImageSet, table: Embeddings, grid: Grid, seed: int) -> list[Result]:
    """The evidence s(u, u') of some pairs of images, nats, and what either image gives to it."""
    found = []
    for kind, i, j in pairs(images, table, seed):
        value, first = evidence_map(embed, images, table, grid, i, j)
        second = first if i == j else evidence_map(embed, images, table, grid, j, i)[1]
        found.append({"rows": [i, j], "kind": kind, "value": value, "maps": [rounded(first), rounded(second)]})
    return found


def evidence_map(embed: Embed, images: ImageSet, table: Embeddings, grid: Grid, i: int, j: int) -> tuple[float, Tensor]:
    """s of whole images i and j, and (g, g) what it loses where a cell of i is covered while j stays whole."""
    assert table.radius is not None
    m, other = kernel_dimension(table), Posterior(table.direction[[j]], table.radius[[j]])

    def read(seen: Embeddings) -> Tensor:
        return evidence(seen.posterior, other, m).double()

    image = images.select([i])
    return float(read(table.select(np.asarray([i])))), occluded(embed, image, own_mean(image), grid, read)


def pairs(images: ImageSet, table: Embeddings, seed: int) -> list[tuple[str, int, int]]:
    """(kind, row, row): two images, each with itself, its nearest neighbour, one of its class and one of another, where there is one."""
    rows = judged_rows(images)
    order, found = shuffled(rows, seed), []
    for i in order[:ANCHORS]:
        others = order[order != i]
        near = others[top_k(table.features[[int(i)]], table.features[others], 1)[1][0, 0]]
        known, alike = (table.labels[others] >= 0) & (table.labels[i] >= 0), table.labels[others] == table.labels[i]
        same, different = others[known & alike], others[known & ~alike]
        found += [("same image", int(i), int(i)), ("nearest neighbour", int(i), int(near))]
        found += [("same class", int(i), int(same[0]))] if len(same) else []
        found += [("different", int(i), int((different if len(different) else others)[0]))]
    return found


# --- Sanity ---------------------------------------------------------------------------------------------------------------------


def sanity(embed: Embed, embed_randomised: Embed, images: ImageSet, maps: list[Tensor], grid: Grid, seed: int) -> Result:
    """Do the maps (m of (g, g)) depend on the weights, are they repeatable, and do they find what matters? Means over the m images.

    passed: the rank correlation with the maps of randomised weights is, in size, below half of that with the maps of another fill (the
    mean of these images), and covering the best cells first leaves a lower mean score than covering in random order.
    """
    mean = to_uint8(images.images.float().mean(0, keepdim=True) / 255)
    single = split(images)
    again = [occluded(embed, image, mean, grid, certainty) for image in single]
    drawn = [occluded(embed_randomised, image, own_mean(image), grid, certainty) for image in single]
    repeat, changed = (rank_correlations(maps, other) for other in (again, drawn))
    deletion = deleted(embed, single, maps, grid, seed)
    found_by_map = np.mean(deletion["by_map"]) < np.mean(deletion["at_random"])
    return {"n": len(images), "rank_correlation_randomised": float(changed.mean()), "rank_correlation_repeat": float(repeat.mean()),
            "rank_correlation_randomised_sd": float(changed.std()), "rank_correlation_repeat_sd": float(repeat.std()), "deletion": deletion,
            "passed": bool(abs(float(changed.mean())) < PASSES * float(repeat.mean()) and found_by_map)}


def rank_correlations(maps: list[Tensor], others: list[Tensor]) -> Tensor:
    """(m,) Spearman's, map by map; a map without any difference goes with none: 0."""
    return torch.tensor([metrics.spearman(a.flatten(), b.flatten()) for a, b in zip(maps, others, strict=True)]).nan_to_num(0)


def deleted(embed: Embed, images: list[ImageSet], maps: list[Tensor], grid: Grid, seed: int) -> Result:
    """Mean score after covering a share of the cells: those first that the map says raise it, and in random order."""
    shares = torch.arange(STEPS + 1) / STEPS
    chance = uniform(torch.arange(len(images)) + (seed << 32), ORDER, maps[0].numel()).view(-1, *maps[0].shape)
    curves = [torch.stack([certainty(embed(covered(image, own_mean(image), grid.pixels(best_cells(m, shares)))))
                           for image, m in zip(images, order, strict=True)]).mean(0).tolist() for order in (maps, list(chance))]
    return {"shares": shares.tolist(), "by_map": curves[0], "at_random": curves[1]}


def best_cells(m: Tensor, shares: Tensor) -> Tensor:
    """(s, g, g) bool: the share of the cells with the highest values of m (g, g)."""
    rank = m.flatten().argsort(descending=True, stable=True).argsort().view(m.shape)
    return rank < (shares * m.numel()).round()[:, None, None]
