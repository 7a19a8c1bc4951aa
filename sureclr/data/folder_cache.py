"""The pixels of a source's pictures as memory-mapped arrays that are decoded only once.

The cache lies in $SURECLR_CACHE, else in ~/.cache/sureclr/folders, never in the user's folder. The
manifest NAME.json describes two pixel files: NAME-*.bin holds the centre squares one after another,
and NAME-*.whole.bin the whole pictures, from which views are cropped. All are written atomically,
and checksums in the manifest find damage (see `cache_manifest`). NAME-survey.json holds what the
headers of the files say.
"""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from sureclr.data.cache_manifest import (
    READ_BYTES,
    Manifest,
    checked_manifest,
    file_stamp,
    fingerprint,
    read_cached_json,
    read_manifest,
    sampled_digest,
    write_manifest,
)
from sureclr.data.cached_pixels import CachedPixels
from sureclr.data.decoding import DecodedPicture, Decoding, FileRef
from sureclr.data.parallel_decoding import Decoded, decode_files
from sureclr.data.pictures import Pictures
from sureclr.errors import UserError
from sureclr.files import (
    LARGEST_TEXT,
    WriteError,
    free_bytes,
    open_file,
    writing_atomically,
)
from sureclr.progress import SILENT, Progress

# Of decoding and of the files: raise it when either changes, and all caches are made anew
VERSION = 3
PIXELS = 1  # of decoding alone: raise it too where the same content becomes other pixels
MANIFEST_BYTES = 1 << 10  # for each picture, at most: names are long where folders are deep
SPOKEN_BYTES = 10**9  # a cache of more is announced
SPARE_BYTES = 1 << 26  # that stay free on the disk, for manifests and other programs


class ChosenFiles(Sequence[FileRef]):
    """Some of a sequence of picture files, which are made only when they are asked for.

    Args:
        files: all of them.
        rows: (row of the file, its page from 0) of each that is chosen.
    """

    def __init__(self, files: Sequence[FileRef], rows: Sequence[tuple[int, int]]) -> None:
        """Keep both."""
        self._files, self._rows = files, rows

    def __len__(self) -> int:
        """The number of chosen files."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> FileRef: ...

    @overload
    def __getitem__(self, index: slice) -> list[FileRef]: ...

    def __getitem__(self, index: int | slice) -> FileRef | list[FileRef]:
        """Return one file, or some of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row, page = self._rows[index]
        return replace(self._files[row], page=page)


@dataclass(frozen=True, eq=False)
class Listing:
    """The picture files of a source, before any of them is decoded.

    Attributes:
        where: what identifies the source: the absolute path of its folder.
        names: n names of the pictures.
        files: n places of their bytes.
        stamps: n tuples that change when the file changes, such as its times and its length.
    """

    where: str
    names: Sequence[str]
    files: Sequence[FileRef]
    stamps: Sequence[tuple[int | str, ...]]

    @property
    def digest(self) -> str:
        """Return the sha256 of the version and of all names and stamps."""
        return fingerprint(VERSION, list(self.names), list(self.stamps))

    @property
    def largest_manifest(self) -> int:
        """Return how many bytes of a cached file about these pictures are read."""
        return LARGEST_TEXT + MANIFEST_BYTES * len(self.names)

    def cache_file(self, *options: object, suffix: str = "") -> Path:
        """Return the path of a cached file that belongs to this source and these options."""
        slug = re.sub(r"[^A-Za-z0-9]+", "-", Path(self.where).name).strip("-")[:40] or "folder"
        return cache_root() / f"{slug}-{fingerprint(self.where, *options)[:16]}{suffix}.json"


@dataclass(frozen=True, eq=False)
class CachedPictures:
    """The decoded pictures of a source.

    Attributes:
        squares: (n, c, h, w) uint8, memory-mapped; changes stay in this process.
        pictures: n whole pictures, memory-mapped; None if all of them equal their squares.
        manifest: what is known of the rows.
    """

    squares: CachedPixels
    pictures: Pictures | None
    manifest: Manifest


def cached_pictures(
    listing: Listing,
    wanted: Decoding,
    expected_bytes: int,
    progress: Progress = SILENT,
    *,
    verify: bool = False,
) -> CachedPictures:
    """Return the decoded pictures of a source; decode them only where there is no intact cache.

    Args:
        listing: the picture files.
        wanted: what to make of each; it has a size and channels.
        expected_bytes: of the pixels, for the check that there is room.
        progress: what to report to while files are decoded.
        verify: whether every byte of the cache is hashed, and a sentence says so.

    Raises:
        UserError: the cache cannot be written, or there is no room for it.
    """
    form = wanted.centre_share, wanted.interpolation
    options: tuple[object, ...] = (
        *(wanted.size, wanted.channels, wanted.whole_side, wanted.value_range),
        # Caches of the usual form have the names that they had before there were others
        *(() if form == (None, "bilinear") else form),
    )
    path, digest, made = listing.cache_file(*options), listing.digest, fingerprint(PIXELS, options)
    manifest = read_manifest(path, listing.largest_manifest)
    if manifest is None and os.path.lexists(path):
        progress.message(
            f"The cache {path} is damaged or of another version, so the images are decoded again."
        )
    elif manifest is not None and manifest.listing != digest:
        progress.message(_changes(manifest, listing))
    elif manifest is not None:
        if (found := _mapped(path.parent, manifest, made, verify)) is not None:
            if verify:
                progress.message(f"Every byte of the cache {path} and its pixels was checked.")
            if found.manifest.stamps != manifest.stamps:
                with suppress(OSError):  # a cache that cannot be written is hashed every time
                    write_manifest(path, found.manifest)
            return found
        progress.message(
            f"The cache {path.with_name(manifest.pixels)} is damaged, so the images are decoded"
            " again."
        )
    _check_room(path.parent, expected_bytes, progress)
    shape = [0, wanted.channels or 3, wanted.size or 0, wanted.size or 0]
    plan = Manifest(listing.where, digest, "", shape)
    decoded = decode_files(listing.files, wanted, progress)
    named = zip(listing.names, decoded, strict=True)
    return _build(path, plan, named, expected_bytes, listing.largest_manifest, made)


def cache_root() -> Path:
    """Return the folder of all caches: $SURECLR_CACHE, else ~/.cache/sureclr/folders."""
    return Path(
        os.environ.get("SURECLR_CACHE") or Path.home() / ".cache" / "sureclr" / "folders"
    ).expanduser()


def array_on_disk(shape: Sequence[int], kind: "np.dtype[Any]", what: str) -> NDArray[Any]:
    """Return an array to be filled, in a file beside the caches that has no name.

    So it needs no memory, and the file is gone when the process ends.

    Args:
        shape: of the array; it is not empty.
        kind: of its numbers.
        what: they are, in the plural, as the subject of an error's sentence.

    Raises:
        UserError: there is no room for it.
    """
    needed, folder = prod(shape) * kind.itemsize, cache_root()
    with _writing_to(folder, needed), tempfile.TemporaryFile(dir=folder) as file:
        if (free := free_bytes(folder)) is not None and needed + SPARE_BYTES > free:
            raise UserError(
                f"{what} need {_gigabytes(needed)} in {folder}, and only {_gigabytes(free)} are"
                " free; set SURECLR_CACHE to a folder with room."
            )
        if hasattr(os, "posix_fallocate"):  # a disk that is full later would end the process
            os.posix_fallocate(file.fileno(), 0, needed)
        return np.memmap(file, kind, mode="r+", shape=tuple(shape))


def kept_json(file: Path, listing: Listing, make: Callable[[], Any]) -> Any:
    """Return a value that is kept in the cache; make it where it is missing, damaged or old.

    Args:
        file: in the cache.
        listing: the files that the value depends on.
        make: a function of no arguments that returns JSON.

    Raises:
        UserError: the cache cannot be written.
    """
    digest = listing.digest
    try:
        kept = read_cached_json(file, listing.largest_manifest)
        if kept["digest"] == digest and kept["sha256"] == fingerprint(kept["value"]):
            return kept["value"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    value = make()
    with _writing_to(file.parent), writing_atomically(file) as stream:
        stream.write(
            json.dumps({"digest": digest, "sha256": fingerprint(value), "value": value}).encode()
        )
    return value


@contextmanager
def _writing_to(folder: Path, needed: int = 0) -> Iterator[None]:
    """Turn errors in the block into a sentence; `needed` is the least number of bytes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except WriteError as error:
        failure = WriteError(folder, error, needed).failure if needed else error.failure
        raise UserError(
            f"{failure}; it belongs to the cache of images, so set SURECLR_CACHE to a folder"
            " with room."
        ) from error
    except OSError as error:
        raise UserError(
            f"the cache of images {folder} cannot be written ({error.strerror or error}); set"
            " SURECLR_CACHE to a folder with room."
        ) from error


def _check_room(folder: Path, needed: int, progress: Progress) -> None:
    """Say how much disk the cache takes; UserError if there is not so much."""
    present = next((place for place in (folder, *folder.parents) if place.is_dir()), None)
    free = shutil.disk_usage(present).free if present else needed + SPARE_BYTES
    if needed + SPARE_BYTES > free:
        raise UserError(
            f"the cache of decoded images in {folder} needs {_gigabytes(needed)}, and only"
            f" {_gigabytes(free)} are free; set SURECLR_CACHE to a folder with room, or use a"
            " smaller cache_scale or size."
        )
    if needed >= SPOKEN_BYTES:
        progress.message(
            f"The cache of decoded images takes {_gigabytes(needed)} in {folder}"
            f" ({_gigabytes(free)} are free); a smaller cache_scale needs less."
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"


def _changes(manifest: Manifest, listing: Listing) -> str:
    """One sentence about a source that is not as it was when it was decoded."""
    before, now = {*manifest.names, *manifest.bad}, set(listing.names)
    parts = [
        f"{len(names):,} {word}"
        for names, word in ((now - before, "new"), (before - now, "missing"))
        if names
    ]
    what = f" ({' and '.join(parts)})" if parts else ""
    return f"The image files are not those that were decoded before{what}; they are decoded again."


def _build(
    path: Path,
    plan: Manifest,
    decoded: Iterable[tuple[str, Decoded]],
    expected_bytes: int,
    largest: int,
    made: str,
) -> CachedPictures:
    """Write the pixel files and then their manifest, and delete what is out of date.

    The files are read again and mapped before they have their names: another process, which finds
    the folder changed meanwhile, may then delete them without harm.

    Args:
        path: of the manifest.
        plan: the manifest before any file is decoded.
        decoded: the name of each picture, and what became of it.
        expected_bytes: of the pixels.
        largest: bytes of an old manifest that is read.
        made: of `CachedPixels`.
    """
    pixels = path.with_name(f"{path.stem}-{plan.listing[:16]}.bin")
    whole = pixels.with_suffix(".whole.bin")
    with _writing_to(path.parent, expected_bytes):
        with writing_atomically(pixels) as squares, writing_atomically(whole) as wholes:
            manifest = _write_pixels(squares, wholes, plan, decoded)
            differ = bool(manifest.whole_sha256)
            manifest = replace(manifest, pixels=pixels.name, whole=whole.name if differ else "")
            files = [squares, wholes] if differ else [squares]
            for file, expected in zip(files, manifest.files, strict=True):
                file.flush()
                if not expected.is_intact(file):
                    raise OSError(errno.EIO, "what was written is not what the disk holds")
            manifest = replace(manifest, sampled=sampled_digest(files))
            found = _map_files(files, manifest, made)
        if not differ:
            whole.unlink(missing_ok=True)
        stamps = [list(file_stamp(path.with_name(file.name))) for file in manifest.files]
        write_manifest(path, replace(manifest, stamps=stamps))
        _delete_old(path, manifest, largest)
    return found


def _write_pixels(
    squares: IO[bytes], wholes: IO[bytes], plan: Manifest, decoded: Iterable[tuple[str, Decoded]]
) -> Manifest:
    """Write pixels as they arrive; return the manifest without the names of the files.

    Whole pictures are written from the first one on that differs from its square; those before it
    are then copied.
    """
    rows = Manifest(plan.folder, plan.listing, "", plan.shape)
    checksum, whole_checksum, differ = hashlib.sha256(), hashlib.sha256(), False
    for name, result in decoded:
        if isinstance(result, str):
            rows.bad[name] = result
            continue
        _note(rows, name, result)
        square = result.square.tobytes()
        whole = result.square if result.whole is None else result.whole
        if not differ and not np.array_equal(whole, result.square):
            differ = True
            squares.seek(0)  # its end is reached again when all of it is read
            for block in iter(partial(squares.read, READ_BYTES), b""):
                wholes.write(block)
                whole_checksum.update(block)
        squares.write(square)
        checksum.update(square)
        if differ:
            wholes.write(whole.tobytes())
            whole_checksum.update(whole.tobytes())
    checksum.update(rows.rows_digest())
    return replace(
        rows,
        shape=[len(rows.names), *plan.shape[1:]],
        sha256=checksum.hexdigest(),
        whole_sha256=whole_checksum.hexdigest() if differ else "",
    )


def _note(rows: Manifest, name: str, picture: DecodedPicture) -> None:
    """Add a row to the manifest."""
    height, width = (picture.square if picture.whole is None else picture.whole).shape[1:]
    rows.names.append(name)
    rows.contents.append(picture.content)
    rows.heights.append(height)
    rows.widths.append(width)
    if picture.filled:
        rows.filled[name] = picture.filled
    if picture.complaints:
        rows.complaints[name] = picture.complaints


def _delete_old(path: Path, manifest: Manifest, largest: int) -> None:
    """Delete pixel files of this source that no command can use any more.

    Args:
        path: of the manifest.
        manifest: the new one.
        largest: bytes of an old manifest that is read.
    """
    kept = {manifest.pixels, manifest.whole}
    for old in path.parent.glob(f"{glob.escape(path.stem)}-*.bin"):
        if old.name not in kept:
            old.unlink(missing_ok=True)
    slug = path.stem.rsplit("-", 1)[0]
    for other in path.parent.glob(f"{glob.escape(slug)}-{'[0-9a-f]' * 16}.json"):
        try:
            facts = read_cached_json(other, largest)
            stale = facts["folder"] == manifest.folder and facts["listing"] != manifest.listing
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            continue
        if stale:
            for old in (other, *other.parent.glob(f"{glob.escape(other.stem)}-*.bin")):
                old.unlink(missing_ok=True)


def _mapped(folder: Path, manifest: Manifest, made: str, verify: bool) -> CachedPictures | None:
    """Map the pixel files; None if they are not what the manifest says."""
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(open_file(folder / file.name)) for file in manifest.files]
            now = checked_manifest(files, manifest, verify)
            return None if now is None else _map_files(files, now, made)
    except (OSError, TypeError, ValueError):
        return None


def _map_files(files: Sequence[IO[bytes]], manifest: Manifest, made: str) -> CachedPictures:
    squares = torch.from_numpy(_map_file(files[0], manifest.shape))
    whole = _map_pictures(files[1], manifest) if manifest.whole else None
    return CachedPictures(CachedPixels(squares, None, made), whole, manifest)


def _map_file(file: IO[bytes], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Map an open file; the map stays when the file is closed or deleted."""
    if not prod(shape):
        return np.empty(shape, np.uint8)  # nothing could be read, and an empty file has no map
    return np.memmap(file, np.uint8, mode="c", shape=tuple(shape))


def _map_pictures(file: IO[bytes], manifest: Manifest) -> Pictures:
    height, width = torch.tensor(manifest.heights), torch.tensor(manifest.widths)
    channels = manifest.shape[1]
    lengths = channels * height * width
    values = _map_file(file, [int(lengths.sum())])
    start = lengths.cumsum(0) - lengths
    return Pictures(torch.from_numpy(values), start, height, width, channels)


def whole_bytes(sizes: Iterable[tuple[int, int]], wanted: Decoding) -> int:
    """Return the bytes of the squares and the whole pictures of a source.

    Args:
        sizes: width and height in pixels of each picture in its file.
        wanted: what is made of each.
    """
    side, limit = wanted.size or 0, wanted.whole_side or 0
    total = 0
    for width, height in sizes:
        scale = min(1.0, limit / min(width, height))
        total += side * side + round(scale * width) * round(scale * height)
    return total * (wanted.channels or 3)
