"""Choosing few points that stand for many: greedy facility location."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LAZY = 64  # rows whose gain is brought up to date at once


def greedy_cover(
    near: Tensor, covered: Tensor, budget: int
) -> tuple[NDArray[np.int64], list[float]]:
    """Rows chosen one by one to raise sum_i max_j near_ji the most, and by how much each raised it.

    The sum is submodular, so this reaches 1 - 1/e of the best choice (Nemhauser, Wolsey and Fisher
    1978). Lazy (Minoux 1978): gains only fall, so old ones are bounds, and a row at the top once
    brought up to date is the best.

    Args:
        near: (n, m), how well each row stands for each of m columns.
        covered: (m,) the maximum before the first choice; 0 where nothing stands for a column yet.
        budget: at most n.
    """
    bound = torch.full((len(near),), torch.inf, dtype=near.dtype, device=near.device)
    rows: list[int] = []
    gains: list[float] = []
    while len(rows) < budget:
        top = bound.topk(min(LAZY, len(bound))).indices
        gain = (near[top] - covered).clamp_min(0).sum(1)
        bound[top] = torch.where(bound[top] < 0, bound[top], gain)  # below 0: chosen already
        best = int(top[bound[top].argmax()])
        if bound[best] >= bound.max():
            rows.append(best)
            gains.append(float(bound[best]))
            bound[best] = -1
            covered = torch.maximum(covered, near[best])
    return np.array(rows, dtype=np.int64), gains
