"""folder:PATH: classes and splits, whole pictures, the cache, and hostile files."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_files import BAD
from dying import die
from PIL import Image
from tiny import write_photos

from sureclr.config import PretrainConfig, ReadOptions, from_dict, read_yaml, to_yaml
from sureclr.data import cache_manifest, decoding, folder_cache
from sureclr.data.decoding import Decoding, FileRef, decode
from sureclr.data.folder import find_files
from sureclr.data.image_report import inert
from sureclr.data.image_set import ImageSet
from sureclr.data.parallel_decoding import POOL_FROM, decode_files
from sureclr.data.sources import findable, load_images
from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError
from sureclr.stopping import Stopped

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were decoded, as they are."""
    names: list[str] = []

    def counting(file: FileRef, wanted: Decoding) -> Any:
        names.append(os.path.basename(file.path))
        return decode(file, wanted)

    monkeypatch.setattr(decoding, "decode", counting)
    return names


def picture(
    file: Path, colour: Any = RED, mode: str = "RGB", size: tuple[int, int] = (8, 8)
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file)
    return file


def tree(root: Path, *names: str) -> Path:
    """Images with these names below root, each of its own grey."""
    for number, name in enumerate(names):
        picture(root / name, (number, number, number))
    return root


def read(root: Path, **options: Any) -> ImageSet:
    return load_images(f"folder:{root}", **{"size": 8} | options)


def noise(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class Recorder:
    """Remembers what was reported."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int]] = []
        self.done: list[int] = []
        self.messages: list[str] = []
        self.open = 0

    def begin(self, task: str, total: int, done: int = 0) -> None:
        self.tasks.append((task, total))
        self.open += 1

    def update(self, done: int, numbers: Any = None) -> None:
        self.done.append(done)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def finish(self) -> None:
        self.open -= 1


# --- bad files


def test_bad_files_are_listed_and_not_fatal(tmp_path: Path, own_cache: Path, capfd: Any) -> None:
    root = tree(tmp_path / "pics", "cat/a.png", "cat/b.png", "dog/a.png", "dog/b.png")
    for name, data in BAD.items():
        (root / "cat" / name).write_bytes(data)
    os.symlink("nowhere", root / "dog" / "gone.jpg")
    recorder = Recorder()
    options = ReadOptions(allow_unreadable=True)
    images = read(root, progress=recorder, options=options)
    assert images.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.report is not None
    refused = sorted([*(f"cat/{name}" for name in BAD), "dog/gone.jpg"])
    assert sorted(images.report.to_json()["refused"]) == refused
    (message,) = (text for text in recorder.messages if "could not be read" in text)
    assert message.startswith("7 of 11 image files could not be read: cat/bomb.png (")
    assert message.removesuffix(".") in images.note and capfd.readouterr() == ("", "")
    assert "script.jpg" not in message and "images.json" in message  # the first few, where all are
    again = Recorder()
    assert read(root, progress=again, options=options).note == images.note  # also from the cache
    assert again.messages == recorder.messages and again.tasks == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", "no files that end as images"),
        ("bad", "has no image that can be read: a.png .no image format"),
        ("missing", "No such file"),
        ("a.png", "Not a dir"),
        ("a\0b", "null"),
    ],
    ids=["empty", "bad", "missing", "file", "null byte"],
)
def test_nothing_readable_is_one_sentence(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"x")
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


def test_a_folder_that_may_not_be_listed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        read(tmp_path)


# --- which files, classes, splits


def test_hidden_files_and_other_files_are_skipped_and_the_order_is_by_name(tmp_path: Path) -> None:
    root = tree(tmp_path, "b.png", "a.PNG", ".hidden.png", ".git/x.png", "deep/er/c.jpeg")
    (root / "notes.txt").write_text("no picture")
    os.mkfifo(root / "pipe.png")
    assert list(find_files(root)[0]) == ["a.PNG", "b.png", "deep/er/c.jpeg"]
    assert find_files(root)[1] == {".txt": 1}


def test_link_loops_end_and_a_link_never_takes_a_folders_place(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", "cat/a.png", "dog/b.png")
    tree(tmp_path / "far", "c.png")
    os.symlink(root, root / "cat" / "loop")
    os.symlink(root / "dog", root / "also dog")
    os.symlink(tmp_path / "far", root / "far")
    os.symlink(tmp_path / "far", root / "far again")
    os.symlink("itself", root / "itself")
    os.symlink(root / "cat" / "a.png", root / "dog" / "copy.png")
    assert list(find_files(root)[0]) == ["cat/a.png", "dog/b.png", "dog/copy.png", "far/c.png"]


def test_names_are_inert(tmp_path: Path, capfd: Any) -> None:
    root = tree(tmp_path, "a\x1b[31m\n[red]/é\u202e.png", "ß/日本.png")
    with open(os.fsencode(root) + b"/\xff.png", "wb") as file:
        file.write((root / "ß/日本.png").read_bytes())
    (root / "bad\r\x07.png").write_bytes(b"")
    options = ReadOptions(allow_unreadable=True)
    images = read(root, options=options)
    assert images.classes == ("a\\x1b[31m\\n[red]", "ß")
    assert list(images.paths) == ["a\\x1b[31m\\n[red]/é\\u202e.png", "ß/日本.png", "\\udcff.png"]
    assert all(path.encode() and path.isprintable() for path in images.paths)
    assert read(root, options=options).images[:, 0, 0, 0].tolist() == [
        0,
        1,
        1,
    ]  # and again from the cache
    recorder = Recorder()
    read(root, progress=recorder, options=options)
    assert not {"\x07", "\x1b", "\n"} & set("".join(recorder.messages) + images.note)
    assert capfd.readouterr() == ("", "")
    assert inert("plain name.jpg") == "plain name.jpg"


def test_classes_are_the_first_sub_folders_by_name(tmp_path: Path) -> None:
    images = read(tree(tmp_path, "dog/x/1.png", "cat/1.png", "cat/2021/2.png", "loose.png"))
    assert images.classes == ("cat", "dog")
    assert list(images.paths) == ["cat/1.png", "cat/2021/2.png", "dog/x/1.png", "loose.png"]
    assert images.labels.tolist() == [0, 0, 1, -1]
    assert images.split[3] == "unlabelled"
    images = read(tree(tmp_path, *(f"loose {i}.png" for i in range(9))))
    assert (
        images.split[3:].tolist() == ["unlabelled"] * 10
    )  # never held out: they could not be scored


@pytest.mark.parametrize("folder", ["", "holiday/"])
def test_an_unlabelled_folder_holds_out_about_a_fifth_and_says_so(
    tmp_path: Path, folder: str
) -> None:
    images = read(tree(tmp_path, *(f"{folder}{i}.png" for i in range(200))))
    assert not images.labelled and images.classes == ()
    assert 20 <= len(images.test) <= 60 and len(images.train) == 200 - len(images.test)
    assert "holds out 20 % for testing, seed 0" in images.note and "No labels" in images.note


def test_split_folders_decide_where_there_is_train(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        "train/b/1.png",
        "train/a/1.png",
        "train/odd.png",
        "test/a/2.png",
        "test/c/2.png",
        "test/odd.png",
    )
    tree(root, "val/a/3.png", "unlabelled/x/4.png", "other/5.png")
    images = read(root)
    assert images.classes == ("a", "b", "c")
    assert list(zip(images.paths, images.split.tolist(), images.labels.tolist(), strict=True)) == [
        ("train/a/1.png", "train", 0),
        ("train/b/1.png", "train", 1),
        ("train/odd.png", "unlabelled", -1),
        ("unlabelled/x/4.png", "unlabelled", -1),
        ("test/a/2.png", "test", 0),
        ("test/c/2.png", "test", 2),
        ("test/odd.png", "test", -1),
    ]
    assert images.note == "Splits: the folders train/, unlabelled/, test/"
    assert images.report is not None and sum(images.report.left_out_pictures.values()) == 2


def test_val_is_the_test_split_without_test_and_train_alone_is_all_training(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/1.png", "train/2.png")
    assert read(root).split.tolist() == ["train", "train"]
    picture(root / "val" / "3.png", 50, "L")
    assert read(root).split.tolist() == ["train", "train", "test"]


def test_the_same_pictures_are_on_the_same_side_in_a_folder_that_grows(tmp_path: Path) -> None:
    """And under other names, in other formats, with other classes."""

    def sides(images: ImageSet) -> dict[bytes, str]:
        pairs = zip(images.images, images.split.tolist(), strict=True)
        return {image.numpy().tobytes(): split for image, split in pairs}

    few = sides(read(tree(tmp_path / "few", *(f"{i}.png" for i in range(60)))))
    for i in range(160):
        picture(tmp_path / "more" / "ab"[i % 2] / f"z{i}.bmp", (i, i, i))
    many = sides(read(tmp_path / "more"))
    assert len(many) == 160 and set(few.values()) == {"train", "test"}
    assert all(many[pixels] == split for pixels, split in few.items())
    assert sides(read(tmp_path / "more", seed=1)) != many


def test_copies_are_on_one_side_and_counted(tmp_path: Path) -> None:
    """40 pictures of noise, three copies each: a nearest neighbour must not find a copy."""
    for i in range(40):
        for copy in range(3):
            file = tmp_path / "ab"[i % 2] / f"{i}-{copy}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(noise(8, 8, 3, seed=i)).save(file)
    images = read(tmp_path)
    train, test = (set(part.images.flatten(1).unbind()) for part in (images.train, images.test))
    assert len(train) + len(test) == 120 and test
    keys = [{row.numpy().tobytes() for row in part} for part in (train, test)]
    assert not keys[0] & keys[1]
    assert images.report is not None
    within = images.report.duplicates.within
    assert within["train"] + within["test"] == 80


def test_test_images_that_are_training_images_are_taken_out_and_said(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png")
    (root / "test" / "b" / "copy.png").write_bytes((root / "train" / "a" / "1.png").read_bytes())
    Image.open(root / "train" / "b" / "2.png").save(root / "test" / "a" / "other.bmp")
    recorder = Recorder()
    images = read(root, progress=recorder)
    assert [path for path in images.paths if path.startswith("test")] == [
        "test/a/3.png",
        "test/b/4.png",
    ]
    (message,) = (text for text in recorder.messages if "taken out" in text)
    assert message.startswith("2 test images were taken out")
    assert "such as test/a/other.bmp, which is train/b/2.png" in message
    assert images.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


# --- size, channels, cache


def test_the_default_size_enlarges_at_most_a_twentieth(tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / f"{i:02d}.png", i, "L", (50, 40 + i))
    assert read(tmp_path, size=None).images.shape == (20, 3, 41, 41)  # one of 20 has 40
    assert read(tmp_path, size=5, channels=1).images[7].tolist() == [[[7] * 5] * 5]
    recorder = Recorder()
    read(tmp_path, size=48, progress=recorder)
    (message,) = (text for text in recorder.messages if "Your images" in text)
    assert message.startswith("Your images are 50 px") and "size=48 enlarges 8 of them" in message
    large = picture(tmp_path / "large" / "a.png", 50, "L", (200, 120))
    assert read(large.parent, size=None).images.shape == (1, 3, 96, 96)


def test_small_squares_are_stored_once_and_larger_pictures_whole(
    tmp_path: Path, own_cache: Path
) -> None:
    for i in range(6):
        (tmp_path / "small").mkdir(exist_ok=True)
        Image.fromarray(noise(8, 8, 3, seed=i)).save(tmp_path / "small" / f"{i}.png")
    small = read(tmp_path / "small")
    assert small.pictures is None
    (pixels,) = own_cache.glob("*.bin")
    assert pixels.stat().st_size == 6 * 3 * 8 * 8
    wide = noise(20, 45, 3)
    Image.fromarray(wide).save(tmp_path / "small" / "wide.png")
    images = read(tmp_path / "small", options=ReadOptions(cache_scale=4))  # 32 exceeds 20
    assert images.pictures is not None and images.pictures[6].shape == (3, 20, 45)
    assert np.array_equal(images.pictures[6].permute(1, 2, 0).numpy(), wide)
    for row in range(6):
        assert np.array_equal(images.pictures[row].numpy(), images.images[row].numpy())
    half = read(tmp_path / "small", size=5).pictures  # 2 x 5 of 20
    assert half is not None and half[6].shape == (3, 10, 22)
    witness = np.asarray(Image.fromarray(wide).resize((22, 10), Image.Resampling.BILINEAR))
    assert np.abs(half[6].permute(1, 2, 0).numpy().astype(int) - witness).max() <= 1


def test_no_room_for_the_cache_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_cache, "SPARE_BYTES", 2**60)
    with pytest.raises(UserError, match=r"needs 0.0 MB, and only .* are free; set SURECLR_CACHE"):
        read(tree(tmp_path / "pics", "a.png"))


def test_a_large_cache_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_cache, "SPOKEN_BYTES", 8 * 8 * 3 * 2)
    recorder = Recorder()
    read(picture(tmp_path / "pics" / "a.png", size=(30, 10)).parent, progress=recorder)
    (message,) = (text for text in recorder.messages if "free" in text)
    assert message.startswith("The cache of decoded images takes 0.0 MB in ")


def test_the_second_time_nothing_is_decoded_and_the_pixels_are_mapped(
    tmp_path: Path, decoded: list[str], own_cache: Path
) -> None:
    root = tree(tmp_path / "pics", "a.png", "b.png")
    (root / "bad.png").write_bytes(b"x")
    first = read(root, options=ReadOptions(allow_unreadable=True))
    assert sorted(decoded) == ["a.png", "b.png", "bad.png"]
    second = read(root, seed=5, options=ReadOptions(allow_unreadable=True))
    assert len(decoded) == 3
    assert second.images.tolist() == first.images.tolist() and list(second.paths) == list(
        first.paths
    ) == ["a.png", "b.png"]
    (pixels,) = own_cache.glob("*.bin")
    assert pixels.name in Path("/proc/self/maps").read_text()
    first.images.fill_(9)  # a private copy: the cache keeps what it had
    assert read(root, options=ReadOptions(allow_unreadable=True)).images[:, 0, 0, 0].tolist() == [
        0,
        1,
    ]
    assert len(decoded) == 3
    assert sorted(path.name for path in root.iterdir()) == ["a.png", "b.png", "bad.png"]


@pytest.mark.parametrize(
    "change",
    [
        lambda root: picture(root / "a.png", (9, 9, 9), size=(9, 9)),
        lambda root: os.utime(root / "a.png", ns=(1, 1)),
        lambda root: picture(root / "c.png"),
        lambda root: (root / "b.png").unlink(),
        lambda root: (root / "b.png").rename(root / "d.png"),
    ],
    ids=["content", "time", "more", "fewer", "name"],
)
def test_a_changed_folder_is_decoded_anew_and_the_old_cache_goes(
    tmp_path: Path, decoded: list[str], own_cache: Path, change: Callable[[Path], Any]
) -> None:
    root = tree(tmp_path / "pics", "a.png", "b.png")
    read(root)
    decoded.clear()
    change(root)
    images = read(root)
    assert sorted(decoded) == sorted(path.name for path in root.iterdir()) == sorted(images.paths)
    kinds = sorted(".".join(path.name.split(".")[1:]) for path in own_cache.iterdir())
    assert kinds in (["bin", "json", "json"], ["bin", "json", "json", "whole.bin"])


def test_sizes_and_channels_have_caches_of_their_own(tmp_path: Path, decoded: list[str]) -> None:
    root = tree(tmp_path / "pics", "a.png")
    for _ in range(2):
        shapes = [
            tuple(read(root, size=size, channels=channels).images.shape)
            for size in (4, 8)
            for channels in (1, 3)
        ]
        assert shapes == [(1, 1, 4, 4), (1, 3, 4, 4), (1, 1, 8, 8), (1, 3, 8, 8)]
    assert len(decoded) == 4


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def swap_names(file: Path) -> None:
    file.write_text(file.read_text().replace('"a.png"', '"z.png"'))


MANIFEST = "*[0-9a-f].json"
DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a flipped bit": ("*.bin", flip_a_bit),
    "cut short": ("*.bin", lambda file: os.truncate(file, 5)),
    "pixels gone": ("*.bin", lambda file: file.unlink()),
    "no manifest": (MANIFEST, lambda file: file.unlink()),
    "half a manifest": (MANIFEST, lambda file: file.write_bytes(file.read_bytes()[:50])),
    "another manifest": (MANIFEST, lambda file: file.write_text("[1, 2]")),
    "a changed name": (MANIFEST, swap_names),
    "a pipe for pixels": ("*.bin", lambda file: (file.unlink(), os.mkfifo(file))),
    "a pipe for a manifest": (MANIFEST, lambda file: (file.unlink(), os.mkfifo(file))),
    "the file of another folder": ("*.bin", lambda file: file.write_bytes(bytes(384))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_noticed_and_built_again(
    tmp_path: Path, decoded: list[str], own_cache: Path, damage: str
) -> None:
    root = tree(tmp_path / "pics", "a.png", "b.png")
    whole = read(root)
    pattern, harm = DAMAGE[damage]
    harm(next(own_cache.glob(pattern)))
    decoded.clear()
    recorder = Recorder()
    again = read(root, progress=recorder)
    assert any("decoded again" in m for m in recorder.messages) is (damage != "no manifest")
    assert sorted(decoded) == ["a.png", "b.png"]
    assert again.images.tolist() == [[[[value] * 8] * 8] * 3 for value in (0, 1)] and list(
        again.paths
    ) == list(whole.paths)
    read(root)
    assert len(decoded) == 2


def without_times(status: os.stat_result) -> tuple[int, ...]:
    return 0, 0, status.st_size


@pytest.mark.parametrize(("place", "sampled"), [(0, True), (130, True), (60, False), (383, True)])
def test_a_bit_that_a_disk_changes_by_itself_is_found_in_a_block_or_by_verify(
    tmp_path: Path,
    decoded: list[str],
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: int,
    sampled: bool,
) -> None:
    """Such a change leaves the times as they are. Blocks of 16 bytes start at 0, 122, 245, 368."""
    monkeypatch.setattr(cache_manifest, "_stamp", without_times)
    monkeypatch.setattr(cache_manifest, "SAMPLED_BLOCKS", 4)
    monkeypatch.setattr(cache_manifest, "SAMPLED_BYTES", 16)
    root = tree(tmp_path / "pics", "a.png", "b.png")
    read(root)
    decoded.clear()
    with open(next(own_cache.glob("*.bin")), "r+b") as file:
        file.seek(place)
        value = file.read(1)[0]
        file.seek(place)
        file.write(bytes([value ^ 1]))
    read(root)
    assert bool(decoded) is sampled
    recorder = Recorder()
    images = read(root, progress=recorder, options=ReadOptions(verify=True))
    assert sorted(decoded) == ["a.png", "b.png"]
    assert images.images[:, 0].flatten(1).tolist() == [[0] * 64, [1] * 64]
    words = "Every byte of the cache" if sampled else "is damaged, so the images are decoded again"
    assert words in recorder.messages[0]


def test_a_copied_cache_is_hashed_as_a_whole_once_and_says_nothing(
    tmp_path: Path, decoded: list[str], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of an older version, whose manifest has neither times nor a digest of blocks."""
    root = tree(tmp_path / "pics", "a.png", "b.png")
    picture(root / "c.png", size=(8, 16))  # so that there are whole pictures
    read(root)
    decoded.clear()
    hashed: list[str] = []
    real = cache_manifest.PixelFile.is_intact

    def counting(self: Any, file: Any) -> bool:
        hashed.append(self.name)
        return bool(real(self, file))

    monkeypatch.setattr(cache_manifest.PixelFile, "is_intact", counting)
    (manifest,) = own_cache.glob(MANIFEST)

    def touch() -> None:
        for file in own_cache.glob("*.bin"):
            os.utime(file, ns=(1, 1))

    def as_an_older_version() -> None:
        stored = json.loads(manifest.read_text())
        for name in ("stamps", "sampled", "seal"):
            del stored[name]
        manifest.write_text(json.dumps(stored))

    for change in (touch, as_an_older_version):
        change()
        for expected in (2, 0):
            hashed.clear()
            recorder = Recorder()
            assert len(read(root, progress=recorder)) == 3
            assert len(hashed) == expected and not decoded
            assert not any("again" in message for message in recorder.messages)
    as_an_older_version()
    flip_a_bit(next(own_cache.glob("*.whole.bin")))
    read(root)
    assert len(decoded) == 3


def test_every_byte_of_a_manifest_counts(tmp_path: Path, own_cache: Path) -> None:
    root = tree(tmp_path / "pics", "a.png", "b.png")
    read(root)
    (path,) = own_cache.glob(MANIFEST)
    whole, data = cache_manifest.read_manifest(path, 2**20), path.read_bytes()
    assert whole is not None
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        found = cache_manifest.read_manifest(path, 2**20)
        assert found is None or (found == whole and not data[place : place + 1].strip()), place


def test_pixels_that_the_disk_keeps_wrongly_are_found_when_they_have_been_written(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = folder_cache._write_pixels

    def losing(squares: Any, *others: Any) -> Any:
        manifest = real(squares, *others)
        squares.seek(100)
        squares.write(b"\xff")
        return manifest

    monkeypatch.setattr(folder_cache, "_write_pixels", losing)
    with pytest.raises(UserError, match="is not what the disk holds"):
        read(tree(tmp_path / "pics", "a.png", "b.png"))
    assert not list(own_cache.glob("*.bin")) and not list(own_cache.glob(MANIFEST))


def test_a_stop_in_the_middle_leaves_nothing_behind(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path / "pics", "a.png", "b.png")

    def stop(file: FileRef, wanted: Decoding) -> Any:
        if file.path.endswith("b.png"):
            raise KeyboardInterrupt
        return decode(file, wanted)

    monkeypatch.setattr(decoding, "decode", stop)
    with pytest.raises(KeyboardInterrupt):
        read(root)
    assert [path.name for path in own_cache.glob("*") if "survey" not in path.name] == []


def test_a_cache_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set SURECLR_CACHE"):
        read(tree(tmp_path / "pics", "a.png"))


def test_pixels_that_another_process_deletes_meanwhile_stay_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that decodes the same folder after a picture came: before and after the map."""
    real = folder_cache._delete_old

    def deleting(path: Path, manifest: Any, largest: int) -> None:
        real(path, manifest, largest)
        (path.parent / manifest.pixels).unlink()

    monkeypatch.setattr(folder_cache, "_delete_old", deleting)
    root = tree(tmp_path / "pics", "a.png", "b.png")
    for _ in range(2):
        assert read(root).images[:, 0, 0, 0].tolist() == [0, 1]


def _decode_often(root: Path, seed: int) -> None:
    for number in range(8):
        images = read(root).images
        assert [*images[:2, 0, 0, 0].tolist()] == [0, 1]
        (root / f"{seed}-{number}.txt").touch()
        os.utime(root / "b.png", ns=(seed, number))  # so that all have to decode again


def test_two_processes_that_decode_one_folder_do_no_harm(tmp_path: Path, own_cache: Path) -> None:
    root = tree(tmp_path / "pics", "a.png", "b.png")
    processes = [
        multiprocessing.get_context("fork").Process(target=_decode_often, args=(root, seed))
        for seed in (1, 2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    read(root)
    assert not [path for path in own_cache.iterdir() if path.name.startswith(".")]
    assert len(list(own_cache.glob("*.bin"))) == 1


def test_processes_give_what_one_gives_in_order_and_report(tmp_path: Path) -> None:
    root = tree(tmp_path / "pics", *(f"{i:02d}.png" for i in range(40)))
    (root / "bad.png").write_bytes(b"x")
    files = [FileRef(str(file)) for file in sorted(root.iterdir())]
    recorder, wanted = Recorder(), Decoding(6, 3)
    here = list(decode_files(files, wanted, pool_from=42))
    there = list(decode_files(files, wanted, recorder, pool_from=41))
    assert [x if isinstance(x, str) else x.square.tolist() for x in there] == [
        x if isinstance(x, str) else x.square.tolist() for x in here
    ]
    assert isinstance(here[-1], str) and here[7].square[0, 0, 0] == 7  # type: ignore[union-attr]
    assert recorder.tasks == [("Decoding images", 41)] and recorder.open == 0
    assert recorder.done == sorted(recorder.done) and set(recorder.done) | {0} == {*range(42)}


def test_a_process_that_dies_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "decode", die)
    root = tree(tmp_path / "pics", *(f"{i}.png" for i in range(POOL_FROM)))
    with pytest.raises(UserError, match="died"):
        read(root)
    assert not list(own_cache.glob("*.bin")) and not list(own_cache.glob(".*"))


def test_a_stop_while_decoding_leaves_nothing_and_ends_the_task(
    tmp_path: Path, own_cache: Path
) -> None:
    class Stopping(Recorder):
        def update(self, done: int, numbers: Any = None) -> None:
            super().update(done)
            if done == 2 and self.tasks[-1][0] == "Decoding images":
                raise Stopped(15, "nothing was saved")

    recorder = Stopping()
    with pytest.raises(Stopped):
        read(tree(tmp_path / "pics", "a.png", "b.png", "c.png"), progress=recorder)
    assert recorder.done == [1, 2, 3, 1, 2] and recorder.open == 0
    assert not list(own_cache.glob("*.bin")) and not list(own_cache.glob(".*"))


@pytest.mark.parametrize(("bad", "more"), [(3, False), (4, True)])
def test_up_to_three_bad_files_are_named(tmp_path: Path, bad: int, more: bool) -> None:
    root = tree(tmp_path / "pics", "good.png")
    for i in range(bad):
        (root / f"bad{i}.png").write_bytes(b"x")
    recorder = Recorder()
    read(root, progress=recorder, options=ReadOptions(allow_unreadable=True))
    (message,) = (text for text in recorder.messages if "could not" in text)
    assert message.count("no image format") == 3 and ("all in" in message) is more


def test_a_damaged_cache_is_reported(tmp_path: Path, own_cache: Path) -> None:
    root = tree(tmp_path / "pics", "a.png", "b.png")
    read(root)
    flip_a_bit(next(own_cache.glob("*.bin")))
    recorder = Recorder()
    read(root, progress=recorder)
    message = recorder.messages[0]
    assert message.startswith(f"The cache {own_cache}") and "is damaged" in message
    assert recorder.tasks == [("Decoding images", 2)]


def test_a_damaged_whole_picture_is_noticed_and_mended(tmp_path: Path, own_cache: Path) -> None:
    (tmp_path / "pics").mkdir()
    Image.fromarray(noise(9, 30, 3)).save(tmp_path / "pics" / "a.png")
    before = read(tmp_path / "pics").pictures
    pixels = before[0].clone() if before else None
    (whole,) = own_cache.glob("*.whole.bin")
    flip_a_bit(whole)
    recorder = Recorder()
    after = read(tmp_path / "pics", progress=recorder).pictures
    assert pixels is not None and after is not None and "is damaged" in recorder.messages[0]
    assert np.array_equal(after[0].numpy(), pixels.numpy())


def test_pictures_that_change_under_their_names_are_read_again_and_said(tmp_path: Path) -> None:
    """Also where the new file has the old length and the old time, as after `cp -p`."""
    root = tmp_path / "pics"
    root.mkdir()
    for i in range(3):
        Image.fromarray(noise(8, 8, 3, seed=i)).save(root / f"{i}.bmp")
    read(root)
    times = os.stat(root / "1.bmp")
    Image.fromarray(noise(8, 8, 3, seed=9)).save(root / "1.bmp")
    os.utime(root / "1.bmp", ns=(times.st_atime_ns, times.st_mtime_ns))
    recorder = Recorder()
    images = read(root, progress=recorder)
    assert np.array_equal(images.images[1].permute(1, 2, 0).numpy(), noise(8, 8, 3, seed=9))
    assert recorder.messages[0].startswith("The image files are not those that were decoded before")


def test_caches_of_an_older_version_go(tmp_path: Path, own_cache: Path) -> None:
    root = tree(tmp_path / "pics", "a.png")
    own_cache.mkdir()
    old = own_cache / f"pics-{'0' * 16}.json"
    old.write_text(json.dumps({"folder": str(root), "listing": "old"}))
    (own_cache / f"pics-{'0' * 16}-{'1' * 16}.bin").write_bytes(b"x")
    other = own_cache / f"pics-{'2' * 16}.json"
    other.write_text(json.dumps({"folder": "/another/pics", "listing": "old"}))
    read(root)
    assert not old.exists() and other.exists()
    assert not list(own_cache.glob(f"pics-{'0' * 16}*"))


# --- unreadable files


def test_strict_stops_and_more_than_a_tenth_needs_a_word(tmp_path: Path) -> None:
    root = tree(tmp_path / "pics", *(f"{i}.png" for i in range(18)))
    (root / "bad 1.png").write_bytes(b"x")
    (root / "bad 2.png").write_bytes(b"x")
    assert len(read(root)) == 18  # 2 of 20 are a tenth
    with pytest.raises(UserError, match=r"2 image files .*bad 1.png .*leave out strict=True"):
        read(root, options=ReadOptions(strict=True))
    (root / "bad 3.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"3 of 21 image files .*by allow_unreadable=True"):
        read(root)
    assert len(read(root, options=ReadOptions(allow_unreadable=True))) == 18


# --- what is said


def test_files_with_other_endings_are_counted_with_the_way_to_read_them(tmp_path: Path) -> None:
    root = tree(tmp_path, *(f"{i}.jpg" for i in range(10)))
    for name in [*(f"{i}.CR2" for i in range(3)), "a.mov", "notes.txt", "README", ".hidden.txt"]:
        (root / name).write_bytes(b"x")
    recorder = Recorder()
    images = read(root, progress=recorder)
    assert images.report is not None
    assert images.report.left_out == {".cr2": 3, ".mov": 1, ".txt": 1, "(no ending)": 1}
    (message,) = (text for text in recorder.messages if text.startswith("Left out"))
    assert message.startswith("Left out: 3 .cr2 (convert them to JPEG or TIFF), 1 .mov (save")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.cr2").write_bytes(b"x")
    with pytest.raises(UserError, match=r"but 1 file .cr2 .convert them"):
        read(tmp_path / "only")


def test_the_report_counts_what_is_there_and_is_json(tmp_path: Path) -> None:
    root = tree(tmp_path, *(f"train/cat/{i}.png" for i in range(5)), "train/dog/1.png")
    picture(root / "test" / "dog" / "7.png", 77, "L", (30, 20))
    recorder = Recorder()
    images = read(root, progress=recorder)
    assert images.report is not None
    found = json.loads(json.dumps(images.report.to_json()))
    assert found["classes"] == {"cat": 5, "dog": 2} and found["splits"] == {"train": 6, "test": 1}
    assert found["sizes"]["smallest"] == [8, 8] and found["sizes"]["largest"] == [30, 20]
    assert found["images"] == 7 == sum(found["splits"].values()) and found["size"] == 8
    assert recorder.messages[0].endswith("7 images (6 train, 1 test), 2 classes: cat 5, dog 2.")
    assert "8 x 8 px to 30 x 20 px (median 8 x 8 px); they are used at 8 px" in recorder.messages[2]


# --- names and paths


@pytest.mark.parametrize(
    "name",
    ["a b", "a\u3000b", "a\u00a0b", 'it\'s "q"', "line\nbreak", "x\udcff", "a,b", "back\\slash"],
    ids=["blank", "ideographic", "no-break", "quotes", "line break", "bytes", "comma", "backslash"],
)
def test_a_folder_is_found_again_by_the_name_of_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root = tmp_path / name
    os.makedirs(os.fsencode(root))
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", root / "a.png")
    monkeypatch.chdir(tmp_path)
    images = load_images(f"folder:{name}", size=8)
    monkeypatch.chdir("/")
    config = PretrainConfig(images.name)
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    source = from_dict(read_yaml(tmp_path / "config.yaml")).source
    again = load_images(json.loads(json.dumps(source)), size=8)
    assert np.array_equal(again.images.numpy(), images.images.numpy())
    assert findable(images.name) == images.name == f"folder:{root}"


def test_tilde_and_relative_paths_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path / "pics", "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert load_images("folder:~/pics", size=8).name == f"folder:{tmp_path}/pics"
    assert findable("folder:pics") == f"folder:{tmp_path}/pics" and findable("digits") == "digits"


def test_a_class_folder_may_end_in_a_blank(tmp_path: Path) -> None:
    images = read(tree(tmp_path, "left /1.png", "left/2.png", "r\u3000/3.png"))
    assert images.classes == ("left", "left ", "r\u3000")
    assert images.labels.tolist() == [1, 0, 2]
    assert list(images.paths) == ["left /1.png", "left/2.png", "r\u3000/3.png"]


# --- several folders


def test_several_folders_are_one_source(tmp_path: Path) -> None:
    tree(tmp_path / "a", "cat/1.png", "dog/2.png")
    tree(tmp_path / "b" / "cat", "0.png", "1.png", "2.png", "3.png")
    tree(tmp_path / "b", "elk/4.png")
    images = load_images(f"folder:{tmp_path}/a,{tmp_path}/b", size=8)
    assert images.classes == ("cat", "dog", "elk")
    assert list(images.paths)[:3] == ["a/cat/1.png", "a/dog/2.png", "b/cat/0.png"]
    assert load_images(images.name, size=8).images.tolist() == images.images.tolist()
    same = as_image_set([tmp_path / "a", tmp_path / "b"], size=8)
    assert same.images.tolist() == images.images.tolist() and same.name == images.name


# --- pages


def test_pages_are_skipped_and_said_or_become_images(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(8, 8, 3, seed=i)) for i in range(3)]
    frames[0].save(tmp_path / "scan.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(noise(8, 8, 3, seed=7)).save(tmp_path / "one.png")
    recorder = Recorder()
    first = read(tmp_path, progress=recorder)
    assert list(first.paths) == ["one.png", "scan.tif"]
    (message,) = (text for text in recorder.messages if "several pages" in text)
    assert message.startswith("1 file has several pages or frames") and "2 are skipped" in message
    images = read(tmp_path, options=ReadOptions(pages="all"))
    assert list(images.paths) == ["one.png", "scan.tif", "scan.tif#2", "scan.tif#3"]
    for row, frame in enumerate(frames, 1):
        assert np.array_equal(images.images[row].permute(1, 2, 0).numpy(), np.asarray(frame))


def test_a_link_to_a_folder_above_brings_nothing_in(tmp_path: Path) -> None:
    """A stranger's folder could else bring in every picture of the disk."""
    write_photos(tmp_path / "mine")
    write_photos(tmp_path / "theirs/photos")
    inside = find_files((tmp_path / "theirs/photos").resolve())
    for name, target in (("a", tmp_path), ("b", Path("/")), ("c", Path("../.."))):
        (tmp_path / "theirs/photos" / name).symlink_to(target)
    assert find_files((tmp_path / "theirs/photos").resolve()) == inside
    (tmp_path / "theirs/photos/d").symlink_to(tmp_path / "mine")  # beside is the user's wish
    assert len(find_files((tmp_path / "theirs/photos").resolve())[0]) == 2 * len(inside[0])
