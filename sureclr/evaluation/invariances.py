"""What the encoder ignores: how far it moves when an image is changed by a known strength.

SimCLR's own augmentations are applied one at a time (training asks for invariance to them), and
rotation, occlusion and noise as controls, which training does not use. Each is applied to whole
test images. A strength that changes nothing gives a cosine of 1 and a change of certainty of 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, cosine_similarity, grid_sample

from sureclr.config import ViewConfig
from sureclr.data import colour, counter_rng
from sureclr.data.corruptions import CORRUPTIONS, to_uint8
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.results import Number, Responses, SensitivityResult, TransformationResult
from sureclr.evaluation.scores import Embed, embed_changed, image_seeds
from sureclr.evaluation.tables import finite_or_none, mean_cosine_of_different_images
from sureclr.maths.sphere import unit_rows

if TYPE_CHECKING:
    from sureclr.evaluation.inputs import EvaluationInputs

Apply = Callable[[Tensor, Tensor, float], Tensor]
Trained = tuple[float, float] | bool

IMAGES = 500  # test images that are changed: the standard error of a mean cosine is below 0.02
STREAM, CHOSEN = 3002, 3003  # streams of seeds


@dataclass(frozen=True)
class Transformation:
    """A change of a known strength.

    Attributes:
        label: its name for people.
        apply: images uint8 (n, c, h, w), seeds (n,), strength -> images uint8.
        none: the strength that changes nothing.
        strengths: at which it is measured.
        unit: of a strength.
        trained: from the views of training and the side of an image in pixels, the range that
            training drew from, True for a coin that training tossed, or False where training did
            not use it.
        colour: whether it changes colour, which grey images do not have.
    """

    label: str
    apply: Apply
    none: float
    strengths: tuple[float, ...]
    unit: str
    trained: Callable[[ViewConfig, int], Trained]
    colour: bool = False


def factor_of(operation: Callable[[Tensor, Tensor], Tensor]) -> Apply:
    """Return an operation of colour.py with the same factor for all images."""
    return lambda images, seeds, strength: to_uint8(
        operation(images.float() / 255, torch.full((len(images),), strength))
    )


def flip(images: Tensor, seeds: Tensor, strength: float) -> Tensor:
    """Mirror images left to right if the strength is 1, and leave them as they are if it is 0."""
    return images.flip(3) if strength else images


def rotation(images: Tensor, seeds: Tensor, degrees: float) -> Tensor:
    """Rotate images counter-clockwise about the centre, bilinearly; corners show a reflection."""
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0]])
    grid = affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return to_uint8(
        grid_sample(images.double() / 255, grid, padding_mode="reflection", align_corners=False)
    )


def jittered(amount: str, centre: float) -> Callable[[ViewConfig, int], Trained]:
    """Return the range of a colour factor in training, around `centre`."""

    def trained(views: ViewConfig, side: int) -> Trained:
        reach = views.strength * getattr(views, amount)
        if not (views.jitter_p and reach):
            return False
        return max(centre - 1, centre - reach), centre + reach

    return trained


def never(views: ViewConfig, side: int) -> bool:
    """Return False: training does not use this transformation."""
    return False


def cropped(views: ViewConfig, side: int) -> Trained:
    """Return the range of the share of the area that a crop in training shows."""
    return (views.crop_area[0], views.crop_area[1]) if views.crop_area[0] < 1 else False


def blurred(views: ViewConfig, side: int) -> Trained:
    """Return the range of the blur in training; a kernel of a single pixel does not blur."""
    if not (views.blur_p and views.blur_radius(side, side)):
        return False
    return views.blur_sigma[0], views.blur_sigma[1]


def from_corruption(name: str, trained: Callable[[ViewConfig, int], Trained]) -> Transformation:
    """Return the corruption of this name as a transformation."""
    c = CORRUPTIONS[name]
    return Transformation(name, c, c.none, c.strengths, c.unit, trained)


TRANSFORMATIONS: dict[str, Transformation] = {
    "crop": from_corruption("crop", cropped),
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
    "blur": from_corruption("blur", blurred),
    "rotation": Transformation("rotation", rotation, 0, (10, 20, 45, 90, 180), "degrees", never),
    "occlusion": from_corruption("occlusion", never),
    "noise": from_corruption("noise", never),
}


def evaluate_sensitivity(inputs: "EvaluationInputs") -> SensitivityResult:
    """Measure how images respond to every transformation.

    Raises:
        UserError: there are fewer than two images, or certainties are not finite.
    """
    return measure_sensitivity(inputs.embed, inputs.images, inputs.run.config.views)


def measure_sensitivity(
    embed: Embed, images: ImageSet, views: ViewConfig, seed: int = 0
) -> SensitivityResult:
    """Do what `evaluate_sensitivity` does for anything that embeds images.

    Args:
        embed: images -> their embeddings.
        images: whole images that fit the model; test images are changed, or all if there are none.
        views: the augmentation that the run was trained with.
        seed: of the choice of images and of random transformations.

    Raises:
        UserError: there are fewer than two images, or certainties are not finite.
    """
    chosen = choose_images(images, seed)
    clean = embed(chosen)
    if clean.certainty is not None and not clean.certainty.isfinite().all():
        raise UserError(
            "certainties must be finite, and some are not; check whether the encoder has diverged."
        )
    directions, features = clean.direction, unit_rows(clean.features.double())
    return SensitivityResult(
        n=len(chosen),
        transformations={
            name: measure_transformation(embed, chosen, transformation, clean, views, seed)
            for name, transformation in TRANSFORMATIONS.items()
        },
        different_images=mean_cosine_of_different_images(directions, directions),
        different_images_feature=mean_cosine_of_different_images(features, features),
    )


def choose_images(images: ImageSet, seed: int, most: int = IMAGES) -> ImageSet:
    """Choose at most `most` test images by seed, in order; all images if there are none."""
    rows = images.rows("test") if "test" in images.split else np.arange(len(images))
    if len(rows) < 2:
        raise UserError(
            f"sensitivity is a mean over images and needs two or more, and {images.name} has"
            f" {len(rows)}; add images."
        )
    return images.select(
        counter_rng.sample_rows(torch.from_numpy(rows), most, CHOSEN, seed).numpy()
    )


def measure_transformation(
    embed: Embed,
    images: ImageSet,
    transformation: Transformation,
    clean: Embeddings,
    views: ViewConfig,
    seed: int,
) -> TransformationResult:
    """Measure one transformation; images without three bands skip those of colour."""
    bands = images.images.shape[1]
    skip = transformation.colour and bands != 3
    reason = "grey images have no colour" if bands == 1 else f"images of {bands} bands have no hue"
    return TransformationResult(
        label=transformation.label,
        unit=transformation.unit,
        none=transformation.none,
        strengths=transformation.strengths,
        trained=transformation.trained(views, images.images.shape[-1]),
        responses=None if skip else respond(embed, images, transformation, clean, seed),
        skipped=reason if skip else "",
    )


def respond(
    embed: Embed, images: ImageSet, transformation: Transformation, clean: Embeddings, seed: int
) -> Responses:
    """Return how images respond at each strength: means over images.

    Args:
        embed: images -> their embeddings.
        images: unchanged.
        transformation: what changes them.
        clean: the embeddings of the unchanged images.
        seed: of random transformations.
    """
    seeds = image_seeds(images, seed, STREAM)

    def changed(strength: float) -> Embeddings:
        return embed_changed(
            embed,
            images,
            np.arange(len(images)),
            lambda part, places: transformation.apply(part.images, seeds[places], strength),
        )

    tables = [changed(strength) for strength in transformation.strengths]
    directions = [similarity_to(table.direction, clean.direction) for table in tables]
    features = [similarity_to(table.features, clean.features) for table in tables]
    shifts = tuple(certainty_shift(table.certainty, clean.certainty) for table in tables)
    radii = [table.radius for table in tables if table.radius is not None]
    return Responses(
        direction=tuple(float(cosine.mean()) for cosine in directions),
        direction_sd=tuple(float(cosine.std()) for cosine in directions),
        feature=tuple(float(cosine.mean()) for cosine in features),
        certainty=None if set(shifts) == {None} else shifts,
        radius=tuple(float(radius.double().mean()) for radius in radii) or None,
    )


def similarity_to(changed: Tensor, clean: Tensor) -> Tensor:
    """Return the cosine of each image to itself unchanged, (n,) float64."""
    return cosine_similarity(changed.double(), clean.double())


def certainty_shift(changed: Tensor | None, clean: Tensor | None) -> Number:
    """Return the mean change of the certainty in standard deviations over unchanged images.

    It is None without a certainty, or if all unchanged images are equally certain.
    """
    if changed is None or clean is None or not (deviation := float(clean.double().std())) > 0:
        return None
    return finite_or_none(float((changed.double() - clean.double()).mean()) / deviation)
