"""Image files -> one memory-mapped array of uint8 pixels, decoded once by all cores.

The cache lies in $SURECLR_CACHE, else ~/.cache/sureclr/folders, never in the user's folder.
NAME.json (the manifest) says what NAME-*.bin (the pixels, row after row) holds. Both are written
under a temporary name and renamed; a checksum finds damage.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import repeat
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from sureclr.data import decoding
from sureclr.errors import UserError

VERSION = (
    1  # of decoding and of the files: raise it when either changes, and every cache is built anew
)
POOL_FROM = 256  # fewer images are decoded in this process: starting others would take longer
CHUNK = 16  # files handed to a worker at a time
BLOCK = 1 << 20  # bytes read at a time for the checksum

Stamps = Mapping[
    str, tuple[int, int]
]  # path below the folder -> (time of last change in ns, length in bytes)
Decoded = NDArray[np.uint8] | str  # pixels, or the reason why there are none


@dataclass(frozen=True)
class Manifest:
    """What the pixel file holds: one row for each file of the listing that is not in `bad`, in the
    listing's order.
    """

    folder: str
    listing: str  # sha256 of the version and of all names, times and lengths
    pixels: str  # file name beside the manifest
    shape: list[int]  # (n, c, h, w)
    sha256: str  # of the pixels, then of `bad`
    names: list[str]
    bad: dict[str, str]  # name -> reason


def cached_pixels(
    folder: Path, files: Stamps, size: int, channels: int, progress: bool = True
) -> tuple[NDArray[np.uint8], Manifest, Path]:
    """(n, c, h, w) uint8, memory-mapped copy-on-write; the manifest; where that lies. Decodes only
    where no cache is whole.
    """
    name = f"{_slug(folder.name)}-{_sha256(str(folder), size, channels)[:16]}"
    place, listing = cache_root() / f"{name}.json", _sha256(VERSION, list(files.items()))
    manifest = _read_manifest(place, listing)
    if manifest is None or not _whole(place.parent / manifest.pixels, manifest):
        if manifest is not None:
            print(f"{place.with_name(manifest.pixels)} is damaged; decoding again", file=sys.stderr)
        decoded = _decode_all(folder, files, size, channels, progress)
        manifest = _build(
            place,
            Manifest(str(folder), listing, "", [0, channels, size, size], "", list(files), {}),
            decoded,
        )
    return _map(place.parent / manifest.pixels, manifest.shape), manifest, place


def cache_root() -> Path:
    """$SURECLR_CACHE, else ~/.cache/sureclr/folders."""
    return Path(
        os.environ.get("SURECLR_CACHE") or Path.home() / ".cache" / "sureclr" / "folders"
    ).expanduser()


def _build(place: Path, plan: Manifest, decoded: Iterator[Decoded]) -> Manifest:
    """Decode into a temporary file, rename it, then write the manifest: a reader sees the old cache
    or the new, never half.

    Args:
        plan: the manifest with all names, before it is known which can be read.
    """
    pixels = place.with_name(f"{place.stem}-{plan.listing[:16]}.bin")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _renamed_when_done(pixels) as file:
            good, bad, checksum = _stream(file, plan.names, decoded)
        shape = [len(good), *plan.shape[1:]]
        manifest = replace(
            plan, pixels=pixels.name, shape=shape, sha256=checksum, names=good, bad=bad
        )
        with _renamed_when_done(place) as file:
            file.write(
                json.dumps(asdict(manifest), indent=1).encode()
            )  # ASCII: a name that is no UTF-8 survives as an escape
        for old in set(place.parent.glob(f"{place.stem}-*.bin")) - {
            pixels
        }:  # of the folder as it was before
            old.unlink(missing_ok=True)
    except OSError as error:
        told = f"cannot write the cache of images {place.parent} ({error.strerror or error})"
        raise UserError(f"{told}; set SURECLR_CACHE to a folder with room.") from error
    return manifest


def _stream(
    file: IO[bytes], names: list[str], decoded: Iterator[Decoded]
) -> tuple[list[str], dict[str, str], str]:
    """Write the pixels as they arrive; (names that became rows, names and reasons of the others,
    checksum).
    """
    good: list[str] = []
    bad: dict[str, str] = {}
    checksum = hashlib.sha256()
    for name, result in zip(names, decoded, strict=True):
        if isinstance(result, str):
            bad[name] = result
            continue
        good.append(name)
        file.write(result.tobytes())
        checksum.update(result.tobytes())
    checksum.update(_sha256(good, bad).encode())
    return good, bad, checksum.hexdigest()


@contextlib.contextmanager
def _renamed_when_done(target: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside the target that takes its name at the end, or goes where anything
    failed.
    """
    with tempfile.NamedTemporaryFile(
        dir=target.parent, prefix=f"{target.stem}.", suffix=".tmp", delete=False
    ) as file:
        try:
            yield file
            file.flush()
            os.replace(file.name, target)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _read_manifest(place: Path, listing: str) -> Manifest | None:
    """The manifest if there is one, of this listing; None where it is missing, older or no manifest
    at all.
    """
    try:
        manifest = Manifest(**json.loads(place.read_bytes()))
        return manifest if manifest.listing == listing else None
    except (OSError, ValueError, TypeError):
        return None


def _whole(file: Path, manifest: Manifest) -> bool:
    """Whether the pixel file is what was written: its length, then its checksum (sha256)."""
    try:
        if file.stat().st_size != prod(manifest.shape):
            return False
        checksum = hashlib.sha256()
        with file.open("rb") as stream:
            for block in iter(partial(stream.read, BLOCK), b""):
                checksum.update(block)
        checksum.update(_sha256(manifest.names, manifest.bad).encode())
        return checksum.hexdigest() == manifest.sha256
    except (OSError, TypeError):
        return False


def _map(file: Path, shape: list[int]) -> NDArray[np.uint8]:
    if not prod(shape):
        return np.empty(shape, np.uint8)  # nothing could be read: an empty file cannot be mapped
    return np.memmap(file, np.uint8, mode="c", shape=tuple(shape))


def _decode_all(
    folder: Path, files: Stamps, size: int, channels: int, progress: bool
) -> Iterator[Decoded]:
    """Each file's pixels or reason, in order, from as many processes as there are cores."""
    paths = [os.path.join(folder, name) for name in files]
    results = (
        _in_processes(paths, size, channels)
        if len(paths) >= POOL_FROM
        else _here(paths, size, channels)
    )
    return _counted(results, len(paths)) if progress else results


def _here(paths: list[str], size: int, channels: int) -> Iterator[Decoded]:
    return (decoding.decode(path, size, channels) for path in paths)


def _in_processes(paths: list[str], size: int, channels: int) -> Iterator[Decoded]:
    """Started afresh ("spawn"): a fork of a process with torch's threads can hang."""
    pool = ProcessPoolExecutor(mp_context=get_context("spawn"))
    try:
        yield from pool.map(decoding.decode, paths, repeat(size), repeat(channels), chunksize=CHUNK)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that decodes images died: if memory ran out, close other programs; "
            "if this is your own script, put its work under `if __name__ == '__main__':`."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _counted(results: Iterable[Decoded], total: int) -> Iterator[Decoded]:
    """Pass the results on and say on stderr how far they are: a bar on a terminal, a line each
    tenth elsewhere.
    """
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(results, "decoding images", total, console=console)
        return
    for done, result in enumerate(results, 1):
        yield result
        if done * 10 // total > (done - 1) * 10 // total:
            print(f"decoding images: {done} of {total}", file=sys.stderr)


def _slug(name: str) -> str:
    """A part of a file name that is safe everywhere, so that a person finds the cache of a folder."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40] or "folder"


def _sha256(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
