"""What changes nothing gives exactly 1 and 0; planted models read one thing alone.

Operations are compared with torchvision's.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from json_round_trip import read_back
from torch import Tensor
from torch.nn.functional import normalize

import sureclr.compat  # noqa: F401  (before torchvision)
from sureclr.config import ViewConfig
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.invariances import (
    TRANSFORMATIONS,
    choose_images,
    measure_sensitivity,
    respond,
)
from sureclr.evaluation.scores import image_seeds

SIDE = 16


def pictures(
    n: int = 40, channels: int = 3, splits: tuple[str, ...] = ("train", "test")
) -> ImageSet:
    pixels = torch.randint(
        0,
        256,
        (n, channels, SIDE, SIDE),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    split = np.asarray([splits[i % len(splits)] for i in range(n)])
    return ImageSet("pictures", pixels, torch.full((n,), -1), (), split, [str(i) for i in range(n)])


def planted(
    see: Callable[[Tensor], Tensor], certainty: Callable[[Tensor], Tensor] | None = None
) -> Callable[[ImageSet], Embeddings]:
    """A model whose features are what `see` makes of floats (n, c, h, w)."""

    def embed(images: ImageSet) -> Embeddings:
        x = images.images.float() / 255
        h = see(x)
        sure = None if certainty is None else certainty(x)
        return Embeddings(
            h,
            normalize(h, dim=1),
            sure,
            sure,
            images.labels,
            images.classes,
            images.split,
            images.paths,
        )

    return embed


pixelwise = planted(lambda x: x.flatten(1) - 0.5, lambda x: x.mean((1, 2, 3)))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_strength_that_changes_nothing_changes_nothing_and_others_do(name: str) -> None:
    t, images = TRANSFORMATIONS[name], pictures()
    seeds = image_seeds(images, 0, 1)
    assert torch.equal(t.apply(images.images, seeds, t.none), images.images)
    clean = pixelwise(images)
    found = respond(pixelwise, images, replace(t, strengths=(t.none,)), clean, 0)
    assert (
        found.direction == pytest.approx([1], abs=1e-12)
        and found.certainty == (0,)
        and found.feature == pytest.approx([1])
    )
    assert found.direction_sd == pytest.approx([0], abs=1e-12)
    for strength in t.strengths:
        changed = t.apply(images.images, seeds, strength)
        assert (
            changed.dtype == torch.uint8
            and changed.shape == images.images.shape
            and not torch.equal(changed, images.images)
        )


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("brightness", "adjust_brightness"),
        ("contrast", "adjust_contrast"),
        ("saturation", "adjust_saturation"),
        ("hue", "adjust_hue"),
    ],
)
def test_colour_operations_are_torchvisions(name: str, theirs: str) -> None:
    from torchvision.transforms import functional

    images = pictures().images
    for strength in TRANSFORMATIONS[name].strengths:
        ours = TRANSFORMATIONS[name].apply(images, torch.arange(len(images)), strength)
        expected = getattr(functional, theirs)(images.float() / 255, strength) * 255
        assert (ours.float() - expected).abs().max() <= 0.51  # rounding


def test_grey_takes_the_colour_and_flip_mirrors() -> None:
    images = pictures().images
    grey = TRANSFORMATIONS["grey"].apply(images, torch.arange(40), 1.0).int()
    assert bool(((grey - grey[:, :1]).abs() <= 1).all())
    assert np.array_equal(
        TRANSFORMATIONS["flip"].apply(images, torch.arange(40), 1), images.numpy()[..., ::-1]
    )


def test_rotation_is_torchvisions_inside_the_circle_and_exact_at_quarter_turns() -> None:
    from torchvision.transforms import InterpolationMode, functional

    images, rotate = pictures().images, TRANSFORMATIONS["rotation"].apply
    for quarter in (1, 2, 3):
        assert torch.equal(
            rotate(images, torch.arange(40), 90 * quarter), images.rot90(quarter, (2, 3))
        )
    y, x = torch.meshgrid(*[torch.arange(SIDE) - (SIDE - 1) / 2] * 2, indexing="ij")
    inside = (y.square() + x.square()).sqrt() < SIDE / 2 - 1
    theirs = functional.rotate(images.float() / 255, 20, InterpolationMode.BILINEAR) * 255
    ours = rotate(images, torch.arange(40), 20).float()
    assert (ours - theirs)[..., inside].abs().max() <= 0.6


def test_a_model_that_sees_one_thing_is_moved_by_that_alone() -> None:
    """Mean colour: nothing that keeps it moves the direction; mirror-sensitive: flip does.
    Certainty is the brightness.
    """
    images = pictures()
    colour_only = measure_sensitivity(
        planted(lambda x: x.mean((2, 3)), lambda x: x.mean((1, 2, 3))), images, ViewConfig()
    )
    found = {name: t.responses for name, t in colour_only.transformations.items()}
    assert found["flip"].direction == pytest.approx([1], abs=1e-9)
    assert found["occlusion"].direction == pytest.approx([1] * 5, abs=1e-3)
    assert found["brightness"].direction[0] == pytest.approx(1, abs=1e-3)  # darker, same hue
    assert found["hue"].direction[0] < 1 - 1e-5
    test = images.test.images.float() / 255
    deviation = float(test.mean((1, 2, 3)).std())
    darker = float((0.3 * test).mean() - test.mean())
    assert found["brightness"].certainty[0] == pytest.approx(darker / deviation, rel=2e-2)
    assert found["brightness"].radius[0] == pytest.approx(0.3 * float(test.mean()), rel=2e-2)
    half = planted(
        lambda x: (
            torch.stack(
                [x[..., : SIDE // 2].mean((1, 2, 3)), x[..., SIDE // 2 :].mean((1, 2, 3))], 1
            )
            - 0.5
        )
    )
    mirrored = measure_sensitivity(half, images, ViewConfig()).transformations["flip"].responses
    assert mirrored.direction[0] < 0.5


def test_the_response_by_loops() -> None:
    a, b = pixelwise(pictures()), pixelwise(pictures().select(list(range(39, -1, -1))))
    # A change of any kind: here, the images in reverse order
    reverse = replace(TRANSFORMATIONS["flip"], apply=lambda images, *_: images.flip(0))
    found = respond(pixelwise, pictures(), reverse, a, 0)
    cosines = [float(b.direction[i].double() @ a.direction[i].double()) for i in range(40)]
    assert found.direction == pytest.approx([np.mean(cosines)], abs=1e-6)
    assert found.direction_sd == pytest.approx([np.std(cosines, ddof=1)], abs=1e-6)


def test_trained_is_the_range_that_training_drew_from() -> None:
    def trained(views: ViewConfig, side: int) -> dict[str, object]:
        return {name: t.trained(views, side) for name, t in TRANSFORMATIONS.items()}

    found = trained(ViewConfig(strength=0.5), 96)
    assert (
        found["crop"] == (0.08, 1.0)
        and found["flip"] is True
        and found["grey"] is True
        and found["blur"] == (0.1, 2.0)
    )
    assert found["brightness"] == pytest.approx([0.6, 1.4]) and found["hue"] == pytest.approx(
        [-0.1, 0.1]
    )
    assert not any(found[name] for name in ("rotation", "occlusion", "noise"))
    assert trained(ViewConfig(), 96)["contrast"] == pytest.approx([0.2, 1.8])
    assert trained(ViewConfig(brightness=1.5), 96)["brightness"] == pytest.approx(
        [0, 2.5]
    )  # never negative
    off = trained(ViewConfig(crop_area=(1.0, 1.0), flip=0, jitter_p=0, grey_p=0, blur_p=0), 96)
    assert not any(off.values())
    assert trained(ViewConfig(), 16)["blur"] is False  # the kernel is one pixel


def test_grey_images_skip_colour_with_the_reason_and_no_certainty_is_none() -> None:
    found = measure_sensitivity(
        planted(lambda x: x.flatten(1) - 0.5), pictures(channels=1), ViewConfig()
    )
    assert read_back(found) == found
    skipped = {name for name, t in found.transformations.items() if t.skipped}
    assert skipped == {"saturation", "hue", "grey"}
    noise = found.transformations["noise"].responses
    assert noise.certainty is None and noise.radius is None
    assert found.transformations["hue"].responses is None
    assert found.transformations["hue"].skipped == "grey images have no colour"
    assert found.n == 20


def test_different_images_are_the_reference_and_test_images_are_looked_at() -> None:
    images = pictures()
    test = pixelwise(images.test)
    pairs = [
        float(test.direction[i] @ test.direction[j]) for i in range(20) for j in range(20) if i != j
    ]
    found = measure_sensitivity(pixelwise, images, ViewConfig())
    assert found.different_images == pytest.approx(np.mean(pairs), abs=1e-6)
    unit = normalize(test.features.double(), dim=1)
    of_features = [float(unit[i] @ unit[j]) for i in range(20) for j in range(20) if i != j]
    assert found.different_images_feature == pytest.approx(np.mean(of_features), abs=1e-6)
    many = pictures(1200)
    chosen = choose_images(many, 0)
    assert len(chosen) == 500 and set(chosen.split.tolist()) == {"test"}
    assert list(chosen.paths) == sorted(chosen.paths, key=int)
    assert list(choose_images(many, 1).paths) != list(chosen.paths)
    assert len(choose_images(pictures(splits=("train",)), 0)) == 40
    assert len(choose_images(pictures(4), 0)) == 2  # two are enough
    with pytest.raises(UserError, match="two or more"):
        measure_sensitivity(pixelwise, pictures(2), ViewConfig())


def test_equal_certainties_have_no_deviation_to_count_in() -> None:
    constant = planted(lambda x: x.flatten(1) - 0.5, lambda x: torch.full((len(x),), 0.5))
    found = measure_sensitivity(constant, pictures(), ViewConfig())
    assert found.transformations["noise"].responses.certainty is None


def test_certainties_that_are_not_finite_are_refused() -> None:
    broken = planted(lambda x: x.flatten(1), lambda x: torch.full((len(x),), torch.nan))
    with pytest.raises(UserError, match="certainties must be finite"):
        measure_sensitivity(broken, pictures(), ViewConfig())
