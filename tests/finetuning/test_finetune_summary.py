"""The numbers over seeds against scipy and by hand, and the verdict at its edges."""

from dataclasses import replace

import numpy as np
import pytest
from few_labels import QUICK
from scipy import stats

from sureclr.finetuning.results import (
    Attempt,
    FinetuningResult,
    ProbeScore,
    SavedWeights,
    SeedResult,
    TrainedScore,
)
from sureclr.finetuning.summary import accuracy_interval, student_interval, summarise, verdict

WEIGHTS = SavedWeights("finetuned/x.safetensors", "0" * 64, 0)


def trained(accuracy: float, cpu_seconds: float) -> TrainedScore:
    return TrainedScore(accuracy, 0.1, 2, 0.5, (Attempt(0.1, 2, 0.5),), 9.0, cpu_seconds)


def repetition(number: int, finetune: float, scratch: float, linear: float) -> SeedResult:
    return SeedResult(
        seed=number,
        fold=None,
        n_labels=18 + number,
        n_validation=3,
        n_test=100,
        labels_sha256="a",
        test_sha256="b",
        labels_differing=0,
        finetune=trained(finetune, 1.0),
        scratch=trained(scratch, 10.0),
        linear=ProbeScore(linear, 0.01),
    )


FINETUNED, SCRATCH, LINEAR = (0.81, 0.84, 0.79), (0.70, 0.75, 0.71), (0.80, 0.83, 0.78)
SEEDS = [
    repetition(number, *accuracies)
    for number, accuracies in enumerate(zip(FINETUNED, SCRATCH, LINEAR, strict=True))
]


def scipy_interval(values: tuple[float, ...]) -> list[float]:
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return [interval.low, interval.high]


def test_every_mean_and_interval_is_that_of_its_network() -> None:
    result = summarise(SEEDS, QUICK, 5, WEIGHTS)
    assert result.accuracy == pytest.approx(np.mean(FINETUNED))
    assert result.interval == pytest.approx(scipy_interval(FINETUNED))
    assert result.accuracies == FINETUNED
    assert result.baselines.scratch == pytest.approx(np.mean(SCRATCH))
    assert result.baselines.linear == pytest.approx(np.mean(LINEAR))
    assert result.baseline_intervals.scratch == pytest.approx(scipy_interval(SCRATCH))
    assert result.baseline_intervals.linear == pytest.approx(scipy_interval(LINEAR))
    assert result.baseline_accuracies.scratch == SCRATCH
    assert result.baseline_accuracies.linear == LINEAR
    gains = tuple(a - b for a, b in zip(FINETUNED, SCRATCH, strict=True))
    assert result.gain.mean == pytest.approx(np.mean(gains))
    assert result.gain.interval == pytest.approx(scipy_interval(gains))
    assert (result.n_labels, result.n_test, result.seeds) == (18, 100, 3)
    assert result.cpu_seconds == 33.0 and result.interval_of == "95 %, Student's t over seeds"
    assert result.configuration == QUICK and result.per_seed == tuple(SEEDS)


@pytest.mark.parametrize(("asked", "complete"), [(3, True), (4, False)])
def test_a_result_is_complete_with_the_seeds_that_were_asked_for(
    asked: int, complete: bool
) -> None:
    assert summarise(SEEDS, QUICK, asked, WEIGHTS).complete == complete


def test_one_seed_has_wilsons_interval_and_none_of_the_gain() -> None:
    result = summarise(SEEDS[:1], QUICK, 1, WEIGHTS)
    wilson = stats.binomtest(81, 100).proportion_ci(0.95, method="wilson")
    assert result.interval == pytest.approx([wilson.low, wilson.high])
    assert result.interval_of == "95 %, Wilson's over test images (one seed)"
    assert result.gain.interval is None and result.gain.mean == pytest.approx(0.11)


def test_intervals_are_students() -> None:
    values = (0.81, 0.84, 0.79, 0.85, 0.83)
    assert accuracy_interval(values, 100) == pytest.approx(scipy_interval(values))
    assert student_interval(values) == pytest.approx(scipy_interval(values))
    wilson = stats.binomtest(83, 100).proportion_ci(0.95, method="wilson")
    assert accuracy_interval([0.83], 100) == pytest.approx([wilson.low, wilson.high])


def test_intervals_of_accuracies_stay_within_0_and_1() -> None:
    assert accuracy_interval([0.99, 1.0], 100)[1] == 1.0
    assert accuracy_interval([0.0, 0.01], 100)[0] == 0.0
    assert student_interval([-0.01, 0.01])[0] < 0, "a gain may be negative"


@pytest.mark.parametrize(
    ("interval", "other", "expected"),
    [
        ((0.7, 0.8), (0.5, 0.6), "better"),
        ((0.284, 0.392), (0.515, 0.627), "worse"),
        ((0.5, 0.7), (0.6, 0.8), "no difference found"),
        ((0.6, 0.8), (0.5, 0.7), "no difference found"),
        ((0.5, 0.8), (0.6, 0.7), "no difference found"),
        ((0.6, 0.7), (0.5, 0.6), "no difference found"),
        ((0.5, 0.6), (0.6, 0.7), "no difference found"),
    ],
)
def test_a_difference_is_found_where_intervals_do_not_even_touch(
    interval: tuple[float, float], other: tuple[float, float], expected: str
) -> None:
    assert verdict(interval, other) == expected


@pytest.mark.parametrize(
    ("finetune", "scratch", "expected", "outside"),
    [
        (0.81, 0.5, "better", True),
        (0.336, 0.572, "worse", True),
        (0.60, 0.58, "no difference found", False),
    ],
)
def test_the_result_has_the_verdict(
    finetune: float, scratch: float, expected: str, outside: bool
) -> None:
    seed = replace(SEEDS[0], finetune=trained(finetune, 1), scratch=trained(scratch, 1), n_test=280)
    result: FinetuningResult = summarise([seed], QUICK, 1, WEIGHTS)
    assert (result.gain.verdict, result.gain.outside_both_intervals) == (expected, outside)
