"""The dirty folder holds what it says. Witnesses: os.walk, Pillow, hashlib and csv on the files."""

import csv
import os
from collections import Counter, defaultdict
from hashlib import sha256
from pathlib import Path

import pytest
from dirty_folder import FORMATS, DirtyFolder, make_dirty_folder, needs_pictures
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged TIFF files

PICTURES = {ending for ending, _ in FORMATS.values()} | {".jpeg"}


def files(root: Path) -> list[str]:
    """All files that are not hidden, relative to the root."""
    found = []
    for folder, _, names in os.walk(root):
        found += [os.path.relpath(os.path.join(folder, n), root) for n in names if n[0] != "."]
    return sorted(found)


def read(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            picture = image.convert("RGB")
            picture.info["frames"] = frames
            return picture
    except Exception:
        return None


@pytest.fixture(scope="module", params=["classes", "flat"])
def dirty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DirtyFolder:
    return make_dirty_folder(tmp_path_factory.mktemp("dirty"), 60, 3, request.param)


@needs_pictures
def test_pillow_reads_and_refuses_what_it_says(dirty: DirtyFolder) -> None:
    good, bad, other, pages = [], [], Counter[str](), {}
    for file in files(dirty.root):
        ending = Path(file).suffix.lower()
        if ending not in PICTURES:
            other[ending] += 1
        elif picture := read(dirty.root / file):
            good.append(file)
            if picture.info["frames"] > 1:
                pages[file] = picture.info["frames"]
        else:
            bad.append(file)
    assert sorted(dirty.split) == good and dirty.images == len(good) == 66
    assert sorted([*dirty.refused, *dirty.other_compression]) == bad
    assert dirty.left_out + dirty.optional == other and pages == dirty.pages
    assert dirty.pages_skipped == 5 and len(dirty.other_compression) == 1
    kinds = {kind.split(",")[0] for kind in dirty.refused.values()}
    assert kinds == {*FORMATS, "empty", "text"}  # at least one damage of each format is refused
    assert "PNG, flipped" in dirty.refused.values()


@needs_pictures
def test_splits_classes_and_copies_are_those_of_the_files(dirty: DirtyFolder) -> None:
    of: dict[str, list[str]] = defaultdict(list)
    for file in dirty.split:
        of[sha256((dirty.root / file).read_bytes()).hexdigest()].append(file)
    pairs = {frozenset(same) for same in of.values() if len(same) > 1}
    assert pairs == {frozenset(pair) for pair in dirty.copy_of.items()} and len(pairs) == 6
    if dirty.layout == "flat":
        assert set(dirty.split.values()) == {"train"} and dirty.copies_within == {"train": 6}
        assert {Path(file).parent for file in files(dirty.root)} == {Path()}
        return
    assert dirty.copies_within == {"train": 4} and len(dirty.copies_in_test) == 2
    for file, split in dirty.split.items():
        top, kind, _ = file.split("/", 2)
        assert top.lower() == split and kind == dirty.kind[file]
    assert {file.split("/")[0] for file in dirty.split} == {"Train", "TEST"}
    assert set(dirty.kind.values()) == {"airplane", "automobile", "bird "}


@needs_pictures
def test_the_label_file_says_what_it_says(dirty: DirtyFolder) -> None:
    with dirty.labels.open(encoding="cp1252", newline="") as file:
        header, *rows = csv.reader(file, delimiter=";")
    assert header == ["Dateiname", "Klasse"]
    with pytest.raises(UnicodeDecodeError):
        dirty.labels.read_text(encoding="utf-8")
    by_name = {Path(path).name: path for path in dirty.split}
    assert len(by_name) == dirty.images  # so that the last part of a path is enough
    words, spelled = defaultdict(list), 0
    for path, word in rows:
        plain = path.replace("\\", "/").split("/")[-1] if "\n" not in path else path.split("/")[-1]
        words[by_name.get(plain, path)].append(word)
        spelled += path not in dirty.split
    assert {p: w[0] for p, w in words.items() if len(w) == 1 and w[0] and p in dirty.split} == (
        dirty.label_of
    )
    assert sorted(p for p, w in words.items() if w == [""]) == sorted(dirty.blank)
    assert {p: tuple(w) for p, w in words.items() if len(w) > 1} == dirty.conflicting
    assert sorted(set(words) - set(dirty.split)) == sorted(dirty.unknown)
    assert spelled > len(dirty.unknown) and dirty.blank and dirty.conflicting
    assert len(set(dirty.split) - set(words)) > 3  # some pictures have no row


@needs_pictures
def test_equal_seeds_make_equal_folders(dirty: DirtyFolder, tmp_path: Path) -> None:
    if dirty.layout == "classes":
        again = make_dirty_folder(tmp_path, 60, 3)
        names = files(dirty.root)
        assert names == files(again.root)
        skip = {".heic"}  # its encoder writes the clock
        for name in names:
            if Path(name).suffix.lower() not in skip:
                assert (again.root / name).read_bytes() == (dirty.root / name).read_bytes(), name
        assert again.labels.read_bytes() == dirty.labels.read_bytes()
        assert again.label_of == dirty.label_of and again.refused == dirty.refused
