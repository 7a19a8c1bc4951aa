"""Witnesses: scikit-learn and scipy, closed forms, and definitions as loops."""

import itertools
import math
from statistics import fmean, variance

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)
from torch.nn.functional import normalize

from sureclr.errors import UserError
from sureclr.maths import metrics

seeds = st.integers(0, 10**6)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Directions


def test_alignment_is_two_minus_two_cosines() -> None:
    a, b = (normalize(torch.randn(50, 6, generator=generator(s)).double(), dim=1) for s in (0, 1))
    assert metrics.alignment(a, b) == pytest.approx(
        float((2 - 2 * (a * b).sum(1)).mean()), abs=1e-14
    )
    assert metrics.alignment(a, -a) == pytest.approx(4)


@pytest.mark.parametrize("t", [2.0, 0.5])
def test_uniformity_is_the_mean_over_pairs_in_blocks(t: float) -> None:
    u = normalize(torch.randn(30, 5, generator=generator(0)).double(), dim=1)
    pairs = [
        math.exp(-t * float((u[i] - u[j]).square().sum()))
        for i, j in itertools.combinations(range(30), 2)
    ]
    assert metrics.uniformity(u, t, block=7) == pytest.approx(
        math.log(sum(pairs) / len(pairs)), rel=1e-12
    )


def test_uniformity_of_a_collapse_and_of_two_poles() -> None:
    assert metrics.uniformity(torch.eye(4)[:1].expand(10, 4)) == pytest.approx(0, abs=1e-12)
    assert metrics.uniformity(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(-8)
    with pytest.raises(UserError, match="two directions"):
        metrics.uniformity(torch.ones(1, 3))


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_effective_rank_is_the_entropy_of_singular_values(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=generator(1)).double() * torch.logspace(0, 2, shape[1])
    p = np.linalg.svd(x.numpy(), compute_uv=False)
    p /= p.sum()
    assert metrics.effective_rank(x, block=9) == pytest.approx(
        math.exp(-(p * np.log(p)).sum()), rel=1e-9
    )


def test_effective_rank_of_equal_axes_and_of_one_direction() -> None:
    assert metrics.effective_rank(torch.eye(5).repeat(3, 1)) == pytest.approx(5)
    assert metrics.effective_rank(torch.ones(20, 8)) == pytest.approx(1, abs=1e-5)


def test_instance_match_counts_both_sides() -> None:
    """Images 0 and 1 agree; the second view of image 2 looks like image 0, its first view like
    nothing else.
    """
    first = torch.eye(4)[:3]
    second = torch.stack([first[0], first[1], first[0] + 0.1 * first[1]])
    # first -> second: 0 and 1 right, 2 finds index 0 (all cosines 0): wrong. second -> first: 0 and
    # 1 right, 2 finds 0: wrong.
    assert metrics.instance_match(first, second) == pytest.approx(4 / 6)
    assert metrics.instance_match(first, first.roll(1, 0)) == 0


def test_instance_match_is_not_the_same_for_the_two_sides() -> None:
    first = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    second = torch.tensor(
        [[0.9, 0.2], [1.0, 0.0]]
    )  # first: 0 finds 1, 1 finds 0; second: 0 finds 0, 1 finds 0
    assert metrics.instance_match(first, second) == pytest.approx(1 / 4)


# Certainty


def test_nearest_has_class_with_and_without_keys() -> None:
    keys, key_labels = torch.eye(3), torch.tensor([0, 1, 2])
    queries, labels = (
        torch.tensor([[1.0, 0.1, 0], [0, 0.9, 1.0], [3.0, 0, 0.1]]),
        torch.tensor([0, 1, 1]),
    )
    correct, similarity = metrics.nearest_has_class(queries, labels, keys, key_labels)
    assert correct.tolist() == [True, False, False]
    assert similarity[0].item() == pytest.approx(1 / math.sqrt(1.01))
    # Among themselves: 0 and 2 find each other (labels 0 and 1), 1 finds 0.
    assert metrics.nearest_has_class(queries, labels)[0].tolist() == [False, False, False]
    assert metrics.nearest_has_class(queries, torch.tensor([1, 0, 1]))[0].tolist() == [
        True,
        False,
        True,
    ]


def test_r_auroc_is_the_auroc_of_that_event() -> None:
    x, y = (
        torch.randn(60, 3, generator=generator(3)),
        torch.randint(3, (60,), generator=generator(4)),
    )
    certainty = torch.rand(60, generator=generator(5))
    cosine = normalize(x, dim=1) @ normalize(x, dim=1).T
    nearest = [
        max((j for j in range(60) if j != i), key=lambda j, i=i: float(cosine[i, j]))
        for i in range(60)
    ]
    event = [int(y[nearest[i]] == y[i]) for i in range(60)]
    assert metrics.r_auroc(certainty, x, y) == pytest.approx(
        roc_auc_score(event, certainty.numpy())
    )


@settings(max_examples=30, deadline=None)
@given(seed=seeds, levels=st.integers(2, 40))
def test_auroc_equals_scikit_learn_with_ties(seed: int, levels: int) -> None:
    score = torch.randint(levels, (50,), generator=generator(seed)).double()
    positive = torch.rand(50, generator=generator(seed + 1)) < 0.3
    positive[0], positive[1] = True, False
    assert metrics.auroc(score, positive) == pytest.approx(
        roc_auc_score(positive.numpy(), score.numpy()), abs=1e-12
    )


@pytest.mark.parametrize("levels", [3, 1000])
def test_the_interval_of_auroc_is_delongs_by_pairs(levels: int) -> None:
    """Placements by comparing every pair; their variances make that of the area."""
    score = torch.randint(levels, (60,), generator=generator(4)).double()
    positive = torch.rand(60, generator=generator(5)) < 0.3 + 0.2 * score / levels
    wins = [[(a > b) + (a == b) / 2 for b in score[~positive]] for a in score[positive]]
    of_positives = [float(sum(row) / len(row)) for row in wins]
    of_negatives = [float(sum(column) / len(column)) for column in zip(*wins, strict=True)]
    deviation = math.sqrt(
        variance(of_positives) / len(of_positives) + variance(of_negatives) / len(of_negatives)
    )
    area = fmean(of_positives)
    assert metrics.auroc_interval(score, positive) == pytest.approx(
        (area - 1.959964 * deviation, area + 1.959964 * deviation), abs=1e-6
    )


def test_the_interval_of_auroc_covers_the_truth_and_ends_at_one() -> None:
    """P(normal(1) > normal(0)) = Phi(1 / sqrt 2) = .7602."""
    covered = 0
    for seed in range(300):
        positive = torch.arange(80) % 2 == 0
        score = torch.randn(80, generator=generator(seed)) + positive
        low, high = metrics.auroc_interval(score, positive)
        covered += low <= 0.7602 <= high
    assert 0.91 < covered / 300 < 0.98
    apart = torch.tensor([0.0, 0.1, 0.9, 1.0])
    assert metrics.auroc_interval(apart, apart > 0.5) == (1.0, 1.0)
    assert all(map(math.isnan, metrics.auroc_interval(apart, apart > 0.95)))


def test_auroc_of_one_kind_is_not_a_number_and_nan_scores_are_refused() -> None:
    assert math.isnan(metrics.auroc(torch.rand(5), torch.ones(5, dtype=torch.bool)))
    with pytest.raises(UserError, match="1 of 3 values are not finite"):
        metrics.auroc(torch.tensor([0.1, math.nan, 0.2]), torch.tensor([True, False, True]))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, levels=st.integers(2, 40))
def test_spearman_and_ranks_equal_scipy_with_ties(seed: int, levels: int) -> None:
    a, b = (torch.randint(levels, (30,), generator=generator(seed + i)).double() for i in (0, 1))
    a[:2] = b[:2] = torch.tensor([-1.0, 99.0])  # never constant
    assert metrics.ranks(a).tolist() == stats.rankdata(a.numpy()).tolist()
    assert metrics.spearman(a, b) == pytest.approx(
        stats.spearmanr(a.numpy(), b.numpy()).statistic, abs=1e-12
    )


def test_spearman_of_a_constant_is_not_a_number() -> None:
    assert math.isnan(metrics.spearman(torch.ones(5), torch.arange(5.0)))


def test_risk_coverage_without_ties_by_hand() -> None:
    coverage, risk = metrics.risk_coverage(
        torch.tensor([0.9, 0.1, 0.5, 0.7]), torch.tensor([True, False, True, False])
    )
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_aurc_with_ties_is_the_mean_over_all_orders(seed: int) -> None:
    certainty = torch.randint(3, (6,), generator=generator(seed)).double()
    correct = torch.rand(6, generator=generator(seed + 1)) < 0.5
    areas = []
    for order in itertools.permutations(range(6)):
        ranked = sorted(
            order, key=lambda i: -float(certainty[i])
        )  # stable: the permutation decides between equals
        errors = np.cumsum([1 - int(correct[i]) for i in ranked])
        areas.append(float((errors / np.arange(1, 7)).mean()))
    assert metrics.aurc(certainty, correct) == pytest.approx(sum(areas) / len(areas), abs=1e-12)


# Calibration


@pytest.mark.parametrize("binning", ["count", "width"])
def test_calibration_table_equals_bins_by_loops(binning: str) -> None:
    r = (
        0.3 + 0.7 * torch.rand(200, generator=generator(0)).double() ** 3
    )  # far from 0: equal width is of the range seen
    c = r + 0.1 * torch.randn(200, generator=generator(1)).double()
    order = np.argsort(r.numpy())
    low, high = float(r.min()), float(r.max())
    bins = [order[20 * b : 20 * b + 20] for b in range(10)]
    if binning == "width":
        place = np.minimum(((r.numpy() - low) / (high - low) * 10).astype(int), 9)
        bins = [np.flatnonzero(place == b) for b in range(10) if (place == b).any()]
    table = metrics.calibration_by_bins(r, c, binning=binning)  # type: ignore[arg-type]
    assert table.count.tolist() == [len(b) for b in bins]
    assert table.predicted.tolist() == pytest.approx([float(r[b].mean()) for b in bins])
    assert table.observed.tolist() == pytest.approx([float(c[b].mean()) for b in bins])
    assert table.error == pytest.approx(
        sum(len(b) * abs(float((r[b] - c[b]).mean())) for b in bins) / 200
    )


def test_calibration_of_a_constant_shift() -> None:
    r = torch.linspace(0, 0.9, 100)
    assert metrics.calibration_by_bins(r, r).error == pytest.approx(0, abs=1e-7)
    assert metrics.calibration_by_bins(r, r + 0.05).error == pytest.approx(0.05, abs=1e-6)
    assert metrics.calibration_by_bins(r, r - 0.05).error == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize("binning", ["count", "width"])
def test_calibration_of_equal_predictions(binning: str) -> None:
    table = metrics.calibration_by_bins(
        torch.full((9,), 0.3),
        torch.linspace(0, 1, 9),
        binning=binning,  # type: ignore[arg-type]
    )
    assert table.count.tolist() == [9] and table.error == pytest.approx(0.2, abs=1e-6)


def test_calibration_has_ten_bins_of_equal_count_by_default() -> None:
    r = torch.rand(200, generator=generator(0)) ** 3
    assert metrics.calibration_by_bins(r, r).count.tolist() == [20] * 10


def test_calibration_does_not_depend_on_the_order_of_rows() -> None:
    r = torch.randint(5, (60,), generator=generator(0)).double() / 5
    c, order = torch.rand(60, generator=generator(1)), torch.randperm(60, generator=generator(2))
    assert metrics.calibration_by_bins(r, c).observed.tolist() == pytest.approx(
        metrics.calibration_by_bins(r[order], c[order]).observed.tolist()
    )


def test_ece_by_loops_and_at_the_ends() -> None:
    """Every second of 15 bins is underconfident, so that other bins would give another number."""
    p = torch.randn(300, 4, generator=generator(0)).double().softmax(1)
    confidence, guess = p.max(1)
    right = (confidence * 15).long() % 2 == 0
    target = torch.where(right, guess, (guess + 1) % 4)
    total = 0.0
    for b in range(15):
        inside = (confidence >= b / 15) & (confidence < (b + 1) / 15)
        if inside.any():
            gap = float(confidence[inside].mean()) - float(
                (guess == target)[inside].double().mean()
            )
            total += float(inside.sum()) * abs(gap)
    assert metrics.ece(p, target) == pytest.approx(total / 300, abs=1e-12)
    sure = torch.eye(3)
    assert (
        metrics.ece(sure, torch.arange(3)) == 0 and metrics.ece(sure, torch.tensor([1, 2, 0])) == 1
    )


def test_monotone_map_pools_violators_and_is_constant_outside() -> None:
    fitted = metrics.monotone_map(torch.tensor([0.0, 1, 2, 3]), torch.tensor([0.0, 0.6, 0.4, 1.0]))
    assert fitted(torch.tensor([-5.0, 0, 1, 2, 3, 9])).tolist() == pytest.approx(
        [0, 0, 0.5, 0.5, 1, 1]
    )


@settings(max_examples=30, deadline=None)
@given(trials=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_equals_scipy(trials: int, share: float) -> None:
    successes = round(share * trials)
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, "wilson")
    assert metrics.wilson_interval(successes, trials) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


@pytest.mark.parametrize("trials", [1, 16, 27, 40, 300])  # rounding alone would leave [0, 1]
def test_wilson_of_no_and_of_all_successes_stays_inside(trials: int) -> None:
    low, middle = metrics.wilson_interval(0, trials)
    assert low == pytest.approx(0, abs=1e-15) and 0 <= low < middle < 1
    middle, high = metrics.wilson_interval(trials, trials)
    assert high == pytest.approx(1, abs=1e-15) and 0 < middle < high <= 1


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_needs_a_rate(successes: int, trials: int) -> None:
    with pytest.raises(UserError, match="rate"):
        metrics.wilson_interval(successes, trials)


# Classes


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40),
    more=st.integers(0, 3),
)
def test_numbers_per_class_are_those_of_scikit_learn(
    rows: list[tuple[int, int]], more: int
) -> None:
    """Classes may be absent from the truth, from the predictions, or from both."""
    truth, named = ([row[i] for row in rows] for i in (0, 1))
    labels = list(range(6 + more))
    found = metrics.count_classes(torch.tensor(truth), torch.tensor(named), 6 + more)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, named))
    assert found.macro_f1 == pytest.approx(f1_score(truth, named, average="macro", zero_division=0))
    for ours, theirs in (
        (found.recall, recall_score),
        (found.precision, precision_score),
        (found.f1, f1_score),
    ):
        wanted = theirs(truth, named, labels=labels, average=None, zero_division=np.nan)
        assert ours.tolist() == pytest.approx(wanted.tolist(), nan_ok=True)
    table = torch.zeros(6 + more, 6 + more, dtype=torch.int64) + found.right.diag()
    table[found.mistakes[:, 0], found.mistakes[:, 1]] += found.mistaken
    assert table.tolist() == confusion_matrix(truth, named, labels=labels).tolist()
    assert found.mistaken.tolist() == sorted(found.mistaken.tolist(), reverse=True)


def test_counting_needs_rows_and_classes_that_exist() -> None:
    one = torch.tensor([1])
    for truth, named in ((one[:0], one[:0]), (one, one + 1), (one - 2, one)):
        with pytest.raises(UserError, match="classes in 0..1|must be rows"):
            metrics.count_classes(truth, named, 2)


@pytest.mark.parametrize(("successes", "trials"), [(0, 12), (0, 3), (12, 12), (7, 7)])
def test_wilsons_interval_ends_exactly_at_0_and_1(successes: int, trials: int) -> None:
    low, high = metrics.wilson_interval(successes, trials)
    assert (low == 0.0) == (successes == 0) and (high == 1.0) == (successes == trials)
