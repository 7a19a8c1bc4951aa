"""Every source of picture files becomes an ImageSet here: read, decoded, split and reported on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sureclr.config import READ_OPTIONS, ReadOptions
from sureclr.data.cache_manifest import Manifest
from sureclr.data.decoding import PictureFacts
from sureclr.data.folder_cache import ChosenFiles, Listing, cached_pictures, whole_bytes
from sureclr.data.image_report import Duplicates, ImageReport, inert, named_reasons
from sureclr.data.image_set import UNLABELLED, ImageSet
from sureclr.data.picture_arrays import decoding_of
from sureclr.data.pictures import MOST_BANDS
from sureclr.data.splits import SPLITS_IN_ORDER, duplicates_of, held_out_by_content, split_words
from sureclr.data.survey import (
    Survey,
    few_levels,
    fitting_channels,
    fitting_range,
    fitting_size,
    found_sizes,
    surveyed,
)
from sureclr.errors import UserError
from sureclr.progress import SILENT, Progress

MAY_BE_UNREADABLE = 0.1  # share of the files; more needs the user's word


@dataclass(frozen=True, eq=False)
class PictureList:
    """The picture files of a source with what is known of them before they are read.

    Attributes:
        source: the name under which the images are found again, from any folder.
        listing: the files.
        groups: n names of classes; "" where the class is not known.
        splits: n splits; None: the content of the image decides.
        splits_from: where given splits come from, in words.
        classes: names of the classes in the order of their numbers; None: sorted by name, and no
            image is labelled where there are fewer than two.
        left_out: ending -> number of files with it, which are no pictures here.
        left_out_pictures: words -> number of pictures that are left out on purpose.
        warnings: sentences for the report.
    """

    source: str
    listing: Listing
    groups: Sequence[str]
    splits: Sequence[str | None]
    splits_from: str = ""
    classes: tuple[str, ...] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    left_out_pictures: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Pages:
    """How pages were counted."""

    skipped: int = 0
    read: int = 0
    files: int = 0


def read_pictures(
    pictures: PictureList,
    options: ReadOptions = READ_OPTIONS,
    *,
    seed: int = 0,
    progress: Progress = SILENT,
) -> ImageSet:
    """Decode the pictures of a source, or take them from the cache, as an ImageSet.

    Args:
        pictures: the files.
        options: how they become pixels.
        seed: of the split by content.
        progress: what to report to; gets the sentences of the report.

    Returns:
        The images in the order of the list, with whole pictures, contents and a report.

    Raises:
        UserError: no picture can be read, too many cannot, or the cache cannot be written.
    """
    if options.unsplit:
        splits = ["test"] * len(pictures.listing.names)
        pictures = replace(pictures, splits=splits, splits_from="", warnings=())
    found = surveyed(pictures.listing, progress, options.channels)
    # What the headers say already is said before anything is decoded
    bad = dict(_bad_in(pictures.listing.names, found.facts))
    _check_readable(options, pictures, bad, len(pictures.listing.names) - len(bad))
    pictures, facts, pages = _with_pages(pictures, found.facts, options)
    readable = [fact for fact in facts if not isinstance(fact, str)]
    size = options.size or fitting_size([min(f.width, f.height) for f in readable])
    channels, channels_from = (
        (options.channels, "") if options.channels else fitting_channels(readable)
    )
    if channels > MOST_BANDS:
        raise UserError(
            f"every picture of {inert(pictures.source)} has {channels} bands, and at most"
            f" {MOST_BANDS} can be used; save fewer bands, or set channels=3."
        )
    value_range, range_from, warning = _value_range(found, options)
    wanted = decoding_of(size, channels, value_range, options)
    expected = whole_bytes([(f.width, f.height) for f in readable], wanted)
    cached = cached_pictures(pictures.listing, wanted, expected, progress, verify=options.verify)
    manifest = cached.manifest
    _check_readable(options, pictures, manifest.bad, len(manifest.names))
    row_of = {name: row for row, name in enumerate(pictures.listing.names)}
    rows = [row_of[name] for name in manifest.names]
    labels, classes = _labels([pictures.groups[row] for row in rows], pictures.classes)
    split = _split([pictures.splits[row] for row in rows], labels, manifest.contents, seed)
    copies, stays = duplicates_of(manifest.contents, split, manifest.names)
    sizes = [fact for row in rows if not isinstance(fact := facts[row], str)]
    if options.pages == "first":  # those of files that could be read
        pages = _Pages(sum(f.pages - 1 for f in sizes), files=sum(f.pages > 1 for f in sizes))
    report = ImageReport(
        source=pictures.source,
        images=0,
        splits={},
        splits_from=split_words([pictures.splits[row] for row in rows], pictures.splits_from, seed),
        size=size,
        channels=channels,
        channels_from=channels_from,
        # A size that comes with a share is usually that of a pretrained encoder, not the user's
        size_given=options.size is not None and options.centre_share is None,
        sizes=found_sizes(sizes, size),
        value_range=value_range,
        value_range_from=range_from,
        files=len(pictures.listing.names),
        pages_skipped=pages.skipped,
        pages_read=pages.read,
        files_with_pages=pages.files,
        left_out=dict(pictures.left_out),
        left_out_pictures=dict(pictures.left_out_pictures),
        warnings=(*pictures.warnings, *([warning] if warning else [])),
    )
    report = _counted(report, manifest, copies, split[stays], labels[stays], classes)
    if options.unsplit:
        report = replace(report, splits={}, duplicates=Duplicates())
    images = ImageSet(
        name=pictures.source,
        images=cached.squares,
        labels=torch.from_numpy(labels),
        classes=classes,
        split=split,
        paths=[inert(name) for name in manifest.names],
        note=report.note(),
        pictures=cached.pictures,
        contents=manifest.contents,
        report=report,
    )
    for sentence in report.sentences():
        progress.message(sentence)
    return images if stays.all() else images.select(stays)


def _bad_in(names: Sequence[str], facts: Sequence[PictureFacts | str]) -> list[tuple[str, str]]:
    pairs = zip(names, facts, strict=True)
    return [(name, fact) for name, fact in pairs if isinstance(fact, str)]


def _check_strict(options: ReadOptions, pictures: PictureList, bad: Mapping[str, str]) -> None:
    if options.strict and bad:
        raise UserError(
            f"an image file of {inert(pictures.source)} cannot be read: {named_reasons(bad)}; mend"
            " or remove it, or leave out strict=True."
            if len(bad) == 1
            else f"{len(bad):,} image files of {inert(pictures.source)} cannot be read:"
            f" {named_reasons(bad)}; mend or remove them, or leave out strict=True."
        )


def _check_readable(
    options: ReadOptions, pictures: PictureList, bad: Mapping[str, str], readable: int
) -> None:
    total = len(pictures.listing.names)
    _check_strict(options, pictures, bad)
    if not readable:
        raise UserError(
            f"{inert(pictures.source)} has no image that can be read:"
            f" {named_reasons(bad)}; use a folder of images."
        )
    if len(bad) > MAY_BE_UNREADABLE * total and not options.allow_unreadable:
        raise UserError(
            f"{len(bad):,} of {total:,} image files of {inert(pictures.source)} could not be read:"
            f" {named_reasons(bad)}; mend them, or continue without them by allow_unreadable=True."
        )


def _with_pages(
    pictures: PictureList, facts: list[PictureFacts | str], options: ReadOptions
) -> tuple[PictureList, list[PictureFacts | str], _Pages]:
    """The list with an entry for each page that becomes an image."""
    pages = [1 if isinstance(fact, str) else max(1, fact.pages) for fact in facts]
    more, files = sum(pages) - len(pages), sum(count > 1 for count in pages)
    if options.pages == "first" or not more:
        return pictures, facts, _Pages()
    rows = [(row, page) for row, count in enumerate(pages) for page in range(count)]
    old = pictures.listing
    listing = Listing(
        old.where,
        [old.names[row] + (f"#{page + 1}" if page else "") for row, page in rows],
        ChosenFiles(old.files, rows),
        [(*old.stamps[row], page) for row, page in rows],
    )
    return (
        replace(
            pictures,
            listing=listing,
            groups=[pictures.groups[row] for row, _ in rows],
            splits=[pictures.splits[row] for row, _ in rows],
        ),
        [facts[row] for row, _ in rows],
        _Pages(read=more, files=files),
    )


def _value_range(
    found: Survey, options: ReadOptions
) -> tuple[tuple[float, float] | None, str, str]:
    """The range of values, where it comes from in words, and a warning or ""."""
    wide = sum(fact.wide for fact in found.readable)
    value_range = options.value_range or fitting_range(found)
    if not wide or value_range is None:
        return None, "", ""
    words = "as given" if options.value_range else f"one range for all {wide:,} of these images"
    return value_range, words, few_levels(found, value_range)


def _labels(
    groups: Sequence[str], classes: tuple[str, ...] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """(n,) the number of each image's class, and the names of the classes."""
    if classes is None:
        names = sorted({group for group in groups if group})
        classes = tuple(names) if len(names) > 1 else ()
    number = {group: index for index, group in enumerate(classes)}
    labels = np.array([number.get(group, UNLABELLED) for group in groups], dtype=np.int64)
    return labels, tuple(inert(group) for group in classes)


def _split(
    given: Sequence[str | None],
    labels: NDArray[np.int64],
    contents: Sequence[str],
    seed: int,
) -> NDArray[np.str_]:
    """(n,) the split of each image.

    Images without a class beside images that have one are never held out by their content.
    """
    loose = (labels == UNLABELLED) & bool((labels != UNLABELLED).any())
    by_content = np.where(held_out_by_content(contents, seed) & ~loose, "test", "train")
    split = np.array(
        [by_content[row] if part is None else part for row, part in enumerate(given)], dtype=np.str_
    )
    return np.where(loose & (split == "train"), "unlabelled", split)


def _counted(
    report: ImageReport,
    manifest: Manifest,
    copies: Duplicates,
    split: NDArray[np.str_],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
) -> ImageReport:
    """The report with its counts."""
    per_class = np.bincount(labels[labels >= 0], minlength=len(classes))
    by_split = Counter(split.tolist())
    return replace(
        report,
        images=len(split),
        splits={part: by_split[part] for part in SPLITS_IN_ORDER if by_split[part]},
        classes=dict(zip(classes, per_class.tolist(), strict=True)),
        unlabelled=int((labels == UNLABELLED).sum()),
        refused=manifest.bad,
        complaints=sum(manifest.complaints.values()),
        complaining=len(manifest.complaints),
        filled=sum(manifest.filled.values()),
        filled_images=len(manifest.filled),
        duplicates=copies,
    )


def short_report(images: ImageSet) -> ImageReport:
    """Return the report of images that do not come from picture files: counts alone."""
    labels = images.labels.cpu().numpy()
    per_class = np.bincount(labels[labels >= 0], minlength=len(images.classes))
    by_split = Counter(images.split.tolist())
    return ImageReport(
        source=images.name,
        images=len(images),
        splits={part: by_split[part] for part in SPLITS_IN_ORDER if by_split[part]},
        classes=dict(zip(images.classes, per_class.tolist(), strict=True)),
        unlabelled=int((labels == UNLABELLED).sum()),
        size=images.images.shape[-1],
        channels=images.images.shape[1],
        files=len(images),
    )
