"""The pixels of a folder's images as one memory-mapped array that is decoded only once.

The cache lies in $SURECLR_CACHE, else in ~/.cache/sureclr/folders, never in the user's folder. The
manifest NAME.json describes the pixel file NAME-*.bin, in which the images stand one after another.
Both are written atomically, and a checksum in the manifest finds damage.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from sureclr.data.decoding import Decoding, FileRef
from sureclr.data.parallel_decoding import Decoded, decode_files
from sureclr.errors import UserError
from sureclr.files import digest_of_bytes, json_bytes, writing_atomically
from sureclr.progress import SILENT, Progress

VERSION = (
    1  # of decoding and of the files: raise it when either changes, and all caches are rebuilt
)
READ_BYTES = 1 << 20  # read at a time for the checksum

Stamps = Mapping[str, tuple[int, int]]  # path below the folder -> (last change in ns, bytes)


@dataclass(frozen=True)
class Manifest:
    """What a pixel file holds: one row for each file of the listing that is not in `bad`, in order.

    Attributes:
        folder: path of the user's folder.
        listing: sha256 of the version and of all file names, times and lengths.
        pixels: name of the pixel file beside the manifest.
        shape: (n, c, h, w) of the pixels.
        sha256: of the pixels, followed by `names` and `bad`.
        names: paths of the images below the folder.
        bad: path below the folder -> the reason why the file cannot be read.
    """

    folder: str
    listing: str
    pixels: str
    shape: list[int]
    sha256: str
    names: list[str]
    bad: dict[str, str]


def cached_pixels(
    folder: Path, files: Stamps, size: int, channels: int, progress: Progress = SILENT
) -> tuple[NDArray[np.uint8], Manifest, Path]:
    """Return the pixels of a folder's images; decode them only where there is no intact cache.

    Args:
        folder: the user's folder.
        files: its image files.
        size: side in pixels of the centre square.
        channels: 1 or 3.
        progress: what to report to while files are decoded.

    Returns:
        The pixels (n, c, h, w), memory-mapped (changes stay in this process); the manifest; and
        its path.

    Raises:
        UserError: the cache cannot be written.
    """
    name = f"{_slug(folder.name)}-{_fingerprint(str(folder), size, channels)[:16]}"
    path, listing = cache_root() / f"{name}.json", _fingerprint(VERSION, list(files.items()))
    manifest = _read_manifest(path, listing)
    if manifest is None or not _is_intact(path.parent / manifest.pixels, manifest):
        if manifest is not None:
            progress.message(
                f"The cache {path.with_name(manifest.pixels)} is damaged, so the images are decoded"
                " again."
            )
        refs = [FileRef(os.path.join(folder, file)) for file in files]
        wanted = Decoding(size, channels)
        plan = Manifest(str(folder), listing, "", [0, channels, size, size], "", list(files), {})
        manifest = _build(path, plan, decode_files(refs, wanted, progress))
    return _map_file(path.parent / manifest.pixels, manifest.shape), manifest, path


def cache_root() -> Path:
    """Return the folder of all caches: $SURECLR_CACHE, else ~/.cache/sureclr/folders."""
    return Path(
        os.environ.get("SURECLR_CACHE") or Path.home() / ".cache" / "sureclr" / "folders"
    ).expanduser()


def _build(path: Path, plan: Manifest, decoded: Iterable[Decoded]) -> Manifest:
    """Write the pixel file and then its manifest, and delete the folder's older pixel files.

    Args:
        path: of the manifest.
        plan: the manifest with all names, before it is known which files can be read.
        decoded: what became of each name.
    """
    pixels = path.with_name(f"{path.stem}-{plan.listing[:16]}.bin")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing_atomically(pixels) as file:
            good, bad, checksum = _write_pixels(file, plan.names, decoded)
        shape = [len(good), *plan.shape[1:]]
        manifest = replace(
            plan, pixels=pixels.name, shape=shape, sha256=checksum, names=good, bad=bad
        )
        with writing_atomically(path) as file:  # ASCII: names that are not UTF-8 become escapes
            file.write(json_bytes(asdict(manifest)))
        for old in set(path.parent.glob(f"{path.stem}-*.bin")) - {pixels}:
            old.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache of images {path.parent} cannot be written ({error.strerror or error}); set"
            " SURECLR_CACHE to a folder with room."
        ) from error
    return manifest


def _write_pixels(
    file: IO[bytes], names: list[str], decoded: Iterable[Decoded]
) -> tuple[list[str], dict[str, str], str]:
    """Write pixels as they arrive.

    Returns:
        The names that became rows, the others with their reasons, and the checksum.
    """
    good: list[str] = []
    bad: dict[str, str] = {}
    checksum = hashlib.sha256()
    for name, result in zip(names, decoded, strict=True):
        if isinstance(result, str):
            bad[name] = result
            continue
        good.append(name)
        file.write(result.square.tobytes())
        checksum.update(result.square.tobytes())
    checksum.update(_fingerprint(good, bad).encode())
    return good, bad, checksum.hexdigest()


def _read_manifest(path: Path, listing: str) -> Manifest | None:
    """The manifest; None if it is missing, damaged, or of another listing."""
    try:
        manifest = Manifest(**json.loads(path.read_bytes()))
        return manifest if manifest.listing == listing else None
    except (OSError, ValueError, TypeError):
        return None


def _is_intact(file: Path, manifest: Manifest) -> bool:
    """Whether the pixel file has the length and the checksum that the manifest says."""
    try:
        if file.stat().st_size != prod(manifest.shape):
            return False
        checksum = hashlib.sha256()
        with file.open("rb") as stream:
            for block in iter(partial(stream.read, READ_BYTES), b""):
                checksum.update(block)
        checksum.update(_fingerprint(manifest.names, manifest.bad).encode())
        return checksum.hexdigest() == manifest.sha256
    except (OSError, TypeError):
        return False


def _map_file(file: Path, shape: list[int]) -> NDArray[np.uint8]:
    if not prod(shape):
        return np.empty(shape, np.uint8)  # nothing could be read, and an empty file has no map
    return np.memmap(file, np.uint8, mode="c", shape=tuple(shape))


def _slug(name: str) -> str:
    """A part of a file name that is safe everywhere, by which a person recognises the folder."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40] or "folder"


def _fingerprint(*facts: object) -> str:
    return digest_of_bytes(json.dumps(facts).encode())
