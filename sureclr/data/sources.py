"""name -> ImageSet: scikit-learn's digits, torchvision's data sets, a folder of images.

Only what is asked for is imported, and nothing is printed to stdout.
"""

import contextlib
import gzip
import os
import queue
import socket
import struct
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sureclr.data.image_set import ImageSet, convert
from sureclr.errors import UserError, unknown

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
DIGITS_TRAIN = 1000  # the first 1,000 train, the last 797 are by other writers: a random split flatters
REACH_SECONDS = 6  # a server that does not answer by then counts as not there
STALL_SECONDS = 30  # a download that sends nothing for so long is given up
FASHION_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True)
class Source:
    """A data source: one line for `sureclr list`, and its reader: the folder that holds (or will hold) its files -> ImageSet."""

    about: str
    read: Callable[[Path], ImageSet]


def load(source: str, *, root: Path | None = None, size: int | None = None, seed: int = 0, progress: bool = True) -> ImageSet:
    """The images of a source, by its name in SOURCES.

    Args:
        source: "digits", "fashion-mnist", "cifar10", "cifar100", "stl10".
        root: where the files of data sets lie or are downloaded to; None: $SURECLR_DATA, else ~/.cache/sureclr/data.
        size: side in pixels; None: the data set's own (digits 8). Resampled as `image_set.resize` says.
        seed: of the test split of a folder that has none.
        progress: show on stderr how far decoding is.

    Raises:
        UserError: unknown name, files missing and not to be had, or damaged.
    """
    if size is not None and size < 1:
        raise UserError(f"an image has at least 1 pixel a side, not size {size}; give a size of 1 or more.")
    if source not in SOURCES:
        raise unknown("data source", source, SOURCES)
    return convert(SOURCES[source].read(root or data_root()), size=size)


def data_root() -> Path:
    """Where data sets lie unless told: $SURECLR_DATA, else ~/.cache/sureclr/data."""
    return Path(os.environ.get("SURECLR_DATA") or Path.home() / ".cache" / "sureclr" / "data").expanduser()


def read_digits(root: Path) -> ImageSet:
    """scikit-learn's 1,797 digits, (1, 8, 8), 0..16 scaled to 0..255; embedded in scikit-learn, nothing to download."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images.astype(np.int64) * 255 + 8) // 16  # (1797, 8, 8); + 8: rounds to nearest
    train, test = slice(None, DIGITS_TRAIN), slice(DIGITS_TRAIN, None)
    parts = {"train": (pixels[train], digits.target[train]), "test": (pixels[test], digits.target[test])}
    return _assemble("digits", parts, tuple(map(str, digits.target_names)))


def read_fashion_mnist(root: Path) -> ImageSet:
    """Zalando's 60,000 + 10,000 pieces of clothing, (1, 28, 28), from IDX files in root, in Debian's folder, or downloaded."""
    files = _idx_files(root / "FashionMNIST" / "raw") or _idx_files(DEBIAN_FASHION) or _download_fashion(root)
    arrays = [_damage_is_told(_read_idx, file) for file in files]
    parts = {"train": (arrays[0], arrays[1]), "test": (arrays[2], arrays[3])}
    return _assemble("fashion-mnist", parts, tuple(_torchvision("FashionMNIST").classes))


SOURCES: dict[str, Source] = {
    "digits": Source("scikit-learn's handwritten digits, 1,797 grey images of 8 pixels, embedded", read_digits),
    "fashion-mnist": Source("Fashion-MNIST, 70,000 grey images of 28 pixels, 10 classes", read_fashion_mnist),
}


def _torchvision(name: str) -> Any:
    """A class of torchvision.datasets, imported late (1.4 s)."""
    from sureclr.compat import prepare_torchvision

    prepare_torchvision()
    from torchvision import datasets

    return getattr(datasets, name)


def _assemble(name: str, parts: dict[str, tuple[Any, Any]], classes: tuple[str, ...]) -> ImageSet:
    """An ImageSet of {split: (images (n, h, w) or (n, c, h, w), labels (n,))}, the parts one after the other."""
    counts = [len(labels) for _, labels in parts.values()]
    images = torch.from_numpy(np.concatenate([pixels for pixels, _ in parts.values()]).astype(np.uint8, copy=False))
    labels = torch.from_numpy(np.concatenate([labels for _, labels in parts.values()]).astype(np.int64))
    return ImageSet(
        name=name,
        images=images if images.ndim == 4 else images.unsqueeze(1),
        labels=labels,
        classes=classes,
        split=np.repeat(list(parts), counts),
        paths=[f"{split}/{i:05d}" for split, count in zip(parts, counts, strict=True) for i in range(count)],
    )


def _download_fashion(root: Path) -> list[Path]:
    """Fashion-MNIST's four files, after torchvision downloaded them into root and checked their md5."""
    reader, folder = _torchvision("FashionMNIST"), root / "FashionMNIST" / "raw"
    with _download_is_told("Fashion-MNIST", ", ".join(f"{name}.gz" for name in FASHION_FILES), folder, reader.mirrors[-1]):
        reader(root, download=True)
    return _idx_files(folder)


@contextlib.contextmanager
def _download_is_told(title: str, files: str, folder: Path, url: str) -> Iterator[None]:
    """Around a download: no long waits, nothing on stdout, and one sentence with the way out where it fails."""
    before = socket.getdefaulttimeout()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _reach(url)
        print(f"{title}: downloading from {url} to {folder}", file=sys.stderr)
        socket.setdefaulttimeout(STALL_SECONDS)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (OSError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{title} is not in {folder} and could not be downloaded ({reason}); put {files} from {url} into {folder}, "
            "or set SURECLR_DATA to the folder that has your data sets."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _reach(url: str) -> None:
    """Return if the server answers within REACH_SECONDS, else OSError. In a thread: no timeout covers looking up a name."""
    answers: queue.Queue[Exception | None] = queue.Queue()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_SECONDS).close()
            answers.put(None)
        except Exception as error:
            answers.put(error if isinstance(error, OSError) else OSError(str(error)))

    threading.Thread(target=ask, daemon=True).start()
    try:
        failure = answers.get(timeout=REACH_SECONDS)
    except queue.Empty:
        failure = TimeoutError(f"no answer within {REACH_SECONDS} s")
    if failure is not None:
        raise failure


def _idx_files(folder: Path) -> list[Path]:
    """Fashion-MNIST's four files in this folder, plain or .gz; empty where one is missing."""
    found = [file for name in FASHION_FILES for file in (folder / name, folder / f"{name}.gz") if file.is_file()]
    plain = {file.name.removesuffix(".gz"): file for file in reversed(found)}  # reversed: the plain file wins
    return [plain[name] for name in FASHION_FILES] if len(plain) == len(FASHION_FILES) else []


def _read_idx(file: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, plain or gzipped: 0, 0, 8, number of axes, then each length (big-endian), then the bytes."""
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    axes = data[3]
    if data[:3] != b"\0\0\x08":
        raise ValueError("it does not start as an IDX file of bytes does")
    shape = struct.unpack_from(f">{axes}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _damage_is_told(read: Callable[[Path], Any], file: Path) -> Any:
    """read(file), with any sign of damage told in one sentence."""
    try:
        return read(file)
    except (OSError, EOFError, ValueError, IndexError, struct.error) as error:
        raise UserError(f"{file} cannot be read ({error}); delete it, or put a whole one in its place.") from error
