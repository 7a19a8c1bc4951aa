"""How similar two runs are on the same images: their representations, neighbours and predictions.

Linear CKA (Kornblith et al. 2019, eq. 3) between features, between directions and between the
blocks of the encoders, with the unbiased estimate of HSIC (Song et al. 2012, eq. 5; Nguyen et al.
2021, eq. 3). The plain estimate is near 1 for unrelated representations whose dimension exceeds the
number of images.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sureclr.data.counter_rng import sample_rows
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.feature_space import predict_classes
from sureclr.evaluation.results import BlockSimilarity, Comparison, Number
from sureclr.evaluation.tables import finite_or_none
from sureclr.maths.metrics import spearman
from sureclr.maths.neighbours import top_k
from sureclr.progress import SILENT, Progress

if TYPE_CHECKING:
    from sureclr.training.run import Run

Blocks = dict[str, Tensor]  # name -> (n, c), a block's output averaged over positions

MOST = 10_000  # images that are compared at most
IMAGES = 2000  # images whose blocks are compared at most
NEAREST = 10  # neighbours of an image that are compared
LEAST = 4  # images that the unbiased estimate needs


def compare_runs(
    a: "Run",
    b: "Run",
    images: ImageSet,
    table_a: Embeddings,
    table_b: Embeddings,
    progress: Progress = SILENT,
) -> Comparison:
    """Do what `compare_tables` does, and compare the encoders' blocks on a sample of the images.

    Args:
        a: a run.
        b: another run.
        images: the images of both tables, of any size.
        table_a: their embeddings by `a`.
        table_b: their embeddings by `b`, in the same order.
        progress: reports how far the work is; it may raise to stop.

    Raises:
        UserError: the tables are of different images, or there are fewer than four.
    """
    from sureclr.evaluation.inputs import embed_blocks_by  # late: tables need no model

    _check_images(table_a, table_b)
    chosen = images.select(sample_rows(rows_to_compare(table_a, table_b), IMAGES, 0))
    blocks = [embed_blocks_by(run, chosen, progress) for run in (a, b)]
    names = (a.path.name, b.path.name)
    return compare_tables(table_a, table_b, names, (blocks[0], blocks[1]), progress)


def compare_tables(
    a: Embeddings,
    b: Embeddings,
    names: tuple[str, str],
    blocks: tuple[Blocks, Blocks] | None = None,
    progress: Progress = SILENT,
) -> Comparison:
    """Compare two representations of the same images (see `rows_to_compare`).

    Args:
        a: the table of a run.
        b: the table of another run, of the same images in the same order.
        names: of the two runs.
        blocks: outputs of the blocks of both encoders, of the same images.
        progress: reports how far the work is; it may raise to stop.

    Returns:
        The comparison; a number is None if one of the two has nothing to compute it from.

    Raises:
        UserError: the tables are of different images, or there are fewer than four.
    """
    _check_images(a, b)
    rows = rows_to_compare(a, b).numpy()
    if len(rows) < LEAST:
        raise UserError(
            f"representations are compared on {LEAST} images or more, and there are {len(rows)};"
            " add images."
        )
    x, y = a.select(rows), b.select(rows)
    certainty_spearman = None
    if x.certainty is not None and y.certainty is not None:
        certainty_spearman = finite_or_none(spearman(x.certainty, y.certainty))
    return Comparison(
        runs=names,
        n=len(rows),
        cka_features=finite_or_none(cka(x.features, y.features)),
        cka_directions=finite_or_none(cka(x.direction, y.direction)),
        cka_blocks=None if blocks is None else compare_blocks(*blocks),
        certainty_spearman=certainty_spearman,
        agreement_knn=agree_on_classes(a, b, rows, progress),
        neighbour_overlap=neighbour_overlap(x.features, y.features),
        neighbour_overlap_chance=min(NEAREST, len(rows) - 1) / (len(rows) - 1),
    )


def _check_images(a: Embeddings, b: Embeddings) -> None:
    """Raise a UserError unless two tables are of the same images."""
    if not same_images(a, b):
        raise UserError(
            "two runs are compared on the same images, and these tables differ in paths or labels"
            f" ({len(a)} and {len(b)} images); name runs on the same data."
        )


def same_images(a: Embeddings, b: Embeddings) -> bool:
    """Return whether two tables have the same paths, and no image with two labels.

    Paths are not enough: those of MNIST and of Fashion-MNIST are both train/00000 and so on.
    """
    if list(a.paths) != list(b.paths):
        return False
    both = (a.labels >= 0) & (b.labels >= 0)
    return not both.any() or (
        a.classes == b.classes and torch.equal(a.labels[both], b.labels[both])
    )


def rows_to_compare(a: Embeddings, b: Embeddings, most: int = MOST) -> Tensor:
    """Return the (m,) rows of images on which neither run was trained, at most `most` of them.

    Two runs of one folder with other seeds hold out other images. If fewer than four images are
    test images of both, all images are compared.
    """
    test = np.flatnonzero((a.split == "test") & (b.split == "test"))
    rows = test if len(test) >= LEAST else np.arange(len(a))
    return sample_rows(torch.from_numpy(rows), most, 0)


def agree_on_classes(
    a: Embeddings, b: Embeddings, rows: np.ndarray, progress: Progress = SILENT
) -> Number:
    """Return how often the kNN votes of the two name the same class; None if one cannot vote."""
    votes = np.stack([predict_classes(table, rows, progress)["predicted"] for table in (a, b)])
    return None if (votes < 0).any() else float((votes[0] == votes[1]).mean())


def neighbour_overlap(x: Tensor, y: Tensor, k: int = NEAREST) -> float:
    """Return the share of an image's k nearest images that both representations name.

    Args:
        x: (n, f).
        y: (n, g), rows the same images.
        k: neighbours, all other images if there are fewer.

    Returns:
        The mean over images.
    """
    k = min(k, len(x) - 1)
    near, other = (top_k(rows, rows, k, exclude_self=True)[1] for rows in (x, y))
    return float((near[:, :, None] == other[:, None, :]).any(2).double().mean())


# --- CKA ------------------------------------------------------------------------------


def compare_blocks(a: Blocks, b: Blocks) -> BlockSimilarity | None:
    """Return the CKA of each block of one encoder with each block of the other; None if empty."""
    if not a or not b:
        return None
    rows_a, rows_b = ([centre(rows) for rows in blocks.values()] for blocks in (a, b))
    # Once for each block, not once for each pair
    own_a, own_b = ([hsic(x, x) for x in rows] for rows in (rows_a, rows_b))
    return BlockSimilarity(
        names_a=tuple(a),
        names_b=tuple(b),
        matrix=tuple(
            tuple(
                finite_or_none(normalise_hsic(hsic(x, y), xx, yy))
                for y, yy in zip(rows_b, own_b, strict=True)
            )
            for x, xx in zip(rows_a, own_a, strict=True)
        ),
    )


def cka(x: Tensor, y: Tensor) -> float:
    """Return linear CKA, HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)), from unbiased estimates.

    It is 1 for representations that differ by a rotation, a shift and a scale; 0 on average, and
    sometimes a little below, for unrelated ones; NaN for constant ones.

    Args:
        x: (n, f).
        y: (n, g), rows the same images.

    Raises:
        UserError: there are fewer than four images, the numbers of rows differ, or a number is not
            finite.
    """
    tables = [table for table in (x, y) if isinstance(table, Tensor) and table.ndim == 2]
    if len(tables) < 2 or not LEAST <= len(x) == len(y) or not x.shape[1] * y.shape[1]:
        raise UserError(
            f"CKA compares two tables (n, f) and (n, g) of the same images, {LEAST} or more; embed"
            " the same images with both encoders."
        )
    if bad := sum(int((~table.isfinite().all(1)).sum()) for table in tables):
        raise UserError(f"CKA needs finite numbers, and {bad} rows have others; leave them out.")
    x, y = centre(x), centre(y)
    return normalise_hsic(hsic(x, y), hsic(x, x), hsic(y, y))


def centre(rows: Tensor) -> Tensor:
    """Return rows (n, f) less their mean, float64: HSIC is the same; its sums lose no digits."""
    return rows.double() - rows.double().mean(0)


def normalise_hsic(both: float, own: float, other: float) -> float:
    """Return the ratio of CKA; NaN if an own HSIC is not above 0, as its estimate may be."""
    return both / (own * other) ** 0.5 if min(own, other) > 0 else float("nan")


def hsic(x: Tensor, y: Tensor) -> float:
    """Return the unbiased estimate of HSIC with linear kernels (Song et al. 2012, eq. 5).

    K = x x^T and L = y y^T with their diagonals set to 0, without any (n, n) matrix:
        [tr(K L) + 1^T K 1 1^T L 1 / ((n-1)(n-2)) - 2/(n-2) 1^T K L 1] / (n (n-3))

    Args:
        x: (n, f), n >= 4.
        y: (n, g), rows the same images.
    """
    n, k, el = len(x), x.square().sum(1), y.square().sum(1)
    rows_k, rows_l = x @ x.sum(0) - k, y @ y.sum(0) - el  # K 1 and L 1
    trace = (x.T @ y).square().sum() - k @ el
    return float(
        trace + rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows_k @ rows_l)
    ) / (n * (n - 3))
