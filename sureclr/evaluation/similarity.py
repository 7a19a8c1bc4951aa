"""Two runs side by side on the same images: are their representations alike, and do they agree?

Linear CKA (Kornblith et al. 2019, eq. 3) between features, between directions and between the
blocks of the encoders, with the unbiased estimate of HSIC (Song et al. 2012, eq. 5; Nguyen et al.
2021, eq. 3): the plain one is near 1 for unrelated representations whose dimension exceeds the
number of images.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sureclr.data.counter_rng import sample_rows
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet, convert
from sureclr.errors import UserError
from sureclr.evaluation.feature_space import predictions
from sureclr.files import json_able
from sureclr.maths import metrics
from sureclr.maths.neighbours import top_k
from sureclr.models.embedding import embed_blocks
from sureclr.progress import SILENT, Progress
from sureclr.training.run import Run

Result = dict[str, Any]
Blocks = dict[str, Tensor]

MOST = 10_000  # images compared, at most
IMAGES = 2000  # images whose blocks are compared, at most
NEAREST = 10  # neighbours whose overlap is told
LEAST = 4  # images that the unbiased estimate needs


def compare_runs(
    a: Run,
    b: Run,
    images: ImageSet,
    table_a: Embeddings,
    table_b: Embeddings,
    progress: Progress = SILENT,
) -> Result:
    """`compare` with the encoders' blocks, on a sample of the images (any size: each run takes its
    own).
    """
    rows = judged_rows(table_a, table_b)
    some = images.select(sample_rows(rows, IMAGES, 0))
    blocks = [
        embed_blocks(run.model, convert(some, run.size, run.channels), progress=progress)
        for run in (a, b)
    ]
    return compare(table_a, table_b, (a.path.name, b.path.name), (blocks[0], blocks[1]), progress)


def compare(
    a: Embeddings,
    b: Embeddings,
    names: tuple[str, str],
    blocks: tuple[Blocks, Blocks] | None = None,
    progress: Progress = SILENT,
) -> Result:
    """All of it on the test images of both, 10,000 at most (all images where they share no four);
    None for what one of the two has not.

    JSON-able. `neighbour_overlap_chance`: that of neighbours drawn at random.

    Args:
        a, b: the tables of two runs, of the same images in the same order.
        blocks: of each run block's name -> (n, c), of the same images.
        progress: reports how far the work is; may raise to stop.
    Raises:
        UserError: other images, or fewer than four.
    """
    if not same_images(a, b):
        raise UserError(
            "two runs are compared on the same images, and these tables differ in paths or labels"
            f" ({len(a)} and {len(b)} images); give runs of the same data."
        )
    rows = judged_rows(a, b).numpy()
    if len(rows) < LEAST:
        raise UserError(
            f"representations are compared on {LEAST} images or more, not on {len(rows)}; give"
            " more."
        )
    x, y = a.select(rows), b.select(rows)
    certainties = (
        None
        if x.certainty is None or y.certainty is None
        else metrics.spearman(x.certainty, y.certainty)
    )
    return json_able(
        {
            "runs": list(names),
            "n": len(rows),
            "cka_features": cka(x.features, y.features),
            "cka_directions": cka(x.direction, y.direction),
            "cka_blocks": None if blocks is None else between_blocks(*blocks),
            "certainty_spearman": certainties,
            "agreement_knn": agreement(a, b, rows, progress),
            "neighbour_overlap": neighbour_overlap(x.features, y.features),
            "neighbour_overlap_chance": min(NEAREST, len(rows) - 1) / (len(rows) - 1),
        }
    )


def same_images(a: Embeddings, b: Embeddings) -> bool:
    """Same paths, and no image with two labels: MNIST and Fashion-MNIST have the same paths,
    train/00000 and on.
    """
    if list(a.paths) != list(b.paths):
        return False
    both = (a.labels >= 0) & (b.labels >= 0)
    return not both.any() or (
        a.classes == b.classes and torch.equal(a.labels[both], b.labels[both])
    )


def judged_rows(a: Embeddings, b: Embeddings) -> Tensor:
    """(m,) rows that neither was trained on (runs of one folder with other seeds hold out other
    images). All rows where too few remain.
    """
    test = np.flatnonzero((a.split == "test") & (b.split == "test"))
    return sample_rows(torch.from_numpy(test if len(test) >= LEAST else np.arange(len(a))), MOST, 0)


def agreement(a: Embeddings, b: Embeddings, rows: Any, progress: Progress) -> float | None:
    """How often the kNN votes of the two name one class; None where one of them cannot vote."""
    votes = np.stack([predictions(table, rows, progress)["predicted"] for table in (a, b)])
    return None if (votes < 0).any() else float((votes[0] == votes[1]).mean())


def neighbour_overlap(x: Tensor, y: Tensor, k: int = NEAREST) -> float:
    """Share of an image's k nearest images that both representations (n, f), (n, g) name; mean over
    images.
    """
    k = min(k, len(x) - 1)
    near, other = (top_k(rows, rows, k, exclude_self=True)[1] for rows in (x, y))
    return float((near[:, :, None] == other[:, None, :]).any(2).double().mean())


def between_blocks(a: Blocks, b: Blocks) -> Result | None:
    """CKA of every block of the one with every block of the other."""
    if not a or not b:
        return None
    ours, theirs = ([centred(rows) for rows in blocks.values()] for blocks in (a, b))
    own_a, own_b = (
        [hsic(x, x) for x in some] for some in (ours, theirs)
    )  # once a block, not once a pair
    matrix = [
        [ratio(hsic(x, y), xx, yy) for y, yy in zip(theirs, own_b, strict=True)]
        for x, xx in zip(ours, own_a, strict=True)
    ]
    return {"names_a": list(a), "names_b": list(b), "matrix": matrix}


def cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of (n, f) and (n, g), rows the same images: HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y,
    y)), unbiased; NaN for constant ones.

    1 for representations that differ by a rotation, a shift and a scale; 0 on average, and a little
    below at times, for unrelated ones.
    """
    x, y = centred(x), centred(y)
    return ratio(hsic(x, y), hsic(x, x), hsic(y, y))


def centred(rows: Tensor) -> Tensor:
    """(n, f) float64, mean 0: HSIC is the same, its sums lose no digits."""
    return rows.double() - rows.double().mean(0)


def ratio(both: float, own: float, other: float) -> float:
    """NaN where one representation says nothing: the unbiased estimate of a few images can be 0 or
    below.
    """
    return both / (own * other) ** 0.5 if min(own, other) > 0 else float("nan")


def hsic(x: Tensor, y: Tensor) -> float:
    """Unbiased estimate of HSIC with linear kernels (Song et al. 2012, eq. 5), n >= 4, without any
    (n, n) matrix.

    K = x x^T and L = y y^T with their diagonals set to 0:
        [tr(K L) + 1^T K 1 1^T L 1 / ((n-1)(n-2)) - 2/(n-2) 1^T K L 1] / (n (n-3))
    """
    n, k, el = len(x), x.square().sum(1), y.square().sum(1)
    rows_k, rows_l = x @ x.sum(0) - k, y @ y.sum(0) - el  # K 1 and L 1
    trace = (x.T @ y).square().sum() - k @ el
    return float(
        trace + rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows_k @ rows_l)
    ) / (n * (n - 3))
