"""Which training images have a label, and which label.

They are chosen by seed, as equally over the classes as possible, or read from a user's file.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sureclr.data.image_set import UNLABELLED, ImageSet
from sureclr.data.label_request import FORMS, LabelRequest
from sureclr.data.pictures import Pictures
from sureclr.errors import UserError, unknown
from sureclr.files import digest_of_bytes

HEADER = ("path", "label")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Some images of a set with their classes.

    Attributes:
        images: the whole set; pixels are copied only when `pixels` asks for them.
        rows: (n,) int64 rows of it.
        target: (n,) int64, an index into images.classes.
        differing: number of targets that differ from the set's own labels (a user's file may know
            better).
    """

    images: ImageSet
    rows: Tensor
    target: Tensor
    differing: int = 0

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
    """Choose the labels that may be trained on.

    Args:
        images: the set.
        request: a share or a count of the labelled training images, or a file.
        fold: choose among the images of this fold of the set's own (STL-10 has ten).
        seed: of the choice. With the same seed a larger choice contains a smaller one, up to one
            image a class.

    Raises:
        UserError: there are too few labels for the classes that have some, more are wanted than
            there are, the fold does not exist, or the file is wrong.
    """
    if request.file is not None:
        if fold is not None:
            raise UserError(
                f"labels come from the file {request.file} or from fold {fold}, not from both;"
                " leave one out."
            )
        return read_labels(request.file, images)
    pool = labelled_rows(images, "train", None if fold is None else _fold(images, fold))
    if len(pool) == 0:
        raise UserError(
            f"{images.name} has no labelled training image; put the images into one sub-folder a"
            " class, or use a label file (a CSV file path,label)."
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


# --- The label file -------------------------------------------------------------------


def read_labels(file: Path, images: ImageSet) -> Labelled:
    """Read a label file: CSV in UTF-8 with the header path,label. Other columns are ignored.

    Args:
        file: its paths are those of `images.paths`, its labels are names of classes.
        images: the set.

    Raises:
        UserError: the first mistake in the file, with the number of its line.
    """
    if not images.classes:
        raise UserError(
            f"{images.name} has no classes, so the labels in {file} cannot be checked; put the test"
            " images into one sub-folder a class."
        )
    row_of = {path: row for row, path in enumerate(images.paths)}
    numbers = {name: k for k, name in enumerate(images.classes)}
    seen: dict[int, tuple[int, str]] = {}  # row -> line, label
    for line, path, label in label_lines(file):
        row = _training_row(images, row_of, path, f"{file}, line {line}")
        if label not in numbers:
            raise UserError(f"{file}, line {line}: {unknown('class', label, images.classes)}")
        if row in seen:
            raise _labelled_twice(f"{file}, line {line}", path, label, *seen[row])
        seen[row] = line, label
    if not seen:
        raise UserError(
            f"{file} has a header and no label below it; add lines such as {_example(images)}."
        )
    rows = torch.tensor(sorted(seen))
    target = torch.tensor([numbers[seen[row][1]] for row in rows.tolist()])
    _check_classes(target, f"{file} has no image")
    known = images.labels[rows]
    return Labelled(images, rows, target, int(((known != target) & (known != UNLABELLED)).sum()))


def _training_row(images: ImageSet, row_of: dict[str, int], path: str, where: str) -> int:
    if path not in row_of:
        example = _example(images).split(",")[0]
        raise UserError(
            f"{where}: {images.name} has no image {path!r}; its training images have names like"
            f" {example}."
        )
    if images.split[row_of[path]] == "test":
        raise UserError(
            f"{where}: {path} is a test image, and training on it would make the accuracy"
            " worthless; delete the line."
        )
    return row_of[path]


def _labelled_twice(where: str, path: str, label: str, line: int, before: str) -> UserError:
    if label == before:
        return UserError(
            f"{where}: {path} was already labelled {label} in line {line}; delete one of the two."
        )
    return UserError(
        f"{where}: {path} is labelled {label} here and {before} in line {line}; keep the right one."
    )


def _example(images: ImageSet) -> str:
    """A line as it could stand in a file."""
    row = images.rows("train", "unlabelled")[0]
    return f"{images.paths[row]},{images.classes[max(0, int(images.labels[row]))]}"


def label_lines(file: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, path and label of every line of a label file that is not empty.

    Args:
        file: CSV in UTF-8 with the header path,label.

    Raises:
        UserError: the first mistake in the file, with the number of its line.
    """
    reader = csv.reader(_read_text(file).splitlines())
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if not header:
            raise UserError(f"{file} is empty; {FORMS}.")
        if any(header.count(name) != 1 for name in HEADER):
            raise UserError(
                f"{file}, line 1: the header must be path,label, not {','.join(header)[:80]!r};"
                " write it above the labels."
            )
        for fields in reader:
            if any(field.strip() for field in fields):
                yield (
                    reader.line_num,
                    *_path_and_label(fields, header, f"{file}, line {reader.line_num}"),
                )
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: not CSV ({error}); {FORMS}.") from error


def _path_and_label(fields: list[str], header: list[str], where: str) -> tuple[str, str]:
    if len(fields) != len(header):
        raise UserError(
            f"{where}: there are {len(fields)} fields, and the header has {len(header)}"
            f" ({','.join(header)});"
            " put a name with a comma into double quotes."
        )
    path, label = (fields[header.index(name)].strip() for name in HEADER)
    if not path or not label:
        raise UserError(
            f"{where}: there is no {'label' if path else 'path'}; fill it in, or delete the line."
        )
    return path, label


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(
            f"labels {str(file)!r} is neither a share nor a count, and there is no such file;"
            f" {FORMS}."
        ) from error
    except OSError as error:
        raise UserError(f"the labels {file} cannot be read ({error.strerror}); {FORMS}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{file}, line {line}: not UTF-8 text; save it as UTF-8 CSV.") from error
