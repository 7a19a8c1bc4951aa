"""Choosing few points that represent many: greedy facility location."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths.inputs import check_table, is_whole

LAZY = 64  # rows whose gain is updated at once


def greedy_cover(
    near: Tensor, covered: Tensor, budget: int, lazy: int = LAZY
) -> tuple[NDArray[np.int64], list[float]]:
    """Choose rows one by one, each time the one that raises sum_i max_j near_ji the most.

    The sum is submodular, so this reaches 1 - 1/e of the best choice (Nemhauser, Wolsey and Fisher
    1978). It is lazy (Minoux 1978): gains only fall, so old gains are upper bounds, and a row that
    is still at the top after its gain was updated is the best.

    Args:
        near: (n, m), how well each row represents each of m columns.
        covered: (m,), the maximum before the first choice; 0 where nothing represents a column yet.
        budget: how many rows to choose, at most n.
        lazy: rows whose gain is updated at once. It changes speed, not the result.

    Returns:
        the chosen rows in order, and by how much each raised the sum.

    Raises:
        UserError: a number is not finite, the shapes do not fit, or the budget exceeds n.
    """
    check_table("near", near, 0)
    if tuple(covered.shape) != (near.shape[1],) or not covered.isfinite().all():
        raise UserError(
            f"covered must be {near.shape[1]} finite numbers, one for each column of near, and has"
            f" the shape {tuple(covered.shape)}; start from zeros."
        )
    if not is_whole(budget) or not 0 <= budget <= len(near):
        raise UserError(f"budget must be 0 to {len(near)}, the number of rows, and is {budget}.")
    bound = torch.full((len(near),), torch.inf, dtype=near.dtype, device=near.device)
    rows: list[int] = []
    gains: list[float] = []
    while len(rows) < budget:
        top = bound.topk(min(lazy, len(bound))).indices
        gain = (near[top] - covered).clamp_min(0).sum(1)
        bound[top] = torch.where(bound[top] < 0, bound[top], gain)  # below 0: chosen already
        best = int(top[bound[top].argmax()])
        if bound[best] >= bound.max():
            rows.append(best)
            gains.append(float(bound[best]))
            bound[best] = -1
            covered = torch.maximum(covered, near[best])
    return np.array(rows, dtype=np.int64), gains
