"""Why it is unsure: which parts of an image make it certain, and which make it evidence for another
image.

By occlusion, with a sanity check: occlusion.py. A loss without a radius has no evidence; its pairs
    are explained by the cosine.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sureclr.data.counter_rng import shuffled
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.calibration import Embed
from sureclr.evaluation.certainty_quality import json_able
from sureclr.evaluation.feature_space import kernel_dimension
from sureclr.evaluation.occlusion import WINDOW, Grid, Question, Score, occluded, sanity
from sureclr.maths.neighbours import top_k
from sureclr.maths.sphere import evidence
from sureclr.progress import SILENT, Progress
from sureclr.training.run import Run

Result = dict[str, Any]
Agreement = Callable[[Embeddings, Embeddings], Tensor]
Answered = Callable[[list[Question]], tuple[list[Tensor], Result]]

EACH = 8  # surest, least sure and other images that are explained
ANCHORS = 3  # images whose evidence for others is explained
CHOSEN = 3004  # stream of seeds


def explanation(
    run: Run,
    images: ImageSet,
    table: Embeddings,
    progress: Progress = SILENT,
) -> Result:
    """`explain` of a run, its weights against freshly drawn ones."""
    other = randomised(run)
    return explain(
        lambda some: run.embed(some, progress),
        lambda some: other.embed(some, progress),
        images,
        table,
    )


def randomised(run: Run) -> Run:
    """The same network with weights of another seed; the certainty head's last layer, 0 at the
    start of training, is drawn as well.
    """
    fresh = run.redrawn(run.config.seed + 1)
    model = fresh.model.cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fresh.config.seed)
        for layer in model.certainty.modules() if model.certainty is not None else ():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    return replace(run, model=model.to(run.model.device), objective=fresh.objective)


def explain(
    embed: Embed, embed_randomised: Embed, images: ImageSet, table: Embeddings, seed: int = 0
) -> Result:
    """Maps of the certainty and of the evidence of some test images, and the sanity check of both;
    JSON-able.

    Args:
        embed, embed_randomised: the trained network, and the same with weights drawn anew; they
            poll for a stop themselves.
        images, table: row by row. seed: of the images chosen at random.
    Raises:
        UserError: fewer than three images.
    """
    grid = Grid.of(images.images.shape[-1])

    def answered(questions: list[Question]) -> tuple[list[Tensor], Result]:
        maps = [occluded(embed, question, grid) for question in questions]
        return maps, sanity(embed, embed_randomised, questions, maps, grid, seed)

    about = {
        "method": f"occlusion by the image's mean colour, windows of {WINDOW} x {WINDOW} cells",
        "patch": grid.cell * WINDOW,
        "cell": grid.cell,
        "grid": list(grid.covers.shape[1:]),
    }
    between = pairs_explained(answered, images, table, seed)
    return json_able(about | between | certainty_explained(answered, images, table, seed, between))


def rounded(m: Tensor) -> list[list[float]]:
    """Four significant digits: a page of maps stays small."""
    return [[float(f"{value:.4g}") for value in row] for row in m.tolist()]


def judged_rows(images: ImageSet) -> Tensor:
    """(m,) rows of the test images, of all images where there is none."""
    rows = torch.from_numpy(
        images.rows("test") if "test" in images.split else np.arange(len(images))
    )
    if len(rows) < 3:
        raise UserError(
            f"explanations compare images, and {images.name} has {len(rows)} to look at; give three"
            " or more."
        )
    return rows


# --- Certainty ------------------------------------------------------------------------


def certainty_explained(
    answered: Answered, images: ImageSet, table: Embeddings, seed: int, between: Result
) -> Result:
    """The certainty of some images; without one, the check is that of the pairs."""
    if table.certainty is None:
        return {
            "score": between["evidence_score"],
            "certainty": [],
            "sanity": between["sanity_evidence"],
            "certainty_skipped": "this loss has no certainty to explain; train with --loss sure.",
        }
    rows = chosen(images, table.certainty, seed)
    maps, check = answered(
        [Question(images.select([int(row)]), lambda embed: certainty) for row in rows]
    )
    told = [
        {"row": int(row), "value": float(table.certainty[row]), "map": rounded(m)}
        for row, m in zip(rows, maps, strict=True)
    ]
    return {
        "score": "certainty" if table.radius is None else "radius",
        "certainty": told,
        "sanity": check,
    }


def certainty(seen: Embeddings) -> Tensor:
    assert seen.certainty is not None
    return seen.certainty.double()


def chosen(images: ImageSet, score: Tensor, seed: int) -> Tensor:
    """(m,) rows: the surest, the least sure, and others by seed; each once."""
    rows = judged_rows(images)
    order = rows[score[rows].argsort(descending=True, stable=True)]
    ends = torch.cat([order[:EACH], order[EACH:][-EACH:]])
    others = shuffled(rows, CHOSEN, seed)
    return torch.cat([ends, others[~torch.isin(others, ends)][:EACH]])


# --- Pairs ----------------------------------------------------------------------------


def pairs_explained(answered: Answered, images: ImageSet, table: Embeddings, seed: int) -> Result:
    """What some pairs of images say of being the same, and what either image gives to it while the
    other stays whole.
    """
    found, (name, agree) = pairs(images, table, seed), agreement(table)
    sides = list(dict.fromkeys(side for _, i, j in found for side in ((i, j), (j, i))))
    maps, check = answered(
        [beside(images.select([i]), images.select([j]), agree) for i, j in sides]
    )
    by_side = dict(zip(sides, map(rounded, maps), strict=True))

    def told(kind: str, i: int, j: int) -> Result:
        value = float(agree(table.select(np.asarray([i])), table.select(np.asarray([j]))))
        return {
            "rows": [i, j],
            "kind": kind,
            "value": value,
            "maps": [by_side[i, j], by_side[j, i]],
        }

    return {
        "evidence_score": name,
        "evidence": [told(*pair) for pair in found],
        "sanity_evidence": check,
    }


def agreement(table: Embeddings) -> tuple[str, Agreement]:
    """Its name and, of rows side by side, the evidence s(u, u') in nats; the cosine of the
    directions where there is no radius.
    """
    if table.radius is None:
        return "cosine", lambda a, b: F.cosine_similarity(
            a.direction.double(), b.direction.double()
        )
    m = kernel_dimension(table)
    return "evidence", lambda a, b: evidence(a.posterior, b.posterior, m).double()


def beside(image: ImageSet, other: ImageSet, agree: Agreement) -> Question:
    """Does this image agree with the other one, whole, as the same network sees it?"""

    def score(embed: Embed) -> Score:
        seen = embed(other)
        return lambda table: agree(table, seen)

    return Question(image, score)


def pairs(images: ImageSet, table: Embeddings, seed: int) -> list[tuple[str, int, int]]:
    """(kind, row, row): some images, each with itself, its nearest neighbour, one of its class and
    one of another, where there is one.
    """
    order, found = shuffled(judged_rows(images), CHOSEN, seed), []
    for at in range(min(ANCHORS, len(order))):
        i, others = (
            int(order[at]),
            order.roll(-at)[1:],
        )  # rolled: no two anchors take the same partner, or each other
        near = others[top_k(table.features[[i]], table.features[others], 1)[1][0, 0]]
        known, alike = (
            (table.labels[others] >= 0) & (table.labels[i] >= 0),
            table.labels[others] == table.labels[i],
        )
        same, different = others[known & alike], others[known & ~alike]
        found += [("same image", i, i), ("nearest neighbour", i, int(near))]
        found += [("same class", i, int(same[0]))] if len(same) else []
        found += [("different", i, int((different if len(different) else others)[0]))]
    return found
