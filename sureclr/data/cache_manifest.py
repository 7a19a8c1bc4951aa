"""What the cache of pictures says of its pixel files, and whether they still are what it says.

Every byte of the manifest is checked whenever it is read. The pixel files are hashed as a whole
when they have been written, when they are read with `ReadOptions.verify`, and once where the system
says that a file was written, moved or copied since its last check (by its times). Otherwise 64
blocks of 64 KiB of each are hashed, spread evenly from its first byte to its last. So a bit outside
these blocks that a disk changes by itself, without a program having written the file, is found with
`verify` alone.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any

from sureclr.files import (
    LARGEST_VALUE,
    digest_of_bytes,
    json_bytes,
    parsed_json,
    read_file,
    writing_atomically,
)

READ_BYTES = 1 << 20  # read at a time for the checksum
SAMPLED_BLOCKS = 64  # of a pixel file that are hashed where its times and length are as they were
SAMPLED_BYTES = 1 << 16  # of such a block


@dataclass(frozen=True)
class Manifest:
    """What the pixel files hold: a row for each name of the listing that is not in `bad`, in order.

    Attributes:
        folder: what identifies the source.
        listing: `Listing.digest`.
        pixels: name of the file of squares beside the manifest.
        shape: (n, c, h, w) of the squares.
        sha256: of the squares, followed by all that the manifest says of the rows.
        whole: name of the file of whole pictures; "" if all of them equal their squares.
        whole_sha256: of the whole pictures.
        names: of the pictures.
        bad: name -> the reason why the picture cannot be read.
        contents: n digests of the pictures' content.
        heights: n heights in pixels of the whole pictures.
        widths: n widths in pixels of the whole pictures.
        filled: name -> values of this picture that were replaced.
        complaints: name -> lines that decoders wrote about this file.
        stamps: `file_stamp` of each pixel file when the whole of it was last hashed.
        sampled: sha256 of blocks of the pixel files.
        seal: sha256 of everything else in the manifest. Manifests of older versions lack these
            three, and their pixel files are hashed as a whole once.
    """

    folder: str
    listing: str
    pixels: str
    shape: list[int]
    sha256: str = ""
    whole: str = ""
    whole_sha256: str = ""
    names: list[str] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    contents: list[str] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    filled: dict[str, int] = field(default_factory=dict)
    complaints: dict[str, int] = field(default_factory=dict)
    stamps: list[list[int]] = field(default_factory=list)
    sampled: str = ""
    seal: str = ""

    @property
    def expected_seal(self) -> str:
        """Return what `seal` must be."""
        facts = {name: value for name, value in vars(self).items() if name != "seal"}
        return fingerprint(*(fingerprint(name, value) for name, value in facts.items()))

    @property
    def files(self) -> list["PixelFile"]:
        """The pixel files: that of the squares, and that of the whole pictures where there is one.

        Raises:
            TypeError, ValueError: the manifest is damaged.
        """
        squares = PixelFile(self.pixels, prod(self.shape), self.sha256, self.rows_digest)
        if not self.whole:
            return [squares]
        areas = zip(self.heights, self.widths, strict=True)
        length = self.shape[1] * sum(height * width for height, width in areas)
        return [squares, PixelFile(self.whole, length, self.whole_sha256)]

    def rows_digest(self) -> bytes:
        """Return a digest of what is said of the rows."""
        columns = (self.names, self.bad, self.contents, self.heights, self.widths)
        return fingerprint(*columns, self.filled, self.complaints).encode()


@dataclass(frozen=True)
class PixelFile:
    """A pixel file as its manifest describes it.

    Attributes:
        name: beside the manifest.
        length: in bytes.
        sha256: of the file, followed by what `more` returns.
        more: a function without arguments; None: nothing follows the file.
    """

    name: str
    length: int
    sha256: str
    more: Callable[[], bytes] | None = None

    def is_intact(self, file: IO[bytes]) -> bool:
        """Return whether an open file is this one; it is read as a whole."""
        checksum = hashlib.sha256()
        file.seek(0)
        for block in iter(partial(file.read, READ_BYTES), b""):
            checksum.update(block)
        if self.more is not None:
            checksum.update(self.more())
        return checksum.hexdigest() == self.sha256


def read_manifest(path: Path, largest: int) -> Manifest | None:
    """Return a manifest; None if it is missing or damaged, or names files elsewhere.

    Args:
        path: of its file.
        largest: bytes of it that are read.
    """
    try:
        manifest = Manifest(**read_cached_json(path, largest))
        plain = Manifest("", "", "", [])
        if any(type(v) is not type(getattr(plain, k)) for k, v in vars(manifest).items()):
            return None
        texts = (*manifest.names, *manifest.bad.values(), *manifest.contents)
        if not all(isinstance(text, str) for text in texts):
            return None
        if (manifest.seal or manifest.stamps) and manifest.seal != manifest.expected_seal:
            return None
        places = [manifest.pixels] + [manifest.whole] * bool(manifest.whole)
        return manifest if all(Path(place).name == place for place in places) else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest with its seal.

    Raises:
        WriteError: the file cannot be written.
    """
    sealed = replace(manifest, seal=manifest.expected_seal)
    with writing_atomically(path) as file:  # ASCII: names that are not UTF-8 become escapes
        file.write(json_bytes(vars(sealed)))


def read_cached_json(path: Path, largest: int) -> Any:
    """Return the value in a file of the cache, which may be larger than other files of ours.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or too much for the memory.
    """
    return parsed_json(read_file(path, largest), LARGEST_VALUE + largest)


def checked_manifest(
    files: Sequence[IO[bytes]], manifest: Manifest, verify: bool
) -> Manifest | None:
    """Return the manifest with the times of its pixel files as they are, or None: one is damaged.

    Args:
        files: the open files of `manifest.files`.
        manifest: what is known of them.
        verify: whether every byte is hashed in any case.

    Raises:
        OSError: a file cannot be read.
        TypeError, ValueError: the manifest is damaged.
    """
    stamps = [list(_stamp(os.fstat(file.fileno()))) for file in files]
    if [stamp[-1] for stamp in stamps] != [file.length for file in manifest.files]:
        return None
    sampled = sampled_digest(files)
    if verify or stamps != manifest.stamps:
        pairs = zip(manifest.files, files, strict=True)
        intact = all(expected.is_intact(file) for expected, file in pairs)
    else:
        intact = sampled == manifest.sampled
    return replace(manifest, stamps=stamps, sampled=sampled) if intact else None


def sampled_digest(files: Iterable[IO[bytes]]) -> str:
    """Return a digest of blocks of files at fixed places, among them the first and the last."""
    checksum = hashlib.sha256()
    for file in files:
        last = max(0, file.seek(0, os.SEEK_END) - SAMPLED_BYTES)
        for number in range(SAMPLED_BLOCKS):
            file.seek(last * number // (SAMPLED_BLOCKS - 1))
            checksum.update(file.read(SAMPLED_BYTES))
    return checksum.hexdigest()


def file_stamp(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Return the time of the last change in ns, that of the last change of status, and the length.

    The second one changes also where a program sets the first one back. A missing file has zeros.
    """
    try:
        return _stamp(os.stat(path))
    except OSError:
        try:
            return _stamp(os.lstat(path))
        except OSError:
            return (0, 0, 0)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size


def fingerprint(*facts: object) -> str:
    """Return the sha256 of JSON values."""
    return digest_of_bytes(json.dumps(facts).encode())
