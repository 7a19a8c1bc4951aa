"""A folder of CIFAR-10 pictures as dirty as people's folders are, and what is in it.

    dirty = make_dirty_folder(tmp_path, images=2000, seed=0)
    dirty.root, dirty.labels, dirty.images, dirty.refused, ...

The pictures come from /work/shared/cifar10, which is not part of the repository: tests that need
them are skipped without it (`needs_pictures`). Equal arguments give equal folders, byte for byte.
"""

import csv
import io
import os
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

UNPACK = Path("/work/shared/cifar10/unpack.py")
needs_pictures = pytest.mark.skipif(not UNPACK.exists(), reason=f"{UNPACK} does not exist")

NAMES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]
# Labels of the file: letters that cp1252 and UTF-8 write differently
WORDS = [
    *("Flugzeug", "Auto", "Vögel", "Katze", "Rentier"),
    *("Hündin", "Frösche", "Pferd", "Schiff", "Lkw"),
]
FOLDERS = {"train": "Train", "test": "TEST"}
TRAIN_SHARE = 0.8
COMPRESSIONS = ("jpegxl", "lerc", "lzma", "webp", "zstd")  # one of them is not in this Pillow
# Format -> ending and options of Pillow
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": (".png", {}),
    "JPEG": (".jpg", {"quality": 95}),
    "TIFF": (".tif", {}),
    "TIFF lzw": (".tif", {"compression": "tiff_lzw"}),
    "TIFF deflate": (".tiff", {"compression": "tiff_adobe_deflate"}),
    "TIFF jpeg": (".tif", {"compression": "jpeg"}),
    "GIF": (".gif", {}),
    "WEBP": (".webp", {"lossless": True}),
    "AVIF": (".avif", {}),
    "JPEG2000": (".jp2", {}),
    "BMP": (".bmp", {}),
}


@dataclass
class DirtyFolder:
    """What was made. Paths are relative to `root`, as `os.walk` gives them.

    Attributes:
        root: the folder of the pictures.
        labels: the label file, beside it: cp1252, semicolons, the header Dateiname;Klasse.
        layout: "classes" (Train/CLASS and TEST/CLASS) or "flat" (all in one folder).
        split: path -> train or test, of every picture that can be read; of the flat layout: train.
        kind: path -> its class, of every picture that can be read; "" in the flat layout.
        refused: path -> format and damage, of every file that Pillow refuses.
        other_compression: TIFF files in a compression that this Pillow lacks; other libraries may
            read them.
        optional: ending -> number of files that can be read with an extra, or as an array.
        left_out: ending in small letters -> number of files that are no pictures.
        copy_of: path of an exact copy -> path of its original. All are counted in `images`.
        pages: path -> number of pages or frames, of files with more than one.
        changed: what was done to pictures that can still be read -> number of them.
        label_of: path -> its word in the label file, where that is clear.
        conflicting: path -> the words of its rows, where they differ.
        blank: paths whose row has no label.
        unknown: rows whose picture does not exist.
    """

    root: Path
    labels: Path
    layout: str
    split: dict[str, str] = field(default_factory=dict)
    kind: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    other_compression: list[str] = field(default_factory=list)
    optional: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    copy_of: dict[str, str] = field(default_factory=dict)
    pages: dict[str, int] = field(default_factory=dict)
    changed: Counter[str] = field(default_factory=Counter)
    label_of: dict[str, str] = field(default_factory=dict)
    conflicting: dict[str, tuple[str, ...]] = field(default_factory=dict)
    blank: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Files that can be read with Pillow alone, copies included, a file of many pages once."""
        return len(self.split)

    @property
    def splits(self) -> Counter[str]:
        """Split -> number of its images, copies included."""
        return Counter(self.split.values())

    @property
    def copies_within(self) -> Counter[str]:
        """Split -> number of its images that are copies of another image of it."""
        same = [c for c, o in self.copy_of.items() if self.split[c] == self.split[o]]
        return Counter(self.split[copy] for copy in same)

    @property
    def copies_in_test(self) -> dict[str, str]:
        """Test image -> the training image that it is an exact copy of."""
        return {c: o for c, o in self.copy_of.items() if self.split[c] != self.split[o]}

    @property
    def pages_skipped(self) -> int:
        """Pages and frames after the first."""
        return sum(self.pages.values()) - len(self.pages)


def refuses(data: bytes) -> bool:
    """Whether Pillow refuses to decode a file."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.convert("RGB")
    except Exception:
        return True
    return False


def encoded(picture: Image.Image, form: str, **more: Any) -> bytes:
    """The bytes of a file in one of FORMATS."""
    stream = io.BytesIO()
    picture.save(stream, form.split()[0], **{**FORMATS[form][1], **more})
    return stream.getvalue()


def cut(data: bytes, random: np.random.Generator) -> bytes:
    return data[: int(len(data) * random.uniform(0.3, 0.9))]


def zeroed(data: bytes, random: np.random.Generator) -> bytes:
    start = int(len(data) * random.uniform(0.3, 0.8))
    length = len(data) // 10
    return data[:start] + bytes(length) + data[start + length :]


def flipped(data: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(data)
    changed[int(len(data) * random.uniform(0.3, 0.7))] ^= 1 << int(random.integers(8))
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "cut": cut,
    "zeroed": zeroed,
    "flipped": flipped,
}


def make_dirty_folder(
    place: Path, images: int = 60, seed: int = 0, layout: str = "classes"
) -> DirtyFolder:
    """Make the folder `place`/photos and the label file `place`/labels.csv.

    Args:
        place: an existing folder.
        images: clean pictures to begin with; some are changed, and others are added.
        seed: of everything that is drawn.
        layout: "classes" or "flat".
    """
    return _Maker(place, images, seed, layout).make()


class _Maker:
    """The folder while it is being made."""

    def __init__(self, place: Path, images: int, seed: int, layout: str) -> None:
        self.random = np.random.default_rng(seed)
        self.dirty = DirtyFolder(place / "photos", place / "labels.csv", layout)
        self.count, self.some = images, max(1, images // 60)  # files of each kind of dirt
        self.classes = NAMES[: 3 if images < 200 else 10]
        self.words: dict[str, str] = {}  # path -> the true class
        self.clean: list[str] = []  # pictures that nothing was done to yet

    def make(self) -> DirtyFolder:
        self.unpack()
        self.change_sizes_and_modes()
        self.turn_and_animate()
        self.rename_oddly()
        self.copy()
        self.damage()
        self.add_other_files()
        self.write_labels()
        return self.dirty

    # --- Pictures that can be read --------------------------------------------------------

    def unpack(self) -> None:
        """Write the clean pictures, no two of them equal, in the wanted layout."""
        raw = self.dirty.root.with_name("unpacked")
        each = -(-self.count // len(self.classes))
        wanted = {"train": round(TRAIN_SHARE * each), "test": each - round(TRAIN_SHARE * each)}
        spare = [f"--{split}-per-class={number + 5}" for split, number in wanted.items()]
        command = [sys.executable, str(UNPACK), str(raw), *spare]
        subprocess.run([*command, f"--classes={','.join(self.classes)}"], check=True)
        seen: set[bytes] = set()
        for split, number in wanted.items():
            for name in self.classes:
                files = [f.read_bytes() for f in sorted((raw / split / name).iterdir())]
                new = [data for data in files if sha256(data).digest() not in seen][:number]
                seen.update(sha256(data).digest() for data in new)
                for i, data in enumerate(new):
                    self.add(split, name, f"{split[:2]}{name[:4]}{i:04d}.jpg", data)
        shutil.rmtree(raw)
        self.clean = list(self.random.permutation(list(self.words)))

    def folder(self, split: str, name: str) -> str:
        """The folder of a class; the name of the last one ends in a blank."""
        if self.dirty.layout == "flat":
            return ""
        return f"{FOLDERS[split]}/{name}{' ' if name == self.classes[-1] else ''}/"

    def add(self, split: str, name: str, file: str, data: bytes, readable: bool = True) -> str:
        """Write a file into the folder of its class and return its path."""
        path = self.folder(split, name) + file
        target = self.dirty.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        assert not target.exists(), target
        target.write_bytes(data)
        if readable:
            flat = self.dirty.layout == "flat"
            self.dirty.split[path] = "train" if flat else split
            self.dirty.kind[path] = "" if flat else Path(path).parent.name
            self.words[path] = WORDS[NAMES.index(name)]
        return path

    def take(self, kind: str) -> str:
        """Return a picture that nothing was done to, and count what is done to it now."""
        self.dirty.changed[kind] += 1
        return str(self.clean.pop())

    def picture(self, path: str) -> Image.Image:
        with Image.open(self.dirty.root / path) as image:
            return image.convert("RGB")

    def replace(self, path: str, ending: str, data: bytes) -> str:
        """Put another file into the place of a picture, with another ending."""
        assert not refuses(data)
        (self.dirty.root / path).unlink()
        return self.move(path, str(Path(path).with_suffix(ending)), data)

    def move(self, old: str, new: str, data: bytes) -> str:
        for known in (self.dirty.split, self.dirty.kind, self.words):
            known[new] = known.pop(old)
        (self.dirty.root / new).write_bytes(data)
        return new

    def change_sizes_and_modes(self) -> None:
        for _ in range(self.some):
            for width, height in ((64, 48), (33, 90), (160, 120)):
                path = self.take("resized")
                picture = self.picture(path).resize((width, height), Image.Resampling.BICUBIC)
                self.replace(path, ".png", encoded(picture, "PNG"))
            for mode, form in (("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG")):
                path = self.take(mode)
                picture = self.picture(path).convert(mode)
                if mode == "RGBA":
                    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
                self.replace(path, FORMATS[form][0], encoded(picture, form))
            for form in ("PNG", "TIFF"):
                path = self.take("16 bit")
                grey = np.asarray(self.picture(path).convert("L"), np.uint16)
                data = encoded(Image.fromarray(7000 + 4 * grey), form)
                self.replace(path, FORMATS[form][0], data)
            for form in ("WEBP", "AVIF", "BMP", "TIFF lzw", "JPEG2000"):
                path = self.take(form)
                self.replace(path, FORMATS[form][0], encoded(self.picture(path), form))

    def turn_and_animate(self) -> None:
        for _ in range(self.some):
            path = self.take("EXIF orientation")
            exif = Image.Exif()
            exif[0x0112] = 6
            self.replace(path, ".jpeg", encoded(self.picture(path), "JPEG", exif=exif))
            for form, pages in (("GIF", 3), ("TIFF", 4)):
                path = self.take("several pages")
                first = self.picture(path)
                others = [first.rotate(90 * i) for i in range(1, pages)]
                data = encoded(first, form, save_all=True, append_images=others)
                self.dirty.pages[self.replace(path, FORMATS[form][0], data)] = pages

    def rename_oddly(self) -> None:
        names = [
            "blanks inside {}.jpg",
            "a name {} .jpg",
            "\u3000wide{}\u3000.jpg",
            'it\'s "{}".jpg',
            "two\nlines{}.JPG",
            "sem;icolon,{}.Jpeg",
            "-dash{}.jpg",
            "[b]{}*.jpg",
            os.fsdecode(b"caf\xe9{}.jpg"),
            "e\u0301te{}.jpg",  # decomposed, as macOS writes it
        ]
        for number in range(self.some):
            for name in names:
                path = self.take("odd name")
                data = (self.dirty.root / path).read_bytes()
                (self.dirty.root / path).unlink()
                folder = path[: path.rfind("/") + 1]
                self.move(path, folder + name.replace("{}", str(number)), data)

    def copy(self) -> None:
        """Exact copies: in the same class, in another class, and of train in test."""
        for i in range(2 * self.some):
            for where in ("class", "other class", "test"):
                original = str(self.clean[(3 * i + len(where)) % len(self.clean)])
                while original in self.dirty.copy_of.values() or not Path(original).name.startswith(
                    "tr"
                ):
                    original = str(self.clean[int(self.random.integers(len(self.clean)))])
                k = WORDS.index(self.words[original])
                if where == "other class":
                    k = (k + 1) % len(self.classes)
                split = "test" if where == "test" else "train"
                data = (self.dirty.root / original).read_bytes()
                copy = self.add(split, NAMES[k], f"copy {where} {i}.jpg", data)
                self.dirty.copy_of[copy] = original
                self.dirty.changed[f"copy in {where}"] += 1

    # --- Files that cannot be read, and files of other kinds ----------------------------------

    def noise(self, side: int = 40) -> Image.Image:
        """A picture that no other file has: a smooth one with noise."""
        small = Image.fromarray(self.random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        grain = self.random.integers(-8, 9, pixels.shape)
        return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))

    def damage(self) -> None:
        """One file of each format and damage that Pillow notices."""
        for form, (ending, _) in FORMATS.items():
            for damage, harm in DAMAGES.items():
                if damage == "flipped" and form != "PNG":
                    continue  # only PNG has checksums over all of the file
                for _ in range(20):
                    data = harm(encoded(self.noise(), form), self.random)
                    if refuses(data):
                        name = f"{damage} {form}{ending}"
                        path = self.add("train", self.classes[0], name, data, readable=False)
                        self.dirty.refused[path] = f"{form}, {damage}"
                        break
        for name, data in (("empty.jpg", b""), ("text.png", b"<html>not found</html>")):
            path = self.add("train", self.classes[1], name, data, readable=False)
            self.dirty.refused[path] = Path(name).stem

    def add_other_files(self) -> None:
        import tifffile

        for compression in COMPRESSIONS:
            stream = io.BytesIO()
            try:
                tifffile.imwrite(stream, np.asarray(self.noise()), compression=compression)
            except Exception:  # this imagecodecs lacks it too
                continue
            if refuses(stream.getvalue()):
                name = f"{compression}.tif"
                path = self.add("train", self.classes[0], name, stream.getvalue(), readable=False)
                self.dirty.other_compression.append(path)
                break
        for i in range(2):
            for ending, data in (
                (".HEIC", heic(self.noise(64))),
                (".dcm", dicom(self.noise())),
                (".npy", npy(self.noise())),
            ):
                self.add("train", self.classes[0], f"extra{i}{ending}", data, readable=False)
                self.dirty.optional[ending.lower()] += 1
        others = {
            "notes.txt": b"taken in May",
            "README": b"ours",
            "raw.CR2": b"II*\0" + bytes(50),
            "raw2.cr2": b"II*\0" + bytes(50),
            "clip.mp4": bytes(40),
            "Thumbs.db": bytes(30),
        }
        for name, data in others.items():
            self.add("train", self.classes[1], name, data, readable=False)
            self.dirty.left_out[Path(name).suffix.lower()] += 1
        for hidden in (".DS_Store", "._trai0000.jpg"):  # are not counted by anybody
            self.add("train", self.classes[1], hidden, b"\0\5\x16\7", readable=False)

    # --- The label file ---------------------------------------------------------------------

    def write_labels(self) -> None:
        """Most pictures have a row; names that cp1252 cannot write have none."""
        paths = [str(path) for path in self.random.permutation(sorted(map(repr, self.words)))]
        known = {repr(path): path for path in self.words}
        rows: list[tuple[str, str]] = []
        clean = set(map(str, self.clean))
        for i, path in enumerate(known[shown] for shown in paths):
            word = self.words[path]
            if not _writable(path) or i % 10 == 9:
                continue  # a picture without a row
            if i % 10 == 8:
                rows.append((path, ""))
                self.dirty.blank.append(path)
            elif i % 10 == 7 and path in clean:
                other = WORDS[(WORDS.index(word) + 1) % len(self.classes)]
                rows += [(path, word), (path, other), (path, word)]
                self.dirty.conflicting[path] = (word, other, word)
            else:
                rows.append((self.other_spelling(path, i) if path in clean else path, word))
                self.dirty.label_of[path] = word
        self.dirty.unknown = [f"gone/{i}.jpg" for i in range(2 * self.some)]
        rows += [(path, WORDS[0]) for path in self.dirty.unknown]
        with self.dirty.labels.open("w", encoding="cp1252", newline="") as file:
            writer = csv.writer(file, delimiter=";")
            writer.writerow(["Dateiname", "Klasse"])
            writer.writerows(rows)

    def other_spelling(self, path: str, i: int) -> str:
        """The path as other programs write it: with a dot, with backslashes, or its last part."""
        spellings = (path, f"./{path}", path.replace("/", "\\"), Path(path).name)
        return spellings[i % len(spellings)]


def _writable(path: str) -> bool:
    try:
        path.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True


def heic(picture: Image.Image) -> bytes:
    """A picture as HEIC; the start of one where pillow-heif is missing."""
    try:
        import pillow_heif
    except ImportError:
        return struct.pack(">I", 24) + b"ftypheic" + bytes(12)
    file = pillow_heif.from_pillow(picture)
    stream = io.BytesIO()
    file.save(stream, quality=90)
    return stream.getvalue()


def dicom(picture: Image.Image) -> bytes:
    """A grey picture of 12 bits as DICOM; the start of one where pydicom is missing."""
    try:
        import pydicom
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    except ImportError:
        return bytes(128) + b"DICM"
    values = np.asarray(picture.convert("L"), np.uint16) * 16
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3.4.5"
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = values.tobytes()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, data, enforce_file_format=True)
    return stream.getvalue()


def npy(picture: Image.Image) -> bytes:
    """A picture as an array of NumPy, (h, w, 3) uint8."""
    stream = io.BytesIO()
    np.save(stream, np.asarray(picture))
    return stream.getvalue()
