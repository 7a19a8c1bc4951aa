"""name -> ImageSet: scikit-learn's digits, torchvision's data sets, a folder of images.

Only what is asked for is imported, and nothing is printed to stdout.
"""

import contextlib
import gzip
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sureclr.data.downloads import downloading
from sureclr.data.folder import read_folder
from sureclr.data.image_set import UNLABELLED, ImageSet, convert
from sureclr.errors import UserError, unknown

FOLDER = "folder:PATH"  # how users write it, and how lists show it
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
DIGITS_TRAIN = (
    1000  # the first 1,000 train, the last 797 are by other writers: a random split flatters
)
FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class Source:
    """A data source: one line for `sureclr list`, and its reader, which takes the folder of its
    files.
    """

    about: str
    read: Callable[..., ImageSet]


def load(
    source: str,
    *,
    root: Path | None = None,
    size: int | None = None,
    channels: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ImageSet:
    """The images of a source.

    Args:
        source: a name in SOURCES; "folder:PATH" for your own images (see `folder.read_folder`).
        root: where data sets lie or are downloaded to; None: $SURECLR_DATA, else
            ~/.cache/sureclr/data.
        size: side in pixels; None: the data set's own, 96 for a folder. Resampled as
            `image_set.resize` says.
        channels: 1 grey, 3 RGB; None: the data set's own, 3 for a folder.
        seed: of the test split of a folder that has none.
        progress: show on stderr how far decoding is.

    Raises:
        UserError: unknown name, files missing and not to be had, or damaged.
    """
    if (size is not None and size < 1) or channels not in (None, 1, 3):
        raise UserError(
            f"images have 1 or 3 channels and at least 1 pixel a side, not {channels} and {size};"
            " change that."
        )
    if source.startswith("folder:") and source != FOLDER:
        path = Path(source.removeprefix("folder:"))
        return read_folder(path, size=size, channels=channels, seed=seed, progress=progress)
    if source not in SOURCES or source == FOLDER:
        raise _unknown_source(source)
    return convert(SOURCES[source].read(root or data_root()), size, channels)


def is_source(name: str) -> bool:
    """Whether `load` knows a source of that name."""
    return name != FOLDER and (name in SOURCES or name.startswith("folder:"))


def _unknown_source(source: str) -> UserError:
    if Path(source).is_dir():
        return UserError(
            f"{source!r} is a folder, and a data source is a name; write folder:{source} for the"
            " images in it."
        )
    return unknown("data source", source, SOURCES)


def data_root() -> Path:
    """Where data sets lie unless told: $SURECLR_DATA, else ~/.cache/sureclr/data."""
    return Path(
        os.environ.get("SURECLR_DATA") or Path.home() / ".cache" / "sureclr" / "data"
    ).expanduser()


def read_digits(root: Path) -> ImageSet:
    """scikit-learn's 1,797 digits, (1, 8, 8), 0..16 scaled to 0..255; embedded in scikit-learn,
    nothing to download.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (
        digits.images.astype(np.int64) * 255 + 8
    ) // 16  # (1797, 8, 8); + 8: rounds to nearest
    train, test = slice(None, DIGITS_TRAIN), slice(DIGITS_TRAIN, None)
    parts = {
        "train": (pixels[train], digits.target[train]),
        "test": (pixels[test], digits.target[test]),
    }
    return _assemble("digits", parts, tuple(map(str, digits.target_names)))


def read_fashion_mnist(root: Path) -> ImageSet:
    """Zalando's 60,000 + 10,000 pieces of clothing, (1, 28, 28), from IDX files in root, in
    Debian's folder, or downloaded.
    """
    files = (
        _idx_files(root / "FashionMNIST" / "raw")
        or _idx_files(DEBIAN_FASHION)
        or _download_fashion(root)
    )
    arrays = [_damage_is_told(_read_idx, file) for file in files]
    parts = {"train": (arrays[0], arrays[1]), "test": (arrays[2], arrays[3])}
    return _assemble("fashion-mnist", parts, tuple(_torchvision("FashionMNIST").classes))


def read_cifar10(root: Path) -> ImageSet:
    """CIFAR-10: 50,000 + 10,000 photographs, (3, 32, 32), 10 classes."""
    return _read_cifar("cifar10", "CIFAR10", root)


def read_cifar100(root: Path) -> ImageSet:
    """CIFAR-100: 50,000 + 10,000 photographs, (3, 32, 32), 100 fine classes."""
    return _read_cifar("cifar100", "CIFAR100", root)


def read_stl10(root: Path) -> ImageSet:
    """STL-10: 5,000 train, 100,000 unlabelled, 8,000 test, (3, 96, 96), 10 classes, and its 10
    training folds of 1,000.

    torchvision downloads and checks the files; their pixels are then mapped and copied once, since
    its own reader would hold the 3 GB three times. 3 GB of memory, or what `size` leaves of it
    after loading.
    """
    checked = _through_torchvision("STL10", root, split="test")
    folder = root / checked.base_folder
    labels = {
        part: np.fromfile(folder / f"{part}_y.bin", np.uint8).astype(np.int64) - 1
        for part in ("train", "test")
    }
    pixels = {part: _map_stl10(folder / f"{part}_X.bin") for part in ("train", "unlabeled", "test")}
    parts = {
        "train": (pixels["train"], labels["train"]),
        "unlabelled": (pixels["unlabeled"], np.full(len(pixels["unlabeled"]), UNLABELLED)),
        "test": (pixels["test"], labels["test"]),
    }
    folds = torch.from_numpy(_damage_is_told(_read_folds, folder / checked.folds_list_file))
    return replace(_assemble("stl10", parts, tuple(checked.classes)), folds=folds)


SOURCES: dict[str, Source] = {
    "digits": Source(
        "scikit-learn's handwritten digits: 1,797 grey images of 8 pixels, 10 classes; embedded",
        read_digits,
    ),
    "fashion-mnist": Source(
        "Fashion-MNIST: 70,000 grey images of 28 pixels, 10 classes", read_fashion_mnist
    ),
    "cifar10": Source("CIFAR-10: 60,000 colour images of 32 pixels, 10 classes", read_cifar10),
    "cifar100": Source("CIFAR-100: 60,000 colour images of 32 pixels, 100 classes", read_cifar100),
    "stl10": Source(
        "STL-10: 13,000 colour images of 96 pixels, 10 classes, and 100,000 unlabelled", read_stl10
    ),
    FOLDER: Source(
        "your own images: any tree of files, unlabelled or a class per sub-folder", read_folder
    ),
}


def _torchvision(name: str) -> Any:
    """A class of torchvision.datasets, imported late (1.4 s)."""
    from sureclr.compat import prepare_torchvision

    prepare_torchvision()
    from torchvision import datasets

    return getattr(datasets, name)


def _read_cifar(name: str, reader: str, root: Path) -> ImageSet:
    """torchvision unpickles only files whose md5 is the published one."""
    sets = {
        split: _through_torchvision(reader, root, train=split == "train")
        for split in ("train", "test")
    }
    parts = {
        split: (np.moveaxis(data.data, -1, 1), np.asarray(data.targets))
        for split, data in sets.items()
    }
    return _assemble(name, parts, tuple(sets["train"].classes))


def _through_torchvision(name: str, root: Path, **part: Any) -> Any:
    """A data set of torchvision whose files lie in root and passed their md5 check; unpacked or
    downloaded where they do not.
    """
    reader = _torchvision(name)
    with contextlib.suppress(
        RuntimeError, OSError
    ):  # RuntimeError is torchvision's word for "missing or damaged"
        return reader(root, **part)
    with downloading(name, reader.filename, root, reader.url, md5=reader.tgz_md5):
        return reader(root, download=True, **part)


def _map_stl10(file: Path) -> NDArray[np.uint8]:
    """(n, 3, 96, 96), mapped: STL-10 stores each channel column by column."""
    return np.memmap(file, np.uint8, mode="r").reshape(-1, 3, 96, 96).swapaxes(2, 3)


def _read_folds(file: Path) -> NDArray[np.int64]:
    """(10, 1000) rows of the training images; a line a fold."""
    return np.loadtxt(file, dtype=np.int64, ndmin=2)


def _assemble(name: str, parts: dict[str, tuple[Any, Any]], classes: tuple[str, ...]) -> ImageSet:
    """An ImageSet of {split: (images (n, h, w) or (n, c, h, w), labels (n,))}, the parts one after
    the other.
    """
    counts = [len(labels) for _, labels in parts.values()]
    images = torch.from_numpy(
        np.concatenate([pixels for pixels, _ in parts.values()]).astype(np.uint8, copy=False)
    )
    labels = torch.from_numpy(
        np.concatenate([labels for _, labels in parts.values()]).astype(np.int64)
    )
    return ImageSet(
        name=name,
        images=images if images.ndim == 4 else images.unsqueeze(1),
        labels=labels,
        classes=classes,
        split=np.repeat(list(parts), counts),
        paths=[
            f"{split}/{i:05d}"
            for split, count in zip(parts, counts, strict=True)
            for i in range(count)
        ],
    )


def _download_fashion(root: Path) -> list[Path]:
    """Fashion-MNIST's four files, after torchvision downloaded them into root and checked their
    md5.
    """
    reader, folder = _torchvision("FashionMNIST"), root / "FashionMNIST" / "raw"
    with downloading(
        "Fashion-MNIST",
        ", ".join(f"{name}.gz" for name in FASHION_FILES),
        folder,
        reader.mirrors[-1],
    ):
        reader(root, download=True)
    return _idx_files(folder)


def _idx_files(folder: Path) -> list[Path]:
    """Fashion-MNIST's four files in this folder, plain or .gz; empty where one is missing."""
    found = [
        file
        for name in FASHION_FILES
        for file in (folder / name, folder / f"{name}.gz")
        if file.is_file()
    ]
    plain = {
        file.name.removesuffix(".gz"): file for file in reversed(found)
    }  # reversed: the plain file wins
    return [plain[name] for name in FASHION_FILES] if len(plain) == len(FASHION_FILES) else []


def _read_idx(file: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, plain or gzipped: 0, 0, 8, number of axes, then each length
    (big-endian), then the bytes.
    """
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
        raise UserError(
            f"{file} cannot be read ({error}); delete it, or put a whole one in its place."
        ) from error
