"""The words about classes on the terminal: the majority, the worst five, classes of one split."""

from dataclasses import replace

import pytest
import torch

from sureclr.cli.evaluation_commands import summaries
from sureclr.evaluation.results import KnnResult
from sureclr.evaluation.tables import class_numbers
from sureclr.maths.metrics import wilson_interval

NAMES = ("ant", "bee", "cow", "dog", "eel", "fox", "gnu", "hen")


def result(right: list[int], tested: list[int], trained: list[int]) -> KnnResult:
    """A vote in which the mistakes of each class are taken for the next one."""
    truth = torch.arange(len(tested)).repeat_interleave(torch.tensor(tested))
    hits = torch.cat([torch.arange(n) < r for n, r in zip(tested, right, strict=True)])
    named = torch.where(hits, truth, (truth + 1) % len(tested))
    learned = torch.arange(len(trained)).repeat_interleave(torch.tensor(trained))
    interval = wilson_interval(sum(right), sum(tested))
    return KnnResult(
        accuracy=sum(right) / sum(tested),
        interval=interval,
        k=20,
        n_train=sum(trained),
        n_test=sum(tested),
        baselines=None,
        baseline_intervals=None,
        by_class=class_numbers(learned, truth, named, NAMES),
    )


def test_the_worst_five_with_counts_and_what_they_are_taken_for() -> None:
    made = result([10, 9, 8, 7, 6, 5, 4, 3], [10] * 8, [20] * 8)
    lines = summaries({"knn": made})[0].split("\n")
    numbers = made.by_class
    assert numbers is not None and "raw pixels" not in lines[0]
    assert f"balanced accuracy {numbers.balanced_accuracy:.4f}" in lines[1]
    assert f"macro F1 {numbers.macro_f1:.4f}" in lines[1]
    assert "always naming the commonest class (ant) reaches 0.1250" in lines[1]
    worst = lines[lines.index("  The classes with the lowest accuracy:") + 1 :]
    assert [line.split()[0] for line in worst] == ["hen", "gnu", "fox", "eel", "dog"]
    assert "0.300" in worst[0] and "10 test images" in worst[0] and "7 taken for ant" in worst[0]


def test_classes_without_a_mistake_are_not_called_the_worst() -> None:
    lines = summaries({"knn": result([10, 9], [10, 10], [20, 20])})[0].split("\n")
    assert len(lines) == 4 and lines[3].split()[0] == "bee"
    assert len(summaries({"knn": result([10, 10], [10, 10], [20, 20])})[0].split("\n")) == 2


@pytest.mark.parametrize(
    ("right", "words"),
    [
        ([76, 2], "is not clearly better than always"),
        ([10, 2], "is worse than always"),
        ([80, 20], ""),
    ],
)
def test_an_accuracy_is_held_against_the_majority_both_ways(right: list[int], words: str) -> None:
    text = summaries({"knn": result(right, [80, 20], [300, 70])})[0]
    assert (words in text) if words else ("always naming that one class" not in text)


def test_a_result_of_an_older_file_is_one_line() -> None:
    made = replace(result([9, 9], [10, 10], [20, 20]), by_class=None)
    assert "\n" not in summaries({"knn": made})[0]


def test_one_image_is_one_image() -> None:
    text = summaries({"knn": result([5, 0], [9, 1], [20, 0])})[0]
    assert "counted as wrong: bee (1 test image)" in text and "1 test image)" in text
