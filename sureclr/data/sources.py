"""The data sources by name: scikit-learn's digits, torchvision's data sets, a folder of images.

Other packages can add their own with `register_source`. A source imports what it needs only when it
is read, and prints nothing to stdout.
"""

import contextlib
import gzip
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sureclr.config import READ_OPTIONS, TABLE, PretrainConfig, ReadOptions, check_seed
from sureclr.data.downloads import downloading
from sureclr.data.feature_table import features_of, read_feature_table
from sureclr.data.folder import absolute, list_folders, with_given
from sureclr.data.image_set import UNLABELLED, ImageSet, check_shape, convert
from sureclr.data.picture_list import PictureList, read_pictures, short_report
from sureclr.data.picture_sources import (
    list_of_files,
    list_parquet,
    list_saved_dataset,
    list_shards,
)
from sureclr.errors import UserError, unknown
from sureclr.progress import SILENT, Progress
from sureclr.registry import Registry

FOLDER = "folder:PATH"  # how users write it, and how lists show it
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
# The first 1,000 are the training split, the last 797 are by other writers: a random split flatters
DIGITS_TRAIN = 1000
FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

Reader = Callable[[Path], ImageSet]
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class Source:
    """A data source.

    Attributes:
        about: one sentence that `sureclr list` prints.
        read: reads the images; its argument is the folder of downloaded data sets, which a source
            that downloads nothing ignores.
    """

    about: str
    read: Reader


SOURCES = Registry[Source]("data source", "sureclr.sources")


def register_source(name: str, about: str) -> Callable[[Reader], Reader]:
    """Return a decorator that makes a function a data source.

    Args:
        name: what users write, as in `sureclr pretrain NAME`.
        about: one sentence that `sureclr list` prints.

    Raises:
        UserError: the name is taken, or starts with "folder:".

    Example::

        @register_source("flowers", about="My flowers: 300 colour images, 5 classes.")
        def read_flowers(root: Path) -> ImageSet:
            return as_image_set(root / "flowers", size=64)
    """
    kind, colon, _ = name.partition(":")
    if colon and kind in OF_FILES:
        raise UserError(
            f"a data source cannot be named {name!r}, because {kind}: starts the path of picture"
            " files; use another name."
        )

    def add(read: Reader) -> Reader:
        SOURCES.register(name)(Source(about, read))
        return read

    return add


def load_images(
    source: str,
    *,
    root: Path | None = None,
    size: int | None = None,
    channels: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
    options: ReadOptions = READ_OPTIONS,
) -> ImageSet:
    """Read the images of a data source, and report in sentences what was understood of them.

    Args:
        source: a name in `SOURCES`, or "folder:PATH" for your own images (see `read_folder`), or
            another form that `FILE_SOURCES` names.
        root: the folder in which data sets lie, or into which they are downloaded; None:
            $SURECLR_DATA, else ~/.cache/sureclr/data.
        size: side in pixels of the centre square, see `image_set.resize`, in place of
            `options.size`; None: the data set's own size, and for picture files 96, or less where
            most of them are smaller.
        channels: 1 to 32, in place of `options.channels`; None: the data set's own, and for picture
            files 3, unless all of them have another number of bands.
        seed: of the random test split of picture files that have no test images of their own.
        progress: what to report to while images are decoded; gets the sentences of the report.
        options: how picture files become pixels.

    Raises:
        UserError: the name is unknown, a number is out of range, or files are missing and cannot
            be downloaded, or damaged.
    """
    options = with_given(options, size, channels)
    check_seed(seed)
    check_shape(options.size, options.channels)
    kind, _, place = source.partition(":")
    if kind in OF_FILES and source not in SOURCES:
        if not place:  # an empty path would be the current folder
            raise UserError(f"{source!r} names no path; write it after the colon: {kind}:PATH.")
        if kind == TABLE:
            return read_feature_table(place, seed=seed, progress=progress)
        pictures = (
            list_folders(folders_of(place), every=True)
            if kind == "folder" and options.unsplit
            else FILE_SOURCES[kind](place)
        )
        return read_pictures(pictures, options, seed=seed, progress=progress)
    images = _named(source, root)
    images = convert(images, options.size, options.channels, options, are_pictures=True)
    report = short_report(images)
    for sentence in report.sentences():
        progress.message(sentence)
    return replace(images, report=report)


def _named(source: str, root: Path | None) -> ImageSet:
    """The images of a data set that has a name, as it gives them."""
    if source not in SOURCES or source.partition(":")[0] in OF_FILES:
        raise _unknown_source(source)
    entry = SOURCES[source]
    if not isinstance(entry, Source):
        raise UserError(
            f"the data source {source!r} of another package is not registered under this name; its"
            f' module must use @register_source("{source}", about=...).'
        )
    return entry.read(root or data_root())


def given_features(
    images: object, config: PretrainConfig, count: int, progress: Progress = SILENT
) -> ImageSet | None:
    """Return what a run on a table of features is to embed; None for a run on images.

    Args:
        images: a source, or what a user has in hand.
        config: of the run.
        count: number of features that it was trained on.
        progress: gets the sentences about a file.

    Raises:
        UserError: they are no such features, or a run on images is to embed a table.
    """
    if config.of_table:
        return features_of(images, count, seed=config.seed, progress=progress)
    if isinstance(images, str) and images.startswith(f"{TABLE}:"):
        raise UserError(
            f"{images} is a table of features, and this run was trained on images; give images, or"
            " train heads on the table: sureclr pretrain table:PATH."
        )
    return None


def is_source(name: str) -> bool:
    """Whether `load_images` knows a source of that name."""
    of_files = name.partition(":")[0] in OF_FILES and ":" in name
    return of_files != (name in SOURCES)  # "folder:PATH" itself is a form and no name


def findable(source: str) -> str:
    """Return the name of a source under which it is found from any folder.

    Relative paths and `~` become absolute paths; other names stay as they are.
    """
    kind, _, place = source.partition(":")
    if kind not in OF_FILES or not place or source in SOURCES:
        return source
    if kind == "folder":
        return "folder:" + ",".join(str(absolute(path)) for path in folders_of(place))
    return f"{kind}:{absolute(Path(place))}"


def paths_from(folder: Path, source: str) -> list[str]:
    """Return the paths of a source of picture files, relative to a folder; [] for other sources.

    >>> paths_from(Path("/work/runs/one"), "folder:/work/photos")
    ['../../photos']
    """
    kind, _, place = source.partition(":")
    if kind not in OF_FILES or not place or source in SOURCES:
        return []
    paths = folders_of(place) if kind == "folder" else [Path(place)]
    try:
        return [os.path.relpath(absolute(path), absolute(folder)) for path in paths]
    except ValueError:  # Windows: on another drive
        return []


def where_now(source: str, folder: Path, paths: Sequence[str]) -> str:
    """Return the source at its recorded place, or where it was moved together with a folder.

    The recorded, absolute place has precedence. Only where nothing is there, and something is at
    the same place relative to the folder, that one is returned.

    Args:
        source: as a run records it.
        folder: of the run, as it is now.
        paths: what `paths_from` returned for the folder where it was then.
    """
    kind, _, place = source.partition(":")
    moved = [os.path.normpath(absolute(folder) / path) for path in paths]
    if kind not in OF_FILES or not moved:
        return source
    recorded = folders_of(place) if kind == "folder" else [Path(place)]
    if all(map(_is_there, recorded)) or not all(_is_there(Path(path)) for path in moved):
        return source
    return f"{kind}:{','.join(moved)}"


def _is_there(path: Path) -> bool:
    """Whether a path exists; of a pattern, the part before its first sign."""
    parts = path.parts
    plain = next((i for i, part in enumerate(parts) if set(part) & set("*?[{")), len(parts))
    return path.exists() or (plain < len(parts) and Path(*parts[:plain]).exists())


def folders_of(place: str) -> list[Path]:
    """Return the folders of "folder:A" or "folder:A,B"; a folder may have a comma in its name."""
    parts = place.split(",")
    if len(parts) == 1 or absolute(Path(place)).exists():
        return [Path(place)]
    are_folders = all(part and absolute(Path(part)).is_dir() for part in parts)
    return [Path(part) for part in parts] if are_folders else [Path(place)]


def _unknown_source(source: str) -> UserError:
    if Path(source).is_dir():
        return UserError(
            f"{source!r} is a folder, and a data source is a name; write folder:{source} for the"
            " images in it."
        )
    return unknown("data source", source, SOURCES)


def data_root() -> Path:
    """Return the default folder of data sets: $SURECLR_DATA, else ~/.cache/sureclr/data."""
    return Path(
        os.environ.get("SURECLR_DATA") or Path.home() / ".cache" / "sureclr" / "data"
    ).expanduser()


@register_source(
    "digits",
    about="Handwritten digits: 1,797 grey images of 8 pixels, 10 classes; part of scikit-learn.",
)
def read_digits(root: Path) -> ImageSet:
    """Read scikit-learn's digits, whose values 0..16 are scaled to 0..255.

    Args:
        root: not used; scikit-learn contains the images.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    # (1797, 8, 8); the 8 is half of 16 and makes the division round to the nearest integer
    pixels = (digits.images.astype(np.int64) * 255 + 8) // 16
    train, test = slice(None, DIGITS_TRAIN), slice(DIGITS_TRAIN, None)
    parts = {
        "train": (pixels[train], digits.target[train]),
        "test": (pixels[test], digits.target[test]),
    }
    return _assemble("digits", parts, tuple(map(str, digits.target_names)))


@register_source(
    "fashion-mnist",
    about="Fashion-MNIST: 70,000 grey images of 28 pixels, 10 classes of clothing.",
)
def read_fashion_mnist(root: Path) -> ImageSet:
    """Read Fashion-MNIST (Xiao et al. 2017) from IDX files, plain or gzipped.

    Args:
        root: the files are read from its folder FashionMNIST/raw, else from Debian's package, else
            downloaded into that folder.

    Raises:
        UserError: a file is damaged or cannot be downloaded.
    """
    files = (
        _idx_files(root / "FashionMNIST" / "raw")
        or _idx_files(DEBIAN_FASHION)
        or _download_fashion(root)
    )
    arrays = [_read_checked(_read_idx, file) for file in files]
    parts = {"train": (arrays[0], arrays[1]), "test": (arrays[2], arrays[3])}
    return _assemble("fashion-mnist", parts, tuple(_torchvision("FashionMNIST").classes))


@register_source(
    "cifar10",
    about="CIFAR-10: 60,000 colour images of 32 pixels, 10 classes.",
)
def read_cifar10(root: Path) -> ImageSet:
    """Read CIFAR-10 (Krizhevsky 2009) through torchvision.

    Args:
        root: where the files lie, or are downloaded to.

    Raises:
        UserError: the files are damaged or cannot be downloaded.
    """
    return _read_cifar("cifar10", "CIFAR10", root)


@register_source(
    "cifar100",
    about="CIFAR-100: 60,000 colour images of 32 pixels, 100 classes.",
)
def read_cifar100(root: Path) -> ImageSet:
    """Read CIFAR-100 (Krizhevsky 2009) with its 100 fine classes through torchvision.

    Args:
        root: where the files lie, or are downloaded to.

    Raises:
        UserError: the files are damaged or cannot be downloaded.
    """
    return _read_cifar("cifar100", "CIFAR100", root)


@register_source(
    "stl10",
    about="STL-10: 13,000 colour images of 96 pixels, 10 classes, and 100,000 without labels.",
)
def read_stl10(root: Path) -> ImageSet:
    """Read STL-10 (Coates et al. 2011) with its unlabelled images and its 10 training folds.

    torchvision downloads and checks the files; their pixels are then mapped and copied once,
    because its own reader would hold the 3 GB three times. This needs 3 GB of memory.

    Args:
        root: where the files lie, or are downloaded to.

    Raises:
        UserError: the files are damaged or cannot be downloaded.
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
    folds = torch.from_numpy(_read_checked(_read_folds, folder / checked.folds_list_file))
    return replace(_assemble("stl10", parts, tuple(checked.classes)), folds=folds)


# The first word of a source of picture files -> what lists its files
FILE_SOURCES: dict[str, Callable[[str], PictureList]] = {
    "folder": lambda place: list_folders(folders_of(place)),
    "list": list_of_files,
    "tar": list_shards,
    "parquet": list_parquet,
    "hf": list_saved_dataset,
}
OF_FILES = (*FILE_SOURCES, TABLE)
_ABOUT_FILES = {
    FOLDER: "Your own images: any tree of files, unlabelled or one sub-folder a class.",
    "folder:A,B": "Several folders of your own images, read as one.",
    "list:FILE": "The image files that a text file names, one path a line.",
    "tar:PATTERN": "Images in tar files, as WebDataset writes them: KEY.jpg and KEY.cls.",
    "parquet:PATH": "An image column in Parquet or Arrow files, with a label column or without.",
    "hf:PATH": "A Hugging Face data set that `save_to_disk` wrote (needs sureclr[datasets]).",
    f"{TABLE}:PATH": "Features of several views of each image, made elsewhere (Parquet or .npz).",
}


def _no_name(root: Path) -> ImageSet:
    raise UserError("write the path of your own images in place of the capitals.")


for _form, _about in _ABOUT_FILES.items():
    SOURCES.register(_form)(Source(_about, _no_name))


def _torchvision(name: str) -> Any:
    """A class of torchvision.datasets, imported late (1.4 s)."""
    from sureclr.compat import prepare_torchvision

    prepare_torchvision()
    from torchvision import datasets

    return getattr(datasets, name)


def _read_cifar(name: str, reader: str, root: Path) -> ImageSet:
    # torchvision unpickles only files whose md5 is the published one
    sets = {
        split: _through_torchvision(reader, root, train=split == "train")
        for split in ("train", "test")
    }
    parts = {
        split: (np.moveaxis(data.data, -1, 1), np.asarray(data.targets))
        for split, data in sets.items()
    }
    return _assemble(name, parts, tuple(sets["train"].classes))


def _through_torchvision(name: str, root: Path, **part: str | bool) -> Any:
    """A data set of torchvision, downloaded or unpacked if its checked files are not in root."""
    reader = _torchvision(name)
    with contextlib.suppress(RuntimeError, OSError):  # RuntimeError: files are missing or damaged
        return reader(root, **part)
    with downloading(name, reader.filename, root, reader.url, md5=reader.tgz_md5):
        return reader(root, download=True, **part)


def _map_stl10(file: Path) -> NDArray[np.uint8]:
    """(n, 3, 96, 96), mapped: STL-10 stores each channel column by column."""
    return np.memmap(file, np.uint8, mode="r").reshape(-1, 3, 96, 96).swapaxes(2, 3)


def _read_folds(file: Path) -> NDArray[np.int64]:
    """(10, 1000) rows of the training images, one line a fold."""
    return np.loadtxt(file, dtype=np.int64, ndmin=2)


def _assemble(name: str, parts: dict[str, tuple[Any, Any]], classes: tuple[str, ...]) -> ImageSet:
    """An ImageSet of its splits: {split: (images (n, h, w) or (n, c, h, w), labels (n,))}."""
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
    """Fashion-MNIST's four files, which torchvision downloads into root and checks."""
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
    """Fashion-MNIST's four files in this folder, plain or else .gz; [] if one is missing."""
    candidates = [(folder / name, folder / f"{name}.gz") for name in FASHION_FILES]
    files = [next((file for file in pair if file.is_file()), None) for pair in candidates]
    present = [file for file in files if file is not None]
    return present if len(present) == len(files) else []


def _read_idx(file: Path) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, plain or gzipped.

    The file holds 0, 0, 8, the number of axes, each length (big-endian, 32 bits), and the bytes.
    """
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    axes = data[3]
    if data[:3] != b"\0\0\x08":
        raise ValueError("it does not start as an IDX file of bytes does")
    shape = struct.unpack_from(f">{axes}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _read_checked(read: Callable[[Path], NDArray[Number]], file: Path) -> NDArray[Number]:
    """The result of read(file); a UserError if the file is damaged."""
    try:
        return read(file)
    except (OSError, EOFError, ValueError, IndexError, struct.error) as error:
        raise UserError(
            f"{file} cannot be read ({error}); delete it, or replace it by a complete one."
        ) from error
