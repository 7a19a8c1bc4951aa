"""Which training images have a label, and which label.

They are chosen by seed, as equally over the classes as possible, or come from a user's file. Where
all labels come from a file, a part of them is held out for testing.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.data.image_set import UNLABELLED, ImageSet
from sureclr.data.label_matching import labels_in_file
from sureclr.data.label_request import LabelFile, LabelRequest
from sureclr.data.pictures import Pictures
from sureclr.errors import UserError
from sureclr.files import digest_of_bytes
from sureclr.progress import SILENT, Progress

TESTED = 0.25  # share of the labels in a file that is held out for testing, more or less:
LEAST_TESTED, MOST_TESTED = 0.2, 1 / 3  # of the labels of each class
LEAST_LABELS = 20  # in all, so that a part of them can be held out
LEAST_OF_CLASS = 5  # labels of a class of which some can be held out


@dataclass(frozen=True, eq=False)
class Labelled:
    """Some images of a set with their classes.

    Attributes:
        images: the whole set; pixels are copied only when `pixels` asks for them.
        rows: (n,) int64 rows of it.
        target: (n,) int64, an index into images.classes.
        differing: number of targets that differ from the set's own labels (a user's file may know
            better).
        from_file: whether they come from a user's file.
    """

    images: ImageSet
    rows: Tensor
    target: Tensor
    differing: int = 0
    from_file: bool = False

    def __len__(self) -> int:
        """The number of labels."""
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> "Labelled":
        """Return some of the labels: (m,) int64 positions, or a boolean mask."""
        return replace(self, rows=self.rows[index], target=self.target[index])

    def pixels(self, index: Tensor | slice) -> Tensor:
        """Return the pixels (m, c, h, w) uint8 of some labels, on the device of the images."""
        return self.images.images[self.rows[index].to(self.images.images.device)]

    def for_views(self, index: Tensor | slice) -> Tensor | Pictures:
        """Return the images from which views of some labels are cropped, see `ImageSet`."""
        return self.images.for_views(self.rows[index])

    def with_own_classes(self) -> "Labelled":
        """Return the same labels in images that have no other classes than these labels.

        A classifier that learns from them has no output for a class without a label.
        """
        known = self.target.unique()
        place = torch.full((len(self.images.classes) + 1,), UNLABELLED)  # the last is UNLABELLED's
        place[known] = torch.arange(len(known))
        classes = tuple(self.images.classes[k] for k in known.tolist())
        shares = None if self.images.shares is None else self.images.shares[:, known]
        images = replace(
            self.images, labels=place[self.images.labels], classes=classes, shares=shares
        )
        return replace(self, images=images, target=place[self.target])

    @property
    def digest(self) -> str:
        """The sha256 of the images' paths and class names, which does not depend on their order."""
        lines = sorted(
            f"{self.images.paths[row]}\t{self.images.classes[k]}"
            for row, k in zip(self.rows.tolist(), self.target.tolist(), strict=True)
        )
        return digest_of_bytes("\n".join(lines).encode())


def labelled_rows(images: ImageSet, split: str, subset: Tensor | None = None) -> Labelled:
    """Return the images of a split whose class is known.

    Args:
        images: the set.
        split: "train", "test" or "unlabelled".
        subset: (m,) int64 rows to use instead of those of the split.
    """
    rows = torch.as_tensor(images.rows(split)) if subset is None else subset
    rows = rows[images.labels[rows] != UNLABELLED]
    return Labelled(images, rows, images.labels[rows])


def choose_labels(
    images: ImageSet, request: LabelRequest, fold: int | None = None, seed: int = 0
) -> Labelled:
    """Choose the labels that may be trained on among those that the images have.

    Args:
        images: the set.
        request: a share or a count of the labelled training images.
        fold: choose among the images of this fold of the set's own (STL-10 has ten).
        seed: of the choice. With the same seed a larger choice contains a smaller one, up to one
            image a class.

    Raises:
        UserError: there are too few labels for the classes that have some, more are wanted than
            there are, or the fold does not exist.
    """
    pool = labelled_rows(images, "train", None if fold is None else _fold(images, fold))
    if len(pool) == 0:
        raise UserError(
            f"{images.name} has no labelled training image; put the images into one sub-folder a"
            " class, or use a label file (path and label, one image a line)."
        )
    _check_classes(pool.target, f"{images.name} has no labelled training image")
    return pool[_balanced(pool.target, _how_many(request, pool), seed)]


def _fold(images: ImageSet, fold: int) -> Tensor:
    if images.folds is None:
        raise UserError(
            f"{images.name} has no folds of its own (stl10 has); leave out fold, and the labels are"
            " chosen by seed."
        )
    if not 0 <= fold < len(images.folds):
        raise UserError(f"{images.name} has folds 0 to {len(images.folds) - 1}, not {fold}.")
    return images.folds[fold]


def _how_many(request: LabelRequest, pool: Labelled) -> int:
    """The number of labels to choose, which must suffice for one of each class."""
    available, classes = len(pool), len(pool.target.unique())
    share = request.share or 0
    wanted = request.count if request.count is not None else round(share * available)
    if wanted > available:
        raise UserError(
            f"{wanted:,} labels are more than the {available:,} labelled training images of"
            f" {pool.images.name}; ask for fewer."
        )
    if wanted < classes:
        number = (
            f"{100 * share:g}% of {available:,} labelled images, which is {wanted},"
            if request.count is None
            else f"{wanted}"
        )
        raise UserError(
            f"{number} is too few labels for {classes} classes, each of which needs one; ask for at"
            f" least {classes} (better {10 * classes})."
        )
    return wanted


def _balanced(target: Tensor, total: int, seed: int) -> Tensor:
    """(total,) int64 positions in target, as equally over the classes as possible.

    Each class is shuffled first, so that a larger choice contains a smaller one.
    """
    generator = torch.Generator().manual_seed(seed)
    order = [
        rows[torch.randperm(len(rows), generator=generator)]
        for rows in ((target == k).nonzero()[:, 0] for k in target.unique())
    ]
    ties = torch.randperm(len(order), generator=generator).tolist()
    counts = balanced_counts([len(rows) for rows in order], total, ties)
    return (
        torch.cat([rows[:count] for rows, count in zip(order, counts, strict=True)]).sort().values
    )


def balanced_counts(available: Sequence[int], total: int, order: Sequence[int]) -> list[int]:
    """Divide a number of labels over classes as equally as possible.

    A class that has fewer than its part gives all.

    Args:
        available: labels of each class.
        total: number to divide, at most their sum.
        order: the classes; where the parts differ by one, later ones get the larger part.

    Returns:
        The number for each class.

    >>> balanced_counts([50, 2, 50], 11, order=[0, 1, 2])
    [4, 2, 5]
    """
    counts, left = [0] * len(available), total
    smallest_first = sorted(order, key=lambda k: available[k])
    for position, k in enumerate(smallest_first):
        counts[k] = min(available[k], left // (len(smallest_first) - position))
        left -= counts[k]
    return counts


def _check_classes(target: Tensor, subject: str) -> None:
    """UserError if there is only one class; a class without a label is left out, and named."""
    if len(target.unique()) < 2:
        raise UserError(
            f"{subject} of a second class: all labels are of one class; label images of at least"
            " two classes."
        )


# --- Labels from a file ---------------------------------------------------------------


def read_labels(
    file: LabelFile, images: ImageSet, seed: int = 0, progress: Progress = SILENT
) -> Labelled:
    """Return the labels in a file that may be trained on.

    Their `images` are the set with the labels of the file, of which a part may have become test
    images (`hold_out_labels`); these are not among the labels returned.

    Args:
        file: its path and columns.
        images: the set.
        seed: of the part that is held out.
        progress: gets a sentence about everything that was left out or guessed.

    Raises:
        UserError: the file is wrong, or has labels of fewer than two classes to train on.
    """
    given = hold_out_labels(with_file_labels(images, file, progress), seed, progress)
    labelled = labelled_rows(given, "train")
    if len(labelled) == 0:
        raise UserError(
            f"{file.path} labels only test images of {images.name}, and training on them would make"
            " the accuracy worthless; label training images as well."
        )
    if len(labelled.target.unique()) < 2:
        only = given.classes[int(labelled.target[0])]
        raise UserError(
            f"all labels in {file.path} are of the one class {only}; label images of at least two"
            " classes."
        )
    before = images.labels[labelled.rows]
    differing = int(((before != labelled.target) & (before != UNLABELLED)).sum())
    same_classes = given.classes[: len(images.classes)] == images.classes
    return replace(labelled, differing=differing if same_classes else 0, from_file=True)


def with_file_labels(images: ImageSet, file: LabelFile, progress: Progress = SILENT) -> ImageSet:
    """Return the images with the labels in a file in place of their own.

    Images that the file does not name have no label then. There is one exception: where the file
    labels no test image (or test images alone) and has the classes of the set, the test images (or
    the others) keep their own labels.

    Args:
        images: the set.
        file: its path and columns.
        progress: gets a sentence about everything that was left out or guessed.

    Returns:
        The same images in the same order. `shares` is set where images have several labels.

    Raises:
        UserError: the file cannot be understood, or it has no label for any of the images.
    """
    found = labels_in_file(file, images)
    for message in found.messages:
        progress.message(message)
    if len(found.rows) == 0:
        row = images.rows("train", "unlabelled", "test")[0]
        raise UserError(
            f"{file.path} has no label for any image of {images.name}; fill in its column of"
            f" labels, with lines such as {images.paths[row]},{(*images.classes, 'cat')[0]}."
        )
    labels = torch.full((len(images),), UNLABELLED)
    labels[found.rows] = found.target
    test = torch.from_numpy(images.split == "test")
    before = images.labels[found.rows]
    if found.own_classes:
        for side, name in ((test, "test"), (~test, "training")):
            kept = side & (images.labels != UNLABELLED)
            if not bool((labels[side] != UNLABELLED).any()) and bool(kept.any()):
                labels[kept] = images.labels[kept]
                progress.message(
                    f"{file.path} labels no {name} image; the {int(kept.sum()):,} labelled {name}"
                    f" images of {images.name} keep their own labels."
                )
        if differing := int(((before != found.target) & (before != UNLABELLED)).sum()):
            progress.message(
                f"{differing:,} of {len(found.rows):,} labels in the file are not those of"
                f" {images.name}; those in the file are used."
            )
    shares = None
    if found.shares is not None:
        shares = torch.zeros(len(images), len(found.classes))
        shares[found.rows] = found.shares
    usable = (labels != UNLABELLED).numpy() & (images.split == "unlabelled")
    return replace(
        images,
        labels=labels,
        classes=found.classes,
        split=np.where(usable, "train", images.split),
        shares=shares,
        note="; ".join(filter(None, [images.note, f"labels: those in {file.path.name}"])),
    )


def hold_out_labels(images: ImageSet, seed: int = 0, progress: Progress = SILENT) -> ImageSet:
    """Make test images of a quarter of the labelled training images, where there are too few.

    An image is held out by a hash of its path and the seed, in each class: so more labels hardly
    ever move an image from one side to the other. Copies of an image (where `contents` is known)
    stay on one side. Classes with fewer than five labels are trained on alone.
    Nothing is held out where the set has labelled test images enough, or fewer than twenty labels,
    or fewer than two classes with five.

    Args:
        images: the set with its labels.
        seed: of the choice.
        progress: gets a sentence about what was held out.
    """
    labelled = (images.labels != UNLABELLED).numpy()
    test = (images.split == "test") & labelled
    train = (images.split == "train") & labelled
    total, tested = int((train | test).sum()), int(test.sum())
    several = len(images.labels[test].unique()) > 1
    if several and tested >= max(LEAST_OF_CLASS, min(LEAST_LABELS, 0.1 * total)):
        return images
    if _missing_labels(images, train | test):
        return images
    names = _names_of_contents(images)
    share = {int(row): _hash_share(names[row], seed) for row in np.flatnonzero(train | test)}
    chosen = test.copy()
    for k in range(len(images.classes)):
        rows = np.flatnonzero((train | test) & (images.labels == k).numpy())
        if len(rows) < LEAST_OF_CLASS:
            continue
        below = sum(share[int(row)] < TESTED for row in rows)
        least, most = (max(2, round(part * len(rows))) for part in (LEAST_TESTED, MOST_TESTED))
        count = min(max(below, least), most)
        free = sorted(rows[~test[rows]], key=lambda row: share[int(row)])
        chosen[free[: max(0, count - int(test[rows].sum()))]] = True
    copies = {names[row] for row in np.flatnonzero(chosen)}
    chosen |= train & np.array([name in copies for name in names])
    rare = [
        f"{images.classes[k]} ({n})"
        for k, n in enumerate(_counts(images, train | test))
        if 0 < n < LEAST_OF_CLASS
    ]
    progress.message(
        f"{int((train & ~chosen).sum()):,} of the {total:,} labels are for training, and"
        f" {int(chosen.sum()):,} are held out for testing (chosen by a hash of the path, seed"
        f" {seed})."
    )
    if rare:
        progress.message(
            f"Classes with fewer than {LEAST_OF_CLASS} labels are only trained on and not tested"
            f" ({len(rare)}): {', '.join(rare[:5])}"
            f"{', ...' if len(rare) > 5 else ''}."
        )
    return replace(
        images,
        split=np.where(chosen, "test", images.split),
        note=f"{images.note}; {int(chosen.sum())} of {total} labels held out for testing".lstrip(
            "; "
        ),
    )


def _names_of_contents(images: ImageSet) -> NDArray[np.object_]:
    """For each image the path of the first image with the same content."""
    if images.contents is None:
        return np.array(images.paths, dtype=object)
    first: dict[str, str] = {}
    for content, path in zip(images.contents, images.paths, strict=True):
        first.setdefault(content, path)
    return np.array([first[content] for content in images.contents], dtype=object)


def why_not_tested(images: ImageSet) -> str:
    """Return why the images have no labelled test image, as a sentence; "" if they have some."""
    labelled = (images.labels != UNLABELLED).numpy()
    if (labelled & (images.split == "test")).any() or not labelled.any():
        return ""
    missing = _missing_labels(images, labelled)
    if not missing:
        return f"{images.name} has no labelled test image; label some of its test images."
    classes = images.labels[torch.from_numpy(labelled)].unique()
    if len(classes) == 1:
        return (
            f"all {int(labelled.sum()):,} labels are of the class {images.classes[int(classes)]};"
            f" label {max(missing, LEAST_OF_CLASS)} images of another class at least."
        )
    return (
        f"{int(labelled.sum()):,} labels are too few to hold some of them out for a test, which"
        f" needs {LEAST_LABELS} in all and {LEAST_OF_CLASS} of each of two classes; label"
        f" {missing} more images."
    )


def _missing_labels(images: ImageSet, labelled: NDArray[np.bool_]) -> int:
    """How many labels more are needed so that some can be held out; 0 if there are enough."""
    best = sorted([*_counts(images, labelled), 0, 0], reverse=True)[:2]
    of_classes = sum(max(0, LEAST_OF_CLASS - count) for count in best)
    return max(LEAST_LABELS - int(labelled.sum()), of_classes, 0)


def _counts(images: ImageSet, mask: NDArray[np.bool_]) -> list[int]:
    """Labels of each class."""
    counts: list[int] = images.labels[mask].bincount(minlength=len(images.classes)).tolist()
    return counts


def _hash_share(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on a name and a seed alone."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
