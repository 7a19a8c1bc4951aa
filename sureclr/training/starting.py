"""What an encoder starts from: its first weights, and how it takes its images."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from sureclr.config import TABLE, PretrainConfig
from sureclr.models.encoders import encoder


@dataclass(frozen=True)
class ImageForm:
    """How a pretrained encoder takes its images.

    Attributes:
        size: side of the images in pixels.
        mean: of each channel's pixels in [0, 1], which was subtracted; () if not known.
        std: standard deviation of each channel's pixels, by which they were divided; () if not
            known.
        centre_share: side of the centre square, as a share of the picture's shorter side.
        interpolation: filter that resized this square.
    """

    size: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    centre_share: float = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


def image_form(config: PretrainConfig) -> ImageForm | None:
    """Return how the encoder that a configuration starts from takes its images.

    None: it starts from random weights, or nothing is known.
    """
    if config.init != "timm":
        return None
    import timm

    found = timm.get_pretrained_cfg(config.encoder)
    if found is None:
        return None
    bicubic = found.interpolation == "bicubic"
    return ImageForm(
        found.input_size[-1],
        tuple(found.mean),
        tuple(found.std),
        found.crop_pct,
        "bicubic" if bicubic else "bilinear",
    )


def with_form(config: PretrainConfig, form: ImageForm | None) -> PretrainConfig:
    """Return a configuration with what an `ImageForm` says, where it leaves that open."""
    if form is None:
        return config
    return replace(
        config,
        size=form.size if config.size is None else config.size,
        centre_share=form.centre_share if config.centre_share is None else config.centre_share,
        interpolation=(
            form.interpolation if config.interpolation == "auto" else config.interpolation
        ),
        pixel_mean=config.pixel_mean or form.mean or None,
        pixel_std=config.pixel_std or form.std or None,
    )


def starting_network(config: PretrainConfig, channels: int) -> nn.Module:
    """Return the encoder of a configuration with its first weights.

    Random ones are drawn by torch's global generator.

    Args:
        config: names the encoder, its stem and its first weights.
        channels: 1 for grey images, 3 for colour, or any other number of bands.

    Raises:
        UserError: the encoder is unknown, or its weights cannot be read or do not fit.
    """
    if config.encoder == TABLE:  # the features were made elsewhere
        given = nn.Flatten()
        given.num_features = channels  # type: ignore[assignment]  # a number, not a module
        return given
    return encoder(config.encoder, config.stem, channels, config.init == "timm")
