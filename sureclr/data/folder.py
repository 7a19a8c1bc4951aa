"""A folder of images (the source "folder:PATH") as an ImageSet: its files, classes and splits.

The user's folder is only read.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sureclr.data.decoding import ENDINGS
from sureclr.data.folder_cache import cached_pixels
from sureclr.data.image_set import UNLABELLED, ImageSet
from sureclr.errors import UserError
from sureclr.progress import SILENT, Progress

# STL-10's side: objects can be recognised, 27 KB an image, and a CPU can still train on it
DEFAULT_SIZE = 96
# Even where all is grey: one colour picture more must not change the model; pretrained encoders
# expect RGB
DEFAULT_CHANNELS = 3
TEST_FRACTION = 0.2
SPLIT_FOLDERS = {
    "train": "train",
    "unlabelled": "unlabelled",
    "unlabeled": "unlabelled",
    "test": "test",
}
VALIDATION_FOLDERS = ("val", "valid", "validation")  # the test split where there is no test/
BAD_FILES_NAMED = 3  # in a message; the manifest of the cache names all


def read_folder(
    path: Path,
    *,
    size: int | None = None,
    channels: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> ImageSet:
    """Read a tree of image files; decoded pixels are cached and memory-mapped.

    The classes are the first sub-folders (PATH/cat/2021/a.jpg is a "cat"), sorted by name. Where
    there are fewer than two, no image is labelled; images beside the sub-folders are "unlabelled".

    If PATH has a folder train/, the split is that of its folders: train/, test/ (else val/) and
    unlabelled/, each with classes inside. Otherwise 20 % of each class, drawn by `seed`, become the
    test split; so do 20 % of unlabelled images, because certainty, geometry and out-of-distribution
    scores need images that were not trained on. To train on all images, use PATH/train/.

    Args:
        path: the folder. Hidden files, other files and link loops are skipped; the ImageSet's
            `note` names images that cannot be read.
        size: side in pixels of the centre square; None: 96.
        channels: 1 or 3; None: 3, even where all images are grey.
        seed: of the random test split.
        progress: what to report to while images are decoded.

    Returns:
        The images in the order of the split folders, then by name.

    Raises:
        UserError: there is no such folder, no image in it can be read, or the cache cannot be
            written.
    """
    root = _real_folder(path)
    parts = split_folders(root)
    files = {name: stamp for part in parts for name, stamp in find_images(root, part).items()}
    pixels, manifest, manifest_path = cached_pixels(
        root, files, size or DEFAULT_SIZE, channels or DEFAULT_CHANNELS, progress
    )
    warning = _unreadable(manifest.bad, len(files), manifest_path)
    if not manifest.names:
        endings = ", ".join(sorted(ENDINGS)[:6])
        reason = warning or f"no files that end as images do ({endings}, ...)"
        raise UserError(
            f"{inert(path)} has no image that can be read: {reason}; use a folder of images."
        )
    if warning:
        progress.message(warning)
    return _image_set(f"folder:{inert(path)}", manifest.names, pixels, parts, seed, warning)


def split_folders(root: Path) -> dict[str, str]:
    """Return which sub-folder holds which split.

    Args:
        root: the folder.

    Returns:
        Sub-folder -> split, in the order train, unlabelled, test; {"": "train"} where there is no
        train/.
    """
    present = {entry.name for entry in root.iterdir() if entry.is_dir()}
    if "train" not in present:
        return {"": "train"}
    parts = {name: split for name, split in SPLIT_FOLDERS.items() if name in present}
    validation = [name for name in VALIDATION_FOLDERS if name in present]
    return parts if "test" in parts or not validation else {**parts, validation[0]: "test"}


def find_images(root: Path, part: str = "") -> dict[str, tuple[int, int]]:
    """Return all image files of a folder.

    Links to folders are followed last and each folder is entered once, so loops end and a link
    never takes a folder's place. A folder that cannot be listed, and a link to nothing, count as
    files: decoding them says what is wrong.

    Args:
        root: the folder.
        part: the sub-folder in which to search; "" for all.

    Returns:
        Path below root -> (time of the last change in ns, length in bytes), sorted by path.
    """
    files: dict[str, tuple[int, int]] = {}
    folders, links, seen = [part], list[str](), set[str]()
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
            elif _is_image(entry):
                files[name] = _stamp(root / name)
        if not os.access(root / folder, os.R_OK | os.X_OK):
            files[folder] = _stamp(root / folder)
    return dict(sorted(files.items()))


def held_out(groups: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Choose a random 20 % of each group, and at least one image of a group of two or more.

    Args:
        groups: (n,) the number of each image's group, from -1.
        seed: of the choice.

    Returns:
        (n,) whether the image is chosen.
    """
    mask = np.zeros(len(groups), dtype=bool)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        count = max(1, round(TEST_FRACTION * len(rows))) if len(rows) > 1 else 0
        mask[np.random.default_rng([seed % 2**64, int(group) + 1]).permutation(rows)[:count]] = True
    return mask


def inert(text: object) -> str:
    """Return text that a terminal or a page can show without harm.

    Control characters, direction marks and bytes that are not UTF-8 become escapes.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(text)
    )


def _image_set(
    name: str,
    files: list[str],
    pixels: NDArray[np.uint8],
    parts: Mapping[str, str],
    seed: int,
    warning: str,
) -> ImageSet:
    groups = [_group(file, parts) for file in files]
    names = sorted({group for group in groups if group})
    classes = names if len(names) > 1 else []
    number = {group: index for index, group in enumerate(classes)}
    labels = np.array([number.get(group, UNLABELLED) for group in groups], dtype=np.int64)
    split, split_note = _split(files, labels, parts, seed)
    notes = [split_note, "" if classes else "no labels: fewer than two sub-folders", warning]
    return ImageSet(
        name=name,
        images=torch.from_numpy(pixels),
        labels=torch.from_numpy(labels),
        classes=tuple(inert(group) for group in classes),
        split=split,
        paths=[inert(file) for file in files],
        note="; ".join(note for note in notes if note),
    )


def _group(file: str, parts: Mapping[str, str]) -> str:
    """The sub-folder that names the class; "" for a loose image and for all of unlabelled/."""
    part, *inner = ("", *file.split("/")) if "" in parts else file.split("/")
    return inner[0] if len(inner) > 1 and parts[part] != "unlabelled" else ""


def _split(
    files: list[str], labels: NDArray[np.int64], parts: Mapping[str, str], seed: int
) -> tuple[NDArray[np.str_], str]:
    """(n,) the split of each image, and how it was made, in words."""
    loose = (labels == UNLABELLED) & bool((labels != UNLABELLED).any())
    if "" in parts:
        split = np.where(held_out(labels, seed) & ~loose, "test", "train")
        note = (
            f"test split: a random 20 % of {'each class' if labels.max() >= 0 else 'all images'},"
            f" seed {seed}"
        )
    else:
        split = np.array([parts[file.split("/")[0]] for file in files])
        note = f"splits: the folders {', '.join(f'{part}/' for part in parts)}"
    return np.where(loose & (split == "train"), "unlabelled", split), note


def _unreadable(bad: Mapping[str, str], total: int, manifest: Path) -> str:
    """One sentence about the files that could not be read; "" where there are none."""
    if not bad:
        return ""
    more = f", ... (all in {manifest})" if len(bad) > BAD_FILES_NAMED else ""
    return f"{len(bad)} of {total} image files could not be read: {named_reasons(bad)}{more}"


def named_reasons(bad: Mapping[str, str]) -> str:
    """Return the first few files of a mapping from names to reasons, for a message."""
    first = list(bad.items())[:BAD_FILES_NAMED]
    return ", ".join(f"{inert(name)} ({inert(reason)})" for name, reason in first)


def _real_folder(path: Path) -> Path:
    """The folder's absolute path without links; UserError if it is missing or cannot be listed."""
    try:
        root = path.expanduser().resolve(strict=True)
        os.listdir(root)
    except (OSError, RuntimeError, ValueError) as error:
        # RuntimeError: a link loop, or no home; ValueError: a null byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{inert(path)} is not a folder that can be read ({reason}); use the folder of your"
            " images."
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


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether the ending is that of an image.

    Pipes and devices do not count (reading them could wait for ever); a link to nothing does.
    """
    ending = os.path.splitext(entry.name)[1].lower()
    return ending in ENDINGS and (os.path.isfile(entry.path) or not os.path.exists(entry.path))


def _stamp(file: Path) -> tuple[int, int]:
    """Time of the last change in ns, and length in bytes."""
    status = file.stat() if file.exists() else file.lstat()
    return status.st_mtime_ns, status.st_size
