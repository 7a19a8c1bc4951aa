"""Folders of images (the source "folder:PATH") as an ImageSet: their files, classes and splits.

The user's folders are only read.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sureclr.config import READ_OPTIONS, ReadOptions
from sureclr.data.cache_manifest import file_stamp
from sureclr.data.decoding import FileRef, readable_endings
from sureclr.data.folder_cache import Listing
from sureclr.data.image_report import counted, inert, way_to_read
from sureclr.data.image_set import ImageSet
from sureclr.data.picture_list import PictureList, read_pictures
from sureclr.data.splits import arranged
from sureclr.errors import UserError
from sureclr.progress import SILENT, Progress

NO_ENDING = "(no ending)"


def read_folder(
    path: Path | Sequence[Path],
    *,
    size: int | None = None,
    channels: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
    options: ReadOptions = READ_OPTIONS,
) -> ImageSet:
    """Read a tree of image files; decoded pixels are cached and memory-mapped.

    The classes are the first sub-folders (PATH/cat/2021/a.jpg is a "cat"), sorted by name. Where
    there are fewer than two, no image is labelled; images beside the sub-folders are "unlabelled".

    Folders that are named like splits (train, training, train_set; test, testing, test_set;
    unlabelled, unlabeled; val, valid, validation, dev, eval, which is the test split where there
    is no test folder; in any capitals) decide the split. They have classes inside
    (train/cat/1.jpg), or lie inside of each class (cat/train/1.jpg). Otherwise about 20 % of the
    images become the test split, by a hash of their content and `seed`, labelled or not, because
    certainty, geometry and out-of-distribution scores need images that were not trained on. To
    train on all images, use PATH/train/.

    Test images that repeat a training image exactly are taken out.

    Args:
        path: the folder, or several. Hidden files and link loops are skipped; the ImageSet's
            `report` tells of other files, and names images that cannot be read.
        size: side in pixels of the centre square, in place of `options.size`.
        channels: 1 to 32, in place of `options.channels`.
        seed: of the random test split.
        progress: what to report to while images are decoded.
        options: how files become pixels.

    Returns:
        The images in the order train, unlabelled, test where folders decide the split, then by
        name.

    Raises:
        UserError: there is no such folder, no image in it can be read, or the cache cannot be
            written.
    """
    paths = [path] if isinstance(path, Path) else path
    pictures = list_folders(paths, every=options.unsplit)
    options = with_given(options, size, channels)
    return read_pictures(pictures, options, seed=seed, progress=progress)


def with_given(options: ReadOptions, size: int | None, channels: int | None) -> ReadOptions:
    """Return the options with a size and channels that were given beside them."""
    return replace(
        options,
        size=options.size if size is None else size,
        channels=options.channels if channels is None else channels,
    )


def list_folders(paths: Sequence[Path], *, every: bool = False) -> PictureList:
    """Return the picture files of one folder or of several, with their classes and splits.

    The names of several folders' images start with the folder's name, or with its path where two
    folders have the same name.

    Args:
        paths: the folders.
        every: whether pictures that the splits leave out are in the list as well, without a class.

    Raises:
        UserError: a folder is missing, or there is no picture file.
    """
    roots = [_real_folder(path) for path in paths]
    found = [_list_folder(root, every) for root in roots]
    source = "folder:" + ",".join(str(absolute(path)) for path in paths)
    if not any(pictures.listing.names for pictures in found):
        left = Counter[str]()
        for pictures in found:
            left.update(pictures.left_out)
        raise UserError(
            f"{', '.join(inert(path) for path in paths)} has no files that end as images do"
            f" ({', '.join(sorted(readable_endings())[:6])}, ...){_others(left)}; use a folder of"
            " images."
        )
    if len(found) == 1:
        return replace(found[0], source=source)
    heads = [root.name for root in roots]
    if len(set(heads)) < len(heads):
        heads = [str(root) for root in roots]
    left_out, pictures_left_out = Counter[str](), Counter[str]()
    for pictures in found:
        left_out.update(pictures.left_out)
        pictures_left_out.update(pictures.left_out_pictures)
    named = zip(heads, found, strict=True)
    return PictureList(
        source,
        Listing(
            ",".join(map(str, roots)),
            [f"{head}/{name}" for head, part in named for name in part.listing.names],
            [file for part in found for file in part.listing.files],
            [stamp for part in found for stamp in part.listing.stamps],
        ),
        [group for part in found for group in part.groups],
        [split for part in found for split in part.splits],
        "; ".join(dict.fromkeys(part.splits_from for part in found if part.splits_from)),
        left_out=left_out,
        left_out_pictures=pictures_left_out,
        warnings=tuple(dict.fromkeys(warning for part in found for warning in part.warnings)),
    )


def _others(left_out: Counter[str]) -> str:
    """The other files of a folder without pictures, for an error message."""
    words = [
        f"{counted(count, 'file')} {inert(ending)}"
        + (f" ({way_to_read(ending)})" if way_to_read(ending) else "")
        for ending, count in left_out.most_common(5)
    ]
    return f" but {', '.join(words)}" if words else ""


def _list_folder(root: Path, every: bool) -> PictureList:
    files, others = find_files(root)
    names = list(files)
    order = arranged(names)
    if every:
        rest = sorted(set(range(len(names))) - set(order.rows))
        order = replace(
            order,
            rows=[*order.rows, *rest],
            splits=[*order.splits, *[None] * len(rest)],
            groups=[*order.groups, *[""] * len(rest)],
            left_out={},
        )
    chosen = [names[row] for row in order.rows]
    return PictureList(
        f"folder:{root}",
        Listing(
            str(root),
            chosen,
            [FileRef(os.path.join(root, name)) for name in chosen],
            [files[name] for name in chosen],
        ),
        order.groups,
        order.splits,
        order.words,
        left_out=others,
        left_out_pictures=order.left_out,
        warnings=order.warnings,
    )


def find_files(root: Path) -> tuple[dict[str, tuple[int, ...]], Counter[str]]:
    """Return all image files of a folder, and how many other files there are.

    Links to folders are followed last and each folder is entered once, so loops end and a link
    never takes a folder's place; a link to a folder above is a loop as well, and not followed, so
    that a link to / does not bring in all pictures of the disk. A folder that cannot be listed, and
    a link to nothing, count as files: decoding them says what is wrong. Hidden files do not count
    at all.

    Args:
        root: the folder.

    Returns:
        Path below root -> what changes when the file changes, sorted by path; and the number of
        other files by their ending in lower case.
    """
    files: dict[str, tuple[int, ...]] = {}
    others = Counter[str]()
    endings = readable_endings()
    folders, links = [""], list[str]()
    seen = {str(above) for above in Path(os.path.realpath(root)).parents}
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(root / folder)
        if real in seen:
            continue
        seen.add(real)
        for entry in _entries(root / folder):
            name = f"{folder}/{entry.name}" if folder else entry.name
            if os.path.isdir(entry.path):  # unlike entry.is_dir(), no exception at a link to itself
                (links if entry.is_symlink() else folders).append(name)
            elif _is_image(entry, endings):
                files[name] = file_stamp(root / name)
            elif os.path.isfile(entry.path):
                others[os.path.splitext(entry.name)[1].lower() or NO_ENDING] += 1
        if not os.access(root / folder, os.R_OK | os.X_OK):
            files[folder] = file_stamp(root / folder)
    return dict(sorted(files.items())), others


def absolute(path: Path) -> Path:
    """Return the path from the root of the file system, with `~` replaced; links stay."""
    try:
        return Path(os.path.abspath(path.expanduser()))
    except RuntimeError:  # there is no home; `_real_folder` says so
        return path


def _real_folder(path: Path) -> Path:
    """The folder's absolute path without links; UserError if it is missing or cannot be listed."""
    try:
        root = path.expanduser().resolve(strict=True)
        os.listdir(root)
    except (OSError, RuntimeError, ValueError) as error:
        # RuntimeError: a link loop, or no home; ValueError: a null byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{inert(path)} is not a folder that can be read ({inert(reason)}); use the folder of"
            " your images."
        ) from error
    return root


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """A folder's entries without hidden ones, sorted by name; none where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry for entry in entries if not entry.name.startswith(".")),
                key=lambda entry: entry.name,
            )
    except OSError:
        return []


def _is_image(entry: os.DirEntry[str], endings: frozenset[str]) -> bool:
    """Whether the ending is that of an image.

    Pipes and devices do not count (reading them could wait for ever); a link to nothing does.
    """
    ending = os.path.splitext(entry.name)[1].lower()
    return ending in endings and (os.path.isfile(entry.path) or not os.path.exists(entry.path))
