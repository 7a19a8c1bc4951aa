"""Which parts of an image make it certain, and which make it evidence for another image.

The maps are made by occlusion, with a sanity check (occlusion_maps.py). A loss without a radius has
no evidence; then pairs are explained by the cosine.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sureclr.data.counter_rng import shuffled
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.occlusion_maps import WINDOW, Grid, Question, Score, check_maps, occlude
from sureclr.evaluation.results import (
    CertaintyMap,
    ExplanationResult,
    Heatmap,
    PairMaps,
    SanityCheck,
)
from sureclr.evaluation.scores import Embed
from sureclr.evaluation.tables import evidence_dimension
from sureclr.maths.neighbours import top_k
from sureclr.maths.sphere import evidence

if TYPE_CHECKING:
    from sureclr.evaluation.inputs import EvaluationInputs

Agreement = Callable[[Embeddings, Embeddings], Tensor]

EACH = 8  # most certain, least certain and other images that are explained
ANCHORS = 3  # images whose evidence for others is explained
CHOSEN = 3004  # stream of seeds
NO_CERTAINTY = 'this loss has no certainty to explain; train with loss="sure"'


def evaluate_explanation(inputs: "EvaluationInputs") -> ExplanationResult:
    """Explain some test images of a run, and check the maps against freshly drawn weights.

    Raises:
        UserError: the images are not those that the run was trained on, or there are fewer than
            three.
    """
    inputs.require_own_images("explanation")
    return explain(inputs.embed, inputs.embed_randomised, inputs.images, inputs.table)


@dataclass(frozen=True)
class Explainer:
    """Makes maps and checks them.

    Attributes:
        embed: the trained network.
        embed_randomised: the same network with other random weights.
        grid: of the images.
        seed: of random orders.
    """

    embed: Embed
    embed_randomised: Embed
    grid: Grid
    seed: int

    def __call__(self, questions: list[Question]) -> tuple[list[Heatmap], SanityCheck]:
        """Return the maps of questions, rounded, and their check."""
        maps = [occlude(self.embed, question, self.grid) for question in questions]
        check = check_maps(self.embed, self.embed_randomised, questions, maps, self.grid, self.seed)
        return [round_map(m) for m in maps], check


def explain(
    embed: Embed,
    embed_randomised: Embed,
    images: ImageSet,
    table: Embeddings,
    seed: int = 0,
    each: int = EACH,
    anchors: int = ANCHORS,
) -> ExplanationResult:
    """Map the certainty and the evidence of some test images, and check the maps.

    Args:
        embed: the trained network.
        embed_randomised: the same network with other random weights.
        images: whole images that fit the model.
        table: their embeddings, row by row.
        seed: of the images that are chosen at random.
        each: most certain, least certain and other images, so many of each.
        anchors: images whose pairs with others are explained.

    Raises:
        UserError: there are fewer than three images.
    """
    grid = Grid.of(images.images.shape[-1])
    explainer = Explainer(embed, embed_randomised, grid, seed)
    evidence_score, agree = agreement(table)
    pairs = choose_pairs(images, table, seed, anchors)
    evidence_maps, sanity_evidence = explain_pairs(explainer, images, table, pairs, agree)
    score, sanity = None, None
    certainty_maps: tuple[CertaintyMap, ...] = ()
    if table.certainty is not None:
        rows = choose_rows(images, table.certainty, seed, each)
        certainty_maps, sanity = explain_certainty(explainer, images, table.certainty, rows)
        score = "certainty" if table.radius is None else "radius"
    return ExplanationResult(
        method=f"occlusion by the image's mean colour, windows of {WINDOW} x {WINDOW} cells",
        patch=grid.cell * WINDOW,
        cell=grid.cell,
        grid=(grid.covers.shape[1], grid.covers.shape[2]),
        score=score,
        certainty=certainty_maps,
        sanity=sanity,
        certainty_skipped="" if score else NO_CERTAINTY,
        evidence_score=evidence_score,
        evidence=evidence_maps,
        sanity_evidence=sanity_evidence,
    )


def round_map(m: Tensor) -> Heatmap:
    """Round a map to four significant digits, so that a page of maps stays small."""
    return tuple(tuple(float(f"{value:.4g}") for value in row) for row in m.tolist())


def rows_to_explain(images: ImageSet) -> Tensor:
    """Return the (m,) rows of the test images, or of all images if there are none.

    Raises:
        UserError: there are fewer than three.
    """
    rows = images.rows("test") if "test" in images.split else np.arange(len(images))
    if len(rows) < 3:
        raise UserError(
            f"explanations compare images and need three or more, and {images.name} has"
            f" {len(rows)}; add images."
        )
    return torch.from_numpy(rows)


# --- Certainty ------------------------------------------------------------------------


def explain_certainty(
    explainer: Explainer, images: ImageSet, certainty: Tensor, rows: Tensor
) -> tuple[tuple[CertaintyMap, ...], SanityCheck]:
    """Map the certainty of the images in some rows."""
    questions = [Question(images.select([int(row)]), lambda embed: read_certainty) for row in rows]
    maps, check = explainer(questions)
    certainty_maps = tuple(
        CertaintyMap(row=int(row), value=float(certainty[row]), map=m)
        for row, m in zip(rows, maps, strict=True)
    )
    return certainty_maps, check


def read_certainty(table: Embeddings) -> Tensor:
    """Return the certainty, (n,) float64."""
    assert table.certainty is not None
    return table.certainty.double()


def choose_rows(images: ImageSet, score: Tensor, seed: int, each: int = EACH) -> Tensor:
    """Choose the most certain images, the least certain, and others by seed; no row twice.

    Returns:
        (m,) rows in this order, at most `each` of each.
    """
    rows = rows_to_explain(images)
    order = rows[score[rows].argsort(descending=True, stable=True)]
    ends = torch.cat([order[:each], order[each:][-each:]])
    others = shuffled(rows, CHOSEN, seed)
    return torch.cat([ends, others[~torch.isin(others, ends)][:each]])


# --- Pairs ----------------------------------------------------------------------------


def explain_pairs(
    explainer: Explainer,
    images: ImageSet,
    table: Embeddings,
    pairs: list[tuple[str, int, int]],
    agree: Agreement,
) -> tuple[tuple[PairMaps, ...], SanityCheck]:
    """Map what either image of a pair adds to their agreement while the other stays whole."""
    sides = list(dict.fromkeys(side for _, i, j in pairs for side in ((i, j), (j, i))))
    maps, check = explainer(
        [compare_with(images.select([i]), images.select([j]), agree) for i, j in sides]
    )
    by_side = dict(zip(sides, maps, strict=True))
    pair_maps = tuple(
        PairMaps(
            rows=(i, j),
            kind=kind,
            value=float(agree(table.select(np.asarray([i])), table.select(np.asarray([j])))),
            maps=(by_side[i, j], by_side[j, i]),
        )
        for kind, i, j in pairs
    )
    return pair_maps, check


def agreement(table: Embeddings) -> tuple[str, Agreement]:
    """Return the name of a score of pairs, and the score of rows that stand side by side.

    It is the evidence s(u, u') in nats, or the cosine of the directions without a radius.
    """
    if table.radius is None:
        return "cosine", lambda a, b: cosine_similarity(a.direction.double(), b.direction.double())
    dimension = evidence_dimension(table)
    return "evidence", lambda a, b: evidence(a.posterior, b.posterior, dimension).double()


def compare_with(image: ImageSet, other: ImageSet, agree: Agreement) -> Question:
    """Return the question how far an image agrees with another one, which stays whole."""

    @cache  # five maps and curves of the two networks ask for it
    def score(embed: Embed) -> Score:
        whole = embed(other)
        return lambda table: agree(table, whole)

    return Question(image, score)


def choose_pairs(
    images: ImageSet, table: Embeddings, seed: int, anchors: int = ANCHORS
) -> list[tuple[str, int, int]]:
    """Choose pairs of images, (kind, row, row).

    Each anchor is paired with itself, its nearest neighbour, an image of its class and an image of
    another class, where there are such images.
    """
    order, pairs = shuffled(rows_to_explain(images), CHOSEN, seed), []
    for at in range(min(anchors, len(order))):
        # Rolled, so that two anchors have different partners and are not each other's
        i, others = int(order[at]), order.roll(-at)[1:]
        near = others[top_k(table.features[[i]], table.features[others], 1)[1][0, 0]]
        known = (table.labels[others] >= 0) & (table.labels[i] >= 0)
        alike = table.labels[others] == table.labels[i]
        same, different = others[known & alike], others[known & ~alike]
        pairs += [("same image", i, i), ("nearest neighbour", i, int(near))]
        pairs += [("same class", i, int(same[0]))] if len(same) else []
        pairs += [("different", i, int((different if len(different) else others)[0]))]
    return pairs
