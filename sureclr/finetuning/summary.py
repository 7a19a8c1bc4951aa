"""The numbers over the seeds of a fine-tuning: means, intervals and the verdict."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

from sureclr.evaluation.results import Interval
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.results import (
    ClassMeans,
    FinetuningResult,
    Gain,
    RivalAccuracies,
    RivalIntervals,
    Rivals,
    SavedWeights,
    SeedResult,
)
from sureclr.maths.metrics import Verdict, verdict, wilson_interval


def summarise(
    per_seed: Sequence[SeedResult],
    config: FinetuneConfig,
    n_seeds: int,
    weights: SavedWeights,
    not_tested: str = "",
) -> FinetuningResult:
    """Return the result of the seeds that are finished.

    Args:
        per_seed: one or more finished seeds.
        config: the settings they were made with.
        n_seeds: number of seeds that were asked for.
        weights: the saved classifier.
        not_tested: why there is no test image; "" where there are some.
    """
    n_test = per_seed[0].n_test
    trained = [score for seed in per_seed for score in (seed.finetune, seed.scratch) if score]
    accuracies = _accuracies(per_seed)
    finetuned, scratch, linear = accuracies.values()
    interval = rivals = None
    if finetuned:
        interval = accuracy_interval(finetuned, n_test)
        rivals = RivalIntervals(
            accuracy_interval(scratch, n_test), accuracy_interval(linear, n_test)
        )
    return FinetuningResult(
        accuracy=mean(finetuned) if finetuned else None,
        interval=interval,
        interval_of=_interval_of(finetuned),
        accuracies=finetuned,
        n_labels=per_seed[0].n_labels,
        n_test=n_test,
        baselines=Rivals(mean(scratch), mean(linear)) if finetuned else None,
        baseline_intervals=rivals,
        baseline_accuracies=RivalAccuracies(scratch, linear) if finetuned else None,
        gain=(
            _gain(finetuned, scratch, verdict(interval, rivals.scratch))
            if interval is not None and rivals is not None
            else None
        ),
        seeds=len(per_seed),
        complete=len(per_seed) == n_seeds,
        weights=weights,
        cpu_seconds=sum(score.cpu_seconds for score in trained),
        configuration=config,
        per_seed=tuple(per_seed),
        not_tested=not_tested,
        class_means=_class_means(per_seed),
    )


def _class_means(per_seed: Sequence[SeedResult]) -> ClassMeans | None:
    """None where a seed lacks the numbers, as those of older files."""
    classes = [seed.finetune.by_class for seed in per_seed if seed.finetune.by_class is not None]
    if len(classes) < len(per_seed):
        return None

    def over_seeds(arm: str, name: str) -> float:
        return mean([float(getattr(getattr(seed, arm), name)) for seed in per_seed])

    balanced, f1 = "balanced_accuracy", "macro_f1"
    return ClassMeans(
        balanced_accuracy=over_seeds("finetune", balanced),
        macro_f1=over_seeds("finetune", f1),
        baseline_balanced_accuracy=Rivals(
            over_seeds("scratch", balanced), over_seeds("linear", balanced)
        ),
        baseline_macro_f1=Rivals(over_seeds("scratch", f1), over_seeds("linear", f1)),
        majority_class=classes[0].majority_class,
        majority_baseline=mean(each.majority_baseline for each in classes),
    )


def _accuracies(per_seed: Sequence[SeedResult]) -> dict[str, tuple[float, ...]]:
    """The test accuracies of the three classifiers; all empty where nothing was tested."""
    names = ("finetune", "scratch", "linear")
    scores = {name: [getattr(seed, name) for seed in per_seed] for name in names}
    return {
        name: tuple(
            score.accuracy for score in of_seeds if score is not None and score.accuracy is not None
        )
        for name, of_seeds in scores.items()
    }


def _interval_of(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return "there are no test images"
    if len(accuracies) > 1:
        return "95 %, Student's t over seeds"
    return "95 %, Wilson's over test images (one seed)"


def _gain(finetuned: Sequence[float], scratch: Sequence[float], verdict: Verdict) -> Gain:
    gains = [a - b for a, b in zip(finetuned, scratch, strict=True)]
    return Gain(
        mean=mean(gains),
        interval=student_interval(gains) if len(gains) > 1 else None,
        outside_both_intervals=verdict != "no difference found",
        verdict=verdict,
    )


def accuracy_interval(accuracies: Sequence[float], n_test: int) -> Interval:
    """Return the 95 % interval of a mean accuracy.

    Several seeds: Student's t over seeds, cut to [0, 1]. One seed: Wilson's over its test images.

    Args:
        accuracies: of each seed.
        n_test: number of test images of a seed.
    """
    if len(accuracies) == 1:
        low, high = wilson_interval(round(accuracies[0] * n_test), n_test)
        return low, high
    low, high = student_interval(accuracies)
    return max(0.0, low), min(1.0, high)


def student_interval(values: Sequence[float]) -> Interval:
    """Return the 95 % interval of the mean of two or more values by Student's t.

    It is mean -+ t s / sqrt(n), with t the 97.5 % quantile of Student's distribution with n - 1
    degrees of freedom and s the standard deviation of the sample.
    """
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half
