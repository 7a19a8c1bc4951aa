"""Splits: by the names of folders, by content, and duplicates, against loops and laws."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sureclr.data.splits import (
    arranged,
    contents_of,
    duplicates_of,
    held_out_by_content,
    split_of_name,
)

CONTENTS = [f"{i:064x}" for i in range(4000)]


def test_a_fifth_is_held_out_by_every_seed() -> None:
    for seed in (0, 1, 2**31 - 1, -5):
        share = held_out_by_content(CONTENTS, seed).mean()
        assert abs(share - 0.2) < 5 * np.sqrt(0.16 / len(CONTENTS))
    both = held_out_by_content(CONTENTS, 0) & held_out_by_content(CONTENTS, 1)
    assert abs(both.mean() - 0.04) < 0.02  # seeds choose independently of each other


@given(st.permutations(range(40)), st.integers(1, 40))
def test_neither_order_nor_other_images_move_an_image(order: list[int], count: int) -> None:
    whole = held_out_by_content(CONTENTS[:40], 3)
    part = held_out_by_content([CONTENTS[i] for i in order[:count]], 3)
    assert part.tolist() == [whole[i] for i in order[:count]]


def test_contents_are_equal_exactly_where_pixels_are() -> None:
    images = torch.randint(0, 2, (60, 1, 2, 2), dtype=torch.uint8)
    found = contents_of(images)
    for i in range(60):
        for j in range(60):
            assert (found[i] == found[j]) == torch.equal(images[i], images[j])
    assert contents_of(images.view(60, 1, 1, 4))[0] != found[0]


@pytest.mark.parametrize(
    ("split", "names"),
    {
        "train": "train Train TRAIN training train_set Train-Set trainset TRAINING_SET"
        " train2017 Train_Images images_train 01_train seg_train train-data",
        "test": "test Test testing test_set TESTSET test1 seg_test test.images",
        "validation": "val Val valid validation dev eval VALIDATION_SET val2017 val_imgs",
        "unlabelled": "unlabelled Unlabeled unlabeled_set unlabeled2017",
        None: "cat trains tester trained values device evaluate labelled steam_train test_tube"
        " train_station data images 2017",
    }.items(),
)
def test_names_of_splits(split: str | None, names: str) -> None:
    assert {split_of_name(name) for name in names.split()} == {split}


def found(*names: str) -> list[tuple[str, str | None, str]]:
    """(Name, split, class) of the images that are used, in their order."""
    order = arranged(names)
    return [
        (names[row], split, group)
        for row, split, group in zip(order.rows, order.splits, order.groups, strict=True)
    ]


def test_splits_at_the_top_in_capitals() -> None:
    assert found("Test/b/1", "Train/a/2", "Train/3", "UNLABELED/x/4") == [
        ("Train/3", "train", ""),
        ("Train/a/2", "train", "a"),
        ("UNLABELED/x/4", "unlabelled", ""),
        ("Test/b/1", "test", "b"),
    ]


def test_splits_below_single_folders() -> None:
    assert found("a/b/training/c/1", "a/b/val/d/2") == [
        ("a/b/training/c/1", "train", "c"),
        ("a/b/val/d/2", "test", "d"),
    ]


def test_splits_inside_each_class() -> None:
    names = ("cat/train/1", "cat/test/2", "dog/train/x/3", "dog/test/4")
    assert found(*names) == [
        ("cat/train/1", "train", "cat"),
        ("dog/train/x/3", "train", "dog"),
        ("cat/test/2", "test", "cat"),
        ("dog/test/4", "test", "dog"),
    ]
    assert arranged(names).words == "the folders inside each class"


def test_validation_is_left_out_beside_a_test_folder() -> None:
    order = arranged(["train/a/1", "val/a/2", "test/a/3", "other/4", "5"])
    assert len(order.rows) == 2 and sum(order.left_out.values()) == 3
    words = " ".join(order.left_out)
    assert "in val/" in words and "in other/" in words and "beside the split folders" in words


def test_a_class_may_be_named_train() -> None:
    """CIFAR-100 has one."""
    names = ("car/1", "plane/2", "train/3")
    assert found(*names) == [
        ("car/1", None, "car"),
        ("plane/2", None, "plane"),
        (*names[2:], None, "train"),
    ]
    (warning,) = arranged(names).warnings
    assert "train/ is taken for a class" in warning


def test_folders_to_test_on_alone_are_no_splits_and_no_classes() -> None:
    """Pictures of which none may be trained on: their classes are inside."""
    names = ["Test/cat/1", "Test/dog/2", "Validation/cat/3"]
    order = arranged(names)
    assert order.splits == [None] * 3 and order.rows == [0, 2, 1]
    assert order.groups == ["cat", "cat", "dog"] and "Test/, Validation/" in order.warnings[0]
    assert arranged(["test/1", "test/2"]).groups == ["", ""]
    assert arranged(["val/test/a/1", "val/train/b/2"]).groups == ["b", "a"]


def test_unlabelled_images_may_be_trained_on() -> None:
    order = arranged(["unlabelled/1", "unlabelled/2", "test/cat/3"])
    assert order.splits == ["unlabelled", "unlabelled", "test"] and order.groups == ["", "", "cat"]


def test_one_folder_that_holds_others_is_no_class() -> None:
    (warning,) = arranged(["images/cat/1", "images/dog/2"]).warnings
    assert "images/" in warning and not arranged(["images/1", "images/2"]).warnings


def test_a_repeated_split_folder_is_no_class() -> None:
    """Archives such as Kaggle's have seg_train/seg_train/forest/1.jpg."""
    names = ("seg_train/seg_train/a/1", "seg_test/seg_test/b/2", "seg_pred/seg_pred/3")
    assert found(*names) == [(names[0], "train", "a"), (names[1], "test", "b")]
    kept = ("train/train/1", "train/car/2", "test/train/3")  # a class may be named train
    assert [group for _, _, group in found(*kept)] == ["car", "train", "train"]


def test_a_picture_above_the_split_folders_changes_nothing() -> None:
    names = ["data/train/a/1", "data/test/b/2"]
    order = arranged([*names, "cover"])
    assert [[*names, "cover"][row] for row in order.rows] == names
    assert order.left_out == {"beside the split folders": 1}
    assert arranged(["cover", "train/a/1"]).splits == [None, None]


@pytest.mark.parametrize(
    "names",
    [
        ["cat/train/1", "cat/test/2", "dog/3"],
        ["images/train/1", "images/val/2", "docs/3"],
        ["a/b/Train/1", "a/b/Test/2", "c/3"],
    ],
)
def test_split_folders_that_are_not_used_are_named(names: list[str]) -> None:
    order = arranged(names)
    assert set(order.splits) == {None}
    (warning,) = order.warnings
    first, second = (name.rsplit("/", 1)[0] + "/" for name in names[:2])
    assert f"{first} and {second} are not used as splits" in warning


def test_classes_without_splits() -> None:
    assert found("dog/x/1", "cat/2", "3") == [
        ("3", None, ""),
        ("cat/2", None, "cat"),
        ("dog/x/1", None, "dog"),
    ]
    assert not arranged(["dog/x/1", "cat/2", "3"]).warnings


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["train", "test", "unlabelled"])),
        min_size=1,
        max_size=30,
    )
)
def test_duplicates_equal_those_of_a_loop(images: list[tuple[str, str]]) -> None:
    contents, split = [c for c, _ in images], np.array([s for _, s in images])
    paths = [f"p{i}" for i in range(len(images))]
    copies, stays = duplicates_of(contents, split, paths)
    learnt = {c for c, s in images if s != "test"}
    expected = [s != "test" or c not in learnt for c, s in images]
    assert stays.tolist() == expected and copies.taken_out == expected.count(False)
    for part in ("train", "test", "unlabelled"):
        counts = Counter(
            c for (c, s), kept in zip(images, expected, strict=True) if s == part and kept
        )
        assert copies.within[part] == sum(count - 1 for count in counts.values())
    for copy, original in copies.named.items():
        assert contents[paths.index(copy)] == contents[paths.index(original)]
        assert split[paths.index(original)] != "test"
