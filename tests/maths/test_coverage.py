"""Witnesses: all subsets by brute force, and plain greedy written as loops."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from sureclr.maths.coverage import greedy_cover


def nearness(n: int, m: int, seed: int = 0) -> Tensor:
    return torch.rand(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4


def plain(near: Tensor, covered: Tensor, budget: int) -> list[int]:
    """Greedy as it is defined: every gain anew for every choice."""
    rows: list[int] = []
    for _ in range(budget):
        value = [
            -1.0 if j in rows else float(torch.stack([covered, *near[[*rows, j]]]).amax(0).sum())
            for j in range(len(near))
        ]
        rows.append(int(np.argmax(value)))
    return rows


@pytest.mark.parametrize("lazy", [1, 3, 64])
def test_lazy_greedy_is_greedy(lazy: int) -> None:
    near, covered = nearness(30, 40), nearness(1, 40, seed=1)[0] / 2
    rows, gains = greedy_cover(near, covered, 12, lazy)
    assert rows.tolist() == plain(near, covered, 12)
    total = torch.stack([covered, *near[rows]]).amax(0).sum() - covered.sum()
    assert sum(gains) == pytest.approx(float(total)) and gains == sorted(gains, reverse=True)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_reaches_its_guarantee_of_the_best_subset(seed: int) -> None:
    near = nearness(9, 12, seed)
    best = max(float(near[list(rows)].amax(0).sum()) for rows in combinations(range(9), 3))
    covered = sum(greedy_cover(near, torch.zeros(12), 3)[1])
    assert (1 - np.exp(-1)) * best <= covered <= best + 1e-9


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_all_can_be_chosen_once_each_where_nothing_more_is_to_gain(value: float) -> None:
    """More rows than are brought up to date at once, all alike: the choice must end, and repeat
    nothing.
    """
    rows, gains = greedy_cover(torch.full((200, 7), value), torch.zeros(7), 200)
    assert (
        sorted(rows.tolist()) == list(range(200))
        and gains[0] == 7 * value
        and set(gains[1:]) == {0.0}
    )
