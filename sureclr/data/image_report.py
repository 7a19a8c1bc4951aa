"""What was understood of a source of images, said before the first step and kept with the run."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sureclr.schema import to_json

NAMED_FILES = 3  # in a sentence; the report names all
NAMED_CLASSES = 12  # in a sentence
NAMED_ENDINGS = 8  # in a sentence

# What to do with files that are no pictures here, by their endings
_ADVICE = {
    "install sureclr[heif]": ".heic .heif .hif",
    "install sureclr[dicom]": ".dcm .dicom",
    "convert them to JPEG or TIFF": ".cr2 .cr3 .nef .arw .dng .orf .raf .rw2 .psd .xcf .jxl",
    "convert them to PNG": ".svg .pdf .eps .ai .ps",
    "save single frames of them as pictures": ".mp4 .mov .avi .mkv .webm .m4v",
    "unpack them": ".zip .7z .rar .gz .tgz .bz2 .xz .zst",
    "read them with tar:PATTERN": ".tar",
    "read them with parquet:PATH": ".parquet .arrow",
    "convert them to TIFF or .npy": ".h5 .hdf5 .nc .mat .nii .fits .npz .exr .hdr",
}
WAYS_TO_READ = {ending: way for way, words in _ADVICE.items() for ending in words.split()}


def inert(text: object) -> str:
    """Return text that a terminal or a page can show without harm.

    Control characters, direction marks, line breaks and bytes that are not UTF-8 become escapes.
    Blanks of every kind stay as they are.
    """
    return "".join(
        c
        if c.isprintable() or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(text)
    )


def named_reasons(bad: Mapping[str, str]) -> str:
    """Return the first few files of a mapping from names to reasons, for a message."""
    first = list(bad.items())[:NAMED_FILES]
    return ", ".join(f"{inert(name)} ({inert(reason)})" for name, reason in first)


def counted(count: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "image"), counted(2000, "image")
    ('1 image', '2,000 images')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Sizes:
    """Width and height in pixels of the pictures as they lie in their files.

    Attributes:
        smallest: the picture with the shortest shorter side.
        median: the one in the middle, ordered by the shorter side.
        largest: the one with the longest shorter side.
        distinct: how many different sizes there are.
        enlarged: pictures whose shorter side is below the size that is used.
        fitting: the largest size, at most 96, that enlarges at most 5 % of them.
    """

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    distinct: int
    enlarged: int
    fitting: int


@dataclass(frozen=True)
class Duplicates:
    """Exact duplicates: images whose content equals that of another one.

    Attributes:
        within: split -> the number of its images that repeat an earlier image of that split.
        taken_out: images taken out of the test split because they are training images as well.
        named: file taken out -> the training image that it repeats.
    """

    within: dict[str, int] = field(default_factory=dict)
    taken_out: int = 0
    named: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageReport:
    """What was understood of a source of images. `to_json` gives the content of images.json.

    Attributes:
        source: the name of the source.
        images: the number of images.
        splits: split -> its number of images.
        splits_from: where the splits come from, in words.
        classes: class -> its number of images.
        unlabelled: images without a class.
        size: side in pixels of the squares that are used; None: each image has its own.
        channels: of the images that are used; None: not known.
        channels_from: why there are so many channels, in words; "" where that is plain.
        size_given: whether the caller asked for this size.
        sizes: of the pictures in their files; None: not known.
        value_range: what becomes black and white in images of more than 8 bits; None: none has
            more.
        value_range_from: where the range comes from, in words.
        files: files that were read, or that could not be read.
        refused: file -> the reason why it could not be read.
        complaints: lines that decoders wrote about files that could be read.
        complaining: number of these files.
        filled: values that were NaN, infinite or nodata and were replaced.
        filled_images: number of images with such values.
        pages_skipped: pages and frames after the first that were not read.
        files_with_pages: number of files that have them.
        pages_read: further pages that became images of their own.
        left_out: ending -> number of files with it, which are no pictures here.
        left_out_pictures: folder or reason -> number of pictures that are left out on purpose.
        duplicates: exact copies.
        warnings: further sentences.
    """

    source: str
    images: int
    splits: dict[str, int]
    splits_from: str = ""
    classes: dict[str, int] = field(default_factory=dict)
    unlabelled: int = 0
    size: int | None = None
    channels: int | None = None
    channels_from: str = ""
    size_given: bool = False
    sizes: Sizes | None = None
    value_range: tuple[float, float] | None = None
    value_range_from: str = ""
    files: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    complaints: int = 0
    complaining: int = 0
    filled: int = 0
    filled_images: int = 0
    pages_skipped: int = 0
    files_with_pages: int = 0
    pages_read: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    left_out_pictures: dict[str, int] = field(default_factory=dict)
    duplicates: Duplicates = Duplicates()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON, with the way to read each kind of file that is left out."""
        ways = {ending: way_to_read(ending) for ending in self.left_out}
        return {**to_json(self), "ways_to_read": {key: way for key, way in ways.items() if way}}

    @property
    def shown_refusals(self) -> dict[str, str]:
        """`refused`, with names and reasons that a terminal can show."""
        return {inert(name): inert(reason) for name, reason in self.refused.items()}

    def sentences(self) -> list[str]:
        """Return what a user should know before anything is computed, a sentence each."""
        return [
            sentence
            for sentence in (
                self._counts(),
                self._splits(),
                self._sizes(),
                self._enlarged(),
                self._range(),
                self._refused(),
                self._oddities(),
                self._pages(),
                self._left_out(),
                self._duplicates(),
                *self.warnings,
            )
            if sentence
        ]

    def note(self) -> str:
        """Return what a reader of results should know, as one line."""
        parts = [
            self._splits(),
            "" if self.classes else "No labels: fewer than two sub-folders.",
            self._refused(),
            self._duplicates(),
        ]
        return "; ".join(part.removesuffix(".") for part in parts if part)

    def _counts(self) -> str:
        splits = ", ".join(f"{count:,} {split}" for split, count in self.splits.items() if count)
        text = f"{inert(self.source)}: {counted(self.images, 'image')}" + f" ({splits})" * bool(
            splits
        )
        if not self.classes:
            return f"{text}, no labels."
        text += f", {counted(len(self.classes), 'class').replace('classs', 'classes')}"
        if len(self.classes) <= NAMED_CLASSES:
            text += ": " + ", ".join(f"{inert(n)} {c:,}" for n, c in self.classes.items())
        else:
            least, most = (pick(self.classes.items(), key=_number) for pick in (min, max))
            text += f" of {least[1]:,} ({inert(least[0])}) to {most[1]:,} ({inert(most[0])}) images"
        return text + (f"; {self.unlabelled:,} without a class." if self.unlabelled else ".")

    def _splits(self) -> str:
        return f"Splits: {self.splits_from}." if self.splits_from else ""

    def _sizes(self) -> str:
        if self.sizes is None or self.size is None:
            return ""
        found = self.sizes
        of = (
            f"All pictures are {_pixels(found.median)}"
            if found.distinct == 1
            else f"The pictures are {_pixels(found.smallest)} to {_pixels(found.largest)} (median"
            f" {_pixels(found.median)})"
        )
        bands = {1: "grey", 3: "RGB"}.get(self.channels or 0, f"{self.channels} bands")
        why = f", {self.channels_from}" if self.channels_from else ""
        return f"{of}; they are used at {self.size} px, {bands}{why}."

    def _enlarged(self) -> str:
        if self.sizes is None or self.size is None or not self.sizes.enlarged:
            return ""
        many = self.sizes.enlarged > 0.05 * self.images
        if not many or not self.size_given:
            are = "is" if self.sizes.enlarged == 1 else "are"
            return (
                f"{counted(self.sizes.enlarged, 'image')} with a shorter side below"
                f" {self.size} px {are} enlarged."
            )
        fitting = self.sizes.fitting
        stem = ' and stem="cifar" keep' if fitting <= 48 else " keeps"
        return (
            f"Your images are {min(self.sizes.median)} px (the median of their shorter sides);"
            f" size={self.size} enlarges {self.sizes.enlarged:,} of them; size={fitting}{stem}"
            " them."
        )

    def _range(self) -> str:
        if self.value_range is None:
            return ""
        low, high = self.value_range
        return (
            f"Values of more than 8 bits: {low:.10g} becomes black and {high:.10g} white"
            f" ({self.value_range_from})."
        )

    def _refused(self) -> str:
        if not self.refused:
            return ""
        more = ", ... (all in images.json)" if len(self.refused) > NAMED_FILES else ""
        return (
            f"{len(self.refused):,} of {self.files:,} image files could not be read:"
            f" {named_reasons(self.refused)}{more}."
        )

    def _oddities(self) -> str:
        parts = []
        if self.filled:
            parts.append(
                f"{counted(self.filled, 'value')} that were NaN, infinite or nodata became black"
                f" (in {counted(self.filled_images, 'image')})"
            )
        if self.complaining:
            parts.append(
                f"decoders complained about {counted(self.complaining, 'file')} that they could"
                f" still read ({counted(self.complaints, 'line')})"
            )
        return _sentence("; ".join(parts))

    def _pages(self) -> str:
        if self.pages_skipped:
            return (
                f"{self._with_pages()} several pages or frames; the first of each is read and"
                f" {self.pages_skipped:,} {'is' if self.pages_skipped == 1 else 'are'} skipped"
                " (pages=all makes an image of each)."
            )
        if self.pages_read:
            return f"{self._with_pages()} several pages or frames, of which each is an image."
        return ""

    def _with_pages(self) -> str:
        have = "has" if self.files_with_pages == 1 else "have"
        return f"{counted(self.files_with_pages, 'file')} {have}"

    def _left_out(self) -> str:
        most = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        # Files that could be read with some help come first: a person wants to know of them
        most.sort(key=lambda item: not way_to_read(item[0]))
        parts = []
        for ending, count in most[:NAMED_ENDINGS]:
            way = way_to_read(ending)
            words = f"{count:,} {inert(ending) or 'without an ending'}"
            parts.append(f"{words} ({way})" if way else words)
        rest = sum(count for _, count in most[NAMED_ENDINGS:])
        parts += [f"{rest:,} with other endings"] if rest else []
        parts += [
            f"{counted(count, 'picture')} {inert(where)}"
            for where, count in self.left_out_pictures.items()
        ]
        return f"Left out: {', '.join(parts)}." if parts else ""

    def _duplicates(self) -> str:
        parts = [
            f"{counted(count, 'exact duplicate')} within {split}"
            for split, count in self.duplicates.within.items()
            if count
        ]
        if self.duplicates.taken_out:
            one = self.duplicates.taken_out == 1
            copy, original = next(iter(self.duplicates.named.items()))
            parts.append(
                f"{self.duplicates.taken_out:,} test {'image was' if one else 'images were'} taken"
                f" out, because {'it repeats' if one else 'they repeat'} training images exactly"
                f" ({'' if one else 'such as '}{inert(copy)}, which is {inert(original)})"
            )
        return _sentence("; ".join(parts))


def way_to_read(ending: str) -> str:
    """Return what to do so that files with this ending can be used; "" where nothing is known."""
    return WAYS_TO_READ.get(ending.lower(), "")


def _number(item: tuple[str, int]) -> int:
    return item[1]


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""
