"""Which images have labels: balance by brute force, the same choice for a seed, and one clear
sentence for each bad file.
"""

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
from sureclr.data.label_request import LabelRequest
from sureclr.data.labels import balanced_counts, choose_labels, labelled_rows, read_labels
from sureclr.errors import UserError

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
    assert (of("500").count, of("a/b.csv").file, of("10%").count, of("500").share) == (
        500,
        Path("a/b.csv"),
        None,
        None,
    )


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
    with pytest.raises(UserError, match="not from both"):
        choose_labels(images, of("mine.csv"), 0)


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


def written(folder: Path, *lines: str, header: str = "path,label") -> Path:
    (folder / "mine.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return folder / "mine.csv"


GOOD = ("002.png,ant", '021.png,"bee, wild"', "029.png,cow")


def test_a_file_wins_and_where_it_differs_is_counted(tmp_path: Path) -> None:
    labels = read_labels(written(tmp_path, *GOOD, "", "031.png,ant", "003.png,cow"), a_set())
    assert dict(zip(labels.rows.tolist(), labels.target.tolist(), strict=True)) == {
        2: 0,
        3: 2,
        21: 1,
        29: 2,
        31: 0,
    }
    assert labels.differing == 1, "003 is an ant; 031 had no label"
    windows = tmp_path / "windows.csv"
    windows.write_bytes(
        (
            "\ufeffLabel,note,Path\r\n"
            + "\r\n".join(
                f"{k},x,{p}"
                for p, k in (("002.png", "ant"), ("021.png", '"bee, wild"'), ("029.png", "cow"))
            )
            + "\r\n"
        ).encode()
    )
    assert read_labels(windows, a_set()).rows.tolist() == [2, 21, 29]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("002.png,ant", "003.png,ent"), r"line 3: unknown class 'ent': did you mean ant\?"),
        (
            ("cat.png,ant",),
            r"line 2: made has no image 'cat\.png'; its training images have names like 000\.png",
        ),
        ((*GOOD, "", "002.png,ant"), "line 6: 002.png was already labelled ant in line 2; delete"),
        (
            (*GOOD, "002.png,cow"),
            "line 5: 002.png is labelled cow here and ant in line 2; keep the right one",
        ),
        ((*GOOD, "037.png,ant"), "line 5: 037.png is a test image"),
        ((*GOOD, "003.png"), "line 5: there are 1 fields, and the header has 2"),
        ((*GOOD, "021.png,bee, wild"), "line 5: there are 3 fields.*double quotes"),
        ((*GOOD, "003.png,"), "line 5: there is no label; fill it in"),
        ((*GOOD, ",ant"), "line 5: there is no path"),
        ((), "has a header and no label below it; add lines such as 000.png,ant"),
    ],
)
def test_each_bad_line_is_one_sentence_with_its_number(
    lines: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_labels(written(tmp_path, *lines), a_set())
    assert "mine.csv" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty; write a share"),
        (b"image,class\n1,2\n", "line 1: the header must be path,label, not 'image,class'"),
        (b"path,label,label\n", "line 1: the header"),
        (b"path,label\n002.png,ant\n\xff\xfe,ant\n", "line 3: not UTF-8"),
    ],
)
def test_a_bad_file_is_one_sentence(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_labels(tmp_path / "mine.csv", a_set())


def test_a_file_that_is_not_there_or_a_set_without_classes(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"labels '.*none\.csv' is neither a share nor a count, and there is no such file",
    ):
        read_labels(tmp_path / "none.csv", a_set())
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path, a_set())
    bare = a_set((1, 1, 1))
    with pytest.raises(UserError, match="has no classes"):
        read_labels(
            written(tmp_path, *GOOD),
            replace(bare, labels=torch.full_like(bare.labels, -1), classes=()),
        )
