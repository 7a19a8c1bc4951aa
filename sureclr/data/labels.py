"""Which training images have a label, and which: chosen by seed as equally over the classes as
possible, or read from a user's file.
"""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sureclr.data.image_set import UNLABELLED, ImageSet
from sureclr.data.label_request import FORMS, LabelRequest
from sureclr.errors import UserError, unknown

HEADER = ("path", "label")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images of a set with their classes.

    Attributes:
        images: the whole set; nothing is copied until pixels are asked for.
        rows: (n,) int64 rows of it. target: (n,) int64, an index into images.classes.
        differing: how many targets are not what the set itself says (a user's file may know
            better).
    """

    images: ImageSet
    rows: Tensor
    target: Tensor
    differing: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> "Labelled":
        return replace(self, rows=self.rows[index], target=self.target[index])

    def pixels(self, index: Tensor | slice) -> Tensor:
        """(m, c, h, w) uint8 where the set's images are."""
        return self.images.images[self.rows[index].to(self.images.images.device)]

    @property
    def digest(self) -> str:
        """sha256 of which images and labels these are, in any order: what a result was of."""
        lines = sorted(
            f"{self.images.paths[row]}\t{self.images.classes[k]}"
            for row, k in zip(self.rows.tolist(), self.target.tolist(), strict=True)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def labelled_rows(images: ImageSet, split: str, subset: Tensor | None = None) -> Labelled:
    """The images of a split whose class the set knows; of these rows alone where a subset (m,) is
    given.
    """
    rows = torch.as_tensor(images.rows(split)) if subset is None else subset
    rows = rows[images.labels[rows] != UNLABELLED]
    return Labelled(images, rows, images.labels[rows])


def choose_labels(
    images: ImageSet, request: LabelRequest, fold: int | None = None, seed: int = 0
) -> Labelled:
    """The labels that may be trained on.

    Args:
        request: a share or a count of the labelled training images, or a file.
        fold: of the set's own (STL-10 has ten): the choice is among its images.
        seed: of the choice. With one seed a larger choice contains a smaller one, up to one image a
            class.

    Raises:
        UserError: too few labels for the classes, more than there are, a fold that is not there, or
            a bad file.
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
            f"{images.name} has no labelled training image; put them into one sub-folder a class,"
            " or name labels in a file (--labels FILE, path,label)."
        )
    _check_classes(images, pool.target, f"{images.name} has no labelled training image")
    return pool[_balanced(pool.target, _how_many(request, pool), seed)]


def _fold(images: ImageSet, fold: int) -> Tensor:
    if images.folds is None:
        raise UserError(
            f"{images.name} has no folds of its own (stl10 has); leave out --fold, and --seeds"
            " draws the labels."
        )
    if not 0 <= fold < len(images.folds):
        raise UserError(f"{images.name} has folds 0 to {len(images.folds) - 1}, not {fold}.")
    return images.folds[fold]


def _how_many(request: LabelRequest, pool: Labelled) -> int:
    """The number of labels asked for, which must allow one of each class."""
    there, classes = len(pool), len(pool.target.unique())
    asked = request.count if request.count is not None else round((request.share or 0) * there)
    if asked > there:
        raise UserError(
            f"{asked:,} labels were asked for, and {pool.images.name} has {there:,} labelled"
            " training images; ask for fewer."
        )
    if asked < classes:
        said = (
            f"{100 * (request.share or 0):g}% of {there:,} labelled images is {asked}"
            if request.count is None
            else f"{asked} is asked"
        )
        raise UserError(
            f"{said}, too few labels for {classes} classes, each of which needs one; ask for at"
            f" least {classes} (better {10 * classes})."
        )
    return asked


def _balanced(target: Tensor, total: int, seed: int) -> Tensor:
    """(total,) int64 positions in target, as equal over the classes as can be. Drawn by class
    first, so that more contains less.
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
    """How many of each class: as equal as can be, a class with fewer gives all it has. `order`
    decides who is given one more.

    >>> balanced_counts([50, 2, 50], 11, order=[0, 1, 2])
    [4, 2, 5]
    """
    counts, left = [0] * len(available), total
    poorest = sorted(order, key=lambda k: available[k])
    for place, k in enumerate(poorest):
        counts[k] = min(available[k], left // (len(poorest) - place))
        left -= counts[k]
    return counts


def _check_classes(images: ImageSet, target: Tensor, lacking: str) -> None:
    """UserError where a class that the set has images of is not among the targets."""
    known = set(images.labels[images.labels != UNLABELLED].unique().tolist())
    if missing := [images.classes[k] for k in sorted(known - set(target.tolist()))]:
        shown = ", ".join(missing[:5]) + (
            f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        )
        raise UserError(f"{lacking} of class {shown}; label at least one of each class.")
    if len(target.unique()) < 2:
        raise UserError(
            f"{lacking} of a second class, and one class alone teaches nothing; label images of two"
            " classes or more."
        )


# --- The file -------------------------------------------------------------------------


def read_labels(file: Path, images: ImageSet) -> Labelled:
    """A CSV file `path,label`, in UTF-8 with a header (other columns are ignored): paths as in
    `images.paths`, labels class names.

    Raises:
        UserError: the first thing wrong with it, with its line.
    """
    if not images.classes:
        raise UserError(
            f"{images.name} has no classes, so {file} cannot be checked, nor anything tested; put"
            " the test images into one sub-folder a class."
        )
    places = {path: row for row, path in enumerate(images.paths)}
    numbers = {name: k for k, name in enumerate(images.classes)}
    seen: dict[int, tuple[int, str]] = {}  # row -> line, label
    for line, path, label in label_lines(file):
        row = _row(images, places, path, f"{file}, line {line}")
        if label not in numbers:
            raise UserError(f"{file}, line {line}: {unknown('class', label, images.classes)}")
        if row in seen:
            raise _twice(f"{file}, line {line}", path, label, *seen[row])
        seen[row] = line, label
    if not seen:
        raise UserError(
            f"{file} has a header and no label below it; add lines such as {_example(images)}."
        )
    rows = torch.tensor(sorted(seen))
    target = torch.tensor([numbers[seen[row][1]] for row in rows.tolist()])
    _check_classes(images, target, f"{file} has no image")
    known = images.labels[rows]
    return Labelled(images, rows, target, int(((known != target) & (known != UNLABELLED)).sum()))


def _row(images: ImageSet, places: dict[str, int], path: str, where: str) -> int:
    if path not in places:
        called = _example(images).split(",")[0]
        raise UserError(
            f"{where}: {images.name} has no image {path!r}; its training images are called like"
            f" {called}."
        )
    if images.split[places[path]] == "test":
        raise UserError(
            f"{where}: {path} is a test image, and training on it would make the accuracy"
            " worthless; delete the line."
        )
    return places[path]


def _twice(where: str, path: str, label: str, line: int, before: str) -> UserError:
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
    """(line number, path, label) of every line that is not empty."""
    reader = csv.reader(_text(file).splitlines())
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
            f"{where}: {len(fields)} fields, and the header has {len(header)} ({','.join(header)});"
            " put a name with a comma into double quotes."
        )
    path, label = (fields[header.index(name)].strip() for name in HEADER)
    if not path or not label:
        raise UserError(
            f"{where}: there is no {'label' if path else 'path'}; fill it in, or delete the line."
        )
    return path, label


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(
            f"labels {str(file)!r} is neither a share nor a count, and no such file is there;"
            f" {FORMS}."
        ) from error
    except OSError as error:
        raise UserError(f"the labels {file} cannot be read ({error.strerror}); {FORMS}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{file}, line {line}: not UTF-8 text; save it as UTF-8 CSV.") from error
