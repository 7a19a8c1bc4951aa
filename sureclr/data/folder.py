"""folder:PATH: a tree of images as an ImageSet: which files, which classes, which split. The user's
folder is only read.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sureclr.data.decoding import ENDINGS
from sureclr.data.folder_cache import cached_pixels
from sureclr.data.image_set import UNLABELLED, ImageSet
from sureclr.errors import UserError

DEFAULT_SIZE = (
    96  # STL-10's side: objects can be told apart, 27 KB an image, and a CPU can still train on it
)
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
SHOWN = 3  # bad files named on stderr


def read_folder(
    path: Path,
    *,
    size: int | None = None,
    channels: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ImageSet:
    """A tree of images as an ImageSet, its images memory-mapped; rows in the order of the split
    folders, then by name.

    Classes are the first sub-folders (PATH/cat/2021/a.jpg is a "cat"), sorted by name; where there
    are fewer than two, nothing is labelled; loose images beside them are "unlabelled". If PATH has
    train/, its split folders decide (test/, or else val/; and unlabelled/), each with classes
    inside. If not, 20 % of each class, drawn by `seed`, are held out as test; so are 20 % of
    unlabelled images: certainty, geometry and OOD scores need some that were not trained on. To
        train on all, use PATH/train/.

    Args:
        path: the folder. Hidden files, files that are no images and link loops are skipped; `note`
            tells of unreadable images.
        size: side in pixels of the centre square; None: 96.
        channels: 1 or 3; None: 3, even where all images are grey.
        seed: of the held-out images.
        progress: show on stderr how far decoding is.

    Raises:
        UserError: no such folder, nothing readable in it, or the cache cannot be written.
    """
    root = _checked(path)
    parts = split_folders(root)
    files = {name: stamp for part in parts for name, stamp in find_images(root, part).items()}
    pixels, manifest, place = cached_pixels(
        root, files, size or DEFAULT_SIZE, channels or DEFAULT_CHANNELS, progress
    )
    trouble = _tell(manifest.bad, len(files), place)
    if not manifest.names:
        what = trouble or f"no files that end as images do ({', '.join(sorted(ENDINGS)[:6])}, ...)"
        raise UserError(
            f"{inert(path)} has no image that can be read: {what}; give a folder of images."
        )
    if trouble:
        print(trouble, file=sys.stderr)
    return _image_set(f"folder:{inert(path)}", manifest.names, pixels, parts, seed, trouble)


def split_folders(root: Path) -> dict[str, str]:
    """{sub-folder: its split}, in the order train, unlabelled, test; {"": "train"} for a tree
    without train/.
    """
    present = {entry.name for entry in root.iterdir() if entry.is_dir()}
    if "train" not in present:
        return {"": "train"}
    parts = {name: split for name, split in SPLIT_FOLDERS.items() if name in present}
    validation = [name for name in VALIDATION_FOLDERS if name in present]
    return parts if "test" in parts or not validation else {**parts, validation[0]: "test"}


def find_images(root: Path, part: str = "") -> dict[str, tuple[int, int]]:
    """{path below root: (time of last change in ns, length in bytes)} of all image files in
    root/part, sorted by path.

    Links to folders are followed last and each folder is entered once, so loops end and a link
    never takes a folder's place.
    A folder that cannot be listed and a link to nothing count as files: decoding them says what is
    wrong.
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
    """(n,) bool: a random 20 % of each group (at least one where the group has two or more)."""
    mask = np.zeros(len(groups), dtype=bool)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        count = max(1, round(TEST_FRACTION * len(rows))) if len(rows) > 1 else 0
        mask[np.random.default_rng([seed % 2**64, int(group) + 1]).permutation(rows)[:count]] = True
    return mask


def inert(text: object) -> str:
    """A file name as text that does nothing: control characters, direction marks and bytes that are
    no UTF-8 as escapes.
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
    trouble: str,
) -> ImageSet:
    groups = [_group(file, parts) for file in files]
    names = sorted({group for group in groups if group})
    classes = names if len(names) > 1 else []
    number = {group: index for index, group in enumerate(classes)}
    labels = np.array([number.get(group, UNLABELLED) for group in groups], dtype=np.int64)
    split, note = _split(files, labels, parts, seed)
    return ImageSet(
        name=name,
        images=torch.from_numpy(pixels),
        labels=torch.from_numpy(labels),
        classes=tuple(inert(group) for group in classes),
        split=split,
        paths=[inert(file) for file in files],
        note="; ".join(
            filter(
                None, [note, "" if classes else "no labels: fewer than two sub-folders", trouble]
            )
        ),
    )


def _group(file: str, parts: Mapping[str, str]) -> str:
    """The sub-folder that names the class; "" for a loose image and for all of unlabelled/."""
    part, *inner = ("", *file.split("/")) if "" in parts else file.split("/")
    return inner[0] if len(inner) > 1 and parts[part] != "unlabelled" else ""


def _split(
    files: list[str], labels: NDArray[np.int64], parts: Mapping[str, str], seed: int
) -> tuple[NDArray[np.str_], str]:
    """(n,) each image's split, and how it was made, in words."""
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


def _tell(bad: Mapping[str, str], total: int, manifest: Path) -> str:
    """One sentence on the files that could not be read; "" where there are none."""
    shown = ", ".join(
        f"{inert(name)} ({inert(reason)})" for name, reason in list(bad.items())[:SHOWN]
    )
    more = f", ... (all in {manifest})" if len(bad) > SHOWN else ""
    return f"{len(bad)} of {total} image files could not be read: {shown}{more}" if bad else ""


def _checked(path: Path) -> Path:
    """The folder's one true path; UserError where it is missing, no folder, or closed to us."""
    try:
        root = path.expanduser().resolve(strict=True)
        os.listdir(root)
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # RuntimeError: a link loop or no home; ValueError: a null byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{inert(path)} is not a folder that can be read ({reason}); give the folder of your"
            " images."
        ) from error
    return root


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, hidden names left out, sorted by name; nothing where it cannot be
    listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry for entry in entries if not entry.name.startswith(".")),
                key=lambda entry: entry.name,
            )
    except OSError:
        return []


def _is_image(entry: os.DirEntry[str]) -> bool:
    """By its ending; pipes and devices are not (reading them could wait for ever), a link to
    nothing is.
    """
    ending = os.path.splitext(entry.name)[1].lower()
    return ending in ENDINGS and (os.path.isfile(entry.path) or not os.path.exists(entry.path))


def _stamp(file: Path) -> tuple[int, int]:
    facts = file.stat() if file.exists() else file.lstat()
    return facts.st_mtime_ns, facts.st_size
