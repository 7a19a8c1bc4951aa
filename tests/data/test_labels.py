"""Which images have labels: balance by brute force, the same choice for a seed, and one clear
sentence for each bad file.
"""

import re
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sureclr.data.image_set import ImageSet
from sureclr.data.label_request import LabelFile, LabelRequest
from sureclr.data.labels import (
    balanced_counts,
    choose_labels,
    hold_out_labels,
    labelled_rows,
    read_labels,
    why_not_tested,
)
from sureclr.errors import UserError
from sureclr.progress import SilentProgress

CLASSES = ("ant", "bee, wild", "cow")


def a_set(train: tuple[int, ...] = (20, 8, 3), unlabelled: int = 5) -> ImageSet:
    """Labelled training images by class, then unlabelled training images, then 6 test images; paths
    000.png, 001.png, ...
    """
    labels = [k for k, count in enumerate(train) for _ in range(count)]
    n = len(labels) + unlabelled + 6
    split = np.array(["train"] * (len(labels) + unlabelled) + ["test"] * 6)
    known = torch.tensor([*labels, *[-1] * unlabelled, 0, 1, 2, 0, 1, 2])
    return ImageSet(
        "made",
        torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1),
        known,
        CLASSES,
        split,
        [f"{i:03d}.png" for i in range(n)],
    )


def of(text: str) -> LabelRequest:
    return LabelRequest.of(text)


# --- What is asked for ----------------------------------------------------------------


def test_a_share_a_count_or_a_file_is_understood() -> None:
    assert (of("10%").share, of(" 0.5 % ").share, of("100%").share) == (0.1, 0.005, 1.0)
    assert (of("500").count, of("10%").count, of("500").share) == (500, None, None)
    assert of("a/b.csv").file == LabelFile(Path("a/b.csv"))
    assert LabelRequest.of("b.csv", "2", "kind").file == LabelFile(Path("b.csv"), "2", "kind")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0%", "above 0% and at most 100%, not 0%"),
        ("120%", "not 120%"),
        ("-1%", "not -1%"),
        ("0", "at least 1, and at least one for each class, not 0"),
        ("-5", "not -5"),
        ("0.1", "neither a share nor a count"),
        ("", "neither"),
        (".5", "neither"),
    ],
)
def test_what_could_mean_two_things_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        of(text)


# --- The choice -----------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_counts_are_the_most_equal_that_exist(available: list[int], data: st.DataObject) -> None:
    """By brute force: the poorest class has as much as any allocation can give it, then the second
    poorest, ...
    """
    total = data.draw(st.integers(0, sum(available)))
    order = data.draw(st.permutations(range(len(available))))
    found = balanced_counts(available, total, order)
    every = (
        counts for counts in product(*(range(a + 1) for a in available)) if sum(counts) == total
    )
    assert sum(found) == total and all(c <= a for c, a in zip(found, available, strict=True))
    assert sorted(found) == max(sorted(counts) for counts in every)


@pytest.mark.parametrize("seed", [0, 1])
def test_chosen_images_are_labelled_training_images_once_each_and_right(seed: int) -> None:
    images = a_set()
    chosen = choose_labels(images, of("15"), seed=seed)
    rows = chosen.rows.tolist()
    assert len(set(rows)) == 15 and all(
        images.split[row] == "train" and images.labels[row] >= 0 for row in rows
    )
    assert torch.equal(chosen.target, images.labels[chosen.rows]) and Counter(
        chosen.target.tolist()
    ) == {0: 6, 1: 6, 2: 3}
    assert torch.equal(chosen.pixels(torch.tensor([3, 0])), images.images[chosen.rows[[3, 0]]])


def test_the_seed_decides_and_more_contains_less() -> None:
    images = a_set((40, 40, 40))
    some, again, more, other = (
        set(choose_labels(images, of(n), seed=seed).rows.tolist())
        for n, seed in (("30", 0), ("30", 0), ("60", 0), ("30", 1))
    )
    assert some == again and some < more and some != other
    assert (
        choose_labels(images, of("25%")).rows.tolist()
        == choose_labels(images, of("30")).rows.tolist()
    )
    drawn = Counter(
        row
        for seed in range(200)
        for row in choose_labels(images, of("30"), seed=seed).rows.tolist()
    )
    assert len(drawn) == 120 and min(drawn.values()) > 25 and max(drawn.values()) < 80, (
        "each is as likely: 50 of 200"
    )


def with_folds() -> ImageSet:
    folds = torch.tensor([[0, 1, 2, 20, 21, 28, 29], [5, 6, 22, 23, 30, 31, 32]])
    return replace(a_set((20, 8, 3)), folds=folds)


@pytest.mark.parametrize(("fold", "words"), [(2, "folds 0 to 1, not 2"), (-1, "not -1")])
def test_a_fold_that_there_is_not_is_refused(fold: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose_labels(with_folds(), of("100%"), fold)


def test_a_fold_is_all_that_is_chosen_from() -> None:
    images = with_folds()
    assert choose_labels(images, of("100%"), 0).rows.tolist() == [0, 1, 2, 20, 21, 28, 29]
    assert choose_labels(images, of("100%"), 1).rows.tolist() == [
        5,
        6,
        22,
        23,
        30,
    ], "31 and 32 have no label"
    with pytest.raises(UserError, match="no folds of its own"):
        choose_labels(a_set(), of("100%"), 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("32", "32 labels are more than the 31 labelled training images of made"),
        ("2", "2 is too few labels for 3 classes.*at least 3 "),
        ("5%", "5% of 31 labelled images, which is 2, is too few"),
    ],
)
def test_too_many_or_too_few_are_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose_labels(a_set(), of(text))


@pytest.mark.parametrize(("text", "count"), [("3", 3), ("31", 31), ("100%", 31)])
def test_the_fewest_and_the_most_labels_are_accepted(text: str, count: int) -> None:
    assert len(choose_labels(a_set(), of(text))) == count


def test_one_label_is_a_count() -> None:
    assert of("1").count == 1


def test_a_class_without_a_label_is_left_out_of_the_classes_to_learn() -> None:
    """Case F10: a class that only test images have used to stop the choice of labels."""
    images = a_set((20, 8, 0))
    chosen = choose_labels(images, of("50%"))
    learned = chosen.with_own_classes()
    assert set(chosen.target.tolist()) == {0, 1} and learned.images.classes == CLASSES[:2]
    names = [images.classes[k] for k in chosen.target]
    assert [learned.images.classes[k] for k in learned.target] == names
    of_rows = [learned.images.labels[row] for row in learned.rows]
    assert torch.equal(torch.stack(of_rows), learned.target)
    cows = images.labels == 2
    assert bool((learned.images.labels[cows] == -1).all())


def test_a_set_without_labels_says_so() -> None:
    images = a_set()
    with pytest.raises(UserError, match="no labelled training image; put the images"):
        choose_labels(
            replace(
                images,
                labels=torch.where(torch.from_numpy(images.split == "train"), -1, images.labels),
            ),
            of("10%"),
        )


def test_the_digest_is_of_images_and_labels_in_any_order() -> None:
    labels = labelled_rows(a_set(), "train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    assert labels[order].digest == labels.digest != labels[order[1:]].digest
    assert replace(labels, target=labels.target.flip(0)).digest != labels.digest


# --- A file ---------------------------------------------------------------------------


def written(folder: Path, *lines: str, header: str = "path,label") -> LabelFile:
    (folder / "mine.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return LabelFile(folder / "mine.csv")


class Heard(SilentProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


GOOD = ("002.png,ant", '021.png,"bee, wild"', "029.png,cow")


def test_a_file_wins_and_where_it_differs_is_counted(tmp_path: Path) -> None:
    heard = Heard()
    file = written(tmp_path, *GOOD, "", "031.png,ant", "003.png,cow")
    labels = read_labels(file, a_set(), progress=heard)
    found = dict(zip(labels.rows.tolist(), labels.target.tolist(), strict=True))
    assert found == {2: 0, 3: 2, 21: 1, 29: 2, 31: 0}
    assert labels.differing == 1, "003 is an ant; 031 had no label"
    assert any("1 of 5 labels in the file are not those of made" in m for m in heard.messages)
    assert any("keep their own labels" in message for message in heard.messages)
    assert labelled_rows(labels.images, "test").rows.tolist() == list(range(36, 42))


def test_labels_of_test_images_are_never_trained_on(tmp_path: Path) -> None:
    file = written(tmp_path, *GOOD, "037.png,ant", "038.png,cow")
    labels = read_labels(file, a_set())
    assert labels.rows.tolist() == [2, 21, 29]
    test = labelled_rows(labels.images, "test")
    assert dict(zip(test.rows.tolist(), test.target.tolist(), strict=True)) == {37: 0, 38: 2}
    with pytest.raises(UserError, match="mine.csv labels only test images of made"):
        read_labels(written(tmp_path, "103.png,ant", "108.png,cow"), bare_set())


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("002.png,ant", "003.png,ent"), r"unknown class 'ent': did you mean ant\?"),
        (("cat.png,ant",), r"names no image of made: .* such as 'cat\.png', .* such as '000\.png'"),
        (GOOD[:1], "are of the one class ant; label images of at least two"),
        ((*GOOD, "021.png,bee, wild"), "line 5: there are 3 fields.*double quotes"),
        ((*GOOD, ",ant"), "line 5: no image is named"),
        (("000.png,",), "has no label for any image of made.*such as 000.png,ant"),
    ],
)
def test_each_bad_file_is_one_sentence(lines: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_labels(written(tmp_path, *lines), a_set())
    assert "mine.csv" in str(caught.value) and "\n" not in str(caught.value)


# --- The part that is held out --------------------------------------------------------


def bare_set(n: int = 100) -> ImageSet:
    """`n` training images and 10 test images without a label."""
    return ImageSet(
        "made",
        torch.zeros(n + 10, 1, 1, 1, dtype=torch.uint8),
        torch.full((n + 10,), -1),
        (),
        np.array(["train"] * n + ["test"] * 10),
        [f"{i:03d}.png" for i in range(n + 10)],
    )


def labelled_set(counts: tuple[int, ...], contents: bool = False) -> ImageSet:
    """The first images have a label, a class after the other."""
    bare, total = bare_set(), sum(counts)
    labels = torch.cat([torch.full((c,), k) for k, c in enumerate(counts)])
    return replace(
        bare,
        labels=torch.cat([labels, bare.labels[total:]]),
        classes=tuple("abcdefgh"[: len(counts)]),
        contents=[str(i // 3) for i in range(110)] if contents else None,
    )


def held_out_rows(images: ImageSet, seed: int = 0) -> set[int]:
    given = hold_out_labels(images, seed)
    assert torch.equal(given.labels, images.labels) and given.paths == images.paths
    return set(labelled_rows(given, "test").rows.tolist())


@pytest.mark.parametrize("counts", [(30, 30), (20, 20, 20), (40, 10, 5, 3, 1), (12, 8)])
def test_a_fifth_to_a_third_of_each_class_is_held_out(counts: tuple[int, ...]) -> None:
    for seed in range(10):
        images = labelled_set(counts)
        rows = held_out_rows(images, seed)
        found = Counter(images.labels[sorted(rows)].tolist())
        for k, count in enumerate(counts):
            least, most = (max(2, round(share * count)) for share in (0.2, 1 / 3))
            assert (least <= found[k] <= most) if count >= 5 else found[k] == 0
        assert rows == held_out_rows(images, seed)
    assert held_out_rows(images, 0) != held_out_rows(images, 1)


def test_more_labels_hardly_ever_move_an_image_to_the_other_side() -> None:
    moved = total = 0
    for seed in range(20):
        fewer, more = labelled_set((30, 30)), labelled_set((30, 30, 30))
        assert held_out_rows(fewer, seed) == {
            row for row in held_out_rows(more, seed) if row < 60
        }, "another class changes nothing"
        bigger = replace(fewer, labels=fewer.labels.clone())
        bigger.labels[60:90] = 0
        moved += len(held_out_rows(fewer, seed) - held_out_rows(bigger, seed))
        total += len(held_out_rows(fewer, seed))
    assert moved < 0.1 * total


def test_copies_of_an_image_stay_on_one_side() -> None:
    images = labelled_set((30, 30), contents=True)
    for seed in range(5):
        rows = held_out_rows(images, seed)
        assert rows and {row // 3 for row in rows}.isdisjoint(
            {row // 3 for row in range(60) if row not in rows}
        )


@pytest.mark.parametrize("rare", [(1,), (4, 2)])
def test_classes_that_are_only_trained_on_are_counted_and_named(rare: tuple[int, ...]) -> None:
    heard = Heard()
    images = labelled_set((15, 10, *rare))
    hold_out_labels(images, progress=heard)
    named = ", ".join(f"{images.classes[2 + i]} ({n})" for i, n in enumerate(rare))
    assert f"only trained on and not tested ({len(rare)}): {named}." in heard.messages[1]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((6, 6), "12 labels are too few .* label 8 more images"),
        ((19,), "all 19 labels are of the class a; label 5 images of another class"),
        ((17, 3), "label 2 more images"),
        ((30, 1), "label 4 more images"),
        ((4, 4, 4, 4, 4), "label 2 more images"),
    ],
)
def test_too_few_labels_are_all_for_training_and_it_is_said_how_many_are_missing(
    counts: tuple[int, ...], words: str
) -> None:
    images = labelled_set(counts)
    assert hold_out_labels(images) is images
    assert re.search(words, why_not_tested(images))
    assert why_not_tested(hold_out_labels(labelled_set((10, 10)))) == ""


def test_nothing_is_held_out_where_test_images_have_labels_enough() -> None:
    images = a_set((20, 8, 3))
    assert hold_out_labels(images) is images and why_not_tested(images) == ""
