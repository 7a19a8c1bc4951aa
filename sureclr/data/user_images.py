"""What users have in hand (files, pictures, arrays, data sets) becomes an ImageSet."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sureclr.config import READ_OPTIONS, PretrainConfig, ReadOptions
from sureclr.data.decoding import (
    FileRef,
    readable_endings,
)
from sureclr.data.folder import read_folder, with_given
from sureclr.data.image_report import NAMED_FILES, inert, named_reasons
from sureclr.data.image_set import ImageSet, check_shape, convert, recolour
from sureclr.data.picture_arrays import (
    PictureArrays,
    decoded_arrays,
    decoded_images,
)
from sureclr.data.picture_list import short_report
from sureclr.data.sources import SOURCES, given_features, is_source, load_images
from sureclr.data.splits import split_of_name
from sureclr.data.user_labels import Label, encode_labels
from sureclr.errors import UserError, unknown
from sureclr.progress import SILENT, Progress, report_progress

KINDS = (
    "an ImageSet, paths of image files, a folder, a data source, PIL images, uint8 arrays or"
    " tensors, or a data set of (image, label)"
)


class MapDataset(Protocol):
    """A map-style data set of torch: its items are images, or pairs (image, label)."""

    def __len__(self) -> int:
        """The number of items."""

    def __getitem__(self, index: int, /) -> object:
        """Return one item."""


def as_image_set(
    images: object,
    *,
    size: int | None = None,
    channels: int | None = None,
    name: str = "images",
    labels: Sequence[Label] | None = None,
    progress: Progress = SILENT,
    options: ReadOptions = READ_OPTIONS,
) -> ImageSet:
    """Turn what a user has in hand into an ImageSet.

    `images` is one of:

    * an ImageSet;
    * the path of an image file, or a list of such paths;
    * the path of a folder, a list of folders, "folder:PATH", or the name of a data source such as
      "digits";
    * an image of Pillow, or a list of them, of any sizes and modes;
    * a uint8 array or tensor (n, h, w), (n, c, h, w) or (n, h, w, c) with 1 or 3 channels, or a
      list of arrays (h, w), (c, h, w) or (h, w, c) of any sizes;
    * a map-style data set of torch whose items are such an image, or a pair (image, label). Its
      attribute `classes`, if it is a list of names, names the classes. Its attribute `split`
      ("train", "test", "unlabelled") or `train` (a truth value) decides the split.

    Args:
        images: see above.
        size: side in pixels of the centre square, in place of `options.size`. None: images of one
            size keep it; images of mixed sizes become 96 pixels, or less where most of them are
            smaller, and `note` says so.
        channels: 1 (grey), 3 (RGB) or another number of bands, in place of `options.channels`.
            None: 1 if all images are grey, else 3.
        name: of the ImageSet, where the images have none of their own.
        labels: one an image: class numbers from 0 (-1 or None: not known), or class names. A class
            without a name is named by its number.
        progress: what to report to while files are decoded and data sets are read; gets the
            sentences of the ImageSet's report.
        options: how files and pictures become pixels. Arrays and ImageSets whose images have the
            size already are taken as they are, whatever `centre_share` is, see `image_set.convert`.

    Returns:
        The images. Their split is "train" where they do not have one of their own. Images that are
        larger than their squares, or not square, stay as `pictures`, from which views are cropped.

    Raises:
        UserError: the images or their labels cannot be used; the sentence says what to change.
    """
    options = with_given(options, size, channels)
    check_shape(options.size, options.channels)
    if isinstance(images, np.ndarray) and images.dtype.kind in "OU":  # an array of paths or images
        images = images.tolist()
    if isinstance(images, ImageSet) or _is_folder_or_source(images):
        return _with_own_labels(images, options, labels, progress)
    if isinstance(images, str | os.PathLike | Image.Image):
        images = [images]
    split, classes, paths = "train", None, None
    all_labels: object = labels
    if isinstance(images, np.ndarray | Tensor):
        arrays = PictureArrays(_stacked(images, options.channels))
    elif isinstance(images, list | tuple) and images and all(map(_is_path, images)):
        paths = [os.fspath(image) for image in images]
        arrays = _from_files(paths, options, progress)
    elif isinstance(images, list | tuple):
        pictures = (
            (_picture(image, f"image {i}"), not isinstance(image, Image.Image))
            for i, image in enumerate(images)
        )
        arrays = decoded_images(pictures, options)
    elif _is_map_dataset(images):
        split, classes = _own_split(images), _own_classes(images)
        arrays, own_labels = _from_dataset(images, options, progress)
        if own_labels is not None and labels is not None:
            raise UserError("the data set has labels of its own; leave out labels.")
        all_labels = own_labels if labels is None else labels
    else:
        raise UserError(f"images must be {KINDS}, not {type(images).__name__}.")
    count = len(arrays.squares)
    targets, class_names = encode_labels(all_labels, classes, count)
    given = ImageSet(
        name=name,
        images=arrays.squares,
        labels=targets,
        classes=class_names,
        split=np.full(count, split),
        paths=[f"{split}/{i:05d}" for i in range(count)]
        if paths is None
        else [inert(path) for path in paths],
        note=arrays.note,
        pictures=arrays.pictures,
        contents=arrays.contents,
    )
    return _reported(_fitting(given, options), arrays, progress)


def _fitting(images: ImageSet, options: ReadOptions) -> ImageSet:
    """The images at the size and with the channels of the options; None keeps them."""
    height, width = images.images.shape[2:]
    if options.size is None and height != width:  # `convert` would make squares
        if options.channels in (None, images.images.shape[1]):
            return images
        return replace(images, images=recolour(images.images, options.channels or 3))
    return convert(images, options.size, options.channels, options)


def to_embed(images: object, config: PretrainConfig, size: int, channels: int) -> ImageSet:
    """Return what a run embeds of what users have in hand.

    Args:
        images: as for `as_image_set`; for a run on a table of features, features or table:PATH.
        config: of the run.
        size: of the images that it takes, in pixels.
        channels: of these images, or the number of features.

    Raises:
        UserError: they cannot be used.
    """
    features = given_features(images, config, channels)
    if features is not None:
        return features
    return as_image_set(images, size=size, channels=channels, options=config.read_options)


def _reported(images: ImageSet, arrays: PictureArrays, progress: Progress) -> ImageSet:
    report = replace(
        short_report(images),
        value_range=arrays.value_range,
        value_range_from="one range for all of these images" if arrays.value_range else "",
        warnings=tuple(filter(None, [arrays.warning])),
    )
    for sentence in report.sentences():
        progress.message(sentence)
    return replace(images, report=report)


# --- Folders and data sources ---------------------------------------------------------


def _is_path(image: object) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(image, str | os.PathLike)


def _is_folder_or_source(
    images: object,
) -> TypeGuard[str | os.PathLike[str] | Sequence[str | os.PathLike[str]]]:
    """Whether this names folders or a data source; UserError for a word that names nothing."""
    if isinstance(images, list | tuple) and images:
        return all(_is_path(image) and os.path.isdir(image) for image in images)
    if not isinstance(images, str | os.PathLike):
        return False
    if os.path.isdir(images) or (isinstance(images, str) and is_source(images)):
        return True
    is_word = isinstance(images, str) and Path(images).suffix.lower() not in readable_endings()
    if is_word and not os.path.exists(images):
        raise unknown("image file, folder or data source", str(images), SOURCES)
    return False


def _with_own_labels(
    images: ImageSet | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: ReadOptions,
    labels: object,
    progress: Progress,
) -> ImageSet:
    if labels is not None:
        raise UserError(
            "an ImageSet, a folder or a data source has labels of its own; leave out labels."
        )
    if isinstance(images, ImageSet):
        keeps = options.size is options.channels is None
        return images if keeps else convert(images, options.size, options.channels, options)
    if isinstance(images, str) and is_source(images):
        return load_images(images, progress=progress, options=options)
    places = [images] if isinstance(images, str | os.PathLike) else list(images)
    return read_folder([Path(place) for place in places], progress=progress, options=options)


# --- Arrays ---------------------------------------------------------------------------


def _as_uint8(array: NDArray[Any] | Tensor) -> Tensor:
    """The array as a tensor, without a copy where possible; UserError if it is not uint8."""
    if str(array.dtype).removeprefix("torch.") != "uint8":
        is_float = "float" in str(array.dtype)
        remedy = (
            "multiply them by 255 if they lie in 0..1, round them, and convert them to uint8 (use a"
            " data set without a transform such as ToTensor)"
            if is_float
            else "convert them to uint8, with 0 for black and 255 for white"
        )
        raise UserError(f"images must be uint8, not {array.dtype}; {remedy}.")
    if isinstance(array, Tensor):
        return array
    with warnings.catch_warnings():  # torch warns of read-only arrays; nothing is written here
        warnings.simplefilter("ignore")
        return torch.from_numpy(np.ascontiguousarray(array))


def _stacked(array: NDArray[Any] | Tensor, channels: int | None = None) -> Tensor:
    """An array of n images as (n, c, h, w); for more bands than 3, `channels` says how many."""
    pixels = _as_uint8(array)
    shape = tuple(pixels.shape)
    if 0 in shape:
        raise UserError(f"there are no images in an array of shape {shape}.")
    if pixels.ndim == 3 and shape[2] not in (1, 3):
        return pixels.unsqueeze(1).contiguous()
    if pixels.ndim == 4:
        return _channels_first(pixels, channels).contiguous()
    is_one = pixels.ndim in (2, 3)
    remedy = "for one image, add a first axis: images[None]" if is_one else "reshape it"
    raise UserError(
        f"an array of images must be (n, h, w), (n, c, h, w) or (n, h, w, c), not {shape};"
        f" {remedy}."
    )


def _channels_first(pixels: Tensor, channels: int | None = None) -> Tensor:
    """Images (..., c, h, w) or (..., h, w, c) as (..., c, h, w)."""
    shape = tuple(pixels.shape[-3:])
    allowed = (1, 3) if channels in (None, 1, 3) else (channels,)
    first, last = shape[0] in allowed, shape[2] in allowed
    if first and last:
        raise UserError(
            f"images of shape {shape} could be (c, h, w) or (h, w, c); make an ImageSet, whose"
            " images are always (n, c, h, w)."
        )
    if not first and not last:
        alpha = ", without transparency" if 4 in (shape[0], shape[2]) else ""
        raise UserError(
            f"images must have {' or '.join(map(str, allowed))} channels{alpha}, as the first or"
            f" the last axis; these have the shape {shape} (channels= names another number of"
            " bands)."
        )
    return pixels if first else pixels.movedim(-1, -3)


# --- Files ----------------------------------------------------------------------------


def _from_files(files: list[str], options: ReadOptions, progress: Progress) -> PictureArrays:
    """The pixels of image files."""
    arrays, bad = decoded_arrays([FileRef(file) for file in files], options, progress)
    if arrays is None:
        reasons = {files[row]: reason for row, reason in bad.items()}
        more = ", ..." if len(bad) > NAMED_FILES else ""
        raise UserError(
            f"{len(bad)} of {len(files)} image files cannot be read:"
            f" {named_reasons(reasons)}{more}; leave them out."
        )
    return arrays


# --- Pictures, arrays of one image, and data sets ---------------------------------------


def _picture(image: object, what: str) -> Image.Image:
    """One image as a picture of Pillow.

    Args:
        image: a picture, the path of a file, or an array.
        what: the image in the words of an error message.
    """
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, np.ndarray | Tensor):
        raise UserError(
            f"{what} must be a PIL image or a uint8 array or tensor, not {type(image).__name__}."
        )
    try:
        pixels = _as_uint8(image)
        if pixels.ndim not in (2, 3) or pixels.numel() == 0:
            raise UserError(
                "an image must be (h, w), (c, h, w) or (h, w, c) and not empty, not"
                f" {tuple(pixels.shape)}."
            )
        rows = pixels if pixels.ndim == 2 else _channels_first(pixels).movedim(0, 2)
    except UserError as error:
        raise UserError(f"{what} cannot be used: {error}") from error
    array = rows.contiguous().cpu().numpy()
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _is_map_dataset(images: object) -> TypeGuard[MapDataset]:
    has_items = hasattr(images, "__len__") and hasattr(images, "__getitem__")
    return has_items and not isinstance(images, Mapping | str | bytes | bytearray)


def _from_dataset(
    dataset: MapDataset, options: ReadOptions, progress: Progress
) -> tuple[PictureArrays, list[object] | None]:
    """The pixels of a data set, and its labels (None: it has none)."""
    labels: list[object] = []

    def pictures() -> Iterator[tuple[Image.Image, bool]]:
        with report_progress(progress, "Reading images", len(dataset)) as update:
            for i in range(len(dataset)):
                image, label = _image_and_label(dataset, i)
                labels.append(label)
                picture = _picture(image, f"image {i} of the data set")
                yield picture, not isinstance(image, Image.Image)
                update(i + 1)

    arrays = decoded_images(pictures(), options)
    return arrays, None if all(label is None for label in labels) else labels


def _image_and_label(dataset: MapDataset, index: int) -> tuple[object, object]:
    try:
        item = dataset[index]
    except Exception as error:  # of the user's own code
        raise UserError(
            f"item {index} of the data set cannot be read ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(item, tuple | list):
        return item, None
    if len(item) not in (1, 2):
        raise UserError(
            f"item {index} of the data set must be an image or a pair (image, label), not"
            f" {len(item)} values."
        )
    return item[0], item[1] if len(item) == 2 else None


def _own_classes(dataset: object) -> list[str] | None:
    """The class names that a data set of torchvision has; None where it has no list of names."""
    classes = getattr(dataset, "classes", None)
    if not isinstance(classes, list | tuple) or not all(isinstance(c, str) for c in classes):
        return None
    return list(classes) if len(set(classes)) == len(classes) else None


def _own_split(dataset: object) -> str:
    """The split that a data set of torchvision says it is; "train" where it says nothing."""
    split = getattr(dataset, "split", None)
    if isinstance(split, str) and (known := split_of_name(split)):
        return "test" if known == "validation" else known
    return "test" if getattr(dataset, "train", None) is False else "train"
