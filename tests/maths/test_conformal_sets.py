"""Prediction sets: the guarantee by simulation, and the sets by loops over single numbers."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths.conformal_sets import (
    SetRule,
    calibrate_sets,
    enough_for_a_class,
    least_images,
)


def drawn(n: int, random: np.random.Generator, share: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Probabilities that are wrong (too sure, and biased by class), and the classes."""
    y = random.choice(len(share), n, p=share)
    z = random.normal(size=(n, len(share))) + 1.5 * np.eye(len(share))[y]
    z[:, 0] += 1
    return torch.from_numpy(3 * z).softmax(1), torch.from_numpy(y)


def loop_sets(p: Tensor, target: Tensor, new: Tensor, coverage: float) -> Iterator[set[int]]:
    """Sets by the conformal p-value of each class, all classes together, number by number."""
    right = [float(row[k]) for row, k in zip(p, target.tolist(), strict=True)]
    for row in new:
        yield {
            k
            for k, value in enumerate(row.tolist())
            if (1 + sum(other <= value for other in right)) / (len(right) + 1) > 1 - coverage + 1e-9
        }


def members(rule: SetRule, p: Tensor) -> list[set[int]]:
    return [{int(k) for k in row.nonzero()[:, 0]} for row in rule.contains(p)]


@pytest.mark.parametrize("n", [9, 10, 57, 200])
@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_sets_are_those_of_the_p_values_written_as_loops(n: int, coverage: float) -> None:
    random = np.random.default_rng(n)
    p, y = drawn(n, random, (0.2, 0.5, 0.3))
    new, _ = drawn(40, random, (0.2, 0.5, 0.3))
    pooled = calibrate_sets(p, y, coverage, enough=10**6)
    assert not pooled.alone.any() and pooled.images.tolist() == [n] * 3
    assert members(pooled, new) == list(loop_sets(p, y, new, coverage))
    by_class = calibrate_sets(p, y, coverage, enough=1)
    assert by_class.alone.all()
    for k in range(3):  # a class with its own threshold is judged by its own images alone
        own = y == k
        wanted = [k in found for found in loop_sets(p[own], y[own], new, coverage)]
        assert by_class.contains(new)[:, k].tolist() == wanted


def test_the_coverage_is_at_least_what_was_asked_and_at_most_one_image_more() -> None:
    """The law, by simulation: c <= P(right class in the set) <= c + 1 / (n + 1)."""
    random, draws, new = np.random.default_rng(0), 250, 40
    for n, coverage in ((19, 0.9), (50, 0.8), (33, 0.95)):
        hits = 0
        for _ in range(draws):
            p, y = drawn(n + new, random, (0.3, 0.7))
            found = calibrate_sets(p[:n], y[:n], coverage, enough=10**6).contains(p[n:])
            hits += int(found.gather(1, y[n:, None]).sum())
        # Draws are independent, images of one draw are not: Vovk's variance of a calibration
        deviation = math.sqrt(coverage * (1 - coverage) * (1 / (n + 2) + 1 / new) / draws)
        observed = hits / (draws * new)
        assert coverage - 3 * deviation < observed < coverage + 1 / (n + 1) + 3 * deviation


def test_each_class_with_enough_images_has_the_coverage_by_itself() -> None:
    """Two common classes have their own thresholds, a rare one and a rarer one share theirs."""
    random, draws, new, coverage = np.random.default_rng(1), 200, 150, 0.8
    share, hits, seen, own = (0.45, 0.43, 0.08, 0.04), np.zeros(4), np.zeros(4), np.zeros(4)
    together = 0.0
    for _ in range(draws):
        p, y = drawn(150 + new, random, share)
        rule = calibrate_sets(p[:150], y[:150], coverage, enough=12)
        right = rule.contains(p[150:]).gather(1, y[150:, None])[:, 0].numpy()
        np.add.at(hits, y[150:], right)
        np.add.at(seen, y[150:], 1)
        own += rule.alone.numpy()
        together += right.mean()
    rates = hits / seen
    assert (own[:2] > 0.9 * draws).all() and (own[2:] < 0.1 * draws).all()
    for k in (0, 1):  # n is 60 or so: sd of the mean .003, excess at most 1 / 41
        assert coverage - 0.01 < rates[k] < coverage + 1 / 41 + 0.01
    assert coverage - 0.02 < hits[2:].sum() / seen[2:].sum() < coverage + 1 / 12 + 0.02
    assert coverage - 0.01 < together / draws < coverage + 1 / 25 + 0.01
    pooled = calibrate_sets(*drawn(4000, random, share), coverage, enough=10**6)
    p, y = drawn(20000, random, share)
    right = pooled.contains(p).gather(1, y[:, None])[:, 0]
    by_class = [float(right[y == k].double().mean()) for k in range(4)]
    assert max(by_class) - min(by_class) > 0.1  # which one threshold for all does not give


def test_ties_never_lower_the_coverage() -> None:
    """Probabilities of one decimal: the coverage may only be higher."""
    random, hits = np.random.default_rng(2), 0
    for _ in range(150):
        y = torch.from_numpy(random.integers(0, 2, 60))
        right = torch.from_numpy(random.integers(5, 10, 60) / 10)
        p = torch.stack([1 - right, 1 - right], 1).scatter(1, y[:, None], right[:, None])
        found = calibrate_sets(p[:20], y[:20], 0.9, enough=10**6).contains(p[20:])
        hits += int(found.gather(1, y[20:, None]).sum())
    assert hits / (150 * 40) > 0.9 + 1 / 21


def test_rounding_does_not_decide_between_equal_probabilities() -> None:
    p = torch.tensor([[0.3, 0.7]]).double().expand(20, 2)
    rule = calibrate_sets(p, torch.zeros(20, dtype=torch.int64), 0.9)
    noisy = p[:1] + torch.tensor([[-1e-15, 1e-15]]).double()
    assert rule.contains(noisy).tolist() == [[True, True]]


def test_a_class_without_calibration_images_shares_a_threshold() -> None:
    p, y = drawn(300, np.random.default_rng(3), (0.6, 0.4))
    absent = torch.cat([0.9 * p, 0.1 * p.new_ones(300, 1)], 1)
    rule = calibrate_sets(absent, y, 0.9, enough=50)
    assert rule.alone.tolist() == [True, False, False]  # the smaller class joins the absent one
    assert rule.images.tolist()[1:] == [int((y == 1).sum())] * 2
    assert rule.thresholds[1] == rule.thresholds[2] < math.inf


@pytest.mark.parametrize(
    ("counts", "alone", "images"),
    [
        ((10, 30, 40), (True, True, True), (10, 30, 40)),
        # Nine are ten with the new image, if it is one of them, and else still too few
        ((9, 30, 40), (True, False, True), (9, 39, 40)),
        ((8, 30, 40), (False, False, True), (38, 38, 40)),
        ((6, 4, 40), (False, False, True), (10, 10, 40)),
        ((5, 4, 40), (False, False, False), (9, 9, 49)),
        ((3, 4, 5), (False, False, False), (12, 12, 12)),
    ],
)
def test_which_classes_have_a_threshold_of_their_own(
    counts: tuple[int, ...], alone: tuple[bool, ...], images: tuple[int, ...]
) -> None:
    y = torch.arange(3).repeat_interleave(torch.tensor(counts))
    rule = calibrate_sets(torch.full((len(y), 3), 1 / 3), y, 0.5, enough=10)
    assert tuple(rule.alone.tolist()) == alone and tuple(rule.images.tolist()) == images


def test_how_many_images_are_needed() -> None:
    for coverage in (0.5, 0.8, 0.9, 0.95, 0.99):
        least = math.ceil(round(1 / (1 - coverage), 9)) - 1
        assert least_images(coverage) == least
        p, y = drawn(least, np.random.default_rng(4), (0.5, 0.5))
        assert calibrate_sets(p, y, coverage).thresholds.isfinite().all()
        with pytest.raises(UserError, match=f"needs {least} calibration images or more, and there"):
            calibrate_sets(p[:-1], y[:-1], coverage)
    assert [enough_for_a_class(c) for c in (0.5, 0.8, 0.9, 0.95)] == [20, 50, 100, 200]


@pytest.mark.parametrize("coverage", [0.0, 1.0, 1.5, math.nan, True])
def test_a_coverage_that_is_no_share_is_refused(coverage: float) -> None:
    with pytest.raises(UserError, match="above 0 and below 1"):
        calibrate_sets(torch.full((9, 2), 0.5), torch.zeros(9, dtype=torch.int64), coverage)


def test_probabilities_and_classes_that_do_not_fit_are_refused() -> None:
    p, y = drawn(30, np.random.default_rng(5), (0.5, 0.5))
    bad = p.clone()
    bad[3, 0] = math.nan
    rule = calibrate_sets(p, y, 0.9)
    for call in (lambda: calibrate_sets(bad, y, 0.9), lambda: rule.contains(bad)):
        with pytest.raises(UserError, match="probabilities must be finite, and 1 of 30 rows"):
            call()
    with pytest.raises(UserError, match="sum to 1"):
        rule.contains(p / 2)
    with pytest.raises(UserError, match="must have 2 columns"):
        rule.contains(torch.full((1, 3), 1 / 3))
    with pytest.raises(UserError, match=r"classes in 0\.\.1"):
        calibrate_sets(p, y + 1, 0.9)
    with pytest.raises(UserError, match="a target for each row"):
        calibrate_sets(p, y[:-1], 0.9)
