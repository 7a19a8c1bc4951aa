"""Labels as users have them (class numbers or names) become those of an ImageSet."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sureclr.data.image_set import UNLABELLED
from sureclr.errors import UserError, unknown

Label = int | str | None  # class number (-1: not known), class name, or not known


def encode_labels(
    labels: object, classes: Sequence[str] | None, images: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels as indices into class names, and the class names.

    Args:
        labels: one an image: class numbers from 0 (-1 or None: not known), or class names. None: no
            image has a label.
        classes: the class names, if they are known; a class number is then an index into them.
            None: the names are those that occur, sorted; a class number is named by itself.
        images: number of images.

    Returns:
        (images,) int64, and the class names; no names where no image has a label.

    Raises:
        UserError: the labels are not one an image, mix numbers and names, or are something else.
    """
    plain = [None] * images if labels is None else _plain_labels(labels, images)
    known = [label for label in plain if label is not None]
    if len({type(label) for label in known}) > 1:
        raise UserError("labels must be all class numbers or all class names, not some of each.")
    if not known:
        return torch.full((images,), UNLABELLED), ()
    if classes is None:
        distinct = sorted(set(known))  # all are numbers, or all are names
        index = {label: i for i, label in enumerate(distinct)}
        names = [str(label) for label in distinct]
    else:
        names = list(classes)
        by_name = isinstance(known[0], str)
        index = {name if by_name else i: i for i, name in enumerate(names)}
    for label in known:
        if label not in index:
            raise _not_a_class(label, names)
    targets = [UNLABELLED if label is None else index[label] for label in plain]
    return torch.tensor(targets, dtype=torch.int64), tuple(names)


def _plain_labels(labels: object, images: int) -> list[Label]:
    if hasattr(labels, "tolist"):  # an array or a tensor
        labels = labels.tolist()
    if not isinstance(labels, Sequence) or isinstance(labels, str | bytes):
        raise UserError(
            f"labels must be a list with one label an image, not {type(labels).__name__}."
        )
    if len(labels) != images:
        raise UserError(
            f"there are {images} images but {len(labels)} labels; each image needs one."
        )
    return [_plain_label(label, i) for i, label in enumerate(labels)]


def _plain_label(label: object, number: int) -> Label:
    """A label as a class number of at least 0, a class name, or None where it is not known.

    Args:
        label: also a scalar of numpy or torch.
        number: of the image, for the error message.
    """
    if hasattr(label, "tolist") and not isinstance(label, str):
        label = label.tolist()
    if isinstance(label, str) or label is None:
        return label if label is None else str(label)
    if not isinstance(label, int) or isinstance(label, bool):
        raise UserError(
            "a label must be a class number (int), a class name (str) or None, not"
            f" {label!r} (image {number})."
        )
    if label < UNLABELLED:
        raise UserError(
            f"a class number must be 0 or more, or -1 where the class is not known, not {label}"
            f" (image {number})."
        )
    return None if label == UNLABELLED else label


def _not_a_class(label: int | str, names: list[str]) -> UserError:
    if isinstance(label, str):
        return unknown("class", label, names)
    return UserError(
        f"there are {len(names)} class names but a label {label}; use 0 to {len(names) - 1}."
    )
