"""The images of a run."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from sureclr.config import PretrainConfig
from sureclr.data.image_set import ImageSet, convert
from sureclr.data.sources import load_images
from sureclr.data.user_images import as_image_set
from sureclr.progress import Progress

# The share of a GPU's memory that the uint8 images may take. Larger sets stay in main memory and
# move to the GPU batch by batch.
RESIDENT_SHARE = 0.25


def training_images(
    config: PretrainConfig,
    images: Any,
    root: Path | None,
    device: torch.device,
    progress: Progress,
) -> ImageSet:
    """Return the images that may be trained on, on the device if they fit.

    Args:
        config: names the source and the size.
        images: the user's own images instead of the source's, or None.
        root: where data sets lie.
        device: on which the network runs.
        progress: gets the number of decoded images.
    """
    if images is None:
        everything = load_images(
            config.source, root=root, size=config.size, seed=config.seed, progress=progress
        )
    else:
        given = as_image_set(images, size=config.size, progress=progress)
        everything = convert(given, config.size)  # centre squares, where no size is asked for
    training = everything.pretraining
    if (
        device.type == "cuda"
        and training.images.nbytes
        < RESIDENT_SHARE * torch.cuda.get_device_properties(device).total_memory
    ):
        values = {field.name: getattr(training, field.name) for field in fields(ImageSet)}
        return ImageSet(**{**values, "images": training.images.to(device)})
    return training
