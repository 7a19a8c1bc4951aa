"""Sets of calibration images and of labelled images, against loops over single numbers."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sureclr.evaluation.calibrated_sets import SetCalibration, measure_sets
from sureclr.maths.metrics import wilson_interval


def drawn(n: int, seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Probabilities that are far too sure, and the right classes."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=g)
    z = torch.randn(n, classes, generator=g) + 1.2 * torch.nn.functional.one_hot(y, classes)
    return (4 * z.double()).softmax(1), y


def loop_sets(p: Tensor, y: Tensor, new: Tensor, coverage: float) -> list[list[bool]]:
    right = [float(row[k]) for row, k in zip(p, y.tolist(), strict=True)]
    limit = len(right) + 1
    return [
        [(1 + sum(o <= v for o in right)) / limit > 1 - coverage + 1e-9 for v in row.tolist()]
        for row in new
    ]


def test_each_half_is_judged_by_the_other_half() -> None:
    p, y = drawn(60, 0)
    names = torch.arange(60)
    names[7] = 3  # a copy
    calibration = SetCalibration.of(p, y, 0.8, names)
    half = calibration.half
    assert half[7] == half[3] and abs(int(half.sum()) - 30) < 2
    new, _ = drawn(10, 1)
    nobody = torch.full((10,), -1)
    assert calibration.contains(new, nobody).tolist() == loop_sets(p, y, new, 0.8)
    found = calibration.contains(p, torch.arange(60))
    for k in (0, 1):
        wanted = loop_sets(p[half != k], y[half != k], p[half == k], 0.8)
        assert found[half == k].tolist() == wanted
    again = SetCalibration.of(p, y, 0.8, names)
    assert torch.equal(again.half, half)


def test_a_half_that_is_too_small_gives_sets_of_all_classes() -> None:
    p, y = drawn(12, 2)
    calibration = SetCalibration.of(p, y, 0.9, torch.arange(12))
    assert calibration.contains(p, torch.arange(12)).all()
    assert not calibration.contains(p, torch.full((12,), -1)).all()


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_the_numbers_of_measured_sets_are_those_of_a_loop(coverage: float) -> None:
    p, y = drawn(90, 3)
    y[:6] = -1  # classes that the classifier does not know
    found = measure_sets(p, y, coverage)
    calibration = SetCalibration.of(p[6:], y[6:], coverage, torch.arange(6, 90))
    sets = calibration.contains(p[6:], torch.arange(84)).tolist()
    hits = [row[k] for row, k in zip(sets, y[6:].tolist(), strict=True)]
    sizes = np.array([sum(row) for row in sets])
    assert found is not None
    assert (found.n, found.n_observed, found.n_calibration, found.n_unknown) == (84, 84, 84, 6)
    assert found.observed == np.mean(hits) and found.interval == wilson_interval(sum(hits), 84)
    assert found.mean_size == sizes.mean() and found.empty == np.mean(sizes == 0)
    assert found.full == np.mean(sizes == 3) and found.coverage == coverage
    assert measure_sets(p[:20], y[:20], 0.9) is None  # 14 with a class, in two halves


def test_observed_coverage_is_the_asked_one_in_the_mean() -> None:
    """Each half has about n = 50 images: c <= mean <= c + 1 / 45, by simulation."""
    rates = []
    for seed in range(60):
        found = measure_sets(*drawn(100, seed + 10), 0.8)
        assert found is not None and found.observed is not None
        rates.append(found.observed)
    deviation = float(np.std(rates)) / math.sqrt(len(rates))
    assert 0.8 - 3 * deviation < np.mean(rates) < 0.8 + 1 / 45 + 3 * deviation
