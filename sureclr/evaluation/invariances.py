"""What it ignores: how far direction, features and certainty move when an image is changed by a
known strength.

SimCLR's own augmentations one at a time (invariance was trained), and rotation, occlusion and
noise, which nobody trained: the controls. Each is applied to whole test images; what changes
nothing gives a cosine of 1 and a change of certainty of 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sureclr.config import ViewConfig
from sureclr.data import colour, counter_rng
from sureclr.data.corruptions import CORRUPTIONS, to_uint8
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.calibration import Embed, image_seeds
from sureclr.files import json_able
from sureclr.training.monitor import mean_cosine_of_different

Result = dict[str, Any]
Apply = Callable[[Tensor, Tensor, float], Tensor]

IMAGES = 500  # test images looked at: the standard error of a mean cosine is then below 0.02
STREAM, CHOSEN = 3002, 3003  # streams of seeds


@dataclass(frozen=True)
class Transformation:
    """A change of a known strength.

    Attributes:
        apply: images uint8 (n, c, h, w), seeds (n,), strength -> images uint8.
        none: the strength that changes nothing.
        strengths: where it is measured.
        unit: what a strength counts.
        trained: the range that training drew from, True for a coin that training tossed, False
            where it was not trained.
        colour: whether grey images have none of it.
    """

    label: str
    apply: Apply
    none: float
    strengths: tuple[float, ...]
    unit: str
    trained: Callable[[ViewConfig, int], list[float] | bool]
    colour: bool = False


def factor_of(operation: Callable[[Tensor, Tensor], Tensor]) -> Apply:
    """An operation of colour.py with one factor for all images."""
    return lambda images, seeds, strength: to_uint8(
        operation(images.float() / 255, torch.full((len(images),), strength))
    )


def flip(images: Tensor, seeds: Tensor, strength: float) -> Tensor:
    """0 leaves the image, 1 mirrors it left to right."""
    return images.flip(3) if strength else images


def rotation(images: Tensor, seeds: Tensor, degrees: float) -> Tensor:
    """Counter-clockwise about the centre, bilinear; what comes in from outside is the image
    reflected.
    """
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0]])
    grid = F.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return to_uint8(
        F.grid_sample(images.double() / 255, grid, padding_mode="reflection", align_corners=False)
    )


def jittered(amount: str, centre: float) -> Callable[[ViewConfig, int], list[float] | bool]:
    """The range of a colour factor in training."""

    def trained(views: ViewConfig, side: int) -> list[float] | bool:
        reach = views.strength * getattr(views, amount)
        return (
            [max(centre - 1, centre - reach), centre + reach] if views.jitter_p and reach else False
        )

    return trained


def never(views: ViewConfig, side: int) -> bool:
    return False


def corruption(
    name: str, label: str, trained: Callable[[ViewConfig, int], list[float] | bool]
) -> Transformation:
    c = CORRUPTIONS[name]
    return Transformation(label, c, c.none, c.strengths, c.unit, trained)


TRANSFORMATIONS: dict[str, Transformation] = {
    "crop": corruption(
        "crop",
        "crop",
        lambda views, side: list(views.crop_area) if views.crop_area[0] < 1 else False,
    ),
    "flip": Transformation(
        "left-right flip", flip, 0, (1,), "0 or 1", lambda views, side: views.flip > 0
    ),
    "brightness": Transformation(
        "brightness",
        factor_of(colour.brightness),
        1,
        (0.3, 0.6, 0.8, 1.3, 1.7),
        "factor",
        jittered("brightness", 1),
    ),
    "contrast": Transformation(
        "contrast",
        factor_of(colour.contrast),
        1,
        (0.2, 0.5, 0.8, 1.3, 1.7),
        "factor",
        jittered("contrast", 1),
    ),
    "saturation": Transformation(
        "saturation",
        factor_of(colour.saturation),
        1,
        (0.2, 0.5, 0.8, 1.5, 2.0),
        "factor",
        jittered("saturation", 1),
        colour=True,
    ),
    "hue": Transformation(
        "hue",
        factor_of(colour.hue),
        0,
        (-0.4, -0.2, -0.1, 0.1, 0.2, 0.4),
        "turns of the colour circle",
        jittered("hue", 0),
        colour=True,
    ),
    "grey": Transformation(
        "grey",
        lambda images, seeds, s: factor_of(colour.saturation)(images, seeds, 1 - s),
        0,
        (0.25, 0.5, 0.75, 1),
        "share of the colour removed",
        lambda views, side: views.grey_p > 0,
        colour=True,
    ),
    "blur": corruption(
        "blur",
        "blur",
        lambda views, side: (
            list(views.blur_sigma) if views.blur_p and views.blur_radius(side, side) else False
        ),
    ),
    "rotation": Transformation("rotation", rotation, 0, (10, 20, 45, 90, 180), "degrees", never),
    "occlusion": corruption("occlusion", "occlusion", never),
    "noise": corruption("noise", "noise", never),
}


def sensitivity(embed: Embed, images: ImageSet, views: ViewConfig, seed: int = 0) -> Result:
    """Every transformation at its strengths, on test images (all images where there is no test
    image); JSON-able.

    Args:
        embed: images -> table; polls for a stop itself.
        views: the augmentation that the run was trained with.
    Raises:
        UserError: fewer than two images.
    """
    some = sample_images(images, seed)
    clean = embed(some)
    if clean.certainty is not None and not clean.certainty.isfinite().all():
        raise UserError(
            "certainties must be finite, and some are not; look for a diverged encoder."
        )
    side, grey = some.images.shape[-1], some.images.shape[1] == 1
    found = {
        name: (
            told(t, views, side)
            | (
                {"skipped": "grey images have no colour"}
                if grey and t.colour
                else by_strength(embed, some, t, clean, seed)
            )
        )
        for name, t in TRANSFORMATIONS.items()
    }
    return json_able(
        {
            "n": len(some),
            "transformations": found,
            "reference": {
                "different_images": mean_cosine_of_different(clean.direction.double()),
                "different_images_feature": mean_cosine_of_different(
                    F.normalize(clean.features.double(), dim=1)
                ),
            },
        }
    )


def sample_images(images: ImageSet, seed: int) -> ImageSet:
    """At most 500 of the test images by seed, in their order."""
    rows = images.rows("test") if "test" in images.split else np.arange(len(images))
    if len(rows) < 2:
        raise UserError(
            f"sensitivity is a mean over images, and {images.name} has {len(rows)} to look at; give"
            " two or more."
        )
    chosen = counter_rng.sample_rows(torch.from_numpy(rows), IMAGES, CHOSEN, seed)
    return images.select(chosen.numpy())


def told(t: Transformation, views: ViewConfig, side: int) -> Result:
    return {
        "label": t.label,
        "unit": t.unit,
        "none": t.none,
        "strengths": list(t.strengths),
        "trained": t.trained(views, side),
    }


def by_strength(
    embed: Embed, images: ImageSet, t: Transformation, clean: Embeddings, seed: int
) -> Result:
    """Lists over the strengths."""
    seeds = image_seeds(images, seed, STREAM)
    each = [
        response(embed(replace(images, images=t.apply(images.images, seeds, s))), clean)
        for s in t.strengths
    ]
    return {
        name: None if each[0][name] is None else [one[name] for one in each] for name in each[0]
    }


def response(changed: Embeddings, clean: Embeddings) -> Result:
    """Means over images: cosine to the image as it was, and the change of certainty in deviations
    of the clean images' certainty.
    """
    cosine = F.cosine_similarity(changed.direction.double(), clean.direction.double())
    feature = F.cosine_similarity(changed.features.double(), clean.features.double())
    return {
        "direction": float(cosine.mean()),
        "direction_sd": float(cosine.std()),
        "feature": float(feature.mean()),
        "certainty": shift(changed.certainty, clean.certainty),
        "radius": None if changed.radius is None else float(changed.radius.double().mean()),
    }


def shift(changed: Tensor | None, clean: Tensor | None) -> float | None:
    """None without a certainty, or where all clean images are equally certain."""
    if changed is None or clean is None or not (deviation := float(clean.double().std())) > 0:
        return None
    return float((changed.double() - clean.double()).mean()) / deviation
