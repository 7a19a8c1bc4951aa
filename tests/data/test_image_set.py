"""ImageSet: what it refuses, that selections follow every column, and resizing and recolouring
against Pillow.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from sureclr.data import image_set
from sureclr.data.cached_pixels import CachedPixels
from sureclr.data.image_set import (
    OF_CONTENTS,
    ImageSet,
    Indices,
    convert,
    digest_of_labels,
    digest_of_pixels,
    recolour,
    resize,
)
from sureclr.data.pictures import Pictures
from sureclr.errors import UserError


def a_set(n: int = 6, channels: int = 3, height: int = 5, width: int = 5) -> ImageSet:
    generator = torch.Generator().manual_seed(n)
    return ImageSet(
        name="made",
        images=torch.randint(
            0, 256, (n, channels, height, width), generator=generator, dtype=torch.uint8
        ),
        labels=torch.tensor([0, 1, 0, -1, -1, 1][:n]),
        classes=("a", "b"),
        split=np.array(["train", "train", "train", "unlabelled", "unlabelled", "test"][:n]),
        paths=[f"{i}.png" for i in range(n)],
        folds=torch.tensor([[0, 2], [1, 2]]),
    )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"images": torch.zeros(6, 3, 5, 5)}, "uint8"),
        ({"images": torch.zeros(6, 5, 5, dtype=torch.uint8)}, r"\(n, c, h, w\)"),
        ({"images": torch.zeros(6, 33, 5, 5, dtype=torch.uint8)}, "c = 1 to 32 channels"),
        (
            {"pictures": Pictures.of_array(torch.zeros(5, 3, 9, 9, dtype=torch.uint8))},
            "5 whole pictures of 3 channels for 6 images",
        ),
        ({"images": torch.zeros(6, 3, 0, 5, dtype=torch.uint8)}, "some pixels"),
        ({"images": torch.zeros(7, 3, 5, 5, dtype=torch.uint8)}, r"int64 \(7,\)"),
        ({"labels": torch.zeros(6)}, "int64"),
        ({"labels": torch.tensor([0, 1, 0, -1, -1, 2])}, r"labels -1\.\.2 but 2 classes"),
        ({"labels": torch.tensor([0, 1, 0, -1, -2, 1])}, r"-2\.\.1"),
        ({"split": np.array(["train"] * 5 + ["dev"])}, "'dev'"),
        ({"split": np.array(["train"] * 5)}, "5 splits"),
        ({"paths": ["x"]}, "1 paths"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"int64 \(6,\)"),
        ({"folds": torch.tensor([[6]])}, "fold"),
        ({"folds": torch.tensor([[-1]])}, "fold"),
    ],
)
def test_a_wrong_column_is_refused_at_birth(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(a_set(), **wrong)  # type: ignore[arg-type]


def test_the_splits_are_the_rows_with_that_name() -> None:
    images = a_set()
    assert list(images.train.paths) == ["0.png", "1.png", "2.png"]
    assert list(images.test.paths) == ["5.png"]
    assert list(images.pretraining.paths) == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert images.rows("test", "train").tolist() == [0, 1, 2, 5]
    assert images.labelled and not images.select([3, 4]).labelled
    assert len(images.test.test.select([])) == 0 and len(images.test.train) == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-6, 5), max_size=9))
def test_a_selection_takes_the_same_rows_of_every_column(rows: list[int]) -> None:
    images = a_set()
    chosen = images.select(rows)
    assert chosen.images.tolist() == [images.images[i].tolist() for i in rows]
    assert chosen.labels.tolist() == [int(images.labels[i]) for i in rows]
    assert chosen.split.tolist() == [images.split[i] for i in rows]
    assert list(chosen.paths) == [images.paths[i] for i in rows]


MASK = np.array([False, True, False, True, False, False])


@pytest.mark.parametrize(
    "rows",
    [MASK, torch.from_numpy(MASK), np.array([1, 3]), torch.tensor([1, 3]), [1, 3], [-5, 3]],
    ids=["mask", "tensor mask", "array", "tensor", "list", "from the end"],
)
def test_a_mask_a_tensor_and_an_array_select_alike(rows: Indices) -> None:
    assert list(a_set().select(rows).paths) == ["1.png", "3.png"]


@pytest.mark.parametrize("rows", [[6], [-7], np.ones(5, dtype=bool), np.ones(7, dtype=bool)])
def test_rows_that_do_not_exist_are_refused(rows: Indices) -> None:
    with pytest.raises(IndexError):
        a_set().select(rows)


def test_neighbouring_rows_share_memory_and_others_do_not() -> None:
    images = a_set()
    images.select([2, 3, 4]).images.fill_(7)
    images.select([0, 5]).images.fill_(9)
    assert (images.images[2:5] == 7).all()
    assert not (images.images[0] == 9).all()


def test_folds_name_the_same_images_after_a_selection() -> None:
    images = a_set()
    moved = images.select([2, 5, 1, 0])
    assert images.folds is not None and moved.folds is not None
    assert [[moved.paths[i] for i in fold] for fold in moved.folds] == [
        [images.paths[i] for i in fold] for fold in images.folds
    ]
    assert images.select([0, 1]).folds is None  # image 2 of both folds is gone


@pytest.mark.parametrize("size", [3, 8, 17, 32, 51])
def test_resizing_is_pillows_antialiased_bilinear(size: int) -> None:
    pixels = a_set(3, 3, 32, 32).images
    ours = resize(pixels, size)
    for image, mine in zip(pixels, ours, strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
            (size, size), Image.Resampling.BILINEAR
        )
        theirs = torch.from_numpy(np.array(pillow)).permute(2, 0, 1)
        difference = (mine.int() - theirs.int()).float()
        assert (
            difference.abs().max() <= 1 and difference.mean().abs() < 0.15
        )  # Pillow rounds twice; cutting off is -0.5
    assert torch.equal(resize(pixels, 32), pixels)


def test_oblong_images_keep_their_centre_square() -> None:
    wide = torch.zeros(1, 1, 4, 10, dtype=torch.uint8)
    wide[..., 3:7] = torch.arange(4, dtype=torch.uint8)
    assert torch.equal(resize(wide, 4)[0, 0, 0], torch.arange(4, dtype=torch.uint8))
    assert torch.equal(
        resize(wide.transpose(2, 3), 4)[0, 0, :, 0], torch.arange(4, dtype=torch.uint8)
    )


def test_grey_is_pillows_rec_601_luma_to_the_bit() -> None:
    pixels = a_set(3, 3, 64, 64).images
    theirs = [
        np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in pixels
    ]
    assert recolour(pixels, 1).squeeze(1).tolist() == [grey.tolist() for grey in theirs]
    assert (recolour(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), 1) == 255).all()


def test_convert_brings_a_set_to_another_runs_shape_and_leaves_the_rest() -> None:
    grey = a_set(channels=1)
    colour = convert(grey, size=9, channels=3)
    assert colour.images.shape == (6, 3, 9, 9) and colour.images.dtype == torch.uint8
    assert torch.equal(colour.images[:, 0], colour.images[:, 2])
    assert torch.equal(convert(grey, channels=3).images[:, 1:2], grey.images)
    assert colour.labels is grey.labels and colour.paths is grey.paths
    assert convert(grey, 5, 1) is grey and convert(grey) is grey
    assert convert(grey.select([]), 9, 3).images.shape == (0, 3, 9, 9)


@pytest.mark.parametrize(
    ("size", "channels", "words"),
    [
        (0, 1, "size must be at least 1 pixel, not 0"),
        (5, 33, "channels must be .* up to 32, not 33"),
    ],
)
def test_impossible_shapes_are_refused(size: int, channels: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        convert(a_set(channels=1), size, channels)


def test_one_pixel_is_a_size() -> None:
    assert convert(a_set(), 1).images.shape == (6, 3, 1, 1)


@pytest.mark.parametrize("images_at_once", [1, 4, 5, 6, 7])
def test_how_many_images_are_converted_at_once_changes_nothing(
    images_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert(a_set(), 3, 1).images
    monkeypatch.setattr(image_set, "images_at_once", lambda pixels: images_at_once)
    assert torch.equal(convert(a_set(), 3, 1).images, whole)


# --- The digest


def other(**columns: object) -> ImageSet:
    return replace(a_set(), **columns)  # type: ignore[arg-type]


def one_pixel_more() -> Tensor:
    pixels = a_set().images.clone()
    pixels[5, 2, 4, 4] ^= 1
    return pixels


def digests(images: ImageSet) -> tuple[str, str]:
    return digest_of_pixels(images), digest_of_labels(images)


def test_labels_have_a_digest_of_their_own() -> None:
    """So that other labels leave the embeddings as they are."""
    pixels, labels = digests(other(labels=torch.tensor([0, 1, 0, -1, -1, 0])))
    assert pixels == digests(a_set())[0] and labels != digests(a_set())[1]
    pixels, labels = digests(other(paths=[f"{i}.jpg" for i in range(6)]))
    assert pixels != digests(a_set())[0] and labels == digests(a_set())[1]


@pytest.mark.parametrize(
    "changed",
    [
        other(images=one_pixel_more()),
        other(images=a_set().images.transpose(2, 3).contiguous()),
        other(images=a_set().images.view(6, 3, 25, 1)),
        other(labels=torch.tensor([0, 1, 0, -1, -1, 0])),
        other(classes=("a", "c")),
        other(classes=("a", "b", "c")),
        other(split=np.array(["train"] * 5 + ["test"])),
        other(paths=[f"{i}.jpg" for i in range(6)]),
        a_set().select([1, 0, 2, 3, 4, 5]),
        a_set().select(range(5)),
    ],
    ids=["pixel", "turned", "shape", "label", "class", "classes", "split", "paths", "order", "n"],
)
def test_the_digest_changes_with_every_column(changed: ImageSet) -> None:
    assert digests(changed) != digests(a_set())


@pytest.mark.parametrize(
    "same",
    [
        other(name="else", note="read twice", folds=None),
        other(images=a_set().images.to(memory_format=torch.channels_last)),
        other(paths=tuple(f"{i}.png" for i in range(6))),
        other(split=np.array(a_set().split, dtype="<U40")),
    ],
    ids=["name", "memory", "tuple", "type"],
)
def test_the_digest_is_of_what_the_images_are(same: ImageSet) -> None:
    assert digests(same) == digests(a_set())


def cached(made: str = "8 pixels", **columns: object) -> ImageSet:
    """The set with pixels of the cache of picture files, whose contents are known."""
    contents = [f"{i:064x}" for i in range(6)]
    pixels = CachedPixels(a_set().images, None, made)
    return other(**{"images": pixels, "contents": contents, **columns})


def wider(images: ImageSet) -> Pictures:
    return Pictures.of_array(torch.zeros(len(images), 3, 5, 9, dtype=torch.uint8))


def test_pixels_of_the_cache_are_known_by_their_contents_and_not_read() -> None:
    """Of other pixels with the same contents the digest is the same: nothing looks at them."""
    digest = digest_of_pixels(cached())
    blank = CachedPixels(torch.zeros_like(a_set().images), None, "8 pixels")
    assert digest_of_pixels(cached(images=blank)) == digest and digest.endswith(OF_CONTENTS)
    changed = [
        cached("9 pixels"),
        cached(contents=[f"{i:064x}" for i in range(1, 7)]),
        cached(pictures=wider(a_set())),
        cached(paths=[f"{i}.jpg" for i in range(6)]),
        cached(split=np.array(["train"] * 5 + ["test"])),
        cached().select([1, 0, 2, 3, 4, 5]),
        cached(images=a_set().images),  # a user's own pixels under the contents of others
    ]
    assert len({digest, *map(digest_of_pixels, changed)}) == 8


def test_a_digest_of_an_older_version_is_found_again() -> None:
    """The witness is that digest itself: of the same set, without what an older version had not."""
    older = digest_of_pixels(a_set())
    assert digest_of_pixels(cached(), [older]) == older
    assert digest_of_pixels(cached(), [older, digest_of_pixels(cached())]) != older
    for known in ((), ["0" * 64], [digest_of_pixels(cached("9 pixels"))]):
        assert digest_of_pixels(cached(), known) == digest_of_pixels(cached())


def test_the_digest_of_an_empty_set_exists() -> None:
    assert [len(digest) for digest in digests(a_set().select([]))] == [64, 64]
