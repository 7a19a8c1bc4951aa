"""Whose labels are they? The images and the classes that the rows of a label file mean.

A row may name its image by the path in `ImageSet.paths`, relative to the folder or to a folder
above or below it, absolute, with other slashes, in another form of Unicode, with or without the
escapes of odd letters, or by the file name alone, with or without its ending, where only one image
has it. An earlier one of these forms wins.
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from posixpath import normpath, splitext
from urllib.parse import unquote

import torch
from torch import Tensor

from sureclr.data.decoding import ENDINGS
from sureclr.data.image_report import counted, inert
from sureclr.data.image_set import ImageSet
from sureclr.data.label_file import FALLBACKS, LabelRow, read_label_rows
from sureclr.data.label_request import LabelFile
from sureclr.data.splits import split_of_name
from sureclr.errors import UserError, unknown
from sureclr.files import from_cell

WHOLE = re.compile(r"[-+]?\d{1,100}(\.0*)?")  # Python converts no number of 5,000 digits
OUTER_BLANKS = re.compile(r"^[\s\u200b\ufeff]+|[\s\u200b\ufeff]+$")
TYPO = 0.6  # likeness above which an unknown class that few images have is taken for a typing error
FEW = 3  # images of a new class from which on it is no typing error
NAMED = 3  # unknown images that a message names
LONG = 120  # letters of a name that a message shows


class AmbiguousName(Exception):
    """A name fits several images; `rows` are two of them."""

    def __init__(self, rows: Sequence[int]) -> None:
        """Keep the rows."""
        super().__init__(rows)
        self.rows = rows


@dataclass(frozen=True)
class Found:
    """The image that a name means.

    Attributes:
        row: of the image set.
        certain: whether its whole path was named, and not only the last part of it.
    """

    row: int
    certain: bool


class ImageIndex:
    """Finds images by what people call them.

    Args:
        images: the image set.
        encoding: in which the names were read; where UTF-8 was not possible, names of files that
            are not UTF-8 either are found by their bytes.
    """

    def __init__(self, images: ImageSet, encoding: str = "utf-8") -> None:
        """Index the paths."""
        self.paths, self.encoding = images.paths, encoding
        self.exact = {path: row for row, path in enumerate(images.paths)}
        self.roots = _roots(images.name)
        self.splits = {split_of_name(root.rpartition("/")[2]) for root in self.roots} - {None}
        self.cache: dict[str, Found | AmbiguousName | None] = {}

    def find(self, name: str) -> Found | None:
        """Return the image that a name means, or None.

        Raises:
            AmbiguousName: several images fit equally well.
        """
        if name not in self.cache:
            try:
                self.cache[name] = self._find(name)
            except AmbiguousName as error:
                self.cache[name] = error
        found = self.cache[name]
        if isinstance(found, AmbiguousName):
            raise found
        return found

    def knows(self, name: str) -> bool:
        """Whether a name means an image, or several."""
        try:
            return self.find(name) is not None
        except AmbiguousName:
            return True

    def _find(self, name: str) -> Found | None:
        forms = list(dict.fromkeys(self._forms(name)))
        for form in forms:
            if form in self.exact:
                return Found(self.exact[form], True)
        plain = list(dict.fromkeys(map(canonical, forms)))
        for form in plain:
            if rows := self._canonical.get(form):
                return Found(_single(rows), True)
        for form in plain:
            for root in self.roots:
                if form.startswith(f"{root}/"):
                    rows = self._canonical.get(form.removeprefix(f"{root}/"))
                    return Found(_single(rows), True) if rows else None
        for change in (None, _without_ending, str.casefold, _bare):
            for form in plain:
                if rows := self._by_last_parts(form, change):
                    return Found(_single(rows), False)
        return None

    def _forms(self, name: str) -> Iterator[str]:
        """The name as it is, with escapes, by its bytes, and all of these without outer blanks."""
        for word in (name, name.strip()):
            if word:
                yield word
                yield inert(word)
                if self.encoding in FALLBACKS:
                    yield inert(os.fsdecode(word.encode(self.encoding, "replace")))
                yield inert(_unescaped(word))
                if word.startswith("~"):
                    yield inert(os.path.expanduser(word))
                if word.lower().startswith("file:"):
                    yield inert(unquote(word[5:]))

    @cached_property
    def _canonical(self) -> dict[str, list[int]]:
        return _grouped((canonical(path), row) for row, path in enumerate(self.paths))

    def _by_last_parts(self, name: str, change: Callable[[str], str] | None) -> list[int]:
        """The images one of whose last parts is the name, or the reverse, or of this file name.

        Args:
            name: in canonical form.
            change: of name and paths before they are compared.
        """
        whole, ends, files = self._endings(change)
        parts = (change(name) if change else name).strip("/").split("/")
        for start in range(1, len(parts)):  # folders above ours
            above = _splits("/".join(parts[: start + 1]))
            if above and self.splits and above.isdisjoint(self.splits):
                return []  # of the folder train/, test/1.jpg is no image
            if rows := whole.get("/".join(parts[start:])):
                return rows
        joined = "/".join(parts)
        if rows := whole.get(joined) or ends.get(joined):
            return rows
        split = _splits(name)  # train/1.jpg is not test/1.jpg
        rows = files.get(parts[-1], [])
        return [
            row
            for row in rows
            if not (split and (ours := _splits(self.paths[row]) or self.splits))
            or not split.isdisjoint(ours)
        ]

    def _endings(self, change: Callable[[str], str] | None) -> tuple[dict[str, list[int]], ...]:
        """Whole paths, their last parts, and their file names; each with the rows that have it."""
        key = "" if change is None else change.__name__
        if key not in self._kept:
            paths = [change(p) if change else p for p in map(canonical, self.paths)]
            self._kept[key] = (
                _grouped((path, row) for row, path in enumerate(paths)),
                _grouped(
                    (path[i + 1 :], row)
                    for row, path in enumerate(paths)
                    for i, letter in enumerate(path)
                    if letter == "/"
                ),
                _grouped((path.rpartition("/")[2], row) for row, path in enumerate(paths)),
            )
        return self._kept[key]

    @cached_property
    def _kept(self) -> dict[str, tuple[dict[str, list[int]], ...]]:
        return {}


def canonical(path: str) -> str:
    r"""Return a path with `/` alone, in Unicode's form NFC, without `.`, `..` and double slashes.

    >>> canonical(".\\cats//a.jpg"), canonical("cats/../dogs/./b.jpg")
    ('cats/a.jpg', 'dogs/b.jpg')
    """
    plain = normpath(unicodedata.normalize("NFC", path).replace("\\", "/"))
    return plain[1:] if plain.startswith("//") else plain


def _splits(path: str) -> set[str | None]:
    """The splits after which folders of a path are called."""
    return {split_of_name(folder) for folder in path.split("/")[:-1]} - {None}


def _without_ending(path: str) -> str:
    """A path without the ending of an image."""
    stem, ending = splitext(path)
    return stem if ending.lower() in ENDINGS else path


def _bare(path: str) -> str:
    return _without_ending(path).casefold()


def _roots(name: str) -> list[str]:
    """The folder of the images as an absolute path may begin, in canonical form."""
    if not name.startswith("folder:"):
        return []
    try:
        folder = Path(name.removeprefix("folder:")).expanduser()
        forms = [os.path.abspath(folder), os.path.realpath(folder)]
    except (OSError, RuntimeError, ValueError):
        return []
    return list(dict.fromkeys(canonical(inert(form)).rstrip("/") for form in forms))


def _grouped(pairs: Iterator[tuple[str, int]]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for key, row in pairs:
        groups[key].append(row)
    return dict(groups)


def _single(rows: Sequence[int]) -> int:
    if len(rows) > 1:
        raise AmbiguousName(rows[:2])
    return rows[0]


# --- A file and its images ------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FileLabels:
    """The labels in a file for the images of a set.

    Attributes:
        rows: (n,) int64 rows of the images that have a label in the file, ascending.
        target: (n,) int64, the class with the largest share; of equal ones the first.
        shares: (n, k) float32, the share of each class in the labels of each image; None where
            every image has one label alone.
        classes: k names: those of the image set where the labels are among them, else those of the
            file.
        own_classes: whether `classes` begin with those of the image set.
        messages: sentences for the user: what was left out, and what was guessed.
    """

    rows: Tensor
    target: Tensor
    shares: Tensor | None
    classes: tuple[str, ...]
    own_classes: bool
    messages: list[str]


def labels_in_file(file: LabelFile, images: ImageSet) -> FileLabels:
    """Read a label file and find its images and classes.

    Several rows of one image with the same label are one label. With different labels each has a
    share of the image, by the number of rows (or by their weights, where each class has a column).

    Args:
        file: its path and columns.
        images: the set that it labels.

    Raises:
        UserError: the file cannot be understood, names none of the images, names one by a name
            that fits several, or has a class that is nearly one of the set's.
    """
    read = read_label_rows(file, ImageIndex(images).knows, images.classes)
    index, path = ImageIndex(images, read.encoding), inert(file.path)
    messages, votes, unknown_names = list(read.notes), dict[int, Counter[str]](), list[str]()
    seen: dict[int, tuple[str, Found]] = {}
    blank, guessed = 0, list[tuple[str, int]]()
    for row in read.rows:
        found = _found(index, row, path, images)
        if found is None:
            unknown_names.append(row.image)
            continue
        _check_same_name(seen, found, row, path, images)
        if not found.certain:
            guessed.append((row.image, found.row))
        blank += not row.votes
        votes.setdefault(found.row, Counter()).update(row.votes)
    if read.rows and not votes:
        raise UserError(
            f"{path} names no image of {images.name}: the file has names such as"
            f" {_shown(read.rows[0].image)}, and the images have names such as"
            f" {images.paths[0]!r}; write these, or choose the column with image_column."
        )
    messages += _messages(path, images, unknown_names, guessed, blank, len(read.rows))
    labelled = {row: count for row, count in sorted(votes.items()) if count}
    names = list(dict.fromkeys(name for count in labelled.values() for name in count))
    meant, classes, own = _classes(names, labelled, images, path, messages)
    number = {name: k for k, name in enumerate(classes)}
    shares = torch.zeros(len(labelled), max(1, len(classes)), dtype=torch.float64)
    for i, count in enumerate(labelled.values()):
        for name, weight in count.items():
            if meant[name] is not None:
                shares[i, number[str(meant[name])]] += weight
    known = shares.sum(1) > 0
    shares = shares[known] / shares[known].sum(1, keepdim=True)
    rows = torch.tensor(list(labelled), dtype=torch.int64)[known]
    soft = int((shares.amax(1) < 1).sum()) if len(shares) else 0
    if soft:
        messages.append(
            f"{path}: {soft:,} of the {counted(len(rows), 'labelled image')} have more than one"
            " label; the class with the largest share is taken, and the shares are kept as human"
            " uncertainty."
        )
    return FileLabels(
        rows, shares.argmax(1), shares.float() if soft else None, classes, own, messages
    )


def _shown(name: str) -> str:
    """A name in quotes, cut where it is long."""
    quoted = repr(inert(name))
    return quoted if len(quoted) <= LONG else f"{quoted[:LONG]}..."


def _found(index: ImageIndex, row: LabelRow, path: str, images: ImageSet) -> Found | None:
    try:
        return index.find(row.image) or index.find(from_cell(row.image))
    except AmbiguousName as error:
        one, other = (images.paths[i] for i in error.rows)
        raise UserError(
            f"{path}, line {row.line}: {inert(row.image)!r} could be {one!r} or {other!r}; write"
            " the path of the image."
        ) from error


def _check_same_name(
    seen: dict[int, tuple[str, Found]], found: Found, row: LabelRow, path: str, images: ImageSet
) -> None:
    """Raise a UserError if two names of different files are taken for one image."""
    name = canonical(row.image.strip())
    before, match = seen.setdefault(found.row, (name, found))
    if before != name and not (match.certain and found.certain):
        raise UserError(
            f"{path}, line {row.line}: {inert(name)!r} and {inert(before)!r} are both taken for the"
            f" image {images.paths[found.row]!r}; write the paths as the images have them."
        )


def _messages(
    path: str,
    images: ImageSet,
    unknown_names: Sequence[str],
    guessed: Sequence[tuple[str, int]],
    blank: int,
    rows: int,
) -> list[str]:
    messages = []
    if blank:
        messages.append(
            f"{path}: {blank:,} of {counted(rows, 'row')} have no label and are left unlabelled."
        )
    if unknown_names:
        names = list(dict.fromkeys(unknown_names))
        shown = ", ".join(map(_shown, names[:NAMED]))
        more = ", ..." if len(names) > NAMED else ""
        messages.append(
            f"{path}: {counted(len(names), 'name')} in it {'is' if len(names) == 1 else 'are'} not"
            f" among the images of {images.name} and ignored: {shown}{more}."
        )
    if guessed:
        name, row = guessed[0]
        messages.append(
            f"{path}: the path of the image is not whole in {counted(len(guessed), 'row')}; for"
            f" example {inert(name)!r} is taken for {images.paths[row]!r}."
        )
    return messages


# --- Classes --------------------------------------------------------------------------


def _classes(
    names: Sequence[str],
    labelled: dict[int, Counter[str]],
    images: ImageSet,
    path: str,
    messages: list[str],
) -> tuple[dict[str, str | None], tuple[str, ...], bool]:
    """Which class each label means (None: it stands for no label), all classes, and whose they are.

    Whole numbers are the same with and without decimals ("3", "3.0"), and a negative one means that
    the class is not known. They are names of classes; where the image set has other names, they
    are the numbers of these, from 0.
    """
    meant: dict[str, str | None] = {name: _tidy(name) for name in names}
    whole = bool(names) and all(WHOLE.fullmatch(name.strip()) for name in names)
    if whole:
        meant = {name: re.sub(r"^\+|\.0*$", "", name.strip()) for name in names}
        negative = [name for name, word in meant.items() if int(str(word)) < 0]
        meant |= dict.fromkeys(negative)
        if negative:
            count = sum(any(n in negative for n in votes) for votes in labelled.values())
            messages.append(
                f"{path}: negative numbers stand for an unknown class ({counted(count, 'image')})."
            )
    present = [name for name in names if meant[name] is not None]
    own = _own_classes(present, images.classes)
    for name, known in own.items():
        if known.strip() != name.strip() and inert(name) != known and not whole:
            messages.append(f"{path}: the label {inert(name)!r} is read as the class {known!r}.")
    left = [name for name in present if name not in own]
    if not own and whole and images.classes and left:
        return _as_numbers({n: str(meant[n]) for n in left}, meant, images, path, messages)
    if own or not left:
        counts = Counter(name for votes in labelled.values() for name in votes)
        for name in left:
            close = get_close_matches(name.strip().lower(), images.classes, 1, TYPO)
            if whole or (close and counts[name] < FEW):
                raise UserError(f"{path}: {unknown('class', name.strip(), images.classes)}")
        meant |= {name: inert(str(meant[name])) for name in left}
        new = sorted({str(meant[name]) for name in left})
        if new:
            messages.append(
                f"{path}: these labels are no classes of {images.name} and are added to them:"
                f" {', '.join(new[:5])}{', ...' if len(new) > 5 else ''}."
            )
        return {**meant, **own}, (*images.classes, *new), True
    words = {str(meant[name]) for name in left}
    ordered = sorted(words, key=(lambda w: (int(w), w)) if whole else None)
    if images.classes:
        messages.append(
            f"{path}: no label is a class of {images.name} ({', '.join(images.classes[:3])}, ...);"
            f" the classes of the file, {len(ordered)} in all, are used in their place."
        )
    _note_capitals(ordered, path, messages)
    shown = {word: inert(word) for word in ordered}
    return (
        {name: None if word is None else shown[word] for name, word in meant.items()},
        tuple(shown.values()),
        False,
    )


def _tidy(name: str) -> str:
    """A label without outer blanks, also those of no width, in Unicode's form NFC."""
    return unicodedata.normalize("NFC", OUTER_BLANKS.sub("", name))


def _own_classes(names: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """Which class of the image set each label means, where it means one.

    A label is compared as it is, then without outer blanks, then without regard to capitals, and
    as a number.
    """
    changes: list[Callable[[str], str]] = [
        lambda word: word,
        inert,
        from_cell,
        lambda word: inert(_tidy(word)),
        lambda word: _tidy(_unescaped(word)),
        lambda word: _tidy(_unescaped(word)).casefold(),
        lambda word: str(int(word.split(".")[0])) if WHOLE.fullmatch(word.strip()) else f"={word}",
    ]
    own: dict[str, str] = {}
    for change in changes:
        alike: dict[str, list[str]] = defaultdict(list)
        for known in classes:
            alike[change(known)].append(known)
        for name in names:
            if name not in own and len(found := alike.get(change(name), [])) == 1:
                own[name] = found[0]
    return own


def _unescaped(word: str) -> str:
    """A word in which the escapes of `inert` are letters again."""
    return re.sub(
        r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})|\\U(00(?:0[0-9a-f]|10)[0-9a-f]{4})",
        lambda match: chr(int(next(filter(None, match.groups())), 16)),
        word,
    )


def _as_numbers(
    left: dict[str, str],
    meant: dict[str, str | None],
    images: ImageSet,
    path: str,
    messages: list[str],
) -> tuple[dict[str, str | None], tuple[str, ...], bool]:
    """Labels that are numbers of the image set's classes, from 0."""
    last = len(images.classes) - 1
    if beyond := sorted({int(word) for word in left.values() if int(word) > last}):
        raise UserError(
            f"{path}: the label {beyond[0]} is neither a class of {images.name} nor the number of"
            f" one (0 to {last}); write the names of the classes: {', '.join(images.classes[:5])}"
            f"{', ...' if last > 4 else ''}."
        )
    messages.append(
        f"{path}: the labels are numbers and are taken for numbers of the classes of {images.name},"
        f" from 0: {', '.join(f'{k} is {name}' for k, name in enumerate(images.classes[:3]))}"
        f"{', ...' if last > 2 else ''}."
    )
    by_number = {name: images.classes[int(word)] for name, word in left.items()}
    return {**meant, **by_number}, images.classes, True


def _note_capitals(ordered: Sequence[str], path: str, messages: list[str]) -> None:
    groups: dict[str, list[str]] = defaultdict(list)
    for word in ordered:
        groups[word.casefold()].append(word)
    if twins := next((group for group in groups.values() if len(group) > 1), None):
        messages.append(
            f"{path}: the classes {' and '.join(map(repr, map(inert, twins)))} differ in capitals"
            " alone; they count as different classes."
        )
