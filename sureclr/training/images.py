"""The images of a run, and what they decide of its configuration."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sureclr.config import DEFAULT_SIZE, PICTURE_SOURCES, TABLE, PretrainConfig
from sureclr.data.cached_pixels import CachedPixels
from sureclr.data.feature_table import FeatureSet, save_features
from sureclr.data.image_set import ImageSet, convert
from sureclr.data.label_request import LabelFile
from sureclr.data.labels import with_file_labels
from sureclr.data.sources import load_images, where_now
from sureclr.data.user_images import as_image_set
from sureclr.models.encoders import check_pool, check_side, fitting_side
from sureclr.progress import Progress
from sureclr.training.building import with_presence, with_stem
from sureclr.training.starting import (
    check_start,
    image_form,
    is_path,
    run_of_start,
    with_form,
    with_network_of_run,
)

# The share of a GPU's memory that the uint8 pixels may take, those of whole pictures included.
# Larger sets stay in main memory and move to the GPU batch by batch.
RESIDENT_SHARE = 0.25


MonitorLabels = str | Path | LabelFile | None  # a file of labels, as a user gives it


def label_file_of(labels: MonitorLabels) -> LabelFile | None:
    """Return the file of labels that the user gave, or None."""
    return None if labels is None else LabelFile.of(labels)


def training_images(
    config: PretrainConfig,
    images: Any,
    root: Path | None,
    device: torch.device,
    progress: Progress,
    labels: LabelFile | None = None,
    *,
    begun: tuple[Path, list[str]] | None = None,
    verify: bool = False,
) -> ImageSet:
    """Return the images that may be trained on, on the device if they fit.

    Args:
        config: names the source, and how its files become pixels.
        images: the user's own images instead of the source's, or None.
        root: where data sets lie.
        device: on which the network runs.
        progress: gets the number of decoded images.
        labels: of the images, for the monitor alone: they change no step of the training.
        begun: the folder of a run that goes on, and the paths of its images relative to it. They
            are tried where the images were moved together with the run; these keep their name.
        verify: as in `ReadOptions`.
    """
    options = replace(config.read_options, verify=verify)
    if images is None:
        where = where_now(config.source, *begun) if begun else config.source
        everything = load_images(
            where, root=root, seed=config.seed, progress=progress, options=options
        )
        if where != config.source:
            progress.message(f"{config.source} is gone; its images are read from {where}.")
            everything = replace(everything, name=config.source)
    elif isinstance(images, np.ndarray | Tensor):  # whole, so that views are cropped from the whole
        everything = as_image_set(images, progress=progress, options=replace(options, size=None))
    else:
        everything = as_image_set(images, progress=progress, options=options)
    if labels is not None:
        everything = replace(
            with_file_labels(everything, labels, progress), split=everything.split, shares=None
        )
    # Centre squares, where no size is asked for
    training = convert(everything, config.size, config.channels, options).pretraining
    pixels, pictures = training.images, training.pictures
    needed = pixels.nbytes + (0 if pictures is None else pictures.nbytes)
    if (
        device.type == "cuda"
        and needed < RESIDENT_SHARE * torch.cuda.get_device_properties(device).total_memory
    ):
        return replace(
            training,
            images=pixels.moved(device) if isinstance(pixels, CachedPixels) else pixels.to(device),
            pictures=None if pictures is None else pictures.to(device),
        )
    return training


def inputs_of(config: PretrainConfig, images: Any) -> dict[str, str]:
    """Return the paths of what a new run is made of, by the names of the fields that have them.

    Args:
        config: of the run, as `building.recorded` returns it.
        images: what takes the place of the source; None: the source is read.
    """
    kind, _, place = config.source.partition(":")
    read = images is None and kind in (*PICTURE_SOURCES, TABLE)
    found = {"init": config.init if is_path(config.init) else "", "source": place if read else ""}
    return {name: path for name, path in found.items() if path}


def as_begun(config: PretrainConfig, progress: Progress) -> PretrainConfig:
    """Return the configuration of a new run with what its encoder says of images.

    A pretrained one has a form of its own; a vision transformer takes whole patches.

    Args:
        config: of the run.
        progress: gets a sentence for each thing that a reader should know of the first weights.

    Raises:
        UserError: the first weights cannot be read, or do not fit the encoder, or the encoder
            cannot take the size or the pooling.
    """
    run = run_of_start(config)
    config = config if run is None else with_network_of_run(config, run)
    form = image_form(config) if run is None else run.form
    if form is not None and config.size is None:
        progress.message(_words_about_size(form.size, fitting_side(config.encoder, DEFAULT_SIZE)))
    config = with_form(config, form)
    if config.size is not None:
        check_side(config.encoder, config.size)
    elif config.source.partition(":")[0] in PICTURE_SOURCES:
        size = fitting_side(config.encoder, DEFAULT_SIZE)
        config = config if size == DEFAULT_SIZE else replace(config, size=size)
    check_pool(config.encoder, config.pool)
    for sentence in check_start(config, run):
        progress.message(sentence)
    return config


def _words_about_size(size: int, smaller: int) -> str:
    """Say which size a pretrained encoder's images get, why, and what a smaller one costs."""
    text = (
        f"Images are used at {size} px, the size that the first weights of the encoder were trained"
        " with; smaller pictures are enlarged"
    )
    if size <= smaller:
        return f"{text}."
    times = (size / smaller) ** 2
    words = f"{times:.0f}" if times >= 2 else f"{times:.1f}"
    return f"{text}. size={smaller} is about {words} times quicker and sees less detail."


def _words_about_enlarging(images: ImageSet, size: int) -> str:
    """Say that most images are enlarged, where the report of their files does not say it; or ""."""
    of_files = images.report is not None and images.report.sizes is not None
    if of_files or images.pictures is None:
        return ""
    shorter = torch.minimum(images.pictures.height, images.pictures.width)
    middle = int(shorter.median()) if len(shorter) else size
    if middle >= size:
        return ""
    return (
        f"The images have {middle} px (the median of their shorter sides) and are enlarged to"
        f" {size}."
    )


def as_resolved(config: PretrainConfig, images: ImageSet, progress: Progress) -> PretrainConfig:
    """Return the configuration with what the images decide: size, channels, range and stem.

    Args:
        config: of a run that begins.
        images: the training images, as `training_images` returns them.
        progress: gets a sentence if most images are enlarged for a pretrained encoder, and one if
            the stem was chosen and is not the usual one.

    Raises:
        UserError: the encoder cannot take images of this size.
    """
    config = with_presence(config)
    if isinstance(images, FeatureSet):
        return with_rows(config, images, progress)
    _, channels, _, size = images.images.shape
    found = None if images.report is None else images.report.value_range
    value_range = found if config.value_range is None else config.value_range
    check_side(config.encoder, size)
    decided = replace(config, size=size, channels=channels, value_range=value_range)
    resolved = with_stem(decided, size)
    if config.pretrained and (words := _words_about_enlarging(images, size)):
        progress.message(words)
    if config.stem == "auto" and resolved.stem == "cifar":
        progress.message(
            f"The images have {size} pixels, so the encoder {config.encoder} begins with stem=cifar"
            " (stride 1); stem=imagenet is faster and sees less detail."
        )
    return resolved


def keep_features(images: Any, path: Path) -> None:
    """Write features that were given in Python into the folder of their run, whose source they are.

    Args:
        images: what `pretrain` was given; nothing is written of anything else.
        path: of the file.
    """
    if isinstance(images, FeatureSet):
        save_features(images, path)


def with_rows(config: PretrainConfig, images: FeatureSet, progress: Progress) -> PretrainConfig:
    """Return the configuration of a table's run: its views, and a batch that its rows can fill.

    Args:
        config: of the run.
        images: the training images.
        progress: gets a sentence if the batch is a smaller one.
    """
    size = config.batch_size
    if 2 <= len(images) < size:
        size = 1 << (len(images).bit_length() - 1)
        progress.message(
            f"There are {len(images):,} training rows, so the batch_size is {size} in place of"
            f" {config.batch_size}."
        )
    micro = config.micro_batch if size == config.batch_size else None
    return replace(config, batch_size=size, micro_batch=micro, cached_views=images.view_count)
